//! Points, classes of them, and the rows of the matrix of who reaches whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use weir_compiler::cidr::CidrSet;
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::ObjectKey;
use weir_compiler::ranges::{Point, RangeSet};
use weir_compiler::slice::{Direction, Member, PeerSet};

use super::rules::{Membership, Rulesets, number};
use super::traffic::{ALL, Interner, Traffic};
use super::{Both, PodEnd, State};

/// Whose points these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Pods, by their index in [`Reach::pods`].
    Pods(Vec<u32>),
    /// Those of these addresses that no pod has; there are some.
    Addresses(CidrSet),
}

/// Points that policies cannot tell apart, of one family.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) who: Who,
    /// The rulesets by direction, as [`Direction`] counts, before and after. `None`: not isolated.
    rulesets: Both<[Option<u32>; 2]>,
    membership: Both<Membership>,
    host_network: Both<bool>,
    /// The node before and after, where it tells classes apart: of pods in the host's network, and of pods that
    /// moved.
    node: Option<Both<Option<u32>>>,
    /// Its rulesets, its node or its network are others after.
    pub(crate) changed: bool,
}

impl Class {
    /// How many pods there are, or 1 for addresses.
    pub(crate) fn len(&self) -> usize {
        match &self.who {
            Who::Pods(pods) => pods.len(),
            Who::Addresses(_) => 1,
        }
    }
}

/// From one class to all others, or to it from all: traffic as [`Reach::traffic`] has it, by class.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) traffic: Both<Vec<u32>>,
}

/// One family of two states.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) classes: Vec<Class>,
    /// The pods of both states that have addresses of the family.
    pub(crate) pods: Vec<ObjectKey>,
    nodes: Both<Vec<Option<u32>>>,
    rulesets: Rulesets,
    interner: Interner,
    own_node: PodToOwnNode,
    /// By peer set: the classes in it, before and after.
    in_set: Both<Vec<Vec<u32>>>,
    /// By ruleset: the classes that have it for a direction.
    of_ruleset: Both<[HashMap<u32, Vec<u32>>; 2]>,
    /// By peer set: the rulesets that look at it.
    lookers: Vec<Vec<u32>>,
}

/// All that tells two points apart.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    pod: bool,
    rulesets: Both<[Option<u32>; 2]>,
    membership: Both<Membership>,
    host_network: Both<bool>,
    node: Option<Both<Option<u32>>>,
}

/// The address of a pod in a family.
fn address(pod: &PodEnd<'_>, v4: bool) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
}

impl Reach {
    /// The classes of IPv4 or IPv6.
    pub(crate) fn new(states: &Both<State<'_>>, v4: bool, own_node: PodToOwnNode) -> Reach {
        let mut interner = Interner::new();
        let rulesets = Rulesets::new([states[0].slice, states[1].slice], &mut interner);
        let pods = in_both(states, v4);
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let nodes: Both<Vec<Option<u32>>> =
            [0, 1].map(|s| pods.iter().map(|p| p[s].node.map(|n| node_number(&mut numbers, n))).collect());
        let memberships = [0, 1].map(|s| memberships(&states[s], &pods, s, v4, &rulesets));
        // with a host that moved, or a pod that moved into or out of one, every node counts
        let moved = |i: usize| nodes[0][i] != nodes[1][i];
        let on_host = |p: &Both<PodEnd<'_>>| p[0].host_network || p[1].host_network;
        let by_node = pods
            .iter()
            .enumerate()
            .any(|(i, p)| on_host(p) && (moved(i) || p[0].host_network != p[1].host_network));
        let mut by_key: HashMap<Key, usize> = HashMap::new();
        let mut classes: Vec<Class> = Vec::new();
        let [mut before, mut after] = memberships;
        for (i, pair) in pods.iter().enumerate() {
            let with_node = by_node || on_host(pair) || moved(i);
            let key = Key {
                pod: true,
                rulesets: [0, 1].map(|s| rulesets_of(&states[s], pair[s].key, &rulesets)),
                membership: [std::mem::take(&mut before[i]), std::mem::take(&mut after[i])],
                host_network: [pair[0].host_network, pair[1].host_network],
                node: with_node.then(|| [nodes[0][i], nodes[1][i]]),
            };
            let index = number(i);
            class_of(
                &mut classes,
                &mut by_key,
                key,
                || Who::Pods(Vec::new()),
                |who| {
                    if let Who::Pods(pods) = who {
                        pods.push(index);
                    }
                },
            );
        }
        for (membership, set) in outside(states, v4, &rulesets) {
            let key = Key {
                pod: false,
                rulesets: Default::default(),
                membership: [membership.clone(), membership],
                host_network: [true, true],
                node: None,
            };
            class_of(&mut classes, &mut by_key, key, || Who::Addresses(set.clone()), |_| {});
        }
        let in_set = [0, 1].map(|s| by_set(&classes, s, rulesets.sets.len()));
        let of_ruleset = [0, 1].map(|s| [0, 1].map(|d| by_ruleset(&classes, s, d)));
        let mut lookers = vec![Vec::new(); rulesets.sets.len()];
        for (i, rules) in rulesets.all.iter().enumerate() {
            rules.sets.iter().for_each(|set| lookers[*set as usize].push(number(i)));
        }
        let pods = pods.into_iter().map(|p| p[0].key.clone()).collect();
        Reach { classes, pods, nodes, rulesets, interner, own_node, in_set, of_ruleset, lookers }
    }

    /// The set of traffic of a number.
    pub(crate) fn traffic(&self, number: u32) -> &Traffic {
        self.interner.get(number)
    }

    /// From a class to all (egress), or to it from all (ingress).
    pub(crate) fn row(&mut self, class: usize, direction: Direction) -> Row {
        Row { traffic: [0, 1].map(|s| self.one_row(class, direction, s)) }
    }

    /// Those who look at a peer set that a class is in before or after, but not both: from it (egress) or to it
    /// (ingress). Other classes see no difference in one whose rulesets, node and network stay.
    pub(crate) fn onlookers(&self, class: usize, direction: Direction) -> BTreeSet<u32> {
        let [before, after] = &self.classes[class].membership;
        let moved = before.iter().filter(|set| after.binary_search(set).is_err());
        let moved = moved.chain(after.iter().filter(|set| before.binary_search(set).is_err()));
        let mut onlookers = BTreeSet::new();
        for ruleset in moved.flat_map(|(set, _)| &self.lookers[*set as usize]) {
            for of_ruleset in &self.of_ruleset {
                onlookers.extend(of_ruleset[opposite(direction) as usize].get(ruleset).into_iter().flatten());
            }
        }
        onlookers
    }

    /// What passes from one class to another, before and after.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> Both<u32> {
        [0, 1].map(|s| match self.is_own_node(from, to, s) {
            true => ALL,
            false => {
                let egress = self.says(from, to, Direction::Egress, s);
                let ingress = self.says(to, from, Direction::Ingress, s);
                self.interner.and(egress, ingress)
            }
        })
    }

    fn one_row(&mut self, class: usize, direction: Direction, state: usize) -> Vec<u32> {
        let other = opposite(direction);
        // what the class itself says of all others
        let own = self.classes[class].rulesets[state][direction as usize];
        let mut row = match own {
            None => vec![ALL; self.classes.len()],
            Some(ruleset) => {
                let mut row = vec![self.rulesets.all[ruleset as usize].base; self.classes.len()];
                for set in self.rulesets.all[ruleset as usize].sets.clone() {
                    for &peer in &self.in_set[state][set as usize] {
                        let membership = &self.classes[peer as usize].membership[state];
                        row[peer as usize] = self.rulesets.says(ruleset, membership, &mut self.interner);
                    }
                }
                row
            }
        };
        // what others say of it
        let membership = self.classes[class].membership[state].clone();
        let mut looked: HashSet<u32> = HashSet::new();
        for (set, _) in &membership {
            looked.extend(&self.lookers[*set as usize]);
        }
        for (&ruleset, peers) in &self.of_ruleset[state][other as usize] {
            let says = match looked.contains(&ruleset) {
                true => self.rulesets.says(ruleset, &membership, &mut self.interner),
                false => self.rulesets.all[ruleset as usize].base,
            };
            if says != ALL {
                for &peer in peers {
                    row[peer as usize] = self.interner.and(row[peer as usize], says);
                }
            }
        }
        // a node and its own pods, where classes tell nodes apart
        if self.classes[class].node.is_some() {
            for (peer, traffic) in row.iter_mut().enumerate() {
                let (from, to) = match direction {
                    Direction::Egress => (class, peer),
                    Direction::Ingress => (peer, class),
                };
                if *traffic != ALL && self.is_own_node(from, to, state) {
                    *traffic = ALL;
                }
            }
        }
        row
    }

    /// N71, U6: all of these pairs are a node and a pod on it, whom policies do not concern.
    fn is_own_node(&self, from: usize, to: usize, state: usize) -> bool {
        let (from, to) = (&self.classes[from], &self.classes[to]);
        let (Some(a), Some(b)) = (&from.node, &to.node) else { return false };
        a[state].is_some() && a[state] == b[state] && self.exempts(from, to, state)
    }

    fn exempts(&self, from: &Class, to: &Class, state: usize) -> bool {
        let hosts = (from.host_network[state], to.host_network[state]);
        let of_pods = matches!((&from.who, &to.who), (Who::Pods(_), Who::Pods(_)));
        of_pods && (hosts == (true, false) || hosts == (false, true) && self.own_node == PodToOwnNode::Allow)
    }

    /// What a class says in a direction of peers that no rule names, after: everything, if it is not isolated.
    pub(crate) fn base(&self, class: usize, direction: Direction) -> u32 {
        match self.classes[class].rulesets[1][direction as usize] {
            None => ALL,
            Some(ruleset) => self.rulesets.all[ruleset as usize].base,
        }
    }

    /// Whether policies isolate a class in a direction, after.
    pub(crate) fn is_isolated(&self, class: usize, direction: Direction) -> bool {
        self.classes[class].rulesets[1][direction as usize].is_some()
    }

    /// Whether the pods of a class are in their nodes' network.
    pub(crate) fn is_host(&self, class: usize) -> bool {
        matches!(self.classes[class].who, Who::Pods(_)) && self.classes[class].host_network[1]
    }

    /// The pairs (from, to) of which a rule at one end names the other, with what passes between them; after.
    pub(crate) fn named_pairs(&mut self) -> BTreeMap<(u32, u32), u32> {
        let mut pairs = BTreeMap::new();
        for class in 0..self.classes.len() {
            for direction in Direction::BOTH {
                let Some(ruleset) = self.classes[class].rulesets[1][direction as usize] else { continue };
                for set in self.rulesets.all[ruleset as usize].sets.clone() {
                    for &peer in &self.in_set[1][set as usize] {
                        let pair = match direction {
                            Direction::Ingress => (peer, number(class)),
                            Direction::Egress => (number(class), peer),
                        };
                        pairs.insert(pair, ALL);
                    }
                }
            }
        }
        for ((from, to), traffic) in &mut pairs {
            let egress = self.says(*from as usize, *to as usize, Direction::Egress, 1);
            let ingress = self.says(*to as usize, *from as usize, Direction::Ingress, 1);
            *traffic = self.interner.and(egress, ingress);
        }
        pairs
    }

    fn says(&mut self, class: usize, peer: usize, direction: Direction, state: usize) -> u32 {
        match self.classes[class].rulesets[state][direction as usize] {
            None => ALL,
            Some(ruleset) => {
                self.rulesets.says(ruleset, &self.classes[peer].membership[state], &mut self.interner)
            }
        }
    }

    /// How many pairs of pods (or addresses) two classes make, without those that are no flow or that policies do
    /// not concern: a pod and itself, a node and its own pods.
    pub(crate) fn pairs(&self, from: usize, to: usize) -> u64 {
        let (a, b) = (&self.classes[from], &self.classes[to]);
        let all = a.len() as u64 * b.len() as u64;
        match (&a.who, &b.who) {
            (Who::Addresses(_), Who::Addresses(_)) => 0,
            _ if from == to => all - a.len() as u64,
            (Who::Pods(ours), Who::Pods(theirs)) if a.node.is_some() != b.node.is_some() => {
                let exempt = self.exempts(a, b, 0);
                let on_node = |pods: &[u32], node: Option<u32>| {
                    pods.iter().filter(|p| node.is_some() && self.nodes[0][**p as usize] == node).count()
                        as u64
                };
                match (exempt, &a.node, &b.node) {
                    (true, Some(node), None) => all - a.len() as u64 * on_node(theirs, node[0]),
                    (true, None, Some(node)) => all - b.len() as u64 * on_node(ours, node[0]),
                    _ => all,
                }
            }
            _ => all,
        }
    }

    /// Of a pair of classes, whether a pair of their pods is one of [`pairs`](Reach::pairs).
    #[cfg(test)]
    pub(crate) fn is_pair(&self, from: (usize, u32), to: (usize, u32)) -> bool {
        if from == to {
            return false;
        }
        let (a, b) = (&self.classes[from.0], &self.classes[to.0]);
        let nodes = (self.nodes[0][from.1 as usize], self.nodes[0][to.1 as usize]);
        let split = a.node.is_some() != b.node.is_some();
        !(split && self.exempts(a, b, 0) && nodes.0.is_some() && nodes.0 == nodes.1)
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Egress => Direction::Ingress,
        Direction::Ingress => Direction::Egress,
    }
}

fn node_number<'a>(numbers: &mut HashMap<&'a str, u32>, name: &'a str) -> u32 {
    let next = number(numbers.len());
    *numbers.entry(name).or_insert(next)
}

/// The pods of both states with addresses of the family in both.
fn in_both<'a>(states: &Both<State<'a>>, v4: bool) -> Vec<Both<PodEnd<'a>>> {
    let mut after = states[1].pods.iter().peekable();
    let mut both = Vec::with_capacity(states[0].pods.len());
    for before in &states[0].pods {
        while after.next_if(|p| p.key < before.key).is_some() {}
        if let Some(same) = after.next_if(|p| p.key == before.key)
            && address(before, v4).is_some()
            && address(same, v4).is_some()
        {
            both.push([*before, *same]);
        }
    }
    both
}

fn rulesets_of(state: &State<'_>, pod: &ObjectKey, rulesets: &Rulesets) -> [Option<u32>; 2] {
    let Some(pod) = state.slice.pods.get(pod) else { return [None, None] };
    let profile = &state.slice.profiles[&pod.profile];
    // as Direction counts
    [profile.ingress, profile.egress].map(|id| id.map(|id| rulesets.number(id)))
}

/// The peer sets that each pod's address is in.
fn memberships(
    state: &State<'_>,
    pods: &[Both<PodEnd<'_>>],
    at: usize,
    v4: bool,
    rulesets: &Rulesets,
) -> Vec<Membership> {
    let mut of_address: HashMap<IpAddr, Vec<u32>> = HashMap::with_capacity(pods.len());
    let mut sorted: Vec<(IpAddr, u32)> = Vec::with_capacity(pods.len());
    for (i, pair) in pods.iter().enumerate() {
        let Some(address) = address(&pair[at], v4) else { continue };
        of_address.entry(address).or_default().push(number(i));
        sorted.push((address, number(i)));
    }
    sorted.sort_unstable();
    let mut all = vec![Membership::new(); pods.len()];
    for (id, set) in &state.slice.peer_sets {
        let set_number = rulesets.sets[id];
        if let PeerSet::Cidrs(cidrs) = &set.set {
            for (first, last) in ranges(cidrs, v4) {
                let from = sorted.partition_point(|(ip, _)| *ip < first);
                for (_, pod) in sorted[from..].iter().take_while(|(ip, _)| *ip <= last) {
                    all[*pod as usize].push((set_number, None));
                }
            }
            continue;
        }
        for member in &set.members {
            let (address, endpoint) = match member {
                Member::Address(ip) => (ip, None),
                Member::Endpoint(ip, protocol, port) => (ip, Some((*protocol, *port))),
            };
            for pod in of_address.get(address).into_iter().flatten() {
                all[*pod as usize].push((set_number, endpoint));
            }
        }
    }
    for membership in &mut all {
        membership.sort_unstable();
        membership.dedup();
    }
    all
}

fn ranges(set: &CidrSet, v4: bool) -> Vec<(IpAddr, IpAddr)> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    if v4 {
        let ranges = set.v4.ranges().iter();
        ranges.map(|(a, b)| (Ipv4Addr::from_bits(*a).into(), Ipv4Addr::from_bits(*b).into())).collect()
    } else {
        let ranges = set.v6.ranges().iter();
        ranges.map(|(a, b)| (Ipv6Addr::from_bits(*a).into(), Ipv6Addr::from_bits(*b).into())).collect()
    }
}

/// The addresses that no pod has, by the sets of CIDRs that they are in.
fn outside(states: &Both<State<'_>>, v4: bool, rulesets: &Rulesets) -> Vec<(Membership, CidrSet)> {
    let pods = states.iter().flat_map(|s| &s.pods).flat_map(|p| p.addresses);
    let mut sets: BTreeMap<u32, &CidrSet> = BTreeMap::new();
    for (id, set) in states.iter().flat_map(|s| &s.slice.peer_sets) {
        if let PeerSet::Cidrs(cidrs) = &set.set {
            sets.insert(rulesets.sets[id], cidrs);
        }
    }
    if v4 {
        let taken = pods.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip.to_bits()) } else { None });
        let sets = sets.into_iter().map(|(n, s)| (n, &s.v4)).collect();
        let parts = partition(sets, taken);
        parts.into_iter().map(|(m, v4)| (m, CidrSet { v4, ..CidrSet::default() })).collect()
    } else {
        let taken = pods.filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip.to_bits()) } else { None });
        let sets = sets.into_iter().map(|(n, s)| (n, &s.v6)).collect();
        let parts = partition(sets, taken);
        parts.into_iter().map(|(m, v6)| (m, CidrSet { v6, ..CidrSet::default() })).collect()
    }
}

/// Everything, by the sets that it is in; without parts of which all is taken.
fn partition<T: Point>(
    sets: Vec<(u32, &RangeSet<T>)>,
    taken: impl Iterator<Item = T>,
) -> Vec<(Membership, RangeSet<T>)> {
    let mut starts = vec![T::MIN];
    for (first, last) in sets.iter().flat_map(|(_, s)| s.ranges()) {
        starts.push(*first);
        if *last != T::MAX {
            starts.push(last.next());
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let mut of_start: Vec<Membership> = vec![Membership::new(); starts.len()];
    for (number, set) in &sets {
        for (first, last) in set.ranges() {
            let from = starts.partition_point(|s| s < first);
            for (start, membership) in starts.iter().zip(&mut of_start).skip(from) {
                if start > last {
                    break;
                }
                membership.push((*number, None));
            }
        }
    }
    let mut parts: BTreeMap<Membership, Vec<(T, T)>> = BTreeMap::new();
    for (i, membership) in of_start.into_iter().enumerate() {
        let last = starts.get(i + 1).map_or(T::MAX, |next| next.prev());
        parts.entry(membership).or_default().push((starts[i], last));
    }
    let taken = RangeSet::from_ranges(taken.map(|ip| (ip, ip)));
    let parts = parts.into_iter().map(|(membership, ranges)| (membership, RangeSet::from_ranges(ranges)));
    parts.filter(|(_, set)| !taken.covers(set)).collect()
}

fn class_of(
    classes: &mut Vec<Class>,
    by_key: &mut HashMap<Key, usize>,
    key: Key,
    who: impl Fn() -> Who,
    add: impl Fn(&mut Who),
) {
    let at = match by_key.get(&key) {
        Some(at) => *at,
        None => {
            let changed = key.rulesets[0] != key.rulesets[1]
                || key.host_network[0] != key.host_network[1]
                || key.node.is_some_and(|n| n[0] != n[1]);
            classes.push(Class {
                who: who(),
                rulesets: key.rulesets,
                membership: key.membership.clone(),
                host_network: key.host_network,
                node: key.node,
                changed,
            });
            by_key.insert(key, classes.len() - 1);
            classes.len() - 1
        }
    };
    add(&mut classes[at].who);
}

fn by_set(classes: &[Class], state: usize, sets: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new(); sets];
    for (i, class) in classes.iter().enumerate() {
        for (set, _) in &class.membership[state] {
            let of: &mut Vec<u32> = &mut all[*set as usize];
            if of.last() != Some(&number(i)) {
                of.push(number(i));
            }
        }
    }
    all
}

fn by_ruleset(classes: &[Class], state: usize, direction: usize) -> HashMap<u32, Vec<u32>> {
    let mut all: HashMap<u32, Vec<u32>> = HashMap::new();
    for (i, class) in classes.iter().enumerate() {
        if let Some(ruleset) = class.rulesets[state][direction] {
            all.entry(ruleset).or_default().push(number(i));
        }
    }
    all
}
