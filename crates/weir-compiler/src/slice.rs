//! What one node must know: the part of the rule graph that its pods reach, with the members of
//! its peer sets, and the clauses of the policies that explain it.
//!
//! ```text
//!   Pod ──profile──> Profile ──ingress, egress──> Ruleset ──tier, priority──> Rule ──peers──> PeerSet
//!                       └──subjects──> SlicePolicy (why; never part of identity)     └─ports─> PortSet
//! ```
//!
//! A [`NodeSlice`] is a value. It changes by [`SliceDelta`]s, in which a [`Change`] comes after
//! all that it refers to, and what is gone goes after all that referred to it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::cidr::CidrSet;
use crate::object::{NamedPort, ObjectKey, Protocol};
use crate::policy::{PolicyClauses, RuleClause};
use crate::ports::PortSet;
use crate::selector::Selector;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) [u8; 16]);

        impl $name {
            /// In lower-case base 32: 26 letters and digits, for names in the kernel. All 128 bits:
            /// whoever writes policies chooses what is hashed, and must not make two values collide.
            pub fn name(&self) -> String {
                base32(&self.0)
            }

            /// An identity from its bytes, as it came over a wire.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                $name(bytes)
            }

            /// All of its bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), base32(&self.0))
            }
        }
    )*};
}

ids! {
    /// Identity of a [`PeerSet`]: a hash of its canonical form, never of names of policies.
    PeerSetId,
    /// Identity of a [`PortSet`].
    PortSetId,
    /// Identity of a [`Rule`].
    RuleId,
    /// Identity of a [`Ruleset`].
    RulesetId,
    /// Identity of a [`Profile`]: of what selects a pod, not of what that says at present.
    ProfileId,
    /// Identity of what policies select: a namespace and a selector of its pods.
    SubjectId,
}

fn base32(bytes: &[u8; 16]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits = u128::from_be_bytes(*bytes);
    (0..26).rev().map(|i| char::from(DIGITS[(bits >> (5 * i)) as usize & 31])).collect()
}

/// Ingress or egress, seen from the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Traffic to the pod.
    Ingress,
    /// Traffic from the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// As the API spells the field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// Which kind of policy a rule comes from; the lower one is asked first (C1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// ClusterNetworkPolicy of tier Admin.
    Admin,
    /// NetworkPolicy. It decides finally for the pods that it isolates (C5).
    NetworkPolicy,
    /// ClusterNetworkPolicy of tier Baseline.
    Baseline,
}

/// What a rule says of the traffic that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It passes in this direction.
    Accept,
    /// It is dropped.
    Deny,
    /// This tier says nothing of it.
    Pass,
}

/// What becomes of a [`Ruleset`]'s verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// It holds.
    #[default]
    Enforce,
    /// It is told: what audited policies would deny to pods that nothing isolates in this direction (U29).
    WouldDeny,
    /// It is known to the evaluator: what audited policies would allow to pods that others isolate (U29).
    WouldAllow,
}

/// All rules for a pod in one direction, named ports resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ruleset {
    /// The direction.
    pub direction: Direction,
    /// A NetworkPolicy isolates the pod: what no rule up to its tier accepts is dropped (N1, C5).
    pub isolated: bool,
    /// Whether that is enforced.
    pub effect: Effect,
    /// Sorted by tier, then priority; of one priority, the order means nothing.
    pub entries: Vec<Entry>,
}

/// A rule at its place in a ruleset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The tier.
    pub tier: Tier,
    /// Lower is asked first. NetworkPolicy's rules have no order: 0 (N4).
    pub priority: u32,
    /// The rule.
    pub rule: RuleId,
}

/// What matches, and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The action.
    pub action: Action,
    /// The other end; any of these. `None`: any peer at all (N13).
    pub peers: Option<Vec<PeerSetId>>,
    /// Destination ports.
    pub ports: PortSetId,
}

/// A set of peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerSet {
    /// The addresses of the pods that both selectors match; members change as pods do.
    Pods {
        /// On the namespace's labels.
        namespaces: Selector,
        /// On the pod's labels.
        pods: Selector,
    },
    /// Ranges of addresses, which are their own members.
    Cidrs(Arc<CidrSet>),
    /// The (address, protocol, port) at which pods have a port of this name (N56, U16).
    Endpoints {
        /// On the namespace's labels.
        namespaces: Selector,
        /// On the pod's labels.
        pods: Selector,
        /// Only addresses in these ranges (N58, U17).
        within: Option<Arc<CidrSet>>,
        /// The port's name.
        name: String,
        /// The port's protocol (N57).
        protocol: Protocol,
    },
}

/// A member of a [`PeerSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// Of [`PeerSet::Pods`].
    Address(IpAddr),
    /// Of [`PeerSet::Endpoints`].
    Endpoint(IpAddr, Protocol, u16),
}

/// What pods that the same policies select have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// `None`: not isolated (N1).
    pub ingress: Option<RulesetId>,
    /// `None`: not isolated (N1).
    pub egress: Option<RulesetId>,
    /// By [`Direction`], what its audited policies would change (U29). `None`: nothing.
    pub audited: [Option<RulesetId>; 2],
    /// What selects the pods, sorted: the policies with these subjects.
    pub subjects: Vec<SubjectId>,
}

impl Profile {
    /// The ruleset of a direction.
    pub fn ruleset(&self, direction: Direction) -> Option<RulesetId> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// What audited policies would change in a direction (U29).
    pub fn audited(&self, direction: Direction) -> Option<RulesetId> {
        self.audited[direction as usize]
    }
}

/// A policy that selects pods of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePolicy {
    /// What it selects.
    pub subject: SubjectId,
    /// It is not enforced (U29).
    pub audit: bool,
    /// What it says.
    pub clauses: Arc<PolicyClauses>,
}

impl SlicePolicy {
    /// The rules of a direction.
    pub fn rules(&self, direction: Direction) -> Option<&[RuleClause]> {
        self.clauses.rules(direction)
    }
}

/// A pod of the node: with an address, not in the host's network, not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePod {
    /// The addresses that are this pod's and no newer one's (N77), sorted.
    pub addresses: Vec<IpAddr>,
    /// Its profile.
    pub profile: ProfileId,
    /// Its named ports, sorted.
    pub ports: Arc<[NamedPort]>,
    /// Which of its new connections that policies allow are told of: none (0), all (1), or one of so many.
    pub log_allowed: u32,
}

/// One change of a slice.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A peer set is needed, with these members to begin with.
    PeerSet(PeerSetId, PeerSet, Vec<Member>),
    /// A port set is needed.
    PortSet(PortSetId, PortSet),
    /// A rule is needed.
    Rule(RuleId, Rule),
    /// A ruleset is needed.
    Ruleset(RulesetId, Ruleset),
    /// A policy is new, or reads differently.
    Policy(ObjectKey, SlicePolicy),
    /// A profile is new, or changed.
    Profile(ProfileId, Profile),
    /// A pod is new, or changed.
    Pod(ObjectKey, SlicePod),
    /// Members of a peer set come and go.
    Members {
        /// The set.
        id: PeerSetId,
        /// None of them was in it.
        added: Vec<Member>,
        /// All of them were in it.
        removed: Vec<Member>,
    },
    /// A pod left.
    PodGone(ObjectKey),
    /// No pod has the profile any more.
    ProfileGone(ProfileId),
    /// The policy is gone, or no profile has its subject any more.
    PolicyGone(ObjectKey),
    /// No profile has the ruleset any more.
    RulesetGone(RulesetId),
    /// No ruleset has the rule any more.
    RuleGone(RuleId),
    /// No rule has the port set any more.
    PortSetGone(PortSetId),
    /// No rule has the peer set any more.
    PeerSetGone(PeerSetId),
}

/// Changes of one node's slice that belong together: before all and after all of them, the
/// slice is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceDelta {
    /// The node.
    pub node: Arc<str>,
    /// In order.
    pub changes: Changes,
}

/// Changes in an order. What several slices have in common is there once: all changes of a batch are in one
/// table, and each slice has some of its places.
#[derive(Clone, Default)]
pub struct Changes {
    table: Arc<Vec<Change>>,
    places: Vec<Range<u32>>,
}

impl Changes {
    pub(crate) fn new(table: Arc<Vec<Change>>, places: Vec<Range<u32>>) -> Self {
        Changes { table, places }
    }

    /// The changes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Change> + Clone {
        self.places.iter().flat_map(|place| &self.table[place.start as usize..place.end as usize])
    }

    /// All changes of the batch, in no order.
    pub fn table(&self) -> &[Change] {
        &self.table
    }

    /// Which of the [`table`](Changes::table) these are, in order; ranges that are equal are what slices share.
    pub fn places(&self) -> &[Range<u32>] {
        &self.places
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.iter().map(|place| place.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(|place| place.is_empty())
    }
}

impl PartialEq for Changes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = &'a Change;
    type IntoIter = Box<dyn Iterator<Item = &'a Change> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

/// A peer set with its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSetState {
    /// What it is.
    pub set: PeerSet,
    /// Who is in it at present.
    pub members: BTreeSet<Member>,
}

/// The slice of one node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeSlice {
    /// The node's pods.
    pub pods: BTreeMap<ObjectKey, SlicePod>,
    /// Their profiles.
    pub profiles: BTreeMap<ProfileId, Profile>,
    /// The policies whose subjects the profiles have.
    pub policies: BTreeMap<ObjectKey, SlicePolicy>,
    /// The same, by subject.
    by_subject: BTreeMap<SubjectId, BTreeSet<ObjectKey>>,
    /// The profiles' rulesets.
    pub rulesets: BTreeMap<RulesetId, Ruleset>,
    /// The rulesets' rules.
    pub rules: BTreeMap<RuleId, Rule>,
    /// The rules' port sets.
    pub port_sets: BTreeMap<PortSetId, PortSet>,
    /// The rules' peer sets.
    pub peer_sets: BTreeMap<PeerSetId, PeerSetState>,
}

impl NodeSlice {
    /// The policies that select the pods of a profile, by name.
    pub fn policies_of(&self, profile: &Profile) -> Vec<&ObjectKey> {
        let subjects = profile.subjects.iter().filter_map(|subject| self.by_subject.get(subject));
        let mut policies: Vec<&ObjectKey> = subjects.flatten().collect();
        if profile.subjects.len() > 1 {
            policies.sort_unstable();
        }
        policies
    }

    /// Of these, the policies that are enforced and say something of a direction: they isolate the pods (N1).
    pub fn isolating<'a>(
        &'a self,
        profile: &Profile,
        direction: Direction,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        self.stating(profile, direction, false)
    }

    /// The same of those that are audited (U29).
    pub fn auditing<'a>(
        &'a self,
        profile: &Profile,
        direction: Direction,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        self.stating(profile, direction, true)
    }

    fn stating<'a>(
        &'a self,
        profile: &Profile,
        direction: Direction,
        audit: bool,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        let says = move |key: &&ObjectKey| {
            let policy = self.policies.get(*key);
            policy.is_some_and(|policy| policy.audit == audit && policy.rules(direction).is_some())
        };
        self.policies_of(profile).into_iter().filter(says)
    }

    fn forget_policy(&mut self, key: &ObjectKey) {
        if let Some(policy) = self.policies.remove(key)
            && let Some(of) = self.by_subject.get_mut(&policy.subject)
        {
            of.remove(key);
            if of.is_empty() {
                self.by_subject.remove(&policy.subject);
            }
        }
    }

    /// All of it, as changes of an empty one.
    pub fn changes(&self) -> Vec<Change> {
        let sets = self.peer_sets.iter().map(|(id, state)| {
            Change::PeerSet(*id, state.set.clone(), state.members.iter().copied().collect())
        });
        let mut all: Vec<Change> = sets.collect();
        all.extend(self.port_sets.iter().map(|(id, ports)| Change::PortSet(*id, ports.clone())));
        all.extend(self.rules.iter().map(|(id, rule)| Change::Rule(*id, rule.clone())));
        all.extend(self.rulesets.iter().map(|(id, ruleset)| Change::Ruleset(*id, ruleset.clone())));
        all.extend(self.policies.iter().map(|(key, clauses)| Change::Policy(key.clone(), clauses.clone())));
        all.extend(self.profiles.iter().map(|(id, profile)| Change::Profile(*id, profile.clone())));
        all.extend(self.pods.iter().map(|(key, pod)| Change::Pod(key.clone(), pod.clone())));
        all
    }

    /// Carries out changes, in their order.
    ///
    /// # Panics
    /// If a change is about members of a set that is not here: the sender broke the order.
    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        for change in changes {
            match change.clone() {
                Change::PeerSet(id, set, members) => {
                    self.peer_sets.insert(id, PeerSetState { set, members: members.into_iter().collect() });
                }
                Change::PortSet(id, ports) => drop(self.port_sets.insert(id, ports)),
                Change::Rule(id, rule) => drop(self.rules.insert(id, rule)),
                Change::Ruleset(id, ruleset) => drop(self.rulesets.insert(id, ruleset)),
                Change::Policy(key, policy) => {
                    self.forget_policy(&key);
                    self.by_subject.entry(policy.subject).or_default().insert(key.clone());
                    self.policies.insert(key, policy);
                }
                Change::Profile(id, profile) => drop(self.profiles.insert(id, profile)),
                Change::Pod(key, pod) => drop(self.pods.insert(key, pod)),
                Change::Members { id, added, removed } => {
                    let set = self.peer_sets.get_mut(&id).expect("members of a set come after the set");
                    for member in &removed {
                        set.members.remove(member);
                    }
                    set.members.extend(added);
                }
                Change::PodGone(key) => drop(self.pods.remove(&key)),
                Change::ProfileGone(id) => drop(self.profiles.remove(&id)),
                Change::PolicyGone(key) => self.forget_policy(&key),
                Change::RulesetGone(id) => drop(self.rulesets.remove(&id)),
                Change::RuleGone(id) => drop(self.rules.remove(&id)),
                Change::PortSetGone(id) => drop(self.port_sets.remove(&id)),
                Change::PeerSetGone(id) => drop(self.peer_sets.remove(&id)),
            }
        }
    }
}
