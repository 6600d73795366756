//! Whether packets between pods of one bridge come by the rules at all.
//!
//! A bridge forwards such packets itself. They meet the inet hooks only with br_netfilter and its
//! sysctls `net.bridge.bridge-nf-call-iptables` and `-ip6tables` on, which Kubernetes asks for, too
//! (without them a Service that answers with a pod of the same bridge does not work either).

use std::collections::BTreeSet;
use std::net::IpAddr;

use weir_dataplane::{Attachment, Attachments};

use crate::host;

/// Each with whether it is for IPv6.
const SYSCTLS: [(&str, bool); 2] = [(host::SYSCTLS[0], false), (host::SYSCTLS[1], true)];

/// The sysctls that are off although pods of their family share an interface with others, each with
/// what that means.
pub fn unfiltered(attachments: &Attachments) -> BTreeSet<String> {
    let off = |name: &str| {
        let value = std::fs::read_to_string(format!("{}/{name}", host::BRIDGE));
        value.map_or(true, |value| value.trim() == "0")
    };
    let concerned =
        SYSCTLS.into_iter().filter_map(|(name, v6)| Some((name, warning(attachments, name, v6)?)));
    concerned.filter(|(name, _)| off(name)).map(|(_, warning)| warning).collect()
}

fn warning(attachments: &Attachments, sysctl: &str, v6: bool) -> Option<String> {
    let shared = attachments.iter().find_map(|(address, attachment)| match attachment {
        Attachment::Shared(interface) if IpAddr::is_ipv6(address) == v6 => Some(interface),
        _ => None,
    })?;
    Some(format!(
        "net.bridge.{sysctl} is not on: if {shared} is a bridge, packets between its pods pass by all policies; \
         load br_netfilter and set it to 1 (weir-agent host-setup)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_families_of_shared_interfaces_are_concerned() {
        let attachments: Attachments = [
            ("10.0.0.1".parse().unwrap(), Attachment::Shared("cni0".into())),
            ("fd00::1".parse().unwrap(), Attachment::Own("veth0".into())),
        ]
        .into();
        let [(v4, _), (v6, _)] = SYSCTLS;
        assert!(warning(&attachments, v4, false).is_some_and(|w| w.contains("cni0")));
        assert_eq!(warning(&attachments, v6, true), None);
    }

    #[test]
    #[ignore = "needs root"]
    fn the_sysctl_of_this_network_namespace_decides() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            let attachments: Attachments =
                [("10.0.0.1".parse().unwrap(), Attachment::Shared("cni0".into()))].into();
            let set =
                |value: &str| std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", value).unwrap();
            set("0");
            assert_eq!(unfiltered(&attachments).len(), 1);
            set("1");
            assert_eq!(unfiltered(&attachments).len(), 0);
        })
        .join()
        .unwrap();
    }
}
