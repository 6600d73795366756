//! Pods' links: a veth each, with the node's half and the pod's half of what must be known.

use anyhow::{Context, Result};
use weir_compiler::object::ObjectKey;

use super::links::{Gateway, subnet_gateway};
use super::{Batches, Network, NodeNet, PodLinks, PodNet, add_address, in_pairs, mac, source, with_length};
use crate::cluster::{Cluster, Pod};
use crate::netns::Netns;

const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
pub(super) const BRIDGE_MAC: &str = "02:0b:00:00:00:01";
/// Calico's, on all interfaces, and the link-local address that follows from it.
const CALICO_MAC: &str = "ee:ee:ee:ee:ee:ee";
const CALICO_V6: &str = "fe80::ecee:eeff:feee:eeee";

impl PodNet {
    /// The node's end of the link.
    fn interface(&self) -> String {
        self.links.interface(self.serial)
    }

    fn interface_mac(&self) -> String {
        if self.links == PodLinks::Calico { CALICO_MAC.into() } else { mac(1, self.serial) }
    }
}

impl Network {
    pub(super) fn remove_pods(&mut self, cluster: &Cluster, batches: &mut Batches) -> Result<()> {
        let gone: Vec<ObjectKey> = self
            .pods
            .iter()
            .filter(|(_, net)| !cluster.pods.contains(&net.pod) || self.node_changed(cluster, &net.pod.node))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let Some(net) = self.pods.remove(&key) else { continue };
            let routes: Vec<String> = net.pod.addresses.iter().map(|ip| format!("route del {ip}")).collect();
            for name in self.nodes.keys().filter(|name| !self.node_changed(cluster, name)) {
                let lines = batches.entry(name.clone()).or_default();
                if *name != net.pod.node {
                    lines.extend(routes.iter().cloned());
                    continue;
                }
                lines.push(format!("link del {}", net.interface()));
                if net.links == PodLinks::Bridged {
                    // Of all others, the routes go with the link, or are the bridge's.
                    lines.extend(routes.iter().cloned());
                }
            }
            if net.links.bridge().is_some() {
                for sibling in self.pods.values().filter(|o| o.pod.node == net.pod.node) {
                    let shared = |line: &&String| {
                        let v4 = !line.contains(':');
                        sibling.pod.addresses.iter().any(|ip| ip.is_ipv4() == v4)
                    };
                    let lines: Vec<String> = routes.iter().filter(shared).cloned().collect();
                    sibling.netns.ip(&lines)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn add_pods(&mut self, cluster: &Cluster, batches: &mut Batches) -> Result<Vec<ObjectKey>> {
        let mut new = Vec::new();
        for pod in &cluster.pods {
            if pod.host_network || self.pods.contains_key(&pod.key) {
                continue;
            }
            let netns = Netns::new()?;
            netns.sysctl(&[
                ("ipv4/ping_group_range", "0 0"),
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
            ])?;
            self.serial += 1;
            let links = self.links.of(&pod.node);
            self.pods.insert(pod.key.clone(), PodNet { netns, serial: self.serial, pod: pod.clone(), links });
            new.push(pod.key.clone());
        }
        // All addresses are known by now, those that no gateway may have.
        for key in &new {
            let net = self.pods.get(key).context("a pod that was just added")?;
            for (name, node) in &self.nodes {
                let lines = if *name == net.pod.node {
                    self.host_lines(node, net)
                } else {
                    self.remote_routes(node, &net.pod)
                };
                batches.entry(name.clone()).or_default().extend(lines);
            }
        }
        Ok(new)
    }

    /// The node's half of a pod's link.
    fn host_lines(&self, node: &NodeNet, net: &PodNet) -> Vec<String> {
        let interface = net.interface();
        let mtu = self.fabric.mtu().map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        let mut lines = vec![format!(
            "link add {interface}{mtu} address {} type veth peer name eth0{mtu} address {} netns {}",
            net.interface_mac(),
            mac(2, net.serial),
            net.netns.path()
        )];
        if let Some(bridge) = net.links.bridge() {
            lines.push(format!("link set {interface} master {bridge}"));
        }
        lines.push(format!("link set {interface} up"));
        let way = net.links.bridge().unwrap_or(&interface);
        let taken = self.pod_addresses();
        for ip in &net.pod.addresses {
            let (gateway, length) = subnet_gateway(*ip, |ip| taken.contains(&ip));
            let from = source(&node.node, *ip);
            match (net.links.gateway(), net.links.bridge()) {
                (Gateway::Subnet, Some(bridge)) => {
                    // The subnet's route comes with the address.
                    lines.push(with_length(gateway, length, bridge));
                    continue;
                }
                (Gateway::Subnet, None) => {
                    lines.push(add_address(gateway, &interface));
                    let scope = if ip.is_ipv4() { " scope host" } else { "" };
                    lines.push(format!("route replace {ip} dev {interface}{scope}{from}"));
                }
                (Gateway::Fixed | Gateway::Proxy, _) => {
                    lines.push(format!("route replace {ip} dev {way}{from}"));
                }
            }
            if net.links.knows_neighbours() {
                let pod_mac = mac(2, net.serial);
                lines.push(format!("neigh replace {ip} lladdr {pod_mac} dev {way} nud permanent"));
            }
        }
        lines
    }

    /// The pod's half, and what pods on one bridge must know of each other.
    pub(super) fn set_up_pods(&self, keys: &[ObjectKey]) -> Result<()> {
        in_pairs(&keys.iter().collect::<Vec<_>>(), |key| {
            let net = self.pods.get(key).context("a pod that was just added")?;
            if let (PodLinks::Calico, Some(node)) = (net.links, self.node(&net.pod.node)) {
                // As Calico sets it: answers by proxy wait for up to a second otherwise.
                node.sysctl(&[(&format!("ipv4/neigh/{}/proxy_delay", net.interface()), "0")])?;
            }
            net.netns.ip(&self.pod_lines(net)).with_context(|| format!("pod {key}"))
        })?;
        let bridged: Vec<&PodNet> = self.pods.values().filter(|net| net.links.bridge().is_some()).collect();
        in_pairs(&bridged, |net| {
            let siblings =
                self.pods.values().filter(|o| o.pod.node == net.pod.node && o.serial != net.serial);
            let own_is_new = keys.contains(&net.pod.key);
            let lines: Vec<String> = siblings
                .filter(|other| own_is_new || keys.contains(&other.pod.key))
                .flat_map(|other| neighbour_on_bridge(net, other))
                .collect();
            net.netns.ip(&lines).with_context(|| format!("pod {}", net.pod.key))
        })
    }

    fn pod_lines(&self, net: &PodNet) -> Vec<String> {
        let taken = self.pod_addresses();
        let mut lines = vec!["link set lo up".into(), "link set eth0 up".into()];
        for ip in &net.pod.addresses {
            let fixed = if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 };
            let gateway = match net.links.gateway() {
                Gateway::Fixed => {
                    let mac =
                        if net.links.bridge().is_some() { BRIDGE_MAC.into() } else { net.interface_mac() };
                    lines.push(format!("neigh replace {fixed} lladdr {mac} dev eth0 nud permanent"));
                    fixed.to_owned()
                }
                Gateway::Proxy if ip.is_ipv6() => CALICO_V6.to_owned(),
                Gateway::Proxy => fixed.to_owned(),
                Gateway::Subnet => subnet_gateway(*ip, |ip| taken.contains(&ip)).0.to_string(),
            };
            lines.push(add_address(*ip, "eth0"));
            lines.push(format!("route replace default via {gateway} dev eth0 onlink src {ip}"));
        }
        lines
    }

    /// Takes a pod's interface away, and lets it come back with the same name, addresses and routes.
    pub fn replug(&self, pod: &Pod) -> Result<()> {
        let net = self.pods.get(&pod.key).with_context(|| format!("{} has no interface", pod.key))?;
        let node = self.nodes.get(&pod.node).with_context(|| format!("no node {}", pod.node))?;
        node.netns.ip(&[format!("link del {}", net.interface())])?;
        node.netns.ip(&self.host_lines(node, net))?;
        self.set_up_pods(std::slice::from_ref(&pod.key))
    }

    /// Makes packets through a pod's link no larger than this.
    pub fn set_mtu(&self, pod: &Pod, mtu: u16) -> Result<()> {
        let net = self.pods.get(&pod.key).with_context(|| format!("{} has no interface", pod.key))?;
        anyhow::ensure!(
            net.links.bridge().is_none(),
            "{} is behind a bridge, which drops large packets and says nothing",
            pod.key
        );
        net.netns.ip(&[format!("link set eth0 mtu {mtu}")])?;
        let node = self.nodes.get(&pod.node).with_context(|| format!("no node {}", pod.node))?;
        node.netns.ip(&[format!("link set {} mtu {mtu}", net.interface())])
    }
}

fn neighbour_on_bridge(of: &PodNet, other: &PodNet) -> Vec<String> {
    let mut lines = Vec::new();
    for ip in &other.pod.addresses {
        let Some(own) = of.pod.addresses.iter().find(|own| own.is_ipv4() == ip.is_ipv4()) else { continue };
        if of.links.knows_neighbours() {
            lines.push(format!("neigh replace {ip} lladdr {} dev eth0 nud permanent", mac(2, other.serial)));
        }
        lines.push(format!("route replace {ip} dev eth0 src {own}"));
    }
    lines
}
