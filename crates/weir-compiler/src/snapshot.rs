//! Whole slices, for agents that have none yet.

use std::ops::Range;

use crate::compiler::Compiler;
use crate::deltas::{Phase, Table, Told};
use crate::graph::Vertex;
use crate::nodes::NodeState;
use crate::slice::{Change, Changes, NodeSlice, SliceDelta};
use crate::small::{PlaceSet, Places, place};

/// What is in the table already, for all nodes that are asked for at once.
#[derive(Default)]
struct Snapshots {
    table: Table,
    vertices: Places<u32, u32>,
    subjects: Places<u32, Range<u32>>,
    profiles: Places<u32, u32>,
}

impl Compiler {
    /// The whole slice of a node, as changes of an empty one.
    pub fn snapshot(&self, node: &str) -> SliceDelta {
        let empty = || SliceDelta { node: node.into(), changes: Changes::default() };
        self.snapshots([node]).pop().unwrap_or_else(empty)
    }

    /// The whole slices of these nodes, without those that are empty: what they have in common is there once.
    pub fn snapshots<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> Vec<SliceDelta> {
        let mut all = Snapshots::default();
        let mut told = Vec::new();
        for name in nodes {
            if let Some(node) = self.population.nodes.find(name)
                && let Some(state) = self.nodes.get(node)
            {
                told.push((self.population.nodes.name(node).clone(), self.tell_all(state, &mut all)));
            }
        }
        all.table.finish(told)
    }

    /// The slice of a node.
    pub fn slice(&self, node: &str) -> NodeSlice {
        let mut slice = NodeSlice::default();
        slice.apply(&self.snapshot(node).changes);
        slice
    }

    fn tell_all(&self, node: &NodeState, all: &mut Snapshots) -> Told {
        let mut told = Told::default();
        let (mut vertices, mut subjects) = (PlaceSet::default(), PlaceSet::default());
        let mut profiles = PlaceSet::default();
        for pod in node.pods.iter() {
            let placed = self.population.pod_state(pod).placed.as_ref().expect("it is on this node");
            if profiles.insert(placed.profile) {
                let profile = &self.profiles.all[placed.profile as usize];
                for &subject in profile.selections.iter().filter(|s| subjects.insert(**s)) {
                    let table = &mut all.table;
                    let new = || table.extend(self.policy_changes(subject));
                    told.add(Phase::New, all.subjects.entry(subject).or_insert_with(new).clone());
                }
                for &ruleset in &profile.rulesets {
                    self.tell_vertex(ruleset, &mut vertices, &mut told, all);
                }
                let table = &mut all.table;
                let new = || table.push(Change::Profile(profile.id, profile.content.clone()));
                let at = *all.profiles.entry(placed.profile).or_insert_with(new);
                told.add(Phase::New, at..at + 1);
            }
            let at = all.table.push(self.pod_change(pod, placed));
            told.add(Phase::Pods, at..at + 1);
        }
        told
    }

    fn tell_vertex(&self, vertex: Vertex, seen: &mut PlaceSet, told: &mut Told, all: &mut Snapshots) {
        if seen.insert(place(vertex.index())) {
            for child in self.graph.children(vertex) {
                self.tell_vertex(child, seen, told, all);
            }
            let table = &mut all.table;
            let new = || table.push(self.vertex_change(vertex));
            let at = *all.vertices.entry(place(vertex.index())).or_insert_with(new);
            told.add(Phase::New, at..at + 1);
        }
    }
}
