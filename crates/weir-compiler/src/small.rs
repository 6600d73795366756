//! Sets and maps whose keys are small numbers, and which have few entries most of the time.
//!
//! A large cluster has hundreds of thousands of them: who is selected by this, which nodes have that. Most have
//! one to four entries, and stay where they are. The numbers are places in a slab, given by this crate and
//! nobody else, so that a hash need not resist anybody; and as the hash is always the same, so is the order.

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

use hashbrown::hash_map::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use smallvec::SmallVec;

/// For keys that are places in a slab, or pairs of them.
pub(crate) type Places<K, V> = HashMap<K, V, BuildHasherDefault<PlaceHasher>>;

/// See [`Places`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, place: u32) {
        self.write_u64(place.into());
    }

    fn write_u64(&mut self, place: u64) {
        self.0 = (self.0.rotate_left(29) ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// More than these, and it is hashed.
const FEW: usize = 16;

/// A map from places.
#[derive(Debug)]
pub(crate) enum PlaceMap<V> {
    Few(SmallVec<[(u32, V); 2]>),
    Many(Box<Places<u32, V>>),
}

impl<V> Default for PlaceMap<V> {
    fn default() -> Self {
        PlaceMap::Few(SmallVec::new())
    }
}

impl<V: Default> PlaceMap<V> {
    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut V> {
        match self {
            PlaceMap::Few(few) => few.iter_mut().find(|(p, _)| *p == place).map(|(_, value)| value),
            PlaceMap::Many(many) => many.get_mut(&place),
        }
    }

    /// The value, which is the default if there was none; and whether there was none.
    pub(crate) fn get_or_default(&mut self, place: u32) -> (&mut V, bool) {
        if let PlaceMap::Few(few) = self
            && few.len() >= FEW
            && few.iter().all(|(p, _)| *p != place)
        {
            *self = PlaceMap::Many(Box::new(std::mem::take(few).into_iter().collect()));
        }
        match self {
            PlaceMap::Few(few) => {
                let (at, new) = match few.iter().position(|(p, _)| *p == place) {
                    Some(at) => (at, false),
                    None => {
                        few.push((place, V::default()));
                        (few.len() - 1, true)
                    }
                };
                (&mut few[at].1, new)
            }
            PlaceMap::Many(many) => match many.entry(place) {
                Entry::Occupied(entry) => (entry.into_mut(), false),
                Entry::Vacant(entry) => (entry.insert(V::default()), true),
            },
        }
    }

    pub(crate) fn remove(&mut self, place: u32) -> Option<V> {
        match self {
            PlaceMap::Few(few) => {
                let at = few.iter().position(|(p, _)| *p == place)?;
                Some(few.swap_remove(at).1)
            }
            PlaceMap::Many(many) => many.remove(&place),
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = u32> {
        let (few, many) = match self {
            PlaceMap::Few(few) => (Some(few), None),
            PlaceMap::Many(many) => (None, Some(many)),
        };
        few.into_iter().flatten().map(|(p, _)| *p).chain(many.into_iter().flat_map(|m| m.keys().copied()))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            PlaceMap::Few(few) => few.len(),
            PlaceMap::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PlaceMap<u32> {
    /// Counts one less: whether it was the last.
    pub(crate) fn take_one(&mut self, place: u32) -> bool {
        let count = self.get_mut(place).expect("counted");
        *count -= 1;
        let last = *count == 0;
        if last {
            self.remove(place);
        }
        last
    }
}

/// A set of places.
#[derive(Debug)]
pub(crate) enum PlaceSet {
    Few(SmallVec<[u32; 4]>),
    Many(Box<Places<u32, ()>>),
}

impl Default for PlaceSet {
    fn default() -> Self {
        PlaceSet::Few(SmallVec::new())
    }
}

impl PlaceSet {
    /// Whether it is new.
    pub(crate) fn insert(&mut self, place: u32) -> bool {
        match self {
            PlaceSet::Few(few) if few.contains(&place) => false,
            PlaceSet::Few(few) if few.len() < FEW => {
                few.push(place);
                true
            }
            PlaceSet::Few(few) => {
                let all = few.iter().copied().chain([place]);
                *self = PlaceSet::Many(Box::new(all.map(|p| (p, ())).collect()));
                true
            }
            PlaceSet::Many(many) => many.insert(place, ()).is_none(),
        }
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, place: u32) -> bool {
        match self {
            PlaceSet::Few(few) => match few.iter().position(|p| *p == place) {
                Some(at) => {
                    few.swap_remove(at);
                    true
                }
                None => false,
            },
            PlaceSet::Many(many) => many.remove(&place).is_some(),
        }
    }

    pub(crate) fn contains(&self, place: u32) -> bool {
        match self {
            PlaceSet::Few(few) => few.contains(&place),
            PlaceSet::Many(many) => many.contains_key(&place),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let (few, many) = match self {
            PlaceSet::Few(few) => (Some(few), None),
            PlaceSet::Many(many) => (None, Some(many)),
        };
        few.into_iter().flatten().copied().chain(many.into_iter().flat_map(|m| m.keys().copied()))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            PlaceSet::Few(few) => few.len(),
            PlaceSet::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<u32> for PlaceSet {
    fn from_iter<I: IntoIterator<Item = u32>>(places: I) -> Self {
        let mut set = PlaceSet::default();
        for place in places {
            set.insert(place);
        }
        set
    }
}

/// Finds places by names (or labels, or selectors) that are kept there, and only there.
#[derive(Debug, Default)]
pub(crate) struct Index {
    table: HashTable<(u64, u32)>,
    hasher: DefaultHashBuilder,
}

impl Index {
    /// The place at which this key is: `is_at` compares.
    pub(crate) fn find<K: Hash + ?Sized>(&self, key: &K, is_at: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |(h, place)| *h == hash && is_at(*place)).map(|(_, place)| *place)
    }

    /// Files a key that is not there yet.
    pub(crate) fn insert<K: Hash + ?Sized>(&mut self, key: &K, place: u32) {
        let hash = self.hasher.hash_one(key);
        self.table.insert_unique(hash, (hash, place), |(hash, _)| *hash);
    }

    /// Forgets a key.
    pub(crate) fn remove<K: Hash + ?Sized>(&mut self, key: &K, place: u32) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.table.find_entry(hash, |(_, p)| *p == place) {
            entry.remove();
        }
    }
}

/// A place in a slab, in the form in which it is kept.
pub(crate) fn place(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 of a kind")
}
