//! The policies that there are, and what became of them since slices were last told.

use slab::Slab;

use crate::compiler::Compiler;
use crate::lower::Lowered;
use crate::object::ObjectKey;
use crate::policy::{NAMESPACE_NAME_LABEL, Problem, ReadPolicy};
use crate::selector::Selector;
use crate::slice::{Change, Direction, SlicePolicy};
use crate::small::{Index, place};

#[derive(Debug)]
pub(crate) struct PolicyState {
    pub(crate) read: ReadPolicy,
    pub(crate) selection: u32,
    pub(crate) lowered: Lowered,
    /// It is closed, because it is beyond a budget: what it says, and why.
    beyond: Option<Box<(ReadPolicy, String)>>,
    /// It is new, or reads differently, since slices were last told.
    changed: bool,
    told: bool,
}

impl PolicyState {
    /// As it is written, if it is closed, too.
    pub(crate) fn written(&self) -> &ReadPolicy {
        self.beyond.as_ref().map_or(&self.read, |beyond| &beyond.0)
    }

    /// The budget that it is closed for.
    pub(crate) fn closed_for(&self) -> Option<&str> {
        self.beyond.as_ref().map(|beyond| beyond.1.as_str())
    }

    /// What is read is in the place of this.
    pub(crate) fn close(&mut self, written: ReadPolicy, reason: String) {
        self.beyond = Some(Box::new((written, reason)));
    }

    /// Whether it isolates the pods that it selects; what is audited does not (U29).
    pub(crate) fn isolates(&self, direction: Direction) -> bool {
        !self.lowered.audit && self.lowered.rules(direction).is_some()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    pub(crate) all: Slab<PolicyState>,
    by_key: Index,
    /// Those that are new, or read differently; numbers that are no longer in use, too.
    changed: Vec<u32>,
    /// Those that left a subject.
    pub(crate) left: Vec<(u32, ObjectKey)>,
    /// Those that a source told of, and those of which it told that they are gone.
    touched: Vec<u32>,
    gone: Vec<ObjectKey>,
}

impl Policies {
    /// The number of a policy.
    pub(crate) fn find(&self, key: &ObjectKey) -> Option<u32> {
        self.by_key.find(key, |id| self.all[id as usize].read.key == *key)
    }

    /// Those that are new, or read differently, in the order in which they became so.
    pub(crate) fn changed(&self) -> Vec<u32> {
        let is = |id: &u32| self.all.get(*id as usize).is_some_and(|state| state.changed);
        self.changed.iter().copied().filter(is).collect()
    }

    /// Those that are new, or read differently.
    pub(crate) fn take_changed(&mut self) -> Vec<u32> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.retain(|id| {
            self.all.get_mut(*id as usize).is_some_and(|state| std::mem::take(&mut state.changed))
        });
        changed
    }

    /// The problems of each policy that came or changed, and `None` for each that went.
    pub(crate) fn take_touched(&mut self) -> Vec<(ObjectKey, Option<Vec<Problem>>)> {
        let mut told = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            // a number may have been given to another policy since
            if let Some(state) = self.all.get_mut(id as usize)
                && !std::mem::replace(&mut state.told, true)
            {
                told.push((state.read.key.clone(), Some(state.read.problems.clone())));
            }
        }
        let mut gone = std::mem::take(&mut self.gone);
        gone.sort_unstable();
        gone.dedup();
        told.extend(gone.into_iter().filter(|key| self.find(key).is_none()).map(|key| (key, None)));
        told
    }

    pub(crate) fn touch(&mut self, id: u32) {
        self.all[id as usize].told = false;
        self.touched.push(id);
    }
}

impl Compiler {
    /// A policy is there, and reads like this now, which is something else than before.
    pub(crate) fn set_policy(&mut self, read: ReadPolicy) {
        let known = self.policies.find(&read.key);
        // what is new takes its references before what is old gives them back
        let namespace = Selector::label(NAMESPACE_NAME_LABEL, &read.key.namespace);
        let selection = self.population.retain(&namespace, &read.subject);
        let Compiler { graph, population, peer_sets, .. } = self;
        let lowered = Lowered::new(read.audit, &read.clauses, graph, population, peer_sets);
        let state = PolicyState { read, selection, lowered, beyond: None, changed: true, told: false };
        match known {
            None => {
                let id = place(self.policies.all.vacant_key());
                self.policies.by_key.insert(&state.read.key, id);
                self.policies.all.insert(state);
                self.policies.changed.push(id);
                self.join_subject(id);
                self.policies.touch(id);
            }
            Some(id) => {
                let old = std::mem::replace(&mut self.policies.all[id as usize], state);
                let stays = old.selection == selection;
                if !old.changed {
                    self.policies.changed.push(id);
                }
                self.join_subject(id);
                if !stays {
                    self.policies.left.push((old.selection, old.read.key.clone()));
                }
                self.retire(id, old, stays);
                self.policies.touch(id);
            }
        }
    }

    /// The policy is gone.
    pub(crate) fn remove_policy(&mut self, key: &ObjectKey) {
        self.policies.gone.push(key.clone());
        if let Some(id) = self.policies.find(key) {
            let cost = self.policies.all[id as usize].written().cost;
            self.spend(&key.namespace, Some(cost), None);
            let old = self.policies.all.remove(id as usize);
            self.policies.by_key.remove(key, id);
            self.policies.left.push((old.selection, key.clone()));
            self.retire(id, old, false);
        }
    }

    fn retire(&mut self, id: u32, old: PolicyState, stays: bool) {
        self.leave_subject(id, old.selection, &old.lowered, stays);
        self.population.release(old.selection);
        let dead = old.lowered.release(&mut self.graph);
        self.peer_sets.bury(dead, &mut self.population);
    }

    /// A policy as slices have it.
    pub(crate) fn policy_change(&self, id: u32) -> Change {
        let state = &self.policies.all[id as usize];
        let subject = self.subject_id(state.selection);
        let ReadPolicy { audit, clauses, .. } = &state.read;
        let policy = SlicePolicy { subject, audit: *audit, clauses: clauses.clone() };
        Change::Policy(state.read.key.clone(), policy)
    }
}
