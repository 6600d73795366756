//! Links, addresses and routes of all nodes and pods.
//!
//! ```text
//!   pod                         node                                   fabric
//!   eth0 A/32 ───────────────── labN   route A dev labN                bridge in the outer
//!     default via 169.254.1.1          route B via <node of B>  eth0 ─ namespace, no address
//! ```
//!
//! Any address goes anywhere: no subnet is assumed of pod or node. [`PodLinks`] says how pods are joined to
//! their nodes (module `pods` does it), [`Fabric`] how nodes are joined to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use weir_compiler::object::ObjectKey;

use crate::cluster::{Cluster, Node, Pod};
use crate::netns::Netns;

mod fabric;
mod links;
mod pods;

pub use fabric::Fabric;
pub use links::{Links, PodLinks};

/// All namespaces of a lab.
#[derive(Debug)]
pub struct Network {
    links: Links,
    fabric: Fabric,
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
    links: PodLinks,
}

#[derive(Debug)]
struct PodNet {
    netns: Netns,
    serial: u16,
    pod: Pod,
    links: PodLinks,
}

/// Lines of `ip`, by node.
type Batches = BTreeMap<String, Vec<String>>;

impl Network {
    /// The outer namespace and the fabric in it.
    pub fn new(links: Links, fabric: Fabric) -> Result<Network> {
        let outer = Netns::new()?;
        if Path::new("/proc/sys/net/bridge").exists() {
            // The fabric stands for a switch: nobody's rules belong there.
            outer.sysctl(&[
                ("bridge/bridge-nf-call-iptables", "0"),
                ("bridge/bridge-nf-call-ip6tables", "0"),
            ])?;
        }
        outer.ip(&["link add fabric type bridge".into(), "link set fabric up".into()])?;
        Ok(Network { links, fabric, outer, nodes: BTreeMap::new(), pods: BTreeMap::new(), serial: 0 })
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
        let mut batches = Batches::new();
        self.remove_pods(cluster, &mut batches)?;
        self.remove_nodes(cluster)?;
        let new_nodes = self.add_nodes(cluster, &mut batches)?;
        let new_pods = self.add_pods(cluster, &mut batches)?;
        in_pairs(&batches.iter().collect::<Vec<_>>(), |(node, lines)| match self.nodes.get(node) {
            Some(node) => node.netns.ip(lines),
            None => Ok(()),
        })?;
        self.set_up_tunnels(&new_nodes)?;
        self.set_up_pods(&new_pods)?;
        Ok(new_nodes)
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

    fn add_nodes(&mut self, cluster: &Cluster, batches: &mut Batches) -> Result<Vec<String>> {
        let mut outer = Vec::new();
        let mut new = Vec::new();
        for node in &cluster.nodes {
            if self.nodes.contains_key(&node.name) {
                continue;
            }
            self.serial += 1;
            let net = NodeNet {
                netns: Netns::new()?,
                serial: self.serial,
                node: node.clone(),
                links: self.links.of(&node.name),
            };
            configure(&net)?;
            outer.push(format!(
                "link add node{} type veth peer name eth0 address {} netns {}",
                net.serial,
                mac(0, net.serial),
                net.netns.path()
            ));
            outer.push(format!("link set node{} master fabric up", net.serial));
            batches.entry(node.name.clone()).or_default().extend(self.node_lines(&net));
            new.push(node.name.clone());
            self.nodes.insert(node.name.clone(), net);
        }
        self.outer.ip(&outer)?;
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

    fn node_lines(&self, net: &NodeNet) -> Vec<String> {
        let mut lines = vec!["link set lo up".into(), "link set eth0 up".into()];
        lines.extend(net.node.addresses.iter().map(|ip| add_address(*ip, "eth0")));
        if net.node.outside {
            return lines;
        }
        if let Some(bridge) = net.links.bridge() {
            lines.push(format!("link add {bridge} address {} type bridge", pods::BRIDGE_MAC));
            lines.push(format!("link set {bridge} up"));
        }
        if net.links == PodLinks::Calico {
            // Proxy ARP answers for what the node would send elsewhere: it needs somewhere else.
            lines.push("route replace default dev eth0".into());
        }
        if self.fabric == Fabric::Vxlan {
            lines.extend(fabric::devices(net));
        }
        lines
    }

    fn set_up_tunnels(&self, new: &[String]) -> Result<()> {
        if self.fabric != Fabric::Vxlan {
            return Ok(());
        }
        let inside = || self.nodes.iter().filter(|(_, net)| !net.node.outside);
        for (name, net) in inside() {
            let (mut ip, mut bridge) = (Vec::new(), Vec::new());
            for (_, other) in
                inside().filter(|(other, _)| *other != name && (new.contains(name) || new.contains(other)))
            {
                let (neighbours, tunnels) = fabric::peer(other);
                ip.extend(neighbours);
                bridge.extend(tunnels);
            }
            net.netns.ip(&ip).and_then(|()| net.netns.bridge(&bridge))?;
        }
        Ok(())
    }

    fn remote_routes(&self, node: &NodeNet, pod: &Pod) -> Vec<String> {
        let home = self.nodes.get(&pod.node);
        home.map(|home| fabric::remote_routes(self.fabric, node, home, pod)).unwrap_or_default()
    }

    /// All addresses that pods have.
    fn pod_addresses(&self) -> BTreeSet<IpAddr> {
        self.pods.values().flat_map(|net| &net.pod.addresses).copied().collect()
    }
}

/// Two at a time: they wait for one lock in the kernel, and for their own start.
fn in_pairs<T: Copy + Send + Sync>(all: &[T], each: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let each = &each;
    all.chunks(2).try_for_each(|two| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = two.iter().map(|one| scope.spawn(move || each(*one))).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
        })
    })
}

fn configure(net: &NodeNet) -> Result<()> {
    net.netns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        // Any address on any pod: the source guard is the agent's job, and its test.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ping_group_range", "0 0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
    ])?;
    if net.node.outside {
        return net.netns.sysctl(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")]);
    }
    if net.links == PodLinks::Calico {
        net.netns.sysctl(&[("ipv4/conf/default/proxy_arp", "1")])?;
    }
    if net.links.bridge().is_some() && Path::new("/proc/sys/net/bridge").exists() {
        let on = ["iptables", "ip6tables"].map(|t| format!("bridge/bridge-nf-call-{t}"));
        net.netns.sysctl(&on.each_ref().map(|name| (name.as_str(), "1")))?;
    }
    Ok(())
}

fn add_address(ip: IpAddr, link: &str) -> String {
    with_length(ip, if ip.is_ipv4() { 32 } else { 128 }, link)
}

fn with_length(ip: IpAddr, length: u8, link: &str) -> String {
    let nodad = if ip.is_ipv4() { "" } else { " nodad" };
    format!("addr replace {ip}/{length} dev {link}{nodad}")
}

/// The source that a node uses towards `ip`: its first address of that family.
fn source(node: &Node, ip: IpAddr) -> String {
    node.addresses
        .iter()
        .find(|own| own.is_ipv4() == ip.is_ipv4())
        .map_or(String::new(), |own| format!(" src {own}"))
}

/// Locally administered; `role` 0: a node on the fabric, 1: a pod's link on its node, 2: in the pod, 3 and 4: the
/// ends of a node's tunnels.
fn mac(role: u8, serial: u16) -> String {
    format!("02:00:00:{role:02x}:{:02x}:{:02x}", serial >> 8, serial & 0xff)
}
