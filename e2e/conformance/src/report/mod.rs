//! What came of it: for people, for CI (JUnit), for programs (JSON).

pub mod json;
pub mod junit;
pub mod text;

use std::time::Duration;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All as it has to be.
    Passed,
    /// Something was wrong.
    Failed,
    /// The API leaves it open, and the engine decides otherwise than Weir's evaluator.
    Observed,
    /// Not tried, for a reason that is no defect.
    Skipped,
    /// It could not be tried.
    Unable,
}

impl Status {
    /// As reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Passed => "passed",
            Status::Failed => "failed",
            Status::Observed => "observed",
            Status::Skipped => "skipped",
            Status::Unable => "unable",
        }
    }
}

/// One observation that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The part of the case.
    pub phase: String,
    /// Who asked: `x/a`.
    pub from: String,
    /// Who was asked.
    pub to: String,
    /// `8080/TCP`.
    pub port: String,
    /// The address asked.
    pub address: String,
    /// `pass` or `drop`.
    pub expected: String,
    /// The evaluator's reason.
    pub why: String,
    /// What came.
    pub observed: String,
}

/// What came of a case.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    /// Its profile.
    pub profile: String,
    /// Its name.
    pub name: String,
    /// The statements that it tries.
    pub statements: Vec<String>,
    /// The API requires it of every engine.
    pub required: bool,
    /// How it ended.
    pub status: Status,
    /// Why it was skipped or could not be tried.
    pub reason: Option<String>,
    /// Observations compared.
    pub checks: u64,
    /// How long it took.
    #[serde(serialize_with = "seconds")]
    pub seconds: Duration,
    /// For each change, how long until all was right, in milliseconds.
    pub settled_ms: Vec<u64>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// More that was seen, in sentences.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Of a case that has not been tried yet.
    pub fn new(profile: &str, name: &str, statements: &[&str], required: bool) -> Outcome {
        Outcome {
            profile: profile.to_owned(),
            name: name.to_owned(),
            statements: statements.iter().map(|s| (*s).to_owned()).collect(),
            required,
            status: Status::Passed,
            reason: None,
            checks: 0,
            seconds: Duration::ZERO,
            settled_ms: Vec::new(),
            differences: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Not tried.
    pub fn skipped(mut self, why: impl Into<String>) -> Outcome {
        self.status = Status::Skipped;
        self.reason = Some(why.into());
        self
    }

    /// Could not be tried.
    pub fn unable(mut self, why: impl Into<String>) -> Outcome {
        self.status = Status::Unable;
        self.reason = Some(why.into());
        self
    }

    /// Sets the status from what differs.
    pub fn judged(mut self, strict: bool) -> Outcome {
        if self.status == Status::Passed && !self.differences.is_empty() {
            self.status = if self.required || strict { Status::Failed } else { Status::Observed };
        }
        self
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// Of a whole run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// About the cluster and the run.
    pub run: Run,
    /// The cases, in the order in which they ended.
    pub cases: Vec<Outcome>,
}

/// Where and how.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Run {
    /// The suite's version.
    pub suite: String,
    /// The API server's.
    pub kubernetes: String,
    /// The nodes in use.
    pub nodes: Vec<String>,
    /// `IPv4`, `IPv6`.
    pub families: Vec<String>,
    /// SCTP was tried.
    pub sctp: bool,
    /// The profiles that were asked for.
    pub profiles: Vec<String>,
    /// Names of what this run made end with this.
    pub suffix: String,
    /// Of the random policies.
    pub seed: u64,
    /// How long all of it took.
    #[serde(serialize_with = "seconds")]
    pub seconds: Duration,
}

impl Report {
    /// How many cases ended in this way.
    pub fn count(&self, status: Status) -> usize {
        self.cases.iter().filter(|c| c.status == status).count()
    }

    /// What the program ends with: 0 all right, 1 something failed, 2 something could not be tried.
    pub fn exit_code(&self) -> u8 {
        let tried = self.cases.iter().any(|c| !matches!(c.status, Status::Skipped | Status::Unable));
        match () {
            () if self.count(Status::Failed) > 0 => 1,
            () if self.count(Status::Unable) > 0 || !tried => 2,
            () => 0,
        }
    }
}
