//! The changes of a batch, collected: each once, and for each node in which order it needs which.
//!
//! What is new comes first, each thing after all that it refers to; what is gone goes last, each
//! thing after all that referred to it.

use std::ops::Range;
use std::sync::Arc;

use crate::slice::{Change, Changes, SliceDelta};
use crate::small::{Places, place};

/// When, among the changes of a node, a change is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Graph,
    Policies,
    Profiles,
    Pods,
    Members,
    PodsGone,
    ProfilesGone,
    PoliciesGone,
    GraphGone,
}

/// What a change is about that several nodes may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum About {
    Vertex(u32),
    VertexGone(u32),
    /// All policies of a subject.
    Policies(u32),
    PoliciesGone(u32),
    Profile(u32),
    ProfileGone(u32),
}

/// One batch's changes; those of each node are with the node.
#[derive(Debug, Default)]
pub(crate) struct Table {
    changes: Vec<Change>,
    known: Places<About, Range<u32>>,
}

impl Table {
    /// A change that concerns one node, or several that are told of it at once.
    pub(crate) fn push(&mut self, change: Change) -> Range<u32> {
        self.extend([change])
    }

    /// Changes that belong together.
    pub(crate) fn extend(&mut self, changes: impl IntoIterator<Item = Change>) -> Range<u32> {
        let start = place(self.changes.len());
        self.changes.extend(changes);
        start..place(self.changes.len())
    }

    /// The changes about this, made if they are not there yet.
    pub(crate) fn about<C: IntoIterator<Item = Change>>(
        &mut self,
        about: About,
        make: impl FnOnce() -> C,
    ) -> Range<u32> {
        if let Some(known) = self.known.get(&about) {
            return known.clone();
        }
        let made = self.extend(make());
        self.known.insert(about, made.clone());
        made
    }

    /// The deltas of nodes, each with what it is to be told.
    pub(crate) fn finish(self, nodes: impl IntoIterator<Item = (Arc<str>, Told)>) -> Vec<SliceDelta> {
        let table = Arc::new(self.changes);
        let deltas = nodes.into_iter().map(|(node, told)| {
            let changes = Changes::new(table.clone(), told.in_order());
            SliceDelta { node, changes }
        });
        deltas.filter(|delta| !delta.changes.is_empty()).collect()
    }
}

/// What one node is to be told.
#[derive(Debug, Default)]
pub(crate) struct Told(Vec<(Phase, Range<u32>)>);

impl Told {
    pub(crate) fn add(&mut self, phase: Phase, changes: Range<u32>) {
        match self.0.last_mut() {
            Some((last, range)) if *last == phase && range.end == changes.start => range.end = changes.end,
            _ if changes.is_empty() => {}
            _ => self.0.push((phase, changes)),
        }
    }

    fn in_order(mut self) -> Vec<Range<u32>> {
        self.0.sort_by_key(|(phase, _)| *phase);
        let mut places: Vec<Range<u32>> = Vec::with_capacity(self.0.len());
        for (_, range) in self.0 {
            match places.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => places.push(range),
            }
        }
        places
    }
}
