//! `weir lint`: what in policies hardly does what its author wants.
//!
//! ```text
//!   manifests ──> input      policies, pods, namespaces; texts with lines (source), facts of pods (inventory)
//!                   v
//!                 checks     one file per subject; each finding has a code (codes, docs/lint.md)
//!                   v
//!                 finding ──> place in a file (source) ──> text | json | sarif
//! ```

mod checks;
pub(crate) mod codes;
mod finding;
mod input;
mod inventory;
mod json;
mod near;
mod sarif;
pub(crate) mod source;
mod text;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weir_compiler::cidr::{Cidr, CidrSet};

use self::codes::{Code, Severity};
use self::finding::Finding;
use self::input::Input;
use crate::term::{Paint, note};

/// Finds what hardly does what its author wants
///
/// Reads NetworkPolicies, with the Pods and Namespaces that they are about, and tells what people trip over:
/// policies and peers that match nothing, ports that no container has, egress that forgets DNS, sections that
/// do not count, and what an API server refuses. Each finding has a stable code, with a section in docs/lint.md;
/// --explain CODE shows it.
///
/// A comment `# weir: ignore CODE` on the line of a finding, or on one of its own above it, silences it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir lint -f policies/ -f cluster.yaml
  weir lint -f policies/ --severity warning --exit-code
  weir lint -f policies/ -o sarif > weir.sarif       # for code scanning in CI
  weir lint --explain WEIR105

Exit code: 0, or 1 if there is a finding at or above --fail-on; 2: no answer, a file that is not there.

-o json: {findings, summary, notes}; a finding is {code, severity, title, policy: {namespace, name}, path, file, line,
column, endColumn, message, why, help}, with null for what is not known; summary is {error, warning, info, ignored,
policies, pods}. Columns count characters from 1.")]
pub(crate) struct Lint {
    #[command(flatten)]
    input: crate::input::Input,
    /// Only findings that are at least as bad as this
    #[arg(long, value_enum, default_value = "info")]
    severity: Severity,
    /// Exit with 1 for findings that are at least as bad as this
    #[arg(long, value_enum, default_value = "error")]
    fail_on: FailOn,
    /// Exit with 1 for any finding that is shown
    #[arg(long, conflicts_with = "fail_on")]
    exit_code: bool,
    /// Leave out findings of this code (may be repeated)
    #[arg(long, value_name = "CODE", value_parser = str::parse::<&'static Code>)]
    ignore: Vec<&'static Code>,
    /// Show what a code is about, and nothing else
    #[arg(long, value_name = "CODE", value_parser = str::parse::<&'static Code>)]
    explain: Option<&'static Code>,
    /// The range of Services' addresses (may be repeated) [default: 10.96.0.0/12, which is kubeadm's]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    Sarif,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Error,
    Warning,
    Info,
    Never,
}

/// All that there is to print.
#[derive(Debug)]
struct Report {
    findings: Vec<Finding>,
    /// How many were silenced.
    ignored: usize,
    policies: usize,
    pods: usize,
    notes: Vec<String>,
}

impl Report {
    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity() == severity).count()
    }
}

impl Lint {
    /// Prints findings on standard output.
    ///
    /// # Errors
    /// A path is not there, a range is none, or the answer cannot be written.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        if let Some(code) = self.explain {
            write!(out, "{}", section(code))?;
            return Ok(ExitCode::SUCCESS);
        }
        let services = self.services()?;
        let input = Input::load(&self.input)?;
        let report = self.report(&input, services);
        match self.output {
            Output::Text => write!(out, "{}", text::report(&report, Paint::for_stdout()))?,
            Output::Json => {
                serde_json::to_writer_pretty(&mut out, &json::report(&report))?;
                writeln!(out)?;
            }
            Output::Sarif => {
                serde_json::to_writer_pretty(&mut out, &sarif::log(&report))?;
                writeln!(out)?;
            }
        }
        out.flush()?;
        report.notes.iter().for_each(|n| note("note", n));
        let worst = report.findings.iter().map(Finding::severity).max();
        let threshold = match self.fail_on {
            _ if self.exit_code => Some(Severity::Info),
            FailOn::Error => Some(Severity::Error),
            FailOn::Warning => Some(Severity::Warning),
            FailOn::Info => Some(Severity::Info),
            FailOn::Never => None,
        };
        let fails = threshold.is_some_and(|threshold| worst >= Some(threshold));
        Ok(ExitCode::from(u8::from(fails)))
    }

    fn report(&self, input: &Input, services: CidrSet) -> Report {
        let mut report = Report {
            findings: input.complaints(),
            ignored: 0,
            policies: input.cluster.policies.len(),
            pods: input.cluster.pods.values().filter(|p| !p.pod.finished).count(),
            notes: input.notes.clone(),
        };
        report.findings.extend(input.world(services).findings());
        for finding in &mut report.findings {
            if let (None, Some(policy)) = (&finding.span, &finding.policy)
                && let Some(document) = input.cluster.documents.get(policy)
            {
                finding.span = input.sources.span(policy, document, &finding.path);
            }
        }
        let all = report.findings.len();
        report.findings.retain(|finding| {
            let silenced = |span: &source::Span| input.sources.ignores(&span.place, finding.code.id);
            !self.ignore.contains(&finding.code) && !finding.span.as_ref().is_some_and(silenced)
        });
        report.ignored = all - report.findings.len();
        report.findings.retain(|f| f.severity() >= self.severity);
        let place = |f: &Finding| f.span.as_ref().map(|s| (s.place.clone(), s.columns.0));
        report.findings.sort_by_cached_key(|f| (place(f), f.policy.clone(), f.path.clone(), f.code.id));
        report
    }

    fn services(&self) -> Result<CidrSet> {
        let mut texts: Vec<&str> = self.service_cidr.iter().map(String::as_str).collect();
        if texts.is_empty() {
            texts.push("10.96.0.0/12");
        }
        let mut ranges = Vec::new();
        for text in texts {
            match Cidr::parse(text) {
                Some(cidr) => ranges.push(cidr),
                None => bail!("--service-cidr {text:?} is not a CIDR such as 10.96.0.0/12"),
            }
        }
        Ok(CidrSet::from_cidrs(ranges))
    }
}

/// What docs/lint.md says of a code.
fn section(code: &Code) -> String {
    const DOCS: &str = include_str!("../../../../docs/lint.md");
    let head = format!("### {}", code.id);
    let from = DOCS.find(&head).unwrap_or(DOCS.len());
    let rest = &DOCS[from..];
    let end = rest[1..].find("\n#").map_or(rest.len(), |at| at + 2);
    rest[..end].trim_start_matches("### ").trim_end().to_owned() + "\n"
}
