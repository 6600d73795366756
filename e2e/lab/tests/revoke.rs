//! Connections that a change forbids end (U9, T20); all others do not notice.

mod common;

use std::net::IpAddr;

use common::talk::{Speakers, Talk, retransmissions};
use common::{TestLab, objects, start_with};
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Options, agent};

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

fn v4(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn lab(yaml: &str, links: PodLinks) -> TestLab {
    let agent = Some(agent::find().expect("cargo build -p weir-agent"));
    start_with(
        objects(yaml),
        Options { links: links.into(), family: Some(Family::Dual), agent, ..Options::default() },
    )
}

fn tcp(t: &TestLab, from: &str, to: &str, at: (IpAddr, u16), port: u16, speakers: Speakers) -> Talk {
    Talk::tcp(t.lab.netns(from).expect("a place"), t.lab.netns(to).expect("a place"), at, port, speakers)
}

fn udp(t: &TestLab, from: &str, to: &str, at: (IpAddr, u16), port: u16, speakers: Speakers) -> Talk {
    Talk::udp(t.lab.netns(from).expect("a place"), t.lab.netns(to).expect("a place"), 0, at, port, speakers)
}

#[test]
#[ignore = "needs root"]
fn t20_u9_what_a_change_forbids_ends_and_nothing_else() {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        let mut t = lab(PODS, links);
        let v6: IpAddr = "fd00::2".parse().expect("an address");
        let denied = [
            tcp(&t, "denied", "server", (v4(2), 80), 80, Speakers::Server),
            tcp(&t, "denied", "server", (v4(2), 81), 81, Speakers::Both),
            udp(&t, "denied", "server", (v4(2), 80), 80, Speakers::Server),
            udp(&t, "denied", "server", (v4(2), 81), 81, Speakers::Both),
            tcp(&t, "denied", "server", (v6, 82), 82, Speakers::Server),
            udp(&t, "remote", "server", (v4(2), 82), 82, Speakers::Server),
        ];
        let allowed = [
            udp(&t, "friend", "server", (v4(2), 83), 83, Speakers::Server),
            tcp(&t, "friend", "remote", ([10, 244, 2, 2].into(), 80), 80, Speakers::Both),
            udp(&t, "n1", "server", (v4(2), 84), 84, Speakers::Server), // N71
        ];
        t.lab.apply(objects(FRIENDS)).expect("a policy");
        denied.iter().for_each(Talk::dead);
        for talk in &allowed {
            talk.alive();
            talk.lost_nothing();
        }
        assert_eq!(retransmissions(t.lab.netns("friend").expect("a pod")), 0);
    }
}
