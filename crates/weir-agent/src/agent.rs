//! What the agent knows between two turns of its loop, and what a turn does.

mod mode;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::policy::Problem;
use weir_compiler::slice::Change;
use weir_compiler::{Budgets, Compiler, Scope};
use weir_dataplane::model::Family;
use weir_dataplane::{Attachment, Attachments, Planner, Ports, Settings};
use weir_health::Health;
use weir_nft::Changes;
use weir_nft::conntrack::Conntrack;
use weir_proto::{Mode, pb};
use weir_source::Update;

use crate::bare::items;
use crate::bridge;
use crate::bypass;
use crate::controller::{Ack, Commit, Told};
use crate::enforce::enforce;
use crate::engines::Traces;
use crate::inflow::News;
use crate::isolation::Isolation;
use crate::kernel::{Done, Error, Kernel};
use crate::links::{LinkTable, Watcher};
use crate::metrics::Metrics;
use crate::ports::Finder;
use crate::revoke::{self, Revoker};
use crate::state::{self, Found, Store};

/// Reasons why the agent is not ready.
const SLICE: &str = "slice";
const KERNEL: &str = "kernel";
const BRIDGE: &str = "bridge";
const ISOLATION: &str = "isolation";
const MODE: &str = "mode";

/// The state between turns.
pub(crate) struct Agent {
    node: String,
    /// Unless a controller compiles.
    compiler: Option<Compiler>,
    settings: Settings,
    pub(crate) planner: Planner,
    pub(crate) kernel: Kernel,
    pub(crate) ports: Finder,
    /// Whether the kernel takes tables of bridges, once that is of interest.
    bridge_tables: Option<bool>,
    pub(crate) revoker: Option<Revoker>,
    /// Nothing uses conntrack until the first commit.
    pub(crate) unused: Option<Conntrack>,
    /// Whether policies are enforced.
    pub(crate) mode: Mode,
    /// Policies are to be enforced again, after a while in which nothing of Weir's was in the kernel.
    begins: bool,
    /// The source has delivered its first complete set. Before, the kernel is left as it is: what an
    /// earlier run put there is better than half of the policies.
    pub(crate) synced: bool,
    /// Pods, links or routes have changed: addresses may be attached elsewhere.
    pub(crate) attach: bool,
    ready: bool,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// What has been said of bridges whose packets pass by.
    unfiltered: BTreeSet<String>,
    /// Policies of which the kernel refuses something, and what.
    closed: BTreeMap<ObjectKey, String>,
    /// What has been said of programs that change the tables, and when.
    others: BTreeMap<String, Instant>,
    /// What has been said of what takes packets past the rules, and of other engines.
    bypass: bypass::Said,
    /// What other engines had in the kernel when it was last looked at.
    traces: Traces,
    /// The last error, so that it is said once and not at each attempt.
    failing: Option<String>,
    pub(crate) health: Health,
    metrics: Metrics,
    /// Where the slice is kept for a start without a controller.
    pub(crate) store: Option<Store>,
    /// What policies may have, where the agent compiles for itself.
    pub(crate) budgets: Budgets,
    pub(crate) isolation: Isolation,
    /// The controller's last commit: conversation and version.
    commit: Option<(u64, u64)>,
    /// What is planned is a whole slice, and not just the isolation of all pods.
    complete: bool,
    /// The slice is another than the metrics say.
    changed: bool,
    /// A controller sent another slice than is on disk.
    unsaved: bool,
    /// For the controller, if it does not know yet.
    pub(crate) ack: Option<Ack>,
}

/// Without a turn for so long, the loop hangs: a full comparison is due every minute.
const PATIENCE: Duration = Duration::from_secs(240);

/// A program that changes the tables is named again after this time, and so many are at all.
const TELL_AGAIN: Duration = Duration::from_secs(600);
const OTHERS: usize = 64;

impl Agent {
    pub(crate) fn new(
        node: String,
        settings: Settings,
        kernel: Kernel,
        ports: Finder,
        revoker: Option<Revoker>,
        metrics: Metrics,
    ) -> Self {
        let health = Health::new(PATIENCE);
        health.not_ready(SLICE, "what is to be enforced is not known yet");
        Agent {
            compiler: None,
            node,
            settings,
            planner: Planner::with(settings),
            kernel,
            ports,
            bridge_tables: None,
            revoker,
            unused: None,
            mode: Mode::default(),
            begins: false,
            synced: false,
            attach: false,
            ready: false,
            problems: BTreeMap::new(),
            unfiltered: BTreeSet::new(),
            closed: BTreeMap::new(),
            others: BTreeMap::new(),
            bypass: bypass::Said::default(),
            traces: Traces::default(),
            failing: None,
            health,
            metrics,
            store: None,
            budgets: Budgets::default(),
            isolation: Isolation::default(),
            commit: None,
            complete: false,
            changed: false,
            unsaved: false,
            ack: None,
        }
    }

    pub(crate) fn news(&mut self, news: News) {
        match news {
            News::Objects(updates) => self.take(updates),
            News::Controller(told) => self.told(told),
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
                    self.complete |= synced;
                }
                Update::Problem(problem) => tracing::warn!("{problem}"),
            }
        }
        let events = all.len();
        if let Some(revoker) = &mut self.revoker {
            revoker.events(self.planner.slice(), &all);
        }
        let compiler =
            self.compiler.get_or_insert_with(|| Compiler::with(Scope::Node(self.node.clone()), self.budgets));
        let deltas = compiler.apply(all);
        for (policy, problems) in deltas.policies {
            self.report(policy, problems.unwrap_or_default());
        }
        let ours = deltas.slices.into_iter().filter(|delta| *delta.node == *self.node);
        for delta in ours.collect::<Vec<_>>() {
            self.change(delta.changes.iter());
        }
        self.metrics.events.inc_by(events as u64);
        tracing::debug!(events, took = ?started.elapsed(), "compiled");
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Welcome { key, reply } => {
                // who asked may be gone already
                let _ = reply.send(items(self.planner.slice(), &key));
            }
            Told::Commit(commit) => self.commit(commit),
            Told::Lost { why } => {
                self.commit = None;
                if !self.complete {
                    self.health.not_ready(SLICE, format!("what is to be enforced is not known yet; {why}"));
                }
            }
        }
    }

    /// All of a commit in one turn, or nothing.
    fn commit(&mut self, commit: Commit) {
        let Commit { conversation, version, incoming, reply } = commit;
        let (started, bytes, mode) = (Instant::now(), incoming.bytes(), incoming.mode());
        let taken = incoming.changes(self.planner.slice()).map(|changes| {
            self.change(&changes);
            tracing::debug!(version, bytes, changes = changes.len(), took = ?started.elapsed(), "received");
            (self.synced, self.complete, self.unsaved) = (true, true, true);
            self.commit = Some((conversation, version));
            if let Some(mode) = mode {
                self.set_mode(mode);
            }
            self.end_isolation("a controller has answered");
        });
        let _ = reply.send(taken);
    }

    /// Takes changes of the slice.
    fn change<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change, IntoIter: Clone>) {
        let changes = changes.into_iter();
        let pods = |change: &Change| matches!(change, Change::Pod(..) | Change::PodGone(_));
        self.attach |= changes.clone().any(pods);
        if let Some(revoker) = &mut self.revoker {
            revoker.changes(self.planner.slice(), changes.clone());
        }
        let count = changes.clone().count();
        self.planner.update(changes);
        self.changed |= count > 0;
        self.metrics.changes.inc_by(count as u64);
    }

    /// Takes the slice of an earlier run, if there is one. `installed`: the kernel has rules of that run, which
    /// may be newer. Returns whether the slice on disk is to be in force unless a controller answers soon.
    pub(crate) fn restore(&mut self, store: Store, installed: bool, isolate: Option<Duration>) -> bool {
        let found = store.load();
        self.store = Some(store);
        match found {
            Found::Nothing => return false,
            Found::Slice { changes, rebooted, mode } => {
                self.change(&changes);
                self.set_mode(mode);
                if rebooted && mode.enforces() {
                    self.isolate(isolate);
                }
                // rules that somebody kept over a reboot are no newer
                (self.synced, self.complete) = (!installed || rebooted, true);
            }
            Found::Damaged if installed => return false,
            Found::Damaged => {
                self.isolate(isolate);
                self.synced = self.isolation.is_on();
            }
        }
        !self.synced
    }

    fn isolate(&mut self, time: Option<Duration>) {
        let Some(time) = time else { return };
        tracing::warn!(
            "after a reboot nobody knows which pod has which address: pods reach and are reached by their own \
             node only, until a controller answers, for {} s at most (--isolate-after-reboot)",
            time.as_secs()
        );
        self.isolation.begin(time);
        self.planner.close_unknown(true);
        self.health.not_ready(ISOLATION, "pods are isolated after a reboot: no controller has answered yet");
        self.metrics.isolating.set(1);
        self.attach = true;
    }

    pub(crate) fn end_isolation(&mut self, why: &str) {
        if self.isolation.end() {
            tracing::info!("pods are not isolated any more: {why}");
            self.metrics.isolating.set(0);
            self.attach = true;
            self.planner.close_unknown(self.settings.close_unknown);
            self.health.ready(ISOLATION);
        }
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

    pub(crate) fn stored(&mut self, step: state::Step) {
        if let Some(store) = &mut self.store {
            store.step(step, self.planner.slice(), self.mode);
        }
    }

    /// Tries again what the kernel has refused.
    pub(crate) fn reopen(&mut self) {
        if !self.planner.reopen() && !self.closed.is_empty() {
            tracing::info!("all NetworkPolicies are enforced again");
            self.closed.clear();
        }
    }

    /// Makes the kernel equal to what is known now.
    pub(crate) fn turn(&mut self, links: &Watcher) {
        self.health.beat();
        if !self.synced {
            return;
        }
        if !self.mode.installs() {
            return self.withdraw();
        }
        if std::mem::take(&mut self.attach) {
            let attachments = self.attachments(links);
            if self.mode.enforces() {
                self.report_bridges(&attachments, links.table());
            }
            let pods = self.planner.slice().pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
            let mut ports = self.ports.find(pods, &attachments, links.table(), self.settings.close_unknown);
            self.isolation.add_to(&mut ports, &attachments, links.table());
            self.planner.attach(attachments);
            let possible = !self.mode.enforces() || self.bridge_is_possible(&ports);
            let without = Ports { unknown_own: ports.unknown_own.clone(), ..Ports::default() };
            self.planner.ports(if possible { ports } else { without });
        }
        let started = Instant::now();
        let report = |error: &Error, policies: BTreeSet<ObjectKey>| {
            // said once, and not each time that it is tried again
            let new: Vec<String> =
                policies.iter().filter(|p| !self.closed.contains_key(p)).map(ObjectKey::to_string).collect();
            if !new.is_empty() {
                tracing::error!(
                    "NetworkPolicies {} cannot be enforced, the pods that they select are closed until they can \
                     (tried again each minute), other policies are in force: the kernel refuses to {error}",
                    new.join(", ")
                );
            }
            let reason = format!("the kernel refuses to {error}; the pods that it selects are closed");
            self.closed.extend(policies.into_iter().map(|policy| (policy, reason.clone())));
        };
        match enforce(&mut self.planner, &mut self.kernel, report) {
            Ok(done) => {
                if let Done::Applied { ops, compared } = done {
                    tracing::debug!(ops, compared, took = ?started.elapsed(), "applied");
                    self.metrics.apply.observe(started.elapsed().as_secs_f64());
                    self.metrics.repairs.inc_by(u64::from(compared && self.ready));
                }
                // The kernel begins to track before the first rules are in force: what it has met until then, in
                // whatever direction, no rule has judged.
                if let Some(Err(error)) = self.unused.take().map(|mut conntrack| conntrack.flush()) {
                    tracing::warn!("connections from before the first start may live on: {error}");
                }
                if let Some(revoker) = self.revoker.as_mut().filter(|_| self.mode.enforces()) {
                    if matches!(done, Done::Applied { compared: true, .. }) {
                        revoker.repaired();
                    }
                    revoker.committed(self.planner.slice());
                }
                if !self.ready && self.complete {
                    self.ready = true;
                    let slice = self.planner.slice();
                    tracing::info!(
                        pods = slice.pods.len(),
                        policies = slice.policies.len(),
                        changed = done != Done::Nothing,
                        mode = self.mode.as_str(),
                        "ready: the kernel holds the complete slice of node {}",
                        self.node
                    );
                }
                self.in_step();
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&mut self, error: Error) {
        self.metrics.errors.inc();
        let error = format!("{:#}", anyhow::Error::from(error));
        self.health.not_ready(KERNEL, error.as_str());
        if self.failing.as_ref() != Some(&error) {
            tracing::error!(
                "cannot bring the kernel into step; what it holds stays in force, trying again: {error}"
            );
            self.failing = Some(error);
        }
    }

    /// The kernel holds what is planned: who wants to know that is told.
    fn in_step(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!("the kernel is in step again");
        }
        self.metrics.mode(self.mode);
        self.health.note(MODE, self.mode_note());
        if self.complete {
            self.health.ready(SLICE);
        }
        self.health.ready(KERNEL);
        self.metrics.closed.set(i64::try_from(self.closed.len()).unwrap_or(i64::MAX));
        if std::mem::take(&mut self.changed) {
            self.metrics.slice(self.planner.slice());
        }
        if let Some(store) = &mut self.store {
            if self.mode == Mode::Withdrawn {
                store.remove();
            } else if std::mem::take(&mut self.unsaved) {
                store.changed();
            }
        }
        let Some((conversation, version)) = self.commit else { return };
        self.metrics.version.set(i64::try_from(version).unwrap_or(i64::MAX));
        let problem = |(policy, reason): (&ObjectKey, &String)| pb::Problem {
            kind: "NetworkPolicy".to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            reason: reason.clone(),
        };
        let closed = self.closed.iter().filter(|_| self.mode.enforces());
        let problems = closed.map(problem).collect();
        self.ack = Some(Ack { conversation, version, problems, mode: self.mode });
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

    /// What is new of what takes packets past the rules, and of other engines.
    pub(crate) fn report_bypass(&mut self, links: &LinkTable) {
        for (what, warning) in self.bypass.begun(bypass::seen(links, &self.traces)) {
            tracing::warn!("{warning}");
            self.metrics.neighbour(what, true);
        }
    }

    /// Who changed Weir's tables: each program once in a while, however often it does.
    pub(crate) fn report_others(&mut self, changes: &Changes) {
        let ours = self.kernel.port();
        for commit in changes.commits.iter().filter(|commit| commit.touched && commit.port != ours) {
            let name = commit.name.as_deref().unwrap_or("some program").escape_debug().to_string();
            let last = self.others.get(&name);
            if last.is_some_and(|last| last.elapsed() < TELL_AGAIN) || self.others.len() > OTHERS {
                continue;
            }
            tracing::warn!(
                thread = commit.thread,
                "{name} has changed Weir's tables: what differs is put right (have it leave tables called weir alone)"
            );
            self.others.insert(name, Instant::now());
        }
    }

    /// The same, after a look at the kernel, and what has gone.
    pub(crate) fn look_for_bypass(&mut self, links: &LinkTable) {
        self.traces = self.kernel.traces();
        for gone in self.bypass.gone(&bypass::seen(links, &self.traces)) {
            tracing::info!("of {gone} nothing is to be seen on this node any more");
            self.metrics.neighbour(gone, false);
        }
        self.report_bypass(links);
    }

    pub(crate) fn revoke(&mut self, step: revoke::Step, links: &Watcher) {
        if let Some(revoker) = &mut self.revoker {
            revoker.step(step, self.planner.slice(), |address| links.table().is_local(address));
        }
    }

    fn report_bridges(&mut self, attachments: &Attachments, links: &LinkTable) {
        let unfiltered = bridge::unfiltered(attachments);
        for warning in unfiltered.difference(&self.unfiltered) {
            tracing::warn!("{warning}");
        }
        let is_bridge = |at: &Attachment| links.bridge_ports(at.interface()).is_some();
        match attachments.values().any(is_bridge) && !unfiltered.is_empty() {
            true => self.health.not_ready(BRIDGE, unfiltered.iter().cloned().collect::<Vec<_>>().join("; ")),
            false => self.health.ready(BRIDGE),
        }
        self.unfiltered = unfiltered;
    }

    fn attachments(&self, links: &Watcher) -> Attachments {
        let pods = self.planner.slice().pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
        let all = links.table().attachments(pods).into_iter().flat_map(|(_, addresses)| addresses);
        all.filter_map(|(address, attachment)| Some((address, attachment?))).collect()
    }
}
