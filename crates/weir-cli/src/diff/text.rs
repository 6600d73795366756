//! What changes, for people.

use std::fmt::Write;

use weir_dataplane::model::Transaction;

use super::report::{FlowChange, Isolation, Kind, Report};
use crate::kernel::NodeChange;
use crate::term::{Paint, escape};

/// How many lines of a kind are shown; JSON has all.
const LINES: usize = 100;

/// How many nodes are named.
const NODES: usize = 10;

pub(super) fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    for (sign, good, names) in objects(report) {
        for name in names {
            let _ =
                writeln!(out, "{} {}", paint.verdict(good, sign), escape(&format!("NetworkPolicy {name}")));
        }
    }
    for one in report.isolation.iter().take(LINES) {
        let _ = writeln!(out, "{}", escape(&isolation(one)));
    }
    more(&mut out, report.isolation.len());
    let rows: Vec<(Kind, String, String)> =
        report.flows.iter().take(LINES).map(|f| (f.kind(), ends(report, f), ports(f))).collect();
    let width = rows.iter().map(|(_, ends, _)| ends.chars().count()).max().unwrap_or(0).min(90);
    for (kind, ends, ports) in rows {
        let good = matches!(kind, Kind::Opened | Kind::Widened);
        let word = paint.verdict(good, &format!("{:9}", kind.as_str()));
        let _ = writeln!(out, "  {word} {ends:width$}  {ports}");
    }
    more(&mut out, report.flows.len());
    if report.flows.is_empty() {
        out.push_str("no flow changes\n");
    }
    let _ = writeln!(out, "{}", nodes(report));
    for node in report.nodes.iter().filter(|n| !n.transactions.is_empty()) {
        let _ = writeln!(out, "\n# node {}", escape(&node.node));
        out.push_str(&nft(node));
    }
    out
}

fn objects(report: &Report) -> [(&'static str, bool, &[String]); 3] {
    let objects = &report.objects;
    [("+", true, &objects.added), ("~", true, &objects.changed), ("-", false, &objects.removed)]
}

fn more(out: &mut String, len: usize) {
    if len > LINES {
        let _ = writeln!(out, "  ... and {} more (-o json has all)", len - LINES);
    }
}

fn isolation(one: &Isolation) -> String {
    let some = if one.pods == one.of { String::new() } else { format!(" ({} of {} pods)", one.pods, one.of) };
    let direction = one.direction.as_str();
    let by: Vec<String> = one.by.iter().map(ToString::to_string).collect();
    let by = by.join(", ");
    if one.isolated {
        format!("{}{some}: isolated for {direction} by {by} (was open)", one.workload)
    } else {
        format!("{}{some}: open for {direction} (was isolated by {by})", one.workload)
    }
}

fn ends(report: &Report, flow: &FlowChange) -> String {
    let family = match flow.families[..] {
        [one] if report.flows.iter().any(|f| f.families != flow.families) => format!(" ({one})"),
        _ => String::new(),
    };
    let (from, to) = (report.roll.words(&flow.from), report.roll.words(&flow.to));
    escape(&format!("{from} -> {to}{family}"))
}

fn ports(flow: &FlowChange) -> String {
    let (before, after) = (&flow.before, &flow.after);
    match flow.kind() {
        Kind::Cut => before.to_string(),
        Kind::Opened => after.to_string(),
        Kind::Narrowed => format!("to {after} (was {before})"),
        Kind::Widened => format!("by {} (was {before})", after.minus(before)),
        Kind::Changed => format!("{after} (was {before})"),
    }
}

fn nodes(report: &Report) -> String {
    match report.nodes.len() {
        0 => "nodes: none changes".to_owned(),
        1 => format!("nodes: {} changes, {}", escape(&report.nodes[0].node), report.cost()),
        n => {
            let mut text = format!("nodes: {n} change, {}", report.cost());
            for node in report.nodes.iter().take(NODES) {
                let _ = write!(text, "\n  {}: {}", escape(&node.node), node.after.since(node.before));
            }
            if n > NODES {
                let _ = write!(text, "\n  ... and {} more (-o json has all)", n - NODES);
            }
            text
        }
    }
}

/// The transaction as `nft -f` takes it. Names in it are quoted by whoever wrote it.
pub(super) fn nft(node: &NodeChange) -> String {
    node.transactions.iter().map(Transaction::to_string).collect()
}

pub(super) fn markdown(report: &Report) -> String {
    let mut out = String::from("### Network policy changes\n\n");
    for (sign, _, names) in objects(report) {
        for name in names.iter().take(LINES) {
            let _ = writeln!(out, "- `{sign}` NetworkPolicy {}", cell(name));
        }
    }
    if !report.isolation.is_empty() {
        out.push_str("\n**Isolation**\n\n");
        for one in report.isolation.iter().take(LINES) {
            let _ = writeln!(out, "- {}", cell(&isolation(one)));
        }
        if report.isolation.len() > LINES {
            let _ = writeln!(out, "- ... and {} more", report.isolation.len() - LINES);
        }
    }
    if report.flows.is_empty() {
        out.push_str("\nNo flow changes.\n");
    } else {
        out.push_str("\n| change | from | to | ports |\n| --- | --- | --- | --- |\n");
        for flow in report.flows.iter().take(LINES) {
            let (from, to) = (report.roll.words(&flow.from), report.roll.words(&flow.to));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                flow.kind().as_str(),
                cell(&from),
                cell(&to),
                cell(&ports(flow))
            );
        }
        if report.flows.len() > LINES {
            let _ = writeln!(out, "\n... and {} more", report.flows.len() - LINES);
        }
    }
    let _ = writeln!(out, "\n{}", cell(nodes(report).lines().next().unwrap_or_default()));
    for node in report.nodes.iter().filter(|n| !n.transactions.is_empty()) {
        // a text without backquotes: names of the table's objects are made by Weir, and comments are quoted
        let text = escape_lines(&nft(node)).replace("```", "'''");
        let _ = writeln!(
            out,
            "\n<details><summary>node {}</summary>\n\n```\n{text}```\n\n</details>",
            cell(&node.node)
        );
    }
    out
}

fn escape_lines(text: &str) -> String {
    text.lines().map(|line| escape(line) + "\n").collect()
}

/// A text in which Markdown and HTML mean nothing.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '!' | '#' | '@' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}
