//! Events in, changes of slices out.

use hashbrown::{HashMap, HashSet};

use crate::deltas::{Phase, Table, Told};
use crate::graph::{Graph, Vertex};
use crate::lower::PeerSets;
use crate::nodes::NodeState;
use crate::object::{Event, ObjectKey};
use crate::policies::Policies;
use crate::policy::{Problem, ReadPolicy};
use crate::population::{Placed, Population};
use crate::profiles::Profiles;
use crate::slice::{Change, Changes, NodeSlice, SliceDelta, SlicePod};
use crate::small::{PlaceSet, Places};
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
}

/// The compiler. See the [crate].
#[derive(Debug)]
pub struct Compiler {
    pub(crate) scope: Scope,
    pub(crate) population: Population,
    pub(crate) graph: Graph,
    pub(crate) peer_sets: PeerSets,
    pub(crate) policies: Policies,
    /// Policies whose object is gone, but not yet the pods of their namespace (N79).
    orphans: HashMap<String, HashSet<ObjectKey>>,
    /// By the number of their selection.
    pub(crate) subjects: Places<u32, Subject>,
    pub(crate) profiles: Profiles,
    pub(crate) nodes: Places<u32, NodeState>,
    /// Nodes that pods left in this batch: their names are needed until its end.
    pub(crate) left_nodes: Vec<u32>,
    /// How many batches there have been.
    pub(crate) batches: u64,
}

impl Compiler {
    /// A compiler that knows of no objects yet.
    pub fn new(scope: Scope) -> Self {
        Compiler {
            scope,
            population: Population::default(),
            graph: Graph::default(),
            peer_sets: PeerSets::default(),
            policies: Policies::default(),
            orphans: HashMap::new(),
            subjects: Places::default(),
            profiles: Profiles::default(),
            nodes: Places::default(),
            left_nodes: Vec::new(),
            batches: 0,
        }
    }

    /// Takes events, in order, and tells what they changed altogether.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Deltas {
        for event in events {
            self.event(event);
        }
        let policies = self.policies.take_touched();
        Deltas { slices: self.commit(), policies }
    }

    /// The whole slice of a node, as changes of an empty one.
    pub fn snapshot(&self, node: &str) -> SliceDelta {
        let empty = || SliceDelta { node: node.into(), changes: Changes::default() };
        self.snapshots([node]).pop().unwrap_or_else(empty)
    }

    /// The whole slices of these nodes, without those that are empty: what they have in common is there once.
    pub fn snapshots<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> Vec<SliceDelta> {
        let mut table = Table::default();
        let all = nodes.into_iter().filter_map(|name| {
            let node = self.population.nodes.find(name)?;
            let told = self.tell_all(self.nodes.get(&node)?, &mut table);
            Some((self.population.nodes.name(node).clone(), told))
        });
        let all: Vec<_> = all.collect();
        table.finish(all)
    }

    fn tell_all(&self, node: &NodeState, table: &mut Table) -> Told {
        let mut told = Told::default();
        let (mut profiles, mut subjects) = (PlaceSet::default(), PlaceSet::default());
        let mut vertices = HashSet::new();
        for pod in node.pods.iter() {
            let placed = self.population.pod_state(pod).placed.as_ref().expect("it is on this node");
            told.add(Phase::Pods, table.push(self.pod_change(pod, placed)));
            if !profiles.insert(placed.profile) {
                continue;
            }
            told.add(Phase::Profiles, self.about_profile(placed.profile, table));
            let profile = &self.profiles.all[placed.profile as usize];
            for subject in profile.selections.iter().filter(|s| subjects.insert(**s)) {
                told.add(Phase::Policies, self.about_policies(*subject, table));
            }
            for ruleset in &profile.rulesets {
                self.tell_vertex(*ruleset, &mut vertices, &mut told, table);
            }
        }
        told
    }

    fn tell_vertex(&self, vertex: Vertex, seen: &mut HashSet<Vertex>, told: &mut Told, table: &mut Table) {
        if seen.insert(vertex) {
            for child in self.graph.children(vertex) {
                self.tell_vertex(child, seen, told, table);
            }
            told.add(Phase::Graph, self.about_vertex(vertex, table));
        }
    }

    /// A pod as slices have it.
    pub(crate) fn pod_change(&self, pod: u32, placed: &Placed) -> Change {
        let profile = &self.profiles.all[placed.profile as usize];
        let state = SlicePod {
            addresses: placed.addresses.to_vec(),
            profile: profile.id,
            ports: profile.ports.clone(),
        };
        Change::Pod(self.population.pod_state(pod).key.clone(), state)
    }

    /// The slice of a node.
    pub fn slice(&self, node: &str) -> NodeSlice {
        let mut slice = NodeSlice::default();
        slice.apply(&self.snapshot(node).changes);
        slice
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
                let read = ReadPolicy::read(&policy);
                if let Some(orphans) = self.orphans.get_mut(&read.key.namespace) {
                    orphans.remove(&read.key);
                }
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
