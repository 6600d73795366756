//! From what events touched to the changes of each node's slice.
//!
//! ```text
//!   classes ──> profiles ──> rulesets compiled again
//!   pods ──> placed on nodes ──> what the node lacks comes, what it no longer needs goes
//!   policies, members ──> told to the nodes that have their subject, their set
//! ```
//!
//! A vertex that leaves and comes back within one batch is never gone in between, for it is held anew before
//! it is let go. What a batch costs is in proportion to what it touches, and to how many nodes that concerns.

use crate::compiler::{Compiler, Scope};
use crate::deltas::{Phase, Table};
use crate::graph::Vertex;
use crate::nodes::Batch;
use crate::object::ObjectKey;
use crate::population::Placed;
use crate::profiles::Rulesets;
use crate::slice::{Change, Member, PeerSetId, SliceDelta};

/// A policy that left its subject, and who has had it by that.
struct Left {
    key: ObjectKey,
    nodes: Vec<u32>,
}

impl Compiler {
    pub(crate) fn commit(&mut self) -> Vec<SliceDelta> {
        self.batches += 1;
        let mut batch = Batch { number: self.batches, table: Table::default(), nodes: Vec::new() };
        let left_policies = self.left_policies();

        let mut unused = std::mem::take(&mut self.population.journal.unclassed);
        unused.retain(|profile| self.profiles.leave(*profile));
        for class in self.population.take_classes() {
            unused.extend(self.assign_profile(class));
        }
        // what a slice no longer needs is let go at the end, after all that is new has come
        let mut replaced: Vec<(Vec<u32>, Rulesets)> = Vec::new();
        for id in self.profiles.take_dirty() {
            if let Some(rulesets) = self.rebuild_profile(id) {
                let nodes: Vec<u32> = self.profiles.all[id as usize].nodes.keys().collect();
                nodes.iter().for_each(|node| self.hold_rulesets(*node, id, &mut batch));
                replaced.push((nodes, rulesets));
            }
        }
        let mut left = Vec::new();
        for pod in self.population.take_pods() {
            self.place_pod(pod, &mut left, &mut batch);
        }
        self.tell_policies(left_policies, &mut batch);
        self.tell_members(&mut batch);

        for (node, profile) in left {
            if self.profiles.all[profile as usize].nodes.take_one(node) {
                self.let_go_profile(node, profile, &mut batch);
            }
        }
        let mut released: Vec<Vertex> = Vec::new();
        for (nodes, rulesets) in replaced {
            for node in nodes {
                rulesets.iter().for_each(|ruleset| self.let_go_vertex(node, *ruleset, &mut batch));
            }
            released.extend(rulesets);
        }
        unused.into_iter().for_each(|profile| released.extend(self.forget_profile(profile)));
        let mut dead = Vec::new();
        released.into_iter().for_each(|vertex| self.graph.release(vertex, &mut dead));
        self.peer_sets.bury(dead, &mut self.population);
        self.finish(batch)
    }

    fn finish(&mut self, mut batch: Batch) -> Vec<SliceDelta> {
        batch.nodes.sort_unstable();
        let mut told = Vec::with_capacity(batch.nodes.len());
        for node in batch.nodes {
            let name = self.population.nodes.name(node).clone();
            told.extend(self.take_told(node).map(|changes| (name, changes)));
        }
        for node in std::mem::take(&mut self.left_nodes) {
            self.population.nodes.release(node);
        }
        batch.table.finish(told)
    }

    /// Puts a pod where it belongs now: `left` are the profiles that it no longer has somewhere.
    fn place_pod(&mut self, pod: u32, left: &mut Vec<(u32, u32)>, batch: &mut Batch) {
        let state = self.population.pod_state_mut(pod);
        let before = state.placed.take();
        let living = state.class.is_some();
        let now = self.place_of(pod);
        if let Some(before) = &before
            && now.as_ref().is_none_or(|now| now.node != before.node)
        {
            let gone = batch.table.push(Change::PodGone(self.population.pod_state(pod).key.clone()));
            self.tell(before.node, Phase::PodsGone, gone, batch);
            self.node(before.node, batch).pods.remove(pod);
            self.left_nodes.push(before.node);
        }
        if let Some(now) = &now {
            let stays = before.as_ref().is_some_and(|before| before.node == now.node);
            if !stays {
                self.node(now.node, batch).pods.insert(pod);
                self.population.nodes.retain(now.node);
            }
            if !stays || before.as_ref().is_some_and(|before| before.profile != now.profile) {
                let nodes = &mut self.profiles.all[now.profile as usize].nodes;
                let (count, first) = nodes.get_or_default(now.node);
                *count += 1;
                if first {
                    self.hold_profile(now.node, now.profile, batch);
                }
            }
        }
        if let Some(before) = &before
            && now.as_ref().is_none_or(|now| (now.node, now.profile) != (before.node, before.profile))
        {
            left.push((before.node, before.profile));
        }
        if let Some(now) = &now
            && before.as_ref() != Some(now)
        {
            let changes = batch.table.push(self.pod_change(pod, now));
            self.tell(now.node, Phase::Pods, changes, batch);
        }
        self.population.pod_state_mut(pod).placed = now;
        if !living {
            self.population.forget_pod(pod);
        }
    }

    /// Where a pod belongs: with an address that is its own, on a node that is ours to serve.
    fn place_of(&self, pod: u32) -> Option<Placed> {
        let state = self.population.pod_state(pod);
        let (class, node) = (state.class?, state.node?);
        let in_scope = match &self.scope {
            Scope::AllNodes => true,
            Scope::Node(name) => **name == **self.population.nodes.name(node),
        };
        if !in_scope || state.owned.is_empty() {
            return None;
        }
        let profile = self.population.class_state(class).profile.expect("classes have profiles by now");
        Some(Placed { node, profile, addresses: state.owned.clone() })
    }

    /// The policies that left their subjects, before nodes get and lose any.
    fn left_policies(&mut self) -> Vec<Left> {
        let left = std::mem::take(&mut self.policies.left);
        let of = left.into_iter().filter_map(|(selection, key)| {
            let nodes: Vec<u32> = self.subjects.get(&selection)?.nodes.iter().collect();
            (!nodes.is_empty()).then_some(Left { key, nodes })
        });
        of.collect()
    }

    /// Policies that went, came or changed: to the nodes that had, or have, their subjects. Nodes that are about
    /// to lose a subject are told, too: they are told that all of its policies are gone then.
    fn tell_policies(&mut self, left: Vec<Left>, batch: &mut Batch) {
        for Left { key, mut nodes } in left {
            if let Some(id) = self.policies.find(&key) {
                // it has another subject now, which some may have as well
                let subject = &self.subjects[&self.policies.all[id as usize].selection];
                nodes.retain(|node| !subject.nodes.contains(*node));
            }
            if !nodes.is_empty() {
                let gone = batch.table.push(Change::PolicyGone(key));
                nodes.into_iter().for_each(|n| self.tell(n, Phase::PoliciesGone, gone.clone(), batch));
            }
        }
        for id in self.policies.take_changed() {
            let selection = self.policies.all[id as usize].selection;
            let holders = self.subjects[&selection].nodes.iter();
            let nodes: Vec<u32> = holders.filter(|n| self.has_had_subject(*n, selection, batch)).collect();
            if !nodes.is_empty() {
                let new = batch.table.push(self.policy_change(id));
                nodes.into_iter().for_each(|n| self.tell(n, Phase::Policies, new.clone(), batch));
            }
        }
    }

    fn tell_members(&mut self, batch: &mut Batch) {
        let changed = std::mem::take(&mut self.population.journal.members);
        let mut changed: Vec<_> = changed.into_iter().filter(|(_, changes)| !changes.is_empty()).collect();
        changed.sort_unstable_by_key(|(vertex, _)| self.graph.id(*vertex));
        for (vertex, changes) in changed {
            let holders = self.peer_sets.holders(vertex);
            let nodes: Vec<u32> = holders.filter(|n| self.has_had_vertex(*n, vertex, batch)).collect();
            if nodes.is_empty() {
                continue;
            }
            let of = |wanted: bool| {
                let mut list: Vec<Member> =
                    changes.iter().filter(|(_, added)| **added == wanted).map(|(m, _)| *m).collect();
                list.sort_unstable();
                list
            };
            let id = PeerSetId(self.graph.id(vertex));
            let change = batch.table.push(Change::Members { id, added: of(true), removed: of(false) });
            nodes.into_iter().for_each(|n| self.tell(n, Phase::Members, change.clone(), batch));
        }
    }
}
