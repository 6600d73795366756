//! Turns by hand, in a network namespace: what a controller is told, and when.

use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;
use weir_compiler::object::{Pod, Policy, PolicySpec};
use weir_compiler::slice::NodeSlice;
use weir_dataplane::model::{Op, Transaction};
use weir_dataplane::{DenialLog, TABLE};
use weir_nft::Nft;
use weir_nft::faults::{BatchFault, Faults};
use weir_proto::DigestKey;

use super::*;
use crate::controller::receive::{Incoming, Refused};

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

fn slice() -> NodeSlice {
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let policy = |namespace: &str| {
        let spec = PolicySpec { ingress: vec![Default::default()], ..Default::default() };
        Event::Policy(Policy { namespace: namespace.into(), name: "p".into(), created: 0, audit: None, spec })
    };
    let pod = Pod {
        key: ObjectKey::new("bad", "pod"),
        uid: String::new(),
        labels: Default::default(),
        node: Some("n".into()),
        ips: vec![[10, 0, 0, 1].into()],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: vec![],
    };
    compiler.apply([Event::Pod(pod), policy("bad")]);
    compiler.slice("n")
}

/// What the conversation gets to hear of this commit.
fn commit(agent: &mut Agent, version: u64, changes: &[Change]) -> Result<(), Refused> {
    commit_in(agent, version, changes, None)
}

fn commit_in(agent: &mut Agent, version: u64, changes: &[Change], mode: Option<Mode>) -> Result<(), Refused> {
    let mut incoming = Incoming::new(DigestKey::new([0; 32]), 1 << 20);
    for change in changes {
        incoming.take(&weir_proto::change(change), None).unwrap();
    }
    if let Some(mode) = mode {
        incoming.take(&weir_proto::mode(mode), None).unwrap();
    }
    let (reply, mut taken) = oneshot::channel();
    let commit = Commit { conversation: 7, version, incoming, reply };
    agent.news(News::Controller(Told::Commit(commit)));
    taken.try_recv().expect("an answer at once")
}

fn installed() -> bool {
    Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap().is_some()
}

async fn turns() {
    let slice = slice();
    let mut planner = Planner::new();
    planner.update(&slice.changes());
    let chain = planner.table().chains.keys().find(|name| name.starts_with("ingress_")).unwrap().clone();
    let refused = Arc::new(Mutex::new(Some(chain)));
    let kernel = Kernel::new(Nft::open().unwrap().with_faults(Box::new(Never(refused.clone()))));
    let links = Watcher::new().await.unwrap();
    let ports = Finder::new("/no-results".into()).unwrap();
    let mut agent = Agent::new("n".into(), Settings::default(), kernel, ports, None, Metrics::default());

    agent.turn(&links);
    assert!(!installed() && agent.ack.is_none(), "nobody has said anything yet");
    assert!(!agent.health.is_ready());

    // half of it
    let (without, rest) =
        slice.changes().split_last().map(|(pod, rest)| (pod.clone(), rest.to_vec())).unwrap();
    let Err(Refused::Dangling { .. }) = commit(&mut agent, 1, &[without]) else {
        panic!("a pod without profile")
    };
    agent.turn(&links);
    assert!(!installed() && agent.ack.is_none(), "of what is refused, nothing");

    let all = slice.changes();
    assert!(rest.len() < all.len());
    commit(&mut agent, 2, &all).unwrap();
    agent.turn(&links);
    assert!(agent.ack.is_none(), "the kernel refused it, the first time");
    let reasons = agent.health.reasons().join("\n");
    assert!(reasons.contains("kernel: "), "{reasons}");
    agent.turn(&links);
    let ack = agent.ack.take().expect("the kernel holds all but one policy");
    assert_eq!((ack.conversation, ack.version, ack.problems.len()), (7, 2, 1));
    let problem = &ack.problems[0];
    assert_eq!((&problem.kind[..], &problem.namespace[..], &problem.name[..]), ("NetworkPolicy", "bad", "p"));
    assert!(
        problem.reason.contains("the kernel refuses") && problem.reason.contains("closed"),
        "{problem:?}"
    );
    assert!(agent.health.is_ready(), "{:?}", agent.health.reasons());

    // a minute later
    *refused.lock().unwrap() = None;
    agent.reopen();
    agent.turn(&links);
    agent.reopen();
    agent.turn(&links);
    let ack = agent.ack.take().expect("the same version, without problems");
    assert_eq!((ack.version, ack.problems), (2, vec![]));

    // a commit without changes is acknowledged, too; without a controller nothing is
    commit(&mut agent, 3, &[]).unwrap();
    agent.turn(&links);
    assert_eq!(agent.ack.take().map(|ack| ack.version), Some(3));
    agent.news(News::Controller(Told::Lost { why: "gone".into() }));
    agent.turn(&links);
    assert!(agent.ack.is_none() && agent.health.is_ready() && installed());
}

#[test]
#[ignore = "needs root"]
fn a_commit_is_acknowledged_when_the_kernel_holds_it_with_what_it_refuses() {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root, and the right to make network namespaces");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(turns());
    };
    std::thread::spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Counts the batches that it lets through, and keeps the tables that they are about.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<Vec<usize>>>);

impl Faults for Counted {
    fn batch(&mut self, transactions: &[Transaction]) -> Option<BatchFault> {
        self.0.lock().unwrap().push(transactions.len());
        None
    }

    fn dump(&mut self) -> bool {
        false
    }
}

impl Counted {
    fn take(&self) -> usize {
        std::mem::take(&mut *self.0.lock().unwrap()).len()
    }
}

fn own_table(name: &str) -> bool {
    Nft::open().unwrap().dump(Family::Inet, name).unwrap().is_some()
}

async fn modes() {
    let counted = Counted::default();
    let other = Transaction { family: Family::Inet, table: "other".into(), ops: vec![Op::AddTable] };
    Nft::open().unwrap().apply(&[other]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kernel = Kernel::new(Nft::open().unwrap().with_faults(Box::new(counted.clone())));
    let links = Watcher::new().await.unwrap();
    let ports = Finder::new("/no-results".into()).unwrap();
    let metrics = Metrics::default();
    let settings = Settings { log_denials: Some(DenialLog::default()), ..Settings::default() };
    let mut agent = Agent::new("n".into(), settings, kernel, ports, None, metrics.clone());
    let store = || Store::new(folder.path().join("state"), "n", metrics.clone()).unwrap();
    assert!(!agent.restore(store(), false, None));

    let all = slice().changes();
    commit(&mut agent, 1, &all).unwrap();
    agent.turn(&links);
    let ack = agent.ack.take().unwrap();
    assert!(installed() && ack.mode == Mode::Enforce, "who says nothing of modes means enforce");
    counted.take();

    // off: one batch, and what is not ours stays; changes of the slice meanwhile make none
    commit_in(&mut agent, 2, &[], Some(Mode::Off)).unwrap();
    agent.turn(&links);
    assert!(!installed() && own_table("other"));
    assert_eq!(counted.take(), 1);
    let ack = agent.ack.take().unwrap();
    assert_eq!((ack.version, ack.mode), (2, Mode::Off));
    assert!(
        agent.health.is_ready() && agent.health.notes() == ["mode: off: no policy is enforced on this node"]
    );
    let pod = all.iter().find(|change| matches!(change, Change::Pod(..))).unwrap();
    let Change::Pod(key, state) = pod else { unreachable!() };
    commit(&mut agent, 3, &[Change::PodGone(key.clone())]).unwrap();
    agent.turn(&links);
    assert!(!installed() && counted.take() == 0 && agent.ack.take().unwrap().mode == Mode::Off);
    assert!(!agent.begins());

    // an agent that starts now knows it, also without a controller
    agent.store.take().unwrap().finish(agent.planner.slice(), agent.mode).await;
    let ports = Finder::new("/no-results".into()).unwrap();
    let kernel = Kernel::new(Nft::open().unwrap().with_faults(Box::new(counted.clone())));
    let mut agent = Agent::new("n".into(), settings, kernel, ports, None, metrics.clone());
    assert!(!agent.restore(store(), false, None));
    agent.turn(&links);
    assert!(agent.mode == Mode::Off && agent.health.is_ready() && !installed() && counted.take() == 0);

    // and back: one batch, with what has changed meanwhile; TCP in mid-stream is to be judged again for a while
    commit_in(&mut agent, 4, &[Change::Pod(key.clone(), state.clone())], Some(Mode::Enforce)).unwrap();
    assert!(agent.begins() && !agent.begins());
    agent.turn(&links);
    assert!(installed() && own_table("other") && counted.take() == 1);
    let planned = agent.planner.table().clone();
    let there = Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap().unwrap();
    assert_eq!(weir_dataplane::difference(Some(&there), &planned), None);
    assert_eq!(agent.ack.take().unwrap().mode, Mode::Enforce);
    assert!(agent.health.notes().is_empty());

    // audit: one batch, after which nothing drops and what would be dropped is told (U29); and back in one
    counted.take();
    let whole = || Nft::open().unwrap().dump(Family::Inet, TABLE).unwrap().unwrap().to_string();
    assert!(whole().contains("drop"));
    commit_in(&mut agent, 5, &[], Some(Mode::Audit)).unwrap();
    agent.turn(&links);
    assert_eq!(counted.take(), 1);
    assert!(!whole().contains("drop") && whole().contains("log prefix \"audit_"), "{}", whole());
    assert!(own_table("other") && !agent.begins() && agent.ack.take().unwrap().mode == Mode::Audit);
    assert_eq!(
        agent.health.notes(),
        ["mode: audit: no policy is enforced on this node, what policies would deny is logged"]
    );
    commit(&mut agent, 6, &[Change::PodGone(key.clone())]).unwrap();
    agent.turn(&links);
    assert!(!whole().contains("drop") && agent.ack.take().unwrap().mode == Mode::Audit);
    counted.take();
    commit_in(&mut agent, 7, &[Change::Pod(key.clone(), state.clone())], Some(Mode::Enforce)).unwrap();
    assert!(agent.begins());
    agent.turn(&links);
    assert_eq!((counted.take(), agent.ack.take().unwrap().mode), (1, Mode::Enforce));
    assert!(whole().contains("drop") && !whole().contains("audit_"), "{}", whole());

    // withdrawn: nothing is left on the disk, either
    agent.store.as_mut().unwrap().changed();
    agent.store.take().unwrap().finish(agent.planner.slice(), agent.mode).await;
    agent.store = Some(store());
    let file = folder.path().join("state/slice");
    assert!(file.exists());
    commit_in(&mut agent, 8, &[], Some(Mode::Withdrawn)).unwrap();
    agent.turn(&links);
    assert!(!installed() && own_table("other") && !file.exists());
    assert_eq!(agent.ack.take().unwrap().mode, Mode::Withdrawn);
    agent.store.take().unwrap().finish(agent.planner.slice(), agent.mode).await;
    assert!(!file.exists(), "nor is it written at the end");
}

#[test]
#[ignore = "needs root"]
fn a_mode_is_one_batch_and_what_is_not_ours_stays() {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root, and the right to make network namespaces");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(modes());
    };
    std::thread::spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
