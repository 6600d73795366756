//! Events in, changes of slices out.

use hashbrown::{HashMap, HashSet};

use crate::budget::{Budgets, Spent};
use crate::graph::Graph;
use crate::lower::PeerSets;
use crate::news::{Isolated, News};
use crate::nodes::NodeStates;
use crate::object::{Event, ObjectKey};
use crate::policies::Policies;
use crate::policy::{Problem, ReadPolicy};
use crate::population::{Placed, Population};
use crate::profiles::Profiles;
use crate::slice::{Change, SliceDelta, SlicePod};
use crate::small::Places;
use crate::subjects::Subject;

/// For which nodes slices are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// For every node that has pods: a controller.
    AllNodes,
    /// For one node: an agent that compiles for itself.
    Node(String),
}

/// What a batch of events changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Deltas {
    /// The slices that changed, by node.
    pub slices: Vec<SliceDelta>,
    /// The problems of each policy that came or changed (none: it can be enforced as it is), and
    /// `None` for each that went.
    pub policies: Vec<(ObjectKey, Option<Vec<Problem>>)>,
    /// Whether each policy that came or changed, or that got its first pod or lost its last, selects any pod. Only
    /// for [`Scope::AllNodes`].
    pub selecting: Vec<(ObjectKey, bool)>,
    /// Pods that are isolated now and were not before, by policy. Only for [`Scope::AllNodes`].
    pub isolated: Vec<Isolated>,
}

/// The compiler. See the [crate].
#[derive(Debug)]
pub struct Compiler {
    pub(crate) scope: Scope,
    pub(crate) budgets: Budgets,
    /// By namespace, of those that have policies.
    pub(crate) spent: HashMap<String, Spent>,
    /// Namespaces that have more than they may, or had.
    pub(crate) unsettled: HashSet<String>,
    pub(crate) population: Population,
    pub(crate) graph: Graph,
    pub(crate) peer_sets: PeerSets,
    pub(crate) policies: Policies,
    /// Policies whose object is gone, but not yet the pods of their namespace (N79).
    orphans: HashMap<String, HashSet<ObjectKey>>,
    /// By the number of their selection.
    pub(crate) subjects: Places<u32, Subject>,
    pub(crate) profiles: Profiles,
    pub(crate) nodes: NodeStates,
    /// Nodes that pods left in this batch: their names are needed until its end.
    pub(crate) left_nodes: Vec<u32>,
    pub(crate) news: News,
}

impl Compiler {
    /// A compiler that knows of no objects yet, and takes policies of any size.
    pub fn new(scope: Scope) -> Self {
        Compiler::with(scope, Budgets::NONE)
    }

    /// The same, with budgets.
    pub fn with(scope: Scope, budgets: Budgets) -> Self {
        Compiler {
            scope,
            budgets,
            spent: HashMap::new(),
            unsettled: HashSet::new(),
            population: Population::default(),
            graph: Graph::default(),
            peer_sets: PeerSets::default(),
            policies: Policies::default(),
            orphans: HashMap::new(),
            subjects: Places::default(),
            profiles: Profiles::default(),
            nodes: NodeStates::default(),
            left_nodes: Vec::new(),
            news: News::default(),
        }
    }

    /// Takes events, in order, and tells what they changed altogether.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Deltas {
        for event in events {
            self.event(event);
        }
        self.settle();
        let policies = self.policies.take_touched();
        self.begin_news();
        let slices = self.commit();
        let selecting = self.take_selecting();
        Deltas { slices, policies, selecting, isolated: self.take_isolated() }
    }

    /// A pod as slices have it.
    pub(crate) fn pod_change(&self, pod: u32, placed: &Placed) -> Change {
        let profile = &self.profiles.all[placed.profile as usize];
        let state = SlicePod {
            addresses: placed.addresses.to_vec(),
            profile: profile.id,
            ports: profile.ports.clone(),
            log_allowed: placed.log_allowed,
        };
        Change::Pod(self.population.pod_state(pod).key.clone(), state)
    }

    /// The policies that cannot be enforced as they are, sorted.
    pub fn problems(&self) -> Vec<(&ObjectKey, &[Problem])> {
        let reads = self.policies.all.iter().map(|(_, policy)| &policy.read);
        let with = reads.filter(|read| !read.problems.is_empty());
        let mut all: Vec<_> = with.map(|read| (&read.key, read.problems.as_slice())).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    /// How many pods, policies and vertices there are.
    pub fn counts(&self) -> Counts {
        Counts {
            pods: self.population.pod_count(),
            policies: self.policies.all.len(),
            vertices: self.graph.len(),
            profiles: self.profiles.all.len(),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Namespace(ns) => {
                let name = ns.name.clone();
                self.population.namespace(ns);
                self.drop_orphans(&name);
            }
            Event::NamespaceGone(name) => {
                self.population.namespace_gone(&name);
                self.drop_orphans(&name);
            }
            Event::Pod(pod) => {
                // a pod may be the last one, too: it may have finished
                let namespace = (!self.orphans.is_empty()).then(|| pod.key.namespace.clone());
                self.population.pod(pod);
                namespace.into_iter().for_each(|namespace| self.drop_orphans(&namespace));
            }
            Event::PodGone(key) => {
                self.population.pod_gone(&key);
                self.drop_orphans(&key.namespace);
            }
            Event::Policy(policy) => {
                let read = ReadPolicy::read(&policy).within(&self.budgets);
                if let Some(orphans) = self.orphans.get_mut(&read.key.namespace) {
                    orphans.remove(&read.key);
                }
                let known = self.policies.find(&read.key);
                let old = known.map(|id| (id, self.policies.all[id as usize].written()));
                if let Some((id, old)) = old
                    && *old == read
                {
                    return self.policies.touch(id);
                }
                let old = old.map(|(_, old)| old.cost);
                self.spend(&read.key.namespace, old, Some(read.cost));
                self.set_policy(read);
            }
            Event::PolicyGone(key) => {
                if !self.population.is_draining(&key.namespace) {
                    self.remove_policy(&key);
                } else if self.policies.find(&key).is_some() {
                    self.orphans.entry(key.namespace.clone()).or_default().insert(key);
                }
            }
        }
    }

    /// N79: while a namespace goes, its policies outlive their objects until its pods are gone.
    fn drop_orphans(&mut self, namespace: &str) {
        if !self.orphans.contains_key(namespace) || self.population.is_draining(namespace) {
            return;
        }
        for key in self.orphans.remove(namespace).into_iter().flatten() {
            self.remove_policy(&key);
        }
    }
}

/// See [`Compiler::counts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Pods that are not in the host's network and not finished.
    pub pods: usize,
    /// NetworkPolicies.
    pub policies: usize,
    /// Vertices of the rule graph.
    pub vertices: usize,
    /// Distinct profiles of pods.
    pub profiles: usize,
}
