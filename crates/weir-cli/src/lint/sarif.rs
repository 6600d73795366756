//! Findings as SARIF 2.1.0, which code scanning of CI services reads.

use serde_json::{Value, json};

use super::Report;
use super::codes::{CODES, Severity};
use super::finding::Finding;
use super::source::uri;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// A log with one run.
pub(super) fn log(report: &Report) -> Value {
    let rules: Vec<Value> = CODES
        .iter()
        .map(|code| {
            json!({
                "id": code.id,
                "shortDescription": {"text": code.title},
                "fullDescription": {"text": super::section(code)},
                "help": {"text": super::section(code), "markdown": super::section(code)},
                "helpUri": format!("{REPOSITORY}/blob/main/docs/lint.md#{}", code.id.to_lowercase()),
                "defaultConfiguration": {"level": level(code.severity)},
            })
        })
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "weir lint",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "informationUri": REPOSITORY,
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "results": report.findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

fn result(finding: &Finding) -> Value {
    let texts = [Some(&finding.message), finding.why.as_ref(), finding.help.as_ref()];
    let texts: Vec<String> = texts.into_iter().flatten().map(|t| sentence(t)).collect();
    let mut location = json!({});
    if let Some(span) = &finding.span {
        let mut physical = json!({"artifactLocation": {"uri": uri(&span.place.file)}});
        if span.place.line > 0 {
            let mut region = json!({"startLine": span.place.line, "snippet": {"text": span.text}});
            if span.columns.0 < span.columns.1 {
                region["startColumn"] = json!(span.columns.0 + 1);
                region["endColumn"] = json!(span.columns.1 + 1);
            }
            physical["region"] = region;
        }
        location["physicalLocation"] = physical;
    }
    let mut fingerprint = finding.code.id.to_owned();
    if let Some(policy) = &finding.policy {
        let name = format!("NetworkPolicy {policy} {}", finding.path);
        fingerprint = format!("{fingerprint} {name}");
        location["logicalLocations"] = json!([{"fullyQualifiedName": name.trim_end(), "kind": "object"}]);
    }
    let index = CODES.iter().position(|code| *code == finding.code);
    json!({
        "ruleId": finding.code.id,
        "ruleIndex": index,
        "level": level(finding.severity()),
        "message": {"text": texts.join(" ")},
        "locations": [location],
        "partialFingerprints": {"weirFinding/v1": fingerprint},
    })
}

fn sentence(text: &str) -> String {
    let end = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}{end}", chars.as_str())
}
