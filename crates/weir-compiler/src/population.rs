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

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use slab::Slab;
use smallvec::SmallVec;

use crate::cidr::CidrSet;
use crate::graph::{Vertex, peer_set_id};
use crate::object::{self, Labels, NamedPort, ObjectKey, Protocol};
use crate::policy::namespace_labels;
use crate::selector::{Anchor, Selector, SelectorIndex};
use crate::slice::{Member, PeerSet, PeerSetId};

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
    /// A namespace is there, with these labels.
    pub(crate) fn namespace(&mut self, ns: &object::Namespace) {
        self.ensure_namespace(&ns.name);
        let labels = namespace_labels(&ns.name, &ns.labels);
        let state = self.namespaces.get_mut(&ns.name).expect("just ensured");
        state.exists = true;
        state.terminating = ns.terminating;
        if state.labels == labels {
            return;
        }
        let before: HashSet<usize> = state.selectors.iter().copied().collect();
        state.labels = labels;
        let after = self.namespace_selectors.matching(&state.labels);
        state.selectors = after.clone();
        let after: HashSet<usize> = after.into_iter().collect();
        let classes: Vec<usize> = state.classes.iter().copied().collect();
        for &lost in before.difference(&after) {
            self.namespaces_of.get_mut(&lost).expect("filed").remove(&ns.name);
        }
        for &gained in after.difference(&before) {
            self.namespaces_of.get_mut(&gained).expect("filed").insert(ns.name.clone());
        }
        for class in classes {
            for (selectors, joins) in [(before.difference(&after), false), (after.difference(&before), true)]
            {
                for &ns_selector in selectors {
                    for i in 0..self.classes[class].selectors.len() {
                        let pair = (ns_selector, self.classes[class].selectors[i]);
                        if let Some(&selection) = self.selection_ids.get(&pair) {
                            self.set_selected(class, selection, joins);
                        }
                    }
                }
            }
        }
    }

    /// The namespace's object is gone.
    pub(crate) fn namespace_gone(&mut self, name: &str) {
        if self.namespaces.contains_key(name) {
            // what it was labelled must not outlive it: a restart would not know either
            self.namespace(&object::Namespace { name: name.to_owned(), ..Default::default() });
            self.namespaces.get_mut(name).expect("it was there").exists = false;
            self.forget_namespace_if_unused(name);
        }
    }

    /// Whether pods of a namespace that is being deleted are still there (N79).
    pub(crate) fn is_draining(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|ns| ns.terminating && ns.pods > 0)
    }

    fn ensure_namespace(&mut self, name: &str) {
        if self.namespaces.contains_key(name) {
            return;
        }
        let labels = namespace_labels(name, &Labels::new());
        let selectors = self.namespace_selectors.matching(&labels);
        for selector in &selectors {
            self.namespaces_of.get_mut(selector).expect("filed").insert(name.to_owned());
        }
        let ns = Namespace {
            labels,
            terminating: false,
            exists: false,
            selectors,
            classes: HashSet::new(),
            pods: 0,
        };
        self.namespaces.insert(name.to_owned(), ns);
    }

    fn forget_namespace_if_unused(&mut self, name: &str) {
        let unused = self.namespaces.get(name).is_some_and(|ns| !ns.exists && ns.pods == 0);
        if unused && let Some(ns) = self.namespaces.remove(name) {
            for selector in ns.selectors {
                self.namespaces_of.get_mut(&selector).expect("filed").remove(name);
            }
        }
    }

    /// A pod is there. Pods in the host's network and finished ones are nobody's peer and under
    /// no policy: to the population they are gone (N70, N75).
    pub(crate) fn pod(&mut self, pod: &object::Pod) {
        if pod.host_network || pod.finished {
            return self.pod_gone(&pod.key);
        }
        let mut ports = pod.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        let class_key = ClassKey {
            namespace: pod.key.namespace.clone(),
            labels: pod.labels.clone(),
            ports: ports.into(),
        };
        let mut claimed: SmallVec<[IpAddr; 2]> = pod.ips.iter().copied().collect();
        claimed.sort_unstable();
        claimed.dedup();
        let rank = (!pod.terminating, pod.created, pod.uid.clone());
        let node = pod.node.as_deref().map(|n| self.node(n));

        let same = |s: &PodState| *self.classes[s.class].key == class_key && s.claimed == claimed;
        if self.pods.get(&pod.key).is_some_and(same) {
            return self.move_pod(&pod.key, node, rank);
        }

        let left = self.remove_pod(&pod.key);
        self.ensure_namespace(&pod.key.namespace);
        let class = self.class(class_key);
        self.classes[class].pods.insert(pod.key.clone());
        self.namespaces.get_mut(&pod.key.namespace).expect("just ensured").pods += 1;
        let state = PodState { class, node, claimed: claimed.clone(), owned: SmallVec::new(), rank };
        self.pods.insert(pod.key.clone(), state);
        for address in claimed {
            self.claims.entry(address).or_default().push(pod.key.clone());
            self.settle(address);
        }
        if let Some(left) = left {
            self.collect(left);
        }
        self.journal.pods.insert(pod.key.clone());
    }

    /// A pod of which only the node or the rank among the owners of its addresses is another.
    fn move_pod(&mut self, key: &ObjectKey, node: Option<Arc<str>>, rank: (bool, i64, String)) {
        let state = self.pods.get_mut(key).expect("the caller looked");
        let moved = state.node != node;
        let before = std::mem::replace(&mut state.node, node);
        let ranked = std::mem::replace(&mut state.rank, rank) != state.rank;
        let claimed = state.claimed.clone();
        self.release_node(before);
        if moved {
            self.journal.pods.insert(key.clone());
        }
        if ranked {
            claimed.into_iter().for_each(|address| self.settle(address));
        }
    }

    /// The pod is gone.
    pub(crate) fn pod_gone(&mut self, key: &ObjectKey) {
        if let Some(class) = self.remove_pod(key) {
            self.collect(class);
            self.forget_namespace_if_unused(&key.namespace);
        }
    }

    /// Removes a pod: its class, which may be empty now.
    fn remove_pod(&mut self, key: &ObjectKey) -> Option<usize> {
        let claimed = self.pods.get(key)?.claimed.clone();
        for address in claimed {
            let claims = self.claims.get_mut(&address).expect("claimed");
            claims.retain(|k| k != key);
            if claims.is_empty() {
                self.claims.remove(&address);
            }
            self.set_owned(key, address, false);
            self.settle(address);
        }
        let state = self.pods.remove(key).expect("it was there");
        self.release_node(state.node);
        self.classes[state.class].pods.remove(key);
        self.namespaces.get_mut(&key.namespace).expect("it has pods").pods -= 1;
        self.journal.pods.insert(key.clone());
        // the class that the pod moves to may be this one: the caller collects it when it is done
        Some(state.class)
    }

    /// Gives an address to the greatest of those who claim it.
    fn settle(&mut self, address: IpAddr) {
        let claims = self.claims.get(&address).cloned().unwrap_or_default();
        let owner = claims.iter().max_by_key(|key| (&self.pods[*key].rank, *key)).cloned();
        for key in &claims {
            if Some(key) != owner.as_ref() {
                self.set_owned(key, address, false);
            }
        }
        if let Some(key) = owner {
            self.set_owned(&key, address, true);
        }
    }

    fn set_owned(&mut self, key: &ObjectKey, address: IpAddr, owned: bool) {
        let state = self.pods.get_mut(key).expect("claims are of pods that are there");
        let at = state.owned.iter().position(|a| *a == address);
        match (at, owned) {
            (None, true) => state.owned.push(address),
            (Some(at), false) => drop(state.owned.remove(at)),
            _ => return,
        }
        state.owned.sort_unstable();
        let class = &self.classes[state.class];
        for &selection in &class.selections {
            for attached in self.selections[selection].attached.iter().filter(|a| a.held > 0) {
                attached.kind.members(address, class.ports(), |member| {
                    self.journal.member(attached.vertex, member, owned);
                });
            }
        }
        self.journal.pods.insert(key.clone());
    }

    fn node(&mut self, name: &str) -> Arc<str> {
        if let Some((node, _)) = self.nodes.get_key_value(name) {
            let node = node.clone();
            *self.nodes.get_mut(&node).expect("it was there") += 1;
            return node;
        }
        let node: Arc<str> = name.into();
        self.nodes.insert(node.clone(), 1);
        node
    }

    fn release_node(&mut self, node: Option<Arc<str>>) {
        let Some(node) = node else { return };
        let count = self.nodes.get_mut(&node).expect("counted");
        *count -= 1;
        if *count == 0 {
            self.nodes.remove(&node);
        }
    }

    fn class(&mut self, key: ClassKey) -> usize {
        if let Some(&id) = self.class_ids.get(&key) {
            return id;
        }
        let key = Arc::new(key);
        let selectors = self.pod_selectors.matching(&key.labels);
        let id = self.classes.insert(Class {
            key: key.clone(),
            pods: HashSet::new(),
            selectors: selectors.clone(),
            selections: Vec::new(),
        });
        for (k, v) in &key.labels {
            self.classes_by_label.entry((k.clone(), v.clone())).or_default().insert(id);
        }
        self.class_ids.insert(key.clone(), id);
        let ns = self.namespaces.get_mut(&key.namespace).expect("a class's namespace is ensured");
        ns.classes.insert(id);
        for pod_selector in selectors {
            self.classes_of.get_mut(&pod_selector).expect("filed").insert(id);
            for ns_selector in &ns.selectors {
                if let Some(&selection) = self.selection_ids.get(&(*ns_selector, pod_selector)) {
                    self.selections[selection].classes.insert(id);
                    self.classes[id].selections.push(selection);
                }
            }
        }
        self.journal.classes.insert(id);
        id
    }

    /// Forgets the class if its last pod left.
    fn collect(&mut self, id: usize) {
        if !self.classes[id].pods.is_empty() {
            return;
        }
        let class = self.classes.remove(id);
        self.class_ids.remove(&class.key);
        for (k, v) in &class.key.labels {
            let label = (k.clone(), v.clone());
            let filed = self.classes_by_label.get_mut(&label).expect("filed");
            filed.remove(&id);
            if filed.is_empty() {
                self.classes_by_label.remove(&label);
            }
        }
        for selector in &class.selectors {
            self.classes_of.get_mut(selector).expect("filed").remove(&id);
        }
        for selection in &class.selections {
            self.selections[*selection].classes.remove(&id);
        }
        if let Some(ns) = self.namespaces.get_mut(&class.key.namespace) {
            ns.classes.remove(&id);
        }
        self.journal.classes.insert(id);
    }

    /// A class comes under a selection, or no longer is.
    fn set_selected(&mut self, class: usize, selection: usize, joins: bool) {
        let changed = match joins {
            true => self.selections[selection].classes.insert(class),
            false => self.selections[selection].classes.remove(&class),
        };
        debug_assert!(changed);
        let of_class = &mut self.classes[class].selections;
        match joins {
            true => of_class.push(selection),
            false => of_class.retain(|s| *s != selection),
        }
        let class_state = &self.classes[class];
        for attached in self.selections[selection].attached.iter().filter(|a| a.held > 0) {
            for pod in &class_state.pods {
                for address in &self.pods[pod].owned {
                    attached.kind.members(*address, class_state.ports(), |member| {
                        self.journal.member(attached.vertex, member, joins);
                    });
                }
            }
        }
        if self.selections[selection].subjects > 0 {
            self.journal.classes.insert(class);
        }
    }

    /// Takes a reference to the selection of two selectors.
    pub(crate) fn retain(&mut self, namespaces: &Selector, pods: &Selector) -> usize {
        let (ns_selector, new_ns) = self.namespace_selectors.retain(namespaces);
        let (pod_selector, new_pod) = self.pod_selectors.retain(pods);
        if let Some(&id) = self.selection_ids.get(&(ns_selector, pod_selector)) {
            // the selection has one reference to each selector, however many it has itself
            self.namespace_selectors.release(ns_selector);
            self.pod_selectors.release(pod_selector);
            self.selections[id].refs += 1;
            return id;
        }
        if new_ns {
            self.file_namespace_selector(ns_selector, namespaces);
        }
        if new_pod {
            self.file_pod_selector(pod_selector, pods);
        }
        let of_pods = &self.classes_of[&pod_selector];
        let in_namespaces = &self.namespaces_of[&ns_selector];
        // from the side on which there are fewer classes to look at
        let classes: HashSet<usize> = if of_pods.len() <= in_namespaces.len() {
            let matches = |c: &usize| in_namespaces.contains(&self.classes[*c].key.namespace);
            of_pods.iter().copied().filter(matches).collect()
        } else {
            let all = in_namespaces.iter().flat_map(|ns| &self.namespaces[ns].classes);
            all.copied().filter(|c| of_pods.contains(c)).collect()
        };
        let set = PeerSet::Pods { namespaces: namespaces.clone(), pods: pods.clone() };
        let id = self.selections.insert(Selection {
            id: peer_set_id(&set),
            namespaces: ns_selector,
            pods: pod_selector,
            refs: 1,
            classes: HashSet::new(),
            attached: Vec::new(),
            subjects: 0,
        });
        for class in &classes {
            self.classes[*class].selections.push(id);
        }
        self.selections[id].classes = classes;
        self.selection_ids.insert((ns_selector, pod_selector), id);
        id
    }

    fn file_namespace_selector(&mut self, id: usize, selector: &Selector) {
        // by name: the one namespace that it can be
        let by_name = match selector.anchor() {
            Anchor::Values(key, values) if key == crate::policy::NAMESPACE_NAME_LABEL => Some(values),
            _ => None,
        };
        let matching: HashSet<String> = match by_name {
            Some(names) => {
                let there = names
                    .iter()
                    .filter(|n| self.namespaces.get(*n).is_some_and(|ns| selector.matches(&ns.labels)));
                there.cloned().collect()
            }
            None => {
                let all = self.namespaces.iter().filter(|(_, ns)| selector.matches(&ns.labels));
                all.map(|(name, _)| name.clone()).collect()
            }
        };
        for name in &matching {
            self.namespaces.get_mut(name).expect("just found").selectors.push(id);
        }
        self.namespaces_of.insert(id, matching);
    }

    fn file_pod_selector(&mut self, id: usize, selector: &Selector) {
        let candidates: Vec<usize> = match selector.anchor() {
            Anchor::Values(key, values) => values
                .iter()
                .filter_map(|v| self.classes_by_label.get(&(key.to_owned(), v.clone())))
                .flatten()
                .copied()
                .collect(),
            Anchor::Key(_) | Anchor::None => self.classes.iter().map(|(c, _)| c).collect(),
        };
        let matching: HashSet<usize> =
            candidates.into_iter().filter(|c| selector.matches(&self.classes[*c].key.labels)).collect();
        for class in &matching {
            self.classes[*class].selectors.push(id);
        }
        self.classes_of.insert(id, matching);
    }

    /// Takes another reference to a selection.
    pub(crate) fn retain_again(&mut self, id: usize) {
        self.selections[id].refs += 1;
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, id: usize) {
        let selection = &mut self.selections[id];
        selection.refs -= 1;
        if selection.refs > 0 {
            return;
        }
        debug_assert!(selection.attached.is_empty() && selection.subjects == 0);
        let selection = self.selections.remove(id);
        self.selection_ids.remove(&(selection.namespaces, selection.pods));
        for class in selection.classes {
            self.classes[class].selections.retain(|s| *s != id);
        }
        if self.namespace_selectors.release(selection.namespaces) {
            for name in self.namespaces_of.remove(&selection.namespaces).expect("filed") {
                let ns = self.namespaces.get_mut(&name).expect("filed");
                ns.selectors.retain(|s| *s != selection.namespaces);
            }
        }
        if self.pod_selectors.release(selection.pods) {
            for class in self.classes_of.remove(&selection.pods).expect("filed") {
                self.classes[class].selectors.retain(|s| *s != selection.pods);
            }
        }
    }

    /// The selection has one policy more, or less, as subject.
    pub(crate) fn set_subject(&mut self, id: usize, more: bool) {
        let selection = &mut self.selections[id];
        match more {
            true => selection.subjects += 1,
            false => selection.subjects -= 1,
        }
        // the first, or the last: its classes are under another set of selections
        if selection.subjects == usize::from(more) {
            self.journal.classes.extend(&selection.classes);
        }
    }

    /// A peer set of the graph is to have its members from a selection, to which it takes over
    /// the reference.
    pub(crate) fn attach(&mut self, selection: usize, vertex: Vertex, set: &PeerSet) {
        let kind = match set {
            PeerSet::Endpoints { within, name, protocol, .. } => {
                Kind::Endpoints { within: within.clone(), name: name.clone(), protocol: *protocol }
            }
            PeerSet::Pods { .. } | PeerSet::Cidrs(_) => Kind::Addresses,
        };
        self.selections[selection].attached.push(Attached { vertex, kind, held: 0 });
    }

    /// The peer set is gone, and its reference to the selection with it.
    pub(crate) fn detach(&mut self, selection: usize, vertex: Vertex) {
        self.selections[selection].attached.retain(|a| a.vertex != vertex);
        self.journal.members.remove(&vertex);
        self.release(selection);
    }

    /// One slice more, or less, has the peer set. Changes are recorded from the first on.
    pub(crate) fn set_held(&mut self, selection: usize, vertex: Vertex, more: bool) {
        let attached = self.selections[selection].attached.iter_mut().find(|a| a.vertex == vertex);
        let attached = attached.expect("held sets are attached");
        match more {
            true => attached.held += 1,
            false => attached.held -= 1,
        }
        if attached.held == 0 {
            self.journal.members.remove(&vertex);
        }
    }

    /// All members of an attached peer set, sorted.
    pub(crate) fn members(&self, selection: usize, vertex: Vertex) -> Vec<Member> {
        let selection = &self.selections[selection];
        let attached = selection.attached.iter().find(|a| a.vertex == vertex).expect("attached");
        let mut all = Vec::new();
        for class in &selection.classes {
            let class = &self.classes[*class];
            for pod in &class.pods {
                for address in &self.pods[pod].owned {
                    attached.kind.members(*address, class.ports(), |member| all.push(member));
                }
            }
        }
        all.sort_unstable();
        all
    }

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
