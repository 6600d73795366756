//! Events in, changes of slices out.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use slab::Slab;

use crate::commit::{Draft, NodeState};
use crate::graph::Graph;
use crate::lower::{Lowered, PeerSets};
use crate::object::{Event, ObjectKey};
use crate::policy::{NAMESPACE_NAME_LABEL, Problem, ReadPolicy};
use crate::population::Population;
use crate::profiles::ProfileState;
use crate::selector::Selector;
use crate::slice::{Change, Changes, NodeSlice, ProfileId, SliceDelta, SlicePolicy, SubjectId};

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
    pub(crate) policies: HashMap<ObjectKey, PolicyState>,
    /// Policies whose object is gone, but not yet the pods of their namespace (N79).
    pub(crate) orphans: HashMap<String, HashSet<ObjectKey>>,
    /// The policies of a selection, as its subject.
    pub(crate) policies_of: HashMap<usize, HashSet<ObjectKey>>,
    pub(crate) profiles: Slab<ProfileState>,
    pub(crate) profile_ids: HashMap<ProfileId, usize>,
    pub(crate) profile_of_class: HashMap<usize, usize>,
    pub(crate) profiles_of: HashMap<usize, HashSet<usize>>,
    pub(crate) nodes: HashMap<Arc<str>, NodeState>,
    /// Where each pod is in a slice at present.
    pub(crate) placed: HashMap<ObjectKey, Arc<str>>,
    pub(crate) dirty_profiles: HashSet<usize>,
    pub(crate) dirty_policies: HashSet<ObjectKey>,
}

#[derive(Debug)]
pub(crate) struct PolicyState {
    pub(crate) read: ReadPolicy,
    selection: usize,
    pub(crate) lowered: Lowered,
}

impl Compiler {
    /// A compiler that knows of no objects yet.
    pub fn new(scope: Scope) -> Self {
        Compiler {
            scope,
            population: Population::default(),
            graph: Graph::default(),
            peer_sets: PeerSets::default(),
            policies: HashMap::new(),
            orphans: HashMap::new(),
            policies_of: HashMap::new(),
            profiles: Slab::new(),
            profile_ids: HashMap::new(),
            profile_of_class: HashMap::new(),
            profiles_of: HashMap::new(),
            nodes: HashMap::new(),
            placed: HashMap::new(),
            dirty_profiles: HashSet::new(),
            dirty_policies: HashSet::new(),
        }
    }

    /// Takes events, in order, and tells what they changed altogether.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Deltas {
        let mut touched = HashSet::new();
        for event in events {
            self.event(event, &mut touched);
        }
        let mut touched: Vec<ObjectKey> = touched.into_iter().collect();
        touched.sort_unstable();
        let problems = |key: &ObjectKey| self.policies.get(key).map(|p| p.read.problems.clone());
        let policies = touched.iter().map(|key| (key.clone(), problems(key))).collect();
        Deltas { slices: self.commit(), policies }
    }

    /// The whole slice of a node, as changes of an empty one.
    pub fn snapshot(&self, node: &str) -> SliceDelta {
        let mut draft = Draft::default();
        if let Some((name, state)) = self.nodes.get_key_value(node) {
            for key in state.policies.keys() {
                draft.policies.push(self.policy_change(key));
            }
            let mut seen = HashSet::new();
            for (_, profile) in self.profiles.iter().filter(|(_, p)| p.nodes.contains_key(name)) {
                for ruleset in &profile.rulesets {
                    self.walk(*ruleset, &mut seen, &mut draft.graph);
                }
                draft.profiles.push(Change::Profile(profile.id, profile.content.clone()));
            }
            draft.pods = state.pods.iter().map(|(k, (p, _))| Change::Pod(k.clone(), p.clone())).collect();
        }
        let changes = draft.finish();
        let all = 0..u32::try_from(changes.len()).expect("changes are counted in 32 bits");
        SliceDelta { node: node.into(), changes: Changes::new(Arc::new(changes), vec![all]) }
    }

    pub(crate) fn policy_change(&self, key: &ObjectKey) -> Change {
        let policy = &self.policies[key];
        let subject = SubjectId(self.population.selection(policy.selection).id.0);
        Change::Policy(key.clone(), SlicePolicy { subject, clauses: policy.read.clauses.clone() })
    }

    /// The slice of a node.
    pub fn slice(&self, node: &str) -> NodeSlice {
        let mut slice = NodeSlice::default();
        slice.apply(&self.snapshot(node).changes);
        slice
    }

    /// The policies that cannot be enforced as they are, sorted.
    pub fn problems(&self) -> Vec<(&ObjectKey, &[Problem])> {
        let with = self.policies.iter().filter(|(_, p)| !p.read.problems.is_empty());
        let mut all: Vec<_> = with.map(|(key, p)| (key, p.read.problems.as_slice())).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    /// How many pods, policies and vertices there are.
    pub fn counts(&self) -> Counts {
        Counts {
            pods: self.population.pod_count(),
            policies: self.policies.len(),
            vertices: self.graph.len(),
            profiles: self.profiles.len(),
        }
    }

    fn event(&mut self, event: Event, touched: &mut HashSet<ObjectKey>) {
        match event {
            Event::Namespace(ns) => {
                self.population.namespace(&ns);
                self.drop_orphans(&ns.name, touched);
            }
            Event::NamespaceGone(name) => {
                self.population.namespace_gone(&name);
                self.drop_orphans(&name, touched);
            }
            Event::Pod(pod) => {
                self.population.pod(&pod);
                self.drop_orphans(&pod.key.namespace, touched);
            }
            Event::PodGone(key) => {
                self.population.pod_gone(&key);
                self.drop_orphans(&key.namespace, touched);
            }
            Event::Policy(policy) => {
                let read = ReadPolicy::read(&policy);
                touched.insert(read.key.clone());
                if let Some(orphans) = self.orphans.get_mut(&read.key.namespace) {
                    orphans.remove(&read.key);
                }
                self.set_policy(read);
            }
            Event::PolicyGone(key) => {
                if self.population.is_draining(&key.namespace) {
                    if self.policies.contains_key(&key) {
                        self.orphans.entry(key.namespace.clone()).or_default().insert(key);
                    }
                } else {
                    touched.insert(key.clone());
                    self.remove_policy(&key);
                }
            }
        }
    }

    /// N79: while a namespace goes, its policies outlive their objects until its pods are gone.
    fn drop_orphans(&mut self, namespace: &str, touched: &mut HashSet<ObjectKey>) {
        if !self.orphans.contains_key(namespace) || self.population.is_draining(namespace) {
            return;
        }
        for key in self.orphans.remove(namespace).into_iter().flatten() {
            self.remove_policy(&key);
            touched.insert(key);
        }
    }

    fn set_policy(&mut self, read: ReadPolicy) {
        if self.policies.get(&read.key).is_some_and(|p| p.read == read) {
            return;
        }
        let key = read.key.clone();
        // what is new takes its references before what is old gives them back
        let namespace = Selector::label(NAMESPACE_NAME_LABEL, &key.namespace);
        let selection = self.population.retain(&namespace, &read.subject);
        let lowered = Lowered::new(&read.clauses, &mut self.graph, &mut self.population, &mut self.peer_sets);
        self.policies_of.entry(selection).or_default().insert(key.clone());
        self.population.set_subject(selection, true);
        self.mark_profiles(selection);
        self.dirty_policies.insert(key.clone());
        if let Some(old) = self.policies.insert(key.clone(), PolicyState { read, selection, lowered }) {
            self.retire(&key, old, selection);
        }
    }

    fn remove_policy(&mut self, key: &ObjectKey) {
        if let Some(old) = self.policies.remove(key) {
            self.retire(key, old, usize::MAX);
        }
    }

    fn retire(&mut self, key: &ObjectKey, old: PolicyState, new_selection: usize) {
        if old.selection != new_selection
            && let Some(of) = self.policies_of.get_mut(&old.selection)
        {
            of.remove(key);
            if of.is_empty() {
                self.policies_of.remove(&old.selection);
            }
        }
        self.population.set_subject(old.selection, false);
        self.mark_profiles(old.selection);
        self.population.release(old.selection);
        let dead = old.lowered.release(&mut self.graph);
        self.peer_sets.bury(dead, &mut self.population);
    }

    fn mark_profiles(&mut self, selection: usize) {
        self.dirty_profiles.extend(self.profiles_of.get(&selection).into_iter().flatten());
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
