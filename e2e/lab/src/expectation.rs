//! Truth tables that people write: which flows pass, whatever an evaluator thinks.
//!
//! ```text
//! # Comments, and any number of tables. "." is not asked.
//! 80/TCP     shop/web  shop/db  @node/n1
//! shop/web   .         pass     drop
//! shop/db    drop      .        drop
//! ```
//!
//! Rows are clients, columns servers; a name without a namespace is one of `default`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};

use crate::ports::Port;
use crate::report::Report;

/// What somebody expects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expectation {
    /// Port, client and server, and whether that passes.
    flows: BTreeMap<(Port, String, String), bool>,
}

impl Expectation {
    /// Reads tables.
    pub fn parse(text: &str) -> Result<Expectation> {
        let mut flows = BTreeMap::new();
        let mut head: Option<(Port, Vec<&str>)> = None;
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Pods have a slash, too, but no port number before it; a bare word is a pod, but for ICMP.
            if let Some(port) = words[0].parse::<Port>().ok().filter(|_| words.len() > 1) {
                head = Some((port, words[1..].to_vec()));
                continue;
            }
            let Some((port, servers)) = &head else {
                bail!("table: {line:?} comes before a line with a port and the servers");
            };
            ensure!(
                words.len() == servers.len() + 1,
                "table: {line:?} has {} answers for {} servers",
                words.len() - 1,
                servers.len()
            );
            for (word, server) in words[1..].iter().zip(servers) {
                let passes = match *word {
                    "pass" => true,
                    "drop" => false,
                    "." => continue,
                    other => bail!("table: {other:?} in {line:?} is not pass, drop or a dot"),
                };
                flows.insert((*port, name(words[0]), name(server)), passes);
            }
        }
        Ok(Expectation { flows })
    }

    /// Whether nothing is expected.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The ports that are asked for.
    pub fn ports(&self) -> BTreeSet<Port> {
        self.flows.keys().map(|(port, ..)| *port).collect()
    }

    /// What the report has otherwise, or does not have at all.
    pub fn compare(&self, report: &Report) -> Vec<String> {
        let rows: BTreeMap<(Port, String, String), (bool, bool)> = report
            .rows
            .iter()
            .map(|row| {
                let families = || row.families.values().map(|answer| answer.observed);
                let key = (row.port, row.from.to_string(), row.to.to_string());
                (key, (families().all(|o| o), families().any(|o| o)))
            })
            .collect();
        let mut wrong = Vec::new();
        for (key, expected) in &self.flows {
            let (port, from, to) = key;
            match rows.get(key) {
                None => wrong.push(format!("{from} -> {to} {port}: not probed, no such pod or port")),
                // What must pass must in all families, and what must not in none.
                Some((all, any)) if if *expected { !all } else { *any } => {
                    let (must, does) = if *expected { ("pass", "dropped") } else { ("be dropped", "passes") };
                    wrong.push(format!("{from} -> {to} {port}: must {must}, {does}"));
                }
                Some(_) => {}
            }
        }
        wrong
    }
}

fn name(word: &str) -> String {
    if word.contains('/') { word.to_owned() } else { format!("default/{word}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Answer, Row};
    use weir_compiler::object::ObjectKey;

    fn report(observed: &[(&str, bool)]) -> Report {
        let answer = |(family, observed): &(&str, bool)| {
            ((*family).to_owned(), Answer { expected: *observed, observed: *observed })
        };
        let row = Row {
            from: ObjectKey::new("default", "a"),
            to: ObjectKey::new("x", "b"),
            port: "80/TCP".parse().unwrap(),
            families: observed.iter().map(answer).collect(),
        };
        Report { rows: vec![row], notes: vec![] }
    }

    #[test]
    fn a_table_is_held_against_all_families() {
        let pass = Expectation::parse("80/TCP a x/b\na . pass").unwrap();
        let drop = Expectation::parse("80/TCP x/b\na drop").unwrap();
        assert!(pass.compare(&report(&[("IPv4", true), ("IPv6", true)])).is_empty());
        assert!(drop.compare(&report(&[("IPv4", false)])).is_empty());
        for table in [pass, drop] {
            let mixed = report(&[("IPv4", true), ("IPv6", false)]);
            assert_eq!(table.compare(&mixed).len(), 1);
            assert_eq!(table.compare(&Report::default()).len(), 1);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["a pass", "80/TCP a b\na pass", "80/TCP a\nb perhaps"] {
            assert!(Expectation::parse(text).is_err(), "{text}");
        }
    }
}
