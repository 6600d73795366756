//! Pods, their classes, and the addresses that they own.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use smallvec::SmallVec;

use super::{Class, ClassKey, PodState, Population};
use crate::object::{self, ObjectKey};

impl Population {
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
}
