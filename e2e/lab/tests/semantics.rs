//! Three ways to one answer: the oracle, the evaluator and packets, for random clusters with real agents.
//!
//! `LAB_CASES` sets how many clusters, `LAB_SEED` where they begin. What differs is shrunk, and printed
//! with its seed and its manifests.

#[path = "../../../crates/weir-compiler/tests/common/mod.rs"]
mod world;

mod common;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::start;
use serde_json::{Value, json};
use weir_compiler::object::*;
use weir_lab::agent;
use weir_lab::network::PodLinks;
use weir_lab::objects::Objects;
use weir_lab::ports::Port;
use world::oracle::{self, Traffic};
use world::random::Random;
use world::{NAMESPACES, World};

const PORTS: [(&str, Protocol, u16); 5] = [
    ("80/TCP", Protocol::Tcp, 80),
    ("79/TCP", Protocol::Tcp, 79),
    ("82/TCP", Protocol::Tcp, 82),
    ("80/UDP", Protocol::Udp, 80),
    ("81/UDP", Protocol::Udp, 81),
];

/// A cluster of two nodes, dual-stack, with a few pods and policies of all sorts.
fn cluster(seed: u64) -> World {
    let mut random = Random::new(seed);
    let mut world = World::default();
    for name in NAMESPACES {
        world.apply(&Event::Namespace(random.namespace(name)));
    }
    for i in 1..=4 + random.below(3) {
        let mut pod = random.pod();
        pod.key = ObjectKey::new(pod.key.namespace, format!("p{i}"));
        let v4 = format!("10.{}.{}.{i}", random.below(2), random.below(2));
        let v6 = format!("fd00::{}:{i:x}", random.below(2));
        pod.ips = [v4, v6].map(|a| a.parse::<IpAddr>().expect("an address")).to_vec();
        pod.node = Some(random.pick(&["n1", "n2"]).to_owned());
        (pod.host_network, pod.finished, pod.terminating, pod.created) = (false, false, false, 0);
        world.apply(&Event::Pod(pod));
    }
    // many policies: rulesets that are written by port class, with merged sets
    let policies = if random.chance(25) { 60 } else { 6 };
    for i in 0..=random.below(policies) {
        let namespace = random.pick(&NAMESPACES);
        world.apply(&Event::Policy(random.policy(namespace, &format!("p.{i}"))));
    }
    world
}

/// The cluster as manifests, field by field.
fn manifests(world: &World) -> Vec<Value> {
    let mut all = Vec::new();
    for ns in world.namespaces.values() {
        let mut metadata = json!({"name": ns.name, "labels": ns.labels});
        if ns.log_allowed > 0 {
            metadata["annotations"] = json!({"weir.dev/log-allowed": format!("1/{}", ns.log_allowed.max(2))});
        }
        all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    for pod in world.pods.values() {
        let ports: Vec<Value> = pod
            .ports
            .iter()
            .map(|p| json!({"name": p.name, "protocol": p.protocol.as_str(), "containerPort": p.port}))
            .collect();
        let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        all.push(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": pod.key.namespace, "name": pod.key.name, "labels": pod.labels},
            "spec": {"nodeName": pod.node, "containers": [{"name": "c", "image": "i", "ports": ports}]},
            "status": {"phase": "Running", "podIP": pod.ips[0].to_string(), "podIPs": ips},
        }));
    }
    for policy in world.policies.values() {
        let spec = &policy.spec;
        let mut written =
            json!({"podSelector": selector(&spec.pod_selector), "policyTypes": spec.policy_types});
        let ingress = spec.ingress.iter().map(|r| rule("from", &r.from, &r.ports, &r.unknown));
        written["ingress"] = ingress.collect();
        let egress = spec.egress.iter().map(|r| rule("to", &r.to, &r.ports, &r.unknown));
        written["egress"] = egress.collect();
        let mut metadata = json!({"namespace": policy.namespace, "name": policy.name});
        if let Some(audit) = &policy.audit {
            metadata["annotations"] = json!({"weir.dev/audit": audit});
        }
        all.push(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": with(written, &spec.unknown),
        }));
    }
    all
}

fn with(mut object: Value, unknown: &UnknownFields) -> Value {
    for field in unknown.keys() {
        object[field] = json!(true);
    }
    object
}

fn rule(list: &str, peers: &[Peer], ports: &[PolicyPort], unknown: &UnknownFields) -> Value {
    let mut rule = json!({});
    rule[list] = peers.iter().map(peer).collect();
    rule["ports"] = ports.iter().map(port).collect();
    with(rule, unknown)
}

fn selector(s: &LabelSelector) -> Value {
    let requirement = |r: &LabelRequirement| {
        with(json!({"key": r.key, "operator": r.operator, "values": r.values}), &r.unknown)
    };
    let expressions: Vec<Value> = s.match_expressions.iter().map(requirement).collect();
    with(json!({"matchLabels": s.match_labels, "matchExpressions": expressions}), &s.unknown)
}

fn peer(p: &Peer) -> Value {
    let mut peer = json!({});
    if let Some(s) = &p.pod_selector {
        peer["podSelector"] = selector(s);
    }
    if let Some(s) = &p.namespace_selector {
        peer["namespaceSelector"] = selector(s);
    }
    if let Some(b) = &p.ip_block {
        peer["ipBlock"] = with(json!({"cidr": b.cidr, "except": b.except}), &b.unknown);
    }
    with(peer, &p.unknown)
}

fn port(p: &PolicyPort) -> Value {
    let mut port = json!({});
    if let Some(protocol) = &p.protocol {
        port["protocol"] = json!(protocol);
    }
    match &p.port {
        Some(PortRef::Number(n)) => port["port"] = json!(n),
        Some(PortRef::Name(name)) => port["port"] = json!(name),
        None => {}
    }
    if let Some(end) = p.end_port {
        port["endPort"] = json!(end);
    }
    with(port, &p.unknown)
}

/// How many answers there were, over both families; or how they differ.
fn compare(world: &World, agent: &Path) -> Result<usize, String> {
    let objects = Objects::from_values(manifests(world)).expect("manifests");
    let mut t = start(objects, Some(agent.to_owned()), PodLinks::Routed, None);
    let ports: Vec<Port> = PORTS.iter().map(|(text, ..)| text.parse().expect("a port")).collect();
    let report = t.lab.report(&ports).expect("a report");
    let (mut compared, mut wrong) = (0, Vec::new());
    for row in &report.rows {
        let (Some(from), Some(to)) = (world.pods.get(&row.from), world.pods.get(&row.to)) else { continue };
        let (_, protocol, number) =
            PORTS.into_iter().zip(&ports).find(|(_, p)| **p == row.port).expect("probed").0;
        for (i, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let answer = row.families[family];
            let traffic = Traffic::Port(protocol, number);
            let said = oracle::passes(world, from, from.ips[i], to, to.ips[i], traffic);
            compared += 1;
            if answer.expected != said || answer.observed != said {
                wrong.push(format!(
                    "{} -> {} {number}/{protocol} {family}: oracle {said}, evaluator {}, packets {}",
                    row.from, row.to, answer.expected, answer.observed
                ));
            }
        }
    }
    if wrong.is_empty() { Ok(compared) } else { Err(wrong.join("\n") + &format!("\n{:?}", report.notes)) }
}

/// Takes out policies, rules and pods as long as a difference stays; each step takes a lab.
fn shrink(mut world: World, agent: &Path) -> World {
    for _ in 0..40 {
        let mut smaller = Vec::new();
        for key in world.policies.keys() {
            let mut w = world.clone();
            w.policies.remove(key);
            smaller.push(w);
        }
        for key in world.pods.keys() {
            let mut w = world.clone();
            w.pods.remove(key);
            smaller.push(w);
        }
        for (key, policy) in &world.policies {
            for i in 0..policy.spec.ingress.len() {
                let mut w = world.clone();
                w.policies.get_mut(key).expect("it is there").spec.ingress.remove(i);
                smaller.push(w);
            }
            for i in 0..policy.spec.egress.len() {
                let mut w = world.clone();
                w.policies.get_mut(key).expect("it is there").spec.egress.remove(i);
                smaller.push(w);
            }
        }
        match smaller.into_iter().find(|w| compare(w, agent).is_err()) {
            Some(w) => world = w,
            None => break,
        }
    }
    world
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|n| n.parse().ok())
}

fn agree(cases: u64, agent: &Path) {
    let first = number("LAB_SEED").unwrap_or(1);
    let mut compared = 0;
    for seed in first..first + cases {
        let world = cluster(seed);
        match compare(&world, agent) {
            Ok(n) => compared += n,
            Err(why) => {
                let least = shrink(world, agent);
                let again =
                    compare(&least, agent).err().unwrap_or_else(|| "seen once, and not again".to_owned());
                let manifests = serde_json::to_string_pretty(&manifests(&least)).expect("JSON");
                panic!("seed {seed}:\n{why}\nat its least:\n{again}\n{manifests}");
            }
        }
    }
    println!("{cases} clusters from seed {first}: {compared} flows, three answers each");
    assert!(compared as u64 > cases * 50, "too few to tell: {compared}");
}

#[test]
#[ignore = "needs root"]
fn oracle_evaluator_and_packets_agree() {
    let agent = agent::find().expect("cargo build -p weir-agent");
    agree(number("LAB_CASES").unwrap_or(20), &agent);
}

/// The same, with peer sets in kernel ipsets: a sample.
#[test]
#[ignore = "needs root"]
fn oracle_evaluator_and_packets_agree_with_ipsets() {
    let agent = agent::find().expect("cargo build -p weir-agent --features ipset");
    let folder = tempfile::tempdir().expect("a folder");
    let with_ipsets = folder.path().join("weir-agent");
    let script = format!("#!/bin/sh\nexec '{}' --set-backend=ipset \"$@\"\n", agent.display());
    std::fs::write(&with_ipsets, script).expect("a file");
    std::fs::set_permissions(&with_ipsets, PermissionsExt::from_mode(0o755)).expect("a mode");
    agree(number("LAB_CASES").unwrap_or(20).div_ceil(2), &with_ipsets);
}
