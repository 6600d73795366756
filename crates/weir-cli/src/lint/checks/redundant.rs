//! Rules and policies without which everything would be the same.

use std::collections::{BTreeSet, HashMap};

use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::ports::PortSet;
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::Direction;

use super::{Checked, Finding, World};
use crate::lint::codes::*;
use crate::lint::source::{YamlPath, at};

pub(super) fn check(world: &World<'_>, out: &mut Vec<Finding>) {
    for checked in &world.policies {
        for direction in Direction::BOTH {
            let rules = checked.read.clauses.rules(direction).unwrap_or_default();
            for (i, rule) in rules.iter().enumerate() {
                // of two that are equal, the second adds nothing
                let by = |(j, other): &(usize, &RuleClause)| {
                    *j != i && covers(other, rule) && (*j < i || !covers(rule, other))
                };
                let Some((j, _)) = rules.iter().enumerate().find(by) else { continue };
                let list = direction.as_str();
                out.push(
                    Finding::new(
                        &WEIR111,
                        &checked.key,
                        at!["spec", list, i],
                        format!("{list}[{j}] of this policy allows all that this rule does"),
                    )
                    .why("rules only ever add to what is allowed")
                    .help(format!(
                        "remove this rule; if it is the narrower one that is meant, remove {list}[{j}]"
                    )),
                );
            }
        }
    }
    policies(world, out);
}

fn policies(world: &World<'_>, out: &mut Vec<Finding>) {
    // a policy that selects all that another does has a part of the other's requirements: it is looked for by its first
    let mut by_first: HashMap<(&str, Option<&Requirement>), Vec<usize>> = HashMap::new();
    for (i, checked) in world.policies.iter().enumerate() {
        let first = checked.read.subject.requirements().next();
        by_first.entry((&checked.key.namespace, first)).or_default().push(i);
    }
    let mut gone = BTreeSet::new();
    for (i, checked) in world.policies.iter().enumerate().rev() {
        if !checked.read.problems.is_empty() {
            continue;
        }
        let firsts = std::iter::once(None).chain(checked.read.subject.requirements().map(Some));
        let wider: Vec<usize> = firsts
            .filter_map(|first| by_first.get(&(checked.key.namespace.as_str(), first)))
            .flatten()
            .copied()
            .filter(|j| *j != i && !gone.contains(j))
            .filter(|j| is_wider(&world.policies[*j].read.subject, &checked.read.subject))
            // what is not enforced makes nothing superfluous that is
            .filter(|j| !world.policies[*j].read.audit || checked.read.audit)
            // a policy that only denies says so in itself, whatever others add
            .filter(|j| !only_denies(checked) || only_denies(&world.policies[*j]))
            .collect();
        let mut by = BTreeSet::new();
        if Direction::BOTH.into_iter().all(|direction| covered(world, checked, &wider, direction, &mut by)) {
            gone.insert(i);
            let names: Vec<String> = by.iter().map(|j| world.policies[*j].key.to_string()).collect();
            out.push(
                Finding::new(
                    &WEIR112,
                    &checked.key,
                    YamlPath::default(),
                    format!("{} changes nothing: {} says all of it", checked.key, names.join(" with ")),
                )
                .why("the same pods are isolated and may do the same without it")
                .help("remove it, or narrow the other one"),
            );
        }
    }
}

fn only_denies(checked: &Checked<'_>) -> bool {
    Direction::BOTH.iter().all(|d| checked.read.clauses.rules(*d).is_none_or(<[_]>::is_empty))
}

/// Whether others isolate the same pods in a direction and allow all that this one does.
fn covered(
    world: &World<'_>,
    checked: &Checked<'_>,
    wider: &[usize],
    direction: Direction,
    by: &mut BTreeSet<usize>,
) -> bool {
    let Some(rules) = checked.read.clauses.rules(direction) else { return true };
    let rules_of = |j: usize| world.policies[j].read.clauses.rules(direction);
    let Some(isolating) = wider.iter().copied().find(|j| rules_of(*j).is_some()) else { return false };
    if rules.is_empty() {
        by.insert(isolating);
    }
    rules.iter().all(|rule| {
        let has = |j: &usize| rules_of(*j).is_some_and(|rules| rules.iter().any(|other| covers(other, rule)));
        let found = wider.iter().copied().find(has);
        by.extend(found);
        found.is_some()
    })
}

/// Whether all that `narrow` matches is matched by `wide`.
fn is_wider(wide: &Selector, narrow: &Selector) -> bool {
    let has: BTreeSet<&Requirement> = narrow.requirements().collect();
    wide.requirements().all(|r| has.contains(r))
}

/// Whether all that `narrow` allows is allowed by `wide`.
fn covers(wide: &RuleClause, narrow: &RuleClause) -> bool {
    let peers = match (&wide.peers, &narrow.peers) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|n| wide.iter().any(|w| covers_peer(w, n))),
    };
    let ports = match (&wide.ports, &narrow.ports) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => {
            let (PortSet::Ports(all), PortSet::Ports(some)) = (numbers(wide), numbers(narrow)) else {
                return false;
            };
            let names = |p: &&PortClause| matches!(p, PortClause::Named(..));
            all.iter().zip(&some).all(|(a, s)| a.covers(s))
                && narrow.iter().filter(names).all(|n| wide.contains(n))
        }
    };
    peers && ports
}

fn covers_peer(wide: &PeerClause, narrow: &PeerClause) -> bool {
    match (wide, narrow) {
        (_, PeerClause::Nothing) => true,
        (PeerClause::Pods { namespaces: n, pods: p }, PeerClause::Pods { namespaces, pods }) => {
            is_wider(n, namespaces) && is_wider(p, pods)
        }
        (PeerClause::Cidrs(wide), PeerClause::Cidrs(narrow)) => wide.covers(narrow),
        _ => false,
    }
}

fn numbers(ports: &[PortClause]) -> PortSet {
    PortSet::from_ranges(ports.iter().filter_map(|p| match p {
        PortClause::Range(protocol, first, last) => Some((*protocol, *first, *last)),
        _ => None,
    }))
}
