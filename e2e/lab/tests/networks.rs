//! The same policies over every kind of network that pods live in: what passes must not depend on it.

mod common;

use std::process::Command;

use common::{TestLab, objects, start_with};
use weir_lab::cluster::Machines;
use weir_lab::network::{Fabric, Links, PodLinks};
use weir_lab::objects::Family;
use weir_lab::ports::Port;
use weir_lab::{Options, Report, agent};

/// `web` may be reached at 80 by `client` and from outside, `db` at all by `web` alone; `sealed` by nobody and
/// nobody by it; `talker` reaches `web` at 80 and nothing else.
const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: sealed, labels: {app: sealed}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, labels: {app: client}}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: talker, labels: {app: talker}}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {nodeName: n2, hostNetwork: true}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web}, spec: {podSelector: {matchLabels: {app: web}},
 ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {podSelector: {matchLabels: {app: talker}}},
                   {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8:ffff::/48'}}],
            ports: [{port: 80}, {port: 80, protocol: UDP}, {port: 80, protocol: SCTP}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec: {podSelector: {matchLabels: {app: db}},
 ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: sealed}, spec: {podSelector: {matchLabels: {app: sealed}},
 policyTypes: [Ingress, Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: talker}, spec: {podSelector: {matchLabels: {app: talker}},
 policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}, {port: 80, protocol: UDP}]}]}}
";

fn lab(links: Links, fabric: Fabric, family: Family) -> TestLab {
    let options = Options {
        links,
        fabric,
        family: Some(family),
        machines: Machines { nodes: true, outside: true },
        agent: Some(agent::find().expect("cargo build -p weir-agent")),
        ..Options::default()
    };
    start_with(objects(CLUSTER), options)
}

fn ports() -> Vec<Port> {
    ["80/TCP", "81/TCP", "80/UDP", "80/UDP:4000", "81/UDP:4000", "80/SCTP", "81/SCTP", "ICMP"]
        .map(|p| p.parse().expect("a port"))
        .to_vec()
}

/// From, to and port of what passes, as packets have it; `expected` is not asked.
fn passes(report: &Report, from: &str, to: &str, port: &str) -> bool {
    let is = |key: &weir_compiler::object::ObjectKey, name: &str| {
        key.to_string() == name || key.to_string() == format!("default/{name}")
    };
    let mut rows =
        report.rows.iter().filter(|r| is(&r.from, from) && is(&r.to, to) && r.port.to_string() == port);
    let row = rows.next().unwrap_or_else(|| panic!("{from} -> {to} {port} was not probed"));
    row.observed()
}

/// Packets that a node's device has taken in.
fn received(t: &TestLab, node: &str, device: &str) -> u64 {
    let show = || Ok(Command::new("ip").args(["-s", "-j", "link", "show", device]).output()?);
    let output = t.lab.netns(node).expect("a node").run(show).expect("ip runs");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    links[0]["stats64"]["rx"]["packets"].as_u64().expect("a counter")
}

fn check(links: &str, fabric: Fabric, family: Family) {
    let what = format!("{links} {fabric:?} {family:?}");
    let mut t = lab(links.parse().expect("links"), fabric, family);
    let report = t.lab.report(&ports()).expect("a report");
    assert!(!report.differs(), "{what}\n{:?}\n{}", report.notes, report.table(false));
    // What the evaluator says is not all there is to go by.
    for (from, to, port, expected) in [
        ("client", "web", "80/TCP", true),
        ("client", "web", "80/SCTP", true),
        ("client", "web", "81/SCTP", false), // N62
        ("client", "web", "81/TCP", false),
        ("client", "web", "80/UDP:4000", true), // N94
        ("client", "web", "81/UDP:4000", false),
        ("client", "web", "ICMP", false), // U1: a rule with ports has no room for it
        ("web", "db", "ICMP", true),
        ("sealed", "client", "ICMP", false),
        ("talker", "web", "80/TCP", true),
        ("talker", "web", "80/SCTP", false),
        ("@node/n1", "sealed", "80/TCP", true), // N71
        ("@node/n1", "sealed", "ICMP", true),
        ("@node/n2", "sealed", "80/TCP", false),
        ("host", "sealed", "80/UDP", false),     // N70
        ("sealed", "@node/n1", "80/TCP", false), // U6
        ("talker", "@node/n2", "80/TCP", false),
        ("web", "@node/n1", "80/TCP", true),
        ("web", "@node/n2", "80/TCP", true),
        ("@net/outside", "web", "80/TCP", true),
        ("@net/outside", "web", "81/TCP", false),
        ("@net/outside", "sealed", "ICMP", false),
        ("sealed", "@net/outside", "80/UDP", false),
        ("web", "@net/outside", "80/TCP", true),
    ] {
        assert_eq!(passes(&report, from, to, port), expected, "{what}: {from} -> {to} {port}");
    }
    for (device, has) in [("flannel.1", family != Family::Ipv6), ("flannel-v6.1", family != Family::Ipv4)] {
        if fabric == Fabric::Vxlan {
            assert_eq!(received(&t, "n2", device) > 50, has, "{what}: {device}");
        }
    }
    neighbours_are_found(&mut t, &what);
}

/// N92: nobody knows any neighbour, and all policies are in force.
fn neighbours_are_found(t: &mut TestLab, what: &str) {
    let flush = || Ok(Command::new("ip").args(["neigh", "flush", "dev", "eth0"]).status()?);
    for pod in ["web", "db", "sealed", "client", "talker"] {
        assert!(t.lab.netns(pod).expect("a pod").run(flush).expect("ip runs").success());
    }
    let report = t.lab.report(&["80/TCP".parse().expect("a port")]).expect("a report");
    assert!(!report.differs(), "{what}, without neighbours\n{}", report.table(false));
}

#[test]
#[ignore = "needs root"]
fn the_same_table_over_every_kind_of_links() {
    for links in PodLinks::ALL {
        for family in [Family::Ipv4, Family::Ipv6, Family::Dual] {
            check(&links.to_string(), Fabric::Routed, family);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_same_table_over_mixed_nodes() {
    check("routed,n2=bridged", Fabric::Routed, Family::Dual);
    check("azure,n2=kubenet", Fabric::Routed, Family::Dual);
    check("weave,n2=calico", Fabric::Vxlan, Family::Dual);
}

#[test]
#[ignore = "needs root"]
fn the_same_table_over_an_overlay() {
    for family in [Family::Ipv4, Family::Ipv6, Family::Dual] {
        check("flannel", Fabric::Vxlan, family);
    }
    check("ptp", Fabric::Vxlan, Family::Dual);
}
