//! What random tests found, kept by hand.

mod common;

use weir_compiler::object::*;
use weir_compiler::{Compiler, Scope};

fn policy(name: &str, spec: PolicySpec) -> Event {
    Event::Policy(Policy { namespace: "b".into(), name: name.into(), created: 0, audit: None, spec })
}

/// A selection lost its last policy and got another in the same batch: pods stayed open.
#[test]
fn a_selection_that_changes_hands_within_a_batch_still_isolates() {
    let mut compiler = Compiler::new(Scope::AllNodes);
    let pod = common::plain_pod(ObjectKey::new("b", "p"), "10.0.0.1");
    compiler.apply([Event::Pod(pod), policy("p2", PolicySpec::default())]);
    let elsewhere = LabelSelector { match_labels: [("x".into(), "y".into())].into(), ..Default::default() };
    compiler.apply([
        policy("p2", PolicySpec { pod_selector: elsewhere, ..Default::default() }),
        policy("p1", PolicySpec::default()),
    ]);
    let slice = compiler.slice("n");
    let profile = &slice.profiles[&slice.pods[&ObjectKey::new("b", "p")].profile];
    assert!(profile.ingress.is_some());
    assert_eq!(slice.policies_of(profile), [&ObjectKey::new("b", "p1")]);
}
