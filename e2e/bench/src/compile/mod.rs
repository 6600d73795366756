//! What it costs to compile a large cluster centrally, for all of its nodes.
//!
//! ```text
//!   Cluster ──> events, in memory ──> Compiler ──> deltas ──> all slices, encoded, with digests
//!               └──────── a process of its own for each run ────────┘
//!                                        └──> then single changes: microseconds to the deltas
//! ```

mod run;
mod scenario;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::figures::{Figure, Report, rank};
use run::{Counts, Run};
pub(crate) use scenario::Scenario;

const GOAL_MEMORY: f64 = 400.0;
/// Of each kind of change.
const SAMPLES: usize = 300;

/// What is to be compiled, and how often.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Which cluster; all of them if none is named
    #[arg(value_enum)]
    scenario: Option<Scenario>,
    /// How often; the median is printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Shuffles the events, each run in another way; else they come kind by kind, as lists do
    #[arg(long)]
    seed: Option<u64>,
    /// So many hundredths of the cluster's namespaces, or pods
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    percent: u64,
    /// One run, in this process; its results as JSON
    #[arg(long, hide = true)]
    here: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { scenario: None, runs: 5, seed: None, percent: 100, here: false }
    }
}

/// All runs of a scenario.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compiled {
    scenario: String,
    percent: u64,
    /// The median, from the first event to the last slice.
    seconds: f64,
    /// Processor time, likewise.
    cpu_seconds: f64,
    /// The highest of all runs, events included.
    peak_rss_bytes: u64,
    counts: Counts,
    /// Of all slices: the same in each run, whatever the order of events.
    digest: String,
    /// Seconds of each run.
    runs: Vec<f64>,
    changes: Vec<Microseconds>,
}

/// From an event to the deltas of all slices.
#[derive(Debug, Clone, Serialize)]
struct Microseconds {
    change: String,
    median: f64,
    p99: f64,
}

/// Compiles one scenario, or all, and prints what it took.
pub(crate) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let scenarios = options.scenario.as_ref().map_or(&Scenario::ALL[..], std::slice::from_ref);
    for scenario in scenarios {
        of_scenario(report, *scenario, options)?;
    }
    Ok(())
}

/// As `weir-bench compile` does: with one scenario, the last line is that scenario's.
pub(crate) fn main(options: &Options) -> Result<()> {
    if let (true, Some(scenario)) = (options.here, options.scenario) {
        let run = run::run(scenario, options.percent as usize, options.seed, SAMPLES)?;
        println!("{}", serde_json::to_string(&run)?);
        return Ok(());
    }
    let mut report = Report::default();
    measure(&mut report, options)?;
    match (options.scenario, report.compiled()) {
        (Some(_), [one]) => println!("\n{}", serde_json::to_string(one)?),
        _ => println!("\n{}", report.json()),
    }
    Ok(())
}

fn of_scenario(report: &mut Report, scenario: Scenario, options: &Options) -> Result<()> {
    let runs: Vec<Run> = (0..options.runs).map(|n| child(scenario, options, n)).collect::<Result<_>>()?;
    let first = runs.first().context("no run")?;
    let alike = runs.iter().all(|r| r.digest == first.digest && r.counts == first.counts);
    ensure!(alike, "{}: runs with the same objects gave different slices", scenario.name());

    let counts = &first.counts;
    report.heading(&format!(
        "{}: {} namespaces, {} pods, {} policies; {} nodes, {} vertices, {} profiles, {} MB of slices",
        scenario.name(),
        counts.namespaces,
        counts.pods,
        counts.policies,
        counts.nodes,
        counts.vertices,
        counts.profiles,
        counts.encoded_bytes / 1_000_000,
    ));
    let seconds = sorted(runs.iter().map(|r| r.seconds));
    let compile = sorted(runs.iter().map(|r| r.compile_seconds));
    let peak = runs.iter().map(|r| r.peak_rss_bytes).max().unwrap_or_default();
    let events = runs.iter().map(|r| r.events_rss_bytes).max().unwrap_or_default();
    let goal = |figure: Figure, goal| if options.percent == 100 { figure.goal(goal) } else { figure };
    let whole = Figure::one("compile", format!("{}: all slices", scenario.name()), "s", rank(&seconds, 50));
    report.add(goal(whole.runs(runs.len()), scenario.goal()));
    let of_it = Figure::one("compile", "of it, until the compiler has answered", "s", rank(&compile, 50));
    report.add(of_it.runs(runs.len()));
    let cpu = sorted(runs.iter().map(|r| r.cpu_seconds));
    let of_all = Figure::one("compile", "processor time of it all", "s", rank(&cpu, 50));
    report.add(of_all.runs(runs.len()));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.add(goal(Figure::one("compile", "resident, at its highest", "MiB", mib(peak)), GOAL_MEMORY));
    report.add(Figure::one("compile", "of it, the events", "MiB", mib(events)));

    let mut changes = Vec::new();
    for (at, (name, _)) in first.changes.iter().enumerate() {
        let samples = sorted(runs.iter().flat_map(|r| r.changes[at].1.iter().copied()));
        let (median, p99) = (rank(&samples, 50), rank(&samples, 99));
        report.add(Figure::one("compile", name.clone(), "µs", median).p99(p99, samples.len()));
        changes.push(Microseconds { change: name.clone(), median, p99 });
    }
    report.add_compiled(Compiled {
        scenario: scenario.name(),
        percent: options.percent,
        seconds: rank(&seconds, 50),
        cpu_seconds: rank(&cpu, 50),
        peak_rss_bytes: peak,
        counts: counts.clone(),
        digest: first.digest.clone(),
        runs: runs.iter().map(|r| r.seconds).collect(),
        changes,
    });
    Ok(())
}

/// A process of its own, so that its memory at its highest is that of this run.
fn child(scenario: Scenario, options: &Options, number: u64) -> Result<Run> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["compile", "--here", &scenario.name(), "--percent", &options.percent.to_string()]);
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.wrapping_add(number).to_string()]);
    }
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot start a run")?;
    ensure!(output.status.success(), "{}: a run ended with {}", scenario.name(), output.status);
    serde_json::from_slice(&output.stdout).context("a run printed something else than its results")
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
