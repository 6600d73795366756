//! The selectors in use, and which of them match: only those that share a label with an object are looked at.

use hashbrown::{Equivalent, HashMap};
use slab::Slab;
use smallvec::SmallVec;

use crate::object::Labels;
use crate::selector::{Anchor, Selector};
use crate::small::{Index, place};

/// Interned selectors, filed by a label that what they match must have. Those that no label can tell, since
/// they are empty or have negative requirements only, are always looked at.
#[derive(Debug, Default)]
pub(crate) struct SelectorIndex {
    selectors: Slab<(Selector, usize)>,
    ids: Index,
    by_value: ByLabel<SmallVec<[u32; 4]>>,
    by_key: HashMap<String, Vec<u32>>,
    unanchored: Vec<u32>,
}

impl SelectorIndex {
    /// Takes a reference to the selector: its number, and whether it is new here.
    pub(crate) fn retain(&mut self, selector: &Selector) -> (u32, bool) {
        if let Some(id) = self.ids.find(selector, |id| self.selectors[id as usize].0 == *selector) {
            self.selectors[id as usize].1 += 1;
            return (id, false);
        }
        let id = place(self.selectors.insert((selector.clone(), 1)));
        self.ids.insert(selector, id);
        match selector.anchor() {
            Anchor::Values(key, values) => {
                values.iter().for_each(|value| self.by_value.get_or_default(key, value).push(id));
            }
            Anchor::Key(key) => self.by_key.entry(key.to_owned()).or_default().push(id),
            Anchor::None => self.unanchored.push(id),
        }
        (id, true)
    }

    /// Gives a reference back: whether it was the last, and the selector is forgotten.
    pub(crate) fn release(&mut self, id: u32) -> bool {
        self.selectors[id as usize].1 -= 1;
        if self.selectors[id as usize].1 > 0 {
            return false;
        }
        let (selector, _) = self.selectors.remove(id as usize);
        self.ids.remove(&selector, id);
        match selector.anchor() {
            Anchor::Values(key, values) => {
                for value in values {
                    self.by_value.edit(key, value, |list| {
                        list.retain(|other| *other != id);
                        list.is_empty()
                    });
                }
            }
            Anchor::Key(key) => {
                if let Some(list) = self.by_key.get_mut(key) {
                    list.retain(|other| *other != id);
                    if list.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            Anchor::None => self.unanchored.retain(|other| *other != id),
        }
        true
    }

    /// A selector that is in use.
    pub(crate) fn get(&self, id: u32) -> &Selector {
        &self.selectors[id as usize].0
    }

    /// The selectors that match these labels, in no order, each once.
    pub(crate) fn matching(&self, labels: &Labels) -> SmallVec<[u32; 4]> {
        // a selector is filed under one key, so no candidate comes twice
        let anchored = labels.iter().flat_map(|(key, value)| {
            let by_value = self.by_value.get(key, value).into_iter().flatten();
            by_value.chain(self.by_key.get(key).into_iter().flatten())
        });
        anchored.chain(&self.unanchored).copied().filter(|id| self.get(*id).matches(labels)).collect()
    }
}

/// Something for each label (key and value), found without a copy of the label.
#[derive(Debug)]
pub(crate) struct ByLabel<V>(HashMap<Label, V>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Label(Box<str>, Box<str>);

#[derive(Hash)]
struct LabelRef<'a>(&'a str, &'a str);

impl Equivalent<Label> for LabelRef<'_> {
    fn equivalent(&self, label: &Label) -> bool {
        (self.0, self.1) == (&*label.0, &*label.1)
    }
}

impl<V> Default for ByLabel<V> {
    fn default() -> Self {
        ByLabel(HashMap::new())
    }
}

impl<V: Default> ByLabel<V> {
    pub(crate) fn get(&self, key: &str, value: &str) -> Option<&V> {
        self.0.get(&LabelRef(key, value))
    }

    pub(crate) fn get_or_default(&mut self, key: &str, value: &str) -> &mut V {
        let label = LabelRef(key, value);
        if !self.0.contains_key(&label) {
            self.0.insert(Label(key.into(), value.into()), V::default());
        }
        self.0.get_mut(&label).expect("it was inserted if it was not there")
    }

    /// Edits what is there, and forgets it if that tells that nothing is left.
    pub(crate) fn edit(&mut self, key: &str, value: &str, edit: impl FnOnce(&mut V) -> bool) {
        let label = LabelRef(key, value);
        if self.0.get_mut(&label).is_some_and(edit) {
            self.0.remove(&label);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::selector::{Requirement, Values};
    use proptest::prelude::*;

    fn arb_labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[abc]", "[xyz]?", 0..4).prop_map(Labels::from)
    }

    fn arb_selector() -> impl Strategy<Value = Selector> {
        let values = proptest::collection::vec("[xyz]?", 1..3).prop_map(Values::from_iter);
        let one = prop_oneof![
            ("[abc]", values.clone()).prop_map(|(k, v)| Requirement::In(k, v)),
            ("[abc]", values).prop_map(|(k, v)| Requirement::NotIn(k, v)),
            "[abc]".prop_map(Requirement::Exists),
            "[abc]".prop_map(Requirement::DoesNotExist),
        ];
        proptest::collection::vec(one, 0..4).prop_map(Selector::from_iter)
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_the_selectors_that_match(
            selectors in proptest::collection::vec(arb_selector(), 0..12),
            released in proptest::collection::vec(any::<bool>(), 12),
            objects in proptest::collection::vec(arb_labels(), 1..5),
        ) {
            let mut index = SelectorIndex::default();
            let ids: Vec<u32> = selectors.iter().map(|s| index.retain(s).0).collect();
            let mut kept: BTreeSet<Selector> = BTreeSet::new();
            for ((id, selector), gone) in ids.iter().zip(&selectors).zip(&released) {
                if *gone { index.release(*id); } else { kept.insert(selector.clone()); }
            }
            for labels in &objects {
                let found: Vec<Selector> = index.matching(labels).into_iter().map(|id| index.get(id).clone()).collect();
                let found_once: BTreeSet<Selector> = found.iter().cloned().collect();
                prop_assert_eq!(found.len(), found_once.len());
                let want: BTreeSet<Selector> = kept.iter().filter(|s| s.matches(labels)).cloned().collect();
                prop_assert_eq!(found_once, want);
            }
        }
    }
}
