//! Namespaces and their labels.

use hashbrown::HashSet;

use super::{Namespace, Population};
use crate::object::{self, Labels};
use crate::policy::namespace_labels;

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

    pub(super) fn ensure_namespace(&mut self, name: &str) {
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

    pub(super) fn forget_namespace_if_unused(&mut self, name: &str) {
        let unused = self.namespaces.get(name).is_some_and(|ns| !ns.exists && ns.pods == 0);
        if unused && let Some(ns) = self.namespaces.remove(name) {
            for selector in ns.selectors {
                self.namespaces_of.get_mut(&selector).expect("filed").remove(name);
            }
        }
    }
}
