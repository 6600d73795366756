//! What a change, a start and a large transaction cost, beside the goals that `docs/performance.md` states.
//!
//! ```text
//!   cluster: a made-up cluster, as manifests ──> events
//!                 │                                │
//!                 │ a folder                       v
//!                 v                       node: compiler, planner, kernel ──┬─> change  in process
//!            weir-agent, the program ──┬─> live    a file renamed           └─> start   in process
//!                                      └─> start   memory, a second start
//!   bulk: a large table, against nft -f
//!   revoke: 100,000 connections, some of which a change forbids
//!   compile: large clusters, for all of their nodes; each run is a process of its own
//!   compare: connections, beside other ways to enforce the same policies
//!   fanout: one controller, 5,000 simulated agents
//!   work: the programs, while pods come and go
//!                                          all ──> figures: a table, and a line of JSON ──> plot: SVG
//! ```
//!
//! Everything happens in network namespaces that end with this process, and so do the agents. No figure
//! fails a run: an exit code other than 0 means that something could not be measured, or that
//! the kernel did not hold what it should.

mod bulk;
mod change;
mod cluster;
mod compare;
mod compile;
mod fanout;
mod figures;
mod live;
mod node;
mod revoke;
mod start;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use figures::Report;

/// Measures what Weir costs and prints it beside its goals; needs root.
///
/// The last line is JSON. Takes about a minute, everything in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(version)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure (default: everything but work, flood and cost)
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compiles a large cluster for all of its nodes: time, memory, and what changes cost then
    Compile(compile::Options),
    /// How long changes take from one controller to thousands of agents, on loopback
    Fanout(fanout::Fanout),
    /// The controller of `fanout`, in a process of its own
    #[command(hide = true)]
    FanoutController(fanout::Fanout),
    /// A cluster at work, with metrics to be read: what deploy/monitoring/render.py looks at
    Show {
        /// For how long
        #[arg(long, default_value_t = 180)]
        seconds: u32,
    },
    /// Draws the comparison of an earlier run as SVG
    Plot {
        /// What that run printed, or the last line of it
        results: PathBuf,
        /// The file to write
        svg: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A large cluster, compiled for all of its nodes
    Compile,
    /// From an event to the kernel, in process
    Change,
    /// From a renamed manifest to the kernel, with the agent's program
    Live,
    /// From synced sources to committed rules; the agent's memory; a start that changes nothing
    Start,
    /// A large table, against nft -f of the same
    Bulk,
    /// From a commit to the last mark on a connection that it forbids
    Revoke,
    /// What a connection pays, beside other ways to enforce the same policies
    Compare,
    /// Processor and memory of controller and agents while pods come and go; only if named
    Work,
    /// The same while connections are denied, ten thousand a second, and how soon edits are in force; only if named
    Flood,
    /// What rules, lookups and members cost, by which Weir's limits are chosen; only if named
    Cost,
}

/// A signal came: the thread that took it cleans up and ends the process.
static ENDING: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // its files were taken away from it
        Err(_) if ENDING.load(Ordering::SeqCst) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("weir-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Some(Command::Plot { results, svg }) => return compare::plot::plot(results, svg),
        Some(Command::Show { seconds }) => return work::show(*seconds),
        Some(Command::Compile(options)) => return compile::main(options),
        Some(Command::Fanout(options)) => return fanout::run(*options),
        Some(Command::FanoutController(options)) => return fanout::serve(*options),
        None => {}
    }
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    end_with_signals(scratch.path())?;
    let mut report = Report::default();
    let wanted = |part| cli.parts.is_empty() || cli.parts.contains(&part);
    if wanted(Part::Compile) {
        compile::measure(&mut report, &compile::Options::default())?;
    }
    if wanted(Part::Change) {
        change::measure(&mut report, &scratch.path().join("change"))?;
    }
    if wanted(Part::Live) {
        live::measure(&mut report, &scratch.path().join("live"))?;
    }
    if wanted(Part::Start) {
        start::measure(&mut report, &scratch.path().join("start"))?;
    }
    if wanted(Part::Bulk) {
        bulk::measure(&mut report)?;
    }
    if wanted(Part::Revoke) {
        revoke::measure(&mut report)?;
    }
    if wanted(Part::Compare) {
        compare::measure(&mut report)?;
    }
    if cli.parts.contains(&Part::Work) {
        work::churn(&mut report, &scratch.path().join("work"))?;
    }
    if cli.parts.contains(&Part::Flood) {
        work::flood(&mut report, &scratch.path().join("flood"))?;
    }
    if cli.parts.contains(&Part::Cost) {
        compare::cost::measure(&mut report)?;
    }
    println!("\n{}", report.json());
    Ok(())
}

/// Ctrl-C leaves no files behind. Namespaces and agents end with the process in any case.
fn end_with_signals(scratch: &Path) -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // before there are other threads: they inherit it
    signals.thread_block().context("cannot block signals")?;
    let scratch = scratch.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            ENDING.store(true, Ordering::SeqCst);
            let _ = std::fs::remove_dir_all(&scratch);
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
