//! Profiles: what pods that the same policies select have in common.
//!
//! A class of pods has the profile that its subject selections and named ports make. When a policy
//! of one of these selections comes, changes or goes, the profile is compiled again, once for all
//! of its pods.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::compiler::Compiler;
use crate::graph::{Vertex, profile_id, ruleset_id};
use crate::lower::LoweredRule;
use crate::object::{NamedPort, ObjectKey};
use crate::ports::PortSet;
use crate::slice::{Action, Direction, Profile, ProfileId, SubjectId, Tier};

#[derive(Debug)]
pub(crate) struct ProfileState {
    pub(crate) id: ProfileId,
    /// Those of its classes that are subjects of policies.
    selections: Vec<usize>,
    ports: Arc<[NamedPort]>,
    classes: usize,
    pub(crate) content: Profile,
    /// The policies with its subjects, sorted.
    pub(crate) policies: Vec<ObjectKey>,
    pub(crate) rulesets: Vec<Vertex>,
    /// Where it is in slices, and how many pods of the node have it.
    pub(crate) nodes: HashMap<Arc<str>, usize>,
}

impl Compiler {
    /// Gives a class the profile that fits it. Returns the one that nobody has any more.
    pub(crate) fn assign_profile(&mut self, class_id: usize) -> Option<usize> {
        let old = self.profile_of_class.remove(&class_id);
        if let Some(class) = self.population.class_state(class_id) {
            let selections = self.population.subjects(class);
            let ports = class.ports().clone();
            let id = profile_id(
                selections.iter().map(|s| &self.population.selection(*s).id),
                ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)),
            );
            let profile = match self.profile_ids.get(&id) {
                Some(&profile) => profile,
                None => {
                    for selection in &selections {
                        // its number must stay this selection's as long as the profile names it
                        self.population.retain_again(*selection);
                        self.profiles_of.entry(*selection).or_default().insert(self.profiles.vacant_key());
                    }
                    let profile = self.profiles.insert(ProfileState {
                        id,
                        selections,
                        ports,
                        classes: 0,
                        content: Profile::default(),
                        policies: Vec::new(),
                        rulesets: Vec::new(),
                        nodes: HashMap::new(),
                    });
                    self.profile_ids.insert(id, profile);
                    self.dirty_profiles.insert(profile);
                    profile
                }
            };
            self.profiles[profile].classes += 1;
            self.profile_of_class.insert(class_id, profile);
            if old != Some(profile) {
                self.population.touch_pods(class_id);
            }
        }
        let old = old?;
        self.profiles[old].classes -= 1;
        (self.profiles[old].classes == 0).then_some(old)
    }

    /// Compiles a profile again. If that changed it: the rulesets and policies that it had.
    pub(crate) fn rebuild_profile(&mut self, id: usize) -> Option<(Vec<Vertex>, Vec<ObjectKey>)> {
        let profile = self.profiles.get(id)?;
        let of = profile.selections.iter().filter_map(|s| self.policies_of.get(s)).flatten();
        let mut policies: Vec<ObjectKey> = of.cloned().collect();
        policies.sort_unstable();
        policies.dedup();
        let ports = profile.ports.clone();
        let mut content = Profile::default();
        let mut rulesets = Vec::new();
        for direction in Direction::BOTH {
            let Some(ruleset) = self.ruleset(direction, &policies, &ports) else { continue };
            rulesets.push(ruleset);
            let id = Some(ruleset_id(&self.graph, ruleset));
            match direction {
                Direction::Ingress => content.ingress = id,
                Direction::Egress => content.egress = id,
            }
        }
        let subjects = self.profiles[id].selections.iter().filter(|s| self.policies_of.contains_key(*s));
        content.subjects = subjects.map(|s| SubjectId(self.population.selection(*s).id.0)).collect();
        content.subjects.sort_unstable();
        if (&content, &policies) == (&self.profiles[id].content, &self.profiles[id].policies) {
            let mut dead = Vec::new();
            rulesets.into_iter().for_each(|v| self.graph.release(v, &mut dead));
            debug_assert!(dead.is_empty(), "the profile still holds the same rulesets");
            return None;
        }
        let profile = &mut self.profiles[id];
        let old = std::mem::replace(&mut profile.rulesets, rulesets);
        profile.content = content;
        Some((old, std::mem::replace(&mut profile.policies, policies)))
    }

    /// The ruleset of pods that these policies select, with a reference; `None`: none isolates
    /// them in this direction (N1, N2, N16).
    fn ruleset(
        &mut self,
        direction: Direction,
        policies: &[ObjectKey],
        ports: &[NamedPort],
    ) -> Option<Vertex> {
        let mut isolated = false;
        let mut rules: Vec<Vertex> = Vec::new();
        let mut resolved: Vec<Vertex> = Vec::new();
        for key in policies {
            let Some(lowered) = self.policies[key].lowered.rules(direction) else { continue };
            isolated = true;
            for rule in lowered {
                match rule {
                    LoweredRule::Fixed(rule) => rules.push(*rule),
                    LoweredRule::Named { peers, ranges, names } => {
                        // N55: the number is the one that the selected pod gives the name
                        let named = ports
                            .iter()
                            .filter(|p| names.iter().any(|(n, proto)| *n == p.name && *proto == p.protocol))
                            .map(|p| (p.protocol, p.port, p.port));
                        let set = PortSet::from_ranges(ranges.iter().copied().chain(named));
                        if set.is_empty() {
                            continue;
                        }
                        peers.iter().flatten().for_each(|p| self.graph.retain(*p));
                        let ports = self.graph.port_set(set);
                        resolved.push(self.graph.rule(Action::Accept, peers.clone(), ports));
                    }
                }
            }
        }
        let entries = rules.iter().chain(&resolved).map(|r| (Tier::NetworkPolicy, 0, *r));
        let ruleset = isolated.then(|| self.graph.ruleset(direction, true, entries));
        let mut dead = Vec::new();
        resolved.into_iter().for_each(|r| self.graph.release(r, &mut dead));
        debug_assert!(dead.is_empty(), "policies hold the peer sets");
        ruleset
    }

    /// Forgets a profile that no class has: the rulesets whose references it gives back.
    pub(crate) fn forget_profile(&mut self, id: usize) -> Vec<Vertex> {
        if self.profiles.get(id).is_none_or(|p| p.classes > 0) {
            return Vec::new();
        }
        let profile = self.profiles.remove(id);
        debug_assert!(profile.nodes.is_empty(), "its pods have left");
        self.profile_ids.remove(&profile.id);
        for selection in &profile.selections {
            if let Some(of) = self.profiles_of.get_mut(selection) {
                of.remove(&id);
                if of.is_empty() {
                    self.profiles_of.remove(selection);
                }
            }
            self.population.release(*selection);
        }
        profile.rulesets
    }
}
