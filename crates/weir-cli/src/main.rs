//! `weir`: answers what network policies allow, of manifests, a snapshot or a cluster.
//!
//! ```text
//!   -f FILE, API server ──> input ──> cluster    pods, policies and where they stand; one slice with all pods
//!                                        │          ├─ workloads: whose pods are, and pods for those without any
//!                                        │          └─ addresses: stand-ins for pods without any
//!   FROM TO:PORT ──> names, ends ────────┤       who and which port are meant, or might be
//!                     v                  v
//!                    ask        each two that policies may tell apart, once
//!                     v
//!                   judge       both ends, in each address family (weir_compiler::flow)
//!                     ├─> clauses   what a clause says, why it does not match
//!                     │     ├─> tree   for people
//!                     │     └─> json   for programs
//!                     └─> all       every pair of pods
//!
//!   TYPE/NAME ──> explain      what all policies of a pod mean together
//!   snapshot                   what was read, as a manifest
//!   logs                       what agents tell of denied connections
//! ```
//!
//! Nothing is decided here: every verdict is the evaluator's. Answers go to standard output, what the
//! reader should know besides to standard error. Exit code 0: allowed; 1: denied; 2: no answer.

mod addresses;
mod all;
mod ask;
mod can;
mod clauses;
mod cluster;
mod completion;
mod diff;
mod ends;
mod excerpt;
mod explain;
mod graph;
mod input;
mod json;
mod judge;
mod kernel;
mod lint;
mod logs;
mod names;
mod parties;
mod ports;
mod reach;
mod refused;
mod render;
mod services;
mod snapshot;
mod space;
mod status;
mod term;
mod tree;
mod workloads;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// A cluster is millions of small pieces: with the system's allocator answers take half as long again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Explain(explain::Explain),
    Diff(diff::Diff),
    Graph(graph::Draw),
    Lint(lint::Lint),
    Logs(logs::Logs),
    Render(render::Render),
    Snapshot(snapshot::Snapshot),
    Status(status::Status),
    Completion(completion::Completion),
}

fn main() -> ExitCode {
    let mut command = Cli::command();
    if let Some(name) = plugin_name(std::env::args_os().next()) {
        command = command.bin_name(name);
    }
    let cli = Cli::from_arg_matches(&command.clone().get_matches()).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Can(can) => can.run(),
        Command::Explain(explain) => explain.run(),
        Command::Diff(diff) => diff.run(),
        Command::Graph(graph) => graph.run(),
        Command::Lint(lint) => lint.run(),
        Command::Logs(logs) => logs.run(),
        Command::Render(render) => render.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
        Command::Status(status) => status.run(),
        Command::Completion(completion) => Ok(completion.run(&mut command)),
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

/// What people type where kubectl runs the program as its plugin, `kubectl-weir`.
fn plugin_name(program: Option<std::ffi::OsString>) -> Option<&'static str> {
    let program = std::path::PathBuf::from(program?);
    let name = program.file_stem()?.to_str()?;
    (name == "kubectl-weir").then_some("kubectl weir")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == ErrorKind::BrokenPipe)
}
