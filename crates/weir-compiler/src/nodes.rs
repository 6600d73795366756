//! What is in each node's slice, counted, and what the node is to be told of it.
//!
//! ```text
//!   pods ──> profiles ──> subjects    a subject stands for all of its policies
//!               └───────> vertices    rulesets, and all that they reach
//! ```

use std::ops::Range;

use crate::compiler::Compiler;
use crate::deltas::{About, Phase, Table, Told};
use crate::graph::{Content, Vertex};
use crate::slice::{Change, PeerSetId, PortSetId, RuleId, RulesetId};
use crate::small::{PlaceSet, Places, place};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) pods: PlaceSet,
    vertices: Places<u32, Held>,
    subjects: Places<u32, Held>,
    pub(crate) told: Told,
    /// It is in [`Batch::nodes`].
    in_batch: bool,
}

/// Something in a slice.
#[derive(Debug, Default)]
struct Held {
    count: u32,
    /// The batch that brought it.
    since: u64,
}

/// What is being collected for slices.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) table: Table,
    /// Those that are told something, or that pods came to or left.
    pub(crate) nodes: Vec<u32>,
}

impl Compiler {
    /// Tells a node of changes.
    pub(crate) fn tell(&mut self, node: u32, phase: Phase, changes: Range<u32>, batch: &mut Batch) {
        self.node(node, batch).told.add(phase, changes);
    }

    /// A node, which is looked at again at the end of the batch.
    pub(crate) fn node(&mut self, node: u32, batch: &mut Batch) -> &mut NodeState {
        let state = self.nodes.entry(node).or_default();
        if !std::mem::replace(&mut state.in_batch, true) {
            batch.nodes.push(node);
        }
        state
    }

    /// Puts a profile, and all that it reaches, into a node's slice.
    pub(crate) fn hold_profile(&mut self, node: u32, id: u32, batch: &mut Batch) {
        for selection in self.profiles.all[id as usize].selections.clone() {
            self.hold_subject(node, selection, batch);
        }
        self.hold_rulesets(node, id, batch);
    }

    /// Puts a profile's rulesets, which are new, into a node's slice.
    pub(crate) fn hold_rulesets(&mut self, node: u32, id: u32, batch: &mut Batch) {
        for ruleset in self.profiles.all[id as usize].rulesets.clone() {
            self.hold_vertex(node, ruleset, batch);
        }
        let changes = self.about_profile(id, &mut batch.table);
        self.tell(node, Phase::Profiles, changes, batch);
    }

    fn hold_subject(&mut self, node: u32, selection: u32, batch: &mut Batch) {
        let number = batch.number;
        let held = self.node(node, batch).subjects.entry(selection).or_default();
        held.count += 1;
        if held.count > 1 {
            return;
        }
        held.since = number;
        let subject = self.subjects.get_mut(&selection).expect("profiles name subjects that are there");
        subject.nodes.insert(node);
        let changes = self.about_policies(selection, &mut batch.table);
        self.tell(node, Phase::Policies, changes, batch);
    }

    /// Whether the node has the policies of a subject, and has had them before this batch.
    pub(crate) fn has_had_subject(&self, node: u32, selection: u32, batch: &Batch) -> bool {
        let held = self.nodes.get(&node).and_then(|state| state.subjects.get(&selection));
        held.is_some_and(|held| held.since != batch.number)
    }

    /// The same for a vertex.
    pub(crate) fn has_had_vertex(&self, node: u32, vertex: Vertex, batch: &Batch) -> bool {
        let held = self.nodes.get(&node).and_then(|state| state.vertices.get(&place(vertex.index())));
        held.is_some_and(|held| held.since != batch.number)
    }

    /// Post-order: what a vertex refers to comes before it.
    fn hold_vertex(&mut self, node: u32, vertex: Vertex, batch: &mut Batch) {
        let number = batch.number;
        let held = self.node(node, batch).vertices.entry(place(vertex.index())).or_default();
        held.count += 1;
        if held.count > 1 {
            return;
        }
        held.since = number;
        let mut children = self.graph.walk_children(vertex);
        while let Some(child) = self.graph.next_child(&mut children) {
            self.hold_vertex(node, child, batch);
        }
        if let Some(selection) = self.peer_sets.selection(vertex) {
            self.population.set_held(selection, vertex, true);
            self.peer_sets.hold(vertex, node, true);
        }
        let changes = self.about_vertex(vertex, &mut batch.table);
        self.tell(node, Phase::Graph, changes, batch);
    }

    /// A node no longer has a profile: with it goes what nothing else on the node needs.
    pub(crate) fn let_go_profile(&mut self, node: u32, id: u32, batch: &mut Batch) {
        let gone = Change::ProfileGone(self.profiles.all[id as usize].id);
        let changes = batch.table.about(About::ProfileGone(id), || [gone]);
        self.tell(node, Phase::ProfilesGone, changes, batch);
        for ruleset in self.profiles.all[id as usize].rulesets.clone() {
            self.let_go_vertex(node, ruleset, batch);
        }
        for selection in self.profiles.all[id as usize].selections.clone() {
            self.let_go_subject(node, selection, batch);
        }
    }

    fn let_go_subject(&mut self, node: u32, selection: u32, batch: &mut Batch) {
        let state = self.node(node, batch);
        let held = state.subjects.get_mut(&selection).expect("counted");
        held.count -= 1;
        if held.count > 0 {
            return;
        }
        state.subjects.remove(&selection);
        let subject = self.subjects.get_mut(&selection).expect("profiles name subjects that are there");
        subject.nodes.remove(node);
        let policies = &self.policies.all;
        let gone = || {
            let keys = subject.policies.iter().map(|id| &policies[id as usize].read.key);
            keys.map(|key| Change::PolicyGone(key.clone()))
        };
        let changes = batch.table.about(About::PoliciesGone(selection), gone);
        self.tell(node, Phase::PoliciesGone, changes, batch);
    }

    /// A node no longer has a vertex for one of its reasons.
    pub(crate) fn let_go_vertex(&mut self, node: u32, vertex: Vertex, batch: &mut Batch) {
        let state = self.node(node, batch);
        let key = place(vertex.index());
        let held = state.vertices.get_mut(&key).expect("counted");
        held.count -= 1;
        if held.count > 0 {
            return;
        }
        state.vertices.remove(&key);
        let id = self.graph.id(vertex);
        let gone = match self.graph.content(vertex) {
            Content::PeerSet(_) => Change::PeerSetGone(PeerSetId(id)),
            Content::PortSet(_) => Change::PortSetGone(PortSetId(id)),
            Content::Rule { .. } => Change::RuleGone(RuleId(id)),
            Content::Ruleset { .. } => Change::RulesetGone(RulesetId(id)),
        };
        let changes = batch.table.about(About::VertexGone(key), || [gone]);
        self.tell(node, Phase::GraphGone, changes, batch);
        if let Some(selection) = self.peer_sets.selection(vertex) {
            self.population.set_held(selection, vertex, false);
            self.peer_sets.hold(vertex, node, false);
        }
        let mut children = self.graph.walk_children(vertex);
        while let Some(child) = self.graph.next_child(&mut children) {
            self.let_go_vertex(node, child, batch);
        }
    }

    pub(crate) fn about_profile(&self, id: u32, table: &mut Table) -> Range<u32> {
        let profile = &self.profiles.all[id as usize];
        table.about(About::Profile(id), || [Change::Profile(profile.id, profile.content.clone())])
    }

    pub(crate) fn about_policies(&self, selection: u32, table: &mut Table) -> Range<u32> {
        let policies = self.subjects.get(&selection).into_iter().flat_map(|s| s.policies.iter());
        table.about(About::Policies(selection), || policies.map(|id| self.policy_change(id)))
    }

    pub(crate) fn about_vertex(&self, vertex: Vertex, table: &mut Table) -> Range<u32> {
        table.about(About::Vertex(place(vertex.index())), || [self.describe(vertex)])
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

    /// The node's changes are taken; it goes with its last pod.
    pub(crate) fn take_told(&mut self, node: u32) -> Option<Told> {
        let state = self.nodes.get_mut(&node)?;
        state.in_batch = false;
        let told = std::mem::take(&mut state.told);
        if state.pods.is_empty() {
            self.nodes.remove(&node);
        }
        Some(told)
    }
}
