//! Peer sets in the kernel: one for each peer set of the slice that a chain names, and merged ones,
//! for chains that would have to look through many.
//!
//! ```text
//!   pods_<id>_4        addresses of one peer set              (hash set)
//!   endpoints_<id>_4   address . protocol . port              (hash set)
//!   cidrs_<id>_4       ranges                                 (interval set, never edited)
//! ```
//!
//! A merged set has the same name with an identity made of its parts'. One member more or less of a peer
//! set is one element more or less in each kernel set that it is in, however large they are: for
//! merged sets it is counted how many parts have a member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashMap;
use weir_compiler::cidr::CidrSet;
use weir_compiler::ranges::{Point, RangeSet};
use weir_compiler::slice::{Member, NodeSlice, PeerSet, PeerSetId};
use weir_compiler::union_id;

use crate::change::Edited;
use crate::model::{Bytes, Element, Field, Set, SetDecl};
use crate::rules::{IpFamily, decl};

/// What is in a peer set: sets of different kinds are of different types in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Pods,
    Endpoints,
    Cidrs,
}

impl Kind {
    pub(crate) fn of(set: &PeerSet) -> Kind {
        match set {
            PeerSet::Pods { .. } => Kind::Pods,
            PeerSet::Endpoints { .. } => Kind::Endpoints,
            PeerSet::Cidrs(_) => Kind::Cidrs,
        }
    }

    const ALL: [Kind; 3] = [Kind::Pods, Kind::Endpoints, Kind::Cidrs];

    const fn as_str(self) -> &'static str {
        match self {
            Kind::Pods => "pods",
            Kind::Endpoints => "endpoints",
            Kind::Cidrs => "cidrs",
        }
    }
}

/// Whether a set of this name has peers in it.
pub(crate) fn is_peer_set(name: &str) -> bool {
    parse_name(name).is_some()
}

/// The kind, identity and family of the peer set of this name; `None`: it is not the name of one.
pub(crate) fn parse_name(name: &str) -> Option<(Kind, u128, IpFamily)> {
    let mut parts = name.split('_');
    let kind = parts.next()?;
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind)?;
    let id = parts.next()?;
    let digit = |byte: u8| match byte {
        b'a'..=b'z' => Some(byte - b'a'),
        b'2'..=b'7' => Some(byte - b'2' + 26),
        _ => None,
    };
    let bits = id.bytes().try_fold(0u128, |id, byte| Some(id << 5 | u128::from(digit(byte)?)))?;
    let family = parts.next()?;
    let family = IpFamily::BOTH.into_iter().find(|f| f.suffix() == family)?;
    // of 26 digits, the first has three bits
    let fits = id.len() == 26 && id.as_bytes()[0] <= b'h' && parts.next().is_none();
    fits.then_some((kind, bits, family))
}

/// Peer sets of one kind that are in the kernel as one: one, or several that are merged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Union {
    pub(crate) kind: Kind,
    /// Sorted, without repetition, not empty.
    parts: Vec<PeerSetId>,
}

impl Union {
    pub(crate) fn one(kind: Kind, id: PeerSetId) -> Self {
        Union { kind, parts: vec![id] }
    }

    pub(crate) fn of(kind: Kind, parts: &BTreeSet<PeerSetId>) -> Self {
        Union { kind, parts: parts.iter().copied().collect() }
    }

    fn id(&self) -> PeerSetId {
        match self.parts.as_slice() {
            [one] => *one,
            parts => union_id(parts),
        }
    }

    /// The name of its set of a family.
    pub(crate) fn name(&self, family: IpFamily) -> String {
        format!("{}_{}_{}", self.kind.as_str(), self.id().name(), family.suffix())
    }

    /// CIDRs only: the ranges of all parts.
    pub(crate) fn ranges(&self, slice: &NodeSlice) -> CidrSet {
        CidrSet::union(self.parts.iter().filter_map(|id| match &slice.peer_sets[id].set {
            PeerSet::Cidrs(cidrs) => Some(cidrs.as_ref()),
            PeerSet::Pods { .. } | PeerSet::Endpoints { .. } => None,
        }))
    }
}

/// What the kernel has of a union.
#[derive(Debug)]
struct State {
    /// How many rulesets name it.
    users: usize,
    /// Its sets by family; none of a family without CIDRs, or of one with all of them.
    sets: [Option<String>; 2],
    /// Merged ones: how many parts have the member.
    counts: Option<HashMap<Member, u32>>,
}

/// The peer sets that the table holds, as far as rulesets name them.
#[derive(Debug, Default)]
pub(crate) struct PeerSets {
    unions: BTreeMap<Union, State>,
    /// In which unions a peer set is.
    of: BTreeMap<PeerSetId, BTreeSet<Union>>,
}

impl PeerSets {
    /// A ruleset names it: it is put into the table if it is not there.
    pub(crate) fn retain(&mut self, slice: &NodeSlice, union: &Union, edited: &mut Edited) {
        if let Some(state) = self.unions.get_mut(union) {
            state.users += 1;
            return;
        }
        let mut counts: Option<HashMap<Member, u32>> = (union.parts.len() > 1).then(HashMap::new);
        let mut by_family: [Vec<(Bytes, Element)>; 2] = Default::default();
        for id in &union.parts {
            self.of.entry(*id).or_default().insert(union.clone());
            for member in &slice.peer_sets[id].members {
                if let Some(counts) = &mut counts {
                    let count = counts.entry(*member).or_default();
                    *count += 1;
                    if *count > 1 {
                        continue;
                    }
                }
                let (family, key) = member_key(*member);
                by_family[family as usize].push((key, Element::default()));
            }
        }
        let ranges = (union.kind == Kind::Cidrs).then(|| union.ranges(slice));
        let sets = IpFamily::BOTH.map(|family| {
            let (decl, elements) = match &ranges {
                Some(ranges) => (constant(decl(&[family.field()]), true), cidr_elements(ranges, family)?),
                // A tree that is built from all of its elements takes half of the memory of one that
                // grows with each.
                None => {
                    let elements = std::mem::take(&mut by_family[family as usize]);
                    (member_decl(union.kind, family), elements.into_iter().collect())
                }
            };
            let name = union.name(family);
            edited.put_set(&name, Set { decl, elements });
            Some(name)
        });
        self.unions.insert(union.clone(), State { users: 1, sets, counts });
    }

    /// A ruleset that named it is gone.
    pub(crate) fn release(&mut self, union: &Union, edited: &mut Edited) {
        let state = self.unions.get_mut(union).expect("what is released was retained");
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        state.sets.iter().flatten().for_each(|name| edited.remove_set(name));
        self.unions.remove(union);
        for id in &union.parts {
            let of = self.of.get_mut(id).expect("parts know their unions");
            of.remove(union);
            if of.is_empty() {
                self.of.remove(id);
            }
        }
    }

    /// Members of a peer set come and go.
    pub(crate) fn members(
        &mut self,
        id: PeerSetId,
        added: &[Member],
        removed: &[Member],
        edited: &mut Edited,
    ) {
        for union in self.of.get(&id).into_iter().flatten() {
            let State { sets, counts, .. } =
                self.unions.get_mut(union).expect("parts know unions that are there");
            for member in removed {
                if let Some(counts) = counts {
                    let count = counts.get_mut(member).expect("members are counted");
                    *count -= 1;
                    if *count > 0 {
                        continue;
                    }
                    counts.remove(member);
                }
                let (family, key) = member_key(*member);
                edited.remove_element(set_of(sets, family), key);
            }
            for member in added {
                if let Some(counts) = counts {
                    let count = counts.entry(*member).or_default();
                    *count += 1;
                    if *count > 1 {
                        continue;
                    }
                }
                let (family, key) = member_key(*member);
                edited.put_element(set_of(sets, family), key, Element::default());
            }
        }
    }
}

fn set_of(sets: &[Option<String>; 2], family: IpFamily) -> &str {
    sets[family as usize].as_deref().expect("sets with members are there in both families")
}

fn member_decl(kind: Kind, family: IpFamily) -> SetDecl {
    match kind {
        Kind::Pods | Kind::Cidrs => decl(&[family.field()]),
        Kind::Endpoints => decl(&[family.field(), Field::Proto, Field::Port]),
    }
}

/// A member as the kernel has it.
fn member_key(member: Member) -> (IpFamily, Bytes) {
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
    (family, key)
}

/// An address as the kernel has it.
pub(crate) fn address_key(address: IpAddr) -> (IpFamily, Bytes) {
    match address {
        IpAddr::V4(a) => (IpFamily::V4, a.octets()[..].into()),
        IpAddr::V6(a) => (IpFamily::V6, a.octets()[..].into()),
    }
}

/// Ranges of a family. `None`: no set is needed, for it would have nothing, or everything, in it.
fn cidr_elements(cidrs: &CidrSet, family: IpFamily) -> Option<BTreeMap<Bytes, Element>> {
    match family {
        IpFamily::V4 => intervals(&cidrs.v4, |a| a.to_be_bytes()[..].into()),
        IpFamily::V6 => intervals(&cidrs.v6, |a| a.to_be_bytes()[..].into()),
    }
}

/// A set's ranges as elements; `None` if there are none, or if it is everything.
pub(crate) fn intervals<T: Point>(
    ranges: &RangeSet<T>,
    key: impl Fn(T) -> Bytes,
) -> Option<BTreeMap<Bytes, Element>> {
    let element =
        |&(first, last): &(T, T)| (key(first), Element { last: Some(key(last)), ..Element::default() });
    (!ranges.is_empty() && !ranges.is_all()).then(|| ranges.ranges().iter().map(element).collect())
}

pub(crate) fn constant(decl: SetDecl, interval: bool) -> SetDecl {
    SetDecl { constant: true, interval, ..decl }
}
