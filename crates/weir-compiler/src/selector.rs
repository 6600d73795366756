//! Label selectors in a canonical form.

use std::ops::Deref;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::object::{LabelSelector, Labels};

/// A selector: all requirements must hold. Two selectors that are written differently but have
/// the same requirements are equal. A copy shares them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Selector(Arc<[Requirement]>);

/// One condition on labels (N27).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The key is there and its value is one of these (never none).
    In(String, Values),
    /// The key is not there, or its value is none of these (never none).
    NotIn(String, Values),
    /// The key is there.
    Exists(String),
    /// The key is not there.
    DoesNotExist(String),
}

/// Values of a label, sorted, each once. There is one most of the time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Values(SmallVec<[String; 1]>);

impl Deref for Values {
    type Target = [String];
    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl FromIterator<String> for Values {
    fn from_iter<I: IntoIterator<Item = String>>(values: I) -> Self {
        let mut values: SmallVec<[String; 1]> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        Values(values)
    }
}

impl From<&str> for Values {
    fn from(value: &str) -> Self {
        Values([value.to_owned()].into())
    }
}

impl<'a> IntoIterator for &'a Values {
    type Item = &'a String;
    type IntoIter = std::slice::Iter<'a, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
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
        Selector(Arc::new([Requirement::In(key.to_owned(), value.into())]))
    }

    /// The canonical form of a selector, and what of it cannot be evaluated (with the path of it).
    /// Those parts are left out of the selector: the caller decides what is closed, more or nothing.
    pub fn read(selector: &LabelSelector) -> (Self, Vec<(String, String)>) {
        let mut all: SmallVec<[Requirement; 2]> = SmallVec::new();
        let mut unreadable = Vec::new();
        for field in selector.unknown.keys() {
            unreadable.push((field.clone(), "unknown field".to_owned()));
        }
        for (key, value) in &selector.match_labels {
            all.push(Requirement::In(key.clone(), value.as_str().into()));
        }
        for (i, r) in selector.match_expressions.iter().enumerate() {
            let values: Values = r.values.iter().cloned().collect();
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
                ("In", false) => all.push(Requirement::In(r.key.clone(), values)),
                ("NotIn", false) => all.push(Requirement::NotIn(r.key.clone(), values)),
                ("Exists", true) => all.push(Requirement::Exists(r.key.clone())),
                ("DoesNotExist", true) => all.push(Requirement::DoesNotExist(r.key.clone())),
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
        (all.into_iter().collect(), unreadable)
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
        for r in self.requirements() {
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
        let mut all: SmallVec<[Requirement; 2]> = requirements.into_iter().collect();
        if all.len() == 1
            && let Some(one) = all.pop()
        {
            return Selector(Arc::new([one]));
        }
        all.sort_unstable();
        all.dedup();
        Selector(all.into_vec().into())
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
            let list = |values: &Values| values.join(", ");
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
    Values(&'a str, &'a Values),
    /// This key.
    Key(&'a str),
    /// Labels say nothing: it is empty, or has negative requirements only.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::LabelRequirement;

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
}
