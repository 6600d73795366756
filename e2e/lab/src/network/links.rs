//! How a pod is joined to its node: in this lab's plain ways, and as CNI plugins do it.
//!
//! What tells plugins apart, as far as an agent could notice: the names of interfaces, the pod's next hop, who
//! answers for it, the routes of the node, and whether addresses are resolved or known beforehand.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Result, bail};

/// How pods are joined to their node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum PodLinks {
    /// A veth and a host route for each pod; all neighbours are known beforehand.
    #[default]
    Routed,
    /// A bridge per node; all neighbours are known beforehand.
    Bridged,
    /// azure-vnet, transparent: `azv*`, next hop 169.254.1.1 with a fixed neighbour entry in the pod.
    Azure,
    /// Calico: `cali*`, all with one MAC; next hop 169.254.1.1, for which the node answers ARP by proxy.
    Calico,
    /// The plugin ptp: `veth*`, each with the address of the gateway, and routes of scope host.
    Ptp,
    /// kubenet: a bridge `cbr0` that has the gateway's address and the subnet.
    Kubenet,
    /// Flannel and others with the plugin bridge: `cni0`.
    Flannel,
    /// Weave: a bridge `weave`.
    Weave,
}

/// What a pod sends everything to that is not on its own link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gateway {
    /// 169.254.1.1 and fe80::1, which nobody has: a fixed neighbour entry leads there.
    Fixed,
    /// The same for IPv4, resolved by proxy ARP; for IPv6 the node's link-local address.
    Proxy,
    /// An address of the pod's subnet, which the node has on its end of the link, or on the bridge.
    Subnet,
}

impl PodLinks {
    /// All of them.
    pub const ALL: [PodLinks; 8] = [
        PodLinks::Routed,
        PodLinks::Bridged,
        PodLinks::Azure,
        PodLinks::Calico,
        PodLinks::Ptp,
        PodLinks::Kubenet,
        PodLinks::Flannel,
        PodLinks::Weave,
    ];

    /// The bridge that pods are behind.
    pub fn bridge(self) -> Option<&'static str> {
        match self {
            PodLinks::Bridged | PodLinks::Flannel => Some("cni0"),
            PodLinks::Kubenet => Some("cbr0"),
            PodLinks::Weave => Some("weave"),
            PodLinks::Routed | PodLinks::Azure | PodLinks::Calico | PodLinks::Ptp => None,
        }
    }

    /// The node's end of a pod's link.
    pub(super) fn interface(self, serial: u16) -> String {
        match self {
            PodLinks::Routed | PodLinks::Bridged => format!("lab{serial}"),
            PodLinks::Azure => format!("azv{serial:011x}"),
            PodLinks::Calico => format!("cali{serial:011x}"),
            PodLinks::Ptp | PodLinks::Kubenet | PodLinks::Flannel => format!("veth{serial:08x}"),
            PodLinks::Weave => format!("vethwepl{serial:07x}"),
        }
    }

    pub(super) fn gateway(self) -> Gateway {
        match self {
            PodLinks::Routed | PodLinks::Bridged | PodLinks::Azure => Gateway::Fixed,
            PodLinks::Calico => Gateway::Proxy,
            PodLinks::Ptp | PodLinks::Kubenet | PodLinks::Flannel | PodLinks::Weave => Gateway::Subnet,
        }
    }

    /// Whether nodes, and pods on a bridge, know all neighbours beforehand. Where they do not, ARP and
    /// neighbour discovery must get through whatever policies say (N92).
    pub(super) fn knows_neighbours(self) -> bool {
        matches!(self, PodLinks::Routed | PodLinks::Bridged)
    }
}

/// How pods are joined to their nodes, node by node: `routed`, or `routed,node-2=bridged`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Links {
    default: PodLinks,
    nodes: BTreeMap<String, PodLinks>,
}

impl Links {
    /// Those of a node.
    pub fn of(&self, node: &str) -> PodLinks {
        self.nodes.get(node).copied().unwrap_or(self.default)
    }
}

impl From<PodLinks> for Links {
    fn from(default: PodLinks) -> Links {
        Links { default, nodes: BTreeMap::new() }
    }
}

impl FromStr for Links {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Links> {
        let read = |word: &str| <PodLinks as clap::ValueEnum>::from_str(word, true);
        let mut links = Links::default();
        for part in s.split(',').map(str::trim) {
            let (node, word) = part.split_once('=').unwrap_or(("", part));
            let Ok(found) = read(word) else {
                let all: Vec<String> = PodLinks::ALL.iter().map(PodLinks::to_string).collect();
                bail!("links {word:?} are not among {}; NODE=LINKS for one node alone", all.join(", "));
            };
            match node {
                "" => links.default = found,
                node => drop(links.nodes.insert(node.to_owned(), found)),
            }
        }
        Ok(links)
    }
}

impl TryFrom<String> for Links {
    type Error = anyhow::Error;
    fn try_from(s: String) -> Result<Links> {
        s.parse()
    }
}

impl From<Links> for String {
    fn from(links: Links) -> String {
        links.to_string()
    }
}

impl fmt::Display for PodLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |v| v.get_name()))
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.nodes.iter().try_for_each(|(node, links)| write!(f, ",{node}={links}"))
    }
}

/// The gateway of an address' subnet (/24 or /64), and the length of that: its first address, or a late one
/// if a pod has the first.
pub(super) fn subnet_gateway(ip: IpAddr, taken: impl Fn(IpAddr) -> bool) -> (IpAddr, u8) {
    let at = |last: u8| match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, last))
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last.into()))
        }
    };
    let length = if ip.is_ipv4() { 24 } else { 64 };
    ([1, 254].map(at).into_iter().find(|ip| !taken(*ip)).unwrap_or(at(1)), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_read_as_they_are_written() {
        let text = "routed,n2=bridged,n3=calico";
        let links: Links = text.parse().unwrap();
        assert_eq!(links.to_string(), text);
        assert_eq!(links.of("n2"), PodLinks::Bridged);
        assert_eq!(links.of("n9"), PodLinks::Routed);
        assert!("wired".parse::<Links>().is_err());
    }

    #[test]
    fn names_fit_an_interface() {
        assert!(PodLinks::ALL.iter().all(|links| links.interface(u16::MAX).len() <= 15));
    }

    #[test]
    fn a_pod_keeps_its_address_from_the_gateway() {
        let ip = "10.1.2.3".parse().unwrap();
        assert_eq!(subnet_gateway(ip, |_| false).0.to_string(), "10.1.2.1");
        assert_eq!(subnet_gateway(ip, |g| g.to_string() == "10.1.2.1").0.to_string(), "10.1.2.254");
    }
}
