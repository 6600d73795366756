//! An answer for programs. What is documented in `weir can --help` stays as it is.

use std::collections::BTreeMap;

use serde::Serialize;
use weir_compiler::flow::{Answer, Exempt};
use weir_compiler::object::{ObjectKey, Protocol};
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{ClauseRef, Reason};

use crate::clauses::{self, MISSES};
use crate::judge::{InFamily, Judgement, Pair};
use crate::names::Port;
use crate::ports::Range;

/// The answer about one port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct One {
    from: String,
    to: String,
    port: u16,
    protocol: Protocol,
    allowed: bool,
    families: BTreeMap<&'static str, bool>,
    egress: Side,
    ingress: Side,
    notes: Vec<String>,
}

/// The answer about all ports.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct All {
    from: String,
    to: String,
    allowed: bool,
    ports: Vec<Ports>,
    notes: Vec<String>,
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

/// About one port.
pub(crate) fn one(pair: &Pair<'_>, port: Port, judgement: &Judgement) -> One {
    let family = judgement.deciding();
    One {
        from: pair.from.name(),
        to: pair.to.name(),
        port: port.number,
        protocol: port.protocol,
        allowed: judgement.allowed(),
        families: families(judgement),
        egress: side(pair, port, family, Direction::Egress),
        ingress: side(pair, port, family, Direction::Ingress),
        notes: pair.notes(judgement.allowed()),
    }
}

/// About all ports.
pub(crate) fn all(pair: &Pair<'_>, ranges: &[Range]) -> All {
    let allowed = ranges.iter().any(|r| r.judgement.allowed());
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
    All {
        from: pair.from.name(),
        to: pair.to.name(),
        allowed,
        ports: ports.collect(),
        notes: pair.notes(allowed),
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
    };
    match answer {
        Answer::Exempt(Exempt::Itself) => side.reason = "itself",
        Answer::Exempt(Exempt::HostNetwork) if pair.subject(direction).bare_address => side.reason = "noPod",
        Answer::Exempt(Exempt::HostNetwork) => side.reason = "hostNetwork",
        Answer::Exempt(Exempt::OwnNode) => side.reason = "ownNode",
        Answer::Exempt(Exempt::ToOwnNode) => side.reason = "toOwnNode",
        Answer::Policy(verdict) => match &verdict.reason {
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
