//! Peer sets as kernel ipsets: the plan against the real kernel, in network namespaces of the tests' own.
#![cfg(feature = "ipset")]

mod common;

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

#[path = "../../weir-dataplane/tests/common/costs.rs"]
mod costs;

#[path = "../../weir-dataplane/tests/common/busy.rs"]
mod busy;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::Command;

use common::{attachments, in_netns};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use weir_agent::backend::SetBackend;
use weir_agent::kernel::{Done, Kernel, cleanup};
use weir_compiler::object::*;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::ipset::{Ipset, Ipsets};
use weir_dataplane::model::{Expr, Table};
use weir_dataplane::{Planner, Port, Ports, Settings, TABLES};
use weir_nft::Nft;
use world::batches;

/// Tables and ipsets, with the versions of ipsets left out of their names: of each, there is one.
type State = (Vec<Table>, BTreeMap<String, Ipset>);

fn without_versions((mut tables, ipsets): State) -> State {
    let start = |name: &String| name[..name.len() - 1].to_owned();
    for table in &mut tables {
        let rules = table.chains.values_mut().flat_map(|chain| &mut chain.rules);
        for expr in rules.flat_map(|rule| &mut rule.exprs) {
            if let Expr::Ipset { set, .. } = expr {
                *set = start(set);
            }
        }
    }
    let count = ipsets.len();
    let ipsets: BTreeMap<String, Ipset> = ipsets.into_iter().map(|(name, set)| (start(&name), set)).collect();
    assert_eq!(ipsets.len(), count, "two versions of a set");
    (tables, ipsets)
}

fn installed() -> State {
    let mut nft = Nft::open().unwrap();
    let tables = TABLES.iter().filter_map(|(family, name)| nft.dump(*family, name).unwrap()).collect();
    without_versions((tables, nft.ipsets().unwrap()))
}

fn planned(planner: &Planner) -> State {
    let (plan, none) = (planner.tables(), Ipsets::default());
    without_versions((none.tables(&plan), none.ipsets(&plan)))
}

fn nothing() -> State {
    Default::default()
}

/// What is known of ports: with any of them there is a table of bridges.
fn ports(planner: &Planner, seed: u64) -> Ports {
    let mut all = Ports::default();
    for (i, key) in planner.slice().pods.keys().enumerate() {
        match seed >> (2 * i % 62) & 7 {
            0 => drop(all.unknown_own.insert(format!("veth{i}"))),
            1 => {
                let link_local = ["fe80::1".parse().unwrap()].into();
                let port = Port { name: format!("port{i}"), mac: [2; 6], link_local };
                all.pods.insert(key.clone(), port);
            }
            _ => {}
        }
    }
    all
}

/// The agent calls sync again after that time.
fn tidy(kernel: &mut Kernel, planner: &Planner) {
    for _ in 0..100 {
        let Some(pause) = kernel.retry_after() else { return };
        std::thread::sleep(pause);
        assert_eq!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
    }
    panic!("something stays: {}", sh("ipset list -t; nft list ruleset"));
}

fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
#[ignore = "needs root"]
fn the_kernel_holds_the_plan_after_every_change() {
    in_netns(|| {
        let kernel = RefCell::new(Kernel::with(SetBackend::Ipset).unwrap());
        let mut runner = TestRunner::new(world::cases(60));
        let events = prop_oneof![batches(8), busy::busy()];
        let cases = (
            events,
            proptest::collection::vec(prop_oneof![Just(0xaaaa_aaaa_aaaa_aaaa), any::<u64>()], 8),
            costs::costs(),
        );
        runner
            .run(&cases, |(batches, seeds, costs)| {
                let mut kernel = kernel.borrow_mut();
                let mut compiler = Compiler::new(Scope::Node("n1".into()));
                let revoked_mark = std::num::NonZeroU32::new(0x1000);
                let close_unknown = true;
                let settings = Settings { costs, close_unknown, revoked_mark, ..Settings::default() };
                let mut planner = Planner::with(settings);
                planner.take();
                kernel.doubt(); // what the last case left is an installed state like any other
                kernel.sync(&planner.tables(), Vec::new()).unwrap();
                for (batch, seed) in batches.into_iter().zip(seeds) {
                    for delta in compiler.apply(batch).slices {
                        planner.update(&delta.changes);
                    }
                    planner.attach(attachments(&planner, seed));
                    planner.ports(ports(&planner, seed));
                    if seed % 16 == 5 {
                        planner.drop_mid_stream(true); // from then on
                    }
                    let pending = planner.take();
                    let done = kernel
                        .sync(&planner.tables(), pending)
                        .map_err(|e| TestCaseError::fail(format!("{e}\n{}", planner.table())))?;
                    prop_assert_eq!(matches!(done, Done::Applied { compared: true, .. }), false);
                    tidy(&mut kernel, &planner);
                    prop_assert_eq!(installed(), planned(&planner));
                }
                kernel.doubt();
                prop_assert_eq!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
                let mut restarted = Kernel::with(SetBackend::Ipset).unwrap();
                prop_assert_eq!(restarted.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        cleanup().unwrap();
        assert_eq!(installed(), nothing());
        assert_eq!(sh("ipset list -n; nft list ruleset"), "");
        cleanup().expect("twice is no error");
    });
}

/// Two pods, one of them isolated but for the other; and a CIDR.
const EVENTS: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

fn small_plan() -> Planner {
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let pod = |i: usize| world::plain_pod(ObjectKey::new("a", format!("p{i}")), EVENTS[i]);
    let all = || Peer { pod_selector: Some(LabelSelector::default()), ..Default::default() };
    let block = IpBlock { cidr: "0.0.0.0/0".into(), except: vec!["10.0.0.0/8".into()], ..Default::default() };
    let outside = Peer { ip_block: Some(block), ..Default::default() };
    let spec = PolicySpec {
        policy_types: vec!["Ingress".into()],
        ingress: vec![IngressRule { from: vec![all(), outside], ..Default::default() }],
        ..Default::default()
    };
    let policy = Policy { namespace: "a".into(), name: "p".into(), created: 0, audit: None, spec };
    let mut planner = Planner::new();
    for delta in compiler.apply(vec![Event::Policy(policy), Event::Pod(pod(0)), Event::Pod(pod(1))]).slices {
        planner.update(&delta.changes);
    }
    planner.take();
    planner
}

#[test]
#[ignore = "needs root"]
fn a_change_of_backends_is_one_commit_and_leaves_nothing() {
    in_netns(|| {
        let planner = small_plan();
        sh("nft add table ip theirs; ipset create theirs hash:ip");
        let generation = || Nft::open().unwrap().generation().unwrap();
        let named = || (vec![planner.table().clone()], BTreeMap::new());
        for backend in [SetBackend::Nft, SetBackend::Ipset, SetBackend::Nft, SetBackend::Ipset] {
            let before = generation();
            let mut kernel = Kernel::with(backend).unwrap();
            assert!(matches!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Applied { .. }));
            // a commit is what packets see at once: so there is no moment without rules
            assert_eq!(generation(), before + 1, "{backend:?}");
            tidy(&mut kernel, &planner);
            let wanted = if backend == SetBackend::Nft { named() } else { planned(&planner) };
            assert_eq!(installed(), wanted, "{backend:?}");
            let before = generation();
            let mut again = Kernel::with(backend).unwrap();
            assert_eq!(again.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
            assert_eq!(generation(), before, "a start without change commits nothing");
        }
        cleanup().unwrap();
        assert_eq!(installed(), nothing());
        assert_eq!(sh("ipset list -n; nft list tables"), "theirs\ntable ip theirs\n");
    });
}

#[test]
#[ignore = "needs root"]
fn what_others_did_to_tables_and_ipsets_is_mended() {
    in_netns(|| {
        let planner = small_plan();
        let mut kernel = Kernel::with(SetBackend::Ipset).unwrap();
        kernel.sync(&planner.tables(), Vec::new()).unwrap();
        sh("ipset create theirs hash:ip; ipset add theirs 192.0.2.1");
        let pods = "$(ipset list -n | grep weir_p4)";
        let cidrs = "$(ipset list -n | grep weir_c4)";
        for damage in [
            format!("ipset add {pods} 192.0.2.1"),
            format!("ipset del {pods} 10.0.0.1"),
            format!("ipset del {pods} 10.0.0.1; ipset add {pods} 192.0.2.1"),
            format!("ipset flush {cidrs}"),
            format!("ipset flush {pods}; nft flush chain ip weir forward"),
            "nft delete table ip weir".into(),
            "nft flush ruleset".into(),
            // all at once: rules and sets
            "nft flush ruleset; for i in $(seq 50); do ipset destroy $(ipset list -n | grep weir_p4) && break; sleep 0.05; done".into(),
            // another set in its place, which is not what it says
            format!("s={pods}; ipset create other hash:ip timeout 9; ipset swap $s other 2>/dev/null || true; ipset destroy other || true"),
            // left by one that was killed
            "ipset create weir_p4_0000000000000000000000a hash:ip".into(),
            "nft insert rule ip6 weir forward drop".into(),
        ] {
            let theirs = sh("ipset save theirs");
            sh(&damage);
            if installed_is(&planner) {
                continue; // the kernel did not let them
            }
            kernel.doubt();
            let done = kernel.sync(&planner.tables(), Vec::new()).unwrap();
            assert!(matches!(done, Done::Applied { compared: true, .. }), "{damage}");
            tidy(&mut kernel, &planner);
            assert_eq!(installed(), planned(&planner), "{damage}");
            assert_eq!(sh("ipset save theirs"), theirs);
            kernel.doubt();
            assert_eq!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing, "{damage}");
        }
    });
}

fn installed_is(planner: &Planner) -> bool {
    let mut nft = Nft::open().unwrap();
    nft.ipset_names().unwrap().len() == planned(planner).1.len() && installed() == planned(planner)
}

#[test]
#[ignore = "needs root"]
fn an_ipset_that_somebody_else_uses_does_not_hold_up_anything() {
    in_netns(|| {
        let planner = small_plan();
        let mut kernel = Kernel::with(SetBackend::Ipset).unwrap();
        kernel.sync(&planner.tables(), Vec::new()).unwrap();
        sh(
            "iptables-legacy -A OUTPUT -m set --match-set $(ipset list -n | grep weir_p4) dst -j ACCEPT 2>/dev/null \
            || iptables-nft -A OUTPUT -m set --match-set $(ipset list -n | grep weir_p4) dst -j ACCEPT",
        );
        let empty = Planner::new();
        kernel.doubt();
        kernel.sync(&empty.tables(), Vec::new()).unwrap();
        tidy(&mut kernel, &empty);
        assert_eq!(sh("ipset list -n | wc -l").trim(), "1", "it is in use");
        // the same set again, beside the one that stays
        kernel.doubt();
        kernel.sync(&planner.tables(), Vec::new()).unwrap();
        tidy(&mut kernel, &planner);
        assert_eq!(installed(), planned(&planner));
    });
}
