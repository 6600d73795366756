//! Subjects: what policies select, and what all policies with one subject say together.
//!
//! ```text
//!   policies ──> Subject ──> profiles, of which it is one of the selections ──> nodes
//! ```
//!
//! Policies with equal subjects select the same pods. Their rules are counted here, so that one policy more
//! that says nothing new concerns no profile, however many policies there are.

use std::ops::Range;

use crate::compiler::Compiler;
use crate::graph::Vertex;
use crate::lower::{Lowered, LoweredRule};
use crate::slice::{Direction, SubjectId};
use crate::small::{PlaceMap, PlaceSet, place};

/// See the module. It is known by the number of its selection.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) policies: PlaceSet,
    pub(crate) profiles: PlaceSet,
    /// The nodes whose slices have its policies, and how many profiles of the node name it.
    pub(crate) nodes: PlaceMap<u32>,
    /// Where its policies are in the table of the batch that is being made.
    pub(crate) at: Option<Range<u32>>,
    /// What is enforced.
    ingress: Rules,
    egress: Rules,
    /// What is audited (U29); of most, nothing.
    audited: Option<Box<[Rules; 2]>>,
}

/// The rules of one direction.
#[derive(Debug, Default)]
struct Rules {
    /// How many policies isolate.
    isolating: u32,
    /// Rules that are the same for each pod, and how many there are of each.
    fixed: PlaceMap<u32>,
    /// Policies with rules that each pod resolves for itself, and how many.
    named: Option<Box<PlaceMap<u32>>>,
}

impl Subject {
    /// Whether policies isolate the pods in this direction; or would, those that are audited.
    pub(crate) fn isolates(&self, direction: Direction, audit: bool) -> bool {
        self.of(direction, audit).is_some_and(|rules| rules.isolating > 0)
    }

    /// The rules that are the same for each pod, each once.
    pub(crate) fn fixed(&self, direction: Direction, audit: bool) -> impl Iterator<Item = Vertex> {
        let fixed = self.of(direction, audit).into_iter().flat_map(|rules| rules.fixed.keys());
        fixed.map(|vertex| Vertex::new(vertex as usize))
    }

    /// The policies with rules that each pod resolves for itself.
    pub(crate) fn named(&self, direction: Direction, audit: bool) -> impl Iterator<Item = u32> {
        let named = self.of(direction, audit).into_iter().flat_map(|rules| rules.named.iter());
        named.flat_map(|named| named.keys())
    }

    /// A policy comes: whether its rules are new here.
    fn add(&mut self, policy: u32, lowered: &Lowered) -> bool {
        let mut new = false;
        for direction in Direction::BOTH {
            let Some(rules) = lowered.rules(direction) else { continue };
            let of = self.of_mut(direction, lowered.audit);
            of.isolating += 1;
            new |= of.isolating == 1;
            for rule in rules {
                match rule {
                    LoweredRule::Fixed(vertex) => {
                        let (count, first) = of.fixed.get_or_default(place(vertex.index()));
                        *count += 1;
                        new |= first;
                    }
                    LoweredRule::Named { .. } => {
                        *of.named.get_or_insert_default().get_or_default(policy).0 += 1;
                        new = true;
                    }
                }
            }
        }
        new
    }

    /// A policy goes: whether rules go with it.
    fn remove(&mut self, policy: u32, lowered: &Lowered) -> bool {
        let mut gone = false;
        for direction in Direction::BOTH {
            let Some(rules) = lowered.rules(direction) else { continue };
            let of = self.of_mut(direction, lowered.audit);
            of.isolating -= 1;
            gone |= of.isolating == 0;
            for rule in rules {
                match rule {
                    LoweredRule::Fixed(vertex) => gone |= of.fixed.take_one(place(vertex.index())),
                    LoweredRule::Named { .. } => {
                        of.named.as_mut().expect("counted").take_one(policy);
                        gone = true;
                    }
                }
            }
        }
        gone
    }

    fn of(&self, direction: Direction, audit: bool) -> Option<&Rules> {
        match direction {
            _ if audit => self.audited.as_ref().map(|both| &both[direction as usize]),
            Direction::Ingress => Some(&self.ingress),
            Direction::Egress => Some(&self.egress),
        }
    }

    fn of_mut(&mut self, direction: Direction, audit: bool) -> &mut Rules {
        match direction {
            _ if audit => &mut self.audited.get_or_insert_default()[direction as usize],
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

impl Compiler {
    /// The identity of a subject, as slices have it.
    pub(crate) fn subject_id(&self, selection: u32) -> SubjectId {
        SubjectId(self.population.selection(selection).id.0)
    }

    /// A policy takes its place under its subject.
    pub(crate) fn join_subject(&mut self, policy: u32) {
        let state = &self.policies.all[policy as usize];
        let subject = self.subjects.entry(state.selection).or_default();
        subject.policies.insert(policy);
        if subject.add(policy, &state.lowered) {
            self.profiles.mark(subject.profiles.iter());
        }
        self.population.set_subject(state.selection, true);
    }

    /// A policy that said this leaves a subject; or it stays, and says something else now.
    pub(crate) fn leave_subject(&mut self, policy: u32, selection: u32, lowered: &Lowered, stays: bool) {
        let subject = self.subjects.get_mut(&selection).expect("policies are under their subjects");
        if subject.remove(policy, lowered) {
            self.profiles.mark(subject.profiles.iter());
        }
        if !stays {
            subject.policies.remove(policy);
        }
        self.population.set_subject(selection, false);
        self.forget_subject_if_unused(selection);
    }

    /// Forgets a subject that neither policies nor profiles name.
    pub(crate) fn forget_subject_if_unused(&mut self, selection: u32) {
        let unused = |subject: &Subject| subject.policies.is_empty() && subject.profiles.is_empty();
        if self.subjects.get(&selection).is_some_and(unused) {
            self.subjects.remove(&selection);
        }
    }
}
