//! From a renamed manifest to the kernel, with the agent's program: what a user sees.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weir_dataplane::TABLE;
use weir_dataplane::model::Family;
use weir_lab::agent::{Agent, AgentSetup};
use weir_lab::netns::Netns;
use weir_nft::Listener;

use crate::cluster::{NODE, Shape};
use crate::figures::{Figure, Report};

const GOAL: f64 = 5.0;
const SAMPLES: usize = 200;
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
    loop {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut wanted, PollTimeout::from(TIMEOUT))?;
        let took = started.elapsed();
        ensure!(ready > 0, "no commit within {TIMEOUT} ms of the rename of {file}");
        if listener.drain()?.commits.iter().any(|commit| commit.touched) {
            return Ok(took);
        }
    }
}
