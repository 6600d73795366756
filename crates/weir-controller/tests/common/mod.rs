//! An agent as simple as can be: it keeps what it is told, and checks that each thing comes after those that it
//! refers to.
#![allow(unreachable_pub, dead_code, reason = "each test binary is a crate of its own")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use weir_compiler::slice::{Change, Member, NodeSlice, PeerSetId};
use weir_controller::outbox::Outgoing;
use weir_proto::pb::from_controller::What;
use weir_proto::{DigestKey, Item, Items, Key, Mode, Parts, Received, decode, member_sums};

#[derive(Debug, Default, Clone)]
pub struct Agent {
    things: BTreeMap<Key, Change>,
    members: BTreeMap<PeerSetId, BTreeSet<Member>>,
    /// What it was told last.
    pub mode: Option<Mode>,
}

/// What came in one go.
#[derive(Debug, Default)]
pub struct Came {
    pub asked: Option<Vec<u32>>,
    pub changes: usize,
    pub bytes: usize,
    pub versions: Vec<u64>,
    pub ended: bool,
}

impl Agent {
    /// What it has, as a slice.
    pub fn slice(&self) -> NodeSlice {
        let mut slice = NodeSlice::default();
        slice.apply(&self.changes());
        slice
    }

    fn changes(&self) -> Vec<Change> {
        let with_members = |change: &Change| match change {
            Change::PeerSet(id, set, _) => {
                let members: Vec<Member> = self.members.get(id).into_iter().flatten().copied().collect();
                Change::PeerSet(*id, set.clone(), members)
            }
            other => other.clone(),
        };
        self.things.values().map(with_members).collect()
    }

    pub fn items(&self, key: &DigestKey) -> Items {
        let changes = self.changes();
        key.items(&changes, |id, members| member_sums(key, id, members))
    }

    pub fn have(&self, key: &DigestKey) -> Parts {
        let parts = Parts::of(&self.items(key));
        let read = Parts::from_bytes(&parts.to_bytes()).expect("as it was written");
        assert_eq!(read, parts);
        read
    }

    pub fn holdings(&self, key: &DigestKey, have: &Parts, asked: &[u32]) -> HashMap<u128, u128> {
        let items = self.items(key).into_iter().filter(|(name, _)| have.covers(asked, *name));
        items.map(|(name, (digest, _))| (name, digest)).collect()
    }

    /// Reads all that is there; `at` is what it held when the conversation began.
    pub fn read(&mut self, stream: &mut Outgoing, at: &Items, key: &DigestKey) -> Came {
        let mut came = Came::default();
        while let Poll::Ready(next) =
            Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop()))
        {
            match next.map(|message| message.map(|message| message.what)) {
                Some(Ok(Some(What::Welcome(_)))) => {}
                Some(Ok(Some(What::Ask(ask)))) => came.asked = Some(ask.parts),
                Some(Ok(Some(What::Changes(changes)))) => {
                    for bytes in changes.change {
                        came.changes += 1;
                        came.bytes += bytes.len();
                        self.take(decode(&bytes).expect("well formed"), at, key);
                    }
                }
                Some(Ok(Some(What::Commit(commit)))) => came.versions.push(commit.version),
                Some(Ok(None)) => panic!("an empty message"),
                Some(Err(_)) | None => {
                    came.ended = true;
                    break;
                }
            }
        }
        came
    }

    fn take(&mut self, received: Received, at: &Items, key: &DigestKey) {
        match received {
            Received::Put(change) => {
                let (thing, _) = Key::of(&change).expect("not members");
                for needed in needs(&change) {
                    assert!(self.things.contains_key(&needed), "{change:?} comes before {needed:?}");
                }
                self.things.insert(thing, change);
            }
            Received::Members { id, anew, added, removed } => {
                assert!(self.things.contains_key(&Key::PeerSet(id)), "members come before their set");
                let members = self.members.entry(id).or_default();
                if anew {
                    members.clear();
                }
                members.extend(added);
                members.retain(|member| !removed.contains(member));
            }
            Received::Gone(thing) => self.gone(&thing),
            Received::Forget(names) => {
                for name in names {
                    match &at[&name].1 {
                        Item::Thing(thing) => self.gone(thing),
                        Item::Members(id, part) => {
                            if let Some(members) = self.members.get_mut(id) {
                                members.retain(|member| key.member(*id, *member).0 != *part);
                            }
                        }
                    }
                }
            }
            Received::Mode(mode) => self.mode = Some(mode),
            Received::Unknown => panic!("nothing is unknown here"),
        }
    }

    fn gone(&mut self, thing: &Key) {
        self.things.remove(thing);
        if let Key::PeerSet(id) = thing {
            self.members.remove(id);
        }
    }
}

fn needs(change: &Change) -> Vec<Key> {
    match change {
        Change::Rule(_, rule) => {
            let peers = rule.peers.iter().flatten().map(|id| Key::PeerSet(*id));
            peers.chain([Key::PortSet(rule.ports)]).collect()
        }
        Change::Ruleset(_, ruleset) => ruleset.entries.iter().map(|entry| Key::Rule(entry.rule)).collect(),
        Change::Profile(_, profile) => {
            [profile.ingress, profile.egress].into_iter().flatten().map(Key::Ruleset).collect()
        }
        Change::Pod(_, pod) => vec![Key::Profile(pod.profile)],
        _ => Vec::new(),
    }
}
