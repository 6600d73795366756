//! The agents, and what is measured.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use weir_agent::controller::connect::connect;
use weir_proto::pb::slices_client::SlicesClient;
use weir_proto::pb::{Ack, FromAgent, Have, Hello, from_agent, from_controller};

use super::controller::{NAME, now};
use super::{Fanout, enough_descriptors, population};

/// So many begin at once.
const AT_ONCE: usize = 32;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The controller's process; it ends with this.
struct Controller {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Controller {
    fn start(fanout: Fanout) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["fanout-controller", "--agents", &fanout.agents.to_string()])
            .args(["--pods", &fanout.pods.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("its input is a pipe")?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Controller { child, input, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the controller has ended");
        }
        Ok(line.trim().to_owned())
    }

    /// Has it done something; what it answers after the word.
    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        let answer = self.line()?;
        Ok(answer.split_once(' ').context("a word and values")?.1.to_owned())
    }

    /// Resident memory and its peak in MiB, processor time in seconds.
    fn cost(&mut self) -> Result<[f64; 3]> {
        let answer = self.ask("cost")?;
        let numbers = answer.split(' ').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?;
        let [rss, peak, processor] = numbers[..] else { bail!("three numbers: {answer}") };
        Ok([rss / 1024.0, peak / 1024.0, processor / 1000.0])
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // ours, and not waited for yet; if it has ended already there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) async fn run(fanout: Fanout) -> Result<()> {
    enough_descriptors()?;
    let mut controller = Controller::start(fanout)?;
    let ca: serde_json::Value = serde_json::from_str(&controller.line()?)?;
    let folder = tempfile::tempdir()?;
    let ca_file = folder.path().join("ca.crt");
    std::fs::write(&ca_file, ca["ca"].as_str().context("the authority")?)?;
    let port = controller.line()?;
    let port: u16 = port.strip_prefix("port ").context("a port")?.parse()?;
    let idle = controller.cost()?;

    let started = std::time::Instant::now();
    let (commits, mut heard) = mpsc::unbounded_channel();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let bytes = Arc::new(AtomicUsize::new(0));
    for number in 0..fanout.agents {
        let (turns, commits, ca, bytes) = (turns.clone(), commits.clone(), ca_file.clone(), bytes.clone());
        tokio::spawn(async move {
            if let Err(error) = agent(port, number, &ca, &turns, &commits, &bytes).await {
                eprintln!("agent {number}: {error:#}");
            }
        });
    }
    wait(&mut heard, fanout.agents).await.context("all agents have their slices")?;
    let joined = started.elapsed();
    let slices = bytes.load(Ordering::Relaxed);
    // acknowledgements, and the first peak
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all_there = controller.cost()?;

    let (mut first, mut last, mut one) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..fanout.runs {
        let at: u128 = controller.ask("all")?.parse()?;
        let times = wait(&mut heard, fanout.agents).await?;
        first.push(milliseconds(at, times[0]));
        last.push(milliseconds(at, times[times.len() - 1]));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let busy = controller.cost()?;
    for run in 0..fanout.runs {
        let node = run * 37 % fanout.agents;
        for what in ["add", "remove"] {
            let at: u128 = controller.ask(&format!("{what} {node}"))?.parse()?;
            let times = wait(&mut heard, 1).await?;
            one.push(milliseconds(at, times[0]));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let end = controller.cost()?;

    for times in [&mut first, &mut last, &mut one] {
        times.sort_by(f64::total_cmp);
    }
    let at = |times: &[f64], percent: usize| times[(times.len() - 1) * percent / 100];
    let per_change = (busy[2] - all_there[2]) * 1000.0 / fanout.runs as f64;
    println!("fan-out: {} agents at one controller, {} pods, loopback, TLS", fanout.agents, fanout.pods);
    println!(
        "  all agents get their slices ({:.1} MiB)   {:8.1} s",
        slices as f64 / 1_048_576.0,
        joined.as_secs_f64()
    );
    println!(
        "  a change for all, until the first has it  {:8.1} ms median  {:8.1} ms p99",
        at(&first, 50),
        at(&first, 99)
    );
    println!(
        "  a change for all, until all have it       {:8.1} ms median  {:8.1} ms p99   (goal: 1,000)",
        at(&last, 50),
        at(&last, 99)
    );
    println!(
        "  a change for one node, until it has it    {:8.2} ms median  {:8.2} ms p99   (goal: 10)",
        at(&one, 50),
        at(&one, 99)
    );
    println!("  controller's processor time per change for all  {per_change:.0} ms");
    println!(
        "  controller's memory: {:.0} MiB without agents, {:.0} MiB with all, {:.0} MiB at the end, peak {:.0} MiB",
        idle[0], all_there[0], end[0], end[1]
    );
    let json = serde_json::json!({
        "scenario": "fan-out", "agents": fanout.agents, "pods": fanout.pods,
        "join_seconds": joined.as_secs_f64(), "slice_bytes": slices,
        "all_ms": { "median": at(&last, 50), "p99": at(&last, 99) },
        "one_ms": { "median": at(&one, 50), "p99": at(&one, 99) },
        "cpu_ms_per_change_for_all": per_change,
        "rss_mib": { "idle": idle[0], "with_agents": all_there[0], "end": end[0], "peak": end[1] },
    });
    println!("{json}");
    Ok(())
}

/// Waits until so many have heard of a commit: when each did.
async fn wait(heard: &mut mpsc::UnboundedReceiver<u128>, count: usize) -> Result<Vec<u128>> {
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        let next = tokio::time::timeout(PATIENCE, heard.recv()).await;
        times.push(
            next.with_context(|| format!("{} of {count} came", times.len()))?.context("agents are there")?,
        );
    }
    times.sort_unstable();
    Ok(times)
}

fn milliseconds(from: u128, to: u128) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// An agent of a node, at a controller on loopback: it takes in all that comes and acknowledges every version.
pub(crate) async fn agent(
    port: u16,
    number: usize,
    ca: &std::path::Path,
    turns: &Semaphore,
    commits: &mpsc::UnboundedSender<u128>,
    bytes: &AtomicUsize,
) -> Result<()> {
    let turn = turns.acquire().await?;
    let channel = connect(SocketAddr::from(([127, 0, 0, 1], port)), NAME, ca).await?;
    let (say, said) = mpsc::channel(4);
    let outgoing = futures_util::stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
    let mut request = tonic::Request::new(outgoing);
    let token = format!("Bearer {}", population::node(number));
    request.metadata_mut().insert("authorization", token.parse()?);
    let what = |what| FromAgent { what: Some(what) };
    say.send(what(from_agent::What::Hello(Hello { protocol: 1, version: "bench".into() }))).await?;
    say.send(what(from_agent::What::Have(Have { parts: Vec::new() }))).await?;
    let mut messages = SlicesClient::new(channel).follow(request).await?.into_inner();
    let mut turn = Some(turn);
    while let Some(message) = messages.next().await {
        match message?.what {
            Some(from_controller::What::Changes(changes)) => {
                bytes.fetch_add(changes.change.iter().map(|change| change.len()).sum(), Ordering::Relaxed);
                for change in &changes.change {
                    weir_proto::decode(change)?;
                }
            }
            Some(from_controller::What::Commit(commit)) => {
                commits.send(now())?;
                turn = None;
                say.send(what(from_agent::What::Ack(Ack { version: commit.version, ..Ack::default() })))
                    .await?;
            }
            _ => {}
        }
    }
    drop(turn);
    bail!("the controller has ended the conversation")
}
