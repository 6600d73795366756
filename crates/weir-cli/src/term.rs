//! Text on its way to a person: escaped, and in colour where that is wanted.

use std::fmt::Write;
use std::io::IsTerminal;

/// Names and texts of manifests, with everything that could steer a terminal made visible.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters without a shape of their own: line ends, directions of writing, joiners, tags.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb
        | 0xe0000..=0xe007f)
}

/// How many columns standard output has; of what is no terminal, 100.
pub(crate) fn columns() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|n| n.parse().ok());
    let seen = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    told.or_else(seen).filter(|n: &usize| *n >= 40).unwrap_or(100)
}

/// Text in lines of so many columns, broken at spaces; all lines but the first begin with `indent` spaces. Words
/// that are longer stay in one piece.
pub(crate) fn wrap(text: &str, columns: usize, indent: usize) -> String {
    let room = columns.saturating_sub(indent).max(20);
    let mut out = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if used > 0 && used + 1 + width > room {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if !out.is_empty() {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += width;
    }
    out
}

/// Something that does not stop the answer.
pub(crate) fn note(kind: &str, text: &str) {
    eprintln!("weir: {kind}: {}", escape(text));
}

/// Something that does.
pub(crate) fn error(text: &str) {
    eprintln!("weir: {}", escape(text));
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    /// Colours if standard output is a terminal that has them and nobody objects.
    pub(crate) fn for_stdout() -> Paint {
        let objection = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Paint(std::io::stdout().is_terminal() && !objection && !dumb)
    }

    /// Green or red.
    pub(crate) fn verdict(self, good: bool, text: &str) -> String {
        self.wrap(if good { "32" } else { "31" }, text)
    }

    /// Less important.
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_steers_the_terminal() {
        let name = "a\x1b[31m\u{9b}m\n\u{202e}b\u{200b}é";
        assert_eq!(escape(name), "a\\u{1b}[31m\\u{9b}m\\u{a}\\u{202e}b\\u{200b}é");
    }

    #[test]
    fn lines_are_broken_at_spaces() {
        let text = "one two three four five six seven eight";
        assert_eq!(wrap(text, 24, 2), "one two three four\n  five six seven eight");
        assert_eq!(wrap("a  b", 40, 0), "a  b");
        assert_eq!(wrap(&"x".repeat(50), 40, 0), "x".repeat(50));
        assert_eq!(wrap("", 40, 0), "");
    }

    #[test]
    fn colours_are_off_unless_they_are_on() {
        assert_eq!(Paint(false).verdict(true, "x"), "x");
        assert_eq!(Paint(true).verdict(true, "x"), "\x1b[32mx\x1b[0m");
        assert_eq!(Paint(true).dim(""), "");
    }
}
