//! A connection needs both of its ends: a rule whose other end denies all of it is of no use yet.

use std::collections::BTreeMap;

use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::slice::Direction;

use super::{Checked, Finding, Rule, World};
use crate::lint::codes::*;

/// How many questions one rule may cost: where it is more, somebody will be let through.
const MOST: usize = 100_000;

pub(super) fn check(world: &World<'_>, out: &mut Vec<Finding>) {
    let mut selecting: BTreeMap<usize, Vec<&Checked<'_>>> = BTreeMap::new();
    for checked in &world.policies {
        for kind in checked.selected.iter() {
            selecting.entry(*kind).or_default().push(checked);
        }
    }
    for checked in &world.policies {
        for rule in checked.rules() {
            if let Some(finding) = one_sided(world, checked, &rule, &selecting) {
                out.push(finding);
            }
        }
    }
}

fn one_sided(
    world: &World<'_>,
    checked: &Checked<'_>,
    rule: &Rule<'_>,
    selecting: &BTreeMap<usize, Vec<&Checked<'_>>>,
) -> Option<Finding> {
    let peers = rule.read.peers.as_ref()?;
    if !peers.iter().all(|p| matches!(p, PeerClause::Pods { .. })) {
        return None; // addresses may be those of anybody
    }
    let peers: Vec<usize> = peers.iter().flat_map(|p| world.inventory.peers(p)).collect();
    let subjects = world.networked(&checked.selected);
    if peers.is_empty() || subjects.is_empty() || peers.len() * subjects.len() > MOST {
        return None;
    }
    let other = match rule.direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    let mut denying = None;
    for peer in &peers {
        let policies = selecting.get(peer).into_iter().flatten();
        let isolating: Vec<&&Checked<'_>> =
            policies.filter(|c| c.read.clauses.rules(other).is_some()).collect();
        let first = isolating.first()?; // open
        let rules = || isolating.iter().flat_map(|c| c.read.clauses.rules(other).unwrap_or_default());
        for subject in &subjects {
            let server = if other == Direction::Ingress { *peer } else { *subject };
            if rules().any(|r| lets(world, r, *subject) && share_ports(world, r, rule.read, server)) {
                return None;
            }
        }
        denying.get_or_insert((first.key.clone(), *peer));
    }
    let (policy, peer) = denying?;
    let example = &world.inventory.kinds[peer].example;
    let message = format!("{} policies of these peers deny all that this rule allows", other.as_str());
    Some(
        Finding::new(&WEIR216, &checked.key, rule.path.clone(), message)
            .why(format!(
                "{example} is isolated for {} by {policy}, and no rule there allows this; both ends have to",
                other.as_str()
            ))
            .help(format!(
                "add an {} rule for the pods of {} to a policy that selects {example}",
                other.as_str(),
                checked.key
            )),
    )
}

/// Whether a rule may let a kind of pods be the peer.
fn lets(world: &World<'_>, rule: &RuleClause, kind: usize) -> bool {
    let addresses = &world.inventory.kinds[kind].addresses;
    rule.peers.as_ref().is_none_or(|peers| {
        peers.iter().any(|peer| match peer {
            PeerClause::Pods { .. } => world.inventory.peers(peer).contains(&kind),
            // without an address it is not known
            PeerClause::Cidrs(set) => addresses.is_empty() || addresses.iter().any(|ip| set.contains(*ip)),
            PeerClause::Nothing => false,
        })
    })
}

/// Whether two rules have a port of the answering pod in common.
fn share_ports(world: &World<'_>, one: &RuleClause, other: &RuleClause, server: usize) -> bool {
    let (Some(one), Some(other)) = (&one.ports, &other.ports) else { return true };
    let named = &world.inventory.kinds[server].named;
    let resolve = |port: &PortClause| match port {
        PortClause::Range(protocol, first, last) => vec![(*protocol, *first, *last)],
        PortClause::Named(name, protocol) => {
            let found = named.iter().filter(|p| p.name == *name && p.protocol == *protocol);
            found.map(|p| (p.protocol, p.port, p.port)).collect()
        }
        PortClause::Nothing => Vec::new(),
    };
    let ones: Vec<_> = one.iter().flat_map(resolve).collect();
    let others = other.iter().flat_map(resolve);
    let meets = |(p, a, b): (_, u16, u16)| ones.iter().any(|(q, c, d)| p == *q && a <= *d && *c <= b);
    others.into_iter().any(meets)
}
