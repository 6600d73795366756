//! What may have been meant by a label that nobody has.

use std::collections::BTreeSet;

use weir_compiler::object::Labels;
use weir_compiler::selector::{Requirement, Selector};

/// How many names are told.
const NAMED: usize = 3;

/// Whether two texts look alike.
pub(crate) fn alike(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    let most = (one.chars().count().max(other.chars().count()) / 4).clamp(1, 3);
    strsim::osa_distance(&one, &other) <= most
}

/// The nearest of some texts, if they look alike.
pub(crate) fn nearest<'a>(wanted: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = among.filter(|text| alike(wanted, text));
    alike.min_by_key(|text| (strsim::osa_distance(wanted, text), *text))
}

/// Some of a list, and how many more there are.
pub(crate) fn some<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<T> = texts.into_iter().collect();
    let mut named: Vec<String> = texts.iter().take(NAMED).map(|t| t.as_ref().to_owned()).collect();
    if texts.len() > NAMED {
        named.push(format!("{} more", texts.len() - NAMED));
    }
    named.join(", ")
}

/// Why a selector matches none of these labels, requirement by requirement; and what may be meant.
pub(crate) fn why_none(
    selector: &Selector,
    labels: &[&Labels],
    who: &str,
) -> (Option<String>, Option<String>) {
    if labels.is_empty() {
        return (None, None);
    }
    let (mut why, mut help) = (Vec::new(), Vec::new());
    for requirement in selector.requirements() {
        if labels.iter().any(|l| requirement.matches(l)) {
            continue;
        }
        match requirement {
            Requirement::In(key, values) => {
                let wanted: Vec<&str> = values.iter().map(String::as_str).collect();
                let there: BTreeSet<&str> =
                    labels.iter().filter_map(|l| l.get(key)).map(String::as_str).collect();
                if there.is_empty() {
                    why.push(format!("no {who} has a label {key}"));
                    help.extend(other_key(key, &wanted, labels));
                    continue;
                }
                why.push(format!("no {who} has {key}={}; there is {}", wanted.join(" or "), some(&there)));
                let near = wanted.iter().find_map(|w| nearest(w, there.iter().copied()));
                match near {
                    Some(near) => help.push(format!("did you mean {key}={near}?")),
                    None => help.extend(other_key(key, &wanted, labels)),
                }
            }
            Requirement::Exists(key) => {
                why.push(format!("no {who} has a label {key}"));
                help.extend(other_key(key, &[], labels));
            }
            Requirement::NotIn(key, values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                why.push(format!("every {who} has {key}={}", values.join(" or ")));
            }
            Requirement::DoesNotExist(key) => why.push(format!("every {who} has a label {key}")),
        }
    }
    if why.is_empty() {
        why.push(format!("each part of it matches some {who}, but no {who} matches all of them"));
    }
    (Some(why.join("; ")), (!help.is_empty()).then(|| help.join(" ")))
}

/// Another key that is nearly the same, or has one of the values.
fn other_key(key: &str, values: &[&str], labels: &[&Labels]) -> Option<String> {
    let keys: BTreeSet<&str> = labels.iter().flat_map(|l| l.keys()).map(String::as_str).collect();
    let with = |k: &str| {
        let value = values.iter().find(|v| labels.iter().any(|l| l.get(k).is_some_and(|x| x == **v)));
        value.map_or_else(|| k.to_owned(), |v| format!("{k}={v}"))
    };
    if let Some(near) = nearest(key, keys.iter().copied().filter(|k| *k != key)) {
        return Some(format!("did you mean {}?", with(near)));
    }
    let has = |k: &&&str| labels.iter().any(|l| l.get(k).is_some_and(|v| values.contains(&v.as_str())));
    let last = |k: &str| k.rsplit('/').next().unwrap_or(k).to_owned();
    let found = keys.iter().filter(has).min_by_key(|k| (last(k) != last(key), **k))?;
    Some(format!("did you mean {}?", with(found)))
}
