//! Links, addresses and routes of all nodes and pods.
//!
//! ```text
//!   pod                         node                                   fabric
//!   eth0 A/32 ───────────────── labN   route A dev labN                bridge in the outer
//!     default via 169.254.1.1          route B via <node of B>  eth0 ─ namespace, no address
//! ```
//!
//! Routed pods are those of ptp, Calico or azure-vnet in transparent mode: a host route each. Bridged pods
//! sit behind a bridge `cni0` of their node and reach each other on it; netfilter sees them as long as
//! `bridge-nf-call-iptables` is on. Any address goes anywhere: no subnet is assumed of pod or node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use weir_compiler::object::ObjectKey;

use crate::cluster::{Cluster, Node, Pod};
use crate::netns::Netns;

const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
const BRIDGE_MAC: &str = "02:0b:00:00:00:01";

/// How pods are joined to their node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum PodLinks {
    /// A veth and a host route for each pod.
    #[default]
    Routed,
    /// A bridge per node.
    Bridged,
}

/// All namespaces of a lab.
#[derive(Debug)]
pub struct Network {
    links: PodLinks,
    outer: Netns,
    nodes: BTreeMap<String, NodeNet>,
    pods: BTreeMap<ObjectKey, PodNet>,
    serial: u16,
}

#[derive(Debug)]
struct NodeNet {
    netns: Netns,
    serial: u16,
    node: Node,
}

#[derive(Debug)]
struct PodNet {
    netns: Netns,
    serial: u16,
    pod: Pod,
}

impl Network {
    /// The outer namespace and the fabric in it.
    pub fn new(links: PodLinks) -> Result<Network> {
        let outer = Netns::new()?;
        if Path::new("/proc/sys/net/bridge").exists() {
            // The fabric stands for a switch: nobody's rules belong there.
            outer.sysctl(&[
                ("bridge/bridge-nf-call-iptables", "0"),
                ("bridge/bridge-nf-call-ip6tables", "0"),
            ])?;
        }
        outer.ip(&["link add fabric type bridge".into(), "link set fabric up".into()])?;
        Ok(Network { links, outer, nodes: BTreeMap::new(), pods: BTreeMap::new(), serial: 0 })
    }

    /// The namespace of a node.
    pub fn node(&self, name: &str) -> Option<&Netns> {
        self.nodes.get(name).map(|n| &n.netns)
    }

    /// The namespace of a pod: its own, or its node's.
    pub fn pod(&self, pod: &Pod) -> Option<&Netns> {
        if pod.host_network { self.node(&pod.node) } else { self.pods.get(&pod.key).map(|p| &p.netns) }
    }

    /// Makes nodes and pods those of `cluster`; what stays is not touched. Answers with the nodes that are new,
    /// or had to be built again.
    pub fn update(&mut self, cluster: &Cluster) -> Result<Vec<String>> {
        let mut batches: BTreeMap<String, Vec<String>> = BTreeMap::new();
        self.remove_pods(cluster, &mut batches)?;
        self.remove_nodes(cluster)?;
        let new_nodes = self.add_nodes(cluster, &mut batches)?;
        let new_pods = self.add_pods(cluster, &mut batches)?;
        for (node, lines) in &batches {
            if let Some(node) = self.nodes.get(node) {
                node.netns.ip(lines)?;
            }
        }
        // Two at a time: they wait for one lock in the kernel, and for their own start.
        let network = &*self;
        for two in new_pods.chunks(2) {
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    two.iter().map(|pod| scope.spawn(move || network.set_up_pod(pod))).collect();
                threads
                    .into_iter()
                    .try_for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            })?;
        }
        self.set_up_neighbours(&new_pods)?;
        Ok(new_nodes)
    }

    fn remove_pods(&mut self, cluster: &Cluster, batches: &mut BTreeMap<String, Vec<String>>) -> Result<()> {
        let gone: Vec<ObjectKey> = self
            .pods
            .iter()
            .filter(|(_, net)| !cluster.pods.contains(&net.pod) || self.node_changed(cluster, &net.pod.node))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let Some(net) = self.pods.remove(&key) else { continue };
            for name in self.nodes.keys().filter(|name| !self.node_changed(cluster, name)) {
                let lines = batches.entry(name.clone()).or_default();
                if *name == net.pod.node {
                    lines.push(format!("link del lab{}", net.serial));
                    continue;
                }
                lines.extend(net.pod.addresses.iter().map(|ip| format!("route del {ip}")));
            }
            if self.links == PodLinks::Bridged {
                let lines: Vec<String> =
                    net.pod.addresses.iter().map(|ip| format!("route del {ip}")).collect();
                for sibling in self.pods.values().filter(|o| o.pod.node == net.pod.node) {
                    sibling.netns.ip(&lines)?;
                }
            }
        }
        Ok(())
    }

    fn node_changed(&self, cluster: &Cluster, name: &str) -> bool {
        self.nodes.get(name).map(|n| &n.node) != cluster.node(name)
    }

    fn remove_nodes(&mut self, cluster: &Cluster) -> Result<()> {
        let gone: Vec<String> =
            self.nodes.keys().filter(|name| self.node_changed(cluster, name)).cloned().collect();
        for name in gone {
            if let Some(net) = self.nodes.remove(&name) {
                self.outer.ip(&[format!("link del node{}", net.serial)])?;
            }
        }
        Ok(())
    }

    fn add_nodes(
        &mut self,
        cluster: &Cluster,
        batches: &mut BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut outer = Vec::new();
        let mut new = Vec::new();
        for node in &cluster.nodes {
            if self.nodes.contains_key(&node.name) {
                continue;
            }
            let netns = Netns::new()?;
            netns.sysctl(&[
                ("ipv4/ip_forward", "1"),
                // Any address on any pod: the source guard is the agent's job, and its test.
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/default/accept_dad", "0"),
            ])?;
            self.serial += 1;
            let serial = self.serial;
            outer.push(format!(
                "link add node{serial} type veth peer name eth0 address {} netns {}",
                mac(0, serial),
                netns.path()
            ));
            outer.push(format!("link set node{serial} master fabric up"));
            new.push(node.name.clone());
            self.nodes.insert(node.name.clone(), NodeNet { netns, serial, node: node.clone() });
        }
        self.outer.ip(&outer)?;
        for name in &new {
            let lines = batches.entry(name.clone()).or_default();
            let net = self.nodes.get(name).context("a node that was just added")?;
            lines.extend(["link set lo up".into(), "link set eth0 up".into()]);
            lines.extend(net.node.addresses.iter().map(|ip| add_address(*ip, "eth0")));
            if self.links == PodLinks::Bridged {
                if Path::new("/proc/sys/net/bridge").exists() {
                    let on = ["iptables", "ip6tables"].map(|t| format!("bridge/bridge-nf-call-{t}"));
                    net.netns.sysctl(&on.each_ref().map(|name| (name.as_str(), "1")))?;
                }
                lines.push(format!("link add cni0 address {BRIDGE_MAC} type bridge"));
                lines.push("link set cni0 up".into());
            }
        }
        for (name, net) in &self.nodes {
            for (other_name, other) in &self.nodes {
                if name == other_name || !(new.contains(name) || new.contains(other_name)) {
                    continue;
                }
                let lines = batches.entry(name.clone()).or_default();
                for ip in &other.node.addresses {
                    lines.push(format!(
                        "neigh replace {ip} lladdr {} dev eth0 nud permanent",
                        mac(0, other.serial)
                    ));
                    lines.push(format!("route replace {ip} dev eth0{}", source(&net.node, *ip)));
                }
            }
            if new.contains(name) {
                let lines = batches.entry(name.clone()).or_default();
                self.pods.values().for_each(|pod| lines.extend(self.remote_routes(net, &pod.pod)));
            }
        }
        Ok(new)
    }

    fn add_pods(
        &mut self,
        cluster: &Cluster,
        batches: &mut BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<ObjectKey>> {
        let mut new = Vec::new();
        for pod in &cluster.pods {
            if pod.host_network || self.pods.contains_key(&pod.key) {
                continue;
            }
            let netns = Netns::new()?;
            netns.sysctl(&[("ipv6/conf/all/disable_ipv6", "0"), ("ipv6/conf/default/accept_dad", "0")])?;
            self.serial += 1;
            let serial = self.serial;
            for (name, node) in &self.nodes {
                let lines = batches.entry(name.clone()).or_default();
                if *name != pod.node {
                    lines.extend(self.remote_routes(node, pod));
                    continue;
                }
                lines.push(format!(
                    "link add lab{serial} address {} type veth peer name eth0 address {} netns {}",
                    mac(1, serial),
                    mac(2, serial),
                    netns.path()
                ));
                let way = match self.links {
                    PodLinks::Routed => format!("lab{serial}"),
                    PodLinks::Bridged => {
                        lines.push(format!("link set lab{serial} master cni0"));
                        "cni0".into()
                    }
                };
                lines.push(format!("link set lab{serial} up"));
                for ip in &pod.addresses {
                    lines.push(format!(
                        "neigh replace {ip} lladdr {} dev {way} nud permanent",
                        mac(2, serial)
                    ));
                    lines.push(format!("route replace {ip} dev {way}{}", source(&node.node, *ip)));
                }
            }
            new.push(pod.key.clone());
            self.pods.insert(pod.key.clone(), PodNet { netns, serial, pod: pod.clone() });
        }
        Ok(new)
    }

    fn set_up_pod(&self, key: &ObjectKey) -> Result<()> {
        let net = self.pods.get(key).context("a pod that was just added")?;
        let gateway_mac = match self.links {
            PodLinks::Routed => mac(1, net.serial),
            PodLinks::Bridged => BRIDGE_MAC.into(),
        };
        let mut lines = vec!["link set lo up".into(), "link set eth0 up".into()];
        for ip in &net.pod.addresses {
            let gateway = if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 };
            lines.push(add_address(*ip, "eth0"));
            lines.push(format!("neigh replace {gateway} lladdr {gateway_mac} dev eth0 nud permanent"));
            lines.push(format!("route replace default via {gateway} dev eth0 onlink src {ip}"));
        }
        net.netns.ip(&lines).with_context(|| format!("pod {key}"))
    }

    /// Bridged pods of one node reach each other on the bridge, not by way of the gateway.
    fn set_up_neighbours(&self, new_pods: &[ObjectKey]) -> Result<()> {
        if self.links == PodLinks::Routed {
            return Ok(());
        }
        for net in self.pods.values() {
            let siblings =
                self.pods.values().filter(|o| o.pod.node == net.pod.node && o.serial != net.serial);
            let own_is_new = new_pods.contains(&net.pod.key);
            let lines: Vec<String> = siblings
                .filter(|other| own_is_new || new_pods.contains(&other.pod.key))
                .flat_map(|other| neighbour_on_bridge(net, other))
                .collect();
            net.netns.ip(&lines).with_context(|| format!("pod {}", net.pod.key))?;
        }
        Ok(())
    }

    fn remote_routes(&self, node: &NodeNet, pod: &Pod) -> Vec<String> {
        let Some(home) = self.nodes.get(&pod.node) else { return Vec::new() };
        let mut lines = Vec::new();
        for ip in &pod.addresses {
            if let Some(via) = home.node.addresses.iter().find(|via| via.is_ipv4() == ip.is_ipv4()) {
                lines
                    .push(format!("route replace {ip} via {via} dev eth0 onlink{}", source(&node.node, *ip)));
            }
        }
        lines
    }
}

fn neighbour_on_bridge(of: &PodNet, other: &PodNet) -> Vec<String> {
    let mut lines = Vec::new();
    for ip in &other.pod.addresses {
        let Some(own) = of.pod.addresses.iter().find(|own| own.is_ipv4() == ip.is_ipv4()) else { continue };
        lines.push(format!("neigh replace {ip} lladdr {} dev eth0 nud permanent", mac(2, other.serial)));
        lines.push(format!("route replace {ip} dev eth0 src {own}"));
    }
    lines
}

fn add_address(ip: IpAddr, link: &str) -> String {
    match ip {
        IpAddr::V4(ip) => format!("addr add {ip}/32 dev {link}"),
        IpAddr::V6(ip) => format!("addr add {ip}/128 dev {link} nodad"),
    }
}

/// The source that a node uses towards `ip`: its first address of that family.
fn source(node: &Node, ip: IpAddr) -> String {
    node.addresses
        .iter()
        .find(|own| own.is_ipv4() == ip.is_ipv4())
        .map_or(String::new(), |own| format!(" src {own}"))
}

/// Locally administered; `role` 0: a node on the fabric, 1: a pod's link on its node, 2: in the pod.
fn mac(role: u8, serial: u16) -> String {
    format!("02:00:00:{role:02x}:{:02x}:{:02x}", serial >> 8, serial & 0xff)
}
