//! What on this node takes packets of pods past Weir's chains, or judges them as well: said plainly, once each time
//! that it begins, and nothing more.
//!
//! Only what can be seen without further rights is looked at: names of links, the list of IPVS services of this
//! network namespace, and what other engines have in the kernel ([`engines`]). None of it is proof that a given packet
//! goes that way. Links are looked at when they change, all else at the start and once a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use crate::engines::{self, Traces};
use crate::links::LinkTable;

/// The services of IPVS, each line with one after three of a heading. Of the thread, for tests are in
/// namespaces of their own.
const IPVS: &str = "/proc/thread-self/net/ip_vs";
/// kube-proxy binds the Services' addresses to it.
const IPVS_LINK: &str = "kube-ipvs0";
const CILIUM_LINKS: [&str; 2] = ["cilium_host", "cilium_net"];

/// What is there of that sort, by its name, with what it means and what to do.
pub fn seen(links: &LinkTable, traces: &Traces) -> BTreeMap<&'static str, String> {
    let ipvs = || File::open(IPVS).is_ok_and(has_services);
    let mut found = engines::seen(traces, links);
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
        found.insert("ipvs", warning);
    }
    if let Some(link) = CILIUM_LINKS.into_iter().find(|link| links.has_link(link)) {
        let warning = format!(
            "Cilium is on this node (there is an interface {link}): where it routes packets of pods in eBPF, they pass \
             by netfilter and so by all of Weir's rules; let Cilium route by the host's stack \
             (bpf.hostLegacyRouting=true), or let it enforce policies alone"
        );
        found.insert("cilium", warning);
    }
    found
}

/// What has been said, so that it is said once.
#[derive(Debug, Clone, Default)]
pub struct Said(BTreeSet<&'static str>);

impl Said {
    /// Of what is seen now, that of which nothing has been said since it began.
    pub fn begun(&mut self, now: BTreeMap<&'static str, String>) -> BTreeMap<&'static str, String> {
        now.into_iter().filter(|(what, _)| self.0.insert(what)).collect()
    }

    /// What was said and is seen no more: when it comes again, that is news. Asked once a minute, so that what comes and
    /// goes all the time is no more often in the log.
    pub fn gone(&mut self, now: &BTreeMap<&'static str, String>) -> Vec<&'static str> {
        self.0.extract_if(.., |what| !now.contains_key(what)).collect()
    }
}

/// All names that [`seen`] may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    engines::names().chain(["ipvs", "cilium"])
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
    fn it_is_said_once_each_time_it_begins() {
        let now = |what: &[&'static str]| -> BTreeMap<&'static str, String> {
            what.iter().map(|what| (*what, format!("{what}!"))).collect()
        };
        let mut said = Said::default();
        let names = |begun: BTreeMap<&'static str, String>| begun.into_keys().collect::<Vec<_>>();
        assert_eq!(names(said.begun(now(&["calico", "ipvs"]))), ["calico", "ipvs"]);
        assert_eq!(names(said.begun(now(&["calico"]))), [""; 0], "it goes on");
        assert_eq!(
            names(said.begun(now(&["calico", "ipvs"]))),
            [""; 0],
            "it came back before anybody looked"
        );
        assert_eq!(said.gone(&now(&["ipvs"])), ["calico"]);
        assert_eq!(said.gone(&now(&["ipvs"])), [""; 0]);
        assert_eq!(names(said.begun(now(&["calico", "ipvs"]))), ["calico"], "it begins again");
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
        let none = Traces::default();
        assert_eq!(seen(&with(&["lo", "eth0", "cni0", "veth1", "dummy0"]), &none), BTreeMap::new());
        let one = |names: &[&str]| {
            let warnings = seen(&with(names), &none);
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
        assert_eq!(seen(&with(&["kube-ipvs0", "cilium_host"]), &none).len(), 2);
        let mut gone = with(&["kube-ipvs0"]);
        gone.apply(LinkEvent::LinkGone { index: 1 });
        assert_eq!(seen(&gone, &none), BTreeMap::new());
    }
}
