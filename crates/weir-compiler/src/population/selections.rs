//! Selections: which classes two selectors match, and the peer sets that have their members from that.

use hashbrown::HashSet;

use super::{Attached, Kind, Population, Selection};
use crate::graph::{Vertex, peer_set_id};
use crate::policy::NAMESPACE_NAME_LABEL;
use crate::selector::{Anchor, Selector};
use crate::slice::{Member, PeerSet};

impl Population {
    /// A class comes under a selection, or no longer is.
    pub(super) fn set_selected(&mut self, class: usize, selection: usize, joins: bool) {
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
            Anchor::Values(key, values) if key == NAMESPACE_NAME_LABEL => Some(values),
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
}
