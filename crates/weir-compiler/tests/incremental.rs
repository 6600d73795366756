//! Changes made one after the other lead to what compiling the result in one go gives.

mod common;

use std::collections::BTreeMap;

use common::{NODES, World, addresses, batches};
use proptest::prelude::*;
use weir_compiler::object::{Event, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Change, Direction, NodeSlice};
use weir_compiler::verdict::Reason;
use weir_compiler::{Budgets, Compiler, Scope, read_within};

/// What a delta refers to is there when it is named, and still is when what names it goes.
fn assert_whole(slice: &NodeSlice) {
    for pod in slice.pods.values() {
        let profile = &slice.profiles[&pod.profile];
        for policy in slice.policies_of(profile) {
            assert!(slice.policies.contains_key(policy), "{policy} explains a pod and is not there");
        }
    }
    for ruleset in
        slice.profiles.values().flat_map(|p| [p.ingress, p.egress].into_iter().chain(p.audited)).flatten()
    {
        for entry in &slice.rulesets[&ruleset].entries {
            let rule = &slice.rules[&entry.rule];
            assert!(slice.port_sets.contains_key(&rule.ports));
            for peers in rule.peers.iter().flatten() {
                assert!(slice.peer_sets.contains_key(peers));
            }
        }
    }
}

fn check_members(slice: &NodeSlice, change: &Change) {
    if let Change::Members { id, added, removed } = change {
        let members = &slice.peer_sets[id].members;
        assert!(added.iter().all(|m| !members.contains(m)), "added twice: {change:?}");
        assert!(removed.iter().all(|m| members.contains(m)), "removed what is not there: {change:?}");
    }
}

/// None, and such as random clusters go beyond.
fn budgets() -> impl Strategy<Value = Budgets> {
    let small = (1u64..12, 1u64..30, 0u64..4);
    let small = small.prop_map(|(policy_clauses, namespace_clauses, namespace_peers)| Budgets {
        policy_clauses,
        namespace_clauses,
        namespace_peers,
    });
    prop_oneof![Just(Budgets::NONE), Just(Budgets::default()), small]
}

proptest! {
    #![proptest_config(common::cases(300))]

    #[test]
    fn incremental_is_from_scratch(batches in batches(12), seed: u64, budgets in budgets()) {
        let mut compiler = Compiler::with(Scope::AllNodes, budgets);
        let mut one_node = Compiler::with(Scope::Node("n1".into()), budgets);
        let mut slices: BTreeMap<String, NodeSlice> = BTreeMap::new();
        let mut world = World::default();
        for batch in batches {
            batch.iter().for_each(|e| world.apply(e));
            let deltas = compiler.apply(batch.clone());
            for delta in deltas.slices {
                let slice = slices.entry(delta.node.to_string()).or_default();
                for change in &delta.changes {
                    check_members(slice, change);
                    slice.apply([change]);
                }
                assert_whole(slice);
            }
            one_node.apply(batch);

            // the same objects in one batch, in another order
            let mut events = world.events();
            let mut state = seed;
            for i in (1..events.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                events.swap(i, (state >> 33) as usize % (i + 1));
            }
            let mut fresh = Compiler::with(Scope::AllNodes, budgets);
            events.extend(world.epilogue());
            fresh.apply(events);
            for node in NODES {
                let incremental = slices.get(node).cloned().unwrap_or_default();
                prop_assert_eq!(&incremental, &compiler.slice(node), "deltas and snapshot of {}", node);
                prop_assert_eq!(&incremental, &fresh.slice(node), "incremental and from scratch, {}", node);
            }
            prop_assert_eq!(one_node.slice("n1"), fresh.slice("n1"));
            // as programs read policies that have no compiler
            let read = read_within(world.all_policies(), &budgets);
            let mut read: Vec<_> = read.iter().filter(|read| !read.problems.is_empty()).collect();
            read.sort_by_key(|read| &read.key);
            let problems: Vec<_> = read.iter().map(|read| (&read.key, read.problems.as_slice())).collect();
            prop_assert_eq!(compiler.problems(), problems);
            prop_assert_eq!(compiler.counts(), fresh.counts());
        }
        // nothing is left of what is gone
        let all: Vec<Event> = world.events().into_iter().map(|e| match e {
            Event::Namespace(ns) => Event::NamespaceGone(ns.name),
            Event::Pod(pod) => Event::PodGone(pod.key),
            Event::Policy(policy) => Event::PolicyGone(policy.key()),
            gone => gone,
        }).collect();
        compiler.apply(all);
        prop_assert_eq!(compiler.counts(), Compiler::new(Scope::AllNodes).counts());
    }

    #[test]
    fn verdicts_are_those_of_the_naive_model(batches in batches(10)) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        let mut world = World::default();
        for batch in batches {
            batch.iter().for_each(|e| world.apply(e));
            compiler.apply(batch);
        }
        for node in NODES {
            let slice = compiler.slice(node);
            for (key, state) in &slice.pods {
                let pod = &world.pods[key];
                prop_assert_eq!(pod.node.as_deref(), Some(node));
                for address in addresses() {
                    let owns = world.owner(address).map(|p| &p.key) == Some(key);
                    prop_assert_eq!(state.addresses.contains(&address), owns, "{} has {}", key, address);
                }
                for (direction, ingress) in [(Direction::Ingress, true), (Direction::Egress, false)] {
                    for peer in addresses() {
                        for protocol in Protocol::ALL {
                            for port in [77u16, 79, 80, 81, 82, 86] {
                                let verdict = slice.verdict(key, direction, peer, L4::Port(protocol, port));
                                let want = world.allows(pod, ingress, peer, protocol, port);
                                prop_assert_eq!(
                                    verdict.allowed, want,
                                    "{} {:?} {} {}/{}: {:?}", key, direction, peer, port, protocol, verdict
                                );
                                // an accepted flow of an isolated pod names the clause
                                if verdict.reason == Reason::NotIsolated {
                                    prop_assert!(slice.profiles[&state.profile].ruleset(direction).is_none());
                                }
                            }
                        }
                    }
                }
            }
        }
        for pod in world.pods.values() {
            let live = !pod.host_network && !pod.finished && pod.node.is_some();
            let owns = pod.ips.iter().any(|ip| world.owner(*ip).map(|p| &p.key) == Some(&pod.key));
            let placed = NODES.iter().filter(|n| compiler.slice(n).pods.contains_key(&pod.key)).count();
            prop_assert_eq!(placed, usize::from(live && owns));
        }
    }
}
