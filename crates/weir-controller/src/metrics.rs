//! What is counted. Names, units and meanings: docs/metrics.md.

use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::hub::Joined;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    events: Family<Kind, Counter>,
    compile: Histogram,
    refused: Family<Reason, Counter>,
    joins: Family<Outcome, Counter>,
    resent: Counter,
    /// Counted by each outbox.
    pub(crate) bytes: Counter,
    enforcement: Histogram,
    behind: Family<Node, Gauge>,
    waits: Family<Node, Gauge>,
    agents: Gauge,
    version: Gauge,
    objects: Family<Kind, Gauge>,
    problems: Gauge,
    ca_ends: Gauge<i64>,
    kubernetes_events: Family<Outcome, Counter>,
}

/// From 0.5 ms to 65 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

impl Metrics {
    /// Metrics in a registry.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            events: Family::default(),
            compile: seconds(),
            refused: Family::default(),
            joins: Family::default(),
            resent: Counter::default(),
            bytes: Counter::default(),
            enforcement: seconds(),
            behind: Family::default(),
            waits: Family::default(),
            agents: Gauge::default(),
            version: Gauge::default(),
            objects: Family::default(),
            problems: Gauge::default(),
            ca_ends: Gauge::default(),
            kubernetes_events: Family::default(),
        };
        let r = registry.sub_registry_with_prefix("weir_controller");
        r.register("events", "Changes of objects that matter to policy, by kind", metrics.events.clone());
        r.register_with_unit(
            "compile_duration",
            "Time to compile a batch of events and to hand the changes to the agents' outboxes",
            Unit::Seconds,
            metrics.compile.clone(),
        );
        r.register(
            "refused_connections",
            "Connections and requests that were refused",
            metrics.refused.clone(),
        );
        r.register("joins", "Conversations that began, by what the agent had", metrics.joins.clone());
        r.register("resent_items", "Items that agents lacked when they came back", metrics.resent.clone());
        r.register_with_unit("sent", "Encoded changes that were sent", Unit::Bytes, metrics.bytes.clone());
        r.register_with_unit(
            "enforcement_duration",
            "From the arrival of a change from the API server to the acknowledgement that a node's kernel holds it",
            Unit::Seconds,
            metrics.enforcement.clone(),
        );
        r.register(
            "node_versions_behind",
            "Versions of its slice that a node has not acknowledged",
            metrics.behind.clone(),
        );
        r.register_with_unit(
            "node_behind",
            "For how long the oldest version of its slice waits that a node has not acknowledged",
            Unit::Seconds,
            metrics.waits.clone(),
        );
        r.register("agents", "Agents that are connected", metrics.agents.clone());
        r.register("version", "The version of the newest change of any slice", metrics.version.clone());
        r.register("objects", "What is known, by kind", metrics.objects.clone());
        r.register(
            "policies_with_problems",
            "NetworkPolicies that cannot be enforced as written",
            metrics.problems.clone(),
        );
        r.register_with_unit(
            "ca_expiry_timestamp",
            "When the authority that signs the controllers' certificates ends; 0 with mounted certificates",
            Unit::Seconds,
            metrics.ca_ends.clone(),
        );
        r.register(
            "kubernetes_events",
            "Events that were due, by what became of them",
            metrics.kubernetes_events.clone(),
        );
        metrics.begin_with_zeroes();
        metrics
    }

    /// Labels that are known are there from the beginning: a rate needs a first value.
    fn begin_with_zeroes(&self) {
        for kind in ["namespace", "pod", "policy"] {
            drop(self.events.get_or_create(&Kind { kind }));
        }
        for kind in ["pods", "policies", "vertices", "profiles"] {
            drop(self.objects.get_or_create(&Kind { kind }));
        }
        for result in ["all", "differences", "nothing"] {
            drop(self.joins.get_or_create(&Outcome { result }));
        }
        for result in ["written", "known", "gone", "forbidden", "failed", "suppressed"] {
            drop(self.kubernetes_events.get_or_create(&Outcome { result }));
        }
        for reason in
            ["no_token", "invalid_token", "not_an_agent", "unchecked", "no_tls", "nothing_said", "too_many"]
        {
            drop(self.refused.get_or_create(&Reason { reason }));
        }
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn compiled(&self, took: Duration) {
        self.compile.observe(took.as_secs_f64());
    }

    pub(crate) fn event(&self, kind: &'static str) {
        self.events.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn joined(&self, joined: Joined) {
        let result = match joined {
            Joined::Empty => "all",
            Joined::Equal => "nothing",
            Joined::Asked(..) => "differences",
        };
        self.joins.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn kubernetes_events(&self, result: &'static str, many: u64) {
        self.kubernetes_events.get_or_create(&Outcome { result }).inc_by(many);
    }

    pub(crate) fn resent(&self, items: usize) {
        self.resent.inc_by(items as u64);
    }

    pub(crate) fn enforced(&self, took: Duration) {
        self.enforcement.observe(took.as_secs_f64());
    }

    pub(crate) fn authority_ends(&self, timestamp: i64) {
        self.ca_ends.set(timestamp);
    }

    #[allow(clippy::cast_possible_wrap)] // counts of things in memory
    pub(crate) fn hub(&self, hub: &crate::hub::Hub) {
        let counts = hub.compiler().counts();
        for (kind, count) in [
            ("pods", counts.pods),
            ("policies", counts.policies),
            ("vertices", counts.vertices),
            ("profiles", counts.profiles),
        ] {
            self.objects.get_or_create(&Kind { kind }).set(count as i64);
        }
        self.version.set(hub.version() as i64);
        self.problems.set(hub.compiler().problems().len() as i64);
        let now = Instant::now();
        self.behind.clear();
        self.waits.clear();
        let mut agents = 0;
        for (node, outbox) in hub.sessions() {
            agents += 1;
            let behind = outbox.behind() as i64;
            let gauge = self.behind.get_or_create(&Node { node: node.to_owned() });
            gauge.set(behind.max(gauge.get()));
            let waits = outbox.waits(now).as_secs() as i64;
            let gauge = self.waits.get_or_create(&Node { node: node.to_owned() });
            gauge.set(waits.max(gauge.get()));
        }
        self.agents.set(agents);
    }
}
