//! What a slice has one of.

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Change, PeerSetId, PortSetId, ProfileId, RuleId, RulesetId};

use crate::pb;

/// The name of a thing in a slice. In order: each kind after those that it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A peer set, without its members.
    PeerSet(PeerSetId),
    /// A port set.
    PortSet(PortSetId),
    /// A rule.
    Rule(RuleId),
    /// A ruleset.
    Ruleset(RulesetId),
    /// The clauses of a policy.
    Policy(ObjectKey),
    /// A profile.
    Profile(ProfileId),
    /// A pod.
    Pod(ObjectKey),
}

impl Key {
    /// What a change is about, and whether it is there afterwards. `None`: members.
    pub fn of(change: &Change) -> Option<(Key, bool)> {
        Some(match change {
            Change::PeerSet(id, ..) => (Key::PeerSet(*id), true),
            Change::PortSet(id, _) => (Key::PortSet(*id), true),
            Change::Rule(id, _) => (Key::Rule(*id), true),
            Change::Ruleset(id, _) => (Key::Ruleset(*id), true),
            Change::Policy(key, _) => (Key::Policy(key.clone()), true),
            Change::Profile(id, _) => (Key::Profile(*id), true),
            Change::Pod(key, _) => (Key::Pod(key.clone()), true),
            Change::Members { .. } => return None,
            Change::PeerSetGone(id) => (Key::PeerSet(*id), false),
            Change::PortSetGone(id) => (Key::PortSet(*id), false),
            Change::RuleGone(id) => (Key::Rule(*id), false),
            Change::RulesetGone(id) => (Key::Ruleset(*id), false),
            Change::PolicyGone(key) => (Key::Policy(key.clone()), false),
            Change::ProfileGone(id) => (Key::Profile(*id), false),
            Change::PodGone(key) => (Key::Pod(key.clone()), false),
        })
    }

    /// The change that says that it is gone.
    pub fn gone(self) -> Change {
        match self {
            Key::PeerSet(id) => Change::PeerSetGone(id),
            Key::PortSet(id) => Change::PortSetGone(id),
            Key::Rule(id) => Change::RuleGone(id),
            Key::Ruleset(id) => Change::RulesetGone(id),
            Key::Policy(key) => Change::PolicyGone(key),
            Key::Profile(id) => Change::ProfileGone(id),
            Key::Pod(key) => Change::PodGone(key),
        }
    }

    pub(crate) fn kind(&self) -> pb::Kind {
        match self {
            Key::PeerSet(_) => pb::Kind::PeerSet,
            Key::PortSet(_) => pb::Kind::PortSet,
            Key::Rule(_) => pb::Kind::Rule,
            Key::Ruleset(_) => pb::Kind::Ruleset,
            Key::Policy(_) => pb::Kind::Policy,
            Key::Profile(_) => pb::Kind::Profile,
            Key::Pod(_) => pb::Kind::Pod,
        }
    }

    /// Its identity, if that is a hash, or its namespace and name.
    pub(crate) fn parts(&self) -> Result<&[u8; 16], &ObjectKey> {
        match self {
            Key::PeerSet(id) => Ok(id.as_bytes()),
            Key::PortSet(id) => Ok(id.as_bytes()),
            Key::Rule(id) => Ok(id.as_bytes()),
            Key::Ruleset(id) => Ok(id.as_bytes()),
            Key::Profile(id) => Ok(id.as_bytes()),
            Key::Policy(key) | Key::Pod(key) => Err(key),
        }
    }
}
