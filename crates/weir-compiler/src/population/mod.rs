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
mod nodes;
mod pods;
mod selections;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use crate::cidr::CidrSet;
use crate::graph::Vertex;
use crate::object::{Labels, NamedPort, ObjectKey, Protocol};
use crate::selector_index::{ByLabel, SelectorIndex};
use crate::slice::{Member, PeerSetId};
use crate::small::{Index, PlaceSet, Places};
pub(crate) use nodes::Nodes;

/// Addresses of one pod.
pub(crate) type Addresses = SmallVec<[IpAddr; 2]>;

/// What changed since the journal was last taken.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Net changes of attached sets that somebody holds: added (true) or removed.
    pub(crate) members: HashMap<Vertex, HashMap<Member, bool>>,
    /// Pods that came, went, or have another node, class or addresses; each once.
    pub(crate) pods: Vec<u32>,
    /// Classes that came, or are selected by other policies; each once, if it is still there.
    pub(crate) classes: Vec<u32>,
    /// The profiles of classes that went.
    pub(crate) unclassed: Vec<u32>,
    /// Subjects of policies that got their first class, or lost their last.
    pub(crate) reselected: Vec<u32>,
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
    name: String,
    labels: Labels,
    terminating: bool,
    /// As [`crate::object::Namespace`] has it.
    log_allowed: u32,
    /// There is an object for it; otherwise only its pods tell of it.
    exists: bool,
    selectors: SmallVec<[u32; 4]>,
    classes: PlaceSet,
    pods: usize,
}

#[derive(Debug)]
pub(crate) struct Class {
    namespace: u32,
    labels: Labels,
    pub(crate) ports: Arc<[NamedPort]>,
    pods: PlaceSet,
    selectors: SmallVec<[u32; 4]>,
    pub(crate) selections: SmallVec<[u32; 4]>,
    /// What its pods have in common by the policies that select them.
    pub(crate) profile: Option<u32>,
    in_journal: bool,
}

#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) id: PeerSetId,
    namespaces: u32,
    pods: u32,
    refs: u32,
    classes: PlaceSet,
    attached: SmallVec<[Attached; 1]>,
    /// How many policies have it as subject.
    subjects: u32,
}

/// A peer set of the graph whose members come from a selection.
#[derive(Debug)]
struct Attached {
    vertex: Vertex,
    kind: Kind,
    /// Some slice has it: changes are recorded.
    held: bool,
}

#[derive(Debug)]
enum Kind {
    Addresses,
    Endpoints(Box<Endpoints>),
}

#[derive(Debug)]
struct Endpoints {
    within: Option<Arc<CidrSet>>,
    name: String,
    protocol: Protocol,
}

impl Kind {
    fn members(&self, address: IpAddr, ports: &[NamedPort], mut each: impl FnMut(Member)) {
        match self {
            Kind::Addresses => each(Member::Address(address)),
            Kind::Endpoints(of) if of.within.as_ref().is_some_and(|w| !w.contains(address)) => {}
            Kind::Endpoints(of) => ports
                .iter()
                .filter(|p| p.protocol == of.protocol && p.name == of.name)
                .for_each(|p| each(Member::Endpoint(address, of.protocol, p.port))),
        }
    }
}

#[derive(Debug)]
pub(crate) struct PodState {
    pub(crate) key: ObjectKey,
    /// `None`: it is gone, and some slice has yet to be told.
    pub(crate) class: Option<u32>,
    pub(crate) node: Option<u32>,
    claimed: Addresses,
    pub(crate) owned: Addresses,
    rank: Rank,
    /// Where it is in a slice at present.
    pub(crate) placed: Option<Placed>,
    /// It has replaced a pod of the same name since slices were last told.
    pub(crate) reborn: bool,
    in_journal: bool,
}

/// Of two pods with one address, the greater has it (N77).
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    stays: bool,
    created: i64,
    uid: String,
}

/// What a slice has of a pod.
#[derive(Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) node: u32,
    pub(crate) profile: u32,
    pub(crate) log_allowed: u32,
    pub(crate) addresses: Addresses,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Population {
    namespaces: Slab<Namespace>,
    namespace_by_name: Index,
    namespace_selectors: SelectorIndex,
    namespaces_of: Places<u32, PlaceSet>,
    classes: Slab<Class>,
    class_by_content: Index,
    classes_by_label: ByLabel<PlaceSet>,
    pod_selectors: SelectorIndex,
    classes_of: Places<u32, PlaceSet>,
    selections: Slab<Selection>,
    selection_ids: Places<(u32, u32), u32>,
    pods: Slab<PodState>,
    pod_by_key: Index,
    /// Those of them that are not gone.
    living: usize,
    claims: HashMap<IpAddr, SmallVec<[u32; 4]>>,
    pub(crate) nodes: Nodes,
    pub(crate) journal: Journal,
}

impl Population {
    pub(crate) fn selection(&self, id: u32) -> &Selection {
        &self.selections[id as usize]
    }

    /// The selections of a class that are the subject of policies, by identity.
    pub(crate) fn subjects(&self, class: &Class) -> Vec<u32> {
        let is_subject = |s: &u32| self.selections[*s as usize].subjects > 0;
        let mut all: Vec<u32> = class.selections.iter().copied().filter(is_subject).collect();
        all.sort_unstable_by_key(|s| self.selections[*s as usize].id);
        all
    }

    /// Something about all pods of a class changed.
    pub(crate) fn touch_pods(&mut self, class: u32) {
        for pod in self.classes[class as usize].pods.iter() {
            touch_pod(&mut self.pods[pod as usize], pod, &mut self.journal);
        }
    }

    /// The classes in the journal that are still there.
    pub(crate) fn take_classes(&mut self) -> Vec<u32> {
        let mut classes = std::mem::take(&mut self.journal.classes);
        classes
            .retain(|c| self.classes.get_mut(*c as usize).is_some_and(|c| std::mem::take(&mut c.in_journal)));
        classes
    }

    /// The pods in the journal.
    pub(crate) fn take_pods(&mut self) -> Vec<u32> {
        let pods = std::mem::take(&mut self.journal.pods);
        pods.iter().for_each(|pod| self.pods[*pod as usize].in_journal = false);
        pods
    }

    pub(crate) fn class_state(&self, id: u32) -> &Class {
        &self.classes[id as usize]
    }

    pub(crate) fn set_profile(&mut self, class: u32, profile: u32) {
        self.classes[class as usize].profile = Some(profile);
    }

    pub(crate) fn pod_state(&self, pod: u32) -> &PodState {
        &self.pods[pod as usize]
    }

    pub(crate) fn pod_state_mut(&mut self, pod: u32) -> &mut PodState {
        &mut self.pods[pod as usize]
    }

    /// How many pods policy is concerned with.
    pub(crate) fn pod_count(&self) -> usize {
        self.living
    }
}

fn touch_pod(state: &mut PodState, pod: u32, journal: &mut Journal) {
    if !std::mem::replace(&mut state.in_journal, true) {
        journal.pods.push(pod);
    }
}

impl Selection {
    /// How many classes it matches.
    pub(crate) fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// The classes that it matches.
    pub(crate) fn classes(&self) -> impl Iterator<Item = u32> {
        self.classes.iter()
    }

    /// It has a class more or less: is it the first, or was it the last?
    fn selects(&self, id: u32, first_or_last: bool, journal: &mut Journal) {
        if first_or_last && self.subjects > 0 {
            journal.reselected.push(id);
        }
    }
}

impl Class {
    /// Its pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = u32> {
        self.pods.iter()
    }
}

fn touch_class(state: &mut Class, class: u32, journal: &mut Journal) {
    if !std::mem::replace(&mut state.in_journal, true) {
        journal.classes.push(class);
    }
}
