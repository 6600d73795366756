//! Namespaces and their labels.

use smallvec::SmallVec;

use super::{Namespace, Population};
use crate::object::{self, Labels};
use crate::policy::namespace_labels;
use crate::small::{PlaceSet, place};

impl Population {
    /// A namespace is there, with these labels.
    pub(crate) fn namespace(&mut self, ns: object::Namespace) {
        let labels = namespace_labels(&ns.name, &ns.labels);
        let id = self.ensure_namespace(&ns.name);
        let state = &mut self.namespaces[id as usize];
        state.exists = true;
        state.terminating = ns.terminating;
        let told = std::mem::replace(&mut state.log_allowed, ns.log_allowed) != ns.log_allowed;
        if state.labels != labels {
            self.label_namespace(id, labels);
        }
        if told {
            let classes: Vec<u32> = self.namespaces[id as usize].classes.iter().collect();
            classes.into_iter().for_each(|class| self.touch_pods(class));
        }
    }

    /// Which new connections of a class' pods are told of.
    pub(crate) fn log_allowed(&self, class: u32) -> u32 {
        self.namespaces[self.classes[class as usize].namespace as usize].log_allowed
    }

    fn label_namespace(&mut self, id: u32, labels: Labels) {
        let state = &mut self.namespaces[id as usize];
        let after = self.namespace_selectors.matching(&labels);
        state.labels = labels;
        let before = std::mem::replace(&mut state.selectors, after.clone());
        let lost = before.iter().filter(|s| !after.contains(s)).map(|s| (*s, false));
        let gained = after.iter().filter(|s| !before.contains(s)).map(|s| (*s, true));
        let changed: SmallVec<[(u32, bool); 4]> = lost.chain(gained).collect();
        if changed.is_empty() {
            return;
        }
        let classes: Vec<u32> = state.classes.iter().collect();
        for &(selector, joins) in &changed {
            let of = self.namespaces_of.get_mut(&selector).expect("filed");
            match joins {
                true => of.insert(id),
                false => of.remove(id),
            };
        }
        for class in classes {
            for &(ns_selector, joins) in &changed {
                for i in 0..self.classes[class as usize].selectors.len() {
                    let pair = (ns_selector, self.classes[class as usize].selectors[i]);
                    if let Some(&selection) = self.selection_ids.get(&pair) {
                        self.set_selected(class, selection, joins);
                    }
                }
            }
        }
    }

    /// The namespace's object is gone.
    pub(crate) fn namespace_gone(&mut self, name: &str) {
        if let Some(id) = self.find_namespace(name) {
            // what it was labelled must not outlive it: a restart would not know either
            self.namespace(object::Namespace { name: name.to_owned(), ..Default::default() });
            self.namespaces[id as usize].exists = false;
            self.forget_namespace_if_unused(id);
        }
    }

    /// Whether pods of a namespace that is being deleted are still there (N79).
    pub(crate) fn is_draining(&self, namespace: &str) -> bool {
        self.find_namespace(namespace).is_some_and(|id| {
            let ns = &self.namespaces[id as usize];
            ns.terminating && ns.pods > 0
        })
    }

    pub(super) fn find_namespace(&self, name: &str) -> Option<u32> {
        self.namespace_by_name.find(name, |id| self.namespaces[id as usize].name == name)
    }

    pub(super) fn ensure_namespace(&mut self, name: &str) -> u32 {
        if let Some(id) = self.find_namespace(name) {
            return id;
        }
        let labels = namespace_labels(name, &Labels::new());
        let selectors = self.namespace_selectors.matching(&labels);
        let id = place(self.namespaces.vacant_key());
        for selector in &selectors {
            self.namespaces_of.get_mut(selector).expect("filed").insert(id);
        }
        let name = name.to_owned();
        self.namespace_by_name.insert(name.as_str(), id);
        self.namespaces.insert(Namespace {
            name,
            labels,
            terminating: false,
            log_allowed: 0,
            exists: false,
            selectors,
            classes: PlaceSet::default(),
            pods: 0,
        });
        id
    }

    pub(super) fn forget_namespace_if_unused(&mut self, id: u32) {
        let ns = &self.namespaces[id as usize];
        if ns.exists || ns.pods > 0 {
            return;
        }
        let ns = self.namespaces.remove(id as usize);
        self.namespace_by_name.remove(ns.name.as_str(), id);
        for selector in ns.selectors {
            self.namespaces_of.get_mut(&selector).expect("filed").remove(id);
        }
    }
}
