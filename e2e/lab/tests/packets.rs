//! The lab by itself, without agents: packets reach whom they should, and what differs is seen.

mod common;

use std::process::Command;

use common::{objects, start};
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::ports::Port;

const FOUR_PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: h}, spec: {nodeName: n2, hostNetwork: true}}
";

fn ports(names: &[&str]) -> Vec<Port> {
    names.iter().map(|p| p.parse().expect("a port")).collect()
}

#[test]
#[ignore = "needs root"]
fn without_agents_everything_passes() {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        for family in [Family::Ipv4, Family::Ipv6, Family::Dual] {
            let mut t = start(objects(FOUR_PODS), None, links, Some(family));
            let report = t.lab.report(&ports(&["80/TCP", "53/UDP"])).expect("a report");
            assert_eq!(report.rows.len(), 2 * 12);
            let families = if family == Family::Dual { 2 } else { 1 };
            assert!(
                report
                    .rows
                    .iter()
                    .filter(|r| r.to.name != "h" && r.from.name != "h")
                    .all(|r| { r.families.len() == families && r.observed() })
            );
            assert!(!report.differs(), "{links:?} {family:?}\n{}", report.table(false));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_packet_that_does_not_do_what_policies_say_is_seen() {
    let mut t = start(objects(FOUR_PODS), None, PodLinks::Routed, Some(Family::Dual));
    let ports = ports(&["80/TCP", "80/UDP"]);
    let node = t.lab.netns("n1").expect("n1");
    let rules = "add table ip weir-test; add chain ip weir-test f { type filter hook forward priority 0; };\
                 add rule ip weir-test f ip daddr 10.244.1.3 tcp dport 80 drop";
    let nft = node.run(|| Ok(Command::new("nft").arg(rules).status()?)).expect("nft runs");
    assert!(nft.success());
    let report = t.lab.report(&ports).expect("a report");
    let differing: Vec<String> = report
        .rows
        .iter()
        .filter(|r| r.differs())
        .map(|r| format!("{}>{} {}", r.from, r.to, r.port))
        .collect();
    let to_b = ["a", "c", "h"].map(|from| format!("default/{from}>default/b 80/TCP"));
    assert_eq!(differing, to_b, "over IPv4 alone, and still seen\n{}", report.table(false));
}

#[test]
#[ignore = "needs root"]
fn pods_come_go_and_move() {
    let mut t = start(objects(FOUR_PODS), None, PodLinks::Bridged, None);
    let ports = ports(&["80/TCP", "80/UDP"]);
    assert!(!t.lab.report(&ports).expect("a report").differs());
    t.lab.delete(&objects("{apiVersion: v1, kind: Pod, metadata: {name: a}}")).expect("a goes");
    let moved = "{apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {nodeName: n3}, status: {podIP: 10.244.1.3}}\n---\n\
                 {apiVersion: v1, kind: Pod, metadata: {name: d}, spec: {nodeName: n2}, status: {podIP: 10.244.1.2}}";
    t.lab.apply(objects(moved)).expect("b moves, d takes a's address");
    let report = t.lab.report(&ports).expect("a report");
    assert_eq!(report.rows.len(), 2 * 12);
    assert!(!report.differs(), "{}", report.table(false));
}

#[test]
#[ignore = "needs root"]
fn the_command_prints_json_and_nothing_else_and_exits_with_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("a.yaml");
    let deny = "---\n{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: deny}, \
                spec: {podSelector: {}}}";
    std::fs::write(&file, format!("{FOUR_PODS}{deny}")).expect("a file");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
        command.args(["run", "--no-agent", "-o", "json", "-f"]).arg(&file).args(more);
        command.output().expect("weir-lab runs")
    };
    // Without agents all pass. What agrees with the policies is asked once, though, and on a busy machine a first
    // packet can be late: then the same again.
    let observed = |text: &str| text.matches("\"observed\": true").count();
    let (mut text, mut code) = (String::new(), None);
    for _ in 0..3 {
        let output = run(&["--port", "80/TCP"]);
        code = output.status.code();
        text = String::from_utf8(output.stdout).expect("text");
        // The pod on n2 is not host2's: only the own node passes ingress (N71).
        assert_eq!(text.matches("\"expected\": true").count(), 4, "{text}");
        if observed(&text) == 12 {
            break;
        }
    }
    assert_eq!((observed(&text), code), (12, Some(1)), "{text}");
    assert_eq!(run(&["--port", "80/ICMP"]).status.code(), Some(2));
}

/// Nothing is left of a lab that is killed: neither agents nor what they would hold.
#[test]
#[ignore = "needs root"]
fn agents_die_with_the_lab() {
    let dir = tempfile::tempdir().expect("a folder");
    let (manifest, agent, pids) =
        (dir.path().join("a.yaml"), dir.path().join("agent"), dir.path().join("pids"));
    std::fs::write(&manifest, FOUR_PODS).expect("a file");
    // Never ready: the lab waits for it until it is killed.
    std::fs::write(&agent, format!("#!/bin/sh\necho $$ >> {}\nexec sleep 60\n", pids.display()))
        .expect("a file");
    std::fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("executable");
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGKILL] {
        let _ = std::fs::remove_file(&pids);
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
        command.arg("run").arg("-f").arg(&manifest).arg("--agent").arg(&agent);
        let mut lab = command.spawn().expect("weir-lab runs");
        let read = || std::fs::read_to_string(&pids).unwrap_or_default();
        let started = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            read().lines().count() == 2
        });
        assert!(started, "two nodes, two agents");
        let id = i32::try_from(lab.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).expect("a signal");
        lab.wait().expect("it ends");
        for pid in read().lines() {
            let alive = || {
                let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                state.contains("(sleep)") && !state.contains(") Z ")
            };
            let gone = (0..200).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                !alive()
            });
            assert!(gone, "agent {pid} lives on after {signal}");
        }
    }
}
