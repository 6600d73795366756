//! For programs. The fields are described in the crate's README, and do not change their meaning.

use serde_json::{Value, json};

use super::{Report, Status};

/// The number of the format; another one means that fields have gone or mean something else.
pub const FORMAT: u32 = 1;

/// The whole report.
pub fn document(report: &Report) -> Value {
    let count = |status| report.count(status);
    json!({
        "format": FORMAT,
        "run": report.run,
        "summary": {
            "passed": count(Status::Passed), "failed": count(Status::Failed), "observed": count(Status::Observed),
            "skipped": count(Status::Skipped), "unable": count(Status::Unable),
            "checks": report.cases.iter().map(|c| c.checks).sum::<u64>(),
            "exitCode": report.exit_code(),
        },
        "cases": report.cases,
    })
}
