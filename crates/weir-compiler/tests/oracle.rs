//! A hundred thousand random clusters: what the evaluator says is what the statements say.
//!
//! `ORACLE_CASES` sets how many clusters each of the four parts has, `ORACLE_SEED` where they begin.

mod common;

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::oracle::{self, Traffic};
use common::random::Random;
use common::{NODES, World, addresses};
use weir_compiler::flow::{End, Flow};
use weir_compiler::object::{Event, ObjectKey, Pod, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_compiler::verdict::Reason;
use weir_compiler::{Compiler, Scope};

const TRAFFIC: [Traffic; 9] = [
    Traffic::Port(Protocol::Tcp, 80),
    Traffic::Port(Protocol::Tcp, 79),
    Traffic::Port(Protocol::Tcp, 82),
    Traffic::Port(Protocol::Udp, 80),
    Traffic::Port(Protocol::Udp, 81),
    Traffic::Port(Protocol::Sctp, 80),
    Traffic::Port(Protocol::Tcp, 65535),
    Traffic::Port(Protocol::Tcp, 1),
    Traffic::Portless,
];

fn l4(traffic: Traffic) -> L4 {
    match traffic {
        Traffic::Port(protocol, port) => L4::Port(protocol, port),
        Traffic::Portless => L4::Other(1),
    }
}

/// Compares all ends and some flows of the cluster that the bursts lead to: how many verdicts.
fn compare(bursts: &[Vec<Event>], thorough: bool) -> Result<usize, String> {
    let mut compiler = Compiler::new(Scope::AllNodes);
    let mut world = World::default();
    for burst in bursts {
        burst.iter().for_each(|e| world.apply(e));
        compiler.apply(burst.iter().cloned());
    }
    let slices = NODES.map(|node| compiler.slice(node));
    let enforced = world.with_audited();
    let mut compared = 0;
    for pod in world.pods.values() {
        let at = NODES.iter().position(|n| pod.node.as_deref() == Some(n));
        let owns = pod.ips.iter().any(|ip| oracle::owns(&world, pod, *ip));
        for (i, slice) in slices.iter().enumerate() {
            if slice.pods.contains_key(&pod.key) != (owns && at == Some(i)) {
                return Err(format!("{} is in the wrong slices", pod.key));
            }
        }
        if let (true, Some(at)) = (owns, at) {
            compared += ends(&world, &enforced, &slices[at], pod, thorough)?;
        }
    }
    Ok(compared + flows(&world, &slices)?)
}

/// `enforced`: the world in which what is audited is enforced (U29).
fn ends(
    world: &World,
    enforced: &World,
    slice: &NodeSlice,
    pod: &Pod,
    thorough: bool,
) -> Result<usize, String> {
    let mut compared = 0;
    for direction in Direction::BOTH {
        let ingress = direction == Direction::Ingress;
        for peer in addresses() {
            for traffic in TRAFFIC.into_iter().step_by(if thorough { 1 } else { 3 }) {
                let verdict = slice.verdict(&pod.key, direction, peer, l4(traffic));
                let wanted = oracle::allows(world, pod, ingress, peer, traffic);
                let what = || format!("{} {direction:?} {peer} {traffic:?}: {verdict:?}", pod.key);
                if verdict.allowed != wanted {
                    return Err(format!("{}, the oracle says {wanted}", what()));
                }
                compared += 1;
                let audited = slice.audited(&pod.key, direction, peer, l4(traffic));
                let would = oracle::allows(enforced, pod, ingress, peer, traffic);
                let told = audited.as_ref().map_or(wanted, |audited| audited.allowed);
                if told != would || audited.is_some() != (would != wanted) {
                    return Err(format!("{}, audited {audited:?}, the oracle says {would}", what()));
                }
                let said = audited.map(|audited| audited.reason);
                let names = match &said {
                    Some(Reason::NoClause(policies)) => policies.clone(),
                    Some(Reason::Clause(clause)) => vec![clause.policy.clone()],
                    _ => Vec::new(),
                };
                if said.is_some() && names.is_empty() || names.iter().any(|name| !is_audited(world, name)) {
                    return Err(format!("{}, audited by {said:?}", what()));
                }
                let right = match &verdict.reason {
                    Reason::NoSuchPod => false,
                    Reason::Itself => oracle::owns(world, pod, peer),
                    Reason::NotIsolated => {
                        !world.policies_in_force().any(|p| oracle::isolates(p, pod, ingress))
                    }
                    Reason::Clause(clause) => {
                        let policy = world.policies_in_force().find(|p| p.key() == clause.policy);
                        let at = (clause.rule, clause.peer, clause.port);
                        policy.is_some_and(|p| {
                            oracle::isolates(p, pod, ingress)
                                && oracle::clause_allows(world, p, pod, ingress, at, peer, traffic)
                        })
                    }
                    Reason::NoClause(policies) => {
                        let mut wanted: Vec<_> = world
                            .policies_in_force()
                            .filter(|p| oracle::isolates(p, pod, ingress))
                            .map(|p| p.key())
                            .collect();
                        wanted.sort();
                        let mut said = policies.clone();
                        said.sort();
                        said == wanted
                    }
                };
                if !right {
                    return Err(format!("the reason is wrong: {}", what()));
                }
            }
        }
    }
    Ok(compared)
}

fn is_audited(world: &World, policy: &ObjectKey) -> bool {
    let known = world.policies.get(policy).or_else(|| world.orphans.get(policy));
    known.is_some_and(|policy| policy.audit.as_deref() == Some("true"))
}

fn flows(world: &World, slices: &[NodeSlice]) -> Result<usize, String> {
    let mut compared = 0;
    let at = |pod: &Pod| NODES.iter().position(|n| pod.node.as_deref() == Some(n));
    // whose address is another's by now does not send or receive with it (N77)
    let usable = |pod: &Pod, ip: &IpAddr| pod.host_network || oracle::owns(world, pod, *ip);
    let live = || world.pods.values().filter(|p| !p.finished && at(p).is_some());
    for from in live() {
        for to in live() {
            let source = from.ips.iter().find(|ip| usable(from, ip));
            let destination = to
                .ips
                .iter()
                .find(|ip| usable(to, ip) && source.is_some_and(|s| s.is_ipv4() == ip.is_ipv4()));
            let (Some(source), Some(destination)) = (source, destination) else { continue };
            let traffic = Traffic::Port(Protocol::Tcp, 80);
            let end = |pod: &'_ Pod| (at(pod).expect("on a node"), pod.host_network);
            let judged = Flow::judge(
                End {
                    key: &from.key,
                    node: from.node.as_deref(),
                    host_network: end(from).1,
                    slice: &slices[end(from).0],
                },
                End {
                    key: &to.key,
                    node: to.node.as_deref(),
                    host_network: end(to).1,
                    slice: &slices[end(to).0],
                },
                *source,
                *destination,
                l4(traffic),
            );
            let wanted = oracle::passes(world, from, *source, to, *destination, traffic);
            if judged.allowed() != wanted {
                return Err(format!("{} -> {}: {judged:?}, the oracle says {wanted}", from.key, to.key));
            }
            compared += 1;
        }
    }
    Ok(compared)
}

/// The same with a panic as a difference.
fn difference(bursts: &[Vec<Event>]) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| compare(bursts, true))) {
        Ok(result) => result.err(),
        Err(_) => Some("the compiler panics".to_owned()),
    }
}

/// Takes out bursts, events, rules, peers and ports as long as the difference stays.
fn shrink(mut bursts: Vec<Vec<Event>>) -> Vec<Vec<Event>> {
    loop {
        let smaller = candidates(&bursts).into_iter().find(|b| difference(b).is_some());
        match smaller {
            Some(smaller) => bursts = smaller,
            None => return bursts,
        }
    }
}

fn candidates(bursts: &[Vec<Event>]) -> Vec<Vec<Vec<Event>>> {
    let mut all = Vec::new();
    for i in 0..bursts.len() {
        let mut without = bursts.to_vec();
        without.remove(i);
        all.push(without);
        for j in 0..bursts[i].len() {
            let mut without = bursts.to_vec();
            without[i].remove(j);
            all.push(without);
            let Event::Policy(policy) = &bursts[i][j] else { continue };
            let mut smaller = Vec::new();
            for (k, rule) in policy.spec.ingress.iter().enumerate() {
                let mut p = policy.clone();
                p.spec.ingress.remove(k);
                smaller.push(p);
                for l in 0..rule.from.len() {
                    let mut p = policy.clone();
                    p.spec.ingress[k].from.remove(l);
                    smaller.push(p);
                }
                for l in 0..rule.ports.len() {
                    let mut p = policy.clone();
                    p.spec.ingress[k].ports.remove(l);
                    smaller.push(p);
                }
            }
            for (k, rule) in policy.spec.egress.iter().enumerate() {
                let mut p = policy.clone();
                p.spec.egress.remove(k);
                smaller.push(p);
                for l in 0..rule.to.len() {
                    let mut p = policy.clone();
                    p.spec.egress[k].to.remove(l);
                    smaller.push(p);
                }
                for l in 0..rule.ports.len() {
                    let mut p = policy.clone();
                    p.spec.egress[k].ports.remove(l);
                    smaller.push(p);
                }
            }
            for p in smaller {
                let mut with = bursts.to_vec();
                with[i][j] = Event::Policy(p);
                all.push(with);
            }
        }
    }
    all
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|n| n.parse().ok())
}

fn part(part: u64) {
    let cases = number("ORACLE_CASES").unwrap_or(25_000);
    let first = number("ORACLE_SEED").unwrap_or(0) + part * 1_000_000_000;
    let mut compared = 0;
    for seed in first..first + cases {
        let mut random = Random::new(seed);
        let size = 3 + random.below(10);
        let bursts = random.bursts(size);
        match catch_unwind(AssertUnwindSafe(|| compare(&bursts, seed % 8 == 0))) {
            Ok(Ok(n)) => compared += n,
            _ => {
                let least = shrink(bursts);
                let why = difference(&least).unwrap_or_else(|| "seen once, and not again".to_owned());
                panic!("seed {seed}: {why}\n{least:#?}");
            }
        }
    }
    println!("{cases} clusters, {compared} verdicts compared");
    assert!(compared as u64 > cases * 20, "too few to tell: {compared}");
}

#[test]
fn the_evaluator_is_the_oracle_part_1() {
    part(1);
}

#[test]
fn the_evaluator_is_the_oracle_part_2() {
    part(2);
}

#[test]
fn the_evaluator_is_the_oracle_part_3() {
    part(3);
}

#[test]
fn the_evaluator_is_the_oracle_part_4() {
    part(4);
}

/// The oracle itself, against what is certain about texts.
#[test]
fn the_oracle_reads_cidrs_as_go_does() {
    for (text, bits) in [
        ("10.0.0.5/8", Some("400001010")),
        ("010.0.0.0/08", Some("400001010")),
        ("::ffff:10.0.0.0/104", Some("400001010")),
        ("::ffff:0:0/96", Some("4")),
        ("::/0", Some("6")),
        ("FE80:0::/010", Some("61111111010")),
        ("10.0.0.0", None),
        ("10.0.0/8", None),
        (":::/0", None),
        ("1:2:3:4:5:6:7:8::/64", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/8/8", None),
    ] {
        assert_eq!(oracle::cidr(text).as_deref(), bits, "{text}");
    }
}

/// All lists of rules, peers, ports, types, values and exceptions the other way round: the same slices of
/// rules, and the same verdicts.
#[test]
fn n4_the_order_of_lists_means_nothing() {
    for seed in 5_000_000_000..5_000_001_000u64 {
        let mut random = Random::new(seed);
        let bursts = random.bursts(8);
        let mut there = Compiler::new(Scope::AllNodes);
        let mut back = Compiler::new(Scope::AllNodes);
        for burst in bursts {
            there.apply(burst.iter().cloned());
            back.apply(burst.into_iter().map(reversed));
        }
        for node in NODES {
            let (there, back) = (there.slice(node), back.slice(node));
            assert_eq!(there.pods, back.pods, "seed {seed}");
            assert_eq!(there.profiles, back.profiles, "seed {seed}");
            assert_eq!(there.rulesets, back.rulesets, "seed {seed}");
            assert_eq!(there.rules, back.rules, "seed {seed}");
            assert_eq!(there.peer_sets, back.peer_sets, "seed {seed}");
        }
    }
}

fn reversed(event: Event) -> Event {
    let Event::Policy(mut policy) = event else { return event };
    let spec = &mut policy.spec;
    spec.policy_types.reverse();
    spec.ingress.reverse();
    spec.egress.reverse();
    spec.pod_selector.match_expressions.reverse();
    let lists = spec.ingress.iter_mut().map(|r| (&mut r.from, &mut r.ports));
    for (peers, ports) in lists.chain(spec.egress.iter_mut().map(|r| (&mut r.to, &mut r.ports))) {
        peers.reverse();
        ports.reverse();
        for peer in peers {
            if let Some(block) = &mut peer.ip_block {
                block.except.reverse();
            }
            for selector in peer.pod_selector.iter_mut().chain(&mut peer.namespace_selector) {
                selector.match_expressions.reverse();
                selector.match_expressions.iter_mut().for_each(|r| r.values.reverse());
            }
        }
    }
    Event::Policy(policy)
}
