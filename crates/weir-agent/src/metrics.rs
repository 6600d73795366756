//! What the agent counts, under the names of `docs/metrics.md`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use weir_compiler::slice::NodeSlice;
use weir_proto::Mode;

use crate::bypass;

const PREFIX: &str = "weir_agent";

/// All of them. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Events of objects, if there is no controller.
    pub events: Counter,
    /// Changes of the slice.
    pub changes: Counter,
    /// From controllers, as it was encoded.
    pub received_bytes: Counter,
    pods: Gauge,
    policies: Gauge,
    rulesets: Gauge,
    rules: Gauge,
    peer_sets: Gauge,
    members: Gauge,
    /// How long the kernel took for what changed.
    pub apply: Histogram,
    /// Differences that somebody else made.
    pub repairs: Counter,
    /// Attempts that the kernel refused, or that failed.
    pub errors: Counter,
    /// Policies closed because the kernel refuses them.
    pub closed: Gauge,
    connected: Gauge,
    connects: Counter,
    /// Conversations that broke, or did not begin.
    pub connection_errors: Counter,
    /// Items that differed after a connect.
    pub resumed: Histogram,
    /// The last commit that the kernel holds.
    pub version: Gauge,
    /// Of the slice.
    pub disk_writes: Counter,
    /// That failed.
    pub disk_errors: Counter,
    /// Pods are isolated after a reboot.
    pub isolating: Gauge,
    /// Denied packets that were told.
    pub denials_logged: Counter,
    /// That were not, for their pod had as many.
    pub denials_suppressed: Counter,
    /// That were not, for somebody was too slow. Of what the kernel itself lost, each time counts as one.
    pub denials_lost: Counter,
    /// Packets that passed and that audited policies would deny (U29).
    pub audit_would_deny: Counter,
    /// Denied packets that were logged and that audited policies would allow.
    pub audit_would_allow: Counter,
    /// Allowed connections that the kernel told of.
    pub allowed_connections: Counter,
    /// Lines on them.
    pub allowed_logged: Counter,
    /// Those that were told without peer or clause.
    pub allowed_merged: Counter,
    /// Those that were not told, for somebody was too slow.
    pub allowed_lost: Counter,
    mode: Family<Label, Gauge>,
    /// Other engines, and what takes packets past the rules.
    neighbours: Family<[(&'static str, &'static str); 1], Gauge>,
    contact: Arc<Mutex<Contact>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    mode: &'static str,
}

/// Since when there is no controller; `None`: there is one.
#[derive(Debug)]
struct Contact(Option<Instant>);

impl Default for Metrics {
    fn default() -> Self {
        let zero = Gauge::default;
        let mode = Family::<Label, Gauge>::default();
        for each in Mode::ALL {
            drop(mode.get_or_create(&Label { mode: each.as_str() }));
        }
        let neighbours = Family::<_, Gauge>::default();
        for engine in bypass::names() {
            neighbours.get_or_create(&[("engine", engine)]).set(0);
        }
        Metrics {
            neighbours,
            events: Counter::default(),
            changes: Counter::default(),
            received_bytes: Counter::default(),
            pods: zero(),
            policies: zero(),
            rulesets: zero(),
            rules: zero(),
            peer_sets: zero(),
            members: zero(),
            apply: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            repairs: Counter::default(),
            errors: Counter::default(),
            closed: zero(),
            connected: zero(),
            connects: Counter::default(),
            connection_errors: Counter::default(),
            resumed: Histogram::new([0.0].into_iter().chain(exponential_buckets(1.0, 10.0, 6))),
            version: zero(),
            disk_writes: Counter::default(),
            disk_errors: Counter::default(),
            isolating: zero(),
            denials_logged: Counter::default(),
            denials_suppressed: Counter::default(),
            denials_lost: Counter::default(),
            audit_would_deny: Counter::default(),
            audit_would_allow: Counter::default(),
            allowed_connections: Counter::default(),
            allowed_logged: Counter::default(),
            allowed_merged: Counter::default(),
            allowed_lost: Counter::default(),
            mode,
            contact: Arc::new(Mutex::new(Contact(Some(Instant::now())))),
        }
    }
}

impl Metrics {
    /// A registry with those that every agent has, and with those of controllers if it is a client of some.
    pub fn registry(&self, controller: bool) -> Registry {
        let mut registry = Registry::default();
        weir_health::build_info(&mut registry, PREFIX, env!("CARGO_PKG_VERSION"));
        let all = registry.sub_registry_with_prefix(PREFIX);
        all.register("changes", "Changes of this node's slice", self.changes.clone());
        all.register("slice_pods", "Pods of this node in the slice", self.pods.clone());
        all.register("slice_policies", "Policies that select pods of this node", self.policies.clone());
        all.register("slice_rulesets", "Distinct rulesets of this node's pods", self.rulesets.clone());
        all.register("slice_rules", "Distinct rules in those rulesets", self.rules.clone());
        all.register("slice_peer_sets", "Distinct peer sets in those rules", self.peer_sets.clone());
        all.register("slice_members", "Members of all those peer sets", self.members.clone());
        let help = "Time to bring the kernel into step with what changed; its count is that of applies";
        all.register_with_unit("apply", help, Unit::Seconds, self.apply.clone());
        all.register(
            "repairs",
            "Times that the kernel's tables differed from the plan",
            self.repairs.clone(),
        );
        all.register("errors", "Attempts to bring the kernel into step that failed", self.errors.clone());
        all.register("policies_closed", "Policies that the kernel refuses, closed", self.closed.clone());
        let help = "Denied packets that were logged";
        all.register("denials_logged", help, self.denials_logged.clone());
        let help = "Denied packets that were not logged, because their pod had as many lines as it may have";
        all.register("denials_suppressed", help, self.denials_suppressed.clone());
        let help = "Denied packets that were not logged, because standard output or the agent was too slow";
        all.register("denials_lost", help, self.denials_lost.clone());
        let help = "Packets that passed, and that what is audited would deny";
        all.register("audit_would_deny", help, self.audit_would_deny.clone());
        let help = "Denied packets that were logged, and that what is audited would allow";
        all.register("audit_would_allow", help, self.audit_would_allow.clone());
        let help = "Allowed connections that the kernel told of, in namespaces that ask for it";
        all.register("allowed_connections", help, self.allowed_connections.clone());
        let help = "Lines on allowed connections";
        all.register("allowed_logged", help, self.allowed_logged.clone());
        let help =
            "Allowed connections that were logged without their peer or clause, for their pod has too many";
        all.register("allowed_merged", help, self.allowed_merged.clone());
        let help =
            "Allowed connections that were not logged, because standard output or the agent was too slow";
        all.register("allowed_lost", help, self.allowed_lost.clone());
        let help = "1 while there are traces of another engine on this node";
        all.register("neighbour", help, self.neighbours.clone());
        if controller {
            let help = "Changes received from controllers, as encoded";
            all.register_with_unit("received", help, Unit::Bytes, self.received_bytes.clone());
            all.register("connected", "1 while a controller is followed", self.connected.clone());
            all.register(
                "connects",
                "Controllers that were followed, one after the other",
                self.connects.clone(),
            );
            let help = "Attempts to connect that failed, and connections that broke";
            all.register("connection_errors", help, self.connection_errors.clone());
            all.register("resume_items", "Items that differed after a connect", self.resumed.clone());
            all.register(
                "version",
                "Last commit of the controller that the kernel holds",
                self.version.clone(),
            );
            all.register("disk_writes", "Times that the slice was written to disk", self.disk_writes.clone());
            all.register("disk_errors", "Times that writing it failed", self.disk_errors.clone());
            let help = "1 while pods are isolated after a reboot";
            all.register("isolating", help, self.isolating.clone());
            all.register("mode", "1 for the mode that the kernel is in, 0 for others", self.mode.clone());
            all.register_collector(Box::new(LastContact(self.contact.clone())));
        } else {
            all.register("events", "Events of Kubernetes objects", self.events.clone());
        }
        registry
    }

    /// The sizes of the slice, as it is now.
    pub fn slice(&self, slice: &NodeSlice) {
        let set = |gauge: &Gauge, count: usize| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.pods, slice.pods.len());
        set(&self.policies, slice.policies.len());
        set(&self.rulesets, slice.rulesets.len());
        set(&self.rules, slice.rules.len());
        set(&self.peer_sets, slice.peer_sets.len());
        set(&self.members, slice.peer_sets.values().map(|set| set.members.len()).sum());
    }

    /// The kernel is in this mode.
    pub fn mode(&self, is: Mode) {
        for mode in Mode::ALL {
            self.mode.get_or_create(&Label { mode: mode.as_str() }).set((mode == is).into());
        }
    }

    /// Whether another engine is to be seen, of those in [`bypass::names`].
    pub fn neighbour(&self, engine: &'static str, seen: bool) {
        self.neighbours.get_or_create(&[("engine", engine)]).set(seen.into());
    }

    /// A controller is followed.
    pub fn connected(&self) {
        self.connects.inc();
        self.connected.set(1);
        self.contact.lock().unwrap_or_else(PoisonError::into_inner).0 = None;
    }

    /// No controller is followed.
    pub fn disconnected(&self) {
        self.connected.set(0);
        self.contact.lock().unwrap_or_else(PoisonError::into_inner).0.get_or_insert_with(Instant::now);
    }
}

/// How long ago a controller was followed.
#[derive(Debug)]
struct LastContact(Arc<Mutex<Contact>>);

impl Collector for LastContact {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).0;
        let gauge = ConstGauge::new(since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
        let help = "Time since a controller was followed, or since the start; 0 while one is";
        let encoder =
            encoder.encode_descriptor("last_contact", help, Some(&Unit::Seconds), gauge.metric_type())?;
        gauge.encode(encoder)
    }
}
