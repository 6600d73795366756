//! Limits on how rulesets are written, for tests of every way of it.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use proptest::prelude::*;
use weir_dataplane::{Costs, DenialLog};

/// Every way of writing a ruleset: nothing in a row, all merged, and what is between.
pub fn costs() -> impl Strategy<Value = Costs> {
    let plenty = || prop_oneof![Just(0usize), Just(1), Just(2), Just(usize::MAX / 2)];
    let some = (0usize..20, plenty(), plenty(), prop_oneof![Just(1usize), Just(4), Just(1_000_000)]);
    let some = some.prop_map(|(in_a_row, pod_sets, cidr_sets, growth)| Costs {
        in_a_row,
        pod_sets,
        cidr_sets,
        growth,
    });
    prop_oneof![Just(Costs::default()), some]
}

/// Whether denials are told, by a coin of the costs': it changes no verdict.
pub fn log_of(costs: Costs) -> Option<DenialLog> {
    costs.pod_sets.is_multiple_of(2).then(DenialLog::default)
}
