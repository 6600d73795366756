//! Events in, changes of slices out.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use slab::Slab;

use crate::graph::{Content, Graph, Vertex, profile_id, ruleset_id};
use crate::lower::{Lowered, LoweredRule, PeerSets};
use crate::object::{Event, ObjectKey};
use crate::policy::{Problem, ReadPolicy};
use crate::population::Population;
use crate::ports::PortSet;
use crate::slice::{
    Action, Change, Direction, Member, NodeSlice, PeerSetId, Profile, ProfileId, RuleId, RulesetId,
    SliceDelta, SlicePod, Tier,
};

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
    scope: Scope,
    population: Population,
    graph: Graph,
    peer_sets: PeerSets,
    policies: HashMap<ObjectKey, PolicyState>,
    /// Policies whose object is gone, but not yet the pods of their namespace (N79).
    orphans: HashMap<String, HashSet<ObjectKey>>,
    /// The policies of a selection, as its subject.
    policies_of: HashMap<usize, HashSet<ObjectKey>>,
    profiles: Slab<ProfileState>,
    profile_ids: HashMap<ProfileId, usize>,
    profile_of_class: HashMap<usize, usize>,
    profiles_of: HashMap<usize, HashSet<usize>>,
    nodes: HashMap<Arc<str>, NodeState>,
    /// Where each pod is in a slice at present.
    placed: HashMap<ObjectKey, Arc<str>>,
    dirty_profiles: HashSet<usize>,
    dirty_policies: HashSet<ObjectKey>,
}

#[derive(Debug)]
struct PolicyState {
    read: ReadPolicy,
    selection: usize,
    lowered: Lowered,
}

#[derive(Debug)]
struct ProfileState {
    id: ProfileId,
    /// Those of its classes that are subjects of policies.
    selections: Vec<usize>,
    ports: Arc<[crate::object::NamedPort]>,
    classes: usize,
    content: Profile,
    rulesets: Vec<Vertex>,
    /// Where it is in slices, and how many pods of the node have it.
    nodes: HashMap<Arc<str>, usize>,
}

/// What is in a node's slice, counted.
#[derive(Debug, Default)]
struct NodeState {
    pods: BTreeMap<ObjectKey, (SlicePod, usize)>,
    vertices: HashMap<Vertex, usize>,
    policies: HashMap<ObjectKey, usize>,
}

/// The changes of a node's slice that are being collected.
#[derive(Default)]
struct Draft {
    graph: Vec<Change>,
    policies: Vec<Change>,
    profiles: Vec<Change>,
    pods: Vec<Change>,
    members: Vec<Change>,
    gone_pods: Vec<Change>,
    gone_profiles: Vec<Change>,
    gone_policies: Vec<Change>,
    gone_graph: Vec<Change>,
    /// Peer sets that are new here, hence sent with all their members.
    fresh: HashSet<Vertex>,
    fresh_policies: HashSet<ObjectKey>,
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
                let clauses = self.policies[key].read.clauses.clone();
                draft.policies.push(Change::Policy(key.clone(), clauses));
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
        SliceDelta { node: node.to_owned(), changes: draft.finish() }
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
        let namespace = crate::selector::Selector::label(crate::policy::NAMESPACE_NAME_LABEL, &key.namespace);
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

    fn commit(&mut self) -> Vec<SliceDelta> {
        let mut drafts: BTreeMap<Arc<str>, Draft> = BTreeMap::new();
        let mut released: Vec<Vertex> = Vec::new();

        let mut classes: Vec<usize> =
            std::mem::take(&mut self.population.journal.classes).into_iter().collect();
        classes.sort_unstable();
        let unused: Vec<usize> = classes.into_iter().filter_map(|c| self.assign_profile(c)).collect();

        let mut dirty: Vec<usize> = std::mem::take(&mut self.dirty_profiles).into_iter().collect();
        dirty.sort_unstable();
        // what a slice no longer needs is let go at the end, after all that is new has come
        let mut let_go: Vec<(Arc<str>, Vec<Vertex>, Vec<ObjectKey>)> = Vec::new();
        for id in dirty {
            if let Some((rulesets, policies)) = self.rebuild_profile(id) {
                let profile = &self.profiles[id];
                let mut nodes: Vec<Arc<str>> = profile.nodes.keys().cloned().collect();
                nodes.sort_unstable();
                for node in nodes {
                    let draft = drafts.entry(node.clone()).or_default();
                    self.hold_profile(&node, id, draft);
                    let_go.push((node, rulesets.clone(), policies.clone()));
                }
                released.extend(rulesets);
            }
        }

        let mut pods: Vec<ObjectKey> =
            std::mem::take(&mut self.population.journal.pods).into_iter().collect();
        pods.sort_unstable();
        let mut left = Vec::new();
        for key in pods {
            self.place_pod(key, &mut drafts, &mut left);
        }

        let mut policies: Vec<ObjectKey> = std::mem::take(&mut self.dirty_policies).into_iter().collect();
        policies.sort_unstable();
        for key in policies {
            let Some(policy) = self.policies.get(&key) else { continue };
            for (node, state) in &self.nodes {
                if state.policies.contains_key(&key) {
                    let draft = drafts.entry(node.clone()).or_default();
                    if !draft.fresh_policies.contains(&key) {
                        draft.policies.push(Change::Policy(key.clone(), policy.read.clauses.clone()));
                    }
                }
            }
        }

        self.member_changes(&mut drafts);

        for (node, profile) in left {
            let draft = drafts.entry(node.clone()).or_default();
            if self.leave_profile(&node, profile) {
                draft.gone_profiles.push(Change::ProfileGone(self.profiles[profile].id));
                let (rulesets, policies) = self.held_by(profile);
                self.let_go(&node, &rulesets, &policies, draft);
            }
        }
        for (node, rulesets, policies) in let_go {
            let draft = drafts.entry(node.clone()).or_default();
            self.let_go(&node, &rulesets, &policies, draft);
        }
        for profile in unused {
            released.extend(self.forget_profile(profile));
        }
        let mut dead = Vec::new();
        for vertex in released {
            self.graph.release(vertex, &mut dead);
        }
        self.peer_sets.bury(dead, &mut self.population);
        self.nodes.retain(|_, n| !n.pods.is_empty());

        let finished =
            drafts.into_iter().map(|(node, d)| SliceDelta { node: node.to_string(), changes: d.finish() });
        finished.filter(|d| !d.changes.is_empty()).collect()
    }

    /// Gives a class the profile that fits it. Returns the one that nobody has any more.
    fn assign_profile(&mut self, class_id: usize) -> Option<usize> {
        let old = self.profile_of_class.remove(&class_id);
        if let Some(class) = self.population.class_state(class_id) {
            let selections = self.population.subjects(class);
            let ports = class.ports().clone();
            let id = profile_id(
                selections.iter().map(|s| &self.population.selection(*s).id),
                ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)),
            );
            let profile = match self.profile_ids.get(&id) {
                Some(&profile) => profile,
                None => {
                    for selection in &selections {
                        // its number must stay this selection's as long as the profile names it
                        self.population.retain_again(*selection);
                        self.profiles_of.entry(*selection).or_default().insert(self.profiles.vacant_key());
                    }
                    let profile = self.profiles.insert(ProfileState {
                        id,
                        selections,
                        ports,
                        classes: 0,
                        content: Profile::default(),
                        rulesets: Vec::new(),
                        nodes: HashMap::new(),
                    });
                    self.profile_ids.insert(id, profile);
                    self.dirty_profiles.insert(profile);
                    profile
                }
            };
            self.profiles[profile].classes += 1;
            self.profile_of_class.insert(class_id, profile);
            if old != Some(profile) {
                self.population.touch_pods(class_id);
            }
        }
        let old = old?;
        self.profiles[old].classes -= 1;
        (self.profiles[old].classes == 0).then_some(old)
    }

    /// Compiles a profile again. If that changed it: the rulesets and policies that it had.
    fn rebuild_profile(&mut self, id: usize) -> Option<(Vec<Vertex>, Vec<ObjectKey>)> {
        let profile = self.profiles.get(id)?;
        let of = profile.selections.iter().filter_map(|s| self.policies_of.get(s)).flatten();
        let mut policies: Vec<ObjectKey> = of.cloned().collect();
        policies.sort_unstable();
        policies.dedup();
        let ports = profile.ports.clone();
        let mut content = Profile::default();
        let mut rulesets = Vec::new();
        for direction in Direction::BOTH {
            let Some(ruleset) = self.ruleset(direction, &policies, &ports) else { continue };
            rulesets.push(ruleset);
            let id = Some(ruleset_id(&self.graph, ruleset));
            match direction {
                Direction::Ingress => content.ingress = id,
                Direction::Egress => content.egress = id,
            }
        }
        content.policies = policies;
        if content == self.profiles[id].content {
            let mut dead = Vec::new();
            rulesets.into_iter().for_each(|v| self.graph.release(v, &mut dead));
            debug_assert!(dead.is_empty(), "the profile still holds the same rulesets");
            return None;
        }
        let profile = &mut self.profiles[id];
        let old = std::mem::replace(&mut profile.rulesets, rulesets);
        let old_content = std::mem::replace(&mut profile.content, content);
        Some((old, old_content.policies))
    }

    /// The ruleset of pods that these policies select, with a reference; `None`: none isolates
    /// them in this direction (N1, N2, N16).
    fn ruleset(
        &mut self,
        direction: Direction,
        policies: &[ObjectKey],
        ports: &[crate::object::NamedPort],
    ) -> Option<Vertex> {
        let mut isolated = false;
        let mut rules: Vec<Vertex> = Vec::new();
        let mut resolved: Vec<Vertex> = Vec::new();
        for key in policies {
            let Some(lowered) = self.policies[key].lowered.rules(direction) else { continue };
            isolated = true;
            for rule in lowered {
                match rule {
                    LoweredRule::Fixed(rule) => rules.push(*rule),
                    LoweredRule::Named { peers, ranges, names } => {
                        // N55: the number is the one that the selected pod gives the name
                        let named = ports
                            .iter()
                            .filter(|p| names.iter().any(|(n, proto)| *n == p.name && *proto == p.protocol))
                            .map(|p| (p.protocol, p.port, p.port));
                        let set = PortSet::from_ranges(ranges.iter().copied().chain(named));
                        if set.is_empty() {
                            continue;
                        }
                        peers.iter().flatten().for_each(|p| self.graph.retain(*p));
                        let ports = self.graph.port_set(set);
                        resolved.push(self.graph.rule(Action::Accept, peers.clone(), ports));
                    }
                }
            }
        }
        let entries = rules.iter().chain(&resolved).map(|r| (Tier::NetworkPolicy, 0, *r));
        let ruleset = isolated.then(|| self.graph.ruleset(direction, true, entries));
        let mut dead = Vec::new();
        resolved.into_iter().for_each(|r| self.graph.release(r, &mut dead));
        debug_assert!(dead.is_empty(), "policies hold the peer sets");
        ruleset
    }

    /// Puts a pod where it belongs now: `left` are the profiles that it no longer has somewhere.
    fn place_pod(
        &mut self,
        key: ObjectKey,
        drafts: &mut BTreeMap<Arc<str>, Draft>,
        left: &mut Vec<(Arc<str>, usize)>,
    ) {
        let now = self.population.pod_state(&key).and_then(|pod| {
            let node = pod.node.clone()?;
            let in_scope = match &self.scope {
                Scope::AllNodes => true,
                Scope::Node(name) => **name == *node,
            };
            if !in_scope || pod.owned.is_empty() {
                return None;
            }
            let profile = self.profile_of_class[&pod.class];
            let class = self.population.class_state(pod.class)?;
            let state = SlicePod {
                addresses: pod.owned.to_vec(),
                profile: self.profiles[profile].id,
                ports: class.ports().clone(),
            };
            Some((node, state, profile))
        });
        let before = self.placed.get(&key).cloned();
        if let Some((node, state, profile)) = now {
            if before.as_ref() != Some(&node) {
                self.placed.insert(key.clone(), node.clone());
            }
            let old = self
                .nodes
                .entry(node.clone())
                .or_default()
                .pods
                .insert(key.clone(), (state.clone(), profile));
            let draft = drafts.entry(node.clone()).or_default();
            if old.as_ref().is_none_or(|(_, p)| *p != profile) {
                let count = self.profiles[profile].nodes.entry(node.clone()).or_insert(0);
                *count += 1;
                if *count == 1 {
                    self.hold_profile(&node, profile, draft);
                }
            }
            if old.as_ref().is_none_or(|(s, _)| *s != state) {
                draft.pods.push(Change::Pod(key.clone(), state));
            }
            if let Some((_, old)) = old.filter(|(_, p)| *p != profile) {
                left.push((node.clone(), old));
            }
            if before.as_ref() == Some(&node) {
                return;
            }
        } else {
            self.placed.remove(&key);
        }
        if let Some(node) = before {
            let state = self.nodes.get_mut(&node).expect("pods are placed on nodes that are there");
            let (_, profile) = state.pods.remove(&key).expect("it was placed there");
            left.push((node.clone(), profile));
            drafts.entry(node).or_default().gone_pods.push(Change::PodGone(key));
        }
    }

    /// Puts a profile, and all that it reaches, into a node's slice.
    fn hold_profile(&mut self, node: &Arc<str>, id: usize, draft: &mut Draft) {
        let profile = &self.profiles[id];
        let state = self.nodes.entry(node.clone()).or_default();
        for key in &profile.content.policies {
            let count = state.policies.entry(key.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                draft.fresh_policies.insert(key.clone());
                draft.policies.push(Change::Policy(key.clone(), self.policies[key].read.clauses.clone()));
            }
        }
        for ruleset in profile.rulesets.clone() {
            self.hold_vertex(node, ruleset, draft);
        }
        let profile = &self.profiles[id];
        draft.profiles.push(Change::Profile(profile.id, profile.content.clone()));
    }

    /// Post-order: what a vertex refers to comes before it.
    fn hold_vertex(&mut self, node: &Arc<str>, vertex: Vertex, draft: &mut Draft) {
        let count = self.nodes.get_mut(node).expect("it is there").vertices.entry(vertex).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        let children: Vec<Vertex> = self.graph.children(vertex).collect();
        for child in children {
            self.hold_vertex(node, child, draft);
        }
        if let Some(selection) = self.peer_sets.selection(vertex) {
            self.population.set_held(selection, vertex, true);
            self.peer_sets.hold(vertex, node, true);
            draft.fresh.insert(vertex);
        }
        draft.graph.push(self.describe(vertex));
    }

    fn let_go(&mut self, node: &Arc<str>, rulesets: &[Vertex], policies: &[ObjectKey], draft: &mut Draft) {
        for vertex in rulesets {
            self.let_go_vertex(node, *vertex, draft);
        }
        let state = self.nodes.get_mut(node).expect("it is there");
        for key in policies {
            let count = state.policies.get_mut(key).expect("counted");
            *count -= 1;
            if *count == 0 {
                state.policies.remove(key);
                draft.gone_policies.push(Change::PolicyGone(key.clone()));
            }
        }
    }

    fn let_go_vertex(&mut self, node: &Arc<str>, vertex: Vertex, draft: &mut Draft) {
        let state = self.nodes.get_mut(node).expect("it is there");
        let count = state.vertices.get_mut(&vertex).expect("counted");
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.vertices.remove(&vertex);
        let id = self.graph.id(vertex);
        draft.gone_graph.push(match self.graph.content(vertex) {
            Content::PeerSet(_) => Change::PeerSetGone(PeerSetId(id)),
            Content::PortSet(_) => Change::PortSetGone(crate::slice::PortSetId(id)),
            Content::Rule { .. } => Change::RuleGone(RuleId(id)),
            Content::Ruleset { .. } => Change::RulesetGone(RulesetId(id)),
        });
        if let Some(selection) = self.peer_sets.selection(vertex) {
            self.population.set_held(selection, vertex, false);
            self.peer_sets.hold(vertex, node, false);
        }
        let children: Vec<Vertex> = self.graph.children(vertex).collect();
        for child in children {
            self.let_go_vertex(node, child, draft);
        }
    }

    /// One pod of the node less has the profile: whether it was the last.
    fn leave_profile(&mut self, node: &Arc<str>, id: usize) -> bool {
        let nodes = &mut self.profiles[id].nodes;
        let count = nodes.get_mut(node).expect("counted");
        *count -= 1;
        let last = *count == 0;
        if last {
            nodes.remove(node);
        }
        last
    }

    fn held_by(&self, id: usize) -> (Vec<Vertex>, Vec<ObjectKey>) {
        (self.profiles[id].rulesets.clone(), self.profiles[id].content.policies.clone())
    }

    /// Forgets a profile that no class has: the rulesets whose references it gives back.
    fn forget_profile(&mut self, id: usize) -> Vec<Vertex> {
        if self.profiles.get(id).is_none_or(|p| p.classes > 0) {
            return Vec::new();
        }
        let profile = self.profiles.remove(id);
        debug_assert!(profile.nodes.is_empty(), "its pods have left");
        self.profile_ids.remove(&profile.id);
        for selection in &profile.selections {
            if let Some(of) = self.profiles_of.get_mut(selection) {
                of.remove(&id);
                if of.is_empty() {
                    self.profiles_of.remove(selection);
                }
            }
            self.population.release(*selection);
        }
        profile.rulesets
    }

    fn member_changes(&mut self, drafts: &mut BTreeMap<Arc<str>, Draft>) {
        for (vertex, changes) in std::mem::take(&mut self.population.journal.members) {
            if changes.is_empty() {
                continue;
            }
            let of = |wanted: bool| {
                let mut list: Vec<Member> =
                    changes.iter().filter(|(_, added)| **added == wanted).map(|(m, _)| *m).collect();
                list.sort_unstable();
                list
            };
            let change =
                Change::Members { id: PeerSetId(self.graph.id(vertex)), added: of(true), removed: of(false) };
            for node in self.peer_sets.holders(vertex) {
                let draft = drafts.entry(node.clone()).or_default();
                if !draft.fresh.contains(&vertex) {
                    draft.members.push(change.clone());
                }
            }
        }
    }

    fn describe(&self, vertex: Vertex) -> Change {
        let id = self.graph.id(vertex);
        match self.graph.content(vertex) {
            Content::PeerSet(set) => {
                let members = self.peer_sets.selection(vertex).map(|s| self.population.members(s, vertex));
                Change::PeerSet(PeerSetId(id), set.clone(), members.unwrap_or_default())
            }
            Content::PortSet(ports) => Change::PortSet(crate::slice::PortSetId(id), ports.clone()),
            Content::Rule { .. } => {
                Change::Rule(RuleId(id), self.graph.as_rule(vertex).expect("it is a rule with ports"))
            }
            Content::Ruleset { .. } => {
                Change::Ruleset(RulesetId(id), self.graph.as_ruleset(vertex).expect("it is a ruleset"))
            }
        }
    }

    fn walk(&self, vertex: Vertex, seen: &mut HashSet<Vertex>, out: &mut Vec<Change>) {
        if seen.insert(vertex) {
            for child in self.graph.children(vertex) {
                self.walk(child, seen, out);
            }
            out.push(self.describe(vertex));
        }
    }
}

impl Draft {
    /// The changes in an order in which each finds what it refers to.
    fn finish(mut self) -> Vec<Change> {
        let by_id = |change: &Change| match change {
            Change::Members { id, .. } => *id,
            _ => PeerSetId([0; 16]),
        };
        self.members.sort_unstable_by_key(by_id);
        // a profile may have come for a pod and then changed, or the other way round: the last holds
        let parts = [
            self.graph,
            self.policies,
            self.profiles,
            self.pods,
            self.members,
            self.gone_pods,
            self.gone_profiles,
            self.gone_policies,
            self.gone_graph,
        ];
        parts.into_iter().flatten().collect()
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
