//! Findings for programs. What `weir lint --help` documents stays as it is.

use serde::Serialize;
use weir_compiler::object::ObjectKey;

use super::Report;
use super::codes::Severity;
use super::finding::Finding;

#[derive(Debug, Serialize)]
pub(super) struct Json<'a> {
    findings: Vec<One<'a>>,
    summary: Summary,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct One<'a> {
    code: &'a str,
    severity: Severity,
    title: &'a str,
    policy: Option<&'a ObjectKey>,
    path: Option<String>,
    file: Option<String>,
    line: Option<u64>,
    column: Option<usize>,
    end_column: Option<usize>,
    message: &'a str,
    why: Option<&'a str>,
    help: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Summary {
    error: usize,
    warning: usize,
    info: usize,
    ignored: usize,
    policies: usize,
    pods: usize,
}

pub(super) fn report(report: &Report) -> Json<'_> {
    let summary = Summary {
        error: report.count(Severity::Error),
        warning: report.count(Severity::Warning),
        info: report.count(Severity::Info),
        ignored: report.ignored,
        policies: report.policies,
        pods: report.pods,
    };
    Json { findings: report.findings.iter().map(one).collect(), summary, notes: &report.notes }
}

fn one(finding: &Finding) -> One<'_> {
    let span = finding.span.as_ref();
    let path = finding.path.to_string();
    let on_line = span.filter(|s| s.place.line > 0);
    One {
        code: finding.code.id,
        severity: finding.severity(),
        title: finding.code.title,
        policy: finding.policy.as_ref(),
        path: (!path.is_empty()).then_some(path),
        file: span.map(|s| s.place.file.display().to_string()),
        line: on_line.map(|s| s.place.line),
        column: on_line.map(|s| s.columns.0 + 1),
        end_column: on_line.map(|s| s.columns.1 + 1),
        message: &finding.message,
        why: finding.why.as_deref(),
        help: finding.help.as_deref(),
    }
}
