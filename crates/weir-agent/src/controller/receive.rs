//! From what a controller sends up to a commit to changes that fit the slice that is held.
//!
//! ```text
//!   Received ──take──> Incoming: of each thing the last word; of each set who comes, who goes,
//!      ...                       and which of its parts begin empty
//!   commit ──changes──> against the slice: what is the same already is left out,
//!                       what does not fit together is refused as a whole
//! ```
//!
//! A controller need not know exactly what is held: it speaks of parts of sets, it may say things twice. What
//! the planner and the kernel are told is exact: what comes was not there, what goes was, referents are first.

use std::collections::BTreeMap;

use weir_compiler::slice::{
    Change, Direction, Effect, Member, NodeSlice, PeerSet, PeerSetId, Ruleset, RulesetId,
};
use weir_proto::{DigestKey, Item, Items, Key, Malformed, Mode, Received, decode};

/// A commit that cannot be taken in. The slice stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Something in it is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It names an item that the agent did not say to have.
    #[error("the controller says that an item is gone which this agent never told it of: {0:032x}")]
    NeverHeld(u128),
    /// Something refers to what is not there.
    #[error("{what} refers to {to}, which is not there")]
    Dangling {
        /// What refers.
        what: String,
        /// What is missing.
        to: String,
    },
    /// What is named by its content has another one now.
    #[error("{0} has another content than before")]
    Changed(String),
    /// Addresses in a set of endpoints or the like.
    #[error("{0} has members of another kind")]
    WrongMembers(String),
    /// Of another direction, or not enforced where it must be.
    #[error("{what} has {ruleset} in the wrong place")]
    WrongPlace {
        /// The profile.
        what: String,
        /// Its ruleset.
        ruleset: String,
    },
    /// There must be an end to what waits for a commit.
    #[error("more than {limit} bytes without a commit")]
    TooMuch {
        /// In bytes, as they were sent.
        limit: usize,
    },
}

/// What came since the last commit. Later words on a thing replace earlier ones.
#[derive(Debug)]
pub struct Incoming {
    key: DigestKey,
    mode: Option<Mode>,
    things: BTreeMap<Key, Option<Change>>,
    members: BTreeMap<PeerSetId, Coming>,
    bytes: usize,
    limit: usize,
}

/// The members of one set.
#[derive(Debug, Default)]
struct Coming {
    /// One bit for each of the set's parts: who was in it is not any more.
    emptied: [u64; 4],
    /// And then: is in it, or is not.
    members: BTreeMap<Member, bool>,
}

impl Coming {
    fn anew(&mut self) {
        *self = Coming { emptied: [u64::MAX; 4], members: BTreeMap::new() };
    }

    fn empty(&mut self, part: u8, of: impl Fn(Member) -> u8) {
        self.emptied[usize::from(part / 64)] |= 1 << (part % 64);
        self.members.retain(|member, _| of(*member) != part);
    }

    fn is_emptied(&self, part: impl FnOnce() -> u8) -> bool {
        match self.emptied {
            [0, 0, 0, 0] => false,
            [u64::MAX, u64::MAX, u64::MAX, u64::MAX] => true,
            parts => {
                let part = part();
                parts[usize::from(part / 64)] & 1 << (part % 64) != 0
            }
        }
    }
}

impl Incoming {
    /// Nothing yet. `key` is the conversation's; of encoded changes, so many bytes may wait for a commit.
    pub fn new(key: DigestKey, limit: usize) -> Self {
        Incoming { key, mode: None, things: BTreeMap::new(), members: BTreeMap::new(), bytes: 0, limit }
    }

    /// The size of what was taken in, as it was sent.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The mode, if it was told.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// How many things, and sets whose members, it is about.
    pub fn len(&self) -> usize {
        self.things.len() + self.members.len()
    }

    /// There is nothing to be changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes in one encoded change. `held` are the items that the controller was told of, up to the first
    /// commit. Returns whether it was understood.
    ///
    /// # Errors
    /// The conversation cannot go on.
    pub fn take(&mut self, encoded: &[u8], held: Option<&Items>) -> Result<bool, Refused> {
        self.bytes += encoded.len();
        if self.bytes > self.limit {
            return Err(Refused::TooMuch { limit: self.limit });
        }
        match decode(encoded)? {
            Received::Put(change) => {
                if let Some((key, true)) = Key::of(&change) {
                    self.things.insert(key, Some(change));
                }
            }
            Received::Gone(key) => self.gone(key),
            Received::Members { id, anew, added, removed } => {
                let coming = self.members.entry(id).or_default();
                if anew {
                    coming.anew();
                }
                coming.members.extend(added.into_iter().map(|member| (member, true)));
                coming.members.extend(removed.into_iter().map(|member| (member, false)));
            }
            Received::Forget(names) => {
                for name in names {
                    let item = held.and_then(|held| held.get(&name)).map(|(_, item)| item.clone());
                    match item.ok_or(Refused::NeverHeld(name))? {
                        Item::Thing(key) => self.gone(key),
                        Item::Members(id, part) => {
                            let key = self.key;
                            let of = |member| key.member(id, member).0;
                            self.members.entry(id).or_default().empty(part, of);
                        }
                    }
                }
            }
            Received::Mode(mode) => self.mode = Some(mode),
            Received::Unknown => return Ok(false),
        }
        Ok(true)
    }

    fn gone(&mut self, key: Key) {
        if let Key::PeerSet(id) = &key {
            self.members.entry(*id).or_default().anew();
        }
        self.things.insert(key, None);
    }

    /// All that came, as changes of `slice` in an order that suits it.
    ///
    /// # Errors
    /// It does not fit together, or not with the slice; nothing of it is to be applied.
    pub fn changes(mut self, slice: &NodeSlice) -> Result<Vec<Change>, Refused> {
        let goes = |id| matches!(self.things.get(&Key::PeerSet(id)), Some(None));
        self.members.retain(|id, _| !goes(*id));
        self.things.retain(|key, now| !is_same(slice, key, now.as_ref()));
        View { slice, things: &self.things }.check(self.members.keys())?;

        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for (id, coming) in &self.members {
            changes.extend(self.members_of(slice, *id, coming)?);
        }
        for (key, now) in self.things {
            match now {
                // with its members, above
                Some(Change::PeerSet(id, ..)) if self.members.contains_key(&id) => {}
                Some(change) => changes.push(change),
                None => gone.push(key.gone()),
            }
        }
        // what refers goes first
        changes.extend(gone.into_iter().rev());
        Ok(changes)
    }

    fn members_of(
        &self,
        slice: &NodeSlice,
        id: PeerSetId,
        coming: &Coming,
    ) -> Result<Option<Change>, Refused> {
        let held = slice.peer_sets.get(&id);
        let new = match self.things.get(&Key::PeerSet(id)) {
            Some(Some(Change::PeerSet(_, set, _))) => Some(set),
            _ => None,
        };
        let Some(set) = new.or(held.map(|held| &held.set)) else { return Ok(None) };
        let fits = |member: &Member| {
            matches!(
                (set, member),
                (PeerSet::Pods { .. }, Member::Address(_))
                    | (PeerSet::Endpoints { .. }, Member::Endpoint(..))
            )
        };
        if !coming.members.iter().all(|(member, is_in)| !is_in || fits(member)) {
            return Err(Refused::WrongMembers(format!("{id:?}")));
        }
        let come = coming.members.iter().filter(|(_, is_in)| **is_in).map(|(member, _)| *member);
        let Some(held) = held else {
            return Ok(Some(Change::PeerSet(id, set.clone(), come.collect())));
        };
        let added: Vec<Member> = come.filter(|member| !held.members.contains(member)).collect();
        let goes = |member: &Member| match coming.members.get(member) {
            Some(is_in) => !is_in,
            None => coming.is_emptied(|| self.key.member(id, *member).0),
        };
        let removed: Vec<Member> = match coming.emptied {
            [0, 0, 0, 0] => {
                let named = coming.members.iter().filter(|(_, is_in)| !**is_in).map(|(member, _)| *member);
                named.filter(|member| held.members.contains(member)).collect()
            }
            _ => held.members.iter().filter(|member| goes(member)).copied().collect(),
        };
        let any = !added.is_empty() || !removed.is_empty();
        Ok(any.then_some(Change::Members { id, added, removed }))
    }
}

/// Whether this is how the slice has it.
fn is_same(slice: &NodeSlice, key: &Key, now: Option<&Change>) -> bool {
    match (key, now) {
        (Key::PeerSet(id), Some(Change::PeerSet(_, set, _))) => {
            slice.peer_sets.get(id).is_some_and(|held| held.set == *set)
        }
        (Key::PortSet(id), Some(Change::PortSet(_, ports))) => slice.port_sets.get(id) == Some(ports),
        (Key::Rule(id), Some(Change::Rule(_, rule))) => slice.rules.get(id) == Some(rule),
        (Key::Ruleset(id), Some(Change::Ruleset(_, ruleset))) => slice.rulesets.get(id) == Some(ruleset),
        (Key::Policy(key), Some(Change::Policy(_, clauses))) => slice.policies.get(key) == Some(clauses),
        (Key::Profile(id), Some(Change::Profile(_, profile))) => slice.profiles.get(id) == Some(profile),
        (Key::Pod(key), Some(Change::Pod(_, pod))) => slice.pods.get(key) == Some(pod),
        (key, None) => !holds(slice, key),
        _ => false,
    }
}

fn holds(slice: &NodeSlice, key: &Key) -> bool {
    match key {
        Key::PeerSet(id) => slice.peer_sets.contains_key(id),
        Key::PortSet(id) => slice.port_sets.contains_key(id),
        Key::Rule(id) => slice.rules.contains_key(id),
        Key::Ruleset(id) => slice.rulesets.contains_key(id),
        Key::Policy(key) => slice.policies.contains_key(key),
        Key::Profile(id) => slice.profiles.contains_key(id),
        Key::Pod(key) => slice.pods.contains_key(key),
    }
}

/// The slice as it will be.
struct View<'a> {
    slice: &'a NodeSlice,
    /// Only what differs.
    things: &'a BTreeMap<Key, Option<Change>>,
}

impl View<'_> {
    fn has(&self, key: &Key) -> bool {
        self.things.get(key).map_or_else(|| holds(self.slice, key), Option::is_some)
    }

    fn goes(&self, kind: fn(&Key) -> bool) -> bool {
        self.things.iter().any(|(key, now)| now.is_none() && kind(key))
    }

    /// That all references lead somewhere. The cost is that of what changes; where something goes, that of all
    /// that can refer to it.
    fn check<'b>(&self, members: impl Iterator<Item = &'b PeerSetId>) -> Result<(), Refused> {
        for id in members {
            let key = Key::PeerSet(*id);
            if !self.things.contains_key(&key) && !holds(self.slice, &key) {
                return Err(dangling("a list of members".to_owned(), key));
            }
        }
        for (key, now) in self.things {
            match now {
                Some(change) if holds(self.slice, key) => match key {
                    Key::PeerSet(id) => return Err(Refused::Changed(format!("{id:?}"))),
                    Key::PortSet(id) => return Err(Refused::Changed(format!("{id:?}"))),
                    Key::Rule(id) => return Err(Refused::Changed(format!("{id:?}"))),
                    Key::Ruleset(id) => return Err(Refused::Changed(format!("{id:?}"))),
                    Key::Policy(_) | Key::Profile(_) | Key::Pod(_) => self.referents(change)?,
                },
                Some(change) => self.referents(change)?,
                None => {}
            }
        }
        // what stays as it is must not lose what it refers to
        let slice = self.slice;
        if self.goes(|key| matches!(key, Key::PeerSet(_) | Key::PortSet(_))) {
            for (id, rule) in &slice.rules {
                self.still(Key::Rule(*id), || Change::Rule(*id, rule.clone()))?;
            }
        }
        if self.goes(|key| matches!(key, Key::Rule(_))) {
            for (id, ruleset) in &slice.rulesets {
                self.still(Key::Ruleset(*id), || Change::Ruleset(*id, ruleset.clone()))?;
            }
        }
        if self.goes(|key| matches!(key, Key::Ruleset(_))) {
            for (id, profile) in &slice.profiles {
                self.still(Key::Profile(*id), || Change::Profile(*id, profile.clone()))?;
            }
        }
        if self.goes(|key| matches!(key, Key::Profile(_))) {
            for (key, pod) in &slice.pods {
                self.still(Key::Pod(key.clone()), || Change::Pod(key.clone(), pod.clone()))?;
            }
        }
        Ok(())
    }

    fn still(&self, key: Key, as_it_is: impl FnOnce() -> Change) -> Result<(), Refused> {
        if self.things.contains_key(&key) { Ok(()) } else { self.referents(&as_it_is()) }
    }

    fn referents(&self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Rule(id, rule) => {
                let peers = rule.peers.iter().flatten().map(|peer| Key::PeerSet(*peer));
                let all = peers.chain([Key::PortSet(rule.ports)]);
                self.all(all, || format!("{id:?}"))
            }
            Change::Ruleset(id, ruleset) => {
                let rules = ruleset.entries.iter().map(|entry| Key::Rule(entry.rule));
                self.all(rules, || format!("{id:?}"))
            }
            Change::Profile(id, profile) => {
                for direction in Direction::BOTH {
                    let enforced = profile.ruleset(direction);
                    let audited = match enforced {
                        Some(_) => Effect::WouldAllow,
                        None => Effect::WouldDeny,
                    };
                    for (ruleset, effect) in
                        [(enforced, Effect::Enforce), (profile.audited(direction), audited)]
                    {
                        let Some(ruleset) = ruleset else { continue };
                        self.all([Key::Ruleset(ruleset)].into_iter(), || format!("{id:?}"))?;
                        if self.place(ruleset) != Some((direction, effect)) {
                            let (what, ruleset) = (format!("{id:?}"), format!("{ruleset:?}"));
                            return Err(Refused::WrongPlace { what, ruleset });
                        }
                    }
                }
                Ok(())
            }
            Change::Pod(key, pod) => {
                self.all([Key::Profile(pod.profile)].into_iter(), || format!("pod {key}"))
            }
            _ => Ok(()),
        }
    }

    /// Where a ruleset belongs.
    fn place(&self, id: RulesetId) -> Option<(Direction, Effect)> {
        let place = |ruleset: &Ruleset| (ruleset.direction, ruleset.effect);
        match self.things.get(&Key::Ruleset(id)) {
            Some(Some(Change::Ruleset(_, ruleset))) => Some(place(ruleset)),
            Some(_) => None,
            None => self.slice.rulesets.get(&id).map(place),
        }
    }

    fn all(&self, mut keys: impl Iterator<Item = Key>, what: impl FnOnce() -> String) -> Result<(), Refused> {
        match keys.find(|key| !self.has(key)) {
            Some(key) => Err(dangling(what(), key)),
            None => Ok(()),
        }
    }
}

fn dangling(what: String, to: Key) -> Refused {
    let to = match to {
        Key::Policy(key) | Key::Pod(key) => key.to_string(),
        Key::PeerSet(id) => format!("{id:?}"),
        Key::PortSet(id) => format!("{id:?}"),
        Key::Rule(id) => format!("{id:?}"),
        Key::Ruleset(id) => format!("{id:?}"),
        Key::Profile(id) => format!("{id:?}"),
    };
    Refused::Dangling { what, to }
}
