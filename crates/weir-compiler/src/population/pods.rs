//! Pods, their classes, and the addresses that they own.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::{Addresses, Class, PodState, Population, Rank, touch_class, touch_pod};
use crate::object::{self, Labels, NamedPort, ObjectKey};
use crate::small::{PlaceSet, place};

impl Population {
    /// A pod is there. Pods in the host's network and finished ones are nobody's peer and under
    /// no policy: to the population they are gone (N70, N75).
    pub(crate) fn pod(&mut self, pod: object::Pod) {
        if pod.host_network || pod.finished {
            return self.pod_gone(&pod.key);
        }
        let mut ports = pod.ports;
        ports.sort_unstable();
        ports.dedup();
        let mut claimed = Addresses::from_slice(&pod.ips);
        claimed.sort_unstable();
        claimed.dedup();
        let rank = Rank { stays: !pod.terminating, created: pod.created, uid: pod.uid };
        let node = pod.node.as_deref().map(|name| self.nodes.named(name));

        let known = self.find_pod(&pod.key);
        let living = known.and_then(|id| Some((id, self.pods[id as usize].class?)));
        if let Some((id, class)) = living
            && self.pods[id as usize].claimed == claimed
            && self.classes[class as usize].is_of(&pod.labels, &ports)
        {
            return self.move_pod(id, node, rank);
        }

        // the class that the pod leaves may be the one that it comes to: it is collected at the end
        let left = living.map(|(id, _)| self.remove_pod(id));
        let namespace = self.ensure_namespace(&pod.key.namespace);
        let class = self.class(namespace, pod.labels, &ports);
        let id = match known {
            Some(id) => {
                let state = &mut self.pods[id as usize];
                state.reborn |= state.rank.uid != rank.uid;
                (state.class, state.node, state.rank) = (Some(class), node, rank);
                state.claimed = claimed.clone();
                id
            }
            None => {
                let id = place(self.pods.vacant_key());
                self.pod_by_key.insert(&pod.key, id);
                self.pods.insert(PodState {
                    key: pod.key,
                    class: Some(class),
                    node,
                    claimed: claimed.clone(),
                    owned: Addresses::new(),
                    rank,
                    placed: None,
                    reborn: false,
                    in_journal: false,
                });
                id
            }
        };
        self.living += 1;
        self.classes[class as usize].pods.insert(id);
        self.namespaces[namespace as usize].pods += 1;
        for address in claimed {
            self.claims.entry(address).or_default().push(id);
            self.settle(address);
        }
        if let Some(left) = left {
            self.collect(left);
        }
        self.touch_pod(id);
    }

    /// A pod of which only the node or the rank among the owners of its addresses is another.
    fn move_pod(&mut self, id: u32, node: Option<u32>, rank: Rank) {
        let state = &mut self.pods[id as usize];
        let before = std::mem::replace(&mut state.node, node);
        let other = state.rank.uid != rank.uid;
        state.reborn |= other;
        let ranked = std::mem::replace(&mut state.rank, rank) != state.rank;
        let claimed = state.claimed.clone();
        if before != node || other {
            self.touch_pod(id);
        }
        if let Some(before) = before {
            self.nodes.release(before);
        }
        if ranked {
            claimed.into_iter().for_each(|address| self.settle(address));
        }
    }

    /// The pod is gone.
    pub(crate) fn pod_gone(&mut self, key: &ObjectKey) {
        if let Some(id) = self.find_pod(key)
            && let Some(class) = self.pods[id as usize].class
        {
            let namespace = self.classes[class as usize].namespace;
            let left = self.remove_pod(id);
            self.collect(left);
            self.forget_namespace_if_unused(namespace);
        }
    }

    fn find_pod(&self, key: &ObjectKey) -> Option<u32> {
        self.pod_by_key.find(key, |id| self.pods[id as usize].key == *key)
    }

    fn touch_pod(&mut self, id: u32) {
        touch_pod(&mut self.pods[id as usize], id, &mut self.journal);
    }

    /// Removes a living pod: its class, which may be empty now. Where it was is kept until
    /// [`forget_pod`](Population::forget_pod), since some slice may have yet to be told.
    fn remove_pod(&mut self, id: u32) -> u32 {
        for address in std::mem::take(&mut self.pods[id as usize].claimed) {
            let claims = self.claims.get_mut(&address).expect("claimed");
            claims.retain(|other| *other != id);
            if claims.is_empty() {
                self.claims.remove(&address);
            }
            self.set_owned(id, address, false);
            self.settle(address);
        }
        self.touch_pod(id);
        let state = &mut self.pods[id as usize];
        let class = state.class.take().expect("it is living");
        if let Some(node) = state.node.take() {
            self.nodes.release(node);
        }
        self.living -= 1;
        let of = &mut self.classes[class as usize];
        of.pods.remove(id);
        self.namespaces[of.namespace as usize].pods -= 1;
        class
    }

    /// Forgets a pod that is gone and in no slice.
    pub(crate) fn forget_pod(&mut self, id: u32) {
        let state = self.pods.remove(id as usize);
        debug_assert!(state.class.is_none() && state.placed.is_none());
        self.pod_by_key.remove(&state.key, id);
    }

    /// Gives an address to the greatest of those who claim it.
    fn settle(&mut self, address: IpAddr) {
        let Some(claims) = self.claims.get(&address) else { return };
        if let [only] = claims[..] {
            return self.set_owned(only, address, true);
        }
        let claims = claims.clone();
        let greatest = |id: &&u32| {
            let state = &self.pods[**id as usize];
            (&state.rank, &state.key)
        };
        let owner = claims.iter().max_by(|a, b| greatest(a).cmp(&greatest(b))).copied();
        for id in claims.iter().filter(|id| Some(**id) != owner) {
            self.set_owned(*id, address, false);
        }
        owner.into_iter().for_each(|id| self.set_owned(id, address, true));
    }

    fn set_owned(&mut self, id: u32, address: IpAddr, owned: bool) {
        let state = &mut self.pods[id as usize];
        let at = state.owned.binary_search(&address);
        match (at, owned) {
            (Err(at), true) => state.owned.insert(at, address),
            (Ok(at), false) => drop(state.owned.remove(at)),
            _ => return,
        }
        let class = &self.classes[state.class.expect("only living pods claim") as usize];
        for &selection in &class.selections {
            for attached in self.selections[selection as usize].attached.iter().filter(|a| a.held) {
                attached.kind.members(address, &class.ports, |member| {
                    self.journal.member(attached.vertex, member, owned);
                });
            }
        }
        self.touch_pod(id);
    }

    /// The class of pods of this namespace with these labels and ports (sorted, each once).
    fn class(&mut self, namespace: u32, labels: Labels, ports: &[NamedPort]) -> u32 {
        let content = (namespace, &labels, ports);
        let is_it = |id: u32| {
            let class = &self.classes[id as usize];
            class.namespace == namespace && class.is_of(&labels, ports)
        };
        if let Some(id) = self.class_by_content.find(&content, is_it) {
            return id;
        }
        let id = place(self.classes.vacant_key());
        self.class_by_content.insert(&content, id);
        for (key, value) in &labels {
            self.classes_by_label.get_or_default(key, value).insert(id);
        }
        let selectors = self.pod_selectors.matching(&labels);
        let ns = &mut self.namespaces[namespace as usize];
        ns.classes.insert(id);
        let mut selections = SmallVec::new();
        for pod_selector in &selectors {
            self.classes_of.get_mut(pod_selector).expect("filed").insert(id);
            for ns_selector in &ns.selectors {
                if let Some(&selection) = self.selection_ids.get(&(*ns_selector, *pod_selector)) {
                    let of = &mut self.selections[selection as usize];
                    of.classes.insert(id);
                    of.selects(selection, of.classes.len() == 1, &mut self.journal);
                    selections.push(selection);
                }
            }
        }
        self.classes.insert(Class {
            namespace,
            labels,
            ports: ports.into(),
            pods: PlaceSet::default(),
            selectors,
            selections,
            profile: None,
            in_journal: false,
        });
        touch_class(&mut self.classes[id as usize], id, &mut self.journal);
        id
    }

    /// Forgets the class if its last pod left.
    fn collect(&mut self, id: u32) {
        if !self.classes[id as usize].pods.is_empty() {
            return;
        }
        let class = self.classes.remove(id as usize);
        self.class_by_content.remove(&(class.namespace, &class.labels, &*class.ports), id);
        for (key, value) in &class.labels {
            self.classes_by_label.edit(key, value, |of| {
                of.remove(id);
                of.is_empty()
            });
        }
        for selector in &class.selectors {
            self.classes_of.get_mut(selector).expect("filed").remove(id);
        }
        for selection in &class.selections {
            let of = &mut self.selections[*selection as usize];
            of.classes.remove(id);
            of.selects(*selection, of.classes.is_empty(), &mut self.journal);
        }
        self.namespaces[class.namespace as usize].classes.remove(id);
        self.journal.unclassed.extend(class.profile);
    }
}

impl Class {
    fn is_of(&self, labels: &Labels, ports: &[NamedPort]) -> bool {
        self.labels == *labels && *self.ports == *ports
    }
}
