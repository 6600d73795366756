//! Which changes can forbid a connection, or allow one again that is marked.

use std::collections::HashMap;
use std::net::IpAddr;

use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::slice::{Change, NodeSlice};

/// What the changes since the last commit ask for.
#[derive(Debug)]
pub(super) struct Need {
    node: String,
    look: bool,
    /// Pods came, went, or have other addresses.
    pods: bool,
    /// Of the pods of this node.
    uids: HashMap<ObjectKey, String>,
}

impl Need {
    /// Nothing is known of the connections yet.
    pub(super) fn everything(node: &str) -> Self {
        Need { node: node.to_owned(), look: true, pods: true, uids: HashMap::new() }
    }

    pub(super) fn all(&mut self) {
        self.look = true;
    }

    /// Whether a look is due, and whether pods have changed; from then on it is not.
    pub(super) fn take(&mut self) -> Option<bool> {
        let pods = std::mem::take(&mut self.pods);
        std::mem::take(&mut self.look).then_some(pods)
    }

    /// Takes note of an event before it becomes a change. If it replaces a pod of this node by another of the
    /// same name: the addresses that the one before lets go of.
    pub(super) fn replaced(&mut self, slice: &NodeSlice, event: &Event) -> Vec<IpAddr> {
        match event {
            Event::Pod(pod) if pod.node.as_ref() == Some(&self.node) => {
                let before = self.uids.insert(pod.key.clone(), pod.uid.clone());
                if before.is_none_or(|before| before == pod.uid) {
                    return Vec::new();
                }
                let addresses = slice.pods.get(&pod.key).map_or(Vec::new(), |pod| pod.addresses.clone());
                self.look |= !addresses.is_empty();
                self.pods |= !addresses.is_empty();
                addresses
            }
            Event::PodGone(key) => {
                self.uids.remove(key);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Takes note of a change that is to be carried out on `slice`. The addresses that a pod lets go of.
    pub(super) fn change(&mut self, slice: &NodeSlice, change: &Change, marked: bool) -> Vec<IpAddr> {
        match change {
            Change::Profile(..) => self.look = true,
            // What is added can only allow, and what is allowed was marked if it is to change.
            Change::Members { removed, .. } => self.look |= marked || !removed.is_empty(),
            Change::Pod(key, pod) => {
                let before = slice.pods.get(key);
                if before.is_some_and(|b| b.addresses == pod.addresses && b.profile == pod.profile) {
                    return Vec::new();
                }
                self.look = true;
                self.pods = true;
                let lost = |address: &&IpAddr| !pod.addresses.contains(address);
                return before.map_or(Vec::new(), |b| b.addresses.iter().filter(lost).copied().collect());
            }
            Change::PodGone(key) => {
                self.look = true;
                self.pods = true;
                return slice.pods.get(key).map_or(Vec::new(), |pod| pod.addresses.clone());
            }
            // Everything else comes with a profile that refers to it, or explains only.
            _ => {}
        }
        Vec::new()
    }
}
