//! What is between nodes: a switch, or tunnels over it.
//!
//! As Flannel does it, a node has a VXLAN device for each family, and knows beforehand behind which node a
//! pod is, what MAC its device has, and where that is: nothing is learnt, nothing is flooded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NodeNet, mac, source};
use crate::cluster::Pod;

/// How packets travel between the pods of different nodes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// As they are, routed by way of the pod's node.
    #[default]
    Routed,
    /// In VXLAN, between the nodes' addresses of the same family.
    Vxlan,
}

impl Fabric {
    /// The largest packet of a pod, if it is not the usual one.
    pub(super) fn mtu(self) -> Option<u16> {
        // 1500 less IPv6, UDP, VXLAN and Ethernet headers.
        (self == Fabric::Vxlan).then_some(1430)
    }
}

/// One end of a tunnel.
struct Vtep {
    device: &'static str,
    address: IpAddr,
    mac: String,
    /// The node's address that tunnels end at.
    node: IpAddr,
}

fn vteps(net: &NodeNet) -> Vec<Vtep> {
    let [high, low] = net.serial.to_be_bytes();
    let v4 = (true, "flannel.1", IpAddr::from(Ipv4Addr::new(100, 64, high, low)), 3);
    let v6 = (false, "flannel-v6.1", Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, net.serial).into(), 4);
    [v4, v6]
        .into_iter()
        .filter_map(|(is_v4, device, address, role)| {
            let node = *net.node.addresses.iter().find(|ip| ip.is_ipv4() == is_v4)?;
            Some(Vtep { device, address, mac: mac(role, net.serial), node })
        })
        .collect()
}

/// A node's devices, for `ip`.
pub(super) fn devices(net: &NodeNet) -> Vec<String> {
    let mut lines = Vec::new();
    for vtep in vteps(net) {
        let Vtep { device, address, mac, node } = vtep;
        lines.push(format!(
            "link add {device} mtu 1430 address {mac} type vxlan id 1 local {node} dstport 8472 nolearning"
        ));
        lines.push(super::add_address(address, device));
        lines.push(format!("link set {device} up"));
    }
    lines
}

/// What a node must know of another: lines for `ip`, and for `bridge`.
pub(super) fn peer(other: &NodeNet) -> (Vec<String>, Vec<String>) {
    let mut ip = Vec::new();
    let mut bridge = Vec::new();
    for Vtep { device, address, mac, node } in vteps(other) {
        ip.push(format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"));
        bridge.push(format!("fdb replace {mac} dev {device} dst {node} self permanent"));
    }
    (ip, bridge)
}

/// A node's routes to a pod of another.
pub(super) fn remote_routes(fabric: Fabric, node: &NodeNet, home: &NodeNet, pod: &Pod) -> Vec<String> {
    let tunnel = fabric == Fabric::Vxlan && !node.node.outside;
    let mut lines = Vec::new();
    for ip in &pod.addresses {
        let way = if tunnel {
            let vtep = vteps(home).into_iter().find(|vtep| vtep.address.is_ipv4() == ip.is_ipv4());
            vtep.map(|vtep| (vtep.address, vtep.device))
        } else {
            let via = home.node.addresses.iter().find(|via| via.is_ipv4() == ip.is_ipv4());
            via.map(|via| (*via, "eth0"))
        };
        if let Some((via, device)) = way {
            lines
                .push(format!("route replace {ip} via {via} dev {device} onlink{}", source(&node.node, *ip)));
        }
    }
    lines
}
