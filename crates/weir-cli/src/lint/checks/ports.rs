//! Ports, against the containers that would listen on them.

use std::collections::BTreeSet;

use weir_compiler::object::Protocol;
use weir_compiler::policy::{PeerClause, PortClause};
use weir_compiler::slice::Direction;

use super::{Checked, Finding, Rule, World, pods};
use crate::lint::codes::*;
use crate::lint::near;

pub(super) fn check(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    if !world.has_pods() {
        return;
    }
    for rule in checked.rules() {
        let Some(servers) = servers(world, checked, &rule) else { continue };
        for (i, port) in rule.read.ports.iter().flatten().enumerate() {
            match port {
                // containers declare ports one by one: a range is for those that are opened as needed
                PortClause::Range(protocol, first, last) if first == last => {
                    number(world, checked, &rule, i, &servers, (*protocol, *first), out);
                }
                // a number in quotes is told of as such
                PortClause::Named(name, _) if name.bytes().all(|b| b.is_ascii_digit()) => {}
                PortClause::Named(name, protocol) => {
                    name_of(world, checked, &rule, i, &servers, name, *protocol, out)
                }
                _ => {}
            }
        }
    }
}

/// The kinds of pods at the answering end; `None`: others than pods may answer, or there are none at all, which
/// other findings tell.
fn servers(world: &World<'_>, checked: &Checked<'_>, rule: &Rule<'_>) -> Option<Vec<usize>> {
    let found = match (rule.direction, &rule.read.peers) {
        (Direction::Ingress, _) => world.networked(&checked.selected),
        (Direction::Egress, None) => {
            // names are looked up on all pods, numbers may be those of anybody
            let named = rule.read.ports.iter().flatten().any(|p| matches!(p, PortClause::Named(..)));
            if !named {
                return None;
            }
            let all: Vec<usize> = (0..world.inventory.kinds.len()).collect();
            world.networked(&all)
        }
        (Direction::Egress, Some(peers)) => {
            if !peers.iter().all(|p| matches!(p, PeerClause::Pods { .. })) {
                return None;
            }
            peers.iter().flat_map(|p| world.inventory.peers(p)).collect()
        }
    };
    (!found.is_empty()).then_some(found)
}

fn who(rule: &Rule<'_>) -> &'static str {
    match rule.direction {
        Direction::Ingress => "the pods that the policy selects",
        Direction::Egress => "the pods that the rule's peers match",
    }
}

fn number(
    world: &World<'_>,
    checked: &Checked<'_>,
    rule: &Rule<'_>,
    at: usize,
    servers: &[usize],
    (protocol, port): (Protocol, u16),
    out: &mut Vec<Finding>,
) {
    if rule.direction == Direction::Egress && rule.read.peers.is_none() {
        return;
    }
    let kinds: Vec<_> = servers.iter().map(|at| &world.inventory.kinds[*at]).collect();
    // containers need not declare their ports: only where each of them declares some, and all of them are known,
    // is one that is missing a mistake
    let says = |k: &&super::super::inventory::PodKind| !k.facts.declared.is_empty();
    if !kinds.iter().all(says) || kinds.iter().any(|k| k.declares(protocol, port)) {
        return;
    }
    let there: BTreeSet<String> = kinds.iter().flat_map(|k| k.ports()).collect();
    let other =
        kinds.iter().find_map(|k| Protocol::ALL.into_iter().find(|p| *p != protocol && k.declares(*p, port)));
    let help = match other {
        Some(other) => format!("the containers have it for {other}: protocol: {other}"),
        None => format!("ports are those of containers, not of a Service; there is {}", near::some(there)),
    };
    let message = format!("no container of {} declares {port}/{protocol}", who(rule));
    out.push(
        Finding::new(&WEIR205, &checked.key, rule.path.then("ports").then(at), message)
            .why(format!("{} here, and each declares other ports", pods(world.inventory.count(servers))))
            .help(help),
    );
}

#[allow(clippy::too_many_arguments, reason = "one question about one port of one rule")]
fn name_of(
    world: &World<'_>,
    checked: &Checked<'_>,
    rule: &Rule<'_>,
    at: usize,
    servers: &[usize],
    name: &str,
    protocol: Protocol,
    out: &mut Vec<Finding>,
) {
    let named = || servers.iter().flat_map(|at| &world.inventory.kinds[*at].named);
    if named().any(|p| p.name == name && p.protocol == protocol) {
        return;
    }
    let names: BTreeSet<&str> = named().map(|p| p.name.as_str()).collect();
    let help = if let Some(other) = named().find(|p| p.name == name) {
        format!("{name} is a port of {0} there: protocol: {0}", other.protocol)
    } else if let Some(near) = near::nearest(name, names.iter().copied()) {
        format!("did you mean {near}?")
    } else if names.is_empty() {
        "none of their containers names a port: write the number".to_owned()
    } else {
        format!("their containers name {}", near::some(&names))
    };
    let message = format!("none of {} has a port {name} of {protocol}", who(rule));
    let mut finding = Finding::new(&WEIR206, &checked.key, rule.path.then("ports").then(at), message);
    finding = finding.why(
        "a name is looked up on the pod that answers; where nobody has it, it matches nothing (N55, N56)",
    );
    out.push(finding.help(help));
}
