//! A question about two ends, each of which may be many: asked once for all that cannot differ.
//!
//! ```text
//!   members of FROM ──> classes ──┐                              ┌─> group: pairs of one verdict for one
//!                                 ├─> a pair of each two ──> judge       reason, with an example
//!   members of TO ────> classes ──┘
//! ```
//!
//! Pods are of one class if nothing that policies look at tells them apart: namespace, labels, named ports,
//! the policies that select them, and in which `ipBlock`s of the other end their addresses are. So the pods of a
//! workload are mostly one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{Labels, NamedPort, ObjectKey};
use weir_compiler::policy::PeerClause;
use weir_compiler::slice::{Direction, ProfileId};

use crate::cluster::{Cluster, PodState, is_choice};
use crate::ends::{Member, Party};
use crate::judge::{Judgement, Pair};
use crate::names::{self, Port};
use crate::ports::{self, Range};
use crate::space;

/// How many pairs of a group are named.
pub(crate) const EXAMPLES: usize = 10;

/// What was found out.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    /// Denials first.
    pub(crate) groups: Vec<Group<'a>>,
    /// What the reader should know besides.
    pub(crate) notes: Vec<String>,
}

/// Pairs of which the same is true.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    /// How many; of ranges of addresses, each counts as one.
    pub(crate) pairs: usize,
    /// Some of them, by name.
    pub(crate) examples: Vec<(String, String)>,
    /// The one that was asked about.
    pub(crate) pair: Pair<'a>,
    pub(crate) said: Said,
}

/// The verdict on a port, or on all.
#[derive(Debug)]
pub(crate) enum Said {
    One(Port, Judgement),
    All(Vec<Range>),
}

impl Said {
    /// It passes, at any port if none was asked about.
    pub(crate) fn allowed(&self) -> bool {
        match self {
            Said::One(_, judgement) => judgement.allowed(),
            Said::All(ranges) => ranges.iter().any(|r| r.judgement.allowed()),
        }
    }

    fn same_as(&self, other: &Said) -> bool {
        match (self, other) {
            (Said::One(port, one), Said::One(other_port, other)) => port == other_port && one.same_as(other),
            (Said::All(ranges), Said::All(others)) => {
                let same = |(a, b): (&Range, &Range)| {
                    (a.protocol, a.first, a.last) == (b.protocol, b.first, b.last)
                        && a.judgement.same_as(&b.judgement)
                };
                ranges.len() == others.len() && ranges.iter().zip(others).all(same)
            }
            _ => false,
        }
    }
}

impl Group<'_> {
    /// What audited policies would change (U29).
    fn audited(&self) -> Vec<String> {
        match &self.said {
            Said::One(_, judgement) => self.pair.audited_notes(judgement, ""),
            Said::All(ranges) => {
                let of = |range: &Range| self.pair.audited_notes(&range.judgement, &format!(" at {range}"));
                ranges.iter().flat_map(of).collect()
            }
        }
    }
}

impl Answer<'_> {
    /// Every pair passes.
    pub(crate) fn allowed(&self) -> bool {
        self.groups.iter().all(|group| group.said.allowed())
    }

    /// How many pairs there are, and how many of them pass.
    pub(crate) fn count(&self) -> (usize, usize) {
        let all = self.groups.iter().map(|g| g.pairs).sum();
        (all, self.groups.iter().filter(|g| g.said.allowed()).map(|g| g.pairs).sum())
    }
}

/// Gives parties that are ranges of addresses a member for each part that policies may tell apart.
///
/// # Errors
/// No end is in the cluster.
pub(crate) fn meet(cluster: &Cluster, from: &mut Party<'_>, to: &mut Party<'_>) -> Result<()> {
    let spaces = [from.space.clone(), to.space.clone()];
    if spaces.iter().all(Option::is_some) {
        bail!(
            "policies select pods: one end has to be in the cluster, {} and {} are not",
            from.title,
            to.title
        );
    }
    let [from_space, to_space] = spaces;
    if let Some(set) = from_space {
        let blocks = blocks_of(cluster, to, Direction::Ingress);
        from.members.extend(parts(cluster, from, &set, &blocks, families(to)));
    }
    if let Some(set) = to_space {
        let blocks = blocks_of(cluster, from, Direction::Egress);
        to.members.extend(parts(cluster, to, &set, &blocks, families(from)));
    }
    let outside = |m: &Member<'_>| m.state.bare_address && m.state.pod.node.is_none() && !m.state.everywhere;
    if from.members.iter().chain(&to.members).all(outside) {
        bail!(
            "policies select pods: one end has to be in the cluster, {} and {} are not",
            from.title,
            to.title
        );
    }
    let sizes = [(&from.title, from.members.len(), &to.title), (&to.title, to.members.len(), &from.title)];
    if let Some((title, _, other)) = sizes.iter().find(|(_, size, _)| *size == 0) {
        bail!("{title} has no address that is of interest to {other}");
    }
    Ok(())
}

/// Whether any of a party has IPv4, and IPv6.
fn families(party: &Party<'_>) -> [bool; 2] {
    let addresses = || party.members.iter().flat_map(|m| &m.state.addresses);
    [true, false].map(|v4| addresses().any(|a| a.is_ipv4() == v4))
}

/// How many ranges are named.
const RANGES: usize = 3;

/// Whether addresses are IPv6, and in which blocks they are.
type Alike = (bool, Vec<bool>);

/// One member for all addresses of a family that the same blocks have.
fn parts(
    cluster: &Cluster,
    party: &Party<'_>,
    set: &CidrSet,
    blocks: &BTreeSet<&CidrSet>,
    [v4, v6]: [bool; 2],
) -> Vec<Member<'static>> {
    let on_a_node = |address| cluster.nodes.values().any(|node| node.addresses.contains(&address));
    let taken = |address| cluster.owner(address).is_some() || on_a_node(address);
    let mut ranges = space::pieces(set, blocks.iter().copied());
    // of a family that the other end has not, nothing gets there; it is said if there is no other
    if ranges.iter().any(|(first, _)| if first.is_ipv4() { v4 } else { v6 }) {
        ranges.retain(|(first, _)| if first.is_ipv4() { v4 } else { v6 });
    }
    let mut alike: BTreeMap<Alike, Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
    for range in &ranges {
        let within = blocks.iter().map(|block| block.contains(range.0)).collect();
        alike.entry((range.0.is_ipv6(), within)).or_default().push(*range);
    }
    let families = ranges.iter().map(|(first, _)| first.is_ipv6()).collect::<BTreeSet<_>>().len();
    let others = if party.members.is_empty() { "" } else { "others in " };
    let member = |((is_v6, _), alike): (&Alike, &Vec<(IpAddr, IpAddr)>)| {
        let address = alike.iter().find_map(|range| space::free(*range, taken))?;
        let mut state = PodState::bare(&address.to_string(), vec![address]);
        let mut names: Vec<String> = alike.iter().take(RANGES).map(|range| space::name(*range)).collect();
        let more = alike.len().saturating_sub(RANGES);
        if more > 0 {
            names.push(format!("{more} more ranges"));
        }
        let of_family = ranges.iter().filter(|(first, _)| first.is_ipv6() == *is_v6);
        let rest: Vec<String> = of_family.filter(|r| !alike.contains(r)).map(|r| space::name(*r)).collect();
        let title = match (families, is_v6) {
            (1, _) => party.title.clone(),
            (_, true) => format!("{} in IPv6", party.title),
            (_, false) => format!("{} in IPv4", party.title),
        };
        let name = match rest.len() {
            0 => title,
            1..=RANGES if more > 0 => format!("{title} but {}", rest.join(", ")),
            _ => names.join(", "),
        };
        state.label = Some(format!("{others}{name}"));
        Some(Member { state: Cow::Owned(state), port: None })
    };
    alike.iter().filter_map(member).collect()
}

/// The `ipBlock`s that policies have for the pods of a party, if not every address is in them.
fn blocks_of<'c>(cluster: &'c Cluster, party: &Party<'_>, direction: Direction) -> BTreeSet<&'c CidrSet> {
    let slice = &cluster.slice;
    let profiles: BTreeSet<ProfileId> =
        party.members.iter().filter_map(|m| Some(slice.pods.get(&m.state.pod.key)?.profile)).collect();
    let policies: BTreeSet<&ObjectKey> =
        profiles.iter().flat_map(|id| slice.policies_of(&slice.profiles[id])).collect();
    let rules = policies.into_iter().filter_map(|key| slice.policies[key].rules(direction)).flatten();
    let sets = rules.flat_map(|rule| rule.peers.iter().flatten()).filter_map(|peer| match peer {
        PeerClause::Cidrs(set) => Some(&**set),
        _ => None,
    });
    let v4 = std::net::Ipv4Addr::UNSPECIFIED.into();
    let v6 = std::net::Ipv6Addr::UNSPECIFIED.into();
    sets.filter(|set| is_choice(set, v4) || is_choice(set, v6)).collect()
}

/// What policies look at.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Class<'k> {
    namespace: &'k str,
    labels: &'k Labels,
    named_ports: &'k [NamedPort],
    profile: Option<ProfileId>,
    host_network: bool,
    /// Where it matters who is on whose node.
    node: Option<&'k str>,
    families: [bool; 2],
    within: Vec<bool>,
    port: Option<Port>,
    stand_in: bool,
    /// What is no pod is a class of its own.
    bare: Option<&'k str>,
}

fn classes<'p>(
    cluster: &Cluster,
    party: &'p Party<'_>,
    blocks: &BTreeSet<&CidrSet>,
    nodes_matter: bool,
) -> Vec<Vec<&'p Member<'p>>> {
    let mut classes: BTreeMap<Class<'p>, Vec<&'p Member<'p>>> = BTreeMap::new();
    for member in &party.members {
        let state: &PodState = &member.state;
        let pod = &state.pod;
        let family = |v4| state.addresses.iter().find(|a| a.is_ipv4() == v4);
        let within = |set: &&CidrSet| [true, false].map(|v4| family(v4).is_some_and(|a| set.contains(*a)));
        let class = Class {
            namespace: &pod.key.namespace,
            labels: &pod.labels,
            named_ports: &pod.ports,
            profile: cluster.slice.pods.get(&pod.key).map(|p| p.profile),
            host_network: pod.host_network,
            node: if nodes_matter { pod.node.as_deref() } else { None },
            families: [true, false].map(|v4| family(v4).is_some()),
            within: blocks.iter().flat_map(within).collect(),
            port: member.port,
            stand_in: state.stand_in,
            bare: state.bare_address.then_some(pod.key.name.as_str()),
        };
        classes.entry(class).or_default().push(member);
    }
    classes.into_values().collect()
}

/// Asks about every pair. `port` is as it was written, unless the members have their own.
///
/// # Errors
/// There is no pair about which anything can be said.
pub(crate) fn ask<'p>(
    cluster: &'p Cluster,
    from: &'p Party<'_>,
    to: &'p Party<'_>,
    port: Option<&str>,
) -> Result<Answer<'p>> {
    let mut notes: Vec<String> = from.notes.iter().chain(&to.notes).cloned().collect();
    notes.dedup();
    let nodes_matter = from.members.iter().chain(&to.members).any(|m| m.state.pod.host_network);
    let from_classes = classes(cluster, from, &blocks_of(cluster, to, Direction::Ingress), nodes_matter);
    let to_classes = classes(cluster, to, &blocks_of(cluster, from, Direction::Egress), nodes_matter);
    let one_pair = from.members.len() == 1 && to.members.len() == 1;
    let mut groups: Vec<Group<'p>> = Vec::new();
    let (mut apart, mut portless) = ((0, None), (0, None));
    for a in &from_classes {
        for b in &to_classes {
            let Some((one, other)) = example(a, b, one_pair) else { continue };
            let pairs = a.len() * b.len() - if one_pair { 0 } else { in_both(a, b) };
            let pair = match Pair::new(cluster, &one.state, &other.state) {
                Ok(pair) => pair,
                Err(error) => {
                    // a range of another family is nothing to tell
                    apart.0 += if one.state.bare_address || other.state.bare_address { 0 } else { pairs };
                    apart.1.get_or_insert(error);
                    continue;
                }
            };
            let said = match (other.port, port) {
                (Some(port), _) => Said::One(port, pair.judge(port)),
                (None, Some(text)) => match names::port(text, &other.state) {
                    Ok(port) => Said::One(port, pair.judge(port)),
                    Err(error) => {
                        portless.0 += pairs;
                        portless.1.get_or_insert(error);
                        continue;
                    }
                },
                (None, None) => Said::All(ports::all_ranges(&pair)),
            };
            let new = names_of(a, b, one_pair);
            match groups.iter_mut().find(|g| g.said.same_as(&said)) {
                Some(group) => {
                    group.pairs += pairs;
                    group.examples.extend(new);
                    group.examples.truncate(EXAMPLES);
                }
                None => groups.push(Group { pairs, examples: new, pair, said }),
            }
        }
    }
    if groups.is_empty() {
        return match (portless.1, apart.1) {
            (Some(error), _) | (None, Some(error)) => Err(error),
            (None, None) => {
                bail!("{} and {} are one pod: there is no pair to ask about", from.title, to.title)
            }
        };
    }
    if let (n @ 1.., Some(error)) = apart {
        notes.push(format!("left out: {n} pairs without an address family in common, such as: {error}"));
    }
    if let (n @ 1.., Some(error)) = portless {
        notes.push(format!("left out: {n} pairs, such as: {error}"));
    }
    groups.sort_by_key(|group| (group.said.allowed(), std::cmp::Reverse(group.pairs)));
    for group in &groups {
        for note in group.pair.notes(group.said.allowed()).into_iter().chain(group.audited()) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(Answer { groups, notes })
}

/// Two that are not one pod, unless there are no others.
fn example<'m, 'p>(
    a: &'m [&'p Member<'p>],
    b: &'m [&'p Member<'p>],
    one_pair: bool,
) -> Option<(&'p Member<'p>, &'p Member<'p>)> {
    if one_pair {
        return Some((a[0], b[0]));
    }
    let key = |m: &Member<'_>| m.state.pod.key.clone();
    a.iter().take(2).find_map(|one| Some((*one, *b.iter().find(|other| key(other) != key(one))?)))
}

/// How many are in both.
fn in_both(a: &[&Member<'_>], b: &[&Member<'_>]) -> usize {
    let (x, y) = (&a[0].state.pod, &b[0].state.pod);
    if x.key.namespace != y.key.namespace || x.labels != y.labels {
        return 0;
    }
    let keys: BTreeSet<&ObjectKey> = a.iter().map(|m| &m.state.pod.key).collect();
    b.iter().filter(|m| keys.contains(&m.state.pod.key)).count()
}

fn names_of(a: &[&Member<'_>], b: &[&Member<'_>], one_pair: bool) -> Vec<(String, String)> {
    let pairs = a.iter().flat_map(|one| b.iter().map(move |other| (one, other)));
    let pairs = pairs.filter(|(one, other)| one_pair || one.state.pod.key != other.state.pod.key);
    pairs.take(EXAMPLES).map(|(one, other)| (one.state.name(), other.state.name())).collect()
}
