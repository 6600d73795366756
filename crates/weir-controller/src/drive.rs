//! The hub's thread: changes of objects first, then what agents ask for, one at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::policy::Problem;
use weir_health::Health;
use weir_proto::Mode;
use weir_proto::pb::Ack;
use weir_source::Update;

use crate::events::Reporter;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::mode;
use crate::outbox::Outbox;
use crate::serve::Call;
use crate::status::{self, Recent, Status};

/// So many updates of the source become one batch at most.
const BATCH: usize = 4096;
/// Of so many policies an agent may say in Events that its kernel refuses them.
const REFUSED: usize = 100;
/// How often what is counted in the hub is told.
const TELL: Duration = Duration::from_secs(5);

/// What the thread needs.
pub struct Driver {
    /// The hub.
    pub hub: Hub,
    /// Objects, and when they were heard of.
    pub updates: mpsc::Receiver<(Instant, Update)>,
    /// Agents.
    pub calls: mpsc::Receiver<Call>,
    /// What agents are to do with their slices.
    pub mode: watch::Receiver<mode::Told>,
    /// To be set when all objects are known, and the mode has been asked for.
    pub synced: Arc<AtomicBool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where agents' pods are.
    pub namespace: String,
    /// To be told that this thread turns, and that all objects are known.
    pub health: Health,
    /// What is known, for others to read.
    pub status: watch::Sender<Status>,
    /// What people should hear of.
    pub events: Reporter,
}

struct Driven {
    driver: Driver,
    agents: HashMap<usize, Agent>,
    /// Pods of our namespace with a node: their UID, and the node.
    pods: HashMap<ObjectKey, (String, String)>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// What agents said last of policies that their kernels refuse, by node.
    refused: BTreeMap<String, Vec<String>>,
    recent: Recent,
    /// All objects are known.
    objects: bool,
}

struct Agent {
    node: String,
    version: String,
    outbox: Arc<Outbox>,
    /// The mode that its kernel is in, and the version that it acknowledged with that; `None`: it knows of none.
    mode: Option<(Mode, u64)>,
}

impl Driver {
    /// Runs until the source or all agents' ends are gone.
    pub async fn run(self) {
        let mut driven = Driven {
            driver: self,
            agents: HashMap::new(),
            pods: HashMap::new(),
            problems: BTreeMap::new(),
            refused: BTreeMap::new(),
            recent: Recent::default(),
            objects: false,
        };
        driven.mode();
        let mut tell = tokio::time::interval(TELL);
        tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Ok(()) = driven.driver.mode.changed() => driven.mode(),
                update = driven.driver.updates.recv() => {
                    let Some(update) = update else { return };
                    driven.updates(update);
                }
                call = driven.driver.calls.recv() => {
                    let Some(call) = call else { return };
                    driven.call(call);
                }
                _ = tell.tick() => driven.tell(),
            }
            driven.driver.health.beat();
        }
    }
}

impl Driven {
    fn updates(&mut self, first: (Instant, Update)) {
        let since = first.0;
        let mut events = Vec::new();
        let mut synced = false;
        let mut next = Some(first.1);
        let mut taken = 0;
        while let Some(update) = next {
            match update {
                Update::Batch { events: more, synced: done } => {
                    more.iter().for_each(|event| self.look(event));
                    events.extend(more);
                    synced |= done;
                }
                Update::Problem(problem) => {
                    tracing::warn!("{problem}");
                    self.driver.events.complained(&problem);
                }
            }
            taken += 1;
            next = if taken < BATCH {
                self.driver.updates.try_recv().ok().map(|(_, update)| update)
            } else {
                None
            };
        }
        let (count, started) = (events.len(), Instant::now());
        let deltas = self.driver.hub.apply(events, since);
        let took = started.elapsed();
        self.driver.metrics.compiled(took);
        tracing::debug!(events = count, ?took, "compiled");
        self.driver.events.compiled(&deltas, Instant::now());
        let policies = deltas.policies.into_iter();
        policies.for_each(|(policy, problems)| self.report(policy, problems.unwrap_or_default()));
        if synced && !std::mem::replace(&mut self.objects, true) {
            self.driver.health.ready("objects");
            self.driver.events.begin();
            let counts = self.driver.hub.compiler().counts();
            tracing::info!(pods = counts.pods, policies = counts.policies, "all objects are known");
            self.serve();
        }
    }

    /// The ConfigMap of the mode says something.
    fn mode(&mut self) {
        let told = self.driver.mode.borrow_and_update().clone();
        if let Some(mode) = told.mode {
            let now = Instant::now();
            self.driver.hub.set_mode(mode, now);
            self.driver.events.mode(mode, &told.version, now);
        }
        if told.asked {
            self.driver.health.ready("mode");
            self.serve();
        }
    }

    /// Agents are served from when all is known that they are told.
    fn serve(&self) {
        let known = self.objects && self.driver.mode.borrow().asked;
        if known && !self.driver.synced.swap(true, Ordering::AcqRel) {
            tracing::info!("agents are served");
        }
    }

    /// What is to be remembered of an event beside what the compiler does.
    fn look(&mut self, event: &Event) {
        self.driver.metrics.event(match event {
            Event::Namespace(_) | Event::NamespaceGone(_) => "namespace",
            Event::Pod(_) | Event::PodGone(_) => "pod",
            Event::Policy(_) | Event::PolicyGone(_) => "policy",
        });
        match event {
            Event::Pod(pod) if pod.key.namespace == self.driver.namespace => {
                if let Some(node) = &pod.node {
                    self.pods.insert(pod.key.clone(), (pod.uid.clone(), node.clone()));
                }
            }
            Event::PodGone(key) => drop(self.pods.remove(key)),
            _ => {}
        }
    }

    fn call(&mut self, call: Call) {
        let hub = &mut self.driver.hub;
        match call {
            Call::Join { node, version, have, outbox, number } => {
                let (session, joined) = hub.join(&node, have, outbox.clone());
                self.driver.metrics.joined(joined);
                tracing::debug!(node, ?joined, "joined");
                if number.send(session).is_err() {
                    hub.leave(session);
                } else {
                    self.agents.insert(session, Agent { node, version, outbox, mode: None });
                }
            }
            Call::Holdings(session, held) => {
                let (sent, forgotten) = hub.holdings(session, &held);
                self.driver.metrics.resent(sent + forgotten);
                tracing::debug!(session, sent, forgotten, "resumed");
            }
            Call::Ack(session, ack) => self.acknowledged(session, ack),
            Call::Leave(session) => {
                hub.leave(session);
                if let Some(left) = self.agents.remove(&session)
                    && self.agents.values().all(|agent| agent.node != left.node)
                {
                    self.refused.remove(&left.node);
                    self.driver.events.left(&left.node);
                }
            }
            Call::NodeOf(uid, reply) => {
                let node = self.pods.values().find(|(pod, _)| *pod == uid).map(|(_, node)| node.clone());
                // who asked may have gone
                let _ = reply.send(node);
            }
            Call::End(done) => {
                for (_, outbox) in hub.sessions() {
                    outbox.end(tonic::Status::unavailable("this controller is going away"));
                }
                let _ = done.send(());
            }
        }
    }

    fn acknowledged(&mut self, session: usize, ack: Ack) {
        let Some(Agent { node, outbox, mode, .. }) = self.agents.get_mut(&session) else { return };
        *mode = Mode::from_wire(ack.mode).map(|mode| (mode, ack.version));
        for took in outbox.acknowledged(ack.version, Instant::now()) {
            self.driver.metrics.enforced(took);
            self.recent.add(took);
        }
        let of_policies = ack.problems.iter().filter(|p| p.kind == "NetworkPolicy").take(REFUSED).map(|p| {
            let policy = ObjectKey::new(&p.namespace, &p.name);
            (policy, p.reason.clone())
        });
        // an agent speaks of the policies that its node has
        let compiler = self.driver.hub.compiler();
        let of_policies: Vec<_> = of_policies.filter(|(policy, _)| compiler.is_on(policy, node)).collect();
        self.driver.events.refused(node, &of_policies, Instant::now());
        let problem =
            |p: weir_proto::pb::Problem| format!("{} {}/{}: {}", p.kind, p.namespace, p.name, p.reason);
        let problems: Vec<String> = ack.problems.into_iter().map(problem).collect();
        let before = self.refused.remove(node).unwrap_or_default();
        for new in problems.iter().filter(|new| !before.contains(new)) {
            tracing::warn!(node, "{new}");
        }
        if !problems.is_empty() {
            self.refused.insert(node.clone(), problems);
        }
    }

    fn tell(&mut self) {
        self.driver.events.tick(Instant::now());
        self.driver.metrics.hub(&self.driver.hub);
        let mut now = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            synced: self.driver.synced.load(Ordering::Acquire),
            agents: self.agents.len(),
            to_enforce: self.recent.summary(),
            ..Status::default()
        };
        let (wanted, since) = self.driver.hub.mode();
        {
            let told = self.driver.mode.borrow();
            now.mode = wanted.map(|mode| mode.as_str().to_owned());
            now.mode_version.clone_from(&told.version);
            now.mode_problem.clone_from(&told.problem);
        }
        for Agent { node, version, outbox, mode } in self.agents.values() {
            *now.agent_versions.entry(version.clone()).or_default() += 1;
            // who knows of no modes enforces
            let has = mode.map_or(Mode::Enforce, |(mode, _)| mode);
            *now.modes.entry(has.as_str().to_owned()).or_default() += 1;
            let current = mode.is_some_and(|(has, version)| Some(has) == wanted && version >= since);
            if wanted == Some(Mode::Withdrawn) && current {
                now.withdrawn.insert(node.clone());
            }
            if wanted.is_some_and(|wanted| wanted != has) && now.other_mode.len() < status::NAMED {
                now.other_mode.insert(node.clone(), has.as_str().to_owned());
            }
            let versions = outbox.behind();
            if versions > 0 {
                now.nodes_behind += 1;
                if now.behind.len() < status::NAMED {
                    now.behind.insert(node.clone(), versions);
                }
            }
        }
        let refused =
            self.refused.iter().flat_map(|(node, all)| all.iter().map(|one| (node.clone(), one.clone())));
        now.refused = refused.take(status::NAMED).collect();
        self.driver.status.send_if_modified(|before| {
            let other = *before != now;
            *before = now;
            other
        });
    }

    fn report(&mut self, policy: ObjectKey, problems: Vec<Problem>) {
        if problems.is_empty() {
            if self.problems.remove(&policy).is_some() {
                tracing::info!("NetworkPolicy {policy} has no problems any more");
            }
            return;
        }
        if self.problems.get(&policy) != Some(&problems) {
            for problem in &problems {
                tracing::warn!("NetworkPolicy {policy} cannot be enforced as written: {problem}");
            }
            self.problems.insert(policy, problems);
        }
    }
}
