//! Every pair of pods, port by port.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use weir_compiler::object::Protocol;

use crate::cluster::{Cluster, PodState};
use crate::judge::Pair;
use crate::names::Port;
use crate::term::{escape, escape_json};
use crate::{json, ports};

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Row<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    protocol: Protocol,
    allowed: bool,
    /// Only where the families are not of one mind.
    #[serde(skip_serializing_if = "Option::is_none")]
    families: Option<BTreeMap<&'static str, bool>>,
}

/// Writes the verdict on every pair of pods, by port, source and destination; a row at a time, since
/// there may be millions. Returns what the reader should know besides.
///
/// # Errors
/// The answer cannot be written.
pub(crate) fn write(
    cluster: &Cluster,
    wanted: &[Port],
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let pods: Vec<(String, &PodState)> =
        cluster.pods.values().filter(|p| p.out.is_none()).map(|p| (p.pod.key.to_string(), p)).collect();
    for state in cluster.pods.values() {
        if let Some(why) = &state.out {
            notes.push(format!("left out: pod {}: {why}", state.pod.key));
        }
    }
    let mut some = wanted.to_vec();
    some.sort_unstable_by_key(|p| (p.protocol, p.number));
    some.dedup();
    if some.is_empty() {
        some = ports::that_matter(cluster);
    }
    let mut apart = 0;
    let name_width = pods.iter().map(|(name, _)| escape(name).chars().count()).max().unwrap_or(0).max(4);
    let mut first = true;
    if as_json {
        write!(out, "[")?;
    } else {
        writeln!(out, "{:name_width$}  {:name_width$}  {:10}  ALLOWED", "FROM", "TO", "PORT")?;
    }
    for (at, &port) in some.iter().enumerate() {
        for (from_name, from) in &pods {
            for (to_name, to) in pods.iter().filter(|(_, to)| to.pod.key != from.pod.key) {
                let Ok(pair) = Pair::new(cluster, from, to) else {
                    apart += usize::from(at == 0);
                    continue;
                };
                let judgement = pair.judge(port);
                let mixed = judgement.is_mixed().then(|| json::families(&judgement));
                let row = Row {
                    from: from_name,
                    to: to_name,
                    port: port.number,
                    protocol: port.protocol,
                    allowed: judgement.allowed(),
                    families: mixed,
                };
                if as_json {
                    write!(out, "{}\n  ", if first { "" } else { "," })?;
                    let text = serde_json::to_string(&row).map_err(io::Error::from)?;
                    write!(out, "{}", escape_json(&text))?;
                } else {
                    line(out, name_width, port, &row)?;
                }
                first = false;
            }
        }
    }
    if as_json {
        writeln!(out, "{}]", if first { "" } else { "\n" })?;
    }
    if apart > 0 {
        notes.push(format!("left out: {apart} pairs of pods that have no address family in common"));
    }
    notes.extend(cluster.unknowns());
    Ok(notes)
}

fn line(out: &mut impl Write, width: usize, port: Port, row: &Row<'_>) -> io::Result<()> {
    let (from, to) = (escape(row.from), escape(row.to));
    let verdict = match (&row.families, row.allowed) {
        (Some(families), _) => {
            let passing: Vec<&str> =
                families.iter().filter(|(_, allowed)| **allowed).map(|(f, _)| *f).collect();
            format!("{} only", passing.join(", "))
        }
        (None, true) => "yes".to_owned(),
        (None, false) => "no".to_owned(),
    };
    writeln!(out, "{from:width$}  {to:width$}  {:10}  {verdict}", port.to_string())
}
