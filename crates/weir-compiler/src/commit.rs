//! From what events touched to the changes of each node's slice.
//!
//! ```text
//!   members, policies ──> told to the nodes that have their set, their subject
//!   classes ──> profiles ──> rulesets compiled again
//!   pods ──> placed on nodes ──> what the node lacks comes, what it no longer needs goes
//! ```
//!
//! //! A vertex that leaves and comes back within one batch is never gone in between, for it is held anew before
//! it is let go. What a batch costs is in proportion to what it touches, and to how many nodes that concerns.

use crate::compiler::{Compiler, Scope};
use crate::deltas::Phase;
use crate::graph::Vertex;
use crate::nodes::Batch;
use crate::population::Placed;
use crate::profiles::Rulesets;
use crate::slice::{Change, Member, PeerSetId, SliceDelta};

impl Compiler {
    pub(crate) fn commit(&mut self) -> Vec<SliceDelta> {
        let mut batch = Batch::default();
        // before nodes get and lose anything
        self.tell_members(&mut batch);
        self.tell_policies(&mut batch);

        let mut unused = std::mem::take(&mut self.population.journal.unclassed);
        unused.retain(|profile| self.profiles.leave(*profile));
        for class in self.population.take_classes() {
            unused.extend(self.assign_profile(class));
        }
        // what a slice no longer needs is let go at the end, after all that is new has come
        let mut replaced: Vec<(Vec<u32>, Rulesets)> = Vec::new();
        for id in self.profiles.take_dirty() {
            let before = self.isolation(id);
            if let Some(rulesets) = self.rebuild_profile(id) {
                self.profile_rebuilt(id, before);
                let nodes: Vec<u32> = self.profiles.all[id as usize].nodes.keys().collect();
                nodes.iter().for_each(|node| self.hold_rulesets(*node, id, &mut batch));
                replaced.push((nodes, rulesets));
            }
        }
        self.note_profiles();
        let mut left = Vec::new();
        for pod in self.population.take_pods() {
            self.place_pod(pod, &mut left, &mut batch);
        }

        for (node, profile) in left {
            if self.profiles.all[profile as usize].nodes.take_one(node) {
                self.let_go_profile(node, profile, &mut batch);
            }
        }
        self.forget_places(&mut batch);
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

    /// The table is complete: nothing of this batch is to be found in that of the next.
    fn forget_places(&mut self, batch: &mut Batch) {
        for vertex in batch.vertices.drain(..) {
            *self.graph.at(vertex) = None;
        }
        for selection in batch.subjects.drain(..) {
            self.subjects.get_mut(&selection).expect("profiles name it").at = None;
        }
        for profile in batch.profiles.drain(..) {
            self.profiles.all[profile as usize].at = None;
        }
    }

    fn finish(&mut self, mut batch: Batch) -> Vec<SliceDelta> {
        batch.nodes.sort_unstable();
        let names = &self.population.nodes;
        let told = batch.nodes.iter().map(|node| (names.name(*node).clone(), self.nodes.take_told(*node)));
        let deltas = batch.table.finish(told);
        for node in std::mem::take(&mut self.left_nodes) {
            self.population.nodes.release(node);
        }
        deltas
    }

    /// Puts a pod where it belongs now: `left` are the profiles that it no longer has somewhere.
    fn place_pod(&mut self, pod: u32, left: &mut Vec<(u32, u32)>, batch: &mut Batch) {
        let state = self.population.pod_state_mut(pod);
        let before = state.placed.take();
        let reborn = std::mem::take(&mut state.reborn);
        let living = state.class.is_some();
        let now = self.place_of(pod);
        if let Some(before) = &before
            && now.as_ref().is_none_or(|now| now.node != before.node)
        {
            let gone = batch.table.push(Change::PodGone(self.population.pod_state(pod).key.clone()));
            self.nodes.tell(before.node, Phase::PodsGone, gone, batch);
            self.nodes.touch(before.node, batch).pods.remove(pod);
            self.left_nodes.push(before.node);
        }
        if let Some(now) = &now {
            let stays = before.as_ref().is_some_and(|before| before.node == now.node);
            if !stays {
                self.nodes.touch(now.node, batch).pods.insert(pod);
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
        if let (Some(before), Some(now), false) = (&before, &now, reborn)
            && before.profile != now.profile
        {
            self.note_move(pod, before.profile, now.profile);
        }
        if let Some(now) = &now
            && before.as_ref() != Some(now)
        {
            let at = batch.table.push(self.pod_change(pod, now));
            self.nodes.tell(now.node, Phase::Pods, at, batch);
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
        let log_allowed = self.population.log_allowed(class);
        Some(Placed { node, profile, log_allowed, addresses: state.owned.clone() })
    }

    /// Policies that went, came or changed: to the nodes that have their subjects so far. Who gets a subject
    /// in this batch gets all of its policies anyway, and who loses it is told that all of them are gone.
    fn tell_policies(&mut self, batch: &mut Batch) {
        for (selection, key) in std::mem::take(&mut self.policies.left) {
            let Some(subject) = self.subjects.get(&selection) else { continue };
            // it may have another subject now, which some may have as well
            let now = self.policies.find(&key).map(|id| self.policies.all[id as usize].selection);
            let now = now.map(|selection| &self.subjects[&selection]);
            let loses = |node: &u32| !now.is_some_and(|subject| subject.nodes.contains(*node));
            let nodes: Vec<u32> = subject.nodes.keys().filter(loses).collect();
            self.tell_edited(&nodes, || Change::PolicyGone(key), batch);
        }
        for id in self.policies.take_changed() {
            let subject = &self.subjects[&self.policies.all[id as usize].selection];
            let nodes: Vec<u32> = subject.nodes.keys().collect();
            let new = (!nodes.is_empty()).then(|| self.policy_change(id));
            new.into_iter().for_each(|new| self.tell_edited(&nodes, || new, batch));
        }
    }

    /// Members that came and went: to the nodes that have the set so far.
    fn tell_members(&mut self, batch: &mut Batch) {
        let changed = std::mem::take(&mut self.population.journal.members);
        let mut changed: Vec<_> = changed.into_iter().filter(|(_, changes)| !changes.is_empty()).collect();
        changed.sort_unstable_by_key(|(vertex, _)| self.graph.id(*vertex));
        for (vertex, changes) in changed {
            let nodes: Vec<u32> = self.graph.nodes(vertex).keys().collect();
            let of = |wanted: bool| {
                let mut list: Vec<Member> =
                    changes.iter().filter(|(_, added)| **added == wanted).map(|(m, _)| *m).collect();
                list.sort_unstable();
                list
            };
            let id = PeerSetId(self.graph.id(vertex));
            self.tell_edited(&nodes, || Change::Members { id, added: of(true), removed: of(false) }, batch);
        }
    }

    fn tell_edited(&mut self, nodes: &[u32], change: impl FnOnce() -> Change, batch: &mut Batch) {
        if !nodes.is_empty() {
            let at = batch.table.push(change());
            nodes.iter().for_each(|node| self.nodes.tell(*node, Phase::Edited, at, batch));
        }
    }
}
