//! Random clusters, and an oracle that knows what their policies mean.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own and uses a part")]

pub mod oracle;
pub mod random;

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
    /// Policies whose objects are gone, but not the pods of their terminating namespace (N79).
    pub orphans: BTreeMap<ObjectKey, Policy>,
}

impl World {
    pub fn apply(&mut self, event: &Event) {
        match event.clone() {
            Event::Namespace(ns) => drop(self.namespaces.insert(ns.name.clone(), ns)),
            Event::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            Event::Pod(pod) => drop(self.pods.insert(pod.key.clone(), pod)),
            Event::PodGone(key) => drop(self.pods.remove(&key)),
            Event::Policy(policy) => {
                self.orphans.remove(&policy.key());
                self.policies.insert(policy.key(), policy);
            }
            Event::PolicyGone(key) => {
                if let Some(policy) = self.policies.remove(&key) {
                    self.orphans.insert(key, policy);
                }
            }
        }
        let kept: Vec<_> = self.orphans.keys().filter(|k| self.is_draining(&k.namespace)).cloned().collect();
        self.orphans.retain(|key, _| kept.contains(key));
    }

    /// The objects that are there, in some order, and then what it takes to bring orphans about (N79).
    pub fn events(&self) -> Vec<Event> {
        let namespaces = self.namespaces.values().cloned().map(Event::Namespace);
        let pods = self.pods.values().cloned().map(Event::Pod);
        let policies = self.all_policies().cloned().map(Event::Policy);
        namespaces.chain(pods).chain(policies).collect()
    }

    /// What comes after [`World::events`], which may be in any order.
    pub fn epilogue(&self) -> Vec<Event> {
        self.orphans.keys().cloned().map(Event::PolicyGone).collect()
    }

    /// Those that are there, and those that outlive their objects (N79).
    pub fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().chain(self.orphans.values())
    }

    /// Those of them that are not audited (U29).
    pub fn policies_in_force(&self) -> impl Iterator<Item = &Policy> {
        self.all_policies().filter(|policy| policy.audit.as_deref() != Some("true"))
    }

    /// As it would be if the policies that are audited were enforced (U29).
    pub fn with_audited(&self) -> World {
        let mut world = self.clone();
        let policies = world.policies.values_mut().chain(world.orphans.values_mut());
        policies.for_each(|policy| policy.audit = None);
        world
    }

    /// The pod that an address belongs to (N70, N75, N77).
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        oracle::owner(self, address)
    }

    /// Whether the policies of the pod let this new connection pass.
    pub fn allows(&self, pod: &Pod, ingress: bool, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        oracle::allows(self, pod, ingress, peer, oracle::Traffic::Port(protocol, port))
    }

    /// A namespace that is being deleted and still has pods (N70, N75, N79).
    fn is_draining(&self, namespace: &str) -> bool {
        let is_there = |p: &Pod| p.key.namespace == namespace && !p.host_network && !p.finished;
        self.namespaces.get(namespace).is_some_and(|ns| ns.terminating) && self.pods.values().any(is_there)
    }
}

pub const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "fd00::1", "fd00::2", "fd00::1:1", "192.0.2.1"];

/// A pod that is there and nothing more: on node `n`, without labels and ports.
pub fn plain_pod(key: ObjectKey, address: &str) -> Pod {
    Pod {
        key,
        uid: String::new(),
        labels: Labels::new(),
        node: Some("n".into()),
        ips: vec![address.parse().unwrap()],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: vec![],
    }
}

pub fn addresses() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.iter().map(|a| a.parse().unwrap())
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(prop_oneof![Just("x".to_owned()), Just("y".to_owned())], "[uv]", 0..3)
        .prop_map(Labels::from)
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

fn plain_policy() -> impl Strategy<Value = Policy> {
    let rule = || (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(policy_port(), 0..3));
    let types = prop_oneof![
        Just(vec![]),
        Just(vec!["Ingress"]),
        Just(vec!["Egress"]),
        Just(vec!["Ingress", "Egress"]),
        Just(vec!["Ingress", "Ingress"]),
    ];
    let audit = prop_oneof![5 => Just(None), 3 => Just(Some("true")), 1 => Just(Some("false"))];
    (
        (prop::sample::select(&NAMESPACES[..]), "p[1-4]", audit, 0i64..3),
        selector(),
        types,
        proptest::collection::vec(rule(), 0..3),
        proptest::collection::vec(rule(), 0..3),
    )
        .prop_map(|((namespace, name, audit, created), pod_selector, types, ingress, egress)| Policy {
            namespace: namespace.into(),
            name,
            created,
            audit: audit.map(str::to_owned),
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

/// Most have what an API server takes, and shrink well; the others have all sorts of corners.
fn policy() -> impl Strategy<Value = Policy> {
    let odd = (prop::sample::select(&NAMESPACES[..]), "p[1-4]", any::<u64>())
        .prop_map(|(namespace, name, seed)| random::Random::new(seed).policy(namespace, &name));
    prop_oneof![2 => plain_policy(), 1 => odd]
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
    let log_allowed = prop_oneof![3 => Just(0), 1 => prop::sample::select(&[1, 2, 100][..])];
    (prop::sample::select(&NAMESPACES[..]), labels(), prop::bool::weighted(0.2), log_allowed).prop_map(
        |(name, labels, terminating, log_allowed)| Namespace {
            name: name.into(),
            labels,
            terminating,
            log_allowed,
        },
    )
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
