//! The source guard of pods that share a bridge (U25): what one writes onto the wire itself.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::{TestLab, objects, start_with};
use weir_lab::frame::{BROADCAST, Mac, Wire, advertisement, arp, ethernet, icmp6, tagged, udp4, udp6};
use weir_lab::netns::Netns;
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Options, agent};

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: forger}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: victim}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: target}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.4}, {ip: 'fd00::4'}]}}
";
const PODS: [&str; 3] = ["forger", "victim", "target"];
const WAIT: Duration = Duration::from_millis(300);

fn lab(links: PodLinks, guard: &str) -> TestLab {
    let options = Options {
        links: links.into(),
        family: Some(Family::Dual),
        agent: Some(agent::find().expect("cargo build -p weir-agent")),
        agent_arguments: vec![format!("--source-guard={guard}")],
        ..Options::default()
    };
    start_with(objects(CLUSTER), options)
}

/// A pod as others see it.
struct Pod {
    wire: Wire,
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    link_local: Ipv6Addr,
}

fn pods(t: &TestLab) -> [Pod; 3] {
    PODS.map(|name| {
        let wire = Wire::open(t.lab.netns(name).expect("a pod"), "eth0").expect("a raw socket");
        let [a, b, c, d, e, f] = wire.mac();
        let last = 2 + PODS.iter().position(|n| *n == name).expect("a pod") as u8;
        Pod {
            wire,
            mac: [a, b, c, d, e, f],
            v4: Ipv4Addr::new(10, 244, 1, last),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()),
            link_local: Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]),
        }
    })
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const NOBODY: Mac = [0; 6];

/// What is not the forger's, each with what it forges.
fn forged(me: &Pod, victim: &Pod, target: &Pod) -> Vec<(&'static str, Vec<u8>)> {
    let to = |ethertype, payload: Vec<u8>| ethernet(me.mac, target.mac, ethertype, &payload);
    let from_me = (me.v4, 7000);
    let own_udp = udp4(from_me, (target.v4, 7000), b"forged vlan");
    let none = Ipv6Addr::UNSPECIFIED;
    let group = "ff02::1".parse().expect("all nodes");
    vec![
        ("IPv4 source", to(IPV4, udp4((victim.v4, 7000), (target.v4, 7000), b"forged source"))),
        (
            "IPv4 source of nobody",
            to(IPV4, udp4(([1, 2, 3, 4].into(), 7), (target.v4, 7000), b"forged nobody")),
        ),
        ("no IPv4 source", to(IPV4, udp4(([0; 4].into(), 7), (target.v4, 7000), b"forged none"))),
        ("IPv6 source", to(IPV6, udp6((victim.v6, 7000), (target.v6, 7000), b"forged source 6"))),
        (
            "link-local source",
            to(IPV6, udp6((victim.link_local, 7), (target.v6, 7000), b"forged link-local")),
        ),
        ("MAC", ethernet(victim.mac, target.mac, IPV4, &udp4(from_me, (target.v4, 7000), b"forged MAC"))),
        ("ARP answer", to(ARP, arp(2, (me.mac, victim.v4), (target.mac, target.v4)))),
        ("ARP question", ethernet(me.mac, BROADCAST, ARP, &arp(1, (me.mac, victim.v4), (NOBODY, target.v4)))),
        (
            "ARP announcement",
            ethernet(me.mac, BROADCAST, ARP, &arp(1, (me.mac, victim.v4), (NOBODY, victim.v4))),
        ),
        ("ARP MAC", to(ARP, arp(2, (victim.mac, me.v4), (target.mac, target.v4)))),
        ("advertisement", to(IPV6, advertisement(me.v6, target.v6, victim.v6, me.mac))),
        (
            "advertisement of a link-local address",
            to(IPV6, advertisement(me.v6, target.v6, victim.link_local, me.mac)),
        ),
        ("search for duplicates", to(IPV6, icmp6(none, group, 135, 0, &victim.v6.octets()))),
        ("router advertisement", to(IPV6, icmp6(me.link_local, group, 134, 0, &[0, 1, 2, 3, 4, 5, 6, 8]))),
        ("redirect", to(IPV6, icmp6(me.link_local, target.v6, 137, 0, &[[1; 16], [2; 16]].concat()))),
        ("VLAN", tagged(&to(IPV4, own_udp))),
        ("VLAN and source", tagged(&to(IPV4, udp4((victim.v4, 7000), (target.v4, 7000), b"forged both")))),
        (
            "another protocol",
            to(0x88b5, b"forged, and no address at all, but long enough for a frame".to_vec()),
        ),
    ]
}

/// What is the pod's own.
fn honest(me: &Pod, target: &Pod) -> Vec<(&'static str, Vec<u8>)> {
    let to = |ethertype, payload: Vec<u8>| ethernet(me.mac, target.mac, ethertype, &payload);
    let (none, group) = (Ipv6Addr::UNSPECIFIED, "ff02::1".parse().expect("all nodes"));
    vec![
        ("IPv4", to(IPV4, udp4((me.v4, 7000), (target.v4, 7000), b"own source"))),
        ("IPv6", to(IPV6, udp6((me.v6, 7000), (target.v6, 7000), b"own source 6"))),
        ("link-local", to(IPV6, udp6((me.link_local, 7000), (target.link_local, 7000), b"own link-local"))),
        (
            "DHCP",
            ethernet(me.mac, BROADCAST, IPV4, &udp4(([0; 4].into(), 68), ([255; 4].into(), 67), b"discover")),
        ),
        ("ARP question", ethernet(me.mac, BROADCAST, ARP, &arp(1, (me.mac, me.v4), (NOBODY, target.v4)))),
        ("ARP probe", ethernet(me.mac, BROADCAST, ARP, &arp(1, (me.mac, [0; 4].into()), (NOBODY, me.v4)))),
        ("ARP answer", to(ARP, arp(2, (me.mac, me.v4), (target.mac, target.v4)))),
        ("advertisement", to(IPV6, advertisement(me.v6, target.v6, me.v6, me.mac))),
        (
            "advertisement of its link-local address",
            to(IPV6, advertisement(me.link_local, target.v6, me.link_local, me.mac)),
        ),
        ("solicitation", to(IPV6, icmp6(me.link_local, target.v6, 135, 0, &target.v6.octets()))),
        ("search for duplicates", to(IPV6, icmp6(none, group, 135, 0, &me.v6.octets()))),
        ("router solicitation", to(IPV6, icmp6(none, group, 133, 0, &[]))),
        ("multicast listener without an address", to(IPV6, icmp6(none, group, 143, 0, &[]))),
        ("multicast listener", to(IPV6, icmp6(me.link_local, group, 143, 0, &[]))),
    ]
}

/// Whether it comes through to the target. What an Ethernet header holds is the same in all frames.
fn arrives(from: &Pod, to: &Pod, frame: &[u8]) -> bool {
    from.wire.send(frame).expect("sent");
    // a tag is taken off before a socket sees the frame
    let payload = if frame[12..14] == [0x81, 0] { &frame[18..] } else { &frame[14..] };
    to.wire.receives(payload, WAIT)
}

#[test]
#[ignore = "needs root"]
fn u25_no_forged_frame_reaches_another_pod() {
    for guard in ["off", "on"] {
        let t = lab(PodLinks::Flannel, guard);
        let [forger, victim, target] = pods(&t);
        for (what, frame) in forged(&forger, &victim, &target) {
            assert_eq!(arrives(&forger, &target, &frame), guard == "off", "{what} with the guard {guard}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn u25_every_honest_frame_reaches_another_pod() {
    let t = lab(PodLinks::Flannel, "on");
    let [forger, _, target] = pods(&t);
    for (what, frame) in honest(&forger, &target) {
        assert!(arrives(&forger, &target, &frame), "{what}");
    }
}

/// Far longer than it takes.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

fn bind(t: &TestLab, place: &str, address: IpAddr) -> UdpSocket {
    let at = SocketAddr::new(address, 7000);
    let socket = t.lab.netns(place).expect("a place").run(|| Ok(UdpSocket::bind(at)?)).expect("a socket");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    socket
}

fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    let _ = from.send_to(b"hello", to.local_addr().expect("bound"));
    to.recv_from(&mut [0; 16]).is_ok()
}

/// What a forger tells of the victim's address takes nothing away from the victim.
#[test]
#[ignore = "needs root"]
fn u25_nobody_takes_over_a_pods_traffic() {
    for guard in ["off", "on"] {
        let t = lab(PodLinks::Flannel, guard);
        let [forger, victim, target] = pods(&t);
        let [from, to] = [("target", target.v4), ("victim", victim.v4)].map(|(p, a)| bind(&t, p, a.into()));
        assert!(reaches(&from, &to), "the instrument itself");
        // the bridge's table; it learns again whenever the victim speaks, of itself, too
        let is_taken = || {
            forger.wire.send(&ethernet(victim.mac, BROADCAST, 0x88b5, &[0; 46])).expect("sent");
            std::thread::sleep(Duration::from_millis(20));
            !reaches(&from, &to)
        };
        assert_eq!((0..10).any(|_| is_taken()), guard == "off", "the bridge");
        assert!(reaches(&to, &from), "the victim speaks: the bridge knows again");
        // the neighbour's
        let lie = arp(2, (forger.mac, victim.v4), (target.mac, target.v4));
        forger.wire.send(&ethernet(forger.mac, target.mac, ARP, &lie)).expect("sent");
        let lie = arp(1, (forger.mac, victim.v4), (NOBODY, target.v4));
        forger.wire.send(&ethernet(forger.mac, BROADCAST, ARP, &lie)).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        let neighbours = || Ok(std::fs::read_to_string("/proc/thread-self/net/arp")?);
        let table = t.lab.netns("target").expect("a pod").run(neighbours).expect("ARP");
        let text: Vec<String> = forger.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = table.lines().find(|line| line.starts_with(&format!("{} ", victim.v4)));
        let poisoned = line.expect("the victim is known").contains(&text.join(":"));
        assert_eq!(poisoned, guard == "off", "the neighbour: {table}");
    }
}

/// What conntrack has counted of the victim's connection, in its original direction.
fn counted(t: &TestLab, client: IpAddr) -> Option<String> {
    let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")?);
    let table = t.lab.netns("n1").expect("n1").run(read).expect("conntrack");
    let is_client =
        |word: &str| word.strip_prefix("src=").and_then(|a| a.parse::<IpAddr>().ok()) == Some(client);
    let line = table.lines().find(|l| l.contains("sport=7000") && l.split(' ').any(is_client))?;
    line.split(' ').find(|word| word.starts_with("packets=")).map(str::to_owned)
}

#[test]
#[ignore = "needs root"]
fn u25_a_forged_frame_of_a_connection_does_not_touch_it() {
    for guard in ["off", "on"] {
        let t = lab(PodLinks::Flannel, guard);
        t.lab.netns("n1").expect("n1").sysctl(&[("netfilter/nf_conntrack_acct", "1")]).expect("counters");
        let [forger, victim, target] = pods(&t);
        let addresses: [[IpAddr; 2]; 2] =
            [[victim.v4.into(), target.v4.into()], [victim.v6.into(), target.v6.into()]];
        for [from, to] in addresses {
            let [client, server] = [("victim", from), ("target", to)].map(|(place, ip)| bind(&t, place, ip));
            assert!(reaches(&client, &server) && reaches(&server, &client), "established");
            assert_eq!(counted(&t, from).as_deref(), Some("packets=1"));
            let (ethertype, packet) = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (IPV4, udp4((from, 7000), (to, 7000), b"forged")),
                (IpAddr::V6(from), IpAddr::V6(to)) => (IPV6, udp6((from, 7000), (to, 7000), b"forged")),
                _ => unreachable!("one family"),
            };
            let frame = ethernet(forger.mac, target.mac, ethertype, &packet);
            assert_eq!(arrives(&forger, &target, &frame), guard == "off");
            let packets = counted(&t, from);
            assert_eq!(packets.as_deref(), Some(if guard == "off" { "packets=2" } else { "packets=1" }));
        }
    }
}

/// An interface of the bridge that is no pod's, such as one to the world outside.
fn outside(t: &TestLab) -> (Netns, Wire) {
    let outside = Netns::new().expect("a namespace");
    let node = t.lab.netns("n1").expect("n1");
    let link = format!("link add outside type veth peer name eth0 netns {}", outside.path());
    node.ip(&[link, "link set outside master cni0".into(), "link set outside up".into()]).expect("a port");
    outside.ip(&["link set eth0 up".into()]).expect("up");
    let wire = Wire::open(&outside, "eth0").expect("a raw socket");
    (outside, wire)
}

const SEALED: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none}, spec: {podSelector: {},
 policyTypes: [Ingress, Egress]}}
";

/// Of the frames that find neighbours and nothing else, none is lost, whatever isolates the pods.
#[test]
#[ignore = "needs root"]
fn n92_isolated_pods_of_a_bridge_find_their_neighbours() {
    let mut t = lab(PodLinks::Flannel, "on");
    t.lab.apply(objects(SEALED)).expect("a policy");
    let [forger, _, target] = pods(&t);
    let data = ["IPv4", "IPv6", "link-local", "DHCP"];
    let sealed = || !arrives(&forger, &target, &honest(&forger, &target)[2].1);
    soon("the policy is in force", sealed);
    for (what, frame) in honest(&forger, &target) {
        assert_eq!(arrives(&forger, &target, &frame), !data.contains(&what), "{what}");
    }
}

#[test]
#[ignore = "needs root"]
fn u25_who_is_no_pod_may_have_any_address() {
    let mut t = lab(PodLinks::Flannel, "on");
    let [forger, victim, target] = pods(&t);
    let (_netns, wire) = outside(&t);
    let outside = Pod { wire, ..pods(&t).into_iter().next().expect("a pod") };
    let (from, to) = (Ipv4Addr::new(10, 244, 1, 9), target.v4);
    let packet =
        |data: &[u8]| ethernet([2, 9, 9, 9, 9, 9], target.mac, IPV4, &udp4((from, 67), (to, 7000), data));
    soon("the port is up", || arrives(&outside, &target, &packet(b"up")));
    for (what, frame) in forged(&forger, &victim, &target) {
        assert!(arrives(&outside, &target, &frame), "{what}");
    }
    // to isolated pods, it is another matter; but who has an address from DHCP renews it
    t.lab.apply(objects(SEALED)).expect("a policy");
    soon("ingress", || !arrives(&outside, &target, &packet(b"to the pod")));
    let offer = udp4((from, 67), ([255; 4].into(), 68), b"offer");
    let offer6 = udp6((forger.link_local, 547), (target.link_local, 546), b"offer 6");
    for (ethertype, packet) in [(IPV4, offer), (IPV6, offer6)] {
        let frame = ethernet([2, 9, 9, 9, 9, 9], BROADCAST, ethertype, &packet);
        assert!(arrives(&outside, &target, &frame), "DHCP");
        assert!(!arrives(&forger, &target, &frame), "of a pod");
    }
    let other = udp4((from, 66), ([255; 4].into(), 68), b"no offer");
    assert!(!arrives(&outside, &target, &ethernet([2, 9, 9, 9, 9, 9], BROADCAST, IPV4, &other)), "broadcast");
}

/// Both are isolated in both directions and allowed to each other. The server's answer, bridged straight
/// to the client, has the Service's address by the time that the bridge forwards it.
#[test]
#[ignore = "needs root"]
fn u25_answers_of_services_pass_between_isolated_pods() {
    const SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];
    const POLICY: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: all}, spec: {podSelector: {},
 policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}}
";
    let mut t = lab(PodLinks::Flannel, "on");
    t.lab.apply(objects(POLICY)).expect("a policy");
    let rules = "add table inet nat; add chain inet nat pre { type nat hook prerouting priority dstnat; };\
                 add rule inet nat pre ip daddr 10.96.0.1 dnat ip to 10.244.1.4;\
                 add rule inet nat pre ip6 daddr fd96::1 dnat ip6 to fd00::4";
    let nft = || Ok(std::process::Command::new("nft").arg(rules).status()?);
    assert!(t.lab.netns("n1").expect("n1").run(nft).expect("nft runs").success());
    let [victim, target] = [1, 2].map(|i| pods(&t).into_iter().nth(i).expect("a pod"));
    let own: [[IpAddr; 2]; 2] = [[victim.v4.into(), target.v4.into()], [victim.v6.into(), target.v6.into()]];
    for ([from, to], service) in own.into_iter().zip(SERVICE) {
        let (client, server) = (bind(&t, "victim", from), bind(&t, "target", to));
        client.connect((service, 7000)).expect("connected");
        // neighbours are still to be found
        let answered = (0..20).any(|_| {
            let _ = client.send(b"hello");
            let Ok((_, from)) = server.recv_from(&mut [0; 16]) else { return false };
            server.send_to(b"hello", from).expect("sent");
            client.recv(&mut [0; 16]).is_ok()
        });
        assert!(answered, "{service}");
    }
}

/// The agent looks again at everything when it starts: a pod that has taken an address by then has it not.
#[test]
#[ignore = "needs root"]
fn u25_an_address_that_is_taken_before_the_agent_starts_is_not_the_takers() {
    let mut t = lab(PodLinks::Flannel, "on");
    let [forger, victim, target] = pods(&t);
    let lines = ["addr add 10.244.1.3/24 dev eth0", "addr add fd00::3/64 dev eth0 nodad"].map(str::to_owned);
    t.lab.netns("forger").expect("a pod").ip(&lines).expect("addresses");
    t.lab.restart_agent("n1").expect("ready again");
    for (what, frame) in forged(&forger, &victim, &target) {
        assert!(!arrives(&forger, &target, &frame), "{what}");
    }
    for pod in [&forger, &victim] {
        for (what, frame) in honest(pod, &target) {
            assert!(arrives(pod, &target, &frame), "{what}");
        }
    }
}
