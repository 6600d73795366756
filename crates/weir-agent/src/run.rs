//! The agent's loop: what came in since the last turn becomes one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::policy::Problem;
use weir_compiler::slice::Change;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::Family;
use weir_dataplane::{Attachments, Planner, Ports, Settings, TABLES, drops_mid_stream};
use weir_nft::conntrack::Conntrack;
use weir_nft::{Listener, Nft};
use weir_source::Update;

use crate::backend::SetBackend;
use crate::bridge;
use crate::bypass;
use crate::enforce::enforce;
use crate::kernel::{Done, Error, Kernel};
use crate::links::{LinkTable, Watcher};
use crate::ports::Finder;
use crate::revoke::{self, Revoker};

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
    /// What of the plan is to be chosen. Without a mark for revoked connections, they stay (U9).
    pub settings: Settings,
    /// Where the container runtime keeps what CNI plugins told it; it need not be there.
    pub cni_results: PathBuf,
    /// Where conntrack was not in use before: how long TCP in mid-stream is judged by policies, and
    /// not dropped (U27).
    pub mid_stream_grace: Duration,
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
    let ports = Finder::new(options.cni_results).context("cannot ask the kernel for the ports of pods")?;
    let (grace, unused) = grace()?;
    let grace = if grace { options.mid_stream_grace } else { Duration::ZERO };
    let mut grace_ends = (!grace.is_zero()).then(|| tokio::time::Instant::now() + grace);
    let revoke = options.settings.revoked_mark.map(|mark| {
        let pod_to_own_node = options.settings.own_node == PodToOwnNode::Allow;
        Revoker::open(&options.node, revoke::Options { mark, pod_to_own_node })
    });
    let settings = Settings { drop_mid_stream: grace_ends.is_none(), ..options.settings };
    let mut agent = Agent::new(options.node, settings, kernel, ports, revoke.transpose()?);
    agent.unused = unused;
    let mut comparison = tokio::time::interval(FULL_COMPARISON);
    comparison.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        let (retry, look) = (agent.kernel.retry_after(), agent.ports.retry_after());
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
                agent.report_bypass(links.table());
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
            _ = comparison.tick() => {
                agent.kernel.doubt();
                agent.reopen();
                agent.report_bypass(links.table());
            }
            step = next(&mut agent.revoker) => agent.revoke(step, &links),
            () = tokio::time::sleep_until(grace_ends.unwrap_or_else(tokio::time::Instant::now)), if grace_ends.is_some() => {
                grace_ends = None;
                agent.planner.drop_mid_stream();
            }
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            () = tokio::time::sleep(look.unwrap_or_default()), if look.is_some() => agent.attach = true,
        }
        agent.turn(&links);
    }
    tracing::info!("stopping; the rules stay in force (weir-agent cleanup removes them)");
    Ok(())
}

/// Whether TCP in mid-stream is to be judged for a while (U27): nothing has used conntrack before this first
/// start, and connections that exist have no entry (its conntrack is given, too); or an earlier run has
/// begun to wait, and nobody knows since when.
fn grace() -> Result<(bool, Option<Conntrack>)> {
    let mut nft = Nft::open()?;
    let mut earlier = None;
    for (family, name) in TABLES {
        if let Some(chains) = nft.chains(family, name)? {
            earlier = earlier.or(Some(false)).map(|waits| waits || drops_mid_stream(&chains) == Some(false));
        }
    }
    if let Some(waits) = earlier {
        return Ok((waits, None));
    }
    // without ctnetlink nobody can say
    let Ok(mut conntrack) = Conntrack::open() else { return Ok((false, None)) };
    let unused = conntrack.count()? == 0;
    Ok((unused, unused.then_some(conntrack)))
}

async fn next(revoker: &mut Option<Revoker>) -> revoke::Step {
    match revoker {
        Some(revoker) => revoker.next().await,
        None => std::future::pending().await,
    }
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
    settings: Settings,
    planner: Planner,
    kernel: Kernel,
    ports: Finder,
    /// Whether the kernel takes tables of bridges, once that is of interest.
    bridge_tables: Option<bool>,
    revoker: Option<Revoker>,
    /// Nothing uses conntrack until the first commit.
    unused: Option<Conntrack>,
    /// The source has delivered its first complete set. Before, the kernel is left as it is: what an
    /// earlier run put there is better than half of the policies.
    synced: bool,
    /// Pods, links or routes have changed: addresses may be attached elsewhere.
    attach: bool,
    ready: bool,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// What has been said of bridges whose packets pass by.
    unfiltered: BTreeSet<String>,
    /// Policies of which the kernel refuses something.
    closed: BTreeSet<ObjectKey>,
    /// What has been said of what takes packets past the rules.
    bypass: BTreeSet<&'static str>,
    /// The last error, so that it is said once and not at each attempt.
    failing: Option<String>,
}

impl Agent {
    fn new(
        node: String,
        settings: Settings,
        kernel: Kernel,
        ports: Finder,
        revoker: Option<Revoker>,
    ) -> Self {
        Agent {
            compiler: Compiler::new(Scope::Node(node.clone())),
            node,
            settings,
            planner: Planner::with(settings),
            kernel,
            ports,
            bridge_tables: None,
            revoker,
            unused: None,
            synced: false,
            attach: false,
            ready: false,
            problems: BTreeMap::new(),
            unfiltered: BTreeSet::new(),
            closed: BTreeSet::new(),
            bypass: BTreeSet::new(),
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
        if let Some(revoker) = &mut self.revoker {
            revoker.events(self.planner.slice(), &all);
        }
        let deltas = self.compiler.apply(all);
        for (policy, problems) in deltas.policies {
            self.report(policy, problems.unwrap_or_default());
        }
        for delta in deltas.slices.iter().filter(|d| *d.node == *self.node) {
            let pods = |change: &Change| matches!(change, Change::Pod(..) | Change::PodGone(_));
            self.attach |= delta.changes.iter().any(pods);
            if let Some(revoker) = &mut self.revoker {
                revoker.changes(self.planner.slice(), &delta.changes);
            }
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

    /// Tries again what the kernel has refused.
    fn reopen(&mut self) {
        if !self.planner.reopen() && !self.closed.is_empty() {
            tracing::info!("all NetworkPolicies are enforced again");
            self.closed.clear();
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
            let pods = self.planner.slice().pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
            let ports = self.ports.find(pods, &attachments, links.table(), self.settings.close_unknown);
            self.planner.attach(attachments);
            let possible = self.bridge_is_possible(&ports);
            let without = Ports { unknown_own: ports.unknown_own.clone(), ..Ports::default() };
            self.planner.ports(if possible { ports } else { without });
        }
        let started = Instant::now();
        let report = |error: &Error, policies: BTreeSet<ObjectKey>| {
            // said once, and not each time that it is tried again
            let new: Vec<String> =
                policies.iter().filter(|p| !self.closed.contains(p)).map(ObjectKey::to_string).collect();
            if !new.is_empty() {
                tracing::error!(
                    "NetworkPolicies {} cannot be enforced, the pods that they select are closed until they can \
                     (tried again each minute), other policies are in force: the kernel refuses to {error}",
                    new.join(", ")
                );
            }
            self.closed.extend(policies);
        };
        match enforce(&mut self.planner, &mut self.kernel, report) {
            Ok(done) => {
                if let Done::Applied { ops, compared } = done {
                    tracing::debug!(ops, compared, took = ?started.elapsed(), "applied");
                }
                if self.failing.take().is_some() {
                    tracing::info!("the kernel is in step again");
                }
                // The kernel begins to track before the first rules are in force: what it has met until then, in
                // whatever direction, no rule has judged.
                if let Some(Err(error)) = self.unused.take().map(|mut conntrack| conntrack.flush()) {
                    tracing::warn!("connections from before the first start may live on: {error}");
                }
                if let Some(revoker) = &mut self.revoker {
                    if matches!(done, Done::Applied { compared: true, .. }) {
                        revoker.repaired();
                    }
                    revoker.committed(self.planner.slice());
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

    /// Whether there can be a table for these ports. Without one, all else is still enforced.
    fn bridge_is_possible(&mut self, ports: &Ports) -> bool {
        if ports.pods.is_empty() && ports.unknown.is_empty() {
            return true;
        }
        *self.bridge_tables.get_or_insert_with(|| {
            let possible = self.kernel.takes(Family::Bridge);
            if !possible {
                tracing::warn!(
                    "the kernel has no nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE; modprobe nf_tables_bridge and \
                     restart the agent): pods that share a bridge are told apart by their addresses alone, and \
                     can forge them"
                );
            }
            possible
        })
    }

    /// Once for each, however often it comes and goes.
    fn report_bypass(&mut self, links: &LinkTable) {
        for (what, warning) in bypass::seen(links) {
            if self.bypass.insert(what) {
                tracing::warn!("{warning}");
            }
        }
    }

    fn revoke(&mut self, step: revoke::Step, links: &Watcher) {
        if let Some(revoker) = &mut self.revoker {
            revoker.step(step, self.planner.slice(), |address| links.table().is_local(address));
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
