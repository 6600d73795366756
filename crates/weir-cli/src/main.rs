//! `weir`: answers what network policies allow, from manifests.
//!
//! ```text
//!   -f FILE|DIR ──> cluster     pods, policies and where they stand; one slice with all pods
//!                     │            └─ addresses: stand-ins for pods without any
//!   FROM TO:PORT ──> names      which pods and port are meant, or which might be
//!                     v
//!                   judge       both ends, in each address family (weir_compiler::flow)
//!                     ├─> clauses   what a clause says, why it does not match
//!                     │     ├─> tree   for people
//!                     │     └─> json   for programs
//!                     └─> all       every pair of pods
//! ```
//!
//! Nothing is decided here: every verdict is the evaluator's. Answers go to standard output, what the
//! reader should know besides to standard error. Exit code 0: allowed; 1: denied; 2: no answer.

mod addresses;
mod all;
mod can;
mod clauses;
mod cluster;
mod diff;
mod excerpt;
mod graph;
mod input;
mod json;
mod judge;
mod kernel;
mod lint;
mod names;
mod parties;
mod ports;
mod reach;
mod render;
mod snapshot;
mod term;
mod tree;
mod workloads;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Answers what NetworkPolicies allow
#[derive(Debug, Parser)]
#[command(version, after_help = "NO_COLOR switches colours off; they are used on terminals only.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Can(can::Can),
    Diff(diff::Diff),
    Graph(graph::Draw),
    Lint(lint::Lint),
    Render(render::Render),
    Snapshot(snapshot::Snapshot),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Can(can) => can.run(),
        Command::Diff(diff) => diff.run(),
        Command::Graph(graph) => graph.run(),
        Command::Lint(lint) => lint.run(),
        Command::Render(render) => render.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
    };
    match result {
        Ok(code) => code,
        // whoever read the answer has seen enough of it
        Err(error) if is_broken_pipe(&error) => ExitCode::from(2),
        Err(error) => {
            term::error(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == ErrorKind::BrokenPipe)
}
