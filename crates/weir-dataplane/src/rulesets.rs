//! What the parts of the rule graph are in the kernel: sets for peers and ports, chains for rulesets.
//!
//! The chain of a ruleset says `return` to what may pass in its direction and drops the rest. It
//! has a rule for each rule, peer set, address family and protocol: simple, and linear in their number.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weir_compiler::cidr::CidrSet;
use weir_compiler::object::Protocol;
use weir_compiler::ports::PortSet;
use weir_compiler::ranges::{Point, RangeSet};
use weir_compiler::slice::{
    Action, Direction, Entry, Member, NodeSlice, PeerSet, PeerSetId, PortSetId, Rule, Ruleset, RulesetId,
    Tier,
};

use crate::model::{self, Bytes, Chain, Element, Field, Set, SetDecl, Verdict};
use crate::planner::Options;
use crate::rules::{End, INVALID, IpFamily, Match, decl};

/// The name of a ruleset's chain.
pub(crate) fn chain_name(id: RulesetId, direction: Direction) -> String {
    format!("{}_{}", direction.as_str(), id.name())
}

fn peer_set_name(id: PeerSetId, set: &PeerSet, family: IpFamily) -> String {
    let kind = match set {
        PeerSet::Pods { .. } => "pods",
        PeerSet::Cidrs(_) => "cidrs",
        PeerSet::Endpoints { .. } => "endpoints",
    };
    format!("{kind}_{}_{}", id.name(), family.suffix())
}

/// Where a member of a peer set goes: the name of the set, and the key.
pub(crate) fn member_key(id: PeerSetId, set: &PeerSet, member: Member) -> (String, Bytes) {
    let (address, tail) = match member {
        Member::Address(address) => (address, None),
        Member::Endpoint(address, protocol, port) => (address, Some((protocol, port))),
    };
    let (family, mut key) = address_key(address);
    if let Some((protocol, port)) = tail {
        key.extend_from_slice(&[protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&port.to_be_bytes());
        key.extend_from_slice(&[0, 0]);
    }
    (peer_set_name(id, set, family), key)
}

/// An address as the kernel has it.
pub(crate) fn address_key(address: IpAddr) -> (IpFamily, Bytes) {
    match address {
        IpAddr::V4(a) => (IpFamily::V4, a.octets()[..].into()),
        IpAddr::V6(a) => (IpFamily::V6, a.octets()[..].into()),
    }
}

/// The kernel's sets for a peer set, by name.
pub(crate) fn peer_sets(id: PeerSetId, set: &PeerSet, members: &[Member]) -> BTreeMap<String, Set> {
    let mut sets = BTreeMap::new();
    for family in IpFamily::BOTH {
        let (decl, elements) = match set {
            PeerSet::Pods { .. } => (decl(&[family.field()]), BTreeMap::new()),
            PeerSet::Endpoints { .. } => {
                (decl(&[family.field(), Field::Proto, Field::Port]), BTreeMap::new())
            }
            PeerSet::Cidrs(cidrs) => match cidr_elements(cidrs, family) {
                Some(elements) => (constant(decl(&[family.field()]), true), elements),
                None => continue,
            },
        };
        sets.insert(peer_set_name(id, set, family), Set { decl, elements });
    }
    // A tree that is built from all of its elements takes half of the memory of one that grows with each.
    let mut elements: BTreeMap<String, Vec<(Bytes, Element)>> = BTreeMap::new();
    for member in members {
        let (name, key) = member_key(id, set, *member);
        elements.entry(name).or_default().push((key, Element::default()));
    }
    for (name, elements) in elements {
        let set = sets.get_mut(&name).expect("there is one of each family");
        set.elements = elements.into_iter().collect();
    }
    sets
}

/// The names of a peer set's sets in the kernel.
pub(crate) fn peer_set_names(id: PeerSetId, set: &PeerSet) -> Vec<String> {
    peer_sets(id, set, &[]).into_keys().collect()
}

/// Ranges of a family. `None`: no set is needed, for it would have nothing, or everything, in it.
fn cidr_elements(cidrs: &CidrSet, family: IpFamily) -> Option<BTreeMap<Bytes, Element>> {
    match family {
        IpFamily::V4 => intervals(&cidrs.v4, |a| a.to_be_bytes()[..].into()),
        IpFamily::V6 => intervals(&cidrs.v6, |a| a.to_be_bytes()[..].into()),
    }
}

fn intervals<T: Point>(ranges: &RangeSet<T>, key: impl Fn(T) -> Bytes) -> Option<BTreeMap<Bytes, Element>> {
    let element =
        |&(first, last): &(T, T)| (key(first), Element { last: Some(key(last)), ..Element::default() });
    (!ranges.is_empty() && !ranges.is_all()).then(|| ranges.ranges().iter().map(element).collect())
}

fn constant(decl: SetDecl, interval: bool) -> SetDecl {
    SetDecl { constant: true, interval, ..decl }
}

fn port_set_name(id: PortSetId, protocol: Protocol) -> String {
    format!("ports_{}_{}", id.name(), protocol.as_str().to_ascii_lowercase())
}

/// The kernel's sets for a port set, by name: of the protocols with more than one range.
pub(crate) fn port_sets(id: PortSetId, ports: &PortSet) -> BTreeMap<String, Set> {
    let PortSet::Ports(by_protocol) = ports else { return BTreeMap::new() };
    let key = |port: u16| Bytes::from_slice(&port.to_be_bytes());
    let mut sets = BTreeMap::new();
    for (protocol, ranges) in Protocol::ALL.into_iter().zip(by_protocol) {
        if ranges.ranges().len() < 2 {
            continue;
        }
        let single = ranges.ranges().iter().all(|(first, last)| first == last);
        let elements = match single {
            true => ranges.ranges().iter().map(|(port, _)| (key(*port), Element::default())).collect(),
            false => intervals(ranges, key).unwrap_or_default(),
        };
        let set = Set { decl: constant(decl(&[Field::Port]), !single), elements };
        sets.insert(port_set_name(id, protocol), set);
    }
    sets
}

/// What isolated pods drop whatever policies say (U27), at the head of a ruleset's chain.
fn no_connection(options: Options) -> Vec<model::Rule> {
    let invalid = Match::default().ct_state(INVALID).then(Verdict::Drop);
    let mid_stream = Match::default().tcp_new_without_syn().then(Verdict::Drop);
    std::iter::once(invalid).chain(options.drop_mid_stream.then_some(mid_stream)).collect()
}

/// The chains of a ruleset. One, unless a rule passes on to the next tier.
pub(crate) fn chains(
    slice: &NodeSlice,
    id: RulesetId,
    ruleset: &Ruleset,
    options: Options,
) -> BTreeMap<String, Chain> {
    let name = chain_name(id, ruleset.direction);
    let mut tiers: Vec<Tier> = ruleset.entries.iter().map(|e| e.tier).collect();
    if ruleset.isolated {
        tiers.retain(|tier| *tier <= Tier::NetworkPolicy); // C5: it is final
        tiers.push(Tier::NetworkPolicy);
    }
    tiers.sort_unstable();
    tiers.dedup();
    let name_of = |tier: &Tier| match Some(tier) == tiers.first() {
        true => name.clone(),
        false => format!("{name}_{tier:?}").to_ascii_lowercase(),
    };
    let mut chains = BTreeMap::new();
    for (i, tier) in tiers.iter().enumerate() {
        let next = tiers.get(i + 1).map(name_of);
        let mut rules = Vec::new();
        if i == 0 {
            rules.extend(no_connection(options));
        }
        for entry in ruleset.entries.iter().filter(|e| e.tier == *tier) {
            rules.extend(entry_rules(slice, ruleset.direction, entry, next.as_deref()));
        }
        if ruleset.isolated && *tier == Tier::NetworkPolicy {
            rules.push(Match::default().then(Verdict::Drop));
        } else if let Some(next) = next {
            rules.push(Match::default().then(Verdict::Goto(next)));
        }
        chains.insert(name_of(tier), Chain { hook: None, rules });
    }
    chains
}

fn entry_rules(
    slice: &NodeSlice,
    direction: Direction,
    entry: &Entry,
    next: Option<&str>,
) -> Vec<model::Rule> {
    let rule = &slice.rules[&entry.rule];
    let verdict = match (rule.action, next) {
        (Action::Accept, _) | (Action::Pass, None) => Verdict::Return,
        (Action::Deny, _) => Verdict::Drop,
        (Action::Pass, Some(next)) => Verdict::Goto(next.to_owned()),
    };
    let ports = port_matches(rule.ports, &slice.port_sets[&rule.ports]);
    peer_matches(slice, direction, rule)
        .into_iter()
        .flat_map(|peer| ports.iter().map(move |port| port(peer.clone())))
        .map(|m| m.then(verdict.clone()))
        .collect()
}

type PortMatch<'a> = Box<dyn Fn(Match) -> Match + 'a>;

fn port_matches<'a>(id: PortSetId, ports: &'a PortSet) -> Vec<PortMatch<'a>> {
    let PortSet::Ports(by_protocol) = ports else { return vec![Box::new(|m| m)] };
    let mut all: Vec<PortMatch<'a>> = Vec::new();
    for (protocol, ranges) in Protocol::ALL.into_iter().zip(by_protocol) {
        match ranges.ranges() {
            [] => {}
            [(first, last)] => all.push(Box::new(move |m| m.ports(protocol, *first, *last))),
            _ => all.push(Box::new(move |m| m.port_in(protocol, &port_set_name(id, protocol)))),
        }
    }
    all
}

fn peer_matches(slice: &NodeSlice, direction: Direction, rule: &Rule) -> Vec<Match> {
    let end = match direction {
        Direction::Ingress => End::Source,
        Direction::Egress => End::Destination,
    };
    let Some(peers) = &rule.peers else { return vec![Match::default()] };
    let mut all = Vec::new();
    for id in peers {
        let set = &slice.peer_sets[id].set;
        for family in IpFamily::BOTH {
            let name = peer_set_name(*id, set, family);
            let (no, every) = match (set, family) {
                (PeerSet::Cidrs(c), IpFamily::V4) => (c.v4.is_empty(), c.v4.is_all()),
                (PeerSet::Cidrs(c), IpFamily::V6) => (c.v6.is_empty(), c.v6.is_all()),
                _ => (false, false),
            };
            match set {
                _ if no => {}
                _ if every => all.push(Match::default().ip_family(family)),
                PeerSet::Endpoints { .. } => all.push(Match::default().endpoint_in(family, end, &name)),
                _ => all.push(Match::default().address_in(family, end, &name)),
            }
        }
    }
    all
}
