//! What reaches a pod beside its addresses: multicast, broadcast, link-local addresses.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::{TestLab, objects, start, start_with};
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Options, agent};

/// `sealed` may neither be reached nor reach anybody, but for its own node.
const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: open}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: free}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: sealed, labels: {app: sealed}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.4}, {ip: 'fd00::4'}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: sealed}, spec: {podSelector: {matchLabels: {app: sealed}},
 policyTypes: [Ingress, Egress]}}
";
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const PORT: u16 = 5000;

fn lab(links: PodLinks) -> TestLab {
    start(
        objects(CLUSTER),
        Some(agent::find().expect("cargo build -p weir-agent")),
        links,
        Some(Family::Dual),
    )
}

/// Its link-local address and the index of the interface.
fn link_local(t: &TestLab, place: &str, device: &str) -> (Ipv6Addr, u32) {
    let show = || {
        Ok(Command::new("ip").args(["-j", "-6", "addr", "show", "dev", device, "scope", "link"]).output()?)
    };
    let output = t.lab.netns(place).expect("a place").run(show).expect("ip runs");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let infos = links.as_array().expect("links").iter().filter_map(|l| l["addr_info"].as_array()).flatten();
    let ip = infos.filter_map(|info| info["local"].as_str()).next().expect("an address");
    let ip = ip.parse().expect("an address");
    let index = t.lab.netns(place).expect("a place").run(|| Ok(nix::net::if_::if_nametoindex(device)?));
    (ip, index.expect("an index"))
}

/// Whether a datagram from one place arrives at another's link-local address.
fn link_local_passes(t: &TestLab, from: (&str, &str), to: (&str, &str)) -> bool {
    let (address, _) = link_local(t, to.0, to.1);
    let (_, scope) = link_local(t, from.0, from.1);
    let receiver =
        t.lab.netns(to.0).expect("a place").run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?));
    let receiver = receiver.expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let send = || {
        let sender = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let _ = sender.send_to(b"hello", SocketAddrV6::new(address, PORT, 0, scope));
        Ok(())
    };
    t.lab.netns(from.0).expect("a place").run(send).expect("sent");
    receiver.recv_from(&mut [0; 16]).is_ok()
}

/// Whether a multicast datagram from one pod arrives at another that has joined the group.
fn multicast_passes(t: &TestLab, from: (&str, Ipv4Addr), to: (&str, Ipv4Addr)) -> bool {
    let join = || {
        let receiver = UdpSocket::bind((GROUP, PORT))?;
        receiver.join_multicast_v4(&GROUP, &to.1)?;
        Ok(receiver)
    };
    let receiver = t.lab.netns(to.0).expect("a pod").run(join).expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let send = || {
        let sender = UdpSocket::bind((from.1, 0))?;
        let _ = sender.send_to(b"hello", (GROUP, PORT));
        Ok(())
    };
    t.lab.netns(from.0).expect("a pod").run(send).expect("sent");
    receiver.recv_from(&mut [0; 16]).is_ok()
}

const OPEN: (&str, Ipv4Addr) = ("open", Ipv4Addr::new(10, 244, 1, 2));
const FREE: (&str, Ipv4Addr) = ("free", Ipv4Addr::new(10, 244, 1, 3));
const SEALED: (&str, Ipv4Addr) = ("sealed", Ipv4Addr::new(10, 244, 1, 4));

#[test]
#[ignore = "needs root"]
fn multicast_is_judged_like_everything_else() {
    for links in [PodLinks::Flannel, PodLinks::Calico] {
        let t = lab(links);
        if links == PodLinks::Flannel {
            assert!(multicast_passes(&t, OPEN, FREE), "the instrument itself");
        }
        assert!(!multicast_passes(&t, OPEN, SEALED), "ingress, {links}");
        assert!(!multicast_passes(&t, SEALED, FREE), "egress, {links}");
    }
}

#[test]
#[ignore = "needs root"]
fn broadcast_is_judged_like_everything_else() {
    let broadcast_passes = |t: &TestLab, from: (&str, Ipv4Addr), to: &str| {
        let bind = |port| move || Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?);
        let receiver = t.lab.netns(to).expect("a pod").run(bind(PORT)).expect("a socket");
        receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let sender = t.lab.netns(from.0).expect("a pod").run(bind(0)).expect("a socket");
        sender.set_broadcast(true).expect("broadcast");
        sender.send_to(b"hello", (Ipv4Addr::new(10, 244, 1, 255), PORT)).expect("sent");
        receiver.recv_from(&mut [0; 16]).is_ok()
    };
    let t = lab(PodLinks::Flannel);
    // as with a subnet of its own, which a pod of this lab has not
    for pod in ["open", "free", "sealed"] {
        let line = "route add broadcast 10.244.1.255 dev eth0 table local".to_owned();
        t.lab.netns(pod).expect("a pod").ip(&[line]).expect("a route");
    }
    assert!(broadcast_passes(&t, OPEN, "free"), "the instrument itself");
    assert!(!broadcast_passes(&t, OPEN, "sealed"), "ingress");
    assert!(!broadcast_passes(&t, SEALED, "free"), "egress");
}

#[test]
#[ignore = "needs root"]
fn link_local_addresses_are_no_way_around_policies() {
    for links in [PodLinks::Flannel, PodLinks::Calico] {
        let t = lab(links);
        if links == PodLinks::Flannel {
            assert!(link_local_passes(&t, ("open", "eth0"), ("free", "eth0")), "the instrument itself");
        }
        assert!(!link_local_passes(&t, ("open", "eth0"), ("sealed", "eth0")), "ingress, {links}");
        assert!(!link_local_passes(&t, ("sealed", "eth0"), ("free", "eth0")), "egress, {links}");
    }
}

/// To its own node, which a pod that is isolated for egress may not reach either (U6); the node reaches
/// the pod (N71).
#[test]
#[ignore = "needs root"]
fn link_local_addresses_of_the_node_are_no_way_out() {
    let t = lab(PodLinks::Flannel);
    assert!(link_local_passes(&t, ("free", "eth0"), ("n1", "cni0")), "the instrument itself");
    assert!(!link_local_passes(&t, ("sealed", "eth0"), ("n1", "cni0")), "egress");
    assert!(link_local_passes(&t, ("n1", "cni0"), ("sealed", "eth0")), "from the node");
}

/// The guard is not what isolates: without it, too, policies are no more than the addresses they select.
#[test]
#[ignore = "needs root"]
fn isolation_does_not_need_the_guard() {
    let options = Options {
        links: PodLinks::Flannel.into(),
        family: Some(Family::Dual),
        agent: Some(agent::find().expect("cargo build -p weir-agent")),
        agent_arguments: vec!["--source-guard=off".into()],
        ..Options::default()
    };
    let t = start_with(objects(CLUSTER), options);
    assert!(!link_local_passes(&t, ("open", "eth0"), ("sealed", "eth0")), "ingress");
    assert!(!link_local_passes(&t, ("sealed", "eth0"), ("free", "eth0")), "egress");
    assert!(!multicast_passes(&t, OPEN, SEALED), "ingress");
}
