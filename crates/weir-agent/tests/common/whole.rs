//! What holds of a slice at each step.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use weir_compiler::slice::{Change, NodeSlice};

/// Applies changes one by one: what each refers to is there, and still is when what names it goes; no member
/// comes or goes twice.
pub fn check_each(slice: &mut NodeSlice, changes: &[Change]) {
    for change in changes {
        if let Change::Members { id, added, removed } = change {
            let members = &slice.peer_sets[id].members;
            assert!(added.iter().all(|m| !members.contains(m)), "added twice: {change:?}");
            assert!(removed.iter().all(|m| members.contains(m)), "removed what is not there: {change:?}");
        }
        slice.apply([change]);
        assert_whole(slice);
    }
}

fn assert_whole(slice: &NodeSlice) {
    for pod in slice.pods.values() {
        assert!(slice.profiles.contains_key(&pod.profile));
    }
    for profile in slice.profiles.values() {
        let rulesets = [profile.ingress, profile.egress].into_iter().flatten();
        assert!(rulesets.into_iter().all(|ruleset| slice.rulesets.contains_key(&ruleset)));
    }
    for ruleset in slice.rulesets.values() {
        assert!(ruleset.entries.iter().all(|entry| slice.rules.contains_key(&entry.rule)));
    }
    for rule in slice.rules.values() {
        assert!(slice.port_sets.contains_key(&rule.ports));
        assert!(rule.peers.iter().flatten().all(|peers| slice.peer_sets.contains_key(peers)));
    }
}
