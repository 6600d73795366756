//! The one that knows: the compiler, and what each connected agent has yet to be told.
//!
//! ```text
//!   objects ──> Compiler ──deltas──> Encoder ──> Pending of each session whose node it concerns
//!   Have, Holdings ──compared with the node's slice──> Pending of that session
//! ```
//!
//! Synchronous, and without a clock or a network: [`crate::run`] drives it in a thread of its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;
use tonic::Status;
use weir_compiler::object::Event;
use weir_compiler::slice::{Change, Member, PeerSetId};
use weir_compiler::{Budgets, Compiler, Deltas, Scope};
use weir_proto::pb::{Ask, from_controller::What};
use weir_proto::{DigestKey, Item, Items, Key, Mode, Parts};

use crate::encoder::Encoder;
use crate::outbox::Outbox;
use crate::pending::MemberDelta;

/// So many conversations for one node: an agent, its successor, and one that nobody has missed yet.
const PER_NODE: usize = 3;

/// Of the members in one part of a set: how many there are, and the sum of their digests.
type Sums = BTreeMap<u8, (usize, u128)>;

/// See the module.
#[derive(Debug)]
pub struct Hub {
    compiler: Compiler,
    key: DigestKey,
    /// `None`: agents keep the one that they have.
    mode: Option<Mode>,
    /// The version from which on it holds.
    mode_since: u64,
    /// Grows with each batch that changes slices, and with the mode.
    version: u64,
    /// Of the sets that a joining agent has asked for, kept up to date.
    sums: HashMap<PeerSetId, Sums>,
    sessions: Slab<Session>,
    by_node: HashMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Session {
    node: String,
    outbox: Arc<Outbox>,
    /// What the agent was asked for and has not answered yet.
    asked: Option<(Parts, Vec<u32>)>,
}

/// How a conversation began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// The agent has nothing, and gets all.
    Empty,
    /// The agent has all that there is.
    Equal,
    /// So many of so many parts differ.
    Asked(usize, usize),
}

impl Hub {
    /// A hub that knows of no objects and no agents. The key must be random.
    pub fn new(key: DigestKey) -> Self {
        Hub::with(key, Budgets::NONE)
    }

    /// The same, with budgets for policies.
    pub fn with(key: DigestKey, budgets: Budgets) -> Self {
        Hub {
            compiler: Compiler::with(Scope::AllNodes, budgets),
            key,
            mode: None,
            mode_since: 0,
            version: 0,
            sums: HashMap::new(),
            sessions: Slab::new(),
            by_node: HashMap::new(),
        }
    }

    /// The compiler, to look at.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// What agents are told to do with their slices, and from which version on; `None`: nothing.
    pub fn mode(&self) -> (Option<Mode>, u64) {
        (self.mode, self.mode_since)
    }

    /// Tells all agents, and those that come.
    pub fn set_mode(&mut self, mode: Mode, since: Instant) {
        if self.mode.replace(mode) == Some(mode) {
            return;
        }
        self.version += 1;
        self.mode_since = self.version;
        for (_, session) in &self.sessions {
            session.outbox.update(|pending| {
                pending.mode(mode);
                pending.commit(self.version, Some(since));
            });
        }
    }

    /// How many batches have changed slices, or the mode.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Each session's node and outbox.
    pub fn sessions(&self) -> impl Iterator<Item = (&str, &Outbox)> {
        self.sessions.iter().map(|(_, session)| (session.node.as_str(), &*session.outbox))
    }

    /// Takes events, first heard of at this time. Returns what they changed.
    pub fn apply(&mut self, events: Vec<Event>, since: Instant) -> Deltas {
        let deltas = self.compiler.apply(events);
        if !deltas.slices.is_empty() {
            self.version += 1;
        }
        if !self.sums.is_empty() {
            self.follow_sums(deltas.slices.iter().flat_map(|delta| &delta.changes));
        }
        let mut encoder = Encoder::default();
        for delta in &deltas.slices {
            for session in self.by_node.get(&*delta.node).into_iter().flatten() {
                self.sessions[*session].outbox.update(|pending| {
                    encoder.add(&delta.changes, pending);
                    pending.commit(self.version, Some(since));
                });
            }
        }
        deltas
    }

    /// An agent says what it holds. Returns the session's number, and how it began.
    pub fn join(&mut self, node: &str, have: Parts, outbox: Arc<Outbox>) -> (usize, Joined) {
        let session = Session { node: node.to_owned(), outbox: outbox.clone(), asked: None };
        let number = self.sessions.insert(session);
        let of_node = self.by_node.entry(node.to_owned()).or_default();
        of_node.push(number);
        if of_node.len() > PER_NODE {
            let oldest = of_node.remove(0);
            self.sessions[oldest]
                .outbox
                .end(Status::resource_exhausted("too many conversations for this node"));
        }

        if let Some(mode) = self.mode {
            outbox.update(|pending| pending.mode(mode));
        }
        let changes = self.compiler.snapshot(node).changes;
        let version = self.version;
        if have.is_empty() {
            outbox.update(|pending| {
                Encoder::default().add(&changes, pending);
                pending.commit(version, None);
            });
            outbox.go_live();
            return (number, Joined::Empty);
        }
        let different = have.different(&self.items(&changes));
        if different.is_empty() {
            outbox.update(|pending| pending.commit(version, None));
            outbox.go_live();
            return (number, Joined::Equal);
        }
        outbox.say(What::Ask(Ask { parts: different.clone() }));
        let joined = Joined::Asked(different.len(), have.len());
        self.sessions[number].asked = Some((have, different));
        (number, joined)
    }

    /// An agent tells what is in the parts of its slice that it was asked for: name and digest of each item.
    /// Returns how many items are sent and forgotten.
    pub fn holdings(&mut self, number: usize, held: &HashMap<u128, u128>) -> (usize, usize) {
        let Some((node, (have, asked))) =
            self.sessions.get_mut(number).and_then(|s| Some((s.node.clone(), s.asked.take()?)))
        else {
            return (0, 0);
        };
        let changes = self.compiler.snapshot(&node).changes;
        let items = self.items(&changes);
        let mut things: HashSet<&Key> = HashSet::new();
        let mut parts: HashMap<PeerSetId, HashSet<u8>> = HashMap::new();
        let mut forget: Vec<u128> = held.keys().filter(|name| !items.contains_key(name)).copied().collect();
        for (name, (digest, item)) in items.iter().filter(|(name, _)| have.covers(&asked, **name)) {
            match held.get(name) {
                Some(theirs) if theirs == digest => continue,
                // the agent empties it, and gets what is in it now
                Some(_) if matches!(item, Item::Members(..)) => forget.push(*name),
                _ => {}
            }
            match item {
                Item::Thing(key) => drop(things.insert(key)),
                Item::Members(id, part) => drop(parts.entry(*id).or_default().insert(*part)),
            }
        }
        let outbox = &self.sessions[number].outbox;
        let counts = (things.len() + parts.values().map(HashSet::len).sum::<usize>(), forget.len());
        let version = self.version;
        outbox.update(|pending| {
            for change in &changes {
                let Some((key, _)) = Key::of(change) else { continue };
                if let Change::PeerSet(id, _, members) = change
                    && let Some(parts) = parts.get(id)
                {
                    let is_in = |member: &&Member| parts.contains(&self.key.member(*id, **member).0);
                    let added: Vec<Member> = members.iter().filter(is_in).copied().collect();
                    let encoded = weir_proto::members(*id, false, &added, &[]);
                    pending.members(*id, &Arc::new(MemberDelta { added, removed: Vec::new(), encoded }));
                }
                if things.contains(&key) {
                    pending.put(&Arc::new(key), &weir_proto::change(change));
                }
            }
            pending.forget(forget);
            pending.commit(version, None);
        });
        outbox.go_live();
        counts
    }

    /// The conversation is over.
    pub fn leave(&mut self, number: usize) {
        if let Some(session) = self.sessions.try_remove(number)
            && let Some(of_node) = self.by_node.get_mut(&session.node)
        {
            of_node.retain(|other| *other != number);
            if of_node.is_empty() {
                self.by_node.remove(&session.node);
            }
        }
    }

    fn items<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) -> Items {
        let (key, sums) = (self.key, &mut self.sums);
        key.items(changes, |id, members| {
            let sums = sums.entry(id).or_insert_with(|| {
                let mut sums = Sums::new();
                members.iter().for_each(|member| add(&mut sums, key.member(id, *member)));
                sums
            });
            sums.iter().map(|(part, (_, sum))| (*part, *sum)).collect()
        })
    }

    /// Keeps the sums true. While some node has a set, all its changes are among the deltas; when a node gets
    /// or loses one, it is summed anew by whoever asks next.
    fn follow_sums<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) {
        let mut seen = HashSet::new();
        let mut anew = Vec::new();
        for change in changes {
            match change {
                Change::PeerSet(id, ..) | Change::PeerSetGone(id) => anew.push(*id),
                // the same for all nodes that have the set
                Change::Members { id, added, removed } if seen.insert(*id) => {
                    let Some(sums) = self.sums.get_mut(id) else { continue };
                    removed.iter().for_each(|member| take(sums, self.key.member(*id, *member)));
                    added.iter().for_each(|member| add(sums, self.key.member(*id, *member)));
                }
                _ => {}
            }
        }
        for id in anew {
            self.sums.remove(&id);
        }
    }
}

fn add(sums: &mut Sums, (part, digest): (u8, u128)) {
    let (count, sum) = sums.entry(part).or_default();
    *count += 1;
    *sum = sum.wrapping_add(digest);
}

fn take(sums: &mut Sums, (part, digest): (u8, u128)) {
    if let Some((count, sum)) = sums.get_mut(&part) {
        *count -= 1;
        *sum = sum.wrapping_sub(digest);
        if *count == 0 {
            sums.remove(&part);
        }
    }
}
