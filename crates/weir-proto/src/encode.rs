//! From the compiler's changes to bytes. Equal changes give equal bytes: digests are made of them.

use std::net::IpAddr;

use prost::Message;
use prost::bytes::Bytes;
use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{NamedPort, ObjectKey, Protocol};
use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::ports::PortSet;
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::{
    Action, Change, Direction, Effect, Member, PeerSet, PeerSetId, SlicePolicy, Tier,
};

use crate::{Key, Mode, pb};
use pb::change::What;

/// So many members are in one change at most: 76 KB of the longest kind.
const MEMBERS: usize = 4096;

/// A change as one encoded `Change`. Of a peer set without its members, see [`members`].
///
/// # Panics
/// For [`Change::Members`], which may take more than one.
pub fn change(change: &Change) -> Bytes {
    let what = match change {
        Change::PeerSet(id, set, _) => What::PeerSet(peer_set(id, set)),
        Change::PortSet(id, ports) => What::PortSet(port_set(id.as_bytes(), ports)),
        Change::Rule(id, rule) => What::Rule(pb::Rule {
            id: id.as_bytes().to_vec(),
            action: match rule.action {
                Action::Accept => pb::rule::Action::Accept,
                Action::Deny => pb::rule::Action::Deny,
                Action::Pass => pb::rule::Action::Pass,
            }
            .into(),
            any_peer: rule.peers.is_none(),
            peers: rule.peers.iter().flatten().map(|id| id.as_bytes().to_vec()).collect(),
            ports: rule.ports.as_bytes().to_vec(),
        }),
        Change::Ruleset(id, ruleset) => What::Ruleset(pb::Ruleset {
            id: id.as_bytes().to_vec(),
            egress: ruleset.direction == Direction::Egress,
            isolated: ruleset.isolated,
            effect: match ruleset.effect {
                Effect::Enforce => pb::ruleset::Effect::Enforce,
                Effect::WouldDeny => pb::ruleset::Effect::WouldDeny,
                Effect::WouldAllow => pb::ruleset::Effect::WouldAllow,
            }
            .into(),
            entries: ruleset
                .entries
                .iter()
                .map(|entry| pb::Entry {
                    tier: match entry.tier {
                        Tier::Admin => pb::entry::Tier::Admin,
                        Tier::NetworkPolicy => pb::entry::Tier::NetworkPolicy,
                        Tier::Baseline => pb::entry::Tier::Baseline,
                    }
                    .into(),
                    priority: entry.priority,
                    rule: entry.rule.as_bytes().to_vec(),
                })
                .collect(),
        }),
        Change::Policy(key, policy) => What::Policy(self::policy(key, policy)),
        Change::Profile(id, profile) => What::Profile(pb::Profile {
            id: id.as_bytes().to_vec(),
            ingress: profile.ingress.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            egress: profile.egress.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            audited_ingress: profile.audited[0].map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            audited_egress: profile.audited[1].map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            subjects: profile.subjects.iter().map(|id| id.as_bytes().to_vec()).collect(),
        }),
        Change::Pod(key, pod) => What::Pod(pb::Pod {
            key: Some(object_key(key)),
            addresses: pod.addresses.iter().map(|address| octets(*address)).collect(),
            profile: pod.profile.as_bytes().to_vec(),
            ports: pod.ports.iter().map(named_port).collect(),
            log_allowed: pod.log_allowed,
        }),
        Change::Members { .. } => panic!("members are encoded by `members`"),
        _ => return gone(&Key::of(change).expect("all others are about one thing").0),
    };
    encoded(what)
}

/// That a thing is gone.
pub fn gone(key: &Key) -> Bytes {
    let (id, name) = match key.parts() {
        Ok(id) => (id.to_vec(), None),
        Err(key) => (Vec::new(), Some(object_key(key))),
    };
    encoded(What::Gone(pb::Gone { kind: key.kind().into(), id, key: name }))
}

/// Members that come and go, in as many encoded changes as it takes. `anew`: the set has none before.
pub fn members(id: PeerSetId, anew: bool, added: &[Member], removed: &[Member]) -> Vec<Bytes> {
    let one = |anew, added, removed| {
        let lists = [added, removed].map(|list: &[Member]| (!list.is_empty()).then(|| member_list(list)));
        let [added, removed] = lists;
        encoded(What::Members(pb::Members { id: id.as_bytes().to_vec(), anew, added, removed }))
    };
    let mut all = Vec::new();
    if anew && added.is_empty() {
        all.push(one(true, &[], &[]));
    }
    for (i, part) in added.chunks(MEMBERS).enumerate() {
        all.push(one(anew && i == 0, part, &[]));
    }
    for part in removed.chunks(MEMBERS) {
        all.push(one(false, &[], part));
    }
    all
}

/// That items are gone, by their names in digests.
pub fn forget(items: &[u128]) -> Bytes {
    encoded(What::Forget(pb::Forget { items: items.iter().flat_map(|name| name.to_be_bytes()).collect() }))
}

/// That this is the mode from now on.
pub fn mode(mode: Mode) -> Bytes {
    encoded(What::Mode(mode.to_wire().into()))
}

fn encoded(what: What) -> Bytes {
    pb::Change { what: Some(what) }.encode_to_vec().into()
}

fn peer_set(id: &PeerSetId, set: &PeerSet) -> pb::PeerSet {
    use pb::peer_set::What;
    let what = match set {
        PeerSet::Pods { namespaces, pods } => What::Pods(pods_of(namespaces, pods)),
        PeerSet::Cidrs(set) => What::Cidrs(cidrs(set)),
        PeerSet::Endpoints { namespaces, pods, within, name, protocol } => What::Endpoints(pb::Endpoints {
            namespaces: Some(selector(namespaces)),
            pods: Some(selector(pods)),
            within: within.as_deref().map(cidrs),
            name: name.clone(),
            protocol: self::protocol(*protocol),
        }),
    };
    pb::PeerSet { id: id.as_bytes().to_vec(), what: Some(what) }
}

fn pods_of(namespaces: &Selector, pods: &Selector) -> pb::Pods {
    pb::Pods { namespaces: Some(selector(namespaces)), pods: Some(selector(pods)) }
}

fn selector(selector: &Selector) -> pb::Selector {
    use pb::requirement::Operator;
    let one = |key: &str, operator: Operator, values: Vec<String>| pb::Requirement {
        key: key.to_owned(),
        operator: operator.into(),
        values,
    };
    let requirements = selector.requirements().map(|requirement| match requirement {
        Requirement::In(key, values) => one(key, Operator::In, values.iter().cloned().collect()),
        Requirement::NotIn(key, values) => one(key, Operator::NotIn, values.iter().cloned().collect()),
        Requirement::Exists(key) => one(key, Operator::Exists, Vec::new()),
        Requirement::DoesNotExist(key) => one(key, Operator::DoesNotExist, Vec::new()),
    });
    pb::Selector { requirements: requirements.collect() }
}

fn cidrs(set: &CidrSet) -> pb::Cidrs {
    pb::Cidrs {
        v4: set.v4.ranges().iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()]).flatten().collect(),
        v6: set.v6.ranges().iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()]).flatten().collect(),
    }
}

pub(crate) fn protocol(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Tcp => pb::Protocol::Tcp,
        Protocol::Udp => pb::Protocol::Udp,
        Protocol::Sctp => pb::Protocol::Sctp,
    }
    .into()
}

fn range(protocol: Protocol, first: u16, last: u16) -> pb::PortRange {
    pb::PortRange { protocol: self::protocol(protocol), first: first.into(), last: last.into() }
}

fn port_set(id: &[u8; 16], ports: &PortSet) -> pb::PortSet {
    let (any, ranges) = match ports {
        PortSet::Any => (true, Vec::new()),
        PortSet::Ports(sets) => {
            let by_protocol = Protocol::ALL.into_iter().zip(sets);
            let ranges =
                by_protocol.flat_map(|(p, set)| set.ranges().iter().map(move |(a, b)| range(p, *a, *b)));
            (false, ranges.collect())
        }
    };
    pb::PortSet { id: id.to_vec(), any, ranges }
}

fn policy(key: &ObjectKey, policy: &SlicePolicy) -> pb::Policy {
    let direction = |rules: &Option<Vec<RuleClause>>| {
        rules.as_ref().map(|rules| pb::Clauses { rules: rules.iter().map(rule_clause).collect() })
    };
    pb::Policy {
        key: Some(object_key(key)),
        subject: policy.subject.as_bytes().to_vec(),
        audit: policy.audit,
        ingress: direction(&policy.clauses.ingress),
        egress: direction(&policy.clauses.egress),
    }
}

fn rule_clause(clause: &RuleClause) -> pb::RuleClause {
    use pb::{peer_clause, port_clause};
    let peer = |peer: &PeerClause| pb::PeerClause {
        what: match peer {
            PeerClause::Pods { namespaces, pods } => Some(peer_clause::What::Pods(pods_of(namespaces, pods))),
            PeerClause::Cidrs(set) => Some(peer_clause::What::Cidrs(cidrs(set))),
            PeerClause::Nothing => None,
        },
    };
    let port = |port: &PortClause| pb::PortClause {
        what: match port {
            PortClause::Range(protocol, first, last) => {
                Some(port_clause::What::Range(range(*protocol, *first, *last)))
            }
            PortClause::Named(name, protocol) => Some(port_clause::What::Named(pb::NamedPort {
                name: name.clone(),
                protocol: self::protocol(*protocol),
                port: 0,
            })),
            PortClause::Nothing => None,
        },
    };
    pb::RuleClause {
        peers: clause.peers.as_ref().map(|all| pb::PeerClauses { peers: all.iter().map(peer).collect() }),
        ports: clause.ports.as_ref().map(|all| pb::PortClauses { ports: all.iter().map(port).collect() }),
    }
}

fn named_port(port: &NamedPort) -> pb::NamedPort {
    pb::NamedPort { name: port.name.clone(), protocol: protocol(port.protocol), port: port.port.into() }
}

fn object_key(key: &ObjectKey) -> pb::Key {
    pb::Key { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn member_list(members: &[Member]) -> pb::MemberList {
    let mut list = pb::MemberList::default();
    for member in members {
        match member {
            Member::Address(IpAddr::V4(address)) => list.v4.extend(address.octets()),
            Member::Address(IpAddr::V6(address)) => list.v6.extend(address.octets()),
            Member::Endpoint(address, protocol, port) => {
                let to = if address.is_ipv4() { &mut list.endpoints_v4 } else { &mut list.endpoints_v6 };
                match address {
                    IpAddr::V4(address) => to.extend(address.octets()),
                    IpAddr::V6(address) => to.extend(address.octets()),
                }
                to.push(protocol.number());
                to.extend(port.to_be_bytes());
            }
        }
    }
    list
}
