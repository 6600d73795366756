//! Who lives where: nodes, pods that run, and which of them owns which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use weir_compiler::object::{ObjectKey, Protocol};

use crate::objects::{Objects, addresses, list, text};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// One address of each family at least; those of its host-network pods where they say any.
    pub addresses: Vec<IpAddr>,
    /// No node at all, but a machine beyond the cluster's: it runs neither agent nor pods.
    pub outside: bool,
}

/// What takes part in probes besides pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machines {
    /// The nodes themselves, called `@node/NAME`.
    pub nodes: bool,
    /// A machine beyond the nodes, called `@net/outside`.
    pub outside: bool,
}

/// The name of the machine outside: none that a node can have.
const OUTSIDE: &str = "@outside";

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The node's name.
    pub node: String,
    /// Those that it owns; its node's for a host-network pod.
    pub addresses: Vec<IpAddr>,
    /// Lives in its node's namespace (N70).
    pub host_network: bool,
    /// What its containers declare; the name may be empty.
    pub ports: Vec<(String, Protocol, u16)>,
}

impl Pod {
    /// The pod's address of the other one's family, for each family that both have: (own, other's).
    pub fn common_addresses(&self, other: &Pod) -> Vec<(IpAddr, IpAddr)> {
        let first = |pod: &Pod, v4: bool| pod.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
        [true, false].into_iter().filter_map(|v4| Some((first(self, v4)?, first(other, v4)?))).collect()
    }
}

/// All nodes and running pods, sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The pods that run.
    pub pods: Vec<Pod>,
    /// Nodes and others that take part in probes, in the guise of host-network pods: no policy selects them.
    pub machines: Vec<Pod>,
    /// Pods that get no namespace, and why.
    pub left_out: Vec<(ObjectKey, String)>,
}

impl Cluster {
    /// From completed objects, and what was before: nodes stay, with their addresses, when their last pod goes.
    pub fn new(objects: &Objects, before: &Cluster) -> Cluster {
        let mut cluster = Cluster::default();
        let known = before
            .nodes
            .iter()
            .filter(|n| !n.outside)
            .map(|n| (n.name.clone(), n.addresses.iter().copied().collect()));
        let mut own_node_addresses: BTreeMap<String, BTreeSet<IpAddr>> = known.collect();
        let mut owners: BTreeMap<IpAddr, (Rank, ObjectKey)> = BTreeMap::new();
        let mut taken: BTreeSet<IpAddr> = own_node_addresses.values().flatten().copied().collect();
        for pod in objects.of_kind("Pod") {
            let node = own_node_addresses.entry(text(pod, "/spec/nodeName").to_owned()).or_default();
            taken.extend(addresses(pod));
            if finished(pod) {
                continue;
            }
            if host_network(pod) {
                node.extend(addresses(pod));
                continue;
            }
            for ip in addresses(pod) {
                let claim = (rank(pod), key(pod));
                if owners.get(&ip).is_none_or(|owner| *owner < claim) {
                    owners.insert(ip, claim);
                }
            }
        }
        for (index, (name, mut addresses)) in (1u16..).zip(own_node_addresses) {
            for candidates in [node_v4 as fn(u16, u16) -> IpAddr, node_v6] {
                if !addresses.iter().any(|ip| ip.is_ipv4() == candidates(index, 0).is_ipv4()) {
                    addresses
                        .extend((0..250).map(|turn| candidates(index, turn)).find(|ip| taken.insert(*ip)));
                }
            }
            cluster.nodes.push(Node { name, addresses: addresses.into_iter().collect(), outside: false });
        }
        for pod in objects.of_kind("Pod") {
            let key = key(pod);
            if finished(pod) {
                cluster.left_out.push((key, "it has finished".into()));
                continue;
            }
            let node = text(pod, "/spec/nodeName").to_owned();
            let host_network = host_network(pod);
            let written = addresses(pod);
            let addresses: Vec<IpAddr> = if host_network && written.is_empty() {
                cluster.node(&node).map(|n| n.addresses.clone()).unwrap_or_default()
            } else if host_network {
                written
            } else {
                written
                    .into_iter()
                    .filter(|ip| owners.get(ip).is_some_and(|(_, owner)| *owner == key))
                    .collect()
            };
            if addresses.is_empty() {
                cluster.left_out.push((key, "a newer pod has its address".into()));
                continue;
            }
            cluster.pods.push(Pod { key, node, addresses, host_network, ports: declared_ports(pod) });
        }
        cluster
    }

    /// With these machines besides the pods.
    pub fn with(mut self, machines: Machines) -> Cluster {
        let mut add = |namespace: &str, name: &str, node: &Node| {
            self.machines.push(Pod {
                key: ObjectKey::new(namespace, name),
                node: node.name.clone(),
                addresses: node.addresses.clone(),
                host_network: true,
                ports: Vec::new(),
            });
        };
        for node in self.nodes.iter().filter(|_| machines.nodes) {
            add("@node", &node.name, node);
        }
        if machines.outside {
            let addresses = vec![
                Ipv4Addr::new(198, 51, 100, 1).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
            ];
            let node = Node { name: OUTSIDE.into(), addresses, outside: true };
            add("@net", "outside", &node);
            self.nodes.push(node);
        }
        self
    }

    /// Pods, and then machines: what flows are between.
    pub fn ends(&self) -> Vec<Pod> {
        self.pods.iter().chain(&self.machines).cloned().collect()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The pod (or machine) that `namespace/name`, or `name` if there is but one of it, means.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        let mut found = self.pods.iter().chain(&self.machines).filter(|p| {
            let by_name = p.key.name == name && !p.key.namespace.starts_with('@');
            by_name || p.key.to_string() == name
        });
        found.next().filter(|_| found.next().is_none())
    }
}

/// Who owns an address: terminating pods last, then the newest (N77). Timestamps of the API are of one
/// length and in UTC, so that their order is that of their text.
type Rank = (bool, String, String);

fn rank(pod: &Value) -> Rank {
    let terminating = !text(pod, "/metadata/deletionTimestamp").is_empty();
    let created = text(pod, "/metadata/creationTimestamp").to_owned();
    (!terminating, created, text(pod, "/metadata/uid").to_owned())
}

fn key(pod: &Value) -> ObjectKey {
    ObjectKey::new(text(pod, "/metadata/namespace"), text(pod, "/metadata/name"))
}

fn finished(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn host_network(pod: &Value) -> bool {
    pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
}

fn declared_ports(pod: &Value) -> Vec<(String, Protocol, u16)> {
    let sidecars = list(pod, "/spec/initContainers").iter().filter(|c| text(c, "/restartPolicy") == "Always");
    let mut ports = Vec::new();
    for port in list(pod, "/spec/containers").iter().chain(sidecars).flat_map(|c| list(c, "/ports")) {
        let protocol = match text(port, "/protocol") {
            "" => Ok(Protocol::Tcp),
            named => named.parse(),
        };
        let number =
            port.pointer("/containerPort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
        if let (Ok(protocol), Some(number)) = (protocol, number) {
            ports.push((text(port, "/name").to_owned(), protocol, number));
        }
    }
    ports
}

fn node_v4(index: u16, turn: u16) -> IpAddr {
    Ipv4Addr::new(172, 31, (index >> 8) as u8 ^ (turn as u8), index as u8).into()
}

fn node_v6(index: u16, turn: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x172, 0x31, turn, 0, 0, 0, index).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(pods: Vec<Value>) -> Cluster {
        let mut objects = Objects::default();
        for pod in pods {
            let name = text(&pod, "/metadata/name").to_owned();
            objects.all.insert(("Pod".into(), "x".into(), name), pod);
        }
        Cluster::new(&objects, &Cluster::default())
    }

    fn pod(name: &str, created: &str, ip: &str, phase: &str, host: bool) -> Value {
        json!({"kind": "Pod", "metadata": {"namespace": "x", "name": name, "creationTimestamp": created},
               "spec": {"nodeName": "n", "hostNetwork": host},
               "status": {"phase": phase, "podIPs": [{"ip": ip}]}})
    }

    #[test]
    fn n77_the_newest_live_pod_has_the_address() {
        let c = cluster(vec![
            pod("a", "2026-01-01T00:00:00Z", "10.0.0.1", "Running", false),
            pod("b", "2026-01-02T00:00:00Z", "10.0.0.1", "Running", false),
            pod("c", "2026-01-03T00:00:00Z", "10.0.0.1", "Succeeded", false),
        ]);
        assert_eq!(c.pods.iter().map(|p| p.key.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(c.left_out.len(), 2);
    }

    #[test]
    fn n70_a_host_network_pod_gives_its_node_its_address() {
        let c = cluster(vec![pod("a", "", "192.0.2.7", "Running", true)]);
        assert!(c.nodes[0].addresses.contains(&"192.0.2.7".parse().unwrap()));
        assert_eq!(c.nodes[0].addresses.len(), 2, "and it has one of the other family too");
    }
}
