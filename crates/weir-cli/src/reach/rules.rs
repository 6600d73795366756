//! What a ruleset says of a peer, given the peer sets that the peer is in.

use std::collections::HashMap;

use weir_compiler::object::Protocol;
use weir_compiler::slice::{Action, NodeSlice, PeerSetId, RulesetId, Tier};

use super::Both;
use super::traffic::{Interner, Traffic};

/// A peer set, and at which port the peer is in it if it is one of endpoints. Sorted.
pub(crate) type Membership = Vec<(u32, Option<(Protocol, u16)>)>;

/// A ruleset with numbers for its peer sets.
#[derive(Debug)]
pub(crate) struct Rules {
    isolated: bool,
    rules: Vec<OneRule>,
    /// All sets of its rules, sorted.
    pub(crate) sets: Vec<u32>,
    /// What it says of a peer that is in none of them.
    pub(crate) base: u32,
    known: HashMap<Membership, u32>,
}

#[derive(Debug)]
struct OneRule {
    tier: Tier,
    action: Action,
    ports: Traffic,
    /// `None`: any peer.
    peers: Option<Vec<u32>>,
}

/// The rulesets of two states. Identity is content, so one that is in both is there once.
#[derive(Debug, Default)]
pub(crate) struct Rulesets {
    pub(crate) all: Vec<Rules>,
    numbers: HashMap<RulesetId, u32>,
    pub(crate) sets: HashMap<PeerSetId, u32>,
}

impl Rulesets {
    pub(crate) fn new(slices: Both<&NodeSlice>, interner: &mut Interner) -> Rulesets {
        let mut rulesets = Rulesets::default();
        for slice in slices {
            for id in slice.peer_sets.keys() {
                let next = number(rulesets.sets.len());
                rulesets.sets.entry(*id).or_insert(next);
            }
            for (id, ruleset) in &slice.rulesets {
                if rulesets.numbers.contains_key(id) {
                    continue;
                }
                let rule = |entry: &weir_compiler::slice::Entry| {
                    let rule = &slice.rules[&entry.rule];
                    OneRule {
                        tier: entry.tier,
                        action: rule.action,
                        ports: Traffic::of(&slice.port_sets[&rule.ports]),
                        peers: rule
                            .peers
                            .as_ref()
                            .map(|ids| ids.iter().map(|id| rulesets.sets[id]).collect()),
                    }
                };
                let rules: Vec<OneRule> = ruleset.entries.iter().map(rule).collect();
                let mut sets: Vec<u32> =
                    rules.iter().flat_map(|r| r.peers.iter().flatten().copied()).collect();
                sets.sort_unstable();
                sets.dedup();
                let mut rules =
                    Rules { isolated: ruleset.isolated, rules, sets, base: 0, known: HashMap::new() };
                rules.base = interner.number(rules.evaluate(&Membership::new()));
                rulesets.numbers.insert(*id, number(rulesets.all.len()));
                rulesets.all.push(rules);
            }
        }
        rulesets
    }

    pub(crate) fn number(&self, id: RulesetId) -> u32 {
        self.numbers[&id]
    }

    /// What a ruleset says of a peer with this membership.
    pub(crate) fn says(&mut self, ruleset: u32, membership: &Membership, interner: &mut Interner) -> u32 {
        let rules = &mut self.all[ruleset as usize];
        let of_it = membership.iter().filter(|(set, _)| rules.sets.binary_search(set).is_ok());
        let of_it: Membership = of_it.copied().collect();
        if of_it.is_empty() {
            return rules.base;
        }
        if let Some(&known) = rules.known.get(&of_it) {
            return known;
        }
        let number = interner.number(rules.evaluate(&of_it));
        rules.known.insert(of_it, number);
        number
    }
}

impl Rules {
    /// As `NodeSlice::verdict` decides, for all traffic at once.
    fn evaluate(&self, membership: &Membership) -> Traffic {
        let mut allowed = Traffic::default();
        let mut undecided = Traffic::all();
        let mut tier = None;
        // what the present tier may still decide
        let mut open = Traffic::default();
        for rule in &self.rules {
            if self.isolated && rule.tier > Tier::NetworkPolicy {
                break;
            }
            if tier != Some(rule.tier) {
                tier = Some(rule.tier);
                open.clone_from(&undecided);
            }
            let hit = rule.matches(membership).and(&open);
            if hit.is_empty() {
                continue;
            }
            open = open.minus(&hit);
            match rule.action {
                Action::Pass => {}
                Action::Deny => undecided = undecided.minus(&hit),
                Action::Accept => {
                    undecided = undecided.minus(&hit);
                    allowed = allowed.or(&hit);
                }
            }
        }
        if self.isolated { allowed } else { allowed.or(&undecided) }
    }
}

impl OneRule {
    fn matches(&self, membership: &Membership) -> Traffic {
        let Some(peers) = &self.peers else { return self.ports.clone() };
        let mut endpoints = Vec::new();
        for (set, port) in membership.iter().filter(|(set, _)| peers.contains(set)) {
            match port {
                None => return self.ports.clone(),
                Some(endpoint) => {
                    debug_assert!(peers.contains(set));
                    endpoints.push(*endpoint);
                }
            }
        }
        if endpoints.is_empty() {
            return Traffic::default();
        }
        self.ports.and(&Traffic::of_ports(endpoints))
    }
}

pub(crate) fn number(len: usize) -> u32 {
    u32::try_from(len).expect("fewer than 2^32 of them")
}
