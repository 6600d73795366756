//! From what events touched to the changes of each node's slice.
//!
//! What is new comes first, each thing after all that it refers to; what is gone goes last, each
//! thing after all that referred to it. A vertex that leaves and comes back within one commit is
//! never gone in between, for it is held anew before it is let go.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::compiler::{Compiler, Scope};
use crate::graph::{Content, Vertex};
use crate::object::ObjectKey;
use crate::slice::{Change, Changes, Member, PeerSetId, PortSetId, RuleId, RulesetId, SliceDelta, SlicePod};

/// What is in a node's slice, counted.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) pods: BTreeMap<ObjectKey, (SlicePod, usize)>,
    pub(crate) vertices: HashMap<Vertex, usize>,
    pub(crate) policies: HashMap<ObjectKey, usize>,
}

/// The changes of a node's slice that are being collected.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) graph: Vec<Change>,
    pub(crate) policies: Vec<Change>,
    pub(crate) profiles: Vec<Change>,
    pub(crate) pods: Vec<Change>,
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
    pub(crate) fn commit(&mut self) -> Vec<SliceDelta> {
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
            if !self.policies.contains_key(&key) { continue };
            for (node, state) in &self.nodes {
                if state.policies.contains_key(&key) {
                    let draft = drafts.entry(node.clone()).or_default();
                    if !draft.fresh_policies.contains(&key) {
                        draft.policies.push(self.policy_change(&key));
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

        let mut table = Vec::new();
        let mut places = Vec::new();
        for (node, draft) in drafts {
            let start = table.len() as u32;
            table.extend(draft.finish());
            let end = table.len() as u32;
            if start < end {
                places.push((node, start..end));
            }
        }
        let table = Arc::new(table);
        let delta = |(node, place)| SliceDelta { node, changes: Changes::new(table.clone(), vec![place]) };
        places.into_iter().map(delta).collect()
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
        for key in self.profiles[id].policies.clone() {
            let state = self.nodes.entry(node.clone()).or_default();
            let count = state.policies.entry(key.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                draft.fresh_policies.insert(key.clone());
                draft.policies.push(self.policy_change(&key));
            }
        }
        let profile = &self.profiles[id];
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
            Content::PortSet(_) => Change::PortSetGone(PortSetId(id)),
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
        (self.profiles[id].rulesets.clone(), self.profiles[id].policies.clone())
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
            Content::PortSet(ports) => Change::PortSet(PortSetId(id), ports.clone()),
            Content::Rule { .. } => {
                Change::Rule(RuleId(id), self.graph.as_rule(vertex).expect("it is a rule with ports"))
            }
            Content::Ruleset { .. } => {
                Change::Ruleset(RulesetId(id), self.graph.as_ruleset(vertex).expect("it is a ruleset"))
            }
        }
    }

    pub(crate) fn walk(&self, vertex: Vertex, seen: &mut HashSet<Vertex>, out: &mut Vec<Change>) {
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
    pub(crate) fn finish(mut self) -> Vec<Change> {
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
