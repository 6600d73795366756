//! For people.

use std::fmt::Write;

use super::{Outcome, Report, Status};

/// So many differences of a case are written out, and no more.
const SHOWN: usize = 12;

/// The lines of one case.
pub fn case(outcome: &Outcome) -> String {
    let word = outcome.status.as_str();
    let mut text = format!("{word:8} {}/{}", outcome.profile, outcome.name);
    if !outcome.statements.is_empty() {
        let _ = write!(text, " ({})", outcome.statements.join(", "));
    }
    match &outcome.reason {
        Some(reason) => {
            let _ = write!(text, ": {reason}");
        }
        None => {
            let _ = write!(text, ": {} checks in {:.1} s", outcome.checks, outcome.seconds.as_secs_f64());
            if let Some(longest) = outcome.settled_ms.iter().max() {
                let _ = write!(text, ", right after {longest} ms at most");
            }
        }
    }
    text.push('\n');
    for d in outcome.differences.iter().take(SHOWN) {
        let _ = writeln!(text, "         {}: {} -> {} {} ({})", d.phase, d.from, d.to, d.port, d.address);
        let _ = writeln!(text, "             expected {}: {}", d.expected, d.why);
        let _ = writeln!(text, "             observed {}", d.observed);
    }
    if outcome.differences.len() > SHOWN {
        let _ = writeln!(text, "         and {} more", outcome.differences.len() - SHOWN);
    }
    for note in &outcome.notes {
        let _ = writeln!(text, "         {note}");
    }
    text
}

/// The last lines: what was skipped or failed, and one line with all counts.
pub fn summary(report: &Report) -> String {
    let mut text = String::from("\n");
    for status in [Status::Observed, Status::Unable, Status::Failed] {
        let names: Vec<String> = report
            .cases
            .iter()
            .filter(|c| c.status == status)
            .map(|c| format!("{}/{}", c.profile, c.name))
            .collect();
        if !names.is_empty() {
            let _ = writeln!(text, "{}: {}", status.as_str(), names.join(", "));
        }
    }
    let checks: u64 = report.cases.iter().map(|c| c.checks).sum();
    let _ = writeln!(
        text,
        "{} passed, {} failed, {} observed, {} skipped, {} unable; {checks} checks in {:.0} s (seed {})",
        report.count(Status::Passed),
        report.count(Status::Failed),
        report.count(Status::Observed),
        report.count(Status::Skipped),
        report.count(Status::Unable),
        report.run.seconds.as_secs_f64(),
        report.run.seed,
    );
    text
}
