//! What things are called: hashes of their canonical values, never of names of policies or pods.

use std::sync::LazyLock;

use smallvec::SmallVec;

use crate::cidr::CidrSet;
use crate::object::Protocol;
use crate::ports::PortSet;
use crate::selector::{Requirement, Selector};
use crate::slice::{PeerSet, PeerSetId, PortSetId, ProfileId};

/// A hash over values with their lengths, so that no two lists of values read alike. They are put together
/// first: hashing them in one go takes a third of the time.
pub(crate) struct Hash(SmallVec<[u8; 512]>);

impl Hash {
    pub(crate) fn new(kind: &[u8]) -> Self {
        let mut hash = Hash(SmallVec::new());
        hash.bytes(kind);
        hash
    }

    pub(crate) fn number(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn selector(&mut self, selector: &Selector) {
        self.number(selector.requirements().count() as u64);
        for requirement in selector.requirements() {
            let (kind, key, values) = match requirement {
                Requirement::In(key, values) => (0, key, Some(values)),
                Requirement::NotIn(key, values) => (1, key, Some(values)),
                Requirement::Exists(key) => (2, key, None),
                Requirement::DoesNotExist(key) => (3, key, None),
            };
            self.number(kind);
            self.bytes(key.as_bytes());
            self.number(values.map_or(0, |v| v.len() as u64));
            values.into_iter().flatten().for_each(|v| self.bytes(v.as_bytes()));
        }
    }

    fn cidrs(&mut self, set: &CidrSet) {
        self.number(set.v4.ranges().len() as u64);
        for (first, last) in set.v4.ranges() {
            self.0.extend_from_slice(&first.to_le_bytes());
            self.0.extend_from_slice(&last.to_le_bytes());
        }
        self.number(set.v6.ranges().len() as u64);
        for (first, last) in set.v6.ranges() {
            self.0.extend_from_slice(&first.to_le_bytes());
            self.0.extend_from_slice(&last.to_le_bytes());
        }
    }

    pub(crate) fn finish(self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..16]);
        id
    }
}

/// The identity of a peer set.
pub fn peer_set_id(set: &PeerSet) -> PeerSetId {
    let mut hash = Hash::new(b"peer set");
    match set {
        PeerSet::Pods { namespaces, pods } => {
            hash.number(0);
            hash.selector(namespaces);
            hash.selector(pods);
        }
        PeerSet::Cidrs(set) => {
            hash.number(1);
            hash.cidrs(set);
        }
        PeerSet::Endpoints { namespaces, pods, within, name, protocol } => {
            hash.number(2);
            hash.selector(namespaces);
            hash.selector(pods);
            hash.number(within.is_some().into());
            if let Some(within) = within {
                hash.cidrs(within);
            }
            hash.bytes(name.as_bytes());
            hash.number(*protocol as u64);
        }
    }
    PeerSetId(hash.finish())
}

/// The identity of what several peer sets are together; they come sorted, each once.
pub fn union_id(parts: &[PeerSetId]) -> PeerSetId {
    let mut hash = Hash::new(b"union");
    parts.iter().for_each(|part| hash.bytes(&part.0));
    PeerSetId(hash.finish())
}

/// The identity of a port set.
pub fn port_set_id(ports: &PortSet) -> PortSetId {
    static ANY: LazyLock<PortSetId> = LazyLock::new(|| hash_port_set(&PortSet::Any));
    match ports {
        PortSet::Any => *ANY, // that of most rules
        PortSet::Ports(_) => hash_port_set(ports),
    }
}

fn hash_port_set(ports: &PortSet) -> PortSetId {
    let mut hash = Hash::new(b"port set");
    match ports {
        PortSet::Any => hash.number(0),
        PortSet::Ports(sets) => {
            hash.number(1);
            for set in sets {
                hash.number(set.ranges().len() as u64);
                for (first, last) in set.ranges() {
                    hash.number(u64::from(*first) << 16 | u64::from(*last));
                }
            }
        }
    }
    PortSetId(hash.finish())
}

/// The identity of a profile: the selections that have policies, and the pods' named ports.
pub(crate) fn profile_id<'a>(
    selections: impl IntoIterator<Item = &'a PeerSetId>,
    ports: impl IntoIterator<Item = (&'a str, Protocol, u16)>,
) -> ProfileId {
    let mut hash = Hash::new(b"profile");
    selections.into_iter().for_each(|s| hash.bytes(&s.0));
    hash.bytes(b"ports");
    for (name, protocol, port) in ports {
        hash.bytes(name.as_bytes());
        hash.number((protocol as u64) << 16 | u64::from(port));
    }
    ProfileId(hash.finish())
}
