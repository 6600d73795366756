//! The rectangles are what the evaluator says of every pair, before and after.

use std::collections::BTreeSet;

use proptest::prelude::*;
use weir_compiler::flow::PodToOwnNode;

use super::flows::rectangles;
use crate::reach::tests::{World, traffic};
use crate::reach::{Reach, Who};

fn check(seed: u64, own_node: PodToOwnNode) {
    let worlds = World::two(seed);
    let states = [worlds[0].state(), worlds[1].state()];
    for v4 in [true, false] {
        let mut reach = Reach::new(&states, v4, own_node);
        let told = rectangles(&mut reach);
        let pods_of = |class: u32| match &reach.classes[class as usize].who {
            Who::Pods(pods) => pods.clone(),
            Who::Addresses(_) => Vec::new(),
        };
        let mut changed = BTreeSet::new();
        for one in &told {
            let (before, after) = (reach.traffic(one.before), reach.traffic(one.after));
            assert_ne!(before, after);
            for (a, b) in one.from.iter().flat_map(|a| one.to.iter().map(move |b| (*a, *b))) {
                for (p, q) in pods_of(a).into_iter().flat_map(|p| pods_of(b).into_iter().map(move |q| (p, q)))
                {
                    if !reach.is_pair((a as usize, p), (b as usize, q)) {
                        continue;
                    }
                    for l4 in traffic() {
                        let verdicts = (before.contains(l4), after.contains(l4));
                        if verdicts.0 != verdicts.1 {
                            assert!(changed.insert((p, q, l4, verdicts)), "seed {seed}: told twice");
                        }
                    }
                }
            }
        }
        let mut expected = BTreeSet::new();
        let count = u32::try_from(reach.pods.len()).expect("few");
        for (p, q) in (0..count).flat_map(|p| (0..count).map(move |q| (p, q))).filter(|(p, q)| p != q) {
            let (from, to) = (&reach.pods[p as usize], &reach.pods[q as usize]);
            for l4 in traffic() {
                let verdicts = [0, 1].map(|s: usize| {
                    let world = &worlds[s];
                    let at = |key| world.address(key, v4).expect("it has one in both");
                    world.allowed(own_node, (from, at(from)), (to, at(to)), l4)
                });
                if verdicts[0] != verdicts[1] {
                    expected.insert((p, q, l4, (verdicts[0], verdicts[1])));
                }
            }
        }
        assert_eq!(changed, expected, "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_is_what_changes(seed: u64, allow: bool) {
        check(seed, if allow { PodToOwnNode::Allow } else { PodToOwnNode::Enforce });
    }
}
