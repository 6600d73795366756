//! The nodes that pods are on, numbered.

use std::sync::Arc;

use slab::Slab;

use crate::small::{Index, place};

/// Names of nodes, each as long as somebody refers to it.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Slab<(Arc<str>, usize)>,
    by_name: Index,
}

impl Nodes {
    /// Takes a reference to the node of this name.
    pub(crate) fn named(&mut self, name: &str) -> u32 {
        if let Some(node) = self.find(name) {
            self.retain(node);
            return node;
        }
        let node = place(self.nodes.insert((name.into(), 1)));
        self.by_name.insert(name, node);
        node
    }

    /// The number of a node that there is.
    pub(crate) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.find(name, |node| *self.nodes[node as usize].0 == *name)
    }

    /// Its name.
    pub(crate) fn name(&self, node: u32) -> &Arc<str> {
        &self.nodes[node as usize].0
    }

    /// Takes another reference.
    pub(crate) fn retain(&mut self, node: u32) {
        self.nodes[node as usize].1 += 1;
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, node: u32) {
        let (_, refs) = &mut self.nodes[node as usize];
        *refs -= 1;
        if *refs == 0 {
            let (name, _) = self.nodes.remove(node as usize);
            self.by_name.remove(&*name, node);
        }
    }
}
