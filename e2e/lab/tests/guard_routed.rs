//! The source guard of pods with an interface of their own (U25).

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use common::{TestLab, objects, start_with};
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Options, agent};

/// `victim` may talk to `server`, `forger` may not; nothing isolates either of them.
const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: victim, labels: {app: victim}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: forger}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.244.2.4}, {ip: 'fd00:0:0:2::4'}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: server}, spec: {podSelector: {matchLabels: {app: server}},
 ingress: [{from: [{podSelector: {matchLabels: {app: victim}}}]}]}}
";
const VICTIM: [&str; 2] = ["10.244.1.2", "fd00::2"];
const SERVER: [&str; 2] = ["10.244.2.4", "fd00:0:0:2::4"];
const NOBODY: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
const PORT: u16 = 5000;
const CLIENT: u16 = 4000;
const WAIT: Duration = Duration::from_millis(400);

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

fn bind(t: &TestLab, place: &str, address: &str, port: u16) -> UdpSocket {
    let at = SocketAddr::new(address.parse().expect("an address"), port);
    let socket = t.lab.netns(place).expect("a place").run(|| Ok(UdpSocket::bind(at)?)).expect("a socket");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    socket
}

fn address_of(t: &TestLab, place: &str, address: &str) {
    let length = if address.contains(':') { "128 nodad" } else { "32" };
    let line = format!("addr replace {address}/{length} dev lo");
    t.lab.netns(place).expect("a place").ip(&[line]).expect("an address more");
}

/// Who sent the one datagram that arrives, if one does.
fn arrives(from: &UdpSocket, server: &UdpSocket) -> Option<SocketAddr> {
    from.send_to(b"hello", server.local_addr().expect("bound")).expect("sent");
    server.recv_from(&mut [0; 16]).ok().map(|(_, from)| from)
}

#[test]
#[ignore = "needs root"]
fn u25_a_forged_source_goes_nowhere() {
    for links in [PodLinks::Calico, PodLinks::Ptp] {
        for guard in ["off", "on"] {
            let t = lab(links, guard);
            for family in 0..2 {
                let server = bind(&t, "server", SERVER[family], PORT);
                let own = bind(&t, "victim", VICTIM[family], 0);
                assert_eq!(arrives(&own, &server), own.local_addr().ok(), "the instrument itself");
                // with an address from which the policy allows it
                address_of(&t, "forger", VICTIM[family]);
                let forged = bind(&t, "forger", VICTIM[family], 0);
                let reached = arrives(&forged, &server).is_some();
                assert_eq!(reached, guard == "off", "{links} {guard}");
                // to the pod's own node, with an address that nobody has
                let node: IpAddr = t.lab.cluster().node("n1").expect("n1").addresses[family];
                let node = bind(&t, "n1", &node.to_string(), PORT);
                address_of(&t, "forger", NOBODY[family]);
                let forged = bind(&t, "forger", NOBODY[family], 0);
                assert_eq!(arrives(&forged, &node).is_some(), guard == "off", "{links} {guard}");
            }
        }
    }
}

/// What a conntrack entry of this client's port has counted in its original direction.
fn counted(t: &TestLab, client: &str) -> Option<String> {
    let read = || Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")?);
    let table = t.lab.netns("n1").expect("n1").run(read).expect("conntrack");
    let client: IpAddr = client.parse().expect("an address");
    let is_client =
        |word: &str| word.strip_prefix("src=").and_then(|a| a.parse::<IpAddr>().ok()) == Some(client);
    let line =
        table.lines().find(|l| l.contains(&format!("sport={CLIENT}")) && l.split(' ').any(is_client))?;
    line.split(' ').find(|word| word.starts_with("packets=")).map(str::to_owned)
}

#[test]
#[ignore = "needs root"]
fn u25_a_forged_packet_of_a_connection_does_not_touch_it() {
    for guard in ["off", "on"] {
        let t = lab(PodLinks::Ptp, guard);
        t.lab.netns("n1").expect("n1").sysctl(&[("netfilter/nf_conntrack_acct", "1")]).expect("counters");
        for family in 0..2 {
            let server = bind(&t, "server", SERVER[family], PORT);
            let client = bind(&t, "victim", VICTIM[family], CLIENT);
            arrives(&client, &server).expect("allowed");
            server.send_to(b"hello", client.local_addr().expect("bound")).expect("sent");
            client.recv_from(&mut [0; 16]).expect("established");
            assert_eq!(counted(&t, VICTIM[family]).as_deref(), Some("packets=1"));
            // the same addresses and ports, out of another pod
            address_of(&t, "forger", VICTIM[family]);
            let forged = bind(&t, "forger", VICTIM[family], CLIENT);
            let reached = arrives(&forged, &server).is_some();
            assert_eq!(reached, guard == "off");
            let packets = counted(&t, VICTIM[family]);
            assert_eq!(packets.as_deref(), Some(if guard == "off" { "packets=2" } else { "packets=1" }));
        }
    }
}

/// Of what is the pod's own, nothing is lost: all of its addresses, what it learns of its neighbours by
/// itself, and answers whose address the node translates.
#[test]
#[ignore = "needs root"]
fn u25_all_that_is_the_pods_own_passes() {
    const SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];
    let t = lab(PodLinks::Calico, "on");
    let rules = "add table inet nat; add chain inet nat pre { type nat hook prerouting priority dstnat; };\
                 add rule inet nat pre ip daddr 10.96.0.1 dnat ip to 10.244.1.2;\
                 add rule inet nat pre ip6 daddr fd96::1 dnat ip6 to fd00::2";
    let nft = || Ok(std::process::Command::new("nft").arg(rules).status()?);
    assert!(t.lab.netns("n1").expect("n1").run(nft).expect("nft runs").success());
    for family in 0..2 {
        let victim = bind(&t, "victim", VICTIM[family], PORT);
        let client = bind(&t, "forger", if family == 0 { "10.244.1.3" } else { "fd00::3" }, 0);
        client.connect((SERVICE[family], PORT)).expect("connected");
        client.send(b"hello").expect("sent");
        let (_, from) = victim.recv_from(&mut [0; 16]).expect("through the service");
        victim.send_to(b"hello", from).expect("sent");
        client.recv(&mut [0; 16]).expect("the answer comes from the service");
    }
    // from its link-local address it reaches the node, once it has found that, which is done from there, too
    let node = t.lab.netns("n1").expect("n1").run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?));
    let node = node.expect("a socket");
    node.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    sh(&t, "victim", "ip neigh flush all; ip -6 neigh flush all");
    let send = || {
        let scope = nix::net::if_::if_nametoindex("eth0")?;
        let sender = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let to = "fe80::ecee:eeff:feee:eeee".parse()?;
        Ok(sender.send_to(b"hello", SocketAddrV6::new(to, PORT, 0, scope))?)
    };
    t.lab.netns("victim").expect("a pod").run(send).expect("sent");
    let (_, from) = node.recv_from(&mut [0; 16]).expect("from a link-local address");
    assert!(from.to_string().starts_with("[fe80:"), "{from}");
}

fn sh(t: &TestLab, place: &str, line: &str) {
    let run = || Ok(std::process::Command::new("sh").args(["-ec", line]).output()?);
    let output = t.lab.netns(place).expect("a place").run(run).expect("sh runs");
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A pod that looks for duplicates of an address hears of one: what it asks, from `::`, passes.
#[test]
#[ignore = "needs root"]
fn u25_duplicates_of_an_address_are_found() {
    let t = lab(PodLinks::Calico, "on");
    // the node has the address, too; only its answer makes the pod's fail
    sh(
        &t,
        "n1",
        "dev=$(ip -o route get 10.244.1.2 | sed 's/.* dev \\([^ ]*\\).*/\\1/'); ip addr add fd00::22/128 dev $dev nodad",
    );
    sh(&t, "victim", "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add fd00::22/128 dev eth0
        for i in $(seq 100); do ip -6 addr show dev eth0 dadfailed | grep -q fd00::22 && exit; sleep .1; done; exit 1");
}
