//! What a case is made of: phases, each a few changes and then questions.

use serde_json::Value;
use weir_compiler::object::ObjectKey;

use crate::world::{Port, World};

/// A change of the cluster. Namespaces and pods by their short names.
#[derive(Debug, Clone)]
pub enum Action {
    /// Makes or replaces a policy.
    Policy {
        /// `x`, `y` or `z`.
        namespace: &'static str,
        /// Its name.
        name: String,
        /// Its `spec`.
        spec: Value,
        /// API servers may refuse it: then the case is skipped.
        may_be_refused: bool,
    },
    /// Deletes a policy.
    NoPolicy {
        /// `x`, `y` or `z`.
        namespace: &'static str,
        /// Its name.
        name: String,
    },
    /// Merges into a pod's labels; null takes one away.
    PodLabels {
        /// `x/a`.
        pod: &'static str,
        /// The labels.
        labels: Value,
    },
    /// Merges into a namespace's labels.
    NamespaceLabels {
        /// `x`, `y` or `z`.
        namespace: &'static str,
        /// The labels.
        labels: Value,
    },
}

/// A connection to be tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// `x/a`.
    pub from: String,
    /// `y/b`.
    pub to: String,
    /// Of the second.
    pub port: Port,
    /// Of the second: true is IPv4.
    pub v4: bool,
}

/// Which pairs a phase asks.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Every pod to every pod, on every port that is served, in each family.
    Everything,
    /// Every pod to every pod on the first port: whether all is open.
    Open,
    /// Those that these texts name, each `FROM -> TO`; `*` is every pod, `hosts` those in their nodes' network.
    Between(Vec<&'static str>),
    /// Pods in their nodes' network to all other pods of their node.
    OwnNode,
}

/// Changes, and what to ask then.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What is tried.
    pub about: &'static str,
    /// The changes, in order.
    pub actions: Vec<Action>,
    /// The questions.
    pub ask: Ask,
}

/// Whether a difference is a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// NetworkPolicy's API requires it of every engine.
    Required,
    /// The API leaves it open: what is seen is reported. With `--strict`, it must be as Weir decides.
    Observed,
}

/// What a case needs of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// SCTP on all nodes.
    pub sctp: bool,
    /// Pods of both families.
    pub dual: bool,
    /// Pods in their nodes' network (`z/host0` on the first node, `z/host1` on the second).
    pub hosts: bool,
}

/// A case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, which stays the same from version to version.
    pub name: &'static str,
    /// The statements of docs/semantics.md that it tries.
    pub statements: &'static [&'static str],
    /// Whether a difference is a defect.
    pub weight: Weight,
    /// Without this it is skipped.
    pub needs: Needs,
    /// From a world in which all pods run and no policy is.
    pub phases: fn(&World) -> Vec<Phase>,
}

/// The pairs of a phase.
pub fn pairs(world: &World, ask: &Ask) -> Vec<Pair> {
    let pods = world.pod_names();
    let hosts = |name: &str| world.pod(name).is_some_and(|p| p["spec"]["hostNetwork"] == true);
    let wanted = |from: &str, to: &str| match ask {
        Ask::Everything | Ask::Open => !hosts(from) && !hosts(to),
        Ask::OwnNode => hosts(from) && !hosts(to) && world.node_of(from) == world.node_of(to),
        Ask::Between(list) => list.iter().any(|line| {
            let (a, b) = line.split_once(" -> ").expect("FROM -> TO");
            let fits = |pattern: &str, pod: &str| match pattern {
                "*" => !hosts(pod),
                "hosts" => hosts(pod),
                _ => pattern == pod,
            };
            fits(a, from) && fits(b, to)
        }),
    };
    let mut found = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| wanted(from, to)) {
            let ports = if matches!(ask, Ask::Open) { 1 } else { usize::MAX };
            for port in world.ports_of(to).into_iter().take(ports) {
                for v4 in &world.families {
                    found.push(Pair { from: from.clone(), to: to.clone(), port, v4: *v4 });
                }
            }
        }
    }
    found
}

impl Pair {
    /// The keys of both ends.
    pub fn keys(&self, world: &World) -> (ObjectKey, ObjectKey) {
        (world.key(&self.from), world.key(&self.to))
    }
}
