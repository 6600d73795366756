//! An answer for programs. What is documented in `weir can --help` stays as it is.

use std::collections::BTreeMap;

use serde::Serialize;
use weir_compiler::flow::{Answer as Says, Exempt};
use weir_compiler::object::{ObjectKey, Protocol};
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{ClauseRef, Reason};

use crate::ask::{Answer as Found, Said as Verdicts};
use crate::clauses::{self, MISSES};
use crate::ends::Party;
use crate::judge::{InFamily, Judgement, Pair};
use crate::names::Port;

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    from: String,
    to: String,
    allowed: bool,
    pairs: Pairs,
    /// Of the group that decides.
    #[serde(flatten)]
    said: Said,
    groups: Vec<Group>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Pairs {
    allowed: usize,
    denied: usize,
}

/// Pairs of which the same is true.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    pairs: usize,
    examples: Vec<Example>,
    allowed: bool,
    #[serde(flatten)]
    said: Said,
}

#[derive(Debug, Serialize)]
struct Example {
    from: String,
    to: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Said {
    One(Box<One>),
    All { ports: Vec<Ports> },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct One {
    port: u16,
    protocol: Protocol,
    families: BTreeMap<&'static str, bool>,
    egress: Side,
    ingress: Side,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ports {
    protocol: Protocol,
    first: u16,
    last: u16,
    allowed: bool,
    families: BTreeMap<&'static str, bool>,
    egress: Side,
    ingress: Side,
}

/// One end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    verdict: &'static str,
    reason: &'static str,
    isolated_by: Vec<String>,
    clause: Option<Clause>,
    nearest_misses: Vec<Miss>,
    /// If audited policies were enforced, where that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    audited: Option<Audited>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Audited {
    verdict: &'static str,
    isolated_by: Vec<String>,
    clause: Option<Clause>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Clause {
    policy: String,
    rule: usize,
    peer: Option<usize>,
    port: Option<usize>,
    path: String,
    port_path: Option<String>,
    file: Option<String>,
    line: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Miss {
    #[serde(flatten)]
    clause: Clause,
    peer_matches: bool,
    port_matches: bool,
}

/// For programs.
pub(crate) fn answer(from: &Party<'_>, to: &Party<'_>, found: &Found<'_>) -> Answer {
    let (all, allowed) = found.count();
    let groups = found.groups.iter().map(|group| Group {
        pairs: group.pairs,
        examples: group
            .examples
            .iter()
            .map(|(from, to)| Example { from: from.clone(), to: to.clone() })
            .collect(),
        allowed: group.said.allowed(),
        said: said(&group.pair, &group.said),
    });
    Answer {
        from: from.title.clone(),
        to: to.title.clone(),
        allowed: found.allowed(),
        pairs: Pairs { allowed, denied: all - allowed },
        said: said(&found.groups[0].pair, &found.groups[0].said),
        groups: groups.collect(),
        notes: found.notes.clone(),
    }
}

fn said(pair: &Pair<'_>, said: &Verdicts) -> Said {
    match said {
        Verdicts::One(port, judgement) => {
            let family = judgement.deciding();
            Said::One(Box::new(One {
                port: port.number,
                protocol: port.protocol,
                families: families(judgement),
                egress: side(pair, *port, family, Direction::Egress),
                ingress: side(pair, *port, family, Direction::Ingress),
            }))
        }
        Verdicts::All(ranges) => {
            let ports = ranges.iter().map(|range| {
                let family = range.judgement.deciding();
                let port = Port { number: range.first, protocol: range.protocol };
                Ports {
                    protocol: range.protocol,
                    first: range.first,
                    last: range.last,
                    allowed: range.judgement.allowed(),
                    families: families(&range.judgement),
                    egress: side(pair, port, family, Direction::Egress),
                    ingress: side(pair, port, family, Direction::Ingress),
                }
            });
            Said::All { ports: ports.collect() }
        }
    }
}

/// Each family with its verdict.
pub(crate) fn families(judgement: &Judgement) -> BTreeMap<&'static str, bool> {
    judgement.0.iter().map(|f| (f.name(), f.flow.allowed())).collect()
}

fn side(pair: &Pair<'_>, port: Port, family: &InFamily, direction: Direction) -> Side {
    let answer = family.flow.answer(direction);
    let mut side = Side {
        verdict: if answer.allowed() { "allowed" } else { "denied" },
        reason: "notIsolated",
        isolated_by: Vec::new(),
        clause: None,
        nearest_misses: Vec::new(),
        audited: family.audited(direction).map(|verdict| Audited {
            verdict: if verdict.allowed { "allowed" } else { "denied" },
            isolated_by: match &verdict.reason {
                Reason::NoClause(by) => by.iter().map(ObjectKey::to_string).collect(),
                _ => Vec::new(),
            },
            clause: match &verdict.reason {
                Reason::Clause(found) => Some(clause(pair, found)),
                _ => None,
            },
        }),
    };
    match answer {
        Says::Exempt(Exempt::Itself) => side.reason = "itself",
        Says::Exempt(Exempt::HostNetwork) if pair.subject(direction).bare_address => side.reason = "noPod",
        Says::Exempt(Exempt::HostNetwork) => side.reason = "hostNetwork",
        Says::Exempt(Exempt::OwnNode) => side.reason = "ownNode",
        Says::Exempt(Exempt::ToOwnNode) => side.reason = "toOwnNode",
        Says::Policy(verdict) => match &verdict.reason {
            Reason::NotIsolated | Reason::NoSuchPod => {}
            Reason::Itself => side.reason = "itself",
            Reason::Clause(found) => {
                side.reason = "clause";
                side.clause = Some(clause(pair, found));
            }
            Reason::NoClause(by) => {
                side.reason = "noClause";
                side.isolated_by = by.iter().map(ObjectKey::to_string).collect();
                let misses = clauses::nearest(pair, direction, family, port);
                side.nearest_misses = misses
                    .iter()
                    .take(MISSES)
                    .map(|miss| Miss {
                        clause: clause(pair, &miss.clause),
                        peer_matches: miss.peer_matches,
                        port_matches: miss.port_matches,
                    })
                    .collect();
            }
        },
    }
    side
}

fn clause(pair: &Pair<'_>, clause: &ClauseRef) -> Clause {
    let path = clauses::path(clause);
    let place = pair.cluster.place_of(&clause.policy, &path);
    Clause {
        policy: clause.policy.to_string(),
        rule: clause.rule,
        peer: clause.peer,
        port: clause.port,
        path,
        port_path: clauses::port_path(clause),
        file: place.as_ref().map(|p| p.file.display().to_string()),
        line: place.map(|p| p.line).filter(|line| *line > 0),
    }
}
