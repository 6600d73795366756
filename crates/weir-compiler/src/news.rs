//! What a batch did that people should hear of, beside what nodes are told: policies that select no pod, and pods
//! that are isolated and were not before.
//!
//! ```text
//!   changed policies, subjects that got their first pods or lost their last ──> selecting
//!   profiles whose rulesets came ──> their pods ──┐
//!   pods that changed their profile ──────────────┴──> counted by profile ──> isolated, by policy
//! ```
//!
//! In proportion to the policies that changed and to the pods that became isolated. A pod that comes isolated is no
//! news, and one that a pod of the same name replaces is another pod.

use crate::compiler::{Compiler, Scope};
use crate::object::ObjectKey;
use crate::slice::Direction;
use crate::small::Places;

/// So many pods are named.
const NAMED: usize = 5;

/// Pods that a policy isolates now, and that were not isolated before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated {
    /// The policy: of several that came or changed in the batch, the first.
    pub policy: ObjectKey,
    /// It came or changed in this batch. If it did not, the pods were relabelled.
    pub changed: bool,
    /// How many pods.
    pub pods: usize,
    /// How many of them for ingress.
    pub ingress: usize,
    /// How many of them for egress.
    pub egress: usize,
    /// The first five of them, by name.
    pub some: Vec<ObjectKey>,
}

/// In which directions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Isolation {
    ingress: bool,
    egress: bool,
}

impl Isolation {
    fn beyond(self, before: Isolation) -> Isolation {
        Isolation { ingress: self.ingress && !before.ingress, egress: self.egress && !before.egress }
    }

    fn none(self) -> bool {
        self == Isolation::default()
    }
}

#[derive(Debug, Default)]
struct Group {
    pods: usize,
    some: Vec<ObjectKey>,
}

impl Group {
    fn add(&mut self, pods: usize, some: &[ObjectKey]) {
        self.pods += pods;
        for key in some {
            let at = self.some.partition_point(|other| other < key);
            if at < NAMED && self.some.get(at) != Some(key) {
                self.some.truncate(NAMED - 1);
                self.some.insert(at, key.clone());
            }
        }
    }
}

/// Of the batch that is being made.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Policies that came or changed, in the order in which they did.
    changed: Vec<u32>,
    /// What profiles were that have been compiled again.
    before: Places<u32, Isolation>,
    /// By profile, and in which directions they were not isolated before.
    groups: Places<(u32, Isolation), Group>,
}

impl Compiler {
    /// All events are taken, and slices are about to be told.
    pub(crate) fn begin_news(&mut self) {
        // one node's agent tells nobody
        if self.scope == Scope::AllNodes {
            self.news.changed = self.policies.changed();
        }
    }

    pub(crate) fn isolation(&self, profile: u32) -> Isolation {
        let content = &self.profiles.all[profile as usize].content;
        Isolation { ingress: content.ingress.is_some(), egress: content.egress.is_some() }
    }

    /// A profile was this, and has been compiled again.
    pub(crate) fn profile_rebuilt(&mut self, profile: u32, before: Isolation) {
        if self.scope == Scope::AllNodes && self.isolation(profile) != before {
            self.news.before.insert(profile, before);
        }
    }

    /// Pods that keep their profile, which isolates them now. Profiles are compiled, pods not yet placed.
    pub(crate) fn note_profiles(&mut self) {
        let mut more: Places<u32, (u32, Isolation)> = Places::default();
        for (&profile, before) in &self.news.before {
            let beyond = self.isolation(profile).beyond(*before);
            let of = self.profiles.all[profile as usize].selections.iter();
            let smallest = of.min_by_key(|selection| self.population.selection(**selection).class_count());
            if let (false, Some(selection)) = (beyond.none(), smallest) {
                more.insert(profile, (*selection, beyond));
            }
        }
        let mut selections: Vec<u32> = more.values().map(|(selection, _)| *selection).collect();
        selections.sort_unstable();
        selections.dedup();
        let mut pods = Vec::new();
        for selection in selections {
            for class in self.population.selection(selection).classes() {
                let class = self.population.class_state(class);
                let Some(profile) = class.profile else { continue };
                let Some((by, beyond)) = more.get(&profile).filter(|(by, _)| *by == selection) else {
                    continue;
                };
                debug_assert_eq!(*by, selection);
                let stays = |pod: &u32| {
                    let state = self.population.pod_state(*pod);
                    let had = state.placed.as_ref().is_some_and(|placed| placed.profile == profile);
                    had && !state.reborn && state.node.is_some() && !state.owned.is_empty()
                };
                pods.extend(class.pods().filter(stays).map(|pod| (profile, *beyond, pod)));
            }
        }
        pods.into_iter().for_each(|(profile, beyond, pod)| self.note_pod(profile, beyond, pod));
    }

    /// A pod had another profile before this batch.
    pub(crate) fn note_move(&mut self, pod: u32, before: u32, now: u32) {
        if self.scope != Scope::AllNodes {
            return;
        }
        let before = self.news.before.get(&before).copied().unwrap_or_else(|| self.isolation(before));
        let beyond = self.isolation(now).beyond(before);
        if !beyond.none() {
            self.note_pod(now, beyond, pod);
        }
    }

    fn note_pod(&mut self, profile: u32, beyond: Isolation, pod: u32) {
        let key = std::slice::from_ref(&self.population.pod_state(pod).key);
        self.news.groups.entry((profile, beyond)).or_default().add(1, key);
    }

    /// The policies that came or changed, or select their first pods or none any more: whether each selects any.
    pub(crate) fn take_selecting(&mut self) -> Vec<(ObjectKey, bool)> {
        let mut policies = self.news.changed.clone();
        for selection in std::mem::take(&mut self.population.journal.reselected) {
            if let (Scope::AllNodes, Some(subject)) = (&self.scope, self.subjects.get(&selection)) {
                policies.extend(subject.policies.iter());
            }
        }
        policies.sort_unstable();
        policies.dedup();
        let told = policies.into_iter().filter_map(|id| self.policies.all.get(id as usize)).map(|policy| {
            (policy.read.key.clone(), self.population.selection(policy.selection).class_count() > 0)
        });
        told.collect()
    }

    /// The pods that became isolated, by the policy that did it.
    pub(crate) fn take_isolated(&mut self) -> Vec<Isolated> {
        let news = std::mem::take(&mut self.news);
        if news.groups.is_empty() {
            return Vec::new();
        }
        // by what they select, and for each direction: the first that changed, and isolates
        let mut first: Places<u32, [Option<(usize, u32)>; 2]> = Places::default();
        for (order, id) in news.changed.iter().enumerate() {
            let policy = &self.policies.all[*id as usize];
            for (at, direction) in Direction::BOTH.into_iter().enumerate() {
                if policy.isolates(direction) {
                    let known = &mut first.entry(policy.selection).or_default()[at];
                    known.get_or_insert((order, *id));
                }
            }
        }
        let mut all: Vec<Isolated> = Vec::new();
        let mut places: Places<(u32, bool), (usize, Group)> = Places::default();
        for ((profile, beyond), group) in news.groups {
            let of = |at, wanted: bool| wanted.then(|| self.isolated_by(profile, at, &first)).flatten();
            let (ingress, egress) = (of(0, beyond.ingress), of(1, beyond.egress));
            let both = ingress == egress;
            for (by, directions) in [(ingress, (1, usize::from(both))), (egress.filter(|_| !both), (0, 1))] {
                let Some((id, changed)) = by else { continue };
                let (place, merged) = places.entry((id, changed)).or_insert_with(|| {
                    let policy = self.policies.all[id as usize].read.key.clone();
                    all.push(Isolated { policy, changed, pods: 0, ingress: 0, egress: 0, some: Vec::new() });
                    (all.len() - 1, Group::default())
                });
                merged.add(group.pods, &group.some);
                all[*place].ingress += directions.0 * group.pods;
                all[*place].egress += directions.1 * group.pods;
            }
        }
        for (place, group) in places.into_values() {
            (all[place].pods, all[place].some) = (group.pods, group.some);
        }
        all.sort_unstable_by(|a, b| (&a.policy, a.changed).cmp(&(&b.policy, b.changed)));
        all
    }

    /// Which policy isolates pods with a profile, and whether it changed in this batch.
    fn isolated_by(
        &self,
        profile: u32,
        at: usize,
        first: &Places<u32, [Option<(usize, u32)>; 2]>,
    ) -> Option<(u32, bool)> {
        let selections = &self.profiles.all[profile as usize].selections;
        let changed = selections.iter().filter_map(|selection| first.get(selection)?[at]).min();
        if let Some((_, id)) = changed {
            return Some((id, true));
        }
        let subjects = selections.iter().filter_map(|selection| self.subjects.get(selection));
        let policies = subjects.flat_map(|subject| subject.policies.iter());
        let isolate = policies.filter(|id| self.policies.all[*id as usize].isolates(Direction::BOTH[at]));
        isolate.min_by_key(|id| &self.policies.all[*id as usize].read.key).map(|id| (id, false))
    }

    /// Whether a policy selects pods of a node: its slice has it then.
    pub fn is_on(&self, policy: &ObjectKey, node: &str) -> bool {
        let (Some(id), Some(node)) = (self.policies.find(policy), self.population.nodes.find(node)) else {
            return false;
        };
        self.subjects
            .get(&self.policies.all[id as usize].selection)
            .is_some_and(|subject| subject.nodes.contains(node))
    }
}
