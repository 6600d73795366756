//! The scenarios of this repository, over several kinds of links; and the instruments that they rely on.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{objects, start, with_agents};
use weir_lab::agent;
use weir_lab::network::{Links, PodLinks};
use weir_lab::objects::Family;
use weir_lab::ports::Port;
use weir_lab::probe::Flow;
use weir_lab::scenario::{self, Scenario, StepResult};
use weir_lab::watch::Watch;

fn ports(names: &[&str]) -> Vec<Port> {
    names.iter().map(|p| p.parse().expect("a port")).collect()
}

fn play(links: Option<&str>, skip: &[&str]) {
    let links: Option<Links> = links.map(|l| l.parse().expect("links"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    for file in scenario::files(&[folder]).expect("scenarios") {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        if skip.contains(&name.as_str()) {
            continue;
        }
        let scenario = Scenario::read(&file).expect("a scenario");
        let dir = tempfile::tempdir().expect("a folder");
        let agent = Some(agent::find().expect("cargo build -p weir-agent"));
        let played = scenario.play(agent, dir.path().to_owned(), links.as_ref(), |_| {});
        let steps = played.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        if let Some(StepResult { name: step, report, wrong, .. }) = steps.iter().find(|step| !step.is_good())
        {
            panic!(
                "{name}, {links:?}, step {step:?}: {wrong:?}\n{:?}\n{}",
                report.notes,
                report.table(false)
            );
        }
        assert_eq!(steps.len(), scenario.steps.len());
    }
}

#[test]
#[ignore = "needs root"]
fn every_scenario_as_it_is_written() {
    play(None, &[]);
}

#[test]
#[ignore = "needs root"]
fn every_scenario_over_calico_links() {
    play(Some("calico"), &[]);
}

/// A bridge drops what is too large for a port of it, and tells nobody: no scenario of path MTU there.
#[test]
#[ignore = "needs root"]
fn every_scenario_over_bridges_and_mixed_nodes() {
    play(Some("kubenet"), &["path-mtu"]);
    play(Some("bridged,n2=azure"), &[]);
}

/// A scenario whose table is wrong ends at that step, with exit code 1.
#[test]
#[ignore = "needs root"]
fn what_the_table_has_otherwise_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("a.yaml");
    let text = "{name: t, ports: [80/TCP], objects: [{kind: Pod, metadata: {name: a}}, {kind: Pod, metadata: \
                {name: b}}], steps: [{name: one, expect: \"80/TCP b\\na drop\"}, {name: two}]}";
    std::fs::write(&file, text).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
    let output = command.args(["scenario", "--no-agent"]).arg(&file).output().expect("weir-lab runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("default/a -> default/b 80/TCP: must be dropped, passes"), "{said}");
    assert!(!said.contains("two"), "{said}");
}

const TWO_PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {nodeName: n2}}
";

/// Were path MTU errors (N93) or fragments (N94) lost on the way, the probes would see it.
#[test]
#[ignore = "needs root"]
fn lost_path_mtu_errors_and_fragments_would_be_seen() {
    for (rule, port) in [
        (
            "icmp type destination-unreachable drop; add rule inet x f icmpv6 type packet-too-big drop",
            "80/UDP:1400",
        ),
        ("ip frag-off & 0x1fff != 0 drop; add rule inet x f exthdr frag exists drop", "80/UDP:6000"),
    ] {
        let mut t = start(objects(TWO_PODS), None, PodLinks::Routed, Some(Family::Dual));
        t.lab.set_mtu("b", 1300).expect("an MTU");
        let before = t.lab.report(&ports(&["80/UDP", port])).expect("a report");
        assert!(!before.differs(), "{port}\n{}", before.table(false));
        let mut t = start(objects(TWO_PODS), None, PodLinks::Routed, Some(Family::Dual));
        t.lab.set_mtu("b", 1300).expect("an MTU");
        // Before connection tracking puts datagrams together, if anybody asks it to.
        let rules = format!(
            "add table inet x; add chain inet x f {{ type filter hook prerouting priority -500; }}; \
             add rule inet x f {rule}"
        );
        let node = t.lab.netns("n1").expect("n1");
        assert!(node.run(|| Ok(Command::new("nft").arg(&rules).status()?)).expect("nft runs").success());
        let report = t.lab.report(&ports(&["80/UDP", port])).expect("a report");
        let differing: Vec<String> =
            report.rows.iter().filter(|r| r.differs()).map(|r| format!("{} {}", r.from, r.port)).collect();
        assert!(differing.contains(&format!("default/a {port}")), "{port}: {differing:?}");
        assert!(!differing.contains(&"default/a 80/UDP".into()), "{port}: {differing:?}");
        // In both families, each by itself.
        let row = report.rows.iter().find(|r| r.differs()).expect("a row");
        assert!(row.families.values().all(|answer| !answer.observed), "{port}: {:?}", row.families);
    }
}

/// SCTP is told apart from nothing at all, and port from port.
#[test]
#[ignore = "needs root"]
fn sctp_and_echo_that_are_dropped_are_seen() {
    let mut t = start(objects(TWO_PODS), None, PodLinks::Routed, Some(Family::Dual));
    let rules = "add table inet x; add chain inet x f { type filter hook forward priority 0; }; \
                 add rule inet x f sctp dport 9 drop; add rule inet x f ip daddr 10.244.1.2 icmp type echo-request drop";
    let node = t.lab.netns("n1").expect("n1");
    assert!(node.run(|| Ok(Command::new("nft").arg(rules).status()?)).expect("nft runs").success());
    let report = t.lab.report(&ports(&["9/SCTP", "10/SCTP", "ICMP"])).expect("a report");
    let passing: Vec<String> = report
        .rows
        .iter()
        .filter(|r| r.observed())
        .map(|r| format!("{}>{} {}", r.from.name, r.to.name, r.port))
        .collect();
    assert_eq!(passing, ["a>b 10/SCTP", "b>a 10/SCTP", "a>b ICMP"], "{}", report.table(false));
}

/// 30 pods on 3 nodes with agents and policies. It prints the times (goals: up in 3 s, the table in 2 s).
#[test]
#[ignore = "needs root"]
fn thirty_pods_on_three_nodes() {
    let mut yaml = String::new();
    for n in 0..30 {
        let app = ["web", "api", "db"][n % 3];
        yaml += &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{n}, labels: {{app: {app}}}}}, spec: {{nodeName: n{}}}}}\n---\n",
            n / 10
        );
    }
    for (app, peer) in [("web", "api"), ("api", "web"), ("db", "api")] {
        yaml += &format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {app}}}, spec: {{podSelector: \
             {{matchLabels: {{app: {app}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}], \
             ports: [{{port: 80}}]}}]}}}}\n---\n"
        );
    }
    let began = Instant::now();
    let mut t = with_agents(objects(&yaml));
    let up = began.elapsed();
    let began = Instant::now();
    let report = t.lab.report(&[]).expect("a report");
    let table = began.elapsed();
    println!("30 pods up in {up:?}, {} flows in {table:?}", report.rows.len());
    assert!(!report.differs(), "{}", report.table(false));
    assert_eq!(report.rows.len(), 30 * 29 * 4);
}

/// While a pod's interface vanishes and returns, again and again, nothing gets to it that may not.
#[test]
#[ignore = "needs root"]
fn nothing_slips_through_while_interfaces_come_and_go() {
    let cluster = "
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far}, spec: {nodeName: n2}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec: {podSelector: {matchLabels: {app: db}},
 ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
";
    for links in [PodLinks::Calico, PodLinks::Kubenet] {
        let agent = Some(agent::find().expect("cargo build -p weir-agent"));
        let mut t = start(objects(cluster), agent, links, Some(Family::Dual));
        let port = ports(&["80/UDP"]);
        t.lab.listen(&port).expect("listeners");
        let pods = t.lab.cluster().pods.clone();
        let name = |end: usize| pods[end].key.name.as_str();
        let flows: Vec<Flow> = t.lab.flows(&port).into_iter().filter(|f| name(f.to) == "db").collect();
        let watches: Vec<Watch> = flows
            .iter()
            .map(|flow| {
                let (every, patience) = (Duration::from_millis(5), Duration::from_millis(200));
                Watch::start(&t.lab, flow, every, patience).expect("a watch")
            })
            .collect();
        for _ in 0..12 {
            std::thread::sleep(Duration::from_millis(40));
            t.lab.replug("db").expect("the interface comes back");
        }
        std::thread::sleep(Duration::from_millis(300));
        for (flow, watch) in flows.iter().zip(watches) {
            let counts = watch.stop().expect("counts");
            let what =
                format!("{links}: {} -> {} {}: {counts:?}", name(flow.from), name(flow.to), flow.destination);
            let allowed = name(flow.from) == "web";
            assert_eq!(counts.passed > 0, allowed, "{what}");
            assert!(allowed || counts.silent > 50, "{what}: too few to tell");
        }
    }
}
