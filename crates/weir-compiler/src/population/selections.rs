//! Selections: which classes two selectors match, and the peer sets that have their members from that.

use smallvec::SmallVec;

use super::{Attached, Endpoints, Kind, Population, Selection, touch_class};
use crate::graph::{Content, Vertex};
use crate::identity::peer_set_id;
use crate::policy::NAMESPACE_NAME_LABEL;
use crate::selector::{Anchor, Selector};
use crate::slice::{Member, PeerSet};
use crate::small::{PlaceSet, place};

impl Population {
    /// A class comes under a selection, or no longer is.
    pub(super) fn set_selected(&mut self, class: u32, selection: u32, joins: bool) {
        let of_selection = &mut self.selections[selection as usize];
        let of_class = &mut self.classes[class as usize];
        let changed = match joins {
            true => of_selection.classes.insert(class),
            false => of_selection.classes.remove(class),
        };
        debug_assert!(changed);
        match joins {
            true => of_class.selections.push(selection),
            false => of_class.selections.retain(|s| *s != selection),
        }
        for attached in of_selection.attached.iter().filter(|a| a.held > 0) {
            for pod in of_class.pods.iter() {
                for address in &self.pods[pod as usize].owned {
                    attached.kind.members(*address, &of_class.ports, |member| {
                        self.journal.member(attached.vertex, member, joins);
                    });
                }
            }
        }
        if of_selection.subjects > 0 {
            touch_class(of_class, class, &mut self.journal);
        }
    }

    /// Takes a reference to the selection of two selectors.
    pub(crate) fn retain(&mut self, namespaces: &Selector, pods: &Selector) -> u32 {
        let (ns_selector, new_ns) = self.namespace_selectors.retain(namespaces);
        let (pod_selector, new_pod) = self.pod_selectors.retain(pods);
        if let Some(&id) = self.selection_ids.get(&(ns_selector, pod_selector)) {
            // the selection has one reference to each selector, however many it has itself
            self.namespace_selectors.release(ns_selector);
            self.pod_selectors.release(pod_selector);
            self.selections[id as usize].refs += 1;
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
        let classes: PlaceSet = if of_pods.len() <= in_namespaces.len() {
            let matches = |c: &u32| in_namespaces.contains(self.classes[*c as usize].namespace);
            of_pods.iter().filter(matches).collect()
        } else {
            let all = in_namespaces.iter().flat_map(|ns| self.namespaces[ns as usize].classes.iter());
            all.filter(|c| of_pods.contains(*c)).collect()
        };
        let set = PeerSet::Pods { namespaces: namespaces.clone(), pods: pods.clone() };
        let id = place(self.selections.vacant_key());
        for class in classes.iter() {
            self.classes[class as usize].selections.push(id);
        }
        self.selections.insert(Selection {
            id: peer_set_id(&set),
            namespaces: ns_selector,
            pods: pod_selector,
            refs: 1,
            classes,
            attached: SmallVec::new(),
            subjects: 0,
        });
        self.selection_ids.insert((ns_selector, pod_selector), id);
        id
    }

    fn file_namespace_selector(&mut self, id: u32, selector: &Selector) {
        let matching: PlaceSet = match selector.anchor() {
            // by name: the one namespace that it can be
            Anchor::Values(key, values) if key == NAMESPACE_NAME_LABEL => {
                let there = values.iter().filter_map(|name| self.find_namespace(name));
                there.filter(|ns| selector.matches(&self.namespaces[*ns as usize].labels)).collect()
            }
            _ => {
                let all = self.namespaces.iter().filter(|(_, ns)| selector.matches(&ns.labels));
                all.map(|(ns, _)| place(ns)).collect()
            }
        };
        matching.iter().for_each(|ns| self.namespaces[ns as usize].selectors.push(id));
        self.namespaces_of.insert(id, matching);
    }

    fn file_pod_selector(&mut self, id: u32, selector: &Selector) {
        let matches = |class: &u32| selector.matches(&self.classes[*class as usize].labels);
        let matching: PlaceSet = match selector.anchor() {
            Anchor::Values(key, values) => {
                let of = values.iter().filter_map(|value| self.classes_by_label.get(key, value));
                of.flat_map(PlaceSet::iter).filter(matches).collect()
            }
            Anchor::Key(_) | Anchor::None => {
                self.classes.iter().map(|(class, _)| place(class)).filter(matches).collect()
            }
        };
        matching.iter().for_each(|class| self.classes[class as usize].selectors.push(id));
        self.classes_of.insert(id, matching);
    }

    /// Takes another reference to a selection.
    pub(crate) fn retain_again(&mut self, id: u32) {
        self.selections[id as usize].refs += 1;
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, id: u32) {
        let selection = &mut self.selections[id as usize];
        selection.refs -= 1;
        if selection.refs > 0 {
            return;
        }
        debug_assert!(selection.attached.is_empty() && selection.subjects == 0);
        let selection = self.selections.remove(id as usize);
        self.selection_ids.remove(&(selection.namespaces, selection.pods));
        for class in selection.classes.iter() {
            self.classes[class as usize].selections.retain(|s| *s != id);
        }
        if self.namespace_selectors.release(selection.namespaces) {
            for ns in self.namespaces_of.remove(&selection.namespaces).expect("filed").iter() {
                self.namespaces[ns as usize].selectors.retain(|s| *s != selection.namespaces);
            }
        }
        if self.pod_selectors.release(selection.pods) {
            for class in self.classes_of.remove(&selection.pods).expect("filed").iter() {
                self.classes[class as usize].selectors.retain(|s| *s != selection.pods);
            }
        }
    }

    /// The selection has one policy more, or less, as subject.
    pub(crate) fn set_subject(&mut self, id: u32, more: bool) {
        let selection = &mut self.selections[id as usize];
        match more {
            true => selection.subjects += 1,
            false => selection.subjects -= 1,
        }
        // the first, or the last: its classes are under another set of selections
        if selection.subjects == u32::from(more) {
            for class in selection.classes.iter() {
                touch_class(&mut self.classes[class as usize], class, &mut self.journal);
            }
        }
    }

    /// A peer set of the graph is to have its members from a selection, to which it takes over
    /// the reference.
    pub(crate) fn attach(&mut self, selection: u32, vertex: Vertex, set: &Content) {
        let kind = match set {
            Content::PeerSet(PeerSet::Endpoints { within, name, protocol, .. }) => {
                let (within, name) = (within.clone(), name.clone());
                Kind::Endpoints(Box::new(Endpoints { within, name, protocol: *protocol }))
            }
            _ => Kind::Addresses,
        };
        self.selections[selection as usize].attached.push(Attached { vertex, kind, held: 0 });
    }

    /// The peer set is gone, and its reference to the selection with it.
    pub(crate) fn detach(&mut self, selection: u32, vertex: Vertex) {
        self.selections[selection as usize].attached.retain(|a| a.vertex != vertex);
        self.journal.members.remove(&vertex);
        self.release(selection);
    }

    /// One slice more, or less, has the peer set. Changes are recorded from the first on.
    pub(crate) fn set_held(&mut self, selection: u32, vertex: Vertex, more: bool) {
        let attached = self.selections[selection as usize].attached.iter_mut().find(|a| a.vertex == vertex);
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
    pub(crate) fn members(&self, selection: u32, vertex: Vertex) -> Vec<Member> {
        let selection = &self.selections[selection as usize];
        let attached = selection.attached.iter().find(|a| a.vertex == vertex).expect("attached");
        let mut all = Vec::new();
        for class in selection.classes.iter() {
            let class = &self.classes[class as usize];
            for pod in class.pods.iter() {
                for address in &self.pods[pod as usize].owned {
                    attached.kind.members(*address, &class.ports, |member| all.push(member));
                }
            }
        }
        all.sort_unstable();
        all
    }
}
