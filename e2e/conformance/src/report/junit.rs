//! For CI: JUnit's XML, as Jenkins, GitLab and GitHub's actions read it.

use std::fmt::Write;

use super::{Report, Status, text};

/// The whole report: a suite for each profile, a test for each case.
pub fn document(report: &Report) -> String {
    let mut profiles: Vec<&str> = report.cases.iter().map(|c| c.profile.as_str()).collect();
    profiles.sort_unstable();
    profiles.dedup();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        xml,
        "<testsuites name=\"weir-conformance\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
        report.cases.len(),
        report.count(Status::Failed),
        report.count(Status::Unable),
        report.count(Status::Skipped),
        report.run.seconds.as_secs_f64()
    );
    for profile in profiles {
        let cases: Vec<_> = report.cases.iter().filter(|c| c.profile == profile).collect();
        let count = |status| cases.iter().filter(|c| c.status == status).count();
        let seconds: f64 = cases.iter().map(|c| c.seconds.as_secs_f64()).sum();
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{seconds:.3}\">",
            escape(profile),
            cases.len(),
            count(Status::Failed),
            count(Status::Unable),
            count(Status::Skipped)
        );
        for case in cases {
            let _ = write!(
                xml,
                "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                escape(profile),
                escape(&case.name),
                case.seconds.as_secs_f64()
            );
            let reason = escape(case.reason.as_deref().unwrap_or_default());
            let _ = match case.status {
                Status::Passed => writeln!(xml, "/>"),
                Status::Skipped => writeln!(xml, "><skipped message=\"{reason}\"/></testcase>"),
                Status::Unable => writeln!(xml, "><error message=\"{reason}\"/></testcase>"),
                Status::Observed => {
                    writeln!(xml, "><system-out>{}</system-out></testcase>", escape(&text::case(case)))
                }
                Status::Failed => writeln!(
                    xml,
                    "><failure message=\"{} of {} checks wrong\">{}</failure></testcase>",
                    case.differences.len(),
                    case.checks,
                    escape(&text::case(case))
                ),
            };
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// XML has no way to write most control characters: they become spaces.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
