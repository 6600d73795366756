//! What is in each node's slice, and what the node is to be told of it.
//!
//! ```text
//!   pods ──> profiles ──> subjects    a subject stands for all of its policies
//!               └───────> vertices    rulesets, and all that they reach
//! ```
//!
//! Profiles, subjects and vertices know themselves for how many reasons each node has them.

use std::ops::Range;

use crate::compiler::Compiler;
use crate::deltas::{Phase, Table, Told};
use crate::graph::{Content, Vertex};
use crate::slice::{Change, PeerSetId, PortSetId, RuleId, RulesetId};
use crate::small::{PlaceSet, Places, place};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) pods: PlaceSet,
    told: Told,
    /// It is in [`Batch::nodes`].
    in_batch: bool,
}

/// All nodes, by number.
#[derive(Debug, Default)]
pub(crate) struct NodeStates(Vec<NodeState>);

impl NodeStates {
    pub(crate) fn get(&self, node: u32) -> Option<&NodeState> {
        self.0.get(node as usize)
    }

    /// A node that is told something, or whose pods are others.
    pub(crate) fn touch(&mut self, node: u32, batch: &mut Batch) -> &mut NodeState {
        if self.0.len() <= node as usize {
            self.0.resize_with(node as usize + 1, NodeState::default);
        }
        let state = &mut self.0[node as usize];
        if !std::mem::replace(&mut state.in_batch, true) {
            batch.nodes.push(node);
        }
        state
    }

    /// Tells a node of a change.
    pub(crate) fn tell(&mut self, node: u32, phase: Phase, at: u32, batch: &mut Batch) {
        self.touch(node, batch).told.add(phase, at..at + 1);
    }

    /// Takes what a node was told.
    pub(crate) fn take_told(&mut self, node: u32) -> Told {
        let state = &mut self.0[node as usize];
        state.in_batch = false;
        std::mem::take(&mut state.told)
    }
}

/// What is being collected for slices.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) table: Table,
    /// Those that are told something, or whose pods are others.
    pub(crate) nodes: Vec<u32>,
    /// What has its place in the table: it is to forget that in the end.
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) subjects: Vec<u32>,
    pub(crate) profiles: Vec<u32>,
    /// That things are gone, for all nodes that had them.
    gone_vertices: Places<u32, u32>,
    gone_policies: Places<u32, Range<u32>>,
    gone_profiles: Places<u32, u32>,
}

impl Compiler {
    /// Puts a profile, and all that it reaches, into a node's slice.
    pub(crate) fn hold_profile(&mut self, node: u32, id: u32, batch: &mut Batch) {
        for i in 0..self.profiles.all[id as usize].selections.len() {
            let selection = self.profiles.all[id as usize].selections[i];
            self.hold_subject(node, selection, batch);
        }
        self.hold_rulesets(node, id, batch);
    }

    /// Puts a profile's rulesets, which are new, into a node's slice.
    pub(crate) fn hold_rulesets(&mut self, node: u32, id: u32, batch: &mut Batch) {
        for i in 0..self.profiles.all[id as usize].rulesets.len() {
            let ruleset = self.profiles.all[id as usize].rulesets[i];
            self.hold_vertex(node, ruleset, batch);
        }
        let profile = &mut self.profiles.all[id as usize];
        let at = *profile.at.get_or_insert_with(|| {
            batch.profiles.push(id);
            batch.table.push(Change::Profile(profile.id, profile.content.clone()))
        });
        self.nodes.tell(node, Phase::New, at, batch);
    }

    fn hold_subject(&mut self, node: u32, selection: u32, batch: &mut Batch) {
        let subject = self.subjects.get_mut(&selection).expect("profiles name subjects that are there");
        let (count, new) = subject.nodes.get_or_default(node);
        *count += 1;
        if !new {
            return;
        }
        let at = subject.at.clone().unwrap_or_else(|| {
            let all = batch.table.extend(self.policy_changes(selection));
            batch.subjects.push(selection);
            self.subjects.get_mut(&selection).expect("as before").at = Some(all.clone());
            all
        });
        self.nodes.touch(node, batch).told.add(Phase::New, at);
    }

    /// Post-order: what a vertex refers to comes before it.
    fn hold_vertex(&mut self, node: u32, vertex: Vertex, batch: &mut Batch) {
        if !self.graph.hold(vertex, node) {
            return;
        }
        let mut children = self.graph.walk_children(vertex);
        while let Some(child) = self.graph.next_child(&mut children) {
            self.hold_vertex(node, child, batch);
        }
        if self.graph.nodes(vertex).len() == 1
            && let Some(selection) = self.peer_sets.selection(vertex)
        {
            self.population.set_held(selection, vertex, true);
        }
        let at = self.graph.at(vertex).unwrap_or_else(|| {
            let at = batch.table.push(self.vertex_change(vertex));
            batch.vertices.push(vertex);
            *self.graph.at(vertex) = Some(at);
            at
        });
        self.nodes.tell(node, Phase::New, at, batch);
    }

    /// A node no longer has a profile: with it goes what nothing else on the node needs.
    pub(crate) fn let_go_profile(&mut self, node: u32, id: u32, batch: &mut Batch) {
        let table = &mut batch.table;
        let gone = || table.push(Change::ProfileGone(self.profiles.all[id as usize].id));
        let at = *batch.gone_profiles.entry(id).or_insert_with(gone);
        self.nodes.tell(node, Phase::ProfilesGone, at, batch);
        for i in 0..self.profiles.all[id as usize].rulesets.len() {
            let ruleset = self.profiles.all[id as usize].rulesets[i];
            self.let_go_vertex(node, ruleset, batch);
        }
        for i in 0..self.profiles.all[id as usize].selections.len() {
            let selection = self.profiles.all[id as usize].selections[i];
            self.let_go_subject(node, selection, batch);
        }
    }

    fn let_go_subject(&mut self, node: u32, selection: u32, batch: &mut Batch) {
        let subject = self.subjects.get_mut(&selection).expect("profiles name subjects that are there");
        if !subject.nodes.take_one(node) {
            return;
        }
        let (table, policies) = (&mut batch.table, &self.policies.all);
        let gone = || {
            let keys = subject.policies.iter().map(|id| &policies[id as usize].read.key);
            table.extend(keys.map(|key| Change::PolicyGone(key.clone())))
        };
        let at = batch.gone_policies.entry(selection).or_insert_with(gone).clone();
        self.nodes.touch(node, batch).told.add(Phase::PoliciesGone, at);
    }

    /// A node no longer has a vertex for one of its reasons.
    pub(crate) fn let_go_vertex(&mut self, node: u32, vertex: Vertex, batch: &mut Batch) {
        if !self.graph.let_go(vertex, node) {
            return;
        }
        let id = self.graph.id(vertex);
        let gone = match self.graph.content(vertex) {
            Content::PeerSet(_) => Change::PeerSetGone(PeerSetId(id)),
            Content::PortSet(_) => Change::PortSetGone(PortSetId(id)),
            Content::Rule { .. } => Change::RuleGone(RuleId(id)),
            Content::Ruleset { .. } => Change::RulesetGone(RulesetId(id)),
        };
        let table = &mut batch.table;
        let at = batch.gone_vertices.entry(place(vertex.index())).or_insert_with(|| table.push(gone));
        let at = *at;
        self.nodes.tell(node, Phase::GraphGone, at, batch);
        if self.graph.nodes(vertex).is_empty()
            && let Some(selection) = self.peer_sets.selection(vertex)
        {
            self.population.set_held(selection, vertex, false);
        }
        let mut children = self.graph.walk_children(vertex);
        while let Some(child) = self.graph.next_child(&mut children) {
            self.let_go_vertex(node, child, batch);
        }
    }

    /// The policies of a subject, as slices have them.
    pub(crate) fn policy_changes(&self, selection: u32) -> impl Iterator<Item = Change> {
        let policies = self.subjects.get(&selection).into_iter().flat_map(|s| s.policies.iter());
        policies.map(|id| self.policy_change(id))
    }

    /// A vertex as slices have it.
    pub(crate) fn vertex_change(&self, vertex: Vertex) -> Change {
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
}
