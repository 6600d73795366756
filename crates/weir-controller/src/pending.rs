//! What an agent has yet to be told: one update per thing, however slow the agent is.
//!
//! ```text
//!   put(key, bytes)   gone(key)   members(set, ...)        from the hub, at each change
//!          └─────────────┴──────────────┘ the last one holds
//!                        v
//!                  take(): referents first, what is gone last          when the agent can take it
//! ```
//!
//! Bytes are encoded once and shared by all agents that wait for them; what one agent costs is a
//! reference per thing in its slice at most, and its own copy of nothing but members that changed twice.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use prost::bytes::Bytes;
use weir_compiler::slice::{Member, PeerSetId};
use weir_proto::{Key, Mode};

/// Members of a set that come and go at once, with how that is encoded.
#[derive(Debug, Default)]
pub struct MemberDelta {
    /// They come.
    pub added: Vec<Member>,
    /// They go.
    pub removed: Vec<Member>,
    /// The same, encoded.
    pub encoded: Vec<Bytes>,
}

/// What is to be told of a set's members.
#[derive(Debug, Default)]
struct Members {
    /// All of them, as they were at a time; the agent forgets what it had.
    anew: Option<Arc<[Bytes]>>,
    /// What changed since.
    since: Since,
}

#[derive(Debug, Default)]
enum Since {
    #[default]
    Nothing,
    /// As it came.
    One(Arc<MemberDelta>),
    /// Put together: whether each is a member.
    Several(BTreeMap<Member, bool>),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pending {
    mode: Option<Mode>,
    forget: HashSet<u128>,
    puts: BTreeMap<Arc<Key>, Bytes>,
    gone: BTreeMap<Arc<Key>, Bytes>,
    members: BTreeMap<PeerSetId, Members>,
    /// There is something to commit, if only that there is nothing to say.
    due: bool,
    version: u64,
    batches: u64,
    since: Option<Instant>,
}

/// What [`Pending::take`] gives: changes in their order, and the version to which they lead.
#[derive(Debug)]
pub struct Taken {
    /// Each an encoded `Change`.
    pub changes: Vec<Bytes>,
    /// Of the hub.
    pub version: u64,
    /// How many batches of the hub are in it.
    pub batches: u64,
    /// When the first change in it was heard of; `None` at the start of a conversation.
    pub since: Option<Instant>,
}

impl Pending {
    /// A thing is new, or changed.
    pub fn put(&mut self, key: &Arc<Key>, encoded: &Bytes) {
        self.gone.remove(key);
        self.puts.insert(key.clone(), encoded.clone());
    }

    /// A thing is gone.
    pub fn gone(&mut self, key: &Arc<Key>, encoded: &Bytes) {
        if let Key::PeerSet(id) = **key {
            self.members.remove(&id);
        }
        self.puts.remove(key);
        self.gone.insert(key.clone(), encoded.clone());
    }

    /// A set has exactly these members.
    pub fn anew(&mut self, id: PeerSetId, encoded: &Arc<[Bytes]>) {
        self.members.insert(id, Members { anew: Some(encoded.clone()), since: Since::Nothing });
    }

    /// Members come and go.
    pub fn members(&mut self, id: PeerSetId, delta: &Arc<MemberDelta>) {
        let since = &mut self.members.entry(id).or_default().since;
        let mut several = match std::mem::take(since) {
            Since::Nothing => {
                *since = Since::One(delta.clone());
                return;
            }
            Since::One(first) => {
                let mut map = BTreeMap::new();
                first.put_into(&mut map);
                map
            }
            Since::Several(map) => map,
        };
        delta.put_into(&mut several);
        *since = Since::Several(several);
    }

    /// The agent holds items that are not there any more.
    pub fn forget(&mut self, items: impl IntoIterator<Item = u128>) {
        self.forget.extend(items);
    }

    /// The mode is this one.
    pub fn mode(&mut self, mode: Mode) {
        self.mode = Some(mode);
    }

    /// All of this belongs to a version of the hub; `since` is when its cause was heard of.
    pub fn commit(&mut self, version: u64, since: Option<Instant>) {
        self.due = true;
        self.version = version;
        self.batches += 1;
        self.since = self.since.or(since);
    }

    /// How many batches of the hub have ever been put in here.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// When the cause of the oldest of it was heard of.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether there is something to take.
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// All of it, in an order in which each change finds what it refers to.
    pub fn take(&mut self) -> Taken {
        let mut changes: Vec<Bytes> = self.mode.take().map(weir_proto::mode).into_iter().collect();
        if !self.forget.is_empty() {
            let mut items: Vec<u128> = self.forget.drain().collect();
            items.sort_unstable();
            changes.push(weir_proto::forget(&items));
        }
        // a set before its members, and both before the rules that refer to it
        let rest = match self.puts.iter().find(|(key, _)| !matches!(***key, Key::PeerSet(_))) {
            Some((first, _)) => {
                let first = first.clone();
                self.puts.split_off(&first)
            }
            None => BTreeMap::new(),
        };
        changes.extend(std::mem::take(&mut self.puts).into_values());
        for (id, members) in std::mem::take(&mut self.members) {
            changes.extend(members.anew.iter().flat_map(|all| all.iter().cloned()));
            match members.since {
                Since::Nothing => {}
                Since::One(delta) => changes.extend(delta.encoded.iter().cloned()),
                Since::Several(map) => {
                    let of = |wanted| {
                        map.iter().filter(|(_, is)| **is == wanted).map(|(m, _)| *m).collect::<Vec<_>>()
                    };
                    changes.extend(weir_proto::members(id, false, &of(true), &of(false)));
                }
            }
        }
        changes.extend(rest.into_values());
        changes.extend(std::mem::take(&mut self.gone).into_values().rev());
        self.due = false;
        Taken { changes, version: self.version, batches: self.batches, since: self.since.take() }
    }
}

impl MemberDelta {
    fn put_into(&self, map: &mut BTreeMap<Member, bool>) {
        map.extend(self.removed.iter().map(|member| (*member, false)));
        map.extend(self.added.iter().map(|member| (*member, true)));
    }
}
