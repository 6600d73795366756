//! What two ends compare to find out what one of them lacks.
//!
//! ```text
//!   slice ──> items (name, digest) ──> parts: the sum of the digests of the items that are in them
//! ```
//!
//! An item is a thing with a [`Key`], digested as it is encoded, or one of 256 parts of a peer set's members,
//! whose digest is the sum of the members' (so that it follows a change of the set at the cost of the change).
//! All hashes are keyed: who does not know the key cannot make two states with equal sums.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weir_compiler::slice::{Change, Member, PeerSetId};

use crate::{Key, encode};

/// The most parts that a slice is compared in.
const MOST_PARTS: usize = 4096;

/// What all digests of a conversation are keyed by; each controller chooses one at random.
#[derive(Clone, Copy)]
pub struct DigestKey([u8; 32]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

/// What an item is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// One thing.
    Thing(Key),
    /// One part of the members of a peer set.
    Members(PeerSetId, u8),
}

/// Items by their names, each with its digest.
pub type Items = BTreeMap<u128, (u128, Item)>;

impl DigestKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        DigestKey(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of an encoded `Change`, which says itself what it is about.
    pub fn digest(&self, encoded: &[u8]) -> u128 {
        self.hash(0, &[encoded])
    }

    /// The name of an item.
    pub fn name(&self, item: &Item) -> u128 {
        match item {
            Item::Members(id, part) => self.hash(1, &[id.as_bytes(), &[*part]]),
            Item::Thing(key) => {
                let kind = key.kind() as u8;
                match key.parts() {
                    Ok(id) => self.hash(2, &[&[kind], id]),
                    // NUL is in no name
                    Err(key) => self.hash(2, &[&[kind], key.namespace.as_bytes(), &[0], key.name.as_bytes()]),
                }
            }
        }
    }

    /// The part of its set's members that a member is in, and its digest.
    pub fn member(&self, set: PeerSetId, member: Member) -> (u8, u128) {
        let mut bytes = [0u8; 20];
        let (address, rest) = match member {
            Member::Address(address) => (address, [0; 3]),
            Member::Endpoint(address, protocol, port) => {
                let [high, low] = port.to_be_bytes();
                (address, [protocol.number(), high, low])
            }
        };
        let length = match address {
            IpAddr::V4(address) => {
                bytes[..4].copy_from_slice(&address.octets());
                4
            }
            IpAddr::V6(address) => {
                bytes[..16].copy_from_slice(&address.octets());
                16
            }
        };
        bytes[length..length + 3].copy_from_slice(&rest);
        let digest = self.hash(3, &[set.as_bytes(), &bytes[..length + 3]]);
        #[allow(clippy::cast_possible_truncation)] // one of 256
        ((digest >> 120) as u8, digest)
    }

    /// The items of a slice, given as changes of an empty one; `sums` gives the parts of the members of a set.
    pub fn items<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
        mut sums: impl FnMut(PeerSetId, &[Member]) -> Vec<(u8, u128)>,
    ) -> Items {
        let mut items = Items::new();
        for change in changes {
            let Some((key, true)) = Key::of(change) else { continue };
            if let Change::PeerSet(id, _, members) = change {
                for (part, sum) in sums(*id, members) {
                    let item = Item::Members(*id, part);
                    items.insert(self.name(&item), (sum, item));
                }
            }
            let item = Item::Thing(key);
            items.insert(self.name(&item), (self.digest(&encode::change(change)), item));
        }
        items
    }

    fn hash(&self, what: u8, parts: &[&[u8]]) -> u128 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[what]);
        for part in parts {
            hasher.update(part);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_be_bytes(out)
    }
}

/// The parts of a set's members that are not empty, with their sums.
pub fn member_sums(key: &DigestKey, set: PeerSetId, members: &[Member]) -> Vec<(u8, u128)> {
    let mut sums: BTreeMap<u8, u128> = BTreeMap::new();
    for member in members {
        let (part, digest) = key.member(set, *member);
        let sum = sums.entry(part).or_default();
        *sum = sum.wrapping_add(digest);
    }
    sums.into_iter().collect()
}

/// A slice in digests: so many that each stands for about as many items as there are parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts(Vec<u128>);

impl Parts {
    /// Of items, in as many parts as suits them.
    pub fn of(items: &Items) -> Parts {
        let count = match items.len() {
            0 => 0,
            n => n.isqrt().next_power_of_two().min(MOST_PARTS),
        };
        Parts::with(items, count)
    }

    /// Of items, in so many parts.
    fn with(items: &Items, count: usize) -> Parts {
        let mut sums = vec![0u128; count];
        if count > 0 {
            for (name, (digest, _)) in items {
                let sum = &mut sums[Parts::index(*name, count)];
                *sum = sum.wrapping_add(*digest);
            }
        }
        Parts(sums)
    }

    #[allow(clippy::cast_possible_truncation)] // of random bits
    fn index(name: u128, count: usize) -> usize {
        name as usize & (count - 1)
    }

    /// The numbers of the parts in which these items differ from what the other end holds.
    pub fn different(&self, items: &Items) -> Vec<u32> {
        let ours = Parts::with(items, self.0.len());
        let pairs = self.0.iter().zip(&ours.0).enumerate();
        pairs
            .filter(|(_, (theirs, ours))| theirs != ours)
            .filter_map(|(i, _)| u32::try_from(i).ok())
            .collect()
    }

    /// Whether an item of this name is in one of these parts (sorted).
    pub fn covers(&self, parts: &[u32], name: u128) -> bool {
        match self.0.len() {
            0 => true,
            count => {
                u32::try_from(Parts::index(name, count)).is_ok_and(|part| parts.binary_search(&part).is_ok())
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The other end holds nothing at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As in `Have`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_be_bytes()).collect()
    }

    /// From `Have`; `None` if it is not as it must be.
    pub fn from_bytes(bytes: &[u8]) -> Option<Parts> {
        let (chunks, rest) = bytes.as_chunks::<16>();
        let possible = chunks.is_empty() || (chunks.len().is_power_of_two() && chunks.len() <= MOST_PARTS);
        (rest.is_empty() && possible).then(|| Parts(chunks.iter().map(|c| u128::from_be_bytes(*c)).collect()))
    }
}
