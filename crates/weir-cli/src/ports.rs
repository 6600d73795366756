//! Which ports make a difference.

use std::collections::BTreeSet;

use weir_compiler::object::Protocol;
use weir_compiler::policy::{PolicyClauses, PortClause, ReadPolicy};
use weir_compiler::slice::Direction;

use crate::cluster::Cluster;
use crate::judge::{Judgement, Pair};
use crate::names::Port;

/// Ports of which all have the same verdict.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    pub(crate) protocol: Protocol,
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// The verdict on the first.
    pub(crate) judgement: Judgement,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.first, self.last) {
            (1, u16::MAX) => write!(f, "all ports of {}", self.protocol),
            (first, last) if first == last => write!(f, "{first}/{}", self.protocol),
            (first, last) => write!(f, "{first}-{last}/{}", self.protocol),
        }
    }
}

/// All ports of all protocols. Verdicts change only where a policy that selects one of the pods, or a port
/// that the destination names, begins or ends: one question each is enough.
pub(crate) fn all_ranges(pair: &Pair<'_>) -> Vec<Range> {
    let mut ranges = Vec::new();
    for protocol in Protocol::ALL {
        let mut starts = BTreeSet::from([1]);
        let mut cut = |first: u16, last: u16| {
            starts.insert(first.max(1));
            starts.extend(last.checked_add(1));
        };
        for port in pair.to.pod.ports.iter().filter(|p| p.protocol == protocol) {
            cut(port.port, port.port);
        }
        for direction in Direction::BOTH {
            let slice = &pair.cluster.slice;
            let Some(pod) = slice.pods.get(&pair.subject(direction).pod.key) else { continue };
            for policy in slice.policies_of(&slice.profiles[&pod.profile]) {
                for clause in port_clauses(&slice.policies[policy].clauses, direction) {
                    if let PortClause::Range(p, first, last) = clause
                        && *p == protocol
                    {
                        cut(*first, *last);
                    }
                }
            }
        }
        let starts: Vec<u16> = starts.into_iter().collect();
        for (i, &first) in starts.iter().enumerate() {
            let last = starts.get(i + 1).map_or(u16::MAX, |next| next - 1);
            let judgement = pair.judge(Port { number: first, protocol });
            match ranges.last_mut() {
                Some(Range { protocol: p, last: end, judgement: before, .. })
                    if *p == protocol && before.same_as(&judgement) =>
                {
                    *end = last;
                }
                _ => ranges.push(Range { protocol, first, last, judgement }),
            }
        }
    }
    ranges
}

fn port_clauses(clauses: &PolicyClauses, direction: Direction) -> impl Iterator<Item = &PortClause> {
    clauses.rules(direction).into_iter().flatten().flat_map(|rule| rule.ports.iter().flatten())
}

/// TCP and UDP, and SCTP where something names it (N62), at each port that a policy or a pod names, just
/// beside each range, and at one that nobody mentions.
pub(crate) fn that_matter(cluster: &Cluster) -> Vec<Port> {
    let mut numbers = BTreeSet::new();
    let mut sctp = false;
    for port in cluster.pods.values().flat_map(|p| &p.pod.ports) {
        numbers.insert(port.port);
        sctp |= port.protocol == Protocol::Sctp;
    }
    let read: Vec<_> = cluster.policies.values().map(|p| ReadPolicy::read(p).clauses).collect();
    for clause in read.iter().flat_map(|c| Direction::BOTH.into_iter().flat_map(|d| port_clauses(c, d))) {
        match *clause {
            PortClause::Range(protocol, first, last) => {
                sctp |= protocol == Protocol::Sctp;
                if (first, last) == (0, u16::MAX) {
                    continue;
                }
                numbers.extend([first, last]);
                if first < last {
                    numbers.insert(last.checked_add(1).unwrap_or(first - 1));
                }
            }
            PortClause::Named(_, protocol) => sctp |= protocol == Protocol::Sctp,
            PortClause::Nothing => {}
        }
    }
    numbers.remove(&0);
    numbers.extend((7777..=u16::MAX).find(|n| !numbers.contains(n)));
    let protocols = Protocol::ALL.into_iter().filter(|p| sctp || *p != Protocol::Sctp);
    protocols.flat_map(|protocol| numbers.iter().map(move |&number| Port { number, protocol })).collect()
}
