//! What deltas tell beside slices: policies that select no pod, and pods that are isolated and were not before.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{NODES, World, batches, plain_pod};
use proptest::prelude::*;
use serde_json::{Value, json};
use weir_compiler::object::{Event, ObjectKey, Pod, Policy};
use weir_compiler::policy::ReadPolicy;
use weir_compiler::{Compiler, Isolated, Scope};

fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn pod(text: &str, address: u8, role: &str) -> Event {
    let mut pod = plain_pod(key(text), &format!("10.0.0.{address}"));
    pod.uid = format!("uid of {text}");
    pod.labels = [("role".to_owned(), role.to_owned())].into_iter().collect();
    Event::Pod(pod)
}

fn policy(text: &str, spec: Value) -> Event {
    let ObjectKey { namespace, name } = key(text);
    Event::Policy(Policy {
        namespace,
        name,
        created: 0,
        audit: None,
        spec: serde_json::from_value(spec).unwrap(),
    })
}

fn all_of(role: &str, types: &[&str]) -> Value {
    json!({"podSelector": {"matchLabels": {"role": role}}, "policyTypes": types})
}

/// Three pods x and one y, under no policy.
fn world() -> Compiler {
    let mut compiler = Compiler::new(Scope::AllNodes);
    let pods = [pod("a/x1", 1, "x"), pod("a/x2", 2, "x"), pod("a/x3", 3, "x"), pod("a/y", 4, "y")];
    assert_eq!(compiler.apply(pods).isolated, [], "they come");
    compiler
}

fn isolated(by: &str, changed: bool, ingress: usize, egress: usize, some: &[&str]) -> Isolated {
    let some: Vec<ObjectKey> = some.iter().map(|pod| key(pod)).collect();
    Isolated { policy: key(by), changed, pods: some.len(), ingress, egress, some }
}

#[test]
fn a_policy_that_comes_isolates_those_that_were_not() {
    let mut compiler = world();
    let deltas = compiler.apply([policy("a/in", all_of("x", &["Ingress"]))]);
    let all = ["a/x1", "a/x2", "a/x3"];
    assert_eq!(deltas.isolated, [isolated("a/in", true, 3, 0, &all)]);
    assert_eq!(deltas.selecting, [(key("a/in"), true)]);
    // the same pods, and the other direction: the profile stays, and says more
    let deltas = compiler.apply([policy("a/out", all_of("x", &["Egress"]))]);
    assert_eq!(deltas.isolated, [isolated("a/out", true, 0, 3, &all)]);
    // nothing new for those, and both directions for the other
    let deltas = compiler.apply([policy("a/all", json!({"policyTypes": ["Ingress", "Egress"]}))]);
    assert_eq!(deltas.isolated, [isolated("a/all", true, 1, 1, &["a/y"])]);
    assert_eq!(compiler.apply([policy("a/more", all_of("x", &["Ingress"]))]).isolated, []);
    let gone = ["a/in", "a/out", "a/all", "a/more"].map(|name| Event::PolicyGone(key(name)));
    assert_eq!(compiler.apply(gone).isolated, []);
    // of two at once, the first
    let two = [policy("a/2", all_of("x", &["Ingress"])), policy("a/1", all_of("x", &["Ingress", "Egress"]))];
    let deltas = compiler.apply(two);
    assert_eq!(deltas.isolated, [isolated("a/1", true, 0, 3, &all), isolated("a/2", true, 3, 0, &all)]);
}

#[test]
fn a_pod_that_is_relabelled_is_isolated_by_what_is_there_and_one_that_comes_is_none() {
    let mut compiler = world();
    compiler.apply([policy("a/q", all_of("x", &["Ingress"])), policy("a/p", all_of("x", &["Ingress"]))]);
    let deltas = compiler.apply([pod("a/y", 4, "x")]);
    assert_eq!(deltas.isolated, [isolated("a/p", false, 1, 0, &["a/y"])]);
    assert_eq!(compiler.apply([pod("a/y", 4, "y"), pod("a/new", 5, "x")]).isolated, []);
    // another pod of that name
    let Event::Pod(heir) = pod("a/y", 4, "x") else { unreachable!() };
    let heir = Event::Pod(Pod { uid: "another".to_owned(), ..heir });
    assert_eq!(compiler.apply([Event::PodGone(key("a/y")), heir]).isolated, []);
}

#[test]
fn what_happens_in_one_batch_is_compared_with_what_was_before_it() {
    let mut compiler = world();
    compiler.apply([policy("a/out", all_of("x", &["Egress"])), policy("a/y", all_of("y", &["Ingress"]))]);
    // x1 leaves a profile that would isolate it for ingress, too, by now
    let deltas = compiler.apply([policy("a/in", all_of("x", &["Ingress"])), pod("a/x1", 1, "y")]);
    let by_in = isolated("a/in", true, 2, 0, &["a/x2", "a/x3"]);
    assert_eq!(deltas.isolated, [by_in, isolated("a/y", false, 1, 0, &["a/x1"])]);
    // another pod of the name and address of x2 comes together with a policy
    let mut compiler = world();
    let Event::Pod(heir) = pod("a/x2", 2, "x") else { unreachable!() };
    let heir = Event::Pod(Pod { uid: "another".to_owned(), ..heir });
    let deltas = compiler.apply([heir, policy("a/in", all_of("x", &["Ingress"]))]);
    assert_eq!(deltas.isolated, [isolated("a/in", true, 2, 0, &["a/x1", "a/x3"])]);
    // and is isolated later than that
    assert_eq!(compiler.apply([pod("a/y", 4, "x")]).isolated, [isolated("a/in", false, 1, 0, &["a/y"])]);
}

#[test]
fn a_policy_that_selects_no_pod_is_told_when_it_comes_and_when_pods_come_and_go() {
    let mut compiler = world();
    let mut apply = |event: Event| compiler.apply([event]).selecting;
    assert_eq!(apply(policy("a/z", all_of("z", &[]))), [(key("a/z"), false)]);
    assert_eq!(apply(policy("a/w", all_of("z", &["Egress"]))), [(key("a/w"), false)]);
    let both = |any| [(key("a/w"), any), (key("a/z"), any)].map(Some);
    let sorted = |mut told: Vec<(ObjectKey, bool)>| {
        told.sort();
        told.into_iter().map(Some).collect::<Vec<_>>()
    };
    assert_eq!(sorted(apply(pod("a/z1", 5, "z"))), both(true));
    assert_eq!(apply(pod("a/z2", 6, "z")), [], "it is not the first");
    assert_eq!(apply(Event::PodGone(key("a/z1"))), [], "it is not the last");
    assert_eq!(sorted(apply(pod("a/z2", 6, "y"))), both(false));
}

#[test]
fn a_policy_is_on_the_nodes_whose_pods_it_selects() {
    let mut compiler = world();
    compiler.apply([policy("a/x", all_of("x", &["Ingress"])), policy("a/z", all_of("z", &["Ingress"]))]);
    assert!(compiler.is_on(&key("a/x"), "n"));
    assert!(!compiler.is_on(&key("a/z"), "n") && !compiler.is_on(&key("a/x"), "m"));
    assert!(!compiler.is_on(&key("b/x"), "n"));
}

/// Of each pod in slices, in which directions it is isolated.
fn isolation(compiler: &Compiler) -> BTreeMap<ObjectKey, [bool; 2]> {
    let mut all = BTreeMap::new();
    for node in NODES {
        let slice = compiler.slice(node);
        for (key, pod) in &slice.pods {
            let profile = &slice.profiles[&pod.profile];
            all.insert(key.clone(), [profile.ingress.is_some(), profile.egress.is_some()]);
        }
    }
    all
}

proptest! {
    #![proptest_config(common::cases(300))]

    #[test]
    fn it_is_what_looking_at_everything_before_and_after_finds(batches in batches(12), mut seed: u64) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        let mut quiet = Compiler::new(Scope::Node("n1".into()));
        let mut world = World::default();
        let mut selecting = BTreeMap::new();
        // of living pods, also of those that are gone
        let mut uids: BTreeMap<ObjectKey, String> = BTreeMap::new();
        for mut batch in batches {
            let before = isolation(&compiler);
            let mut reborn = BTreeSet::new();
            for event in &mut batch {
                if let Event::Pod(pod) = event {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    pod.uid = format!("{}-{}", pod.uid, seed >> 62 == 0);
                    if !pod.host_network && !pod.finished {
                        let last = uids.insert(pod.key.clone(), pod.uid.clone());
                        if last.is_some_and(|last| last != pod.uid) {
                            reborn.insert(pod.key.clone());
                        }
                    }
                }
                world.apply(event);
            }
            let changed: BTreeSet<ObjectKey> = batch.iter().filter_map(|event| match event {
                Event::Policy(policy) => Some(policy.key()),
                _ => None,
            }).collect();
            let deltas = compiler.apply(batch.clone());
            let told = quiet.apply(batch);
            prop_assert!(told.selecting.is_empty() && told.isolated.is_empty(), "an agent has no use for it");

            let after = isolation(&compiler);
            for (at, direction) in ["ingress", "egress"].iter().enumerate() {
                let newly = after.iter().filter(|(key, now)| {
                    !reborn.contains(key) && now[at] && before.get(key).is_some_and(|before| !before[at])
                });
                let told = deltas.isolated.iter().map(|of| [of.ingress, of.egress][at]).sum::<usize>();
                prop_assert_eq!(told, newly.count(), "{}: {:?}", direction, &deltas.isolated);
            }
            for of in &deltas.isolated {
                prop_assert!(of.pods >= of.ingress.max(of.egress) && of.pods <= of.ingress + of.egress);
                prop_assert_eq!(of.some.len(), of.pods.min(5));
                prop_assert!(!of.changed || changed.contains(&of.policy));
                let policy = world.policies_in_force().find(|policy| policy.key() == of.policy);
                let read = ReadPolicy::read(policy.expect("it is there"));
                prop_assert!(of.ingress == 0 || read.clauses.ingress.is_some());
                prop_assert!(of.egress == 0 || read.clauses.egress.is_some());
                for pod in &of.some {
                    prop_assert!(read.subject.matches(&world.pods[pod].labels), "{} and {:?}", pod, of);
                }
            }

            selecting.extend(deltas.selecting);
            for policy in world.policies_in_force() {
                let read = ReadPolicy::read(policy);
                let any = world.pods.values().any(|pod| {
                    pod.key.namespace == read.key.namespace
                        && !pod.host_network
                        && !pod.finished
                        && read.subject.matches(&pod.labels)
                });
                prop_assert_eq!(selecting.get(&read.key), Some(&any), "{}", read.key);
            }
        }
    }
}
