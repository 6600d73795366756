//! Who there is: namespaces and pods, the selectors that match them, and the addresses they own.
//!
//! ```text
//!   Namespace ──labels──> namespace selectors ─┐
//!                                              ├─> Selection ──> attached peer sets
//!   Pod ──> Class ──labels──> pod selectors ───┘        └──────> policies (as subject)
//!    └──> addresses, each owned by one pod
//! ```
//!
//! A *class* is a namespace with a set of labels and named ports: all pods of a ReplicaSet are of
//! one class, and selectors are evaluated once for it. A *selection* is a pair of selectors that
//! some policy uses. A pod that comes or goes touches only the selections of its class.

mod namespaces;
mod pods;
mod selections;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use slab::Slab;
use smallvec::SmallVec;

use crate::cidr::CidrSet;
use crate::graph::Vertex;
use crate::object::{Labels, NamedPort, ObjectKey, Protocol};
use crate::selector::SelectorIndex;
use crate::slice::{Member, PeerSetId};

/// What changed since the journal was last taken.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Net changes of attached sets that somebody holds: added (true) or removed.
    pub(crate) members: HashMap<Vertex, HashMap<Member, bool>>,
    /// Pods that came, went, or have another node, class or addresses.
    pub(crate) pods: HashSet<ObjectKey>,
    /// Classes that came, went, or are selected by other policies.
    pub(crate) classes: HashSet<usize>,
}

impl Journal {
    fn member(&mut self, vertex: Vertex, member: Member, added: bool) {
        let changes = self.members.entry(vertex).or_default();
        // what comes and goes again has not changed
        if changes.remove(&member).is_none() {
            changes.insert(member, added);
        }
    }
}

#[derive(Debug)]
struct Namespace {
    labels: Labels,
    terminating: bool,
    /// There is an object for it; otherwise only its pods tell of it.
    exists: bool,
    selectors: Vec<usize>,
    classes: HashSet<usize>,
    pods: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ClassKey {
    namespace: String,
    labels: Labels,
    ports: Arc<[NamedPort]>,
}

#[derive(Debug)]
pub(crate) struct Class {
    key: Arc<ClassKey>,
    pods: HashSet<ObjectKey>,
    selectors: Vec<usize>,
    pub(crate) selections: Vec<usize>,
}

impl Class {
    pub(crate) fn ports(&self) -> &Arc<[NamedPort]> {
        &self.key.ports
    }
}

#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) id: PeerSetId,
    namespaces: usize,
    pods: usize,
    refs: usize,
    classes: HashSet<usize>,
    attached: Vec<Attached>,
    /// How many policies have it as subject.
    subjects: usize,
}

/// A peer set of the graph whose members come from a selection.
#[derive(Debug)]
struct Attached {
    vertex: Vertex,
    kind: Kind,
    /// In how many slices it is.
    held: usize,
}

#[derive(Debug)]
enum Kind {
    Addresses,
    Endpoints { within: Option<Arc<CidrSet>>, name: String, protocol: Protocol },
}

impl Kind {
    fn members(&self, address: IpAddr, ports: &[NamedPort], mut each: impl FnMut(Member)) {
        match self {
            Kind::Addresses => each(Member::Address(address)),
            Kind::Endpoints { within, .. } if within.as_ref().is_some_and(|w| !w.contains(address)) => {}
            Kind::Endpoints { name, protocol, .. } => ports
                .iter()
                .filter(|p| p.protocol == *protocol && p.name == *name)
                .for_each(|p| each(Member::Endpoint(address, *protocol, p.port))),
        }
    }
}

#[derive(Debug)]
pub(crate) struct PodState {
    pub(crate) class: usize,
    pub(crate) node: Option<Arc<str>>,
    claimed: SmallVec<[IpAddr; 2]>,
    pub(crate) owned: SmallVec<[IpAddr; 2]>,
    /// Of two pods with one address, the greater has it (N77).
    rank: (bool, i64, String),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Population {
    namespaces: HashMap<String, Namespace>,
    namespace_selectors: SelectorIndex,
    namespaces_of: HashMap<usize, HashSet<String>>,
    classes: Slab<Class>,
    class_ids: HashMap<Arc<ClassKey>, usize>,
    classes_by_label: HashMap<(String, String), HashSet<usize>>,
    pod_selectors: SelectorIndex,
    classes_of: HashMap<usize, HashSet<usize>>,
    selections: Slab<Selection>,
    selection_ids: HashMap<(usize, usize), usize>,
    pods: HashMap<ObjectKey, PodState>,
    claims: HashMap<IpAddr, SmallVec<[ObjectKey; 1]>>,
    nodes: HashMap<Arc<str>, usize>,
    pub(crate) journal: Journal,
}

impl Population {
    pub(crate) fn selection(&self, id: usize) -> &Selection {
        &self.selections[id]
    }

    /// The selections of a class that are the subject of policies, by identity.
    pub(crate) fn subjects(&self, class: &Class) -> Vec<usize> {
        let mut all: Vec<usize> =
            class.selections.iter().copied().filter(|s| self.selections[*s].subjects > 0).collect();
        all.sort_unstable_by_key(|s| self.selections[*s].id);
        all
    }

    /// Something about all pods of a class changed.
    pub(crate) fn touch_pods(&mut self, class: usize) {
        self.journal.pods.extend(self.classes[class].pods.iter().cloned());
    }

    pub(crate) fn class_state(&self, id: usize) -> Option<&Class> {
        self.classes.get(id)
    }

    pub(crate) fn pod_state(&self, key: &ObjectKey) -> Option<&PodState> {
        self.pods.get(key)
    }

    /// How many pods policy is concerned with.
    pub(crate) fn pod_count(&self) -> usize {
        self.pods.len()
    }
}
