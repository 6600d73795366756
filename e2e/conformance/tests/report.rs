//! The three forms of a report, as they are written.

use std::time::Duration;

use weir_conformance::report::{Difference, Outcome, Report, Run, Status, json, junit, text};

fn report() -> Report {
    let mut passed = Outcome::new("netpol", "deny-ingress", &["N1", "N2"], true);
    passed.checks = 108;
    passed.seconds = Duration::from_millis(5432);
    passed.settled_ms = vec![12, 340];
    let mut failed = Outcome::new("netpol", "numbers", &["N50"], true);
    failed.checks = 324;
    failed.seconds = Duration::from_secs(12);
    failed.differences = vec![Difference {
        phase: "UDP".into(),
        from: "x/a".into(),
        to: "x/b".into(),
        port: "8080/TCP".into(),
        address: "10.244.2.7".into(),
        expected: "drop".into(),
        why: "ingress: x/b is isolated by x/p and no clause allows it".into(),
        observed: "answered by \"x-b\" <&>\u{1}".into(),
    }];
    failed.notes = vec!["a note".into()];
    let failed = failed.judged(false);
    let mut observed = Outcome::new("netpol", "pods-to-nodes", &["N72"], false);
    observed.differences = failed.differences.clone();
    let observed = observed.judged(false);
    let skipped = Outcome::new("netpol", "sctp", &["N50"], true).skipped("the nodes do not serve SCTP");
    let unable = Outcome::new("probes", "http", &["N71"], true).unable("no route to the API server");
    Report {
        run: Run {
            suite: "1.2.3".into(),
            kubernetes: "v1.36.3".into(),
            nodes: vec!["node1".into(), "node2".into()],
            families: vec!["IPv4".into()],
            sctp: false,
            profiles: vec!["netpol".into(), "probes".into()],
            suffix: "bcdfg".into(),
            seed: 7,
            seconds: Duration::from_millis(61_250),
        },
        cases: vec![passed, failed, observed, skipped, unable],
    }
}

#[test]
fn for_people() {
    let report = report();
    let cases: String = report.cases.iter().map(text::case).collect();
    insta::assert_snapshot!(cases + &text::summary(&report));
}

#[test]
fn for_ci() {
    insta::assert_snapshot!(junit::document(&report()));
}

#[test]
fn for_programs() {
    insta::assert_snapshot!(format!("{:#}", json::document(&report())));
}

#[test]
fn exit_codes() {
    let mut report = report();
    assert_eq!(report.exit_code(), 1, "something failed");
    report.cases.retain(|c| c.status != Status::Failed);
    assert_eq!(report.exit_code(), 2, "something could not be tried");
    report.cases.retain(|c| c.status != Status::Unable);
    assert_eq!(report.exit_code(), 0, "observed and skipped are no failure");
    report.cases.retain(|c| c.status == Status::Skipped);
    assert_eq!(report.exit_code(), 2, "nothing was tried");
}

/// What the API leaves open fails only where it was asked to.
#[test]
fn strictness() {
    let differing = |required: bool| {
        let mut outcome = Outcome::new("netpol", "x", &[], required);
        outcome.differences = report().cases[1].differences.clone();
        outcome
    };
    assert_eq!(differing(true).judged(false).status, Status::Failed);
    assert_eq!(differing(false).judged(false).status, Status::Observed);
    assert_eq!(differing(false).judged(true).status, Status::Failed);
}
