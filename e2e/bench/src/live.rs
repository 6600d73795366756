//! From a renamed manifest to the kernel, with the agent's program: what a user sees. And how long it takes to
//! repair what somebody else has done.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weir_dataplane::TABLE;
use weir_dataplane::model::{Family, Op, Transaction};
use weir_lab::agent::{Agent, AgentSetup};
use weir_lab::netns::Netns;
use weir_nft::{Commit, Listener, Nft};

use crate::cluster::{NODE, Shape};
use crate::figures::{Figure, Report};

const GOAL: f64 = 5.0;
const SAMPLES: usize = 200;
/// From the deletion of the table to the commit that brings it back.
const REPAIR_GOAL: f64 = 100.0;
const REPAIRS: usize = 50;
/// Between one edit and the next: the agent is at rest again.
const PAUSE: Duration = Duration::from_millis(15);
/// An edit that takes longer has been overlooked.
const TIMEOUT: u16 = 10_000;
const READY: Duration = Duration::from_secs(60);

/// The file that is renamed at a turn, and what is in it.
type Edit<'a> = dyn Fn(usize) -> (String, String) + 'a;

/// Measures edits of a policy, of a pod here and of a pod elsewhere.
pub(crate) fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    let shape = Shape::changing(110);
    report.heading(&format!(
        "From the rename of an edited manifest to the kernel, weir-agent: {} pods ({} on this node), {} policies",
        shape.pods, shape.here, shape.policies
    ));
    let (here, elsewhere) = (shape.pod_at(0, 0), shape.pod_at(0, 50));
    let manifests = folder.join("manifests");
    shape.write(&manifests, &[here, elsewhere])?;
    let netns = Netns::new()?;
    shape.wire(&netns)?;
    let program = weir_lab::agent::find()?;
    let setup = AgentSetup {
        program,
        arguments: Vec::new(),
        manifests: manifests.clone(),
        logs: folder.join("logs"),
    };
    let mut agent = Agent::start(NODE, &netns, &setup)?;
    agent.wait_ready(READY)?;

    let pod = |pod| move |turn: usize| (format!("pod-{pod}.yaml"), shape.pod(pod, (turn + 1) % 2));
    let policy = |turn: usize| {
        let number = turn / 2 % shape.policies;
        (format!("policy-{number}.yaml"), shape.policy(number, turn.is_multiple_of(2)))
    };
    let kinds: [(&str, &Edit); 3] = [
        ("label of a pod on this node", &pod(here)),
        ("label of a pod elsewhere", &pod(elsewhere)),
        ("policy edited (a port)", &policy),
    ];
    let mut listener = netns.run(|| Ok(Listener::open(&[(Family::Inet, TABLE)])?))?;
    for (name, edit) in kinds {
        let mut samples = Vec::with_capacity(SAMPLES);
        for turn in 0..SAMPLES {
            let (file, text) = edit(turn);
            let took = one(&mut listener, &manifests, &file, &text)
                .with_context(|| format!("{name}; the agent's log:\n{}", agent.log()))?;
            samples.push(took);
        }
        report.add(Figure::times("live", name, samples).goal(GOAL));
    }
    let mut vandal = netns.run(|| Ok(Nft::open()?))?;
    let mut samples = Vec::with_capacity(REPAIRS);
    for _ in 0..REPAIRS {
        std::thread::sleep(PAUSE);
        listener.drain()?;
        let started = Instant::now();
        let ops = vec![Op::DeleteTable];
        vandal.apply(&[Transaction { family: Family::Inet, table: TABLE.to_owned(), ops }])?;
        wait(&mut listener, |commit| commit.port != vandal.port()).context("the table was deleted")?;
        samples.push(started.elapsed());
    }
    report.add(Figure::times("live", "deleted table repaired", samples).goal(REPAIR_GOAL));
    Ok(())
}

/// Writes the file beside its place, renames it, and waits for the agent's commit.
fn one(listener: &mut Listener, manifests: &Path, file: &str, text: &str) -> Result<Duration> {
    // what begins with a dot is not a manifest
    let draft = manifests.join(".draft");
    std::fs::write(&draft, text)?;
    std::thread::sleep(PAUSE);
    listener.drain()?;
    let started = Instant::now();
    std::fs::rename(&draft, manifests.join(file))?;
    wait(listener, |_| true).with_context(|| format!("{file} was renamed"))?;
    Ok(started.elapsed())
}

/// Waits for a commit to Weir's table.
fn wait(listener: &mut Listener, by: impl Fn(&Commit) -> bool) -> Result<()> {
    loop {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut wanted, PollTimeout::from(TIMEOUT))?;
        ensure!(ready > 0, "no commit within {TIMEOUT} ms");
        if listener.drain()?.commits.iter().any(|commit| commit.touched && by(commit)) {
            return Ok(());
        }
    }
}
