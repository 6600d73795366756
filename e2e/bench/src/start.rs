//! The agent's start on a full node of a large cluster: how long until the rules are committed, how much
//! memory it takes, and that a second start changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_agent::kernel::Done;
use weir_lab::agent::{Agent, AgentSetup};
use weir_lab::netns::Netns;
use weir_nft::Nft;

use crate::cluster::{self, NODE, Shape};
use crate::figures::{Figure, Report, millis};
use crate::node::{Node, Split};

const GOAL_START: f64 = 1_000.0;
const GOAL_MEMORY: f64 = 40.0;
const ROUNDS: usize = 5;
const READY: Duration = Duration::from_secs(60);

/// Measures in process first, then with the agent's program.
pub(crate) fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    let shape = Shape::STARTING;
    report.heading(&format!(
        "Start: {} pods ({} on this node), {} policies",
        shape.pods, shape.here, shape.policies
    ));
    let manifests = folder.join("manifests");
    shape.write(&manifests, &[])?;
    let netns = Netns::new()?;
    shape.wire(&netns)?;
    netns.run(|| in_process(report, shape, &manifests))?;
    with_program(report, shape, &manifests, folder)
}

fn in_process(report: &mut Report, shape: Shape, manifests: &Path) -> Result<()> {
    let events = cluster::events(manifests)?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        weir_agent::kernel::cleanup()?;
        let mut node = Node::new()?;
        let (done, split) = node.turn(events.clone())?;
        ensure!(matches!(done, Done::Applied { .. }), "a first start made no transaction");
        ensure!(node.pods() == shape.here, "{} pods are on this node, not {}", node.pods(), shape.here);
        node.check()?;
        first.push(split);
        let (done, split) = Node::new()?.turn(events.clone())?;
        ensure!(done == Done::Nothing, "a second start found something to change: {done:?}");
        again.push(split);
    }
    let totals = |splits: &[Split]| splits.iter().map(Split::total).collect();
    let figure = Figure::times("start", "synced sources to committed rules", totals(&first));
    report.add(figure.goal(GOAL_START).split(Split::columns(&first)));
    let figure = Figure::times("start", "the same when the kernel has them already", totals(&again));
    report.add(figure.goal(GOAL_START).split(Split::columns(&again)));
    weir_agent::kernel::cleanup()
}

fn with_program(report: &mut Report, shape: Shape, manifests: &Path, folder: &Path) -> Result<()> {
    let netns = Netns::new()?;
    shape.wire(&netns)?;
    let program = weir_lab::agent::find()?;
    let setup = AgentSetup {
        program,
        arguments: Vec::new(),
        manifests: manifests.to_owned(),
        logs: folder.join("logs"),
    };
    let generation = || netns.run(|| Ok(Nft::open()?.generation()?));

    let empty = generation()?;
    let (mut agent, took) = start(&netns, &setup)?;
    report.add(Figure::one("start", "weir-agent: its start to ready, manifests read", "ms", took));
    let filled = generation()?;
    ensure!(filled == empty.wrapping_add(1), "the first start made {} transactions, not 1", filled - empty);
    for (field, name) in
        [("VmRSS", "weir-agent: resident, ready"), ("VmHWM", "weir-agent: resident, at its highest")]
    {
        let mib = status(agent.pid(), field)? / 1024.0;
        report.add(Figure::one("start", name, "MiB", mib).goal(GOAL_MEMORY));
    }
    agent.kill()?;
    drop(agent);

    let (agent, took) = start(&netns, &setup)?;
    report.add(Figure::one("start", "weir-agent: a second start to ready", "ms", took));
    drop(agent);
    let transactions = generation()?.wrapping_sub(filled);
    ensure!(transactions == 0, "a second start without a change made {transactions} transactions, not 0");
    report.add(
        Figure::one("start", "weir-agent: transactions of that start", "", f64::from(transactions)).goal(1.0),
    );
    Ok(())
}

fn start(netns: &Netns, setup: &AgentSetup) -> Result<(Agent, f64)> {
    let started = Instant::now();
    let mut agent = Agent::start(NODE, netns, setup)?;
    agent.wait_ready(READY)?;
    Ok((agent, millis(started.elapsed())))
}

/// A field of `/proc/PID/status` in KiB.
fn status(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number =
        line.and_then(|line| line.split_whitespace().next()).context(format!("no {field} in {path}"))?;
    Ok(number.parse()?)
}
