//! Random clusters, and a naive model of what their policies mean.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own and uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use weir_compiler::object::*;

/// So many cases, or PROPTEST_CASES (`./dev soak` sets it).
pub fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

/// The objects that are there, by key: what a source has told last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct World {
    pub namespaces: BTreeMap<String, Namespace>,
    pub pods: BTreeMap<ObjectKey, Pod>,
    pub policies: BTreeMap<ObjectKey, Policy>,
}

impl World {
    pub fn apply(&mut self, event: &Event) {
        match event.clone() {
            Event::Namespace(ns) => drop(self.namespaces.insert(ns.name.clone(), ns)),
            Event::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            Event::Pod(pod) => drop(self.pods.insert(pod.key.clone(), pod)),
            Event::PodGone(key) => drop(self.pods.remove(&key)),
            Event::Policy(policy) => drop(self.policies.insert(policy.key(), policy)),
            Event::PolicyGone(key) => drop(self.policies.remove(&key)),
        }
    }

    pub fn events(&self) -> Vec<Event> {
        let namespaces = self.namespaces.values().cloned().map(Event::Namespace);
        let pods = self.pods.values().cloned().map(Event::Pod);
        let policies = self.policies.values().cloned().map(Event::Policy);
        namespaces.chain(pods).chain(policies).collect()
    }

    fn labels_of_namespace(&self, name: &str) -> Labels {
        let mut labels = self.namespaces.get(name).map(|ns| ns.labels.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        labels
    }

    /// The pod that an address belongs to (N70, N75, N77).
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        let live = self.pods.values().filter(|p| !p.host_network && !p.finished && p.ips.contains(&address));
        live.max_by_key(|p| (!p.terminating, p.created, p.uid.clone(), p.key.clone()))
    }

    /// Whether the policies of the pod let this new connection pass: straight from the statements.
    pub fn allows(&self, pod: &Pod, ingress: bool, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        if pod.ips.iter().any(|ip| *ip == peer && self.owner(*ip).map(|p| &p.key) == Some(&pod.key)) {
            return true;
        }
        let mut isolated = false;
        let mut allowed = false;
        for policy in self.policies.values() {
            if policy.namespace != pod.key.namespace || !selects(&policy.spec.pod_selector, &pod.labels) {
                continue;
            }
            let types = &policy.spec.policy_types;
            let is = if types.is_empty() {
                ingress || !policy.spec.egress.is_empty()
            } else {
                types.iter().any(|t| t == if ingress { "Ingress" } else { "Egress" })
            };
            if !is {
                continue;
            }
            isolated = true;
            let rules: Vec<(&[Peer], &[PolicyPort])> = if ingress {
                policy.spec.ingress.iter().map(|r| (r.from.as_slice(), r.ports.as_slice())).collect()
            } else {
                policy.spec.egress.iter().map(|r| (r.to.as_slice(), r.ports.as_slice())).collect()
            };
            for (peers, ports) in rules {
                let peer_ok = peers.is_empty() || peers.iter().any(|p| self.is_peer(policy, p, peer));
                let named_on = if ingress { Some(pod) } else { self.owner(peer) };
                let port_ok = ports.is_empty() || ports.iter().any(|p| is_port(p, protocol, port, named_on));
                allowed |= peer_ok && port_ok;
            }
        }
        !isolated || allowed
    }

    fn is_peer(&self, policy: &Policy, peer: &Peer, address: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            return in_cidr(&block.cidr, address) && !block.except.iter().any(|e| in_cidr(e, address));
        }
        let Some(pod) = self.owner(address) else { return false };
        let namespace_ok = match &peer.namespace_selector {
            None => pod.key.namespace == policy.namespace,
            Some(s) => selects(s, &self.labels_of_namespace(&pod.key.namespace)),
        };
        namespace_ok && peer.pod_selector.as_ref().is_none_or(|s| selects(s, &pod.labels))
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().all(|r| {
            let value = labels.get(&r.key);
            match r.operator.as_str() {
                "In" => value.is_some_and(|v| r.values.contains(v)),
                "NotIn" => !value.is_some_and(|v| r.values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => unreachable!("{other} is not generated"),
            }
        })
}

fn is_port(port: &PolicyPort, protocol: Protocol, number: u16, named_on: Option<&Pod>) -> bool {
    if port.protocol.as_deref().unwrap_or("TCP") != protocol.as_str() {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(PortRef::Number(n)), end) => (*n..=end.unwrap_or(*n)).contains(&i64::from(number)),
        (Some(PortRef::Name(name)), _) => named_on.is_some_and(|pod| {
            pod.ports.iter().any(|p| p.name == *name && p.protocol == protocol && p.port == number)
        }),
    }
}

/// Bit by bit, of texts that Rust reads as Go does.
fn in_cidr(cidr: &str, address: IpAddr) -> bool {
    let (net, len) = cidr.split_once('/').unwrap();
    let len: usize = len.parse().unwrap();
    let bits = |a: IpAddr| -> Vec<bool> {
        let bytes = match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.iter().flat_map(|b| (0..8).map(move |i| b >> (7 - i) & 1 == 1)).collect()
    };
    let (net, address) = (bits(net.parse().unwrap()), bits(address));
    net.len() == address.len() && net[..len] == address[..len]
}

pub const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "fd00::1", "fd00::2", "fd00::1:1", "192.0.2.1"];

pub fn addresses() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.iter().map(|a| a.parse().unwrap())
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(prop_oneof![Just("x".to_owned()), Just("y".to_owned())], "[uv]", 0..3)
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let requirement = (
        prop_oneof![Just("x"), Just("y")],
        prop_oneof![Just("In"), Just("NotIn"), Just("Exists"), Just("DoesNotExist")],
        proptest::collection::vec("[uvw]", 1..3),
    )
        .prop_map(|(key, operator, values)| LabelRequirement {
            key: key.into(),
            operator: operator.into(),
            values: if operator.ends_with("In") { values } else { vec![] },
            ..Default::default()
        });
    let expressions = prop_oneof![2 => Just(vec![]), 1 => proptest::collection::vec(requirement, 1..3)];
    (prop_oneof![1 => Just(Labels::new()), 2 => labels()], expressions).prop_map(
        |(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
            ..Default::default()
        },
    )
}

fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    let by_name = prop::sample::select(&NAMESPACES[..]).prop_map(|n| LabelSelector {
        match_labels: [("kubernetes.io/metadata.name".to_owned(), n.to_owned())].into(),
        ..Default::default()
    });
    prop_oneof![selector(), by_name]
}

fn ip_block() -> impl Strategy<Value = IpBlock> {
    prop_oneof![
        Just(("10.0.0.0/8", vec![])),
        Just(("10.0.0.0/8", vec!["10.0.0.0/16"])),
        Just(("10.0.0.0/16", vec!["10.0.0.1/32", "10.0.1.0/24"])),
        Just(("0.0.0.0/0", vec!["10.0.0.0/31"])),
        Just(("::/0", vec![])),
        Just(("fd00::/64", vec!["fd00::1:0/112"])),
        Just(("10.0.0.2/32", vec![])),
    ]
    .prop_map(|(cidr, except)| IpBlock {
        cidr: cidr.into(),
        except: except.into_iter().map(Into::into).collect(),
        ..Default::default()
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        selector().prop_map(|s| Peer { pod_selector: Some(s), ..Default::default() }),
        namespace_selector().prop_map(|s| Peer { namespace_selector: Some(s), ..Default::default() }),
        (namespace_selector(), selector()).prop_map(|(n, p)| Peer {
            namespace_selector: Some(n),
            pod_selector: Some(p),
            ..Default::default()
        }),
        ip_block().prop_map(|b| Peer { ip_block: Some(b), ..Default::default() }),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    let protocol = prop_oneof![
        Just(None),
        Just(Some("TCP".to_owned())),
        Just(Some("UDP".to_owned())),
        Just(Some("SCTP".to_owned()))
    ];
    let port = prop_oneof![
        Just((None, None)),
        (78i64..84).prop_map(|p| (Some(PortRef::Number(p)), None)),
        (78i64..84, 0i64..4).prop_map(|(p, n)| (Some(PortRef::Number(p)), Some(p + n))),
        "web|dns".prop_map(|n| (Some(PortRef::Name(n)), None)),
    ];
    (protocol, port).prop_map(|(protocol, (port, end_port))| PolicyPort {
        protocol,
        port,
        end_port,
        ..Default::default()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let rule = || (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(policy_port(), 0..3));
    let types = prop_oneof![
        Just(vec![]),
        Just(vec!["Ingress"]),
        Just(vec!["Egress"]),
        Just(vec!["Ingress", "Egress"]),
        Just(vec!["Ingress", "Ingress"]),
    ];
    (
        prop::sample::select(&NAMESPACES[..]),
        "p[1-4]",
        selector(),
        types,
        proptest::collection::vec(rule(), 0..3),
        proptest::collection::vec(rule(), 0..3),
    )
        .prop_map(|(namespace, name, pod_selector, types, ingress, egress)| Policy {
            namespace: namespace.into(),
            name,
            spec: PolicySpec {
                pod_selector,
                policy_types: types.into_iter().map(Into::into).collect(),
                ingress: ingress
                    .into_iter()
                    .map(|(from, ports)| IngressRule { from, ports, ..Default::default() })
                    .collect(),
                egress: egress
                    .into_iter()
                    .map(|(to, ports)| EgressRule { to, ports, ..Default::default() })
                    .collect(),
                ..Default::default()
            },
        })
}

pub fn pod_key() -> impl Strategy<Value = ObjectKey> {
    (prop::sample::select(&NAMESPACES[..]), "[pqrst]").prop_map(|(ns, name)| ObjectKey::new(ns, name))
}

fn pod() -> impl Strategy<Value = Pod> {
    let ports = (prop_oneof![Just("web"), Just("dns")], prop::sample::select(&Protocol::ALL[..]), 79u16..82)
        .prop_map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port });
    (
        pod_key(),
        labels(),
        prop::option::weighted(0.9, prop::sample::select(&NODES[..])),
        proptest::collection::btree_set(prop::sample::select(&ADDRESSES[..]), 0..3),
        (0u8..12, 0i64..3),
        proptest::collection::vec(ports, 0..3),
    )
        .prop_map(|(key, labels, node, ips, (state, created), ports)| Pod {
            uid: key.to_string(),
            key,
            labels,
            node: node.map(Into::into),
            ips: ips
                .into_iter()
                .map(|a| a.parse().unwrap())
                .collect::<BTreeSet<IpAddr>>()
                .into_iter()
                .collect(),
            host_network: state == 0,
            finished: state == 1,
            terminating: state == 2,
            created,
            ports,
        })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (prop::sample::select(&NAMESPACES[..]), labels()).prop_map(|(name, labels)| Namespace {
        name: name.into(),
        labels,
        terminating: false, // N79 has tests of its own
    })
}

pub fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => pod().prop_map(Event::Pod),
        1 => pod_key().prop_map(Event::PodGone),
        4 => policy().prop_map(Event::Policy),
        1 => (prop::sample::select(&NAMESPACES[..]), "p[1-4]")
            .prop_map(|(ns, name)| Event::PolicyGone(ObjectKey::new(ns, name))),
        2 => namespace().prop_map(Event::Namespace),
        1 => prop::sample::select(&NAMESPACES[..]).prop_map(|n| Event::NamespaceGone(n.into())),
    ]
}

/// Events in batches.
pub fn batches(max: usize) -> impl Strategy<Value = Vec<Vec<Event>>> {
    proptest::collection::vec(proptest::collection::vec(event(), 1..5), 1..max)
}
