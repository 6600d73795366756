//! Expected and observed, side by side: for programs as JSON, for people as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use weir_compiler::object::ObjectKey;

use crate::ports::{Port, Transport};

/// How many differences are spelt out below the tables.
const LISTED: usize = 20;

/// What policies say and packets do, in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The evaluator's verdict: passes.
    pub expected: bool,
    /// The packets': passes.
    pub observed: bool,
}

/// One flow, over all families that both pods have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The client.
    pub from: ObjectKey,
    /// The server.
    pub to: ObjectKey,
    /// Protocol and destination port.
    pub port: Port,
    /// `IPv4`, `IPv6` or both.
    pub families: BTreeMap<String, Answer>,
}

impl Row {
    /// Passes in every family, as policies have it.
    pub fn expected(&self) -> bool {
        self.families.values().all(|a| a.expected)
    }

    /// Passes in every family, as packets have it.
    pub fn observed(&self) -> bool {
        self.families.values().all(|a| a.observed)
    }

    /// Some family's packets do not do what policies say.
    pub fn differs(&self) -> bool {
        self.families.values().any(|a| a.expected != a.observed)
    }

    fn is_mixed(&self) -> bool {
        self.families.values().any(|a| (a.expected, a.observed) != (self.expected(), self.observed()))
    }
}

/// A row as `-o json` prints it.
#[derive(Serialize)]
struct JsonRow<'a> {
    from: String,
    to: String,
    port: u16,
    protocol: Transport,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u16>,
    expected: bool,
    observed: bool,
    /// Only where the families are not of one mind.
    #[serde(skip_serializing_if = "Option::is_none")]
    families: Option<&'a BTreeMap<String, Answer>>,
}

/// All flows that were probed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The flows, by port, client and server.
    pub rows: Vec<Row>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

impl Report {
    /// Some packet does not do what policies say.
    pub fn differs(&self) -> bool {
        self.rows.iter().any(Row::differs)
    }

    /// An array of {from, to, port, protocol, expected, observed}. With two families that are not of one mind,
    /// the booleans mean "in both", and `families` has them one by one.
    pub fn json(&self) -> serde_json::Result<String> {
        let rows: Vec<JsonRow<'_>> = self
            .rows
            .iter()
            .map(|row| JsonRow {
                from: row.from.to_string(),
                to: row.to.to_string(),
                port: row.port.number,
                protocol: row.port.protocol,
                bytes: (row.port.bytes > 0).then_some(row.port.bytes),
                expected: row.expected(),
                observed: row.observed(),
                families: row.is_mixed().then_some(&row.families),
            })
            .collect();
        serde_json::to_string_pretty(&rows)
    }

    /// One table for each distinct outcome, headed by the ports that have it; then what differs.
    pub fn table(&self, color: bool) -> String {
        let mut names: Vec<&ObjectKey> = self.rows.iter().flat_map(|r| [&r.from, &r.to]).collect();
        names.sort_unstable();
        names.dedup();
        let mut by_port: BTreeMap<(Transport, Port), Pairs<'_>> = BTreeMap::new();
        for row in &self.rows {
            let port = by_port.entry((row.port.protocol, row.port)).or_default();
            port.insert((&row.from, &row.to), row);
        }
        let mut groups: Vec<(Vec<Port>, Vec<Vec<Cell>>)> = Vec::new();
        for ((_, port), rows) in &by_port {
            let cells: Vec<Vec<Cell>> = names
                .iter()
                .map(|from| {
                    names.iter().map(|to| Cell::of(from, to, rows.get(&(*from, *to)).copied())).collect()
                })
                .collect();
            match groups.iter_mut().find(|(_, other)| *other == cells) {
                Some((ports, _)) => ports.push(*port),
                None => groups.push((vec![*port], cells)),
            }
        }
        let mut text = String::new();
        for (ports, cells) in &groups {
            let ports: Vec<String> = ports.iter().map(Port::to_string).collect();
            let _ = writeln!(text, "{}", paint(color, "1", &ports.join("  ")));
            draw(&mut text, &names, cells, color);
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "from the pod of the row to the pod of the column:  {} passes   {} dropped   {} itself",
            Cell::Pass.mark(color).trim_start(),
            Cell::Drop.mark(color).trim_start(),
            Cell::Itself.mark(color).trim_start()
        );
        self.conclude(&mut text, color);
        text
    }

    fn conclude(&self, text: &mut String, color: bool) {
        let differing: Vec<&Row> = self.rows.iter().filter(|r| r.differs()).collect();
        if differing.is_empty() {
            let good = format!("all {} flows do what the policies say", self.rows.len());
            let _ = writeln!(text, "{}", paint(color, "32", &good));
            return;
        }
        let _ = writeln!(
            text,
            "{} passes but should be dropped   {} dropped but should pass",
            Cell::Leak.mark(color).trim_start(),
            Cell::Cut.mark(color).trim_start()
        );
        let bad =
            format!("{} of {} flows do not do what the policies say:", differing.len(), self.rows.len());
        let _ = writeln!(text, "{}", paint(color, "1;31", &bad));
        for row in differing.iter().take(LISTED) {
            for (family, answer) in row.families.iter().filter(|(_, a)| a.expected != a.observed) {
                let what = if answer.observed {
                    "passes, policies drop it"
                } else {
                    "dropped, policies let it pass"
                };
                let _ = writeln!(text, "  {} -> {} {} over {family}: {what}", row.from, row.to, row.port);
            }
        }
        if differing.len() > LISTED {
            let _ = writeln!(text, "  and {} more", differing.len() - LISTED);
        }
    }
}

/// The rows of one port, by client and server.
type Pairs<'a> = BTreeMap<(&'a ObjectKey, &'a ObjectKey), &'a Row>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Itself,
    None,
    Pass,
    Drop,
    /// One family passes, the other does not, as policies have it.
    Half,
    Leak,
    Cut,
}

impl Cell {
    fn of(from: &ObjectKey, to: &ObjectKey, row: Option<&Row>) -> Cell {
        let Some(row) = row else { return if from == to { Cell::Itself } else { Cell::None } };
        if row.families.values().any(|a| a.observed && !a.expected) {
            return Cell::Leak;
        }
        if row.differs() {
            return Cell::Cut;
        }
        match (row.observed(), row.is_mixed()) {
            (true, _) => Cell::Pass,
            (false, false) => Cell::Drop,
            (false, true) => Cell::Half,
        }
    }

    /// Two columns wide.
    fn mark(self, color: bool) -> String {
        match self {
            Cell::Itself => paint(color, "2", " ·"),
            Cell::None => "  ".into(),
            Cell::Pass => paint(color, "32", " ✔"),
            Cell::Drop => paint(color, "31", " ✘"),
            Cell::Half => paint(color, "33", " ½"),
            Cell::Leak => paint(color, "1;97;41", "!✔"),
            Cell::Cut => paint(color, "1;97;41", "!✘"),
        }
    }
}

/// Columns carry names while a screen is wide enough for them, numbers beyond that.
fn draw(text: &mut String, names: &[&ObjectKey], cells: &[Vec<Cell>], color: bool) {
    let labels: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    let widest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let named = widest + 8 + labels.iter().map(|l| l.chars().count() + 2).sum::<usize>() <= 120;
    let _ = write!(text, "  {:widest$}", "", widest = if named { widest } else { widest + 4 });
    for (i, label) in labels.iter().enumerate() {
        let _ = if named { write!(text, "  {label}") } else { write!(text, " {:>3}", i + 1) };
    }
    text.push('\n');
    for (i, (label, row)) in labels.iter().zip(cells).enumerate() {
        let _ = if named {
            write!(text, "  {label:widest$}")
        } else {
            write!(text, "  {:>3} {label:widest$}", i + 1)
        };
        for (cell, column) in row.iter().zip(&labels) {
            let mark = cell.mark(color);
            if named {
                let space = column.chars().count();
                let before = space.saturating_sub(2) / 2;
                let after = space.saturating_sub(2) - before;
                let _ = write!(text, "  {:before$}{mark}{:after$}", "", "");
            } else {
                let _ = write!(text, "  {mark}");
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(from: &str, to: &str, number: u16, families: &[(&str, bool, bool)]) -> Row {
        Row {
            from: ObjectKey::new("x", from),
            to: ObjectKey::new("x", to),
            port: Port::new(number, Transport::Tcp),
            families: families
                .iter()
                .map(|(f, expected, observed)| {
                    ((*f).to_owned(), Answer { expected: *expected, observed: *observed })
                })
                .collect(),
        }
    }

    #[test]
    fn ports_with_one_outcome_share_a_table() {
        let rows = [80, 81].iter().flat_map(|&p| {
            [row("a", "b", p, &[("IPv4", true, true)]), row("b", "a", p, &[("IPv4", false, false)])]
        });
        let report = Report { rows: rows.collect(), notes: vec![] };
        let text = report.table(false);
        assert!(
            text.starts_with("80/TCP  81/TCP\n       x/a  x/b\n  x/a   ·    ✔\n  x/b   ✘    ·\n"),
            "{text}"
        );
        assert!(text.contains("all 4 flows"), "{text}");
        assert!(!report.differs());
    }

    #[test]
    fn what_differs_is_marked_and_listed() {
        let report = Report { rows: vec![row("a", "b", 80, &[("IPv4", false, true)])], notes: vec![] };
        let text = report.table(false);
        assert!(
            text.contains("!✔") && text.contains("x/a -> x/b 80/TCP over IPv4: passes, policies drop it"),
            "{text}"
        );
        assert!(report.differs());
    }

    #[test]
    fn families_are_told_apart_only_where_they_are_of_two_minds() {
        let mixed = row("a", "b", 80, &[("IPv4", true, true), ("IPv6", false, false)]);
        let plain = row("b", "a", 80, &[("IPv4", true, true), ("IPv6", true, true)]);
        let report = Report { rows: vec![mixed, plain], notes: vec![] };
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json[0]["expected"], false);
        assert_eq!(json[0]["families"]["IPv4"]["expected"], true);
        assert_eq!(
            json[1],
            serde_json::json!({"from": "x/b", "to": "x/a", "port": 80, "protocol": "TCP",
                "expected": true, "observed": true})
        );
        assert!(!report.differs());
    }
}
