//! What goes wrong between agent and kernel, on purpose: no batch is carried out in part, and the last word
//! is the plan's.

mod common;

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

#[path = "../../weir-dataplane/tests/common/costs.rs"]
mod costs;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use common::in_netns;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use weir_agent::enforce::enforce;
use weir_agent::kernel::{Kernel, cleanup};
use weir_compiler::object::{Event, ObjectKey, Policy, PolicySpec};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::{Family, Op, Table, Transaction};
use weir_dataplane::{Planner, Settings, TABLE, fake};
use weir_nft::Nft;
use weir_nft::faults::{BatchFault, Faults};
use world::batches;
use world::random::Random;

fn dump() -> Option<Table> {
    Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap()
}

/// Faults at random, while they are on.
struct AtRandom {
    on: Arc<Mutex<bool>>,
    random: Random,
    seen: Arc<Mutex<BTreeSet<&'static str>>>,
    /// What the batches make of the table that were let through.
    table: Arc<Mutex<Option<Table>>>,
}

impl AtRandom {
    fn carried_out(&self, transactions: &[Transaction]) {
        let mut table = self.table.lock().unwrap();
        transactions.iter().for_each(|transaction| fake::apply(&mut table, transaction).unwrap());
    }
}

impl Faults for AtRandom {
    fn batch(&mut self, transactions: &[Transaction]) -> Option<BatchFault> {
        let has = |op: &Op| transactions.iter().any(|transaction| transaction.ops.contains(op));
        assert!(!has(&Op::DeleteTable) || has(&Op::AddTable), "a table goes only to come again");
        if !*self.on.lock().unwrap() || self.random.chance(40) {
            self.carried_out(transactions);
            return None;
        }
        let place = self.random.below(transactions.len());
        let op = self.random.below(transactions[place].ops.len());
        // EEXIST, ENOENT, ENOSPC, ENOMEM, ENOBUFS
        let errno = self.random.pick(&[17, 2, 28, 12, 105]);
        let (name, fault) = match self.random.below(4) {
            0 => ("send", BatchFault::Send(errno)),
            1 => ("stale", BatchFault::Stale),
            2 => {
                self.carried_out(transactions);
                ("lost", BatchFault::LoseAnswer)
            }
            _ => ("refused", BatchFault::Refuse(place, op, errno)),
        };
        self.seen.lock().unwrap().insert(name);
        Some(fault)
    }

    fn dump(&mut self) -> bool {
        let interrupted = *self.on.lock().unwrap() && self.random.chance(30);
        if interrupted {
            self.seen.lock().unwrap().insert("interrupted");
        }
        interrupted
    }
}

#[test]
#[ignore = "needs root"]
fn whatever_goes_wrong_the_table_is_whole_and_becomes_the_plan() {
    in_netns(|| {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut runner = TestRunner::new(world::cases(40));
        let cases = (batches(8), any::<u64>(), costs::costs());
        let result = runner.run(&cases, |(batches, seed, costs)| {
            cleanup().unwrap();
            let on = Arc::new(Mutex::new(true));
            let table = Arc::new(Mutex::new(None));
            let (random, seen) = (Random::new(seed), seen.clone());
            let faults = AtRandom { on: on.clone(), random, seen, table: table.clone() };
            let mut kernel = Kernel::new(Nft::open().unwrap().with_faults(Box::new(faults)));
            let mut compiler = Compiler::new(Scope::Node("n1".into()));
            let mut planner =
                Planner::with(Settings { costs, log_denials: costs::log_of(costs), ..Settings::default() });
            for batch in batches {
                compiler.apply(batch).slices.iter().for_each(|delta| planner.update(&delta.changes));
                for _ in 0..3 {
                    let done = enforce(&mut planner, &mut kernel, |_, _| {});
                    let after = dump();
                    prop_assert_eq!(&after, &*table.lock().unwrap(), "a batch was carried out in part");
                    if done.is_ok() {
                        prop_assert_eq!(after, Some(planner.table().clone()), "said to be done");
                    }
                }
            }
            *on.lock().unwrap() = false;
            planner.reopen();
            enforce(&mut planner, &mut kernel, |error, _| panic!("{error}")).unwrap();
            let mut fresh =
                Planner::with(Settings { costs, log_denials: costs::log_of(costs), ..Settings::default() });
            fresh.update(&compiler.snapshot("n1").changes);
            prop_assert_eq!(dump(), Some(fresh.table().clone()));
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
        let all = BTreeSet::from(["interrupted", "lost", "refused", "send", "stale"]);
        assert_eq!(*seen.lock().unwrap(), all, "not every fault came up");
    });
}

/// Refuses what names this chain, unless it drops everything.
struct Never(Arc<Mutex<Option<String>>>);

impl Faults for Never {
    fn batch(&mut self, transactions: &[Transaction]) -> Option<BatchFault> {
        let refused = self.0.lock().unwrap().clone()?;
        let looks_up =
            |op: &Op| matches!(op, Op::AddRule { chain, rule } if *chain == refused && rule.exprs.len() > 1);
        let op = transactions[0].ops.iter().position(looks_up)?;
        Some(BatchFault::Refuse(0, op, 28))
    }

    fn dump(&mut self) -> bool {
        false
    }
}

#[test]
#[ignore = "needs root"]
fn a_policy_that_the_kernel_refuses_is_closed_and_holds_up_no_other() {
    in_netns(|| {
        let policy = |namespace: &str| {
            let spec = PolicySpec { ingress: vec![Default::default()], ..Default::default() };
            Event::Policy(Policy {
                namespace: namespace.into(),
                name: "p".into(),
                created: 0,
                audit: None,
                spec,
            })
        };
        let pod = |namespace: &str, address: &str| {
            Event::Pod(world::plain_pod(ObjectKey::new(namespace, "pod"), address))
        };
        let mut compiler = Compiler::new(Scope::Node("n".into()));
        let mut planner = Planner::new();
        let deltas = compiler.apply([pod("bad", "10.0.0.1"), pod("good", "10.0.0.2"), policy("bad")]);
        deltas.slices.iter().for_each(|delta| planner.update(&delta.changes));
        let chain = planner.table().chains.keys().find(|name| name.starts_with("ingress_")).unwrap().clone();
        let refused = Arc::new(Mutex::new(Some(chain.clone())));
        let mut kernel = Kernel::new(Nft::open().unwrap().with_faults(Box::new(Never(refused.clone()))));

        let mut closed = BTreeSet::new();
        let first = enforce(&mut planner, &mut kernel, |_, policies| closed.extend(policies));
        assert!(first.is_err() && closed.is_empty(), "the first time, it is compared and tried again");
        enforce(&mut planner, &mut kernel, |_, policies| closed.extend(policies)).unwrap();
        assert_eq!(closed, [ObjectKey::new("bad", "p")].into());
        let rules = |chain: &str| {
            dump().unwrap().chains[chain].rules.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(rules(&chain), ["drop"], "closed, not open");

        // another one comes, with another ruleset
        let other = PolicySpec { policy_types: vec!["Egress".into()], ..Default::default() };
        let other = Event::Policy(Policy {
            namespace: "good".into(),
            name: "p".into(),
            created: 0,
            audit: None,
            spec: other,
        });
        compiler.apply([other]).slices.iter().for_each(|delta| planner.update(&delta.changes));
        enforce(&mut planner, &mut kernel, |error, _| panic!("{error}")).unwrap();
        assert!(dump().unwrap().chains.keys().any(|name| name.starts_with("egress_")), "held up");

        *refused.lock().unwrap() = None;
        assert!(planner.reopen());
        enforce(&mut planner, &mut kernel, |error, _| panic!("{error}")).unwrap();
        assert_eq!(rules(&chain), ["ct state invalid drop", "return", "drop"]);
        assert!(!planner.reopen());
    });
}

/// A kernel without something: refuses every batch with a step of that sort.
struct Without(fn(&Op) -> bool);

impl Faults for Without {
    fn batch(&mut self, transactions: &[Transaction]) -> Option<BatchFault> {
        let ops = transactions
            .iter()
            .enumerate()
            .flat_map(|(t, of)| of.ops.iter().enumerate().map(move |o| (t, o)));
        let (transaction, (op, _)) = ops.into_iter().find(|(_, (_, op))| (self.0)(op))?;
        // ENOENT, as the kernel says where it has no module for an expression
        Some(BatchFault::Refuse(transaction, op, 2))
    }

    fn dump(&mut self) -> bool {
        false
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_lacks_is_named_with_what_brings_it() {
    use weir_agent::needs::check;
    use weir_dataplane::model::{CtKey, Expr, SetData};

    in_netns(|| {
        check(&mut Nft::open().unwrap()).unwrap();
        let ruleset = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(ruleset.status.success() && ruleset.stdout.is_empty(), "to try leaves nothing: {ruleset:?}");

        fn has(op: &Op, key: CtKey) -> bool {
            let Op::AddRule { rule, .. } = op else { return false };
            rule.exprs.iter().any(|expr| matches!(expr, Expr::Ct { key: k, .. } if *k == key))
        }
        type Case = (fn(&Op) -> bool, &'static [&'static str]);
        let cases: [Case; 4] = [
            (|op| has(op, CtKey::State), &["ct state", "modprobe nft_ct"]),
            (|op| has(op, CtKey::Mark), &["ct mark", "CONFIG_NF_CONNTRACK_MARK"]),
            (|op| matches!(op, Op::AddSet { decl, .. } if decl.interval), &["ranges of addresses"]),
            (
                |op| matches!(op, Op::AddSet { decl, .. } if decl.data == Some(SetData::Verdict)),
                &["verdict maps"],
            ),
        ];
        for (lacks, words) in cases {
            let mut nft = Nft::open().unwrap().with_faults(Box::new(Without(lacks)));
            let error = check(&mut nft).unwrap_err().to_string();
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            assert!(error.contains(release.trim()), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
            assert_eq!(error.lines().count(), 3, "that, and nothing else: {error}");
        }
        let mut nft = Nft::open().unwrap().with_faults(Box::new(Without(|op| matches!(op, Op::AddTable))));
        assert_eq!(check(&mut nft).unwrap_err().to_string().lines().count(), 9, "everything");
    });
}
