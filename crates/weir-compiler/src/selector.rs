//! Label selectors in a canonical form, and the index that finds those which match.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use slab::Slab;

use crate::object::{LabelSelector, Labels};

/// A selector: all requirements must hold. Two selectors that are written differently but have
/// the same requirements are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Selector(BTreeSet<Requirement>);

/// One condition on labels (N27).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The key is there and its value is one of these (never none).
    In(String, BTreeSet<String>),
    /// The key is not there, or its value is none of these (never none).
    NotIn(String, BTreeSet<String>),
    /// The key is there.
    Exists(String),
    /// The key is not there.
    DoesNotExist(String),
}

impl Requirement {
    /// Whether labels satisfy it.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// The selector that matches everything.
    pub fn everything() -> Self {
        Selector::default()
    }

    /// The selector of one value of one label.
    pub fn label(key: &str, value: &str) -> Self {
        Selector([Requirement::In(key.to_owned(), [value.to_owned()].into())].into())
    }

    /// The canonical form of a selector, and what of it cannot be evaluated (with the path of it).
    /// Those parts are left out of the selector: the caller decides what is closed, more or nothing.
    pub fn read(selector: &LabelSelector) -> (Self, Vec<(String, String)>) {
        let mut all = BTreeSet::new();
        let mut unreadable = Vec::new();
        for field in selector.unknown.keys() {
            unreadable.push((field.clone(), "unknown field".to_owned()));
        }
        for (key, value) in &selector.match_labels {
            all.insert(Requirement::In(key.clone(), [value.clone()].into()));
        }
        for (i, r) in selector.match_expressions.iter().enumerate() {
            let values: BTreeSet<String> = r.values.iter().cloned().collect();
            let mut wrong = |what: String| unreadable.push((format!("matchExpressions[{i}]"), what));
            if let Some(field) = r.unknown.keys().next() {
                wrong(format!("unknown field {field:?}"));
                continue;
            }
            if r.key.is_empty() {
                wrong("key is missing".to_owned());
                continue;
            }
            match (r.operator.as_str(), values.is_empty()) {
                ("In", false) => all.insert(Requirement::In(r.key.clone(), values)),
                ("NotIn", false) => all.insert(Requirement::NotIn(r.key.clone(), values)),
                ("Exists", true) => all.insert(Requirement::Exists(r.key.clone())),
                ("DoesNotExist", true) => all.insert(Requirement::DoesNotExist(r.key.clone())),
                (op @ ("In" | "NotIn"), true) => {
                    wrong(format!("operator {op} needs values"));
                    continue;
                }
                (op @ ("Exists" | "DoesNotExist"), false) => {
                    wrong(format!("operator {op} takes no values"));
                    continue;
                }
                (op, _) => {
                    wrong(format!("operator {op:?} is not In, NotIn, Exists or DoesNotExist"));
                    continue;
                }
            };
        }
        (Selector(all), unreadable)
    }

    /// Whether labels satisfy all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// The requirements, in order.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }

    /// Labels of which a match has at least one: the requirement by which an index files the
    /// selector. The one with the fewest values, for it is likely to be the rarest.
    pub fn anchor(&self) -> Anchor<'_> {
        let mut best = Anchor::None;
        for r in &self.0 {
            match (r, &best) {
                (Requirement::In(key, values), Anchor::Values(_, best_values))
                    if values.len() < best_values.len() =>
                {
                    best = Anchor::Values(key, values);
                }
                (Requirement::In(key, values), Anchor::None | Anchor::Key(_)) => {
                    best = Anchor::Values(key, values);
                }
                (Requirement::Exists(key), Anchor::None) => best = Anchor::Key(key),
                _ => {}
            }
        }
        best
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        Selector(requirements.into_iter().collect())
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all");
        }
        for (i, r) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
            match r {
                Requirement::In(key, values) => match values.first() {
                    Some(one) if values.len() == 1 => write!(f, "{key}={one}")?,
                    _ => write!(f, "{key} in ({})", list(values))?,
                },
                Requirement::NotIn(key, values) => write!(f, "{key} not in ({})", list(values))?,
                Requirement::Exists(key) => write!(f, "{key}")?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// See [`Selector::anchor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor<'a> {
    /// One of these values of this key.
    Values(&'a str, &'a BTreeSet<String>),
    /// This key.
    Key(&'a str),
    /// Labels say nothing: it is empty, or has negative requirements only.
    None,
}

/// Interned selectors, and an index from labels to those that match them: only selectors that
/// share a label with the object, and those without an anchor, are looked at.
#[derive(Debug, Default)]
pub(crate) struct SelectorIndex {
    selectors: Slab<(Selector, usize)>,
    ids: HashMap<Selector, usize>,
    by_value: HashMap<(String, String), Vec<usize>>,
    by_key: HashMap<String, Vec<usize>>,
    unanchored: Vec<usize>,
}

impl SelectorIndex {
    /// Takes a reference to the selector: its number, and whether it is new here.
    pub(crate) fn retain(&mut self, selector: &Selector) -> (usize, bool) {
        if let Some(&id) = self.ids.get(selector) {
            self.selectors[id].1 += 1;
            return (id, false);
        }
        let id = self.selectors.insert((selector.clone(), 1));
        self.ids.insert(selector.clone(), id);
        match selector.anchor() {
            Anchor::Values(key, values) => {
                for value in values {
                    self.by_value.entry((key.to_owned(), value.clone())).or_default().push(id);
                }
            }
            Anchor::Key(key) => self.by_key.entry(key.to_owned()).or_default().push(id),
            Anchor::None => self.unanchored.push(id),
        }
        (id, true)
    }

    /// Gives a reference back: whether it was the last, and the selector is forgotten.
    pub(crate) fn release(&mut self, id: usize) -> bool {
        self.selectors[id].1 -= 1;
        if self.selectors[id].1 > 0 {
            return false;
        }
        let (selector, _) = self.selectors.remove(id);
        self.ids.remove(&selector);
        let forget = |list: &mut Vec<usize>| {
            if let Some(at) = list.iter().position(|&x| x == id) {
                list.swap_remove(at);
            }
            list.is_empty()
        };
        match selector.anchor() {
            Anchor::Values(key, values) => {
                for value in values {
                    let key = (key.to_owned(), value.clone());
                    if self.by_value.get_mut(&key).is_some_and(forget) {
                        self.by_value.remove(&key);
                    }
                }
            }
            Anchor::Key(key) => {
                if self.by_key.get_mut(key).is_some_and(forget) {
                    self.by_key.remove(key);
                }
            }
            Anchor::None => {
                forget(&mut self.unanchored);
            }
        }
        true
    }

    #[cfg(test)]
    pub(crate) fn get(&self, id: usize) -> &Selector {
        &self.selectors[id].0
    }

    /// The selectors that match these labels, in no order, each once.
    pub(crate) fn matching(&self, labels: &Labels) -> Vec<usize> {
        // a selector is filed under one key, so no candidate comes twice
        let anchored = labels.iter().flat_map(|(key, value)| {
            let by_value = self.by_value.get(&(key.clone(), value.clone()));
            let by_key = self.by_key.get(key);
            by_value.into_iter().chain(by_key).flatten()
        });
        anchored.chain(&self.unanchored).copied().filter(|&id| self.selectors[id].0.matches(labels)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::LabelRequirement;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn expr(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: vec![LabelRequirement {
                key: key.into(),
                operator: operator.into(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn read(selector: &LabelSelector) -> Selector {
        let (selector, unreadable) = Selector::read(selector);
        assert_eq!(unreadable, []);
        selector
    }

    #[test]
    fn n27_selector_algebra() {
        let none = labels(&[]);
        let empty = labels(&[("k", "")]);
        let a = labels(&[("k", "a")]);
        for (operator, values, want) in [
            ("In", &["a", "b"][..], [false, false, true]),
            ("In", &[""], [false, true, false]),
            ("NotIn", &["a"], [true, true, false]), // T5: an absent key satisfies NotIn
            ("Exists", &[], [false, true, true]),
            ("DoesNotExist", &[], [true, false, false]),
        ] {
            let s = read(&expr("k", operator, values));
            assert_eq!([&none, &empty, &a].map(|l| s.matches(l)), want, "{operator} {values:?}");
        }
        assert!(read(&LabelSelector::default()).matches(&none));
    }

    #[test]
    fn what_cannot_be_evaluated_is_named() {
        for (operator, values, why) in [
            ("Foo", &[][..], "operator \"Foo\" is not In"),
            ("In", &[], "operator In needs values"),
            ("Exists", &["x"], "operator Exists takes no values"),
        ] {
            let (selector, unreadable) = Selector::read(&expr("k", operator, values));
            assert_eq!(selector, Selector::everything());
            assert_eq!(unreadable[0].0, "matchExpressions[0]");
            assert!(unreadable[0].1.starts_with(why), "{unreadable:?}");
        }
    }

    #[test]
    fn n30_a_value_that_no_label_can_have_is_taken_literally() {
        let bad = "not a label value!";
        assert!(!read(&expr("k", "In", &[bad])).matches(&labels(&[("k", "a")])));
        assert!(read(&expr("k", "NotIn", &[bad])).matches(&labels(&[("k", "a")])));
    }

    fn arb_labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[abc]", "[xyz]?", 0..4)
    }

    fn arb_selector() -> impl Strategy<Value = Selector> {
        let values = proptest::collection::btree_set("[xyz]?", 1..3);
        let one = prop_oneof![
            ("[abc]", values.clone()).prop_map(|(k, v)| Requirement::In(k, v)),
            ("[abc]", values).prop_map(|(k, v)| Requirement::NotIn(k, v)),
            "[abc]".prop_map(Requirement::Exists),
            "[abc]".prop_map(Requirement::DoesNotExist),
        ];
        proptest::collection::btree_set(one, 0..4).prop_map(Selector)
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_the_selectors_that_match(
            selectors in proptest::collection::vec(arb_selector(), 0..12),
            released in proptest::collection::vec(any::<bool>(), 12),
            objects in proptest::collection::vec(arb_labels(), 1..5),
        ) {
            let mut index = SelectorIndex::default();
            let ids: Vec<usize> = selectors.iter().map(|s| index.retain(s).0).collect();
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
