//! The agent's loop: what came in since the last turn becomes one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::policy::Problem;
use weir_compiler::slice::Change;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::{Attachments, Planner, TABLES};
use weir_nft::Listener;
use weir_source::Update;

use crate::backend::SetBackend;
use crate::bridge;
use crate::kernel::{Done, Kernel};
use crate::links::Watcher;

/// Where the objects come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder of manifests, followed.
    Manifests(PathBuf),
    /// A cluster's API server.
    Cluster(weir_source::cluster::Options),
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// `spec.nodeName` of the pods that are here.
    pub node: String,
    /// Where the objects come from.
    pub source: Source,
    /// Where peer sets are.
    pub sets: SetBackend,
}

/// How often the kernel's tables are compared with the plan although nothing says that it changed.
const FULL_COMPARISON: Duration = Duration::from_secs(60);
/// So many updates may wait: then the source does.
const QUEUE: usize = 1024;

/// Runs until SIGTERM or SIGINT; rules stay in force.
///
/// # Errors
/// The source or the kernel cannot be used at all. What fails later is reported and tried again.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let kernel = Kernel::with(options.sets)?;
    let mut listener = listen()?;
    let mut links = Watcher::new().await?;
    let (sender, mut updates) = mpsc::channel(QUEUE);
    let mut source = start(options.source, sender)?;
    let mut agent = Agent::new(options.node, kernel);
    let mut comparison = tokio::time::interval(FULL_COMPARISON);
    comparison.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        let retry = agent.kernel.retry_after();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            result = &mut source, if !source.is_finished() => match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(error) => bail!("the source of objects ended unexpectedly: {error}"),
            },
            first = updates.recv() => {
                let Some(first) = first else { bail!("the source of objects has ended") };
                let mut batch = vec![first];
                while batch.len() < QUEUE && let Ok(more) = updates.try_recv() {
                    batch.push(more);
                }
                agent.take(batch);
            }
            changed = links.changed() => {
                changed.context("cannot follow links and routes any more")?;
                agent.attach = true;
            }
            ready = listener.readable_mut() => {
                let mut ready = ready.context("cannot wait for changes of the ruleset")?;
                let changes = ready.get_inner_mut().drain().context("cannot read changes of the ruleset")?;
                ready.clear_ready();
                if !changes.foreign(agent.kernel.port()) {
                    continue;
                }
                agent.kernel.doubt();
            }
            _ = comparison.tick() => agent.kernel.doubt(),
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
        agent.turn(&links);
    }
    tracing::info!("stopping; the rules stay in force (weir-agent cleanup removes them)");
    Ok(())
}

#[allow(
    deprecated,
    reason = "the successor is unsafe for types that may close or replace their descriptor; Listener owns one for life"
)]
fn listen() -> Result<AsyncFd<Listener>> {
    AsyncFd::new(Listener::open(&TABLES)?).context("cannot wait for changes of the ruleset")
}

fn start(source: Source, sender: mpsc::Sender<Update>) -> Result<tokio::task::JoinHandle<Result<()>>> {
    match source {
        Source::Manifests(folder) => {
            weir_source::manifests::watch(folder.clone(), sender)
                .with_context(|| format!("cannot read manifests in {}", folder.display()))?;
            Ok(tokio::spawn(std::future::ready(Ok(()))))
        }
        Source::Cluster(options) => {
            Ok(tokio::spawn(async { Ok(weir_source::cluster::watch(options, sender).await?) }))
        }
    }
}

/// The state between turns.
struct Agent {
    node: String,
    compiler: Compiler,
    planner: Planner,
    kernel: Kernel,
    /// The source has delivered its first complete set. Before, the kernel is left as it is: what an
    /// earlier run put there is better than half of the policies.
    synced: bool,
    /// Pods, links or routes have changed: addresses may be attached elsewhere.
    attach: bool,
    ready: bool,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// What has been said of bridges whose packets pass by.
    unfiltered: BTreeSet<String>,
    /// The last error, so that it is said once and not at each attempt.
    failing: Option<String>,
}

impl Agent {
    fn new(node: String, kernel: Kernel) -> Self {
        Agent {
            compiler: Compiler::new(Scope::Node(node.clone())),
            node,
            planner: Planner::new(),
            kernel,
            synced: false,
            attach: false,
            ready: false,
            problems: BTreeMap::new(),
            unfiltered: BTreeSet::new(),
            failing: None,
        }
    }

    fn take(&mut self, updates: Vec<Update>) {
        let started = Instant::now();
        let mut all: Vec<Event> = Vec::new();
        for update in updates {
            match update {
                Update::Batch { events, synced } => {
                    all.extend(events);
                    self.synced |= synced;
                }
                Update::Problem(problem) => tracing::warn!("{problem}"),
            }
        }
        let events = all.len();
        let deltas = self.compiler.apply(all);
        for (policy, problems) in deltas.policies {
            self.report(policy, problems.unwrap_or_default());
        }
        for delta in deltas.slices.iter().filter(|d| d.node == self.node) {
            let pods = |change: &Change| matches!(change, Change::Pod(..) | Change::PodGone(_));
            self.attach |= delta.changes.iter().any(pods);
            self.planner.update(&delta.changes);
        }
        tracing::debug!(events, took = ?started.elapsed(), "compiled");
    }

    fn report(&mut self, policy: ObjectKey, problems: Vec<Problem>) {
        if self.problems.get(&policy).map_or(&[][..], Vec::as_slice) == problems {
            return;
        }
        for problem in &problems {
            tracing::warn!("NetworkPolicy {policy} cannot be enforced as written: {problem}");
        }
        if problems.is_empty() {
            tracing::info!("NetworkPolicy {policy} has no problems any more");
            self.problems.remove(&policy);
        } else {
            self.problems.insert(policy, problems);
        }
    }

    /// Makes the kernel equal to what is known now.
    fn turn(&mut self, links: &Watcher) {
        if !self.synced {
            return;
        }
        if std::mem::take(&mut self.attach) {
            let attachments = self.attachments(links);
            self.report_bridges(&attachments);
            self.planner.attach(attachments);
        }
        let started = Instant::now();
        let pending = self.planner.take();
        match self.kernel.sync(&self.planner.tables(), pending) {
            Ok(done) => {
                if let Done::Applied { ops, compared } = done {
                    tracing::debug!(ops, compared, took = ?started.elapsed(), "applied");
                }
                if self.failing.take().is_some() {
                    tracing::info!("the kernel is in step again");
                }
                if !self.ready {
                    self.ready = true;
                    let slice = self.planner.slice();
                    tracing::info!(
                        pods = slice.pods.len(),
                        policies = slice.policies.len(),
                        changed = done != Done::Nothing,
                        "ready: the kernel holds the complete slice of node {}",
                        self.node
                    );
                }
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                if self.failing.as_ref() != Some(&error) {
                    tracing::error!(
                        "cannot bring the kernel into step; what it holds stays in force, trying again: {error}"
                    );
                    self.failing = Some(error);
                }
            }
        }
    }

    fn report_bridges(&mut self, attachments: &Attachments) {
        let unfiltered = bridge::unfiltered(attachments);
        for warning in unfiltered.difference(&self.unfiltered) {
            tracing::warn!("{warning}");
        }
        self.unfiltered = unfiltered;
    }

    fn attachments(&self, links: &Watcher) -> Attachments {
        let pods = self.planner.slice().pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
        let all = links.table().attachments(pods).into_iter().flat_map(|(_, addresses)| addresses);
        all.filter_map(|(address, attachment)| Some((address, attachment?))).collect()
    }
}
