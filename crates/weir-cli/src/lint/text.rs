//! Findings for people, with the place in the file.

use std::fmt::Write;

use super::Report;
use super::codes::Severity;
use super::finding::Finding;
use super::source::Span;
use crate::term::{Paint, escape};

/// How much of a line is shown.
const WIDTH: usize = 140;

pub(super) fn report(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        one(&mut out, finding, paint);
    }
    let count = |severity, one: &str, more: &str| match report.count(severity) {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {more}")),
    };
    let counts: Vec<String> = [
        count(Severity::Error, "error", "errors"),
        count(Severity::Warning, "warning", "warnings"),
        count(Severity::Info, "remark", "remarks"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let counts = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    let policies = if report.policies == 1 { "policy" } else { "policies" };
    let ignored = match report.ignored {
        0 => String::new(),
        n => format!(", {n} ignored"),
    };
    let _ = writeln!(out, "{counts} in {} {policies}{ignored}", report.policies);
    out
}

fn one(out: &mut String, finding: &Finding, paint: Paint) {
    let head = format!("{}[{}]", finding.severity().as_str(), finding.code.id);
    let _ = writeln!(
        out,
        "{}: {}",
        colour(paint, finding.severity(), &head),
        bold(paint, &escape(&finding.message))
    );
    let number = finding.span.as_ref().filter(|s| s.place.line > 0).map(|s| s.place.line.to_string());
    let margin = number.as_ref().map_or(0, String::len) + 1;
    let bar = |text: &str| paint.dim(text);
    if let Some(span) = &finding.span {
        let column = if span.place.line > 0 { format!(":{}", span.columns.0 + 1) } else { String::new() };
        let arrow = format!("{:margin$}-->", "");
        let _ = writeln!(out, "{} {}{column}", bar(&arrow), escape(&span.place.to_string()));
        if let Some(number) = &number
            && !span.text.trim().is_empty()
        {
            let (text, marks) = excerpt(span);
            let _ = writeln!(out, "{}", bar(&format!("{:margin$} |", "")));
            let _ = writeln!(out, "{} {text}", bar(&format!("{number:>margin$} |")));
            let _ = writeln!(
                out,
                "{} {}",
                bar(&format!("{:margin$} |", "")),
                colour(paint, finding.severity(), &marks)
            );
        }
    }
    let equals = bar(&format!("{:margin$} =", ""));
    if let Some(policy) = &finding.policy {
        let name = format!("NetworkPolicy {policy} {}", finding.path);
        let _ = writeln!(out, "{equals} in: {}", escape(name.trim_end()));
    }
    for (title, text) in [("why", &finding.why), ("help", &finding.help)] {
        if let Some(text) = text {
            let _ = writeln!(out, "{equals} {title}: {}", escape(text));
        }
    }
    out.push('\n');
}

/// The line and what is below it; of a long one what is around the place.
fn excerpt(span: &Span) -> (String, String) {
    let chars: Vec<char> = span.text.chars().collect();
    let (first, last) = (span.columns.0.min(chars.len()), span.columns.1.min(chars.len()));
    let from = if last > WIDTH { first.saturating_sub(20) } else { 0 };
    let to = chars.len().min(from + WIDTH);
    let part = |a: usize, b: usize| escape(&chars[a.min(b)..b].iter().collect::<String>().replace('\t', " "));
    let before = format!("{}{}", if from > 0 { "…" } else { "" }, part(from, first));
    let marked = part(first, last.min(to));
    let after = format!("{}{}", part(last.min(to), to), if to < chars.len() { "…" } else { "" });
    let marks =
        format!("{}{}", " ".repeat(before.chars().count()), "^".repeat(marked.chars().count().max(1)));
    (format!("{before}{marked}{after}").trim_end().to_owned(), marks)
}

fn colour(paint: Paint, severity: Severity, text: &str) -> String {
    let code = match severity {
        Severity::Error => "1;31",
        Severity::Warning => "1;33",
        Severity::Info => "1;36",
    };
    if paint.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn bold(paint: Paint, text: &str) -> String {
    if paint.0 { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}
