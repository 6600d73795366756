//! Profiles: what pods that the same policies select have in common.
//!
//! A class of pods has the profile that its subjects and named ports make. When the rules of one of these
//! subjects change, the profile is compiled again, once for all of its pods.

use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use crate::compiler::Compiler;
use crate::graph::{Vertex, ruleset_id};
use crate::identity::profile_id;
use crate::lower::LoweredRule;
use crate::object::NamedPort;
use crate::ports::PortSet;
use crate::slice::{Action, Direction, Effect, Profile, ProfileId, Tier};
use crate::small::{PlaceMap, place};

/// One for each direction in which policies isolate, and one for each in which audited policies say something.
pub(crate) type Rulesets = SmallVec<[Vertex; 2]>;

#[derive(Debug)]
pub(crate) struct ProfileState {
    pub(crate) id: ProfileId,
    /// Those of its classes that are subjects of policies.
    pub(crate) selections: SmallVec<[u32; 4]>,
    pub(crate) ports: Arc<[NamedPort]>,
    classes: u32,
    pub(crate) content: Profile,
    pub(crate) rulesets: Rulesets,
    /// Where it is in slices, and how many pods of the node have it.
    pub(crate) nodes: PlaceMap<u32>,
    dirty: bool,
    /// Where it is in the table of the batch that is being made.
    pub(crate) at: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Profiles {
    pub(crate) all: Slab<ProfileState>,
    by_id: HashMap<ProfileId, u32>,
    dirty: Vec<u32>,
}

impl Profiles {
    /// These are to be compiled again.
    pub(crate) fn mark(&mut self, profiles: impl Iterator<Item = u32>) {
        for id in profiles {
            if !std::mem::replace(&mut self.all[id as usize].dirty, true) {
                self.dirty.push(id);
            }
        }
    }

    /// Those that are to be compiled again.
    pub(crate) fn take_dirty(&mut self) -> Vec<u32> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.iter().for_each(|id| self.all[*id as usize].dirty = false);
        dirty
    }

    /// One class less has the profile: whether none has it any more.
    pub(crate) fn leave(&mut self, id: u32) -> bool {
        let classes = &mut self.all[id as usize].classes;
        *classes -= 1;
        *classes == 0
    }
}

impl Compiler {
    /// Gives a class the profile that fits it. Returns the one that nobody has any more.
    pub(crate) fn assign_profile(&mut self, class_id: u32) -> Option<u32> {
        let class = self.population.class_state(class_id);
        let old = class.profile;
        let selections = self.population.subjects(class);
        let ports = class.ports.clone();
        let id = profile_id(
            selections.iter().map(|s| &self.population.selection(*s).id),
            ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)),
        );
        let profile = match self.profiles.by_id.get(&id) {
            Some(&profile) => profile,
            None => self.new_profile(id, selections, ports),
        };
        if old == Some(profile) {
            return None;
        }
        self.profiles.all[profile as usize].classes += 1;
        self.population.set_profile(class_id, profile);
        self.population.touch_pods(class_id);
        old.filter(|old| self.profiles.leave(*old))
    }

    fn new_profile(&mut self, id: ProfileId, selections: Vec<u32>, ports: Arc<[NamedPort]>) -> u32 {
        let profile = place(self.profiles.all.vacant_key());
        for selection in &selections {
            // its number must stay this selection's as long as the profile names it
            self.population.retain_again(*selection);
            self.subjects.entry(*selection).or_default().profiles.insert(profile);
        }
        let subjects = selections.iter().map(|s| self.subject_id(*s)).collect();
        self.profiles.all.insert(ProfileState {
            id,
            selections: selections.into(),
            ports,
            classes: 0,
            content: Profile { subjects, ..Profile::default() },
            rulesets: Rulesets::new(),
            nodes: PlaceMap::default(),
            dirty: false,
            at: None,
        });
        self.profiles.by_id.insert(id, profile);
        self.profiles.mark([profile].into_iter());
        profile
    }

    /// Compiles a profile again. If that changed it: the rulesets that it had.
    pub(crate) fn rebuild_profile(&mut self, id: u32) -> Option<Rulesets> {
        if self.profiles.all[id as usize].classes == 0 {
            return None; // its pods are about to leave it
        }
        let mut rulesets = Rulesets::new();
        let [(ingress, audited_in), (egress, audited_out)] = Direction::BOTH.map(|direction| {
            let enforced = self.ruleset(direction, Effect::Enforce, id);
            let effect = if enforced.is_some() { Effect::WouldAllow } else { Effect::WouldDeny };
            let audited = self.ruleset(direction, effect, id);
            rulesets.extend([enforced, audited].into_iter().flatten());
            let known = |ruleset: Option<Vertex>| ruleset.map(|ruleset| ruleset_id(&self.graph, ruleset));
            (known(enforced), known(audited))
        });
        let audited = [audited_in, audited_out];
        let profile = &mut self.profiles.all[id as usize];
        let before = &mut profile.content;
        if (ingress, egress, audited) == (before.ingress, before.egress, before.audited) {
            let mut dead = Vec::new();
            rulesets.into_iter().for_each(|v| self.graph.release(v, &mut dead));
            debug_assert!(dead.is_empty(), "the profile still holds the same rulesets");
            return None;
        }
        (before.ingress, before.egress, before.audited) = (ingress, egress, audited);
        Some(std::mem::replace(&mut profile.rulesets, rulesets))
    }

    /// The ruleset of pods with this profile, with a reference; `None`: no policy isolates
    /// them in this direction (N1, N2, N16), or would.
    fn ruleset(&mut self, direction: Direction, effect: Effect, profile: u32) -> Option<Vertex> {
        let audit = effect != Effect::Enforce;
        let profile = &self.profiles.all[profile as usize];
        let subjects = profile.selections.iter().filter_map(|s| self.subjects.get(s));
        if !subjects.clone().any(|subject| subject.isolates(direction, audit)) {
            return None;
        }
        let mut rules: Vec<Vertex> = subjects.clone().flat_map(|s| s.fixed(direction, audit)).collect();
        let fixed = rules.len();
        for policy in subjects.flat_map(|subject| subject.named(direction, audit)) {
            let lowered = &self.policies.all[policy as usize].lowered;
            for rule in lowered.rules(direction).into_iter().flatten() {
                let LoweredRule::Named { peers, ranges, names } = rule else { continue };
                // N55: the number is the one that the selected pod gives the name
                let named = profile
                    .ports
                    .iter()
                    .filter(|p| names.iter().any(|(n, proto)| *n == p.name && *proto == p.protocol))
                    .map(|p| (p.protocol, p.port, p.port));
                let set = PortSet::from_ranges(ranges.iter().copied().chain(named));
                if set.is_empty() {
                    continue;
                }
                peers.iter().flatten().for_each(|p| self.graph.retain(*p));
                let ports = self.graph.port_set(set);
                rules.push(self.graph.rule(Action::Accept, peers.clone(), ports));
            }
        }
        let entries = rules.iter().map(|rule| (Tier::NetworkPolicy, 0, *rule));
        let ruleset = self.graph.ruleset(direction, true, effect, entries);
        let mut dead = Vec::new();
        rules.drain(fixed..).for_each(|rule| self.graph.release(rule, &mut dead));
        debug_assert!(dead.is_empty(), "policies hold the peer sets");
        Some(ruleset)
    }

    /// Forgets a profile that no class has: the rulesets whose references it gives back.
    pub(crate) fn forget_profile(&mut self, id: u32) -> Rulesets {
        if self.profiles.all.get(id as usize).is_none_or(|p| p.classes > 0) {
            return Rulesets::new();
        }
        let profile = self.profiles.all.remove(id as usize);
        debug_assert!(profile.nodes.is_empty(), "its pods have left");
        self.profiles.by_id.remove(&profile.id);
        for selection in profile.selections {
            if let Some(subject) = self.subjects.get_mut(&selection) {
                subject.profiles.remove(id);
            }
            self.forget_subject_if_unused(selection);
            self.population.release(selection);
        }
        profile.rulesets
    }
}
