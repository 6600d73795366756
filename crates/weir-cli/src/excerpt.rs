//! The line of a file that something is said of.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use weir_source::Place;
use weir_source::inventory::STDIN;
use weir_source::tree::{Tree, Value};

use crate::term::escape;

/// How much of a line is shown.
const WIDTH: usize = 100;

/// Reads files again to show lines of them.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    texts: HashMap<PathBuf, Option<Text>>,
}

/// A file, and where its lines begin.
#[derive(Debug)]
struct Text {
    text: String,
    lines: Vec<usize>,
}

impl Text {
    fn new(bytes: &[u8]) -> Text {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Text { text, lines }
    }

    /// Counted from 0.
    fn line(&self, at: usize) -> Option<&str> {
        let start = *self.lines.get(at)?;
        let end = self.lines.get(at + 1).copied().unwrap_or(self.text.len());
        Some(self.text.get(start..end)?).filter(|line| !line.is_empty())
    }
}

impl Sources {
    /// With what standard input was.
    pub(crate) fn new(stdin: Option<&[u8]>) -> Sources {
        let text = stdin.map(|bytes| (PathBuf::from(STDIN), Some(Text::new(bytes))));
        Sources { texts: text.into_iter().collect() }
    }

    /// The text of a file, if it can be read.
    pub(crate) fn text(&mut self, file: &Path) -> Option<&str> {
        self.read(file).map(|text| text.text.as_str())
    }

    fn read(&mut self, file: &Path) -> Option<&Text> {
        let read = || std::fs::read(file).ok().map(|bytes| Text::new(&bytes));
        self.texts.entry(file.to_owned()).or_insert_with(read).as_ref()
    }

    /// The line, with its number in front; `key` is underlined, if it is there once.
    pub(crate) fn excerpt(&mut self, place: &Place, key: Option<&str>) -> Option<String> {
        let text = self.read(&place.file)?;
        let at = usize::try_from(place.line).ok()?.checked_sub(1)?;
        let line = text.line(at)?;
        let line = line.trim_end();
        let found = key.and_then(|key| line_key(line, key));
        // of a long line, what is around the key
        let long = line.chars().count() > WIDTH;
        let from = if long { found.map_or(0, |at| at.saturating_sub(WIDTH / 2)) } else { 0 };
        let cut: String = line.chars().skip(from).take(WIDTH).collect();
        let before = if from > 0 { "..." } else { "" };
        let after = if from + cut.chars().count() < line.chars().count() { "..." } else { "" };
        let number = place.line.to_string();
        let gutter = " ".repeat(number.len());
        let mut out = format!("{gutter} |\n{number} | {before}{}{after}", escape(&cut));
        if let (Some(at), Some(key)) = (found, key) {
            // what is escaped is wider
            let left: String = cut.chars().take(at - from).collect();
            let columns = before.len() + escape(&left).chars().count();
            let width = escape(key).chars().count();
            out.push_str(&format!("\n{gutter} | {}{}", " ".repeat(columns), "^".repeat(width)));
        }
        Some(out)
    }
}

/// How many characters of a line are before a key, if it is there once.
fn line_key(line: &str, key: &str) -> Option<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let mut found = line.match_indices(key).filter(|(at, _)| {
        let after = &line[at + key.len()..];
        !is_word(line[..*at].chars().next_back())
            && after.trim_start_matches(['"', '\'']).trim_start().starts_with(':')
    });
    let (at, _) = found.next()?;
    let single = found.next().is_none() && !key.is_empty();
    single.then(|| line[..at].chars().count())
}

/// The line of a path such as `spec.ingress[0].from[1].ipBlock.cidr` in an object, or of what of it there is.
pub(crate) fn line_of(tree: &Tree, path: &str) -> u64 {
    let (mut tree, mut line) = (tree, tree.line);
    let mut rest = path;
    while !rest.is_empty() {
        rest = rest.trim_start_matches('.');
        let next = if let Some(inner) = rest.strip_prefix('[') {
            let Some((index, after)) = inner.split_once(']') else { break };
            rest = after;
            match (&tree.value, index.parse::<usize>()) {
                (Value::Seq(items), Ok(i)) => items.get(i),
                _ => None,
            }
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let key = &rest[..end];
            rest = &rest[end..];
            tree.get(key)
        };
        let Some(next) = next else { break };
        tree = next;
        if tree.line > 0 {
            line = tree.line;
        }
    }
    line
}

/// The last key of a path.
pub(crate) fn last_key(path: &str) -> Option<&str> {
    let key = path.rsplit('.').next()?;
    Some(key.split('[').next().unwrap_or(key)).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_key() {
        let line = format!("{}x\u{1b}: {{port: 0}}{}", " ".repeat(200), " #".repeat(100));
        let mut sources = Sources::new(Some(line.as_bytes()));
        let place = Place { file: PathBuf::from(STDIN).into(), line: 1 };
        let told = sources.excerpt(&place, Some("port")).expect("a line");
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[1].starts_with("1 | ...") && lines[1].ends_with("#..."), "{told}");
        assert!(!told.contains('\u{1b}'));
        assert_eq!(lines[1].find("port"), lines[2].find("^^^^"), "{told}");
        assert_eq!(sources.excerpt(&Place { line: 2, ..place }, None), None);
    }

    #[test]
    fn keys_are_underlined_where_they_are_once() {
        assert_eq!(line_key("  - ipBlock: {cidr: ten}", "cidr"), Some(14));
        assert_eq!(line_key("{a: {port: 1}, b: {port: 2}}", "port"), None);
        assert_eq!(line_key("{endPort: 1, port: 2}", "port"), Some(13));
        assert_eq!(line_key("\"port\" : 2", "port"), Some(1));
        assert_eq!(line_key("é\u{1b}: {port: 2}", "port"), Some(5));
        assert_eq!(line_key("- x", "port"), None);
        assert_eq!(last_key("spec.ingress[0].from[1]"), Some("from"));
        assert_eq!(last_key(""), None);
    }
}
