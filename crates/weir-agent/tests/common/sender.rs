//! A controller's side of the protocol, as its rules have it.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use std::collections::{BTreeMap, BTreeSet};

use weir_compiler::slice::{Change, Member, NodeSlice, PeerSetId};
use weir_proto::{DigestKey, Item, Items, Key, Parts, member_sums};

pub type Encoded = Vec<Vec<u8>>;

/// These changes one after the other.
pub fn encoded(changes: &[Change]) -> Encoded {
    let mut all = Encoded::new();
    for change in changes {
        match change {
            Change::Members { id, added, removed } => members(&mut all, *id, false, added, removed),
            Change::PeerSet(id, _, members) => {
                all.push(weir_proto::change(change).to_vec());
                self::members(&mut all, *id, true, members, &[]);
            }
            change => all.push(weir_proto::change(change).to_vec()),
        }
    }
    all
}

fn members(all: &mut Encoded, id: PeerSetId, anew: bool, added: &[Member], removed: &[Member]) {
    all.extend(weir_proto::members(id, anew, added, removed).into_iter().map(|bytes| bytes.to_vec()));
}

/// What remains to be said if of each thing and each member the last word counts: as a controller has it for
/// an agent that is slow.
pub fn coalesced(deltas: &[Vec<Change>]) -> Encoded {
    let mut things: BTreeMap<Key, &Change> = BTreeMap::new();
    let mut sets: BTreeMap<PeerSetId, (bool, BTreeMap<Member, bool>)> = BTreeMap::new();
    for change in deltas.iter().flatten() {
        if let Some((key, _)) = Key::of(change) {
            things.insert(key, change);
        }
        match change {
            Change::PeerSet(id, _, members) => {
                let members = members.iter().map(|member| (*member, true)).collect();
                sets.insert(*id, (true, members));
            }
            Change::PeerSetGone(id) => drop(sets.remove(id)),
            Change::Members { id, added, removed } => {
                let (_, members) = sets.entry(*id).or_default();
                members.extend(removed.iter().map(|member| (*member, false)));
                members.extend(added.iter().map(|member| (*member, true)));
            }
            _ => {}
        }
    }
    let mut all: Encoded = things.values().map(|change| weir_proto::change(change).to_vec()).collect();
    for (id, (anew, changed)) in sets {
        let of = |is_in| changed.iter().filter(|(_, i)| **i == is_in).map(|(m, _)| *m).collect::<Vec<_>>();
        members(&mut all, id, anew, &of(true), &of(false));
    }
    all
}

/// The items of a slice.
pub fn items(key: &DigestKey, slice: &NodeSlice) -> Items {
    key.items(&slice.changes(), |id, members| member_sums(key, id, members))
}

/// The whole exchange after a reconnect: what must be sent to who holds `held`.
pub fn resume(key: &DigestKey, held: &Items, slice: &NodeSlice) -> Encoded {
    let parts = Parts::from_bytes(&Parts::of(held).to_bytes()).expect("they are as they must be");
    let ours = items(key, slice);
    let asked = parts.different(&ours);
    let theirs: BTreeMap<u128, u128> =
        held.iter().filter(|(name, _)| parts.covers(&asked, **name)).map(|(n, (d, _))| (*n, *d)).collect();
    let mut forget = BTreeSet::new();
    let mut send = Vec::new();
    for (name, digest) in &theirs {
        match ours.get(name) {
            None => drop(forget.insert(*name)),
            Some((own, Item::Members(..))) if own != digest => drop(forget.insert(*name)),
            Some(_) => {}
        }
    }
    for (name, (digest, item)) in &ours {
        if parts.covers(&asked, *name) && theirs.get(name) != Some(digest) {
            send.push(item.clone());
        }
    }
    let mut all = Encoded::new();
    if !forget.is_empty() {
        all.push(weir_proto::forget(&forget.into_iter().collect::<Vec<_>>()).to_vec());
    }
    let things: BTreeMap<Key, Change> =
        slice.changes().into_iter().filter_map(|change| Some((Key::of(&change)?.0, change))).collect();
    for item in send {
        match item {
            Item::Thing(key) => all.push(weir_proto::change(&things[&key]).to_vec()),
            Item::Members(id, part) => {
                let of = slice.peer_sets[&id].members.iter().copied();
                let of: Vec<Member> = of.filter(|member| key.member(id, *member).0 == part).collect();
                members(&mut all, id, false, &of, &[]);
            }
        }
    }
    all
}
