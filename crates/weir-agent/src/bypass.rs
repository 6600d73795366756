//! What on this node takes packets of pods past Weir's chains: said plainly, once, and nothing more.
//!
//! Only what can be seen without further rights is looked at: names of links, and the list of IPVS
//! services of this network namespace. Neither is proof that a given packet goes that way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use crate::links::LinkTable;

/// The services of IPVS, each line with one after three of a heading. Of the thread, for tests are in
/// namespaces of their own.
const IPVS: &str = "/proc/thread-self/net/ip_vs";
/// kube-proxy binds the Services' addresses to it.
const IPVS_LINK: &str = "kube-ipvs0";
const CILIUM_LINKS: [&str; 2] = ["cilium_host", "cilium_net"];

/// What is there of that sort, by its name, with what it means and what to do.
pub fn seen(links: &LinkTable) -> BTreeMap<&'static str, String> {
    let ipvs = || File::open(IPVS).is_ok_and(has_services);
    let mut found = BTreeMap::new();
    let why = if links.has_link(IPVS_LINK) {
        Some(format!("there is an interface {IPVS_LINK}"))
    } else {
        ipvs().then(|| "/proc/net/ip_vs lists services".to_owned())
    };
    if let Some(why) = why {
        let warning = format!(
            "IPVS is in use ({why}), which Weir does not support: egress policies see the ClusterIP and not the pod \
             behind it, and ingress policies are not asked for Services whose backend is on the client's node; \
             run kube-proxy in nftables or iptables mode"
        );
        found.insert("IPVS", warning);
    }
    if let Some(link) = CILIUM_LINKS.into_iter().find(|link| links.has_link(link)) {
        let warning = format!(
            "Cilium is on this node (there is an interface {link}): where it routes packets of pods in eBPF, they pass \
             by netfilter and so by all of Weir's rules; let Cilium route by the host's stack \
             (bpf.hostLegacyRouting=true), or let it enforce policies alone"
        );
        found.insert("Cilium", warning);
    }
    found
}

/// The heading alone is there whenever the module is loaded.
fn has_services(list: impl Read) -> bool {
    const PROTOCOLS: [&str; 4] = ["TCP", "UDP", "SCTP", "FWM"];
    let service = |line: &str| line.split_whitespace().next().is_some_and(|word| PROTOCOLS.contains(&word));
    BufReader::new(list).lines().take(4).map_while(Result::ok).any(|line| service(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::{Link, LinkEvent};

    const HEADING: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
";

    fn with(names: &[&str]) -> LinkTable {
        let mut table = LinkTable::new();
        for (index, name) in (1..).zip(names) {
            let name = (*name).to_owned();
            let (up, loopback, master, below) = (true, name == "lo", None, None);
            table.apply(LinkEvent::Link(Link {
                index,
                name,
                kind: None,
                up,
                loopback,
                master,
                below,
                elsewhere: false,
            }));
        }
        table
    }

    #[test]
    fn a_loaded_module_is_not_a_service() {
        assert!(!has_services("".as_bytes()));
        assert!(!has_services(HEADING.as_bytes()));
        for service in ["TCP  0A600001:01BB rr", "UDP  [fd00::1]:0035 rr", "FWM  00000001 rr"] {
            assert!(has_services(format!("{HEADING}{service}\n  -> 0A000002:1F90 Masq 1 0 0\n").as_bytes()));
        }
    }

    #[test]
    fn each_engine_is_named_once_by_what_was_seen() {
        assert_eq!(seen(&with(&["lo", "eth0", "cni0", "veth1", "dummy0"])), BTreeMap::new());
        let one = |names: &[&str]| {
            let warnings = seen(&with(names));
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            warnings.into_values().next().unwrap()
        };
        assert!(
            one(&["eth0", "kube-ipvs0"]).starts_with("IPVS is in use (there is an interface kube-ipvs0)")
        );
        for link in CILIUM_LINKS {
            assert!(
                one(&[link]).starts_with(&format!("Cilium is on this node (there is an interface {link})"))
            );
        }
        assert!(one(&["cilium_host", "cilium_net", "lxc1"]).contains("cilium_host"));
        assert_eq!(seen(&with(&["kube-ipvs0", "cilium_host"])).len(), 2);
        let mut gone = with(&["kube-ipvs0"]);
        gone.apply(LinkEvent::LinkGone { index: 1 });
        assert_eq!(seen(&gone), BTreeMap::new());
    }
}
