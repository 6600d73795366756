//! What policies allow a pod in a direction, merged over all of them.
//!
//! NetworkPolicy only ever allows, so rules are a union: of one peer the ports of all clauses that name it, and then
//! peers with the same ports together. Where each comes from is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{NamedPort, ObjectKey, Protocol};
use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::ranges::RangeSet;
use weir_compiler::selector::Selector;
use weir_compiler::slice::Direction;
use weir_compiler::verdict::ClauseRef;

use crate::cluster::Cluster;

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// Anyone.
    Any,
    /// Pods that both selectors match.
    Pods { namespaces: Selector, pods: Selector },
    /// Addresses.
    Addresses(Arc<CidrSet>),
}

/// At which ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Ports {
    /// At all, and in protocols without ports.
    pub(crate) all: bool,
    /// By the order of [`Protocol::ALL`].
    pub(crate) numbers: [Vec<(u16, u16)>; 3],
    /// Those that the other end has by these names (egress).
    pub(crate) names: BTreeSet<(String, Protocol)>,
}

impl Ports {
    fn add(&mut self, other: Ports) {
        self.all |= other.all;
        for (mine, more) in self.numbers.iter_mut().zip(other.numbers) {
            let all = mine.iter().copied().chain(more);
            *mine = RangeSet::from_ranges(all).ranges().to_vec();
        }
        self.names.extend(other.names);
        if self.all {
            *self = Ports { all: true, ..Ports::default() };
        }
    }

    fn is_empty(&self) -> bool {
        !self.all && self.numbers.iter().all(Vec::is_empty) && self.names.is_empty()
    }
}

/// A clause that says so: a peer of a rule, and those of its ports that matter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// Without a port.
    pub(crate) clause: ClauseRef,
    /// Indexes in the rule's `ports`; none: it has no such list.
    pub(crate) ports: Vec<usize>,
}

/// Peers that may use the same ports.
#[derive(Debug)]
pub(crate) struct Allowed {
    pub(crate) ports: Ports,
    pub(crate) peers: Vec<(Peer, Vec<Source>)>,
}

/// All that is allowed in a direction, and which clauses allow nothing to a pod with these named ports.
pub(crate) fn merged(
    cluster: &Cluster,
    policies: &[ObjectKey],
    direction: Direction,
    named: &[NamedPort],
) -> (Vec<Allowed>, Vec<(ClauseRef, String)>) {
    let mut by_peer: BTreeMap<Peer, (Ports, Vec<Source>)> = BTreeMap::new();
    let mut idle = Vec::new();
    for policy in policies {
        let rules = cluster.slice.policies[policy].rules(direction).into_iter().flatten();
        for (at, rule) in rules.enumerate() {
            let clause = |peer| ClauseRef { policy: policy.clone(), direction, rule: at, peer, port: None };
            let (ports, indexes, missing) = ports_of(rule, direction, named);
            for (i, name) in missing {
                let clause = ClauseRef { port: Some(i), ..clause(None) };
                idle.push((clause, format!("no port of the pod is named {name}: it matches nothing")));
            }
            if ports.is_empty() {
                continue;
            }
            let mut add = |index: Option<usize>, peer: Peer| {
                let (all, sources) = by_peer.entry(peer).or_default();
                all.add(ports.clone());
                sources.push(Source { clause: clause(index), ports: indexes.clone() });
            };
            match &rule.peers {
                None => add(None, Peer::Any),
                Some(peers) => {
                    for (i, peer) in peers.iter().enumerate() {
                        match peer {
                            PeerClause::Pods { namespaces, pods } => {
                                let (namespaces, pods) = (namespaces.clone(), pods.clone());
                                add(Some(i), Peer::Pods { namespaces, pods });
                            }
                            PeerClause::Cidrs(set) => add(Some(i), Peer::Addresses(set.clone())),
                            PeerClause::Nothing => {}
                        }
                    }
                }
            }
        }
    }
    let mut by_ports: BTreeMap<Ports, Vec<(Peer, Vec<Source>)>> = BTreeMap::new();
    for (peer, (ports, sources)) in by_peer {
        by_ports.entry(ports).or_default().push((peer, sources));
    }
    let mut allowed: Vec<Allowed> =
        by_ports.into_iter().map(|(ports, peers)| Allowed { ports, peers }).collect();
    // what allows most comes first
    allowed.sort_by_key(|a| !a.ports.all);
    (allowed, idle)
}

type Missing = Vec<(usize, String)>;

/// The ports of a rule, the indexes of those that count, and names that the pod does not have.
fn ports_of(rule: &RuleClause, direction: Direction, named: &[NamedPort]) -> (Ports, Vec<usize>, Missing) {
    let Some(clauses) = &rule.ports else {
        return (Ports { all: true, ..Ports::default() }, Vec::new(), Vec::new());
    };
    let (mut ports, mut indexes, mut missing) = (Ports::default(), Vec::new(), Vec::new());
    for (i, clause) in clauses.iter().enumerate() {
        let mut one = Ports::default();
        match clause {
            PortClause::Range(protocol, first, last) => one.numbers[*protocol as usize].push((*first, *last)),
            PortClause::Named(name, protocol) if direction == Direction::Egress => {
                one.names.insert((name.clone(), *protocol));
            }
            PortClause::Named(name, protocol) => {
                let mine = named.iter().filter(|p| p.name == *name && p.protocol == *protocol);
                one.numbers[*protocol as usize].extend(mine.map(|p| (p.port, p.port)));
                if one.is_empty() {
                    missing.push((i, name.clone()));
                }
            }
            PortClause::Nothing => {}
        }
        if !one.is_empty() {
            indexes.push(i);
            ports.add(one);
        }
    }
    (ports, indexes, missing)
}
