//! The ports that matter: those at which some policy or pod makes a difference.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::Value;
use weir_compiler::object::Protocol;

use crate::cluster::Cluster;
use crate::objects::{Objects, list, text};

/// How many port numbers are probed unless the user names some.
pub const LIMIT: usize = 8;

/// A protocol and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl FromStr for Port {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Port> {
        let (number, protocol) = s.split_once('/').unwrap_or((s, "TCP"));
        let protocol = protocol.to_ascii_uppercase().parse::<Protocol>()?;
        match number.parse::<u16>() {
            Ok(number) if number > 0 && protocol != Protocol::Sctp => Ok(Port { number, protocol }),
            _ => bail!("port {s:?} is not like 80/TCP or 53/UDP"),
        }
    }
}

/// Both protocols at each port that policies name or pods declare, and at one that nobody mentions. The second
/// part tells of what was cut off.
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
    let ports = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .flat_map(|protocol| numbers.iter().map(move |&number| Port { number, protocol }))
        .collect();
    (ports, cut)
}

/// Whether policies name ports of SCTP, for which no packets are sent.
pub fn has_sctp(objects: &Objects) -> bool {
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
        ports.into_iter().filter(|p| p.protocol == Protocol::Udp).map(|p| p.number).collect()
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
}
