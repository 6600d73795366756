//! Agents and packets: the examples do what their tables say, and no change opens or closes what it should not.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{objects, with_agents};
use weir_lab::expectation::Expectation;
use weir_lab::objects::Objects;
use weir_lab::ports::Port;
use weir_lab::probe::Flow;
use weir_lab::watch::{Counts, Watch};

#[test]
#[ignore = "needs root"]
fn every_example_does_what_its_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-examples");
    let mut examples: Vec<_> = std::fs::read_dir(&folder)
        .expect("policy-examples")
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|p| p.is_dir()))
        .collect();
    examples.sort();
    assert!(examples.len() >= 20, "{examples:?}");
    for example in examples {
        let text = std::fs::read_to_string(example.join("expected.txt")).expect("expected.txt");
        let table = Expectation::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", example.display()));
        assert!(!table.is_empty(), "{} has no table", example.display());
        let (objects, notes) = Objects::read(std::slice::from_ref(&example)).expect("manifests");
        assert_eq!(notes, Vec::<String>::new(), "{}", example.display());
        let mut t = with_agents(objects);
        let report = t.lab.report(&table.ports().into_iter().collect::<Vec<_>>()).expect("a report");
        assert!(!report.differs(), "{}\n{:?}\n{}", example.display(), report.notes, report.table(false));
        assert_eq!(table.compare(&report), Vec::<String>::new(), "{}", example.display());
    }
}

const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, labels: {app: other}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, labels: {app: other}}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n1}}
";

/// Lets `web` in at 80, and something else besides that changes with every edit.
fn policy(edit: u16) -> Objects {
    let other = 1000 + edit;
    objects(&format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
    ports: [{{port: 80}}, {{port: 80, protocol: UDP}}]
  - from: [{{ipBlock: {{cidr: 198.51.{}.0/24}}}}]
    ports: [{{port: {other}}}]
",
        edit % 256
    ))
}

/// Denied and allowed flows, each tried hundreds of times a second from fresh sockets, while policies are edited
/// and agents are killed and started again: none of the denied passes, all of the allowed pass.
#[test]
#[ignore = "needs root"]
fn never_a_moment_without_rules() {
    let mut cluster = objects(SHOP);
    cluster.overlay(policy(0));
    let mut t = with_agents(cluster);
    let ports: Vec<Port> = ["80/TCP", "80/UDP"].map(|p| p.parse().expect("a port")).to_vec();
    let before = t.lab.report(&ports).expect("a report");
    assert!(!before.differs(), "{}", before.table(false));

    let pods = t.lab.cluster().pods.clone();
    let to_db = |flow: &Flow| pods[flow.to].key.name == "db";
    let flows: Vec<Flow> = t.lab.flows(&ports).into_iter().filter(to_db).collect();
    assert_eq!(flows.len(), 6);
    let every = Duration::from_millis(4);
    let watches: Vec<(bool, Watch)> = flows
        .iter()
        .map(|flow| {
            let allowed = pods[flow.from].key.name == "web";
            // Silence of the denied is cheap to wait for; that of the allowed must not be the machine's load.
            let patience = Duration::from_millis(if allowed { 900 } else { 200 });
            (allowed, Watch::start(&t.lab, flow, every, patience).expect("a watch"))
        })
        .collect();
    for edit in 1..=40u16 {
        t.lab.apply(policy(edit)).expect("an edit");
        std::thread::sleep(Duration::from_millis(30));
        if edit % 8 == 0 {
            t.lab.restart_agent("n1").expect("the agent comes back");
        }
    }
    // Other policies selecting the same pod come and go, and neither opens nor closes anything.
    for _ in 0..5 {
        let deny = objects(
            "{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: all}, \
             spec: {podSelector: {}, policyTypes: [Ingress]}}",
        );
        t.lab.apply(deny.clone()).expect("deny all");
        std::thread::sleep(Duration::from_millis(50));
        t.lab.delete(&deny).expect("no deny all");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (flow, (allowed, watch)) in flows.iter().zip(watches) {
        let Counts { passed, silent, wrong } = watch.stop().expect("counts");
        let name = format!(
            "{} -> db {}: {passed} passed, {silent} silent, {wrong} wrong",
            pods[flow.from].key, flow.port
        );
        assert!(passed + silent > 100, "{name}: too few to tell");
        assert_eq!(if allowed { silent + wrong } else { passed + wrong }, 0, "{name}");
    }
    let after = t.lab.report(&ports).expect("a report");
    assert!(!after.differs(), "{}", after.table(false));
}

/// What the last edit says is what packets do.
#[test]
#[ignore = "needs root"]
fn an_edit_takes_effect() {
    let mut cluster = objects(SHOP);
    cluster.overlay(policy(0));
    let mut t = with_agents(cluster);
    let deny = "{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: db}, \
                spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}}";
    t.lab.apply(objects(deny)).expect("an edit");
    let report = t.lab.report(&[]).expect("a report");
    assert!(!report.differs(), "{}", report.table(false));
    assert!(report.rows.iter().filter(|r| r.to.name == "db").all(|r| !r.observed()));
    t.lab.delete(&objects(deny)).expect("the policy goes");
    let report = t.lab.report(&[]).expect("a report");
    assert!(!report.differs(), "{}", report.table(false));
    assert!(report.rows.iter().all(|r| r.observed()));
}

/// The instrument itself: were there a moment without rules, the watch would see it.
#[test]
#[ignore = "needs root"]
fn a_moment_without_rules_would_be_seen() {
    let mut cluster = objects(SHOP);
    cluster.overlay(policy(0));
    let mut t = with_agents(cluster);
    let port: Port = "80/UDP".parse().expect("a port");
    t.lab.listen(&[port]).expect("listeners");
    let pods = t.lab.cluster().pods.clone();
    let denied = |flow: &Flow| pods[flow.from].key.name == "near" && pods[flow.to].key.name == "db";
    let flow = t.lab.flows(&[port]).into_iter().find(denied).expect("near -> db");
    let watch =
        Watch::start(&t.lab, &flow, Duration::from_millis(4), Duration::from_millis(200)).expect("a watch");
    std::thread::sleep(Duration::from_millis(100));
    t.lab.agents().get_mut("n1").expect("an agent").kill().expect("killed");
    let node = t.lab.netns("n1").expect("n1");
    let flush = || Ok(std::process::Command::new("nft").args(["flush", "ruleset"]).status()?);
    assert!(node.run(flush).expect("nft runs").success());
    std::thread::sleep(Duration::from_millis(20));
    t.lab.restart_agent("n1").expect("the agent comes back");
    std::thread::sleep(Duration::from_millis(100));
    let counts = watch.stop().expect("counts");
    assert!(counts.passed > 0 && counts.silent > 20, "{counts:?}");
}
