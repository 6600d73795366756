//! The plan against the real kernel, in network namespaces of the tests' own.

mod common;

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

#[path = "../../weir-dataplane/tests/common/costs.rs"]
mod costs;

use std::cell::RefCell;
use std::io::Write;
use std::process::{Command, Stdio};

use common::{attachments, in_netns};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use weir_agent::kernel::{Done, Kernel, cleanup};
use weir_compiler::object::{Event, ObjectKey, Pod, Policy, PolicySpec};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::{Expr, Family, MetaKey, Reg, Rule, Table, Verdict};
use weir_dataplane::{Planner, Port, Ports, Settings, TABLE};
use weir_nft::Nft;
use world::batches;

fn dump() -> Option<Table> {
    Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap()
}

/// Feeds nft, which enters this thread's namespace as every child does.
fn nft(text: &str) {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft (package nftables)");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refused:\n{text}");
}

#[test]
#[ignore = "needs root"]
fn the_kernel_holds_the_plan_after_every_change() {
    in_netns(|| {
        let kernel = RefCell::new(Kernel::open().unwrap());
        let mut runner = TestRunner::new(world::cases(40));
        let cases = (batches(8), proptest::collection::vec(any::<u64>(), 8), costs::costs());
        runner
            .run(&cases, |(batches, seeds, costs)| {
                let mut kernel = kernel.borrow_mut();
                let mut compiler = Compiler::new(Scope::Node("n1".into()));
                let revoked_mark = std::num::NonZeroU32::new(0x1000);
                let mut planner = Planner::with(Settings {
                    costs,
                    revoked_mark,
                    log_denials: costs::log_of(costs),
                    ..Settings::default()
                });
                planner.take();
                kernel.doubt(); // what the last case left is an installed table like any other
                kernel.sync(&planner.tables(), Vec::new()).unwrap();
                for (batch, seed) in batches.into_iter().zip(seeds) {
                    for delta in compiler.apply(batch).slices {
                        planner.update(&delta.changes);
                    }
                    planner.attach(attachments(&planner, seed));
                    if seed % 4 == 0 {
                        planner.drop_mid_stream(true); // from then on
                    }
                    let pending = planner.take();
                    let done = kernel
                        .sync(&planner.tables(), pending)
                        .map_err(|e| TestCaseError::fail(format!("{e}\n{}", planner.table())))?;
                    prop_assert_eq!(matches!(done, Done::Applied { compared: true, .. }), false);
                    prop_assert_eq!(dump(), Some(planner.table().clone()));
                }
                // the text that `nft -f` reads makes the same table
                cleanup().unwrap();
                prop_assert_eq!(dump(), None);
                nft(&planner.table().to_string());
                prop_assert_eq!(dump(), Some(planner.table().clone()), "{}", planner.table());
                kernel.doubt();
                prop_assert_eq!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
    });
}

/// The table of bridges comes with the first port and goes with the last, in one batch with the other.
#[test]
#[ignore = "needs root"]
fn ports_of_bridges_have_a_table_of_their_own() {
    in_netns(|| {
        let config = world::cases(40);
        let wanted = config.cases as usize;
        let mut runner = TestRunner::new(config);
        let cases = (batches(6), proptest::collection::vec(any::<u64>(), 6));
        let kernel = RefCell::new(Kernel::open().unwrap());
        let bridge = || Nft::open().unwrap().dump(Family::Bridge, TABLE).unwrap();
        let tables = std::cell::Cell::new(0);
        runner
            .run(&cases, |(batches, seeds)| {
                let mut kernel = kernel.borrow_mut();
                let mut compiler = Compiler::new(Scope::Node("n1".into()));
                let settings = Settings { close_unknown: true, ..Settings::default() };
                let mut planner = Planner::with(settings);
                planner.take();
                kernel.doubt();
                kernel.sync(&planner.tables(), Vec::new()).unwrap();
                prop_assert_eq!(bridge(), None);
                // a pod of a policy that has its port, before whatever comes by chance
                let isolated = vec![Event::Policy(deny_all("a")), Event::Pod(pod_of_n1("a", "10.9.0.1"))];
                let first = (isolated, u64::MAX);
                for (batch, seed) in std::iter::once(first).chain(batches.into_iter().zip(seeds)) {
                    for delta in compiler.apply(batch).slices {
                        planner.update(&delta.changes);
                    }
                    planner.ports(ports(&planner, seed));
                    let pending = planner.take();
                    kernel
                        .sync(&planner.tables(), pending)
                        .map_err(|e| TestCaseError::fail(format!("{e}\n{}", planner.table())))?;
                    let plan = planner.tables().into_iter().find(|table| table.family == Family::Bridge);
                    let installed = bridge();
                    prop_assert_eq!(installed.as_ref(), plan);
                    tables.set(tables.get() + usize::from(plan.is_some()));
                    kernel.doubt();
                    prop_assert_eq!(kernel.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
                }
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(tables.get() >= wanted, "each case has a table to see: {}", tables.get());
        let listing = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(listing.status.success(), "nft can read it: {listing:?}");
        cleanup().unwrap();
        assert_eq!((dump(), bridge()), (None, None));
    });
}

fn deny_all(namespace: &str) -> Policy {
    let spec = PolicySpec { policy_types: vec!["Ingress".into()], ..Default::default() };
    Policy { namespace: namespace.into(), name: "deny-all".into(), created: 0, audit: None, spec }
}

fn pod_of_n1(namespace: &str, address: &str) -> Pod {
    let key = ObjectKey::new(namespace, "isolated");
    Pod { node: Some("n1".into()), ..world::plain_pod(key, address) }
}

/// Some pods have a port, and some ports no pod.
fn ports(planner: &Planner, seed: u64) -> Ports {
    let mut all = Ports::default();
    for (i, key) in planner.slice().pods.keys().enumerate() {
        let name = format!("veth{i}");
        match seed >> (2 * i % 62) & 3 {
            0 => {}
            1 => drop(all.unknown.insert(name)),
            2 => drop(all.unknown_own.insert(name)),
            _ => {
                let link_local = ["fe80::1".parse().unwrap()].into();
                let port = Port { name, mac: [2, 0, 0, 0, 1, i as u8], link_local };
                all.pods.insert(key.clone(), port);
            }
        }
    }
    all
}

#[test]
#[ignore = "needs root"]
fn a_start_without_change_commits_nothing() {
    in_netns(|| {
        let planner = Planner::new();
        let mut first = Kernel::open().unwrap();
        assert!(matches!(first.sync(&planner.tables(), Vec::new()).unwrap(), Done::Applied { .. }));
        let before = Nft::open().unwrap().generation().unwrap();
        let mut second = Kernel::open().unwrap();
        assert_eq!(second.sync(&planner.tables(), Vec::new()).unwrap(), Done::Nothing);
        assert_eq!(Nft::open().unwrap().generation().unwrap(), before);
    });
}

#[test]
#[ignore = "needs root"]
fn what_others_did_to_the_table_is_mended_and_their_own_is_not_touched() {
    in_netns(|| {
        let planner = Planner::new();
        let mut kernel = Kernel::open().unwrap();
        kernel.sync(&planner.tables(), Vec::new()).unwrap();
        let others = "table ip others { chain forward { type filter hook forward priority 0; counter accept; }; }\n\
                      table inet weird { set s { type ipv4_addr; elements = { 10.0.0.1 }; }; }\n";
        nft(others);
        let listing = || {
            let out = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        let foreign = |text: String| {
            text.split("table ")
                .filter(|t| !t.starts_with("inet weir {"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let before = foreign(listing());
        for damage in [
            "flush chain inet weir forward",
            "delete table inet weir",
            "add table inet weir { flags dormant; }",
            "add chain inet weir stray { type filter hook output priority 0; policy drop; }",
            "add element inet weir egress_by_interface { \"eth0\" : drop }",
            "insert rule inet weir input drop",
            // a table of Weir's that the plan has not (any more)
            "add table bridge weir { chain stray { type filter hook forward priority 0; }; }",
            "add table ip6 weir { chain stray { type filter hook forward priority 0; }; }",
            "flush ruleset",
        ] {
            nft(damage);
            if damage == "flush ruleset" {
                nft(others);
            }
            kernel.doubt();
            assert!(
                matches!(
                    kernel.sync(&planner.tables(), Vec::new()).unwrap(),
                    Done::Applied { compared: true, .. }
                ),
                "{damage}"
            );
            assert_eq!(dump().as_ref(), Some(planner.table()), "{damage}");
            for family in [Family::Bridge, Family::Ip6] {
                assert_eq!(Nft::open().unwrap().dump(family, TABLE).unwrap(), None, "{damage}");
            }
            assert_eq!(foreign(listing()), before, "{damage}");
        }
        cleanup().unwrap();
        assert_eq!(dump(), None);
        assert_eq!(foreign(listing()), before);
        cleanup().expect("twice is no error");
    });
}

#[test]
#[ignore = "needs root"]
fn a_refusal_names_the_object_and_leaves_the_kernel_as_it_was() {
    in_netns(|| {
        let mut planner = Planner::new();
        let mut kernel = Kernel::open().unwrap();
        kernel.sync(&planner.tables(), Vec::new()).unwrap();
        planner.take();
        let before = planner.table().clone();
        // a rule on a set that is not there
        let mut broken = before.clone();
        let exprs = vec![
            Expr::Meta { key: MetaKey::IifName, dreg: Reg(0) },
            Expr::Lookup { set: "nowhere".into(), sreg: Reg(0), dest: None, negate: false },
            Expr::Verdict(Verdict::Drop),
        ];
        broken.chains.entry("input".into()).and_modify(|c| c.rules.push(Rule { exprs, comment: None }));
        kernel.doubt();
        let error = kernel.sync(&[&broken], Vec::new()).unwrap_err().to_string();
        assert!(error.contains("chain input") && error.contains("table inet weir"), "{error}");
        assert_eq!(dump(), Some(before.clone()));
        assert!(kernel.retry_after().is_some());
        // what comes next is not held up by it
        kernel.sync(&[&before], Vec::new()).unwrap();
        assert!(kernel.retry_after().is_none());
    });
}
