//! What the agent does at a turn, taken apart: the same calls in the same order, a clock between them.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_agent::backend::SetBackend;
use weir_agent::kernel::{Done, Kernel};
use weir_agent::links::{LinkTable, Watcher};
use weir_compiler::object::Event;
use weir_compiler::slice::Change;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::{Attachments, Costs, Planner, Settings};
use weir_nft::Nft;

use crate::cluster::NODE;

/// Where the time of a turn went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    /// Events to changes of the slice.
    pub(crate) compile: Duration,
    /// Where all pods of the node are attached, and whether that is new; nothing if no pod of it changed.
    pub(crate) attach: Duration,
    /// Changes of the slice to a transaction.
    pub(crate) plan: Duration,
    /// The transaction, until the kernel's answer to it; at the start, reading the table back first.
    pub(crate) kernel: Duration,
}

impl Split {
    /// All of it.
    pub(crate) fn total(&self) -> Duration {
        self.compile + self.attach + self.plan + self.kernel
    }

    /// The parts of many turns, by name.
    pub(crate) fn columns(splits: &[Split]) -> [(&'static str, Vec<Duration>); 4] {
        let column = |part: fn(&Split) -> Duration| splits.iter().map(part).collect();
        [
            ("compile", column(|s| s.compile)),
            ("attach", column(|s| s.attach)),
            ("plan", column(|s| s.plan)),
            ("kernel", column(|s| s.kernel)),
        ]
    }
}

/// The agent's state, in this thread's network namespace.
pub(crate) struct Node {
    compiler: Compiler,
    planner: Planner,
    kernel: Kernel,
    links: LinkTable,
}

impl Node {
    /// Knows the namespace's links and routes, and of no objects yet.
    pub(crate) fn new() -> Result<Node> {
        Node::with(Costs::default(), SetBackend::Nft)
    }

    /// The same, with other limits on how rulesets are written, and a choice of where peer sets are.
    pub(crate) fn with(costs: Costs, sets: SetBackend) -> Result<Node> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let links =
            runtime.block_on(async { Ok::<_, anyhow::Error>(Watcher::new().await?.table().clone()) })?;
        Ok(Node {
            compiler: Compiler::new(Scope::Node(NODE.to_owned())),
            planner: Planner::with(Settings {
                costs,
                // what the agent's program has unless it is told otherwise
                revoked_mark: NonZeroU32::new(0x1000),
                drop_mid_stream: true,
                ..Settings::default()
            }),
            kernel: Kernel::with(sets)?,
            links,
        })
    }

    /// Brings the kernel into step with these events.
    pub(crate) fn turn(&mut self, events: Vec<Event>) -> Result<(Done, Split)> {
        let started = Instant::now();
        let deltas = self.compiler.apply(events);
        let compiled = Instant::now();
        let mut attach = false;
        for delta in deltas.slices.iter().filter(|d| &*d.node == NODE) {
            let pods = |change: &Change| matches!(change, Change::Pod(..) | Change::PodGone(_));
            attach |= delta.changes.iter().any(pods);
            self.planner.update(&delta.changes);
        }
        let updated = Instant::now();
        if attach {
            let attachments = self.attachments();
            self.planner.attach(attachments);
        }
        let attached = Instant::now();
        let pending = self.planner.take();
        let planned = Instant::now();
        let done = self.kernel.sync(&self.planner.tables(), pending)?;
        let split = Split {
            compile: compiled - started,
            attach: attached - updated,
            plan: (updated - compiled) + (planned - attached),
            kernel: planned.elapsed(),
        };
        Ok((done, split))
    }

    fn attachments(&self) -> Attachments {
        let pods = self.planner.slice().pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
        let all = self.links.attachments(pods).into_iter().flat_map(|(_, addresses)| addresses);
        all.filter_map(|(address, attachment)| Some((address, attachment?))).collect()
    }

    /// Pods of the slice.
    pub(crate) fn pods(&self) -> usize {
        self.planner.slice().pods.len()
    }

    /// What the kernel holds is what the plan says.
    pub(crate) fn check(&self) -> Result<()> {
        let plan = self.planner.table();
        let installed = Nft::open()?.dump(plan.family, &plan.name)?.context("there is no table")?;
        ensure!(installed == *plan, "the kernel does not hold the plan: these figures are worth nothing");
        Ok(())
    }
}
