//! From a path in a policy to its place in a file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use weir_compiler::object::ObjectKey;
use weir_source::Place;
use weir_source::tree::{Tree, Value};

/// A step into an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Step {
        Step::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Step {
        Step::Index(index)
    }
}

/// Where in an object. Prints as `spec.ingress[0].from[1].podSelector.matchLabels.app`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct YamlPath(pub(crate) Vec<Step>);

/// A path from its steps.
macro_rules! at {
    ($($step:expr),* $(,)?) => {
        $crate::lint::source::YamlPath(vec![$($crate::lint::source::Step::from($step)),*])
    };
}
pub(crate) use at;

impl YamlPath {
    /// One step further.
    pub(crate) fn then(&self, step: impl Into<Step>) -> YamlPath {
        let mut steps = self.0.clone();
        steps.push(step.into());
        YamlPath(steps)
    }

    /// From what [`fmt::Display`] makes of it; keys with dots are taken apart, and then the value around
    /// them is found.
    pub(crate) fn parse(text: &str) -> YamlPath {
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (key, indexes) = part.split_once('[').map_or((part, ""), |(k, rest)| (k, rest));
            if !key.is_empty() {
                steps.push(Step::Key(key.to_owned()));
            }
            for index in indexes.split('[').filter_map(|i| i.trim_end_matches(']').parse().ok()) {
                steps.push(Step::Index(index));
            }
        }
        YamlPath(steps)
    }
}

impl fmt::Display for YamlPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '/', '[']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if i == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) place: Place,
    /// The line's text.
    pub(crate) text: String,
    /// First and last character, counted from 0, the last exclusive.
    pub(crate) columns: (usize, usize),
}

/// The texts of files, and where policies stand in them.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    files: BTreeMap<PathBuf, Vec<String>>,
    places: BTreeMap<ObjectKey, Place>,
}

impl Sources {
    /// Of policies that stand there; the texts are [added](Sources::add).
    pub(crate) fn new(places: &BTreeMap<ObjectKey, Place>) -> Sources {
        Sources { files: BTreeMap::new(), places: places.clone() }
    }

    /// A file's text.
    pub(crate) fn add(&mut self, file: &Path, text: &str) {
        self.files.insert(file.to_owned(), text.lines().map(str::to_owned).collect());
    }

    /// A line of a file.
    pub(crate) fn line(&self, place: &Place) -> Option<&str> {
        let line = usize::try_from(place.line).ok()?.checked_sub(1)?;
        self.files.get(&*place.file)?.get(line).map(String::as_str)
    }

    /// Where a path of a policy is; of one that leads nowhere, as far as it leads.
    pub(crate) fn span(&self, policy: &ObjectKey, root: &Tree, path: &YamlPath) -> Option<Span> {
        let file = &self.places.get(policy)?.file;
        let (mut tree, mut key, mut above) = (root, None, root.line);
        for step in &path.0 {
            let Some(next) = step_into(tree, step) else { break };
            above = tree.line;
            tree = next;
            key = if let Step::Key(key) = step { Some(key.as_str()) } else { None };
        }
        let at = |line| Place { file: file.clone(), line };
        if let Some(key) = key {
            // a mapping or sequence in block style begins below its key, and may have the same key in its first line
            let is_block = |line: &str| {
                !["[", "{"].iter().any(|open| {
                    let mut found = line.match_indices(key);
                    found.any(|(at, _)| {
                        line[at + key.len()..].trim_start_matches(['"', '\'', ':', ' ']).starts_with(open)
                    })
                })
            };
            let is_below = matches!(tree.value, Value::Map(_) | Value::Seq(_))
                && self.line(&at(tree.line)).is_some_and(is_block);
            let lines = (above..=tree.line - u64::from(is_below && tree.line > above)).rev();
            let found = lines.take(MOST_LINES).find_map(|line| {
                let text = self.line(&at(line))?;
                Some((line, key_columns(text, key, tree)?))
            });
            if let Some((line, columns)) = found {
                return Some(self.part(at(line), columns));
            }
        }
        Some(self.whole(at(tree.line)))
    }

    /// A line without what is around its text.
    pub(crate) fn whole(&self, place: Place) -> Span {
        let text = self.line(&place).unwrap_or_default();
        let bare = without_comment(text).trim_end();
        let first = bare.chars().take_while(|c| c.is_whitespace()).count();
        let last = bare.chars().count().max(first);
        self.part(place, (first, last))
    }

    fn part(&self, place: Place, columns: (usize, usize)) -> Span {
        let text = self.line(&place).unwrap_or_default().to_owned();
        Span { place, text, columns }
    }

    /// Whether a comment on the line of a place or on the one before it says `weir: ignore CODE`.
    pub(crate) fn ignores(&self, place: &Place, code: &str) -> bool {
        let says = |line: &str| {
            let comment = line.find('#').map_or("", |at| &line[at..]);
            let Some((_, codes)) = comment.split_once("weir: ignore") else { return false };
            codes.split([' ', ',']).any(|word| word == code)
        };
        let before = Place { line: place.line.saturating_sub(1), ..place.clone() };
        let above = self.line(&before).filter(|line| line.trim_start().starts_with('#'));
        [self.line(place), above].into_iter().flatten().any(says)
    }
}

/// How far above a value its key is looked for: comments may be between.
const MOST_LINES: usize = 100;

/// The value at a path of an object, as it was written.
pub(crate) fn value<'a>(root: &'a Tree, path: &YamlPath) -> Option<&'a Tree> {
    path.0.iter().try_fold(root, step_into)
}

fn step_into<'a>(tree: &'a Tree, step: &Step) -> Option<&'a Tree> {
    match (step, &tree.value) {
        (Step::Key(key), _) => tree.get(key),
        (Step::Index(index), Value::Seq(items)) => items.get(*index),
        _ => None,
    }
}

/// From a key in a line to the end of its value, if that is in the line, too.
fn key_columns(line: &str, key: &str, value: &Tree) -> Option<(usize, usize)> {
    let text = without_comment(line).trim_end();
    let start = [format!("{key}:"), format!("\"{key}\":"), format!("'{key}':")].iter().find_map(|k| {
        text.match_indices(k.as_str()).map(|(at, _)| at).find(|at| {
            let before = text[..*at].chars().next_back();
            before.is_none_or(|c| c.is_whitespace() || "{,[\"'".contains(c))
        })
    })?;
    let rest = &text[start..];
    let scalar = match &value.value {
        Value::Text(text) => text.clone(),
        Value::Int(n) => n.to_string(),
        _ => String::new(),
    };
    let colon = rest.find(':').map_or(rest.len(), |at| at + 1);
    let end = match rest[colon..].find(&scalar) {
        Some(at) if !scalar.is_empty() => {
            let end = colon + at + scalar.len();
            end + rest[end..].chars().next().filter(|c| matches!(c, '"' | '\'')).map_or(0, char::len_utf8)
        }
        _ => rest.len(),
    };
    let columns = |bytes: usize| text[..bytes].chars().count();
    Some((columns(start), columns(start + end)))
}

/// A line up to its comment. A `#` within quotes is taken for one only if a blank is before it, which costs an
/// excerpt some of its underline and nothing else.
fn without_comment(line: &str) -> &str {
    match line.find(" #") {
        Some(at) => &line[..at],
        None if line.trim_start().starts_with('#') => "",
        None => line,
    }
}

/// A file's path as an URI reference.
pub(crate) fn uri(path: &Path) -> String {
    let mut uri = String::new();
    for byte in path.to_string_lossy().replace('\\', "/").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                uri.push(byte.into())
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
