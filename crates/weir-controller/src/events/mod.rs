//! Kubernetes Events: what people should hear of without asking.
//!
//! ```text
//!   hub: problems, policies without pods, pods newly isolated ─┐
//!   agents: what their kernels refuse ─────────────────────────┼─> Due ──Note──> queue ──> write ──> API server
//!   ConfigMap weir-mode ───────────────────────────────────────┘  (tick)  (try_send)        uid, name
//! ```
//!
//! [`Due`] decides when an Event is due, and how many: pure, and told the time. The hub never waits for the API server:
//! while the queue is full, states wait in [`Due`], and what grows stale is dropped and counted. All replicas write the
//! same Events, under names that are made of the object, its version and what is said of it; whoever is second is told
//! that there is one already, and so is a controller that starts anew. The reasons: docs/events.md.

mod due;
mod limit;
mod write;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use weir_compiler::Deltas;
use weir_compiler::object::ObjectKey;
use weir_proto::Mode;
use weir_source::{Id, Problem};

pub use due::{Due, Ticked};
pub use limit::{Bucket, Limits};
pub use write::{Found, Writer, event};

use crate::metrics::Metrics;

/// So many may wait to be written.
pub const QUEUE: usize = 64;

/// What kind of object an Event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A NetworkPolicy.
    Policy,
    /// A pod.
    Pod,
    /// The ConfigMap of the mode.
    Mode,
}

impl Kind {
    /// As the API calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Policy => "NetworkPolicy",
            Kind::Pod => "Pod",
            Kind::Mode => "ConfigMap",
        }
    }

    /// Group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Policy => "networking.k8s.io/v1",
            Kind::Pod | Kind::Mode => "v1",
        }
    }
}

/// Why there is an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Something of the policy cannot be read, and is closed.
    CannotBeEnforced,
    /// That is over.
    CanBeEnforced,
    /// The kernels of nodes refuse something of the policy.
    RefusedByKernel,
    /// That is over.
    TakenByKernel,
    /// The policy has selected no pod for a while.
    SelectsNoPod,
    /// The policy isolates pods that were not isolated before.
    IsolatesPods,
    /// The pod is isolated, and was not before.
    Isolated,
    /// The mode of the cluster is another, and policies are not enforced.
    PoliciesNotEnforced,
    /// The mode of the cluster is another, and policies are enforced.
    PoliciesEnforced,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 9] = [
        Reason::CannotBeEnforced,
        Reason::CanBeEnforced,
        Reason::RefusedByKernel,
        Reason::TakenByKernel,
        Reason::SelectsNoPod,
        Reason::IsolatesPods,
        Reason::Isolated,
        Reason::PoliciesNotEnforced,
        Reason::PoliciesEnforced,
    ];

    /// As it is in the Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::CannotBeEnforced => "CannotBeEnforced",
            Reason::CanBeEnforced => "CanBeEnforced",
            Reason::RefusedByKernel => "RefusedByKernel",
            Reason::TakenByKernel => "TakenByKernel",
            Reason::SelectsNoPod => "SelectsNoPod",
            Reason::IsolatesPods => "IsolatesPods",
            Reason::Isolated => "Isolated",
            Reason::PoliciesNotEnforced => "PoliciesNotEnforced",
            Reason::PoliciesEnforced => "PoliciesEnforced",
        }
    }

    /// Warning or Normal.
    pub fn severity(self) -> &'static str {
        match self {
            Reason::CannotBeEnforced | Reason::RefusedByKernel | Reason::PoliciesNotEnforced => "Warning",
            _ => "Normal",
        }
    }

    /// What was being done.
    pub fn action(self) -> &'static str {
        match self {
            Reason::CannotBeEnforced | Reason::CanBeEnforced => "Compile",
            Reason::RefusedByKernel | Reason::TakenByKernel => "Enforce",
            Reason::SelectsNoPod => "Select",
            Reason::IsolatesPods | Reason::Isolated => "Isolate",
            Reason::PoliciesNotEnforced | Reason::PoliciesEnforced => "SwitchMode",
        }
    }

    /// What it is about.
    pub fn kind(self) -> Kind {
        match self {
            Reason::Isolated => Kind::Pod,
            Reason::PoliciesNotEnforced | Reason::PoliciesEnforced => Kind::Mode,
            _ => Kind::Policy,
        }
    }
}

/// An Event that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Why.
    pub reason: Reason,
    /// The object: its kind follows from the reason.
    pub about: ObjectKey,
    /// A policy that has to do with it.
    pub related: Option<ObjectKey>,
    /// What is said.
    pub text: String,
    /// What makes it another Event, beside reason and objects.
    pub state: String,
}

/// What the hub's thread tells of what happens.
#[derive(Debug)]
pub struct Reporter {
    due: Due,
    to: mpsc::Sender<Note>,
    metrics: Arc<Metrics>,
}

impl Reporter {
    /// Events go there; the mode is said by this ConfigMap.
    pub fn new(mode: ObjectKey, to: mpsc::Sender<Note>, metrics: Arc<Metrics>) -> Self {
        Reporter { due: Due::new(mode), to, metrics }
    }

    /// Slices have changed.
    pub fn compiled(&mut self, deltas: &Deltas, now: Instant) {
        for (policy, problems) in &deltas.policies {
            self.due.policy(policy, problems.as_deref());
        }
        deltas.selecting.iter().for_each(|(policy, any)| self.due.selecting(policy, *any, now));
        deltas.isolated.iter().for_each(|isolated| self.due.isolated(isolated, now));
    }

    /// What a source complains of.
    pub fn complained(&mut self, problem: &Problem) {
        if let Some(Id { kind: weir_source::Kind::Policy, key }) = &problem.object {
            self.due.unreadable(key, &problem.reason);
        }
    }

    /// All objects are known: what comes is new.
    pub fn begin(&mut self) {
        self.due.begin();
    }

    /// What a node's kernel refuses, of all policies that it has.
    pub fn refused(&mut self, node: &str, policies: &[(ObjectKey, String)], now: Instant) {
        self.due.refused(node, policies, now);
    }

    /// No agent of the node is here any more.
    pub fn left(&mut self, node: &str) {
        self.due.left(node);
    }

    /// The ConfigMap says a mode, in this version of it. Uninstallation does not wait, so this is told at once.
    pub fn mode(&mut self, mode: Mode, version: &str, now: Instant) {
        self.due.mode(mode, version);
        self.tick(now);
    }

    /// Hands over what is due.
    pub fn tick(&mut self, now: Instant) {
        let Ticked { notes, suppressed } = self.due.tick(now, self.to.capacity());
        self.metrics.kubernetes_events("suppressed", suppressed);
        for note in notes {
            if self.to.try_send(note).is_err() {
                // nobody writes any more
                self.metrics.kubernetes_events("failed", 1);
            }
        }
    }
}
