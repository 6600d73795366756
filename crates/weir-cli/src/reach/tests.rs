//! Every class and row against the evaluator, on random clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use weir_compiler::flow::{End, Flow, PodToOwnNode};
use weir_compiler::object::{
    EgressRule, Event, IngressRule, IpBlock, LabelRequirement, LabelSelector, NamedPort, Namespace,
    ObjectKey, Peer, Pod, Policy, PolicyPort, PolicySpec, PortRef, Protocol,
};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_compiler::{Compiler, Scope};

use super::{PodEnd, Reach, State, Who};

/// A small source of choices.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % n as u64).expect("small")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const PORTS: [u16; 5] = [1, 53, 80, 443, u16::MAX];
const BLOCKS: [(&str, &[&str]); 7] = [
    ("0.0.0.0/0", &[]),
    ("10.0.0.0/8", &["10.0.0.0/30"]),
    ("10.0.0.2/32", &[]),
    ("192.0.2.0/24", &["192.0.2.128/25"]),
    ("::/0", &["fd00::/126"]),
    ("fd00::/64", &[]),
    ("172.16.0.0/12", &[]),
];

fn selector(dice: &mut Dice) -> LabelSelector {
    let mut selector = LabelSelector::default();
    match dice.below(4) {
        0 => {}
        1 => {
            let operator = dice.pick(&["In", "NotIn", "Exists", "DoesNotExist"]).to_owned();
            let values =
                if operator.ends_with("In") { vec![dice.pick(&["x", "y"]).to_owned()] } else { vec![] };
            let key = dice.pick(&["a", "b"]).to_owned();
            selector.match_expressions =
                vec![LabelRequirement { key, operator, values, ..Default::default() }];
        }
        _ => {
            selector
                .match_labels
                .insert(dice.pick(&["a", "b"]).to_owned(), dice.pick(&["x", "y"]).to_owned());
        }
    }
    selector
}

fn peers(dice: &mut Dice) -> Vec<Peer> {
    let one = |dice: &mut Dice| match dice.below(4) {
        0 => {
            let (cidr, except) = dice.pick(&BLOCKS);
            let except =
                if dice.one_in(2) { except.iter().map(|e| (*e).to_owned()).collect() } else { vec![] };
            Peer {
                ip_block: Some(IpBlock { cidr: cidr.to_owned(), except, ..Default::default() }),
                ..Default::default()
            }
        }
        1 => Peer { pod_selector: Some(selector(dice)), ..Default::default() },
        2 => Peer { namespace_selector: Some(selector(dice)), ..Default::default() },
        _ => Peer {
            pod_selector: Some(selector(dice)),
            namespace_selector: Some(selector(dice)),
            ..Default::default()
        },
    };
    (0..dice.below(3)).map(|_| one(dice)).collect()
}

fn ports(dice: &mut Dice) -> Vec<PolicyPort> {
    let one = |dice: &mut Dice| {
        let protocol = dice.pick(&[None, Some("UDP"), Some("SCTP")]).map(str::to_owned);
        let (port, end_port) = match dice.below(4) {
            0 => (None, None),
            1 => (Some(PortRef::Name(dice.pick(&["web", "dns"]).to_owned())), None),
            2 => (Some(PortRef::Number(53)), Some(i64::from(dice.pick(&[53, 80, 443])))),
            _ => (Some(PortRef::Number(i64::from(dice.pick(&PORTS)))), None),
        };
        PolicyPort { protocol, port, end_port, ..Default::default() }
    };
    (0..dice.below(3)).map(|_| one(dice)).collect()
}

fn policy(dice: &mut Dice, name: &str) -> Policy {
    let mut spec = PolicySpec { pod_selector: selector(dice), ..Default::default() };
    spec.policy_types = dice
        .pick(&[&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]])
        .iter()
        .map(|t| (*t).to_owned())
        .collect();
    for _ in 0..dice.below(3) {
        spec.ingress.push(IngressRule { from: peers(dice), ports: ports(dice), ..Default::default() });
        spec.egress.push(EgressRule { to: peers(dice), ports: ports(dice), ..Default::default() });
    }
    Policy {
        namespace: dice.pick(&["m", "n"]).to_owned(),
        name: name.to_owned(),
        created: 0,
        audit: None,
        spec,
    }
}

fn pod(dice: &mut Dice, number: u8) -> Pod {
    let host_network = dice.one_in(5);
    let node = dice.pick(&[Some("n1"), Some("n2"), None]).map(str::to_owned);
    let mut ips: Vec<IpAddr> = vec![IpAddr::from([10, 0, 0, number])];
    if dice.one_in(2) {
        ips.push(format!("fd00::{number:x}").parse().expect("an address"));
    }
    if host_network {
        ips = vec![IpAddr::from([172, 16, 0, if node.as_deref() == Some("n2") { 2 } else { 1 }])];
    }
    let mut labels = BTreeMap::new();
    for key in ["a", "b"] {
        if dice.one_in(2) {
            labels.insert(key.to_owned(), dice.pick(&["x", "y"]).to_owned());
        }
    }
    let mut ports = Vec::new();
    if dice.one_in(2) {
        ports.push(NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: dice.pick(&[80, 443]) });
        ports.push(NamedPort { name: "dns".into(), protocol: Protocol::Udp, port: 53 });
    }
    Pod {
        key: ObjectKey::new(dice.pick(&["m", "n"]), format!("p{number}")),
        uid: String::new(),
        labels: labels.into(),
        node,
        ips,
        host_network,
        finished: false,
        terminating: false,
        created: 0,
        ports,
    }
}

/// One state: pods, and what policies make of them.
pub(crate) struct World {
    pub(crate) pods: Vec<Pod>,
    pub(crate) slice: NodeSlice,
}

impl World {
    fn new(mut pods: Vec<Pod>, policies: Vec<Policy>) -> World {
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        let mut compiler = Compiler::new(Scope::Node("all".into()));
        let namespace = |name: &str, a: &str| {
            Event::Namespace(Namespace {
                name: name.into(),
                labels: [("a".to_owned(), a.to_owned())].into(),
                ..Namespace::default()
            })
        };
        compiler.apply([namespace("m", "x"), namespace("n", "y")]);
        compiler.apply(pods.iter().map(|p| Event::Pod(Pod { node: Some("all".into()), ..p.clone() })));
        compiler.apply(policies.into_iter().map(Event::Policy));
        World { pods, slice: compiler.slice("all") }
    }

    /// Two states that have most in common.
    pub(crate) fn two(seed: u64) -> [World; 2] {
        let mut dice = Dice::new(seed);
        let count = 2 + dice.below(6);
        let pods: Vec<Pod> = (0..count).map(|i| pod(&mut dice, u8::try_from(i + 1).expect("few"))).collect();
        let policies: Vec<Policy> = (0..dice.below(5)).map(|i| policy(&mut dice, &format!("q{i}"))).collect();
        let mut after = pods.clone();
        if dice.one_in(2) {
            let at = dice.below(after.len());
            let namespace = after[at].key.namespace.clone();
            let number = u8::try_from(at + 1).expect("few");
            after[at] = pod(&mut dice, number);
            after[at].key.namespace = namespace;
        }
        if dice.one_in(4) {
            after.remove(0);
        }
        let mut changed = policies.clone();
        match dice.below(5) {
            3.. => {}
            0 if !changed.is_empty() => drop(changed.remove(0)),
            1 => changed.push(policy(&mut dice, "new")),
            _ => {
                let name = changed.pop().map_or_else(|| "q0".to_owned(), |p| p.name);
                changed.push(policy(&mut dice, &name));
            }
        }
        [World::new(pods, policies), World::new(after, changed)]
    }

    pub(crate) fn state(&self) -> State<'_> {
        let end = |p: &'_ Pod| -> PodEnd<'_> {
            // borrowed for as long as the world is
            let p = self.pods.iter().find(|q| q.key == p.key).expect("it is here");
            PodEnd { key: &p.key, addresses: &p.ips, node: p.node.as_deref(), host_network: p.host_network }
        };
        State { pods: self.pods.iter().map(end).collect(), slice: &self.slice }
    }

    fn end<'a>(&'a self, key: &'a ObjectKey) -> End<'a> {
        let pod = self.pods.iter().find(|p| p.key == *key);
        End {
            key,
            node: pod.and_then(|p| p.node.as_deref()),
            host_network: pod.is_none_or(|p| p.host_network),
            slice: &self.slice,
        }
    }

    pub(crate) fn allowed(
        &self,
        own_node: PodToOwnNode,
        (from, source): (&ObjectKey, IpAddr),
        (to, destination): (&ObjectKey, IpAddr),
        l4: L4,
    ) -> bool {
        Flow::judge_on(own_node, self.end(from), self.end(to), source, destination, l4).allowed()
    }

    pub(crate) fn address(&self, key: &ObjectKey, v4: bool) -> Option<IpAddr> {
        let pod = self.pods.iter().find(|p| p.key == *key)?;
        pod.ips.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }
}

/// One of each kind of traffic that rules can tell apart.
pub(crate) fn traffic() -> Vec<L4> {
    let mut numbers: BTreeSet<u16> = PORTS.iter().flat_map(|p| [*p, p.saturating_add(1), p - 1]).collect();
    numbers.extend([79, 81, 7000]);
    let ports = Protocol::ALL.into_iter().flat_map(|p| numbers.iter().map(move |n| L4::Port(p, *n)));
    ports.chain([L4::Other(1)]).collect()
}

/// Addresses of a class that is no pods': its first, its last, and one in between.
fn samples(who: &Who) -> Vec<IpAddr> {
    let Who::Addresses(set) = who else { return Vec::new() };
    let v4 = set.v4.ranges().iter().flat_map(|(a, b)| [*a, a + (b - a) / 2, *b]);
    let v6 = set.v6.ranges().iter().flat_map(|(a, b)| [*a, a + (b - a) / 2, *b]);
    v4.map(|ip| IpAddr::from(std::net::Ipv4Addr::from_bits(ip)))
        .chain(v6.map(|ip| IpAddr::from(std::net::Ipv6Addr::from_bits(ip))))
        .collect()
}

fn check(seed: u64, own_node: PodToOwnNode) {
    let worlds = World::two(seed);
    let states = [worlds[0].state(), worlds[1].state()];
    for v4 in [true, false] {
        let mut reach = Reach::new(&states, v4, own_node);
        // every point with its class; addresses of nobody by name
        let mut points: Vec<(usize, u32, ObjectKey, [IpAddr; 2])> = Vec::new();
        for (at, class) in reach.classes.iter().enumerate() {
            match &class.who {
                Who::Pods(pods) => points.extend(pods.iter().map(|p| {
                    let key = reach.pods[*p as usize].clone();
                    let addresses = [0, 1].map(|s| worlds[s].address(&key, v4).expect("it has one in both"));
                    (at, *p, key, addresses)
                })),
                who => points.extend(
                    samples(who)
                        .into_iter()
                        .filter(|ip| !worlds.iter().flat_map(|w| &w.pods).any(|p| p.ips.contains(ip)))
                        .map(|ip| (at, u32::MAX, ObjectKey::new("", ip.to_string()), [ip, ip])),
                ),
            }
        }
        let rows: Vec<[super::classes::Row; 2]> = (0..reach.classes.len())
            .map(|c| [Direction::Ingress, Direction::Egress].map(|d| reach.row(c, d)))
            .collect();
        for (a, a_pod, from, source) in &points {
            for (b, b_pod, to, destination) in &points {
                if from == to || (*a_pod == u32::MAX && *b_pod == u32::MAX) {
                    continue;
                }
                let looks = |class: usize, at: usize, d| {
                    reach.onlookers(class, d).contains(&u32::try_from(at).expect("few"))
                };
                let is_seen = reach.classes[*a].changed
                    || reach.classes[*b].changed
                    || looks(*a, *b, Direction::Egress)
                    || looks(*b, *a, Direction::Ingress);
                for l4 in traffic() {
                    let asked = [0, 1]
                        .map(|s| worlds[s].allowed(own_node, (from, source[s]), (to, destination[s]), l4));
                    let what = || format!("seed {seed}: {from} {source:?} -> {to} {destination:?} {l4:?}");
                    if *a_pod != u32::MAX && *b_pod != u32::MAX && !reach.is_pair((*a, *a_pod), (*b, *b_pod))
                    {
                        assert_eq!(asked[0], asked[1], "{}: no pair, and changed", what());
                        continue;
                    }
                    for s in [0, 1] {
                        let by_row = reach.traffic(rows[*a][1].traffic[s][*b]).contains(l4);
                        assert_eq!(by_row, asked[s], "{}: state {s}", what());
                    }
                    if !is_seen {
                        assert_eq!(asked[0], asked[1], "{}: neither end is changed", what());
                    }
                }
                let between = reach.between(*a, *b);
                assert_eq!(
                    between,
                    [0, 1].map(|s| rows[*a][1].traffic[s][*b]),
                    "seed {seed}: {from} to {to}"
                );
                let same = |s: usize| rows[*a][1].traffic[s][*b] == rows[*b][0].traffic[s][*a];
                assert!(same(0) && same(1), "seed {seed}: rows of {from} and {to} differ");
            }
        }
        let pairs: u64 = (0..reach.classes.len())
            .flat_map(|a| (0..reach.classes.len()).map(move |b| (a, b)))
            .filter(|(a, b)| [a, b].iter().all(|c| matches!(reach.classes[**c].who, Who::Pods(_))))
            .map(|(a, b)| reach.pairs(a, b))
            .sum();
        let counted = points
            .iter()
            .filter(|p| p.1 != u32::MAX)
            .flat_map(|a| points.iter().filter(|p| p.1 != u32::MAX).map(move |b| (a, b)))
            .filter(|(a, b)| reach.is_pair((a.0, a.1), (b.0, b.1)))
            .count();
        assert_eq!(pairs, counted as u64, "seed {seed}: pairs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn rows_say_what_the_evaluator_says(seed: u64, allow: bool) {
        check(seed, if allow { PodToOwnNode::Allow } else { PodToOwnNode::Enforce });
    }
}
