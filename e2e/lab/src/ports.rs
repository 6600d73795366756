//! The ports that matter: those at which some policy or pod makes a difference.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, anyhow};
use serde_json::Value;
use weir_compiler::object::Protocol;
use weir_compiler::ports::L4;

use crate::cluster::Cluster;
use crate::objects::{Objects, list, text};

/// How many port numbers are probed unless the user names some.
pub const LIMIT: usize = 8;
/// The largest payload of a datagram.
const MAX_BYTES: u16 = 60_000;

/// What carries a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// A connection, and the server's name over it.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// An INIT chunk and its INIT ACK.
    Sctp,
    /// An echo request and its reply, of ICMP or ICMPv6.
    Icmp,
}

impl Transport {
    /// What rules see of it in the family of `address`, with a destination port if it has any.
    pub fn l4(self, address: IpAddr, port: u16) -> L4 {
        match self {
            Transport::Tcp => L4::Port(Protocol::Tcp, port),
            Transport::Udp => L4::Port(Protocol::Udp, port),
            Transport::Sctp => L4::Port(Protocol::Sctp, port),
            Transport::Icmp => L4::Other(if address.is_ipv4() { 1 } else { 58 }),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
            Transport::Icmp => "ICMP",
        })
    }
}

/// What to probe: `80/TCP`, `53/UDP`, `53/UDP:4000` (datagrams of so many bytes), `9/SCTP` or `ICMP` (echo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Port {
    /// The destination port; 0 for ICMP.
    pub number: u16,
    /// The protocol.
    pub protocol: Transport,
    /// Payload of a UDP probe, if it is to be large; 0: as it comes.
    #[serde(default)]
    pub bytes: u16,
}

impl Port {
    /// A port, and probes of no special size.
    pub fn new(number: u16, protocol: Transport) -> Port {
        Port { number, protocol, bytes: 0 }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port { protocol: Transport::Icmp, .. } => f.write_str("ICMP"),
            Port { number, protocol, bytes: 0 } => write!(f, "{number}/{protocol}"),
            Port { number, protocol, bytes } => write!(f, "{number}/{protocol}:{bytes}"),
        }
    }
}

impl FromStr for Port {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Port> {
        if s.eq_ignore_ascii_case("ICMP") {
            return Ok(Port::new(0, Transport::Icmp));
        }
        let wrong = || anyhow!("port {s:?} is not like 80/TCP, 53/UDP, 53/UDP:4000, 9/SCTP or ICMP");
        let (number, protocol) = s.split_once('/').unwrap_or((s, "TCP"));
        let (protocol, bytes) = protocol.split_once(':').unwrap_or((protocol, "0"));
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            _ => return Err(wrong()),
        };
        let number = number.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
        let bytes = bytes.parse().ok().filter(|n| *n <= MAX_BYTES).ok_or_else(wrong)?;
        if bytes > 0 && protocol != Transport::Udp {
            return Err(wrong());
        }
        Ok(Port { number, protocol, bytes })
    }
}

/// TCP and UDP, and SCTP where policies or pods name it (N62), at each port that policies name or pods declare
/// and at one that nobody mentions. The second part tells of what was cut off.
pub fn that_matter(objects: &Objects, cluster: &Cluster) -> (Vec<Port>, Option<String>) {
    let mut numbers = Vec::new();
    let mut add = |n: u64| {
        if let Some(n) = u16::try_from(n).ok().filter(|n| *n > 0 && !numbers.contains(n)) {
            numbers.push(n);
        }
    };
    let mut outside = Vec::new();
    for policy in objects.of_kind("NetworkPolicy") {
        let rules = list(policy, "/spec/ingress").iter().chain(list(policy, "/spec/egress"));
        for port in rules.flat_map(|rule| list(rule, "/ports")) {
            match (port.get("port"), port.get("endPort").and_then(Value::as_u64)) {
                (Some(Value::Number(first)), end) => {
                    let first = first.as_u64().unwrap_or(0);
                    add(first);
                    if let Some(end) = end {
                        add(end);
                        outside.push(if end < 65535 { end + 1 } else { first.saturating_sub(1) });
                    }
                }
                (Some(Value::String(name)), _) => {
                    for (_, _, n) in cluster.pods.iter().flat_map(|p| &p.ports).filter(|(n, ..)| n == name) {
                        add(u64::from(*n));
                    }
                }
                _ => {}
            }
        }
    }
    outside.into_iter().for_each(&mut add);
    let declared: BTreeSet<u16> = cluster.pods.iter().flat_map(|p| &p.ports).map(|(.., n)| *n).collect();
    declared.into_iter().for_each(|n| add(u64::from(n)));

    let all = numbers.len();
    let unmentioned = (7777..).find(|n| !numbers.contains(n)).unwrap_or(7777);
    numbers.truncate(LIMIT - 1);
    let cut = (all > numbers.len()).then(|| {
        format!("{all} ports matter, the first {} are probed: name others with --port", numbers.len())
    });
    numbers.sort_unstable();
    numbers.push(unmentioned);
    let mut protocols = vec![Transport::Tcp, Transport::Udp];
    if has_sctp(objects) || cluster.pods.iter().flat_map(|p| &p.ports).any(|(_, p, _)| *p == Protocol::Sctp) {
        protocols.push(Transport::Sctp);
    }
    let ports = protocols
        .into_iter()
        .flat_map(|protocol| numbers.iter().map(move |&number| Port::new(number, protocol)))
        .collect();
    (ports, cut)
}

/// Whether policies name ports of SCTP.
fn has_sctp(objects: &Objects) -> bool {
    objects.of_kind("NetworkPolicy").any(|policy| {
        let rules = list(policy, "/spec/ingress").iter().chain(list(policy, "/spec/egress"));
        rules.flat_map(|rule| list(rule, "/ports")).any(|port| text(port, "/protocol") == "SCTP")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ports(policy_ports: Value, container_ports: Value) -> Vec<u16> {
        let mut objects = Objects::default();
        let policy = json!({"spec": {"ingress": [{"ports": policy_ports}]}});
        objects.all.insert(("NetworkPolicy".into(), "x".into(), "p".into()), policy);
        let pod = json!({"metadata": {"namespace": "x", "name": "a"},
            "spec": {"nodeName": "n", "containers": [{"ports": container_ports}]}, "status": {"podIP": "10.0.0.1"}});
        objects.all.insert(("Pod".into(), "x".into(), "a".into()), pod);
        let (ports, _) = that_matter(&objects, &Cluster::new(&objects, &Cluster::default()));
        ports.into_iter().filter(|p| p.protocol == Transport::Udp).map(|p| p.number).collect()
    }

    #[test]
    fn both_ends_of_a_range_and_one_outside() {
        assert_eq!(ports(json!([{"port": 100, "endPort": 200}]), json!([])), [100, 200, 201, 7777]);
        assert_eq!(ports(json!([{"port": 100, "endPort": 65535}]), json!([])), [99, 100, 65535, 7777]);
    }

    #[test]
    fn names_are_looked_up_on_pods_and_declared_ports_count() {
        let declared = json!([{"name": "web", "containerPort": 8080}, {"containerPort": 9000}]);
        assert_eq!(ports(json!([{"port": "web"}, {"port": "none"}]), declared), [8080, 9000, 7777]);
    }

    #[test]
    fn many_ports_are_cut_off() {
        let many: Vec<Value> = (1..100).map(|n| json!({"port": n})).collect();
        assert_eq!(ports(json!(many), json!([])).len(), LIMIT);
    }

    #[test]
    fn n62_sctp_is_probed_where_it_is_named() {
        let mut objects = Objects::default();
        let policy = json!({"spec": {"ingress": [{"ports": [{"port": 9, "protocol": "SCTP"}]}]}});
        objects.all.insert(("NetworkPolicy".into(), "x".into(), "p".into()), policy);
        let (ports, _) = that_matter(&objects, &Cluster::default());
        assert!(ports.contains(&Port::new(9, Transport::Sctp)), "{ports:?}");
    }

    #[test]
    fn ports_read_as_they_are_written() {
        for text in ["80/TCP", "53/UDP", "53/UDP:4000", "9/SCTP", "ICMP"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
        }
        for text in ["80/ICMP", "0/TCP", "80/TCP:9", "53/UDP:65535", "x"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }
}
