//! Labels of an object.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;

use serde::{Deserialize, Deserializer};

/// Labels of an object: keys with values, sorted by key, each key once. Objects have few: they are a list, of
/// which a hundred thousand take a tenth of what as many maps take.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// None.
    pub const fn new() -> Self {
        Labels(Vec::new())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&String> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }

    /// Gives a key a value: the one that it had.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Takes a key away: the value that it had.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    /// Keys with values, by key.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key))
    }
}

/// See [`Labels::iter`].
pub type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, (String, String)>,
    fn(&'a (String, String)) -> (&'a String, &'a String),
>;

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a String, &'a String);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Labels {
    type Item = (String, String);
    type IntoIter = std::vec::IntoIter<(String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Of a key that comes several times, the last value holds.
impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        let mut all: Vec<(String, String)> = labels.into_iter().collect();
        if !all.is_sorted_by(|a, b| a.0 < b.0) {
            all.reverse();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all.dedup_by(|a, b| a.0 == b.0);
        }
        all.shrink_to_fit();
        Labels(all)
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(labels: [(String, String); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        labels.into_iter().collect()
    }
}

impl Index<&str> for Labels {
    type Output = String;

    /// # Panics
    /// If the key is not there.
    fn index(&self, key: &str) -> &String {
        self.get(key).expect("no such label")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Labels::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn labels_are_as_a_map_would_have_them(
            pairs in proptest::collection::vec(("[a-d]", "[xyz]"), 0..8),
            edits in proptest::collection::vec(("[a-e]", proptest::option::of("[xyz]")), 0..6),
        ) {
            let mut map: BTreeMap<String, String> = pairs.iter().cloned().collect();
            let mut labels: Labels = pairs.into_iter().collect();
            for (key, value) in edits {
                let (ours, theirs) = match value {
                    Some(value) => (labels.insert(key.clone(), value.clone()), map.insert(key.clone(), value)),
                    None => (labels.remove(&key), map.remove(&key)),
                };
                prop_assert_eq!(ours, theirs);
                prop_assert_eq!(labels.get(&key), map.get(&key));
            }
            prop_assert!(labels.iter().eq(map.iter()), "{:?} {:?}", labels, map);
            prop_assert_eq!(labels, Labels::from(map));
        }
    }
}
