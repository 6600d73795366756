//! Random policies: what nobody thought of. The same seed makes the same policies.

use serde_json::{Value, json};

use super::policy;
use crate::case::Action;
use crate::world::{FIRST, NAMESPACES, PODS, SECOND, World};

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// One of 0 to n - 1.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// Labels of pods, and one that none has.
const PODS_BY: [&str; 4] = ["a", "b", "c", "d"];
const NAMESPACES_BY: [&str; 4] = ["x", "y", "z", "w"];
/// What ports are called; `web` and `alt` differ between pods.
const NAMES: [&str; 4] = ["web", "alt", "dns", "none"];

/// Policies for a world.
pub fn policies(world: &World, seed: u64) -> Vec<Action> {
    let mut r = Random(seed);
    let count = 1 + r.below(5);
    (0..count)
        .map(|n| {
            let namespace = r.of(&NAMESPACES);
            policy(namespace, &format!("random-{n}"), spec(&mut r, world))
        })
        .collect()
}

fn spec(r: &mut Random, world: &World) -> Value {
    let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][r.below(3)].clone();
    let mut spec = json!({"podSelector": selector(r, "pod", &PODS_BY), "policyTypes": types});
    for (section, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules: Vec<Value> = (0..r.below(3)).map(|_| rule(r, world, peers)).collect();
        if !rules.is_empty() {
            spec[section] = json!(rules);
        }
    }
    spec
}

fn rule(r: &mut Random, world: &World, peers: &str) -> Value {
    let mut rule = json!({});
    if !r.one_in(5) {
        rule[peers] = (0..1 + r.below(3)).map(|_| peer(r, world)).collect();
    }
    if r.one_in(2) {
        rule["ports"] = (0..1 + r.below(2)).map(|_| port(r)).collect();
    }
    rule
}

fn peer(r: &mut Random, world: &World) -> Value {
    match r.below(5) {
        0 => json!({"podSelector": selector(r, "pod", &PODS_BY)}),
        1 => json!({"namespaceSelector": selector(r, "ns", &NAMESPACES_BY)}),
        2 | 3 => {
            json!({"namespaceSelector": selector(r, "ns", &NAMESPACES_BY), "podSelector": selector(r, "pod", &PODS_BY)})
        }
        _ => {
            let mut name = || {
                let (namespace, pod, _) = r.of(&PODS);
                format!("{namespace}/{pod}")
            };
            let (one, two) = (name(), name());
            let blocks = if r.one_in(2) { world.blocks(&one) } else { world.all_but(&[&one, &two]) };
            blocks[r.below(blocks.len())].clone()
        }
    }
}

fn selector(r: &mut Random, key: &str, values: &[&str]) -> Value {
    match r.below(6) {
        0 => json!({}),
        1 | 2 => json!({"matchLabels": {key: r.of(values)}}),
        3 => {
            json!({"matchExpressions": [{"key": key, "operator": "In", "values": [r.of(values), r.of(values)]}]})
        }
        4 => json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [r.of(values)]}]}),
        _ => json!({"matchExpressions": [{"key": key, "operator": r.of(&["Exists", "DoesNotExist"])}]}),
    }
}

fn port(r: &mut Random) -> Value {
    let protocol = r.of(&["TCP", "TCP", "UDP"]);
    match r.below(5) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": r.of(&NAMES)}),
        2 => json!({"protocol": protocol, "port": r.of(&[FIRST, SECOND]), "endPort": SECOND}),
        _ => json!({"protocol": protocol, "port": r.of(&[FIRST, SECOND])}),
    }
}
