//! `weir can` never says anything else than the evaluator, about any pair of a random cluster: it asks once for all
//! that look alike, and here each is asked on its own, with the slice of its own node.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{folder, weir};
use proptest::prelude::*;
use serde_json::{Value, json};
use weir_compiler::flow::{End, Flow};
use weir_compiler::object::{Event, ObjectKey, Pod, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};
use weir_source::manifests;

const NAMESPACES: [&str; 2] = ["a", "b"];
const PORTS: [u16; 3] = [80, 8080, 53];
const BLOCKS: [(&str, &[&str]); 6] = [
    ("10.0.0.0/29", &[]),
    ("10.0.0.0/28", &["10.0.0.2/31"]),
    ("0.0.0.0/0", &["10.0.0.0/8"]),
    ("fd00::/125", &["fd00::3/128"]),
    ("172.16.0.0/24", &[]),
    ("0.0.0.0/0", &[]),
];

fn labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"app": "x"})),
        Just(json!({"app": "y"})),
        Just(json!({"app": "x", "r": "1"}))
    ]
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        labels().prop_map(|labels| json!({"matchLabels": labels})),
        Just(json!({"matchExpressions": [{"key": "r", "operator": "DoesNotExist"}]})),
    ]
}

fn pods() -> impl Strategy<Value = Vec<Value>> {
    let port = prop_oneof![6 => Just(0), 1 => 1..3usize];
    let one = (0..2usize, labels(), 1..3u8, 0..6u8, proptest::bool::weighted(0.2), port, 0..2u8);
    proptest::collection::vec(one, 4..12).prop_map(|all| {
        type Drawn = (usize, Value, u8, u8, bool, usize, u8);
        let pod = |(i, (ns, labels, node, host, dual, port, owner)): (usize, Drawn)| {
            let mut ips = vec![json!({"ip": format!("10.0.0.{}", i + 1)})];
            if dual {
                ips.push(json!({"ip": format!("fd00::{}", i + 1)}));
            }
            let on_host = host == 0;
            if on_host {
                ips = vec![json!({"ip": format!("172.16.0.{node}")})];
            }
            let owner = format!("w{owner}");
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": NAMESPACES[ns], "name": format!("p{i}"), "labels": labels,
                    "ownerReferences": [{"kind": "StatefulSet", "name": owner, "controller": true}]},
                "spec": {"nodeName": format!("n{node}"), "hostNetwork": on_host,
                    "containers": [{"ports": [{"name": "named", "containerPort": PORTS[port]}]}]},
                "status": {"podIPs": ips}})
        };
        all.into_iter().enumerate().map(pod).collect()
    })
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
         2 => selector().prop_map(|s| json!({"podSelector": s})),
        2 => selector().prop_map(|s| json!({"namespaceSelector": {}, "podSelector": s})),
        1 => (0..2usize).prop_map(|i| json!({"namespaceSelector": {"matchLabels": {"team": NAMESPACES[i]}}})),
        4 => (0..BLOCKS.len()).prop_map(|i| json!({"ipBlock": {"cidr": BLOCKS[i].0, "except": BLOCKS[i].1}})),
    ]
}

fn rules(list: &'static str) -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (0..3usize).prop_map(|i| json!({"port": PORTS[i]})),
        Just(json!({"port": "named"})),
        Just(json!({"port": 50, "endPort": 90})),
    ];
    let rule = (proptest::collection::vec(peer(), 1..3), proptest::collection::vec(port, 0..2));
    let rule = rule.prop_map(move |(peers, ports)| json!({list: peers, "ports": ports}));
    proptest::collection::vec(rule, 0..3).prop_map(Value::Array)
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    let types =
        prop_oneof![Just(json!(["Ingress"])), Just(json!(["Egress"])), Just(json!(["Ingress", "Egress"]))];
    let subject = prop_oneof![2 => Just(json!({})), 1 => selector()];
    let one = (0..2usize, subject, types, rules("from"), rules("to"));
    proptest::collection::vec(one, 1..5).prop_map(|all| {
        let policy = |(i, (ns, selector, types, ingress, egress)): (usize, (usize, Value, Value, Value, Value))| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": NAMESPACES[ns], "name": format!("q{i}")},
                "spec": {"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress}})
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

/// The objects, and each node's slice.
struct World {
    pods: Vec<Pod>,
    slices: BTreeMap<String, NodeSlice>,
    nowhere: NodeSlice,
    text: String,
}

/// One end: a pod, or an address of nobody.
enum Who<'w> {
    Pod(&'w Pod),
    Address(IpAddr),
}

impl Who<'_> {
    fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Who::Pod(pod) => pod.ips.clone(),
            Who::Address(address) => vec![*address],
        }
    }
}

impl World {
    fn new(pods: &[Value], policies: &[Value]) -> World {
        let namespace = |n: &&str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n, "labels": {"team": n}}});
        let all = NAMESPACES.iter().map(namespace).chain(pods.to_vec()).chain(policies.to_vec());
        let text: String = all.map(|object| format!("---\n{object}\n")).collect();
        let dir = folder(&text);
        let loaded = manifests::read(&[dir.path().to_path_buf()]);
        assert_eq!(loaded.problems, []);
        let pods = loaded.events.iter().filter_map(|event| match event {
            Event::Pod(pod) => Some(pod.clone()),
            _ => None,
        });
        let pods: Vec<Pod> = pods.collect();
        let mut compiler = Compiler::new(Scope::AllNodes);
        compiler.apply(loaded.events);
        let slices = ["n1", "n2"].map(|n| (n.to_owned(), compiler.slice(n))).into();
        World { pods, slices, nowhere: NodeSlice::default(), text }
    }

    /// In every family that both have; `None`: in none.
    fn allowed(&self, from: &Who<'_>, to: &Who<'_>, port: u16) -> Option<bool> {
        let outside = ObjectKey::new("", "outside");
        let end = |who: &Who<'_>| -> (ObjectKey, Option<String>, bool) {
            match who {
                Who::Pod(pod) => (pod.key.clone(), pod.node.clone(), pod.host_network),
                Who::Address(_) => (outside.clone(), None, true),
            }
        };
        let (a, b) = (end(from), end(to));
        let slice = |end: &(ObjectKey, Option<String>, bool)| {
            end.1.as_ref().and_then(|node| self.slices.get(node)).unwrap_or(&self.nowhere).clone()
        };
        let (x, y) = (slice(&a), slice(&b));
        fn make<'a>(e: &'a (ObjectKey, Option<String>, bool), slice: &'a NodeSlice) -> End<'a> {
            End { key: &e.0, node: e.1.as_deref(), host_network: e.2, slice }
        }
        let mut verdicts = Vec::new();
        for source in from.addresses() {
            for destination in to.addresses().into_iter().filter(|d| d.is_ipv4() == source.is_ipv4()) {
                let l4 = L4::Port(Protocol::Tcp, port);
                verdicts.push(Flow::judge(make(&a, &x), make(&b, &y), source, destination, l4).allowed());
            }
        }
        (!verdicts.is_empty()).then(|| verdicts.iter().all(|v| *v))
    }
}

/// How many pairs of two groups pass, and how many do not.
fn count(world: &World, from: &[&Pod], to: &[&Pod], port: u16) -> (u64, u64) {
    let mut counts = (0, 0);
    let single = from.len() == 1 && to.len() == 1;
    for a in from {
        for b in to.iter().filter(|b| single || b.key != a.key) {
            match world.allowed(&Who::Pod(a), &Who::Pod(b), port) {
                Some(true) => counts.0 += 1,
                Some(false) => counts.1 += 1,
                None => {}
            }
        }
    }
    counts
}

fn pairs(json: &Value) -> (u64, u64) {
    let pairs = &json["pairs"];
    (pairs["allowed"].as_u64().expect("a number"), pairs["denied"].as_u64().expect("a number"))
}

/// The first address of `10.0.0.0/28` that is meant by `others in RANGE, RANGE`, and the last.
fn addresses_of(name: &str) -> Vec<IpAddr> {
    let name = name.strip_prefix("others in ").unwrap_or(name);
    let mut all = Vec::new();
    for range in name.split(", ").filter(|part| !part.ends_with("more ranges")) {
        let (first, last) = match (range.split_once('-'), range.split_once('/')) {
            (Some((a, b)), _) => (a.parse().expect("an address"), b.parse().expect("an address")),
            (None, Some((a, len))) => {
                let first: std::net::Ipv4Addr = a.parse().expect("an address");
                let hosts = u32::MAX.checked_shr(len.parse().expect("a length")).unwrap_or(0);
                (IpAddr::V4(first), IpAddr::V4((first.to_bits() | hosts).into()))
            }
            (None, None) => (range.parse().expect("an address"), range.parse().expect("an address")),
        };
        all.extend([first, last]);
    }
    all
}

/// Each is a dozen runs of the program.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40).min(2000)
}

/// Pods that are alike but for what only the other end's policies, or a node, tell apart.
#[test]
fn pods_that_look_alike_may_differ_by_address_and_node() {
    let pod = |name: &str, node: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "a", "name": name, "labels": {"app": "x"}},
            "spec": {"nodeName": node}, "status": {"podIPs": [{"ip": ip}]}})
    };
    let mut pods =
        vec![pod("p0", "n1", "10.0.0.1"), pod("p1", "n2", "10.0.0.9"), pod("p2", "n2", "10.0.0.10")];
    pods.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "b", "name": "h"},
        "spec": {"nodeName": "n1", "hostNetwork": true}, "status": {"podIPs": [{"ip": "172.16.0.1"}]}}));
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": "q"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/29"}}]}]}});
    let world = World::new(&pods, &[policy]);
    let dir = folder(&world.text);
    let ask = |from: &str, to: &str| {
        pairs(&weir(dir.path(), &["can", from, to, "-f", "m.yaml", "-o", "json"]).json())
    };
    assert_eq!(ask("ns/a", "ns/a:80"), (2, 4), "from p0 only");
    assert_eq!(ask("ns/b", "ns/a:80"), (1, 2), "the node's own pod");
    let all: Vec<&Pod> = world.pods.iter().collect();
    assert_eq!(count(&world, &all[..3], &all[..3], 80), (2, 4));
    assert_eq!(count(&world, &all[3..], &all[..3], 80), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn can_says_what_the_evaluator_says(pods in pods(), policies in policies(), port in 0..3usize) {
        let world = World::new(&pods, &policies);
        let dir = folder(&world.text);
        let port = PORTS[port];
        let ask = |from: &str, to: &str| {
            weir(dir.path(), &["can", from, &format!("{to}:{port}"), "-f", "m.yaml", "-o", "json"])
        };
        let all: Vec<&Pod> = world.pods.iter().collect();
        // two pods
        let (a, b) = (all[0], all[all.len() - 1]);
        let run = ask(&a.key.to_string(), &b.key.to_string());
        match world.allowed(&Who::Pod(a), &Who::Pod(b), port) {
            Some(allowed) => {
                let json = run.json();
                prop_assert_eq!(&json["allowed"], &json!(allowed), "{:?}", run);
                prop_assert_eq!(run.code, Some(i32::from(!allowed)));
                for (side, verdict) in [("egress", &json["egress"]), ("ingress", &json["ingress"])] {
                    prop_assert!(!allowed || verdict["verdict"] == "allowed", "{}: {:?}", side, run);
                }
            }
            None => prop_assert_eq!(run.code, Some(2)),
        }
        // groups
        let of = |namespace: &str, workload: Option<&str>| -> Vec<&Pod> {
            let is_it = |(pod, written): &(&Pod, &Value)| {
                let owner = written["metadata"]["ownerReferences"][0]["name"].as_str();
                pod.key.namespace == namespace && workload.is_none_or(|w| owner == Some(w))
            };
            // in the order of the text
            world.pods.iter().zip(&pods).filter(is_it).map(|(pod, _)| pod).collect()
        };
        for (from, to) in [("a", "b"), ("b", "a"), ("a", "a")] {
            let (x, y) = (of(from, None), of(to, None));
            let run = ask(&format!("ns/{from}"), &format!("ns/{to}"));
            let expected = count(&world, &x, &y, port);
            if expected == (0, 0) {
                prop_assert_eq!(run.code, Some(2), "{:?}", run);
            } else {
                prop_assert_eq!(pairs(&run.json()), expected, "{} {} {:?}", from, to, run);
            }
            let (x, y) = (of(from, Some("w0")), of(to, Some("w1")));
            let run = ask(&format!("{from}/sts/w0"), &format!("{to}/sts/w1"));
            let expected = count(&world, &x, &y, port);
            if expected == (0, 0) {
                prop_assert_eq!(run.code, Some(2), "{:?}", run);
            } else {
                prop_assert_eq!(pairs(&run.json()), expected, "{} {} {:?}", from, to, run);
            }
        }
        // a range of addresses, in both directions
        for inward in [true, false] {
            let key = b.key.to_string();
            let run = if inward { ask("10.0.0.0/27", &key) } else { ask(&key, "10.0.0.0/27") };
            if run.code == Some(2) {
                prop_assert!(b.ips.iter().all(IpAddr::is_ipv6), "{:?}", run);
                continue;
            }
            let json = run.json();
            for group in json["groups"].as_array().expect("groups") {
                for example in group["examples"].as_array().expect("examples") {
                    let (here, there) = if inward { ("to", "from") } else { ("from", "to") };
                    prop_assert_eq!(&example[here], &json!(key));
                    let name = example[there].as_str().expect("a name");
                    let members: Vec<Who<'_>> = match all.iter().find(|p| p.key.to_string() == name) {
                        Some(pod) => {
                            let v4 = pod.ips.iter().copied().filter(IpAddr::is_ipv4).collect();
                            let pod = Pod { ips: v4, ..(*pod).clone() };
                            let told = if inward {
                                world.allowed(&Who::Pod(&pod), &Who::Pod(b), port)
                            } else {
                                world.allowed(&Who::Pod(b), &Who::Pod(&pod), port)
                            };
                            prop_assert_eq!(told, group["allowed"].as_bool(), "{:?}", run);
                            continue;
                        }
                        None => addresses_of(name).into_iter().map(Who::Address).collect(),
                    };
                    for who in members {
                        let Who::Address(address) = who else { continue };
                        if world.pods.iter().any(|p| p.ips.contains(&address)) {
                            continue;
                        }
                        let (from, to) = if inward { (who, Who::Pod(b)) } else { (Who::Pod(b), who) };
                        prop_assert_eq!(world.allowed(&from, &to, port), group["allowed"].as_bool(), "{} {:?}", address, run);
                    }
                }
            }
        }
    }
}
