//! Connections that a change forbids end (U9, T20); all others do not notice. Nothing here happens by a
//! timer: the agent has none that looks at connections.

mod common;

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::talk::{Speakers, Talk, all_dead};
use common::{TestLab, objects, start_with};
use weir_lab::agent::{self, Agent, AgentSetup};
use weir_lab::netns::Netns;
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Lab, Options};

const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: server, labels: {app: server}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: denied, labels: {app: denied}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: friend, labels: {app: friend}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.4}, {ip: 'fd00::4'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: remote, labels: {app: denied}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.244.2.2}, {ip: 'fd00:0:0:2::2'}]}}
";
/// Only friends reach the server.
const FRIENDS: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: friends}, spec: {podSelector: {matchLabels: {app: server}},
 ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}
";
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));
const SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

fn program() -> PathBuf {
    agent::find().expect("cargo build -p weir-agent")
}

fn lab_of(agent: Option<PathBuf>, links: PodLinks, arguments: &[&str]) -> TestLab {
    let agent_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let options = Options {
        links: links.into(),
        family: Some(Family::Dual),
        agent,
        agent_arguments,
        ..Options::default()
    };
    start_with(objects(PODS), options)
}

fn lab() -> TestLab {
    lab_of(Some(program()), PodLinks::Routed, &[])
}

fn place<'a>(lab: &'a Lab, name: &str) -> &'a Netns {
    lab.netns(name).unwrap_or_else(|| panic!("no {name}"))
}

fn tcp(t: &TestLab, from: &str, to: &str, at: (IpAddr, u16), port: u16, speakers: Speakers) -> Talk {
    Talk::tcp(place(&t.lab, from), place(&t.lab, to), at, port, speakers)
}

fn udp(t: &TestLab, from: &str, to: &str, at: (IpAddr, u16), port: u16, speakers: Speakers) -> Talk {
    Talk::udp(place(&t.lab, from), place(&t.lab, to), 0, at, port, speakers)
}

fn nft(netns: &Netns, arguments: &[&str]) -> String {
    let output = netns.run(|| Ok(Command::new("nft").args(arguments).output()?)).expect("nft runs");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Counts the packets to and from these ports before Weir's chain in `forward`, and after it.
fn count(node: &Netns, ports: &str) {
    let rules = format!(
        "meta l4proto {{ tcp, udp }} th dport {ports} counter; meta l4proto {{ tcp, udp }} th sport {ports} counter;"
    );
    let chain =
        |name, priority| format!("chain {name} {{ type filter hook forward priority {priority}; {rules} }}");
    nft(node, &[&format!("table inet count {{ {}; {}; }}", chain("before", -1), chain("after", 1))]);
}

/// Not one of them was lost; the connections have ended.
fn none_was_dropped(node: &Netns) {
    let counted = |chain: &str| -> Vec<u64> {
        let text = nft(node, &["list", "chain", "inet", "count", chain]);
        let after = text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next());
        after.map(|number| number.parse().expect("a number")).collect()
    };
    let (before, after) = (counted("before"), counted("after"));
    assert!(before.len() == 2 && before.iter().all(|n| *n > 100), "{before:?}");
    assert_eq!(before, after, "packets were dropped");
}

#[test]
#[ignore = "needs root"]
fn t20_u9_what_a_change_forbids_ends_and_nothing_else() {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        let mut t = lab_of(Some(program()), links, &[]);
        let v6: IpAddr = "fd00::2".parse().expect("an address");
        let denied = [
            tcp(&t, "denied", "server", (SERVER, 80), 80, Speakers::Server),
            tcp(&t, "denied", "server", (SERVER, 81), 81, Speakers::Both),
            udp(&t, "denied", "server", (SERVER, 80), 80, Speakers::Server),
            udp(&t, "denied", "server", (SERVER, 81), 81, Speakers::Both),
            tcp(&t, "denied", "server", (v6, 82), 82, Speakers::Server),
            udp(&t, "remote", "server", (SERVER, 82), 82, Speakers::Server),
        ];
        let allowed = [
            udp(&t, "friend", "server", (SERVER, 8000), 8000, Speakers::Server),
            tcp(&t, "friend", "remote", ([10, 244, 2, 2].into(), 8001), 8001, Speakers::Both),
            udp(&t, "n1", "server", (SERVER, 8002), 8002, Speakers::Server), // N71
            tcp(&t, "n1", "server", (SERVER, 8003), 8003, Speakers::Both),
        ];
        count(place(&t.lab, "n1"), "{ 8000-8099 }");
        t.lab.apply(objects(FRIENDS)).expect("a policy");
        all_dead(&denied.each_ref());
        for talk in &allowed {
            talk.alive();
            talk.lost_nothing();
        }
        drop(allowed);
        std::thread::sleep(Duration::from_millis(300));
        none_was_dropped(place(&t.lab, "n1"));
    }
}

/// nft's dnat stands in for kube-proxy: what counts is the pod behind it (N47), and its port (N52).
#[test]
#[ignore = "needs root"]
fn u9_translated_connections_are_judged_by_the_pod_behind() {
    let mut t = lab();
    let node = place(&t.lab, "n1");
    nft(
        node,
        &["add table ip nat; add chain ip nat pre { type nat hook prerouting priority -100; };\
                 add chain ip nat post { type nat hook postrouting priority 100; };\
                 add rule ip nat pre ip daddr 10.96.0.1 meta l4proto { tcp, udp } dnat to 10.244.1.2:th dport map { 80 : 8080, 81 : 8081, 82: 8082, 83: 8083 };\
                 add rule ip nat post ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade;"],
    );
    let denied = [
        udp(&t, "denied", "server", (SERVICE, 80), 8080, Speakers::Server),
        tcp(&t, "denied", "server", (SERVICE, 80), 8080, Speakers::Server),
        udp(&t, "friend", "server", (SERVICE, 81), 8081, Speakers::Server),
    ];
    let allowed = [
        tcp(&t, "friend", "server", (SERVICE, 82), 8082, Speakers::Both),
        udp(&t, "friend", "server", (SERVICE, 82), 8082, Speakers::Both),
        udp(&t, "server", "server", (SERVICE, 83), 8083, Speakers::Both), // U3
    ];
    count(node, "{ 8082, 8083 }");
    t.lab
        .apply(objects(
            &FRIENDS.replace("]}]}}", "], ports: [{port: 8082}, {port: 8082, protocol: UDP}]}]}}"),
        ))
        .expect("a policy");
    all_dead(&denied.each_ref());
    for talk in &allowed {
        talk.alive();
        talk.lost_nothing();
    }
    drop(allowed);
    std::thread::sleep(Duration::from_millis(300));
    none_was_dropped(place(&t.lab, "n1"));
}

#[test]
#[ignore = "needs root"]
fn u9_what_is_allowed_again_goes_on() {
    let mut t = lab();
    let talks = [
        udp(&t, "denied", "server", (SERVER, 80), 80, Speakers::Server),
        udp(&t, "denied", "server", (SERVER, 81), 81, Speakers::Both),
        tcp(&t, "denied", "server", (SERVER, 82), 82, Speakers::Both),
    ];
    let policy = objects(FRIENDS);
    t.lab.apply(policy.clone()).expect("a policy");
    all_dead(&talks.each_ref());
    // another label: members are added, nothing else
    let friend = PODS.split("---").find(|pod| pod.contains("name: denied")).expect("a pod");
    t.lab.apply(objects(&friend.replace("{app: denied}", "{app: friend}"))).expect("a label");
    talks.iter().for_each(Talk::alive);
    t.lab.apply(objects(friend)).expect("the label of before");
    all_dead(&talks.each_ref());
    t.lab.delete(&policy).expect("no policy");
    talks.iter().for_each(Talk::alive);
}

#[test]
#[ignore = "needs root"]
fn u9_connections_stay_if_they_are_to_be_kept() {
    let mut t = lab_of(Some(program()), PodLinks::Routed, &["--existing-connections=keep"]);
    let talks = [
        udp(&t, "denied", "server", (SERVER, 80), 80, Speakers::Server),
        tcp(&t, "denied", "server", (SERVER, 82), 82, Speakers::Both),
    ];
    t.lab.apply(objects(FRIENDS)).expect("a policy");
    wait(
        || nft(place(&t.lab, "n1"), &["list", "table", "inet", "weir"]).contains("chain ingress_"),
        "in force",
    );
    std::thread::sleep(Duration::from_millis(500));
    for talk in &talks {
        talk.alive();
        talk.lost_nothing();
    }
    assert!(!nft(place(&t.lab, "n1"), &["list", "table", "inet", "weir"]).contains("ct mark"));
}

/// What happened while the agent was down is made up for at its start.
#[test]
#[ignore = "needs root"]
fn u9_an_agent_that_starts_judges_what_there_is() {
    let mut t = lab();
    let talks = [
        udp(&t, "denied", "server", (SERVER, 80), 80, Speakers::Server),
        tcp(&t, "denied", "server", (SERVER, 81), 81, Speakers::Server),
    ];
    let kill = |t: &mut TestLab| t.lab.agents().get_mut("n1").expect("an agent").kill().expect("killed");
    let policy = objects(FRIENDS);
    kill(&mut t);
    t.lab.apply(policy.clone()).expect("a policy");
    talks.iter().for_each(Talk::alive);
    t.lab.restart_agent("n1").expect("an agent");
    all_dead(&talks.each_ref());
    kill(&mut t);
    t.lab.delete(&policy).expect("no policy");
    t.lab.restart_agent("n1").expect("an agent");
    talks.iter().for_each(Talk::alive);
}

/// A socket in a pod, and whether the server's packets reach it.
fn reached(pod: &Netns, port: u16) -> bool {
    let socket = pod.run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    socket.recv_from(&mut [0; 16]).is_ok()
}

/// Whoever has the address next, with the same rights or not, gets nothing of what was, and what it opens
/// itself is its own.
#[test]
#[ignore = "needs root"]
fn t10_an_address_takes_no_connections_along() {
    let mut t = lab();
    t.lab.apply(objects(FRIENDS)).expect("a policy");
    let friend = PODS.split("---").find(|pod| pod.contains("name: friend")).expect("a pod");
    let from = |t: &TestLab, port| {
        Talk::udp(
            place(&t.lab, "friend"),
            place(&t.lab, "server"),
            port,
            (SERVER, port),
            port,
            Speakers::Server,
        )
    };
    // another pod, at once and with the same labels
    let talk = from(&t, 4000);
    let mut next = t.lab.objects().clone();
    next.remove(&objects(friend));
    next.overlay(objects(&friend.replace("name: friend", "name: heir")));
    t.lab.set(next.clone()).expect("an heir");
    all_dead(&[&talk]);
    assert!(!reached(place(&t.lab, "heir"), 4000));
    let own =
        Talk::udp(place(&t.lab, "heir"), place(&t.lab, "server"), 4001, (SERVER, 4001), 4001, Speakers::Both);
    std::thread::sleep(Duration::from_millis(500));
    own.lost_nothing();
    // the address is nobody's for a while
    next.remove(&objects(&friend.replace("name: friend", "name: heir")));
    t.lab.set(next.clone()).expect("nobody");
    next.overlay(objects(friend));
    std::thread::sleep(Duration::from_millis(500));
    t.lab.set(next.clone()).expect("the friend");
    assert!(!reached(place(&t.lab, "friend"), 4001));
    // a finished pod, whose connections would live on in its namespace
    let talk = from(&t, 4002);
    let finished = friend.replace("status: {", "status: {phase: Succeeded, ");
    t.lab.apply(objects(&finished)).expect("it has finished");
    all_dead(&[&talk]);
}

/// The namespace stays, so that the former pod's connections would go on.
#[test]
#[ignore = "needs root"]
fn t10_a_pod_of_another_uid_is_another_pod() {
    let mut t = lab();
    t.lab.apply(objects(FRIENDS)).expect("a policy");
    let friend = PODS.split("---").find(|pod| pod.contains("name: friend")).expect("a pod");
    let talks = [
        udp(&t, "friend", "server", (SERVER, 80), 80, Speakers::Both),
        tcp(&t, "friend", "server", (SERVER, 81), 81, Speakers::Server),
    ];
    t.lab.apply(objects(&friend.replace("name: friend,", "name: friend, uid: other,"))).expect("another pod");
    all_dead(&talks.each_ref());
    let own = udp(&t, "friend", "server", (SERVER, 82), 82, Speakers::Both);
    std::thread::sleep(Duration::from_millis(500));
    own.lost_nothing();
}

fn wait(mut holds: impl FnMut() -> bool, what: &str) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not {what} within 20 s");
}

/// Where nothing used conntrack before, policies judge TCP in mid-stream for a while, and from then on isolated
/// pods drop it.
#[test]
#[ignore = "needs root"]
fn u27_tcp_in_mid_stream_is_judged_at_first_and_dropped_later() {
    for (grace, lives) in [(3600, true), (0, false)] {
        let mut t = lab_of(None, PodLinks::Routed, &[]);
        // the server's packets alone would make an entry that its own policy forbids
        let silent = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: silent}, spec: \
                      {podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}}";
        t.lab.apply(objects(&format!("{FRIENDS}\n---\n{silent}"))).expect("policies");
        let friend = tcp(&t, "friend", "server", (SERVER, 80), 80, Speakers::Both);
        let denied = tcp(&t, "denied", "server", (SERVER, 81), 81, Speakers::Both);
        let setup = |grace: u32| AgentSetup {
            program: program(),
            manifests: t.lab.manifests(),
            logs: t.lab.logs(),
            arguments: vec![format!("--mid-stream-grace={grace}")],
        };
        let start = |setup: &AgentSetup| {
            let mut agent = Agent::start("n1", place(&t.lab, "n1"), setup).expect("an agent");
            agent.wait_ready(Duration::from_secs(10)).expect("ready");
            agent
        };
        let in_force = || nft(place(&t.lab, "n1"), &["list", "table", "inet", "weir"]).contains("tcp flags");
        // what was tracked before is in another zone now: nothing is known of any connection
        let forget = |zone| {
            let chain = format!("{{ type filter hook prerouting priority -300; ct zone set {zone}; }}");
            let anew = "table inet zone; delete table inet zone; table inet zone";
            nft(place(&t.lab, "n1"), &[&format!("{anew} {{ chain zone {chain}; }}")]);
        };
        let mut agent = start(&setup(grace));
        assert_eq!(in_force(), !lives);
        if lives {
            friend.alive();
            forget(1);
            friend.alive();
            all_dead(&[&denied]);
            // the second start does not know for how long the first has waited: it changes nothing
            agent.kill().expect("killed");
            agent = start(&setup(3600));
            assert!(!in_force());
            friend.alive();
            agent.kill().expect("killed");
            agent = start(&setup(0));
            assert!(in_force());
            friend.alive();
            forget(2);
        }
        all_dead(&[&denied, &friend]);
        assert!(agent.is_running());
    }
}

/// The rule comes when the time is over, without a restart.
#[test]
#[ignore = "needs root"]
fn u27_the_grace_ends() {
    let mut t = lab_of(Some(program()), PodLinks::Routed, &["--mid-stream-grace=3"]);
    t.lab.apply(objects(FRIENDS)).expect("a policy");
    let rules = |t: &TestLab| nft(place(&t.lab, "n1"), &["list", "table", "inet", "weir"]);
    wait(|| rules(&t).contains("tcp flags"), "in force");
}
