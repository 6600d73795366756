//! The policies that all layouts enforce, made up at random, and who may reach what by them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use weir_compiler::object::{
    Event, IngressRule, LabelSelector, Labels, Namespace, ObjectKey, Peer, Pod, Policy, PolicyPort,
    PolicySpec, PortRef,
};

use crate::cluster::NODE;

/// The pod that is connected to.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// All who connect have an address of this network: peers and strangers.
pub(super) const CLIENTS: &str = "10.64.0.0/10";
const CLIENT_BITS: u32 = 22;
/// The server listens on so many ports; a policy allows one of them.
pub(super) const PORTS: usize = 100;
const NAMESPACE: &str = "bench";

/// Numbers that look random and are the same in each run (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn address(&mut self) -> Ipv4Addr {
        let host = self.next() as u32 & ((1 << CLIENT_BITS) - 1);
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() | host)
    }

    /// Puts them in another order.
    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }
}

/// The ports on which the server listens, the same in all cases.
pub(super) fn ports() -> Vec<u16> {
    let mut random = Random::new(1);
    let mut ports = BTreeSet::new();
    while ports.len() < PORTS {
        ports.insert(1024 + random.below(31_000) as u16); // below the ephemeral ones
    }
    ports.into_iter().collect()
}

/// A connection that may be tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) source: Ipv4Addr,
    pub(super) port: u16,
    /// What the policies say to it.
    pub(super) allowed: bool,
}

/// So many policies select the server; each allows its share of the peers on one port.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) policies: usize,
    /// Peer `i` is one of policy `i % policies`.
    pub(super) peers: Vec<Ipv4Addr>,
    /// The port of each policy.
    pub(super) port_of: Vec<u16>,
    ports: Vec<u16>,
    known: BTreeSet<Ipv4Addr>,
}

impl Case {
    pub(super) fn new(policies: usize, peers: usize) -> Case {
        assert!(0 < policies && policies <= peers, "each policy has a peer");
        let mut random = Random::new((policies * 1_000_003 + peers) as u64);
        let mut known = BTreeSet::new();
        let mut all = Vec::with_capacity(peers);
        while all.len() < peers {
            let address = random.address();
            if known.insert(address) {
                all.push(address);
            }
        }
        let ports = ports();
        let port_of = (0..policies).map(|_| ports[random.below(PORTS)]).collect();
        Case { policies, peers: all, port_of, ports, known }
    }

    /// The peers that a policy allows.
    pub(super) fn peers_of(&self, policy: usize) -> impl Iterator<Item = Ipv4Addr> {
        self.peers.iter().skip(policy).step_by(self.policies).copied()
    }

    /// A flow that a policy, any one of them, allows.
    pub(super) fn allowed(&self, random: &mut Random) -> Flow {
        let peer = random.below(self.peers.len());
        Flow { source: self.peers[peer], port: self.port_of[peer % self.policies], allowed: true }
    }

    /// A flow that no policy allows: a peer at a port that is not its own, or a stranger.
    pub(super) fn denied(&self, random: &mut Random) -> Flow {
        loop {
            let port = self.ports[random.below(PORTS)];
            let peer = random.below(self.peers.len());
            if random.below(2) == 0 && self.port_of[peer % self.policies] != port {
                return Flow { source: self.peers[peer], port, allowed: false };
            }
            let source = random.address();
            if !self.known.contains(&source) {
                return Flow { source, port, allowed: false };
            }
        }
    }

    /// The objects: the server on the node, the peers elsewhere, the policies.
    pub(super) fn events(&self) -> Vec<Event> {
        let namespace = Namespace { name: NAMESPACE.into(), ..Namespace::default() };
        let server = pod("server", ("app", "server".into()), NODE, SERVER);
        let mut events = vec![Event::Namespace(namespace), Event::Pod(server)];
        events.extend((0..self.peers.len()).map(|i| self.peer(i)));
        events.extend((0..self.policies).map(|i| {
            let from = Peer { pod_selector: Some(label("group", group(i))), ..Peer::default() };
            let port = Some(PortRef::Number(self.port_of[i].into()));
            let port = PolicyPort { port, ..PolicyPort::default() };
            let rule = IngressRule { from: vec![from], ports: vec![port], ..IngressRule::default() };
            let spec = PolicySpec {
                pod_selector: label("app", "server".into()),
                ingress: vec![rule],
                ..PolicySpec::default()
            };
            Event::Policy(Policy {
                namespace: NAMESPACE.into(),
                name: format!("policy-{i}"),
                created: 0,
                audit: None,
                spec,
            })
        }));
        events
    }

    /// The pod of a peer.
    pub(super) fn peer(&self, i: usize) -> Event {
        Event::Pod(pod(&format!("peer-{i}"), ("group", group(i % self.policies)), "elsewhere", self.peers[i]))
    }

    /// The pod of a peer is gone.
    pub(super) fn peer_gone(&self, i: usize) -> Event {
        Event::PodGone(ObjectKey::new(NAMESPACE, format!("peer-{i}")))
    }
}

fn group(policy: usize) -> String {
    format!("group-{policy}")
}

fn label(key: &str, value: String) -> LabelSelector {
    LabelSelector { match_labels: [(key.into(), value)].into(), ..LabelSelector::default() }
}

fn pod(name: &str, label: (&str, String), node: &str, address: Ipv4Addr) -> Pod {
    let labels: Labels = [(label.0.to_owned(), label.1)].into();
    Pod {
        key: ObjectKey::new(NAMESPACE, name),
        uid: String::new(),
        labels,
        node: Some(node.into()),
        ips: vec![address.into()],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may reach what, from the objects alone.
    fn allows(case: &Case, source: Ipv4Addr, port: u16) -> bool {
        (0..case.policies).any(|p| case.port_of[p] == port && case.peers_of(p).any(|peer| peer == source))
    }

    #[test]
    fn flows_are_what_they_say() {
        for (policies, peers) in [(1, 10), (10, 10), (50, 200)] {
            let case = Case::new(policies, peers);
            let mut random = Random::new(7);
            for _ in 0..200 {
                for flow in [case.allowed(&mut random), case.denied(&mut random)] {
                    assert_eq!(flow.allowed, allows(&case, flow.source, flow.port), "{flow:?}");
                }
            }
        }
    }

    #[test]
    fn the_peers_of_all_policies_are_all_peers() {
        let case = Case::new(7, 100);
        let all: BTreeSet<Ipv4Addr> = (0..7).flat_map(|p| case.peers_of(p)).collect();
        assert_eq!((all.len(), all), (100, case.known.clone()));
    }
}
