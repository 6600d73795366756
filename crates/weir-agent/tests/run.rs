//! The agent's loop in a network namespace of the test's own: what makes it act.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use weir_agent::backend::SetBackend;
use weir_agent::run::{Options, Source, run};
use weir_dataplane::TABLE;
use weir_dataplane::model::{Family, Table};
use weir_nft::Nft;

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {nodeName: n}, status: {podIP: 10.0.0.1}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: a}, spec: {policyTypes: [Egress]}}
";

fn sh(command: &str) {
    assert!(Command::new("sh").args(["-ec", command]).status().unwrap().success(), "{command}");
}

/// Far less than the minute after which the agent compares without being told.
fn soon(what: &str, holds: impl Fn(Option<Table>) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap()) {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root"]
fn links_routes_and_what_others_did_to_the_table_are_followed_by_events() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, and the right to make network namespaces");
    let folder = std::env::temp_dir().join(format!("weir-agent-run-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cluster.yaml"), CLUSTER).unwrap();
    let options = Options {
        node: "n".into(),
        source: Source::Manifests(folder.clone()),
        budgets: weir_compiler::Budgets::default(),
        settings: Default::default(),
        cni_results: folder.join("no-results"),
        mid_stream_grace: Duration::ZERO,
        sets: SetBackend::Nft,
        state: folder.join("no-state"),
        isolate_after_reboot: None,
        denials: None,
        metrics: None,
    };
    // a thread begins in the namespace of the one that made it
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(options)).unwrap();
    });
    let elements = |table: Option<Table>, map: &str| table.map_or(0, |t| t.sets[map].elements.len());
    let by = |address: usize, interface: usize| {
        move |table: Option<Table>| {
            elements(table.clone(), "egress_by_address_4") == address
                && elements(table, "egress_by_interface") == interface
        }
    };
    soon("without a route, dispatch is by address", by(1, 0));
    sh(
        "ip link add v type veth peer name w; ip link set v up; ip link set w up; ip route add 10.0.0.1/32 dev v",
    );
    soon("with a route of its own, by interface", by(0, 1));
    let whole = Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap();
    for damage in [
        "delete table inet weir",
        "flush ruleset",
        "flush chain inet weir forward",
        "flush map inet weir egress_by_interface",
        "add rule inet weir input drop",
    ] {
        sh(&format!("nft '{damage}'"));
        soon(damage, |table| table == whole);
    }
    sh("ip link del v");
    soon("without the interface, by address", by(1, 0));
    std::fs::remove_dir_all(folder).unwrap();
}
