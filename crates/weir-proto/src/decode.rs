//! From bytes to what the agent can use. What this version does not know is told apart from what is wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use prost::Message;
use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{NamedPort, ObjectKey, Protocol};
use weir_compiler::policy::{PeerClause, PolicyClauses, PortClause, RuleClause};
use weir_compiler::ports::PortSet;
use weir_compiler::ranges::{Point, RangeSet};
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::{
    Action, Change, Direction, Effect, Entry, Member, PeerSet, PeerSetId, PortSetId, Profile, ProfileId,
    Rule, RuleId, Ruleset, RulesetId, SlicePod, SlicePolicy, SubjectId, Tier,
};

use crate::{Key, Mode, pb};

/// What one encoded `Change` says.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// A thing is new, or changed. Of a peer set: without members, which are another matter.
    Put(Change),
    /// Members come and go.
    Members {
        /// Of which set.
        id: PeerSetId,
        /// It had none before.
        anew: bool,
        /// They come.
        added: Vec<Member>,
        /// They go.
        removed: Vec<Member>,
    },
    /// A thing is gone.
    Gone(Key),
    /// Items are gone, by their names in digests.
    Forget(Vec<u128>),
    /// This is the mode from now on.
    Mode(Mode),
    /// A newer controller says something that this version does not understand.
    Unknown,
}

/// A message that no controller sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub String);

type Result<T> = std::result::Result<T, Malformed>;

/// Reads one encoded `Change`.
///
/// # Errors
/// It is none. Fields and alternatives of newer protocols are no error: fields are left out, a peer set of an
/// unknown kind matches nobody, a rule of an unknown action denies, a requirement with an unknown operator
/// matches nothing, and [`Received::Unknown`] is the rest.
pub fn decode(bytes: &[u8]) -> Result<Received> {
    use pb::change::What;
    let change = pb::Change::decode(bytes).map_err(|error| Malformed(error.to_string()))?;
    Ok(Received::Put(match change.what {
        None => return Ok(Received::Unknown),
        Some(What::PeerSet(set)) => peer_set(set)?,
        Some(What::PortSet(set)) => {
            Change::PortSet(PortSetId::from_bytes(id(&set.id)?), port_set(set.any, &set.ranges)?)
        }
        Some(What::Rule(rule)) => self::rule(&rule)?,
        Some(What::Ruleset(ruleset)) => self::ruleset(&ruleset)?,
        Some(What::Policy(policy)) => {
            let clauses = PolicyClauses {
                ingress: policy.ingress.map(clauses).transpose()?,
                egress: policy.egress.map(clauses).transpose()?,
            };
            let subject = SubjectId::from_bytes(id(&policy.subject)?);
            Change::Policy(
                object_key(policy.key)?,
                SlicePolicy { subject, audit: policy.audit, clauses: Arc::new(clauses) },
            )
        }
        Some(What::Profile(profile)) => {
            let ruleset = |bytes: &[u8]| match bytes {
                [] => Ok(None),
                bytes => id(bytes).map(|id| Some(RulesetId::from_bytes(id))),
            };
            let content = Profile {
                ingress: ruleset(&profile.ingress)?,
                egress: ruleset(&profile.egress)?,
                audited: [ruleset(&profile.audited_ingress)?, ruleset(&profile.audited_egress)?],
                subjects: profile
                    .subjects
                    .iter()
                    .map(|bytes| id(bytes).map(SubjectId::from_bytes))
                    .collect::<Result<_>>()?,
            };
            Change::Profile(ProfileId::from_bytes(id(&profile.id)?), content)
        }
        Some(What::Pod(pod)) => {
            let state = SlicePod {
                addresses: pod.addresses.iter().map(|octets| address(octets)).collect::<Result<_>>()?,
                profile: ProfileId::from_bytes(id(&pod.profile)?),
                ports: pod.ports.into_iter().map(named_port).collect::<Result<Vec<_>>>()?.into(),
                log_allowed: pod.log_allowed,
            };
            Change::Pod(object_key(pod.key)?, state)
        }
        Some(What::Members(members)) => {
            return Ok(Received::Members {
                id: PeerSetId::from_bytes(id(&members.id)?),
                anew: members.anew,
                added: members.added.map(|list| member_list(&list)).transpose()?.unwrap_or_default(),
                removed: members.removed.map(|list| member_list(&list)).transpose()?.unwrap_or_default(),
            });
        }
        Some(What::Gone(gone)) => return self::gone(gone),
        Some(What::Forget(forget)) => {
            let names = exactly::<16>(&forget.items, "items")?.map(u128::from_be_bytes);
            return Ok(Received::Forget(names.collect()));
        }
        Some(What::Mode(mode)) => {
            return Ok(Mode::from_wire(mode).map_or(Received::Unknown, Received::Mode));
        }
    }))
}

fn wrong(what: impl Into<String>) -> Malformed {
    Malformed(what.into())
}

fn id(bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().map_err(|_| wrong(format!("an identity of {} bytes, not 16", bytes.len())))
}

/// Values of N bytes each.
fn exactly<'a, const N: usize>(bytes: &'a [u8], what: &str) -> Result<impl Iterator<Item = [u8; N]> + 'a> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(wrong(format!("{what}: {} bytes are no multiple of {N}", bytes.len())));
    }
    Ok(chunks.iter().copied())
}

fn object_key(key: Option<pb::Key>) -> Result<ObjectKey> {
    let key = key.ok_or_else(|| wrong("a name is missing"))?;
    Ok(ObjectKey { namespace: key.namespace, name: key.name })
}

fn address(octets: &[u8]) -> Result<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(octets);
    octets
        .map(|octets| Ipv6Addr::from(octets).into())
        .map_err(|_| wrong("an address of neither 4 nor 16 bytes"))
}

fn protocol(number: i32) -> Result<Protocol> {
    match pb::Protocol::try_from(number) {
        Ok(pb::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(pb::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(pb::Protocol::Sctp) => Ok(Protocol::Sctp),
        _ => Err(wrong(format!("protocol {number}"))),
    }
}

fn port(number: u32) -> Result<u16> {
    u16::try_from(number).map_err(|_| wrong(format!("port {number}")))
}

fn range(range: &pb::PortRange) -> Result<(Protocol, u16, u16)> {
    let (first, last) = (port(range.first)?, port(range.last)?);
    if first > last {
        return Err(wrong(format!("ports {first} to {last}")));
    }
    Ok((protocol(range.protocol)?, first, last))
}

fn port_set(any: bool, ranges: &[pb::PortRange]) -> Result<PortSet> {
    if any {
        return Ok(PortSet::Any);
    }
    Ok(PortSet::from_ranges(ranges.iter().map(range).collect::<Result<Vec<_>>>()?))
}

fn named_port(port: pb::NamedPort) -> Result<NamedPort> {
    Ok(NamedPort { name: port.name, protocol: protocol(port.protocol)?, port: self::port(port.port)? })
}

fn ranges<T: Point>(all: impl Iterator<Item = (T, T)>) -> Result<RangeSet<T>> {
    let all: Vec<(T, T)> = all.collect();
    if all.iter().any(|(first, last)| first > last) {
        return Err(wrong("a range of addresses that ends before it begins"));
    }
    Ok(RangeSet::from_ranges(all))
}

fn cidrs(cidrs: &pb::Cidrs) -> Result<Arc<CidrSet>> {
    let v4 = exactly::<8>(&cidrs.v4, "ranges of IPv4 addresses")?;
    let v6 = exactly::<32>(&cidrs.v6, "ranges of IPv6 addresses")?;
    Ok(Arc::new(CidrSet {
        v4: ranges(v4.map(|bytes| {
            let both = u64::from_be_bytes(bytes);
            #[allow(clippy::cast_possible_truncation)] // its halves
            ((both >> 32) as u32, both as u32)
        }))?,
        v6: ranges(v6.map(|bytes| {
            let (first, last) = bytes.split_at(16);
            let number = |half: &[u8]| u128::from_be_bytes(half.try_into().expect("16 of 32"));
            (number(first), number(last))
        }))?,
    }))
}

/// A requirement that nobody can read is met by nobody: nothing has a key with none of all values.
fn selector(selector: Option<pb::Selector>) -> Selector {
    use pb::requirement::Operator;
    let requirements = selector.unwrap_or_default().requirements.into_iter().map(|r| {
        let operator = r.operator();
        let (key, values) = (r.key, r.values.into_iter().collect());
        match operator {
            Operator::In => Requirement::In(key, values),
            Operator::NotIn => Requirement::NotIn(key, values),
            Operator::Exists => Requirement::Exists(key),
            Operator::DoesNotExist => Requirement::DoesNotExist(key),
            Operator::Unspecified => Requirement::In(key, Default::default()),
        }
    });
    requirements.collect()
}

fn peer_set(set: pb::PeerSet) -> Result<Change> {
    use pb::peer_set::What;
    let id = PeerSetId::from_bytes(id(&set.id)?);
    let set = match set.what {
        Some(What::Pods(pods)) => {
            PeerSet::Pods { namespaces: selector(pods.namespaces), pods: selector(pods.pods) }
        }
        Some(What::Cidrs(set)) => PeerSet::Cidrs(cidrs(&set)?),
        Some(What::Endpoints(endpoints)) => PeerSet::Endpoints {
            namespaces: selector(endpoints.namespaces),
            pods: selector(endpoints.pods),
            within: endpoints.within.map(|set| cidrs(&set)).transpose()?,
            name: endpoints.name,
            protocol: protocol(endpoints.protocol)?,
        },
        None => PeerSet::Cidrs(Arc::default()),
    };
    Ok(Change::PeerSet(id, set, Vec::new()))
}

fn rule(rule: &pb::Rule) -> Result<Change> {
    let peers =
        rule.peers.iter().map(|bytes| id(bytes).map(PeerSetId::from_bytes)).collect::<Result<Vec<_>>>()?;
    if rule.any_peer && !peers.is_empty() {
        return Err(wrong("a rule for any peer that names some"));
    }
    let content = Rule {
        action: match rule.action() {
            pb::rule::Action::Accept => Action::Accept,
            pb::rule::Action::Pass => Action::Pass,
            pb::rule::Action::Deny | pb::rule::Action::Unspecified => Action::Deny,
        },
        peers: (!rule.any_peer).then_some(peers),
        ports: PortSetId::from_bytes(id(&rule.ports)?),
    };
    Ok(Change::Rule(RuleId::from_bytes(id(&rule.id)?), content))
}

fn ruleset(ruleset: &pb::Ruleset) -> Result<Change> {
    let entries = ruleset.entries.iter().map(|entry| {
        Ok(Entry {
            tier: match entry.tier() {
                pb::entry::Tier::Admin => Tier::Admin,
                pb::entry::Tier::NetworkPolicy => Tier::NetworkPolicy,
                pb::entry::Tier::Baseline => Tier::Baseline,
                pb::entry::Tier::Unspecified => return Err(wrong(format!("tier {}", entry.tier))),
            },
            priority: entry.priority,
            rule: RuleId::from_bytes(id(&entry.rule)?),
        })
    });
    let content = Ruleset {
        direction: if ruleset.egress { Direction::Egress } else { Direction::Ingress },
        isolated: ruleset.isolated,
        effect: match pb::ruleset::Effect::try_from(ruleset.effect) {
            Ok(pb::ruleset::Effect::Enforce) => Effect::Enforce,
            Ok(pb::ruleset::Effect::WouldDeny) => Effect::WouldDeny,
            Ok(pb::ruleset::Effect::WouldAllow) => Effect::WouldAllow,
            Err(_) => return Err(wrong(format!("effect {}", ruleset.effect))),
        },
        entries: entries.collect::<Result<_>>()?,
    };
    Ok(Change::Ruleset(RulesetId::from_bytes(id(&ruleset.id)?), content))
}

fn clauses(clauses: pb::Clauses) -> Result<Vec<RuleClause>> {
    clauses.rules.into_iter().map(rule_clause).collect()
}

fn rule_clause(clause: pb::RuleClause) -> Result<RuleClause> {
    use pb::{peer_clause, port_clause};
    let peer = |peer: pb::PeerClause| {
        Ok(match peer.what {
            Some(peer_clause::What::Pods(pods)) => {
                PeerClause::Pods { namespaces: selector(pods.namespaces), pods: selector(pods.pods) }
            }
            Some(peer_clause::What::Cidrs(set)) => PeerClause::Cidrs(cidrs(&set)?),
            None => PeerClause::Nothing,
        })
    };
    let port = |port: pb::PortClause| {
        Ok(match port.what {
            Some(port_clause::What::Range(range)) => {
                let (protocol, first, last) = self::range(&range)?;
                PortClause::Range(protocol, first, last)
            }
            Some(port_clause::What::Named(named)) => PortClause::Named(named.name, protocol(named.protocol)?),
            None => PortClause::Nothing,
        })
    };
    Ok(RuleClause {
        peers: clause.peers.map(|all| all.peers.into_iter().map(peer).collect::<Result<_>>()).transpose()?,
        ports: clause.ports.map(|all| all.ports.into_iter().map(port).collect::<Result<_>>()).transpose()?,
    })
}

fn gone(gone: pb::Gone) -> Result<Received> {
    let named = |key| object_key(key);
    Ok(Received::Gone(match gone.kind() {
        pb::Kind::PeerSet => Key::PeerSet(PeerSetId::from_bytes(id(&gone.id)?)),
        pb::Kind::PortSet => Key::PortSet(PortSetId::from_bytes(id(&gone.id)?)),
        pb::Kind::Rule => Key::Rule(RuleId::from_bytes(id(&gone.id)?)),
        pb::Kind::Ruleset => Key::Ruleset(RulesetId::from_bytes(id(&gone.id)?)),
        pb::Kind::Policy => Key::Policy(named(gone.key)?),
        pb::Kind::Profile => Key::Profile(ProfileId::from_bytes(id(&gone.id)?)),
        pb::Kind::Pod => Key::Pod(named(gone.key)?),
        // of a kind that only newer versions have
        pb::Kind::Unspecified => return Ok(Received::Unknown),
    }))
}

fn member_list(list: &pb::MemberList) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    members.extend(exactly::<4>(&list.v4, "IPv4 members")?.map(|a| Member::Address(IpAddr::from(a))));
    members.extend(exactly::<16>(&list.v6, "IPv6 members")?.map(|a| Member::Address(IpAddr::from(a))));
    for bytes in exactly::<7>(&list.endpoints_v4, "IPv4 endpoints")? {
        members.push(endpoint(&bytes)?);
    }
    for bytes in exactly::<19>(&list.endpoints_v6, "IPv6 endpoints")? {
        members.push(endpoint(&bytes)?);
    }
    Ok(members)
}

fn endpoint(bytes: &[u8]) -> Result<Member> {
    let [octets @ .., protocol, high, low] = bytes else {
        return Err(wrong("an endpoint that is too short"));
    };
    let found = Protocol::ALL.into_iter().find(|known| known.number() == *protocol);
    let protocol = found.ok_or_else(|| wrong(format!("IP protocol {protocol} of an endpoint")))?;
    Ok(Member::Endpoint(address(octets)?, protocol, u16::from_be_bytes([*high, *low])))
}
