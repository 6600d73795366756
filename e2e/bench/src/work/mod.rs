//! Weir at work: what its programs cost while pods come and go, and while connections are denied.
//!
//! ```text
//!   objects: pods that replace each other ──> api: watches ──> weir-controller ──> weir-agent ──> kernel
//!      │                                       │ when it went out                                  │ kernel: when an
//!      │ the compiler, after the run:          v                                                   v address came or went
//!      └── what should have come and gone ──> churn: times, and what is missing or was there twice
//! ```
//!
//! The programs are the real ones, each in a network namespace (`scene`), and so are kernels; the API server is this
//! program's own, and agents of other nodes read their slices and acknowledge them, and do no more.

mod api;
mod churn;
mod flood;
mod kernel;
mod objects;
mod process;
mod scene;
mod show;

use std::path::Path;

use anyhow::Result;

use crate::figures::Report;

/// What pods that come and go cost.
pub(crate) fn churn(report: &mut Report, folder: &Path) -> Result<()> {
    churn::measure(report, folder)
}

/// What floods of denied connections cost.
pub(crate) fn flood(report: &mut Report, folder: &Path) -> Result<()> {
    flood::measure(report, folder)
}

/// Something to look at for so many seconds.
pub(crate) fn show(seconds: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    show::show(folder.path(), seconds)
}
