//! An answer for people: the verdict, both ends, and a tick or a cross for each clause that matters.

use std::collections::BTreeSet;
use std::fmt::Write;

use weir_compiler::flow::{Answer, Exempt};
use weir_compiler::object::ObjectKey;
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{ClauseRef, Reason};

use crate::ask::{Answer as Found, Group, Said as Verdicts};
use crate::clauses::{self, MISSES};
use crate::ends::Party;
use crate::judge::{InFamily, Judgement, Pair};
use crate::names::Port;
use crate::ports::Range;
use crate::term::{Paint, escape};

/// The sides, in the order of a packet.
const SIDES: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// How many pairs of a group are named.
const NAMED: usize = 3;

/// The answer: the verdict, and for each group of pairs the ends and their clauses.
pub(crate) fn answer(from: &Party<'_>, to: &Party<'_>, answer: &Found<'_>, paint: Paint) -> String {
    let mut out = String::new();
    let allowed = answer.allowed();
    let (all, passing) = answer.count();
    let [first, rest @ ..] = &answer.groups[..] else { return out };
    let ports = ports_title(answer);
    let ends = [(from, all_of(from)), (to, all_of(to))].map(|(p, n)| format!("{}{n}", escape(&p.title)));
    let verdict = paint.verdict(allowed, word(allowed));
    let counts = !rest.is_empty() && from.space.is_none() && to.space.is_none();
    let count = if counts { format!("  {passing} of {all} pass") } else { String::new() };
    let _ = writeln!(out, "{verdict}  {} -> {}  {ports}{count}", ends[0], ends[1]);
    if rest.is_empty() && all == 1 {
        out.push_str(&body(first, paint));
        return out;
    }
    for group in &answer.groups {
        let mut names: Vec<String> =
            group.examples.iter().take(NAMED).map(|(from, to)| escape(&format!("{from} -> {to}"))).collect();
        if group.pairs > names.len() {
            names.push(format!("{} more", group.pairs - names.len()));
        }
        let port = match (&group.said, answer.groups.iter().any(|g| port_of(g) != port_of(first))) {
            (Verdicts::One(port, _), true) => format!("  {port}"),
            _ => String::new(),
        };
        let _ = writeln!(out, "  {} {}{port}", mark(group.said.allowed(), paint), names.join(", "));
        for line in body(group, paint).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

fn port_of(group: &Group<'_>) -> Option<Port> {
    match group.said {
        Verdicts::One(port, _) => Some(port),
        Verdicts::All(_) => None,
    }
}

fn all_of(party: &Party<'_>) -> String {
    let pods = party.members.iter().filter(|m| !m.state.bare_address).map(|m| &m.state.pod.key);
    match pods.collect::<BTreeSet<_>>().len() {
        _ if party.single => String::new(),
        0 => String::new(),
        1 => " (1 pod)".to_owned(),
        n => format!(" ({n} pods)"),
    }
}

/// Of which ports the first line speaks.
fn ports_title(answer: &Found<'_>) -> String {
    let mut ports: Vec<Port> = answer.groups.iter().filter_map(port_of).collect();
    ports.sort_unstable();
    ports.dedup();
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        return ports.join(", ");
    }
    let ranges = answer.groups.iter().flat_map(|group| match &group.said {
        Verdicts::All(ranges) => &ranges[..],
        Verdicts::One(..) => &[],
    });
    let verdicts: BTreeSet<bool> = ranges.map(|r| r.judgement.allowed()).collect();
    if verdicts.len() == 1 { "all ports".to_owned() } else { "some ports".to_owned() }
}

fn body(group: &Group<'_>, paint: Paint) -> String {
    match &group.said {
        Verdicts::One(port, judgement) => one(&group.pair, *port, judgement, paint),
        Verdicts::All(ranges) => all(&group.pair, ranges, paint),
    }
}

/// The ends of one pair about one port.
fn one(pair: &Pair<'_>, port: Port, judgement: &Judgement, paint: Paint) -> String {
    let mut out = String::new();
    let family = judgement.deciding();
    if judgement.is_mixed() {
        let each: Vec<String> =
            judgement.0.iter().map(|f| format!("{} {}", f.name(), word(f.flow.allowed()))).collect();
        let _ = writeln!(out, "  {}; this is about {}", each.join(", "), family.name());
    }
    let tree = Tree { pair, port, family, paint };
    for (direction, title) in SIDES.into_iter().zip(titles(pair)) {
        tree.side(&mut out, direction, &title);
    }
    out
}

/// What is said of ports, in few words.
#[derive(PartialEq)]
struct Said {
    allowed: bool,
    /// The family that it is about, if the other is of another mind.
    family: Option<&'static str>,
    sides: [String; 2],
}

impl Said {
    fn of(pair: &Pair<'_>, judgement: &Judgement) -> Said {
        let family = judgement.deciding();
        Said {
            allowed: judgement.allowed(),
            family: judgement.is_mixed().then(|| family.name()),
            sides: SIDES.map(|direction| summary(pair, family.flow.answer(direction), direction)),
        }
    }
}

/// The ends of one pair about all ports.
fn all(pair: &Pair<'_>, ranges: &[Range], paint: Paint) -> String {
    let mut out = String::new();
    let mut groups: Vec<(Said, Vec<String>)> = Vec::new();
    for range in ranges {
        let said = Said::of(pair, &range.judgement);
        match groups.iter_mut().find(|(other, _)| *other == said) {
            Some((_, names)) => names.push(range.to_string()),
            None => groups.push((said, vec![range.to_string()])),
        }
    }
    groups.sort_by_key(|(said, _)| !said.allowed);
    let allowed = groups.iter().any(|(said, _)| said.allowed);
    let one_mind = groups.iter().all(|(said, _)| said.allowed == allowed);
    let one_reason = groups.len() == 1;
    for (said, names) in groups {
        let names = if one_reason { "all ports".to_owned() } else { names.join(", ") };
        let _ = writeln!(out, "  {} {names}", mark(said.allowed, paint));
        if let Some(family) = said.family {
            let _ = writeln!(out, "      in {family}:");
        }
        for (title, side) in titles(pair).into_iter().zip(said.sides) {
            let _ = writeln!(out, "      {title}  {side}");
        }
    }
    if !(one_mind && allowed) {
        let to = pair.to.name();
        let to = if to.contains("::") { format!("[{to}]") } else { to };
        let _ = writeln!(out, "  name a port for the clauses, as in {}", escape(&format!("{to}:80/TCP")));
    }
    out
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

fn mark(good: bool, paint: Paint) -> String {
    paint.verdict(good, if good { "✔" } else { "✘" })
}

fn name(key: &ObjectKey) -> String {
    escape(&key.to_string())
}

/// Both ends, equally long.
fn titles(pair: &Pair<'_>) -> [String; 2] {
    let egress = format!("egress of {}", escape(&pair.from.name()));
    let ingress = format!("ingress of {}", escape(&pair.to.name()));
    let width = egress.chars().count().max(ingress.chars().count());
    [format!("{egress:width$}"), format!("{ingress:width$}")]
}

/// What an end says, in one line.
fn summary(pair: &Pair<'_>, answer: &Answer, direction: Direction) -> String {
    let side = direction.as_str();
    let verdict = match answer {
        Answer::Exempt(Exempt::Itself) => return "passes: a pod always reaches itself (N73)".into(),
        Answer::Exempt(Exempt::HostNetwork) if pair.subject(direction).bare_address => {
            let who = pair.subject(direction);
            if who.pod.node.is_some() {
                return "passes: it is a node, and policies select pods only (N70)".into();
            }
            return match &who.label {
                Some(_) => "passes: these are no pods, and policies select pods only".into(),
                None => "passes: no pod has this address, and policies select pods only".into(),
            };
        }
        Answer::Exempt(Exempt::HostNetwork) => {
            return "passes: it is in its node's network, where policies select nobody (N70)".into();
        }
        Answer::Exempt(Exempt::OwnNode) => {
            return "passes: a node always reaches its own pods, whatever policies say (N71)".into();
        }
        Answer::Exempt(Exempt::ToOwnNode) => {
            return "passes: pods may reach their own node, whatever policies say (--pod-to-own-node=allow)"
                .into();
        }
        Answer::Policy(verdict) => verdict,
    };
    match &verdict.reason {
        Reason::NotIsolated | Reason::NoSuchPod => format!("passes: no policy isolates it for {side}"),
        Reason::Itself => "passes: a pod always reaches itself (N73)".into(),
        Reason::Clause(clause) => {
            format!("passes: {} {side}[{}] allows it", name(&clause.policy), clause.rule)
        }
        Reason::NoClause(by) => {
            let mut names: Vec<String> = by.iter().take(MISSES).map(name).collect();
            if by.len() > MISSES {
                names.push(format!("{} more", by.len() - MISSES));
            }
            format!("denied: isolated by {}; no rule allows it", names.join(", "))
        }
    }
}

/// A line about one peer or port of a rule.
struct Line {
    good: bool,
    place: String,
    what: String,
    why: String,
}

struct Tree<'a> {
    pair: &'a Pair<'a>,
    port: Port,
    family: &'a InFamily,
    paint: Paint,
}

impl Tree<'_> {
    fn side(&self, out: &mut String, direction: Direction, title: &str) {
        let answer = self.family.flow.answer(direction);
        let _ = writeln!(out, "  {title}  {}", summary(self.pair, answer, direction));
        let Answer::Policy(verdict) = answer else { return };
        match &verdict.reason {
            Reason::Clause(clause) => {
                self.rule(out, clause, &[self.peer_line(clause, true)], &[self.port_line(clause, true)]);
            }
            Reason::NoClause(by) => self.denial(out, direction, by),
            Reason::NoSuchPod | Reason::Itself | Reason::NotIsolated => {}
        }
    }

    fn denial(&self, out: &mut String, direction: Direction, by: &[ObjectKey]) {
        let all = clauses::nearest(self.pair, direction, self.family, self.port);
        let misses = &all[..all.len().min(MISSES)];
        let empty = by.iter().filter(|policy| {
            let rules = self.pair.cluster.slice.policies[*policy].rules(direction);
            rules.is_some_and(<[_]>::is_empty)
        });
        for policy in empty.take(MISSES) {
            let none = self.pair.cluster.why_no_rules(policy, direction.as_str());
            let path = format!("spec.{}", direction.as_str());
            let _ = writeln!(out, "    {}  {none}{}", name(policy), self.place(policy, &path));
        }
        for group in
            misses.chunk_by(|a, b| (&a.clause.policy, a.clause.rule) == (&b.clause.policy, b.clause.rule))
        {
            let mut peers: Vec<Line> = Vec::new();
            let mut ports: Vec<Line> = Vec::new();
            let (mut seen_peers, mut seen_ports) = (BTreeSet::new(), BTreeSet::new());
            for miss in group {
                if seen_peers.insert(miss.clause.peer) {
                    peers.push(self.peer_line(&miss.clause, miss.peer_matches));
                }
                if seen_ports.insert(miss.clause.port) {
                    ports.push(self.port_line(&miss.clause, miss.port_matches));
                }
            }
            self.rule(out, &group[0].clause, &peers, &ports);
        }
        if all.len() > misses.len() {
            let _ = writeln!(out, "    and {} more that do not match", all.len() - misses.len());
        }
        let mut hints: Vec<String> = misses.iter().filter_map(|m| clauses::hint(self.pair, m)).collect();
        hints.dedup();
        if !hints.is_empty() {
            let _ = writeln!(out, "    nearest: {}", escape(&hints.join(", or ")));
        }
    }

    /// A policy's rule, and what of it matches.
    fn rule(&self, out: &mut String, clause: &ClauseRef, peers: &[Line], ports: &[Line]) {
        let (direction, rule) = (clause.direction.as_str(), clause.rule);
        let place = self.place(&clause.policy, &format!("spec.{direction}[{rule}]"));
        let _ = writeln!(out, "    {}  {direction}[{rule}]{place}", name(&clause.policy));
        let lines: Vec<&Line> = peers.iter().chain(ports).collect();
        let width = |of: fn(&Line) -> &str| lines.iter().map(|l| of(l).chars().count()).max().unwrap_or(0);
        let (place, what) = (width(|l| &l.place), width(|l| &l.what));
        for line in lines {
            let text = format!("{:place$}  {:what$}", line.place, line.what);
            let why = if line.why.is_empty() { String::new() } else { format!("  {}", line.why) };
            let text = if why.is_empty() { text.trim_end().to_owned() } else { text };
            let _ = writeln!(out, "      {} {text}{}", mark(line.good, self.paint), self.paint.dim(&why));
        }
    }

    fn peer_line(&self, clause: &ClauseRef, good: bool) -> Line {
        let field = clauses::peers_field(clause.direction);
        let why = if good { String::new() } else { clauses::why_not_peer(self.pair, self.family, clause) };
        Line {
            good,
            place: indexed(field, clause.peer),
            what: escape(&clauses::peer_text(self.pair, clause)),
            why: escape(&why),
        }
    }

    fn port_line(&self, clause: &ClauseRef, good: bool) -> Line {
        let why = if good { String::new() } else { clauses::why_not_port(self.pair, clause) };
        Line {
            good,
            place: indexed("ports", clause.port),
            what: escape(&clauses::port_text(self.pair, clause)),
            why: escape(&why),
        }
    }

    /// File and line, and the space before them.
    fn place(&self, policy: &ObjectKey, path: &str) -> String {
        let Some(place) = self.pair.cluster.place_of(policy, path) else { return String::new() };
        format!("  {}", self.paint.dim(&escape(&place.to_string())))
    }
}

fn indexed(field: &str, index: Option<usize>) -> String {
    index.map_or_else(|| field.to_owned(), |i| format!("{field}[{i}]"))
}
