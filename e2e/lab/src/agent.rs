//! `weir-agent` in a node's namespace, tied to the life of the lab.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::Netns;

/// What all agents of a lab have in common.
#[derive(Debug, Clone)]
pub struct AgentSetup {
    /// The program.
    pub program: PathBuf,
    /// What it is told besides the node and the manifests.
    pub arguments: Vec<String>,
    /// The folder that it watches.
    pub manifests: PathBuf,
    /// Where `NODE.log` goes.
    pub logs: PathBuf,
}

/// `weir-agent` beside the running program (or one folder above it, as for test programs).
pub fn find() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running program")?;
    let mut folders = own.ancestors().skip(1).take(2);
    folders.find_map(|f| Some(f.join("weir-agent")).filter(|p| p.is_file())).with_context(|| {
        format!(
            "no weir-agent beside {}: build it (cargo build -p weir-agent) or name it with --agent",
            own.display()
        )
    })
}

/// An agent that runs, or ran.
#[derive(Debug)]
pub struct Agent {
    node: String,
    setup: AgentSetup,
    child: Child,
    ready: Arc<(Mutex<bool>, Condvar)>,
    /// The thread that started the child lives until this is dropped: the kernel kills the child when the
    /// *thread* that made it ends (PR_SET_PDEATHSIG).
    _starter: mpsc::Sender<()>,
}

impl Agent {
    /// Starts the agent of `node`.
    pub fn start(node: &str, netns: &Netns, setup: &AgentSetup) -> Result<Agent> {
        std::fs::create_dir_all(&setup.logs)?;
        let (starter, hold) = mpsc::channel::<()>();
        let (answer, child) = mpsc::channel();
        // setpriv (util-linux) sets the parent-death signal and executes the agent: same process.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&setup.program);
        command.args(["--node", node, "--manifests"]).arg(&setup.manifests).args(&setup.arguments);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let path = netns.path();
        std::thread::spawn(move || {
            let spawned = File::open(&path).map_err(anyhow::Error::from).and_then(|namespace| {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                command.spawn().context("cannot run setpriv (package util-linux)")
            });
            let _ = answer.send(spawned);
            let _ = hold.recv();
        });
        let mut child = child
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| anyhow!("agent of {node}: not started"))??;
        let ready = Arc::new((Mutex::new(false), Condvar::new()));
        let log = setup.logs.join(format!("{node}.log"));
        for stream in [
            child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
            child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        ] {
            let stream = stream.context("the agent has no output")?;
            let log = File::options().create(true).append(true).open(&log)?;
            let ready = Arc::clone(&ready);
            std::thread::spawn(move || copy_log(stream, log, &ready));
        }
        Ok(Agent { node: node.to_owned(), setup: setup.clone(), child, ready, _starter: starter })
    }

    /// Waits until the kernel holds the agent's complete slice.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let (lock, changed) = &*self.ready.clone();
        let mut ready = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ready {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent of {} ended with {status}; its log:\n{}", self.node, self.log());
            }
            if Instant::now() > deadline {
                bail!("the agent of {} is not ready after {timeout:?}; its log:\n{}", self.node, self.log());
            }
            ready = changed
                .wait_timeout(ready, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Kills it with SIGKILL: no farewell, the way a crash goes.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The process, for measurements.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it has said so far.
    pub fn log(&self) -> String {
        tail(&self.setup.logs.join(format!("{}.log", self.node)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(path: &Path) -> String {
    let content = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = content.lines().collect();
    lines[lines.len().saturating_sub(40)..].iter().map(|line| format!("  {line}\n")).collect()
}

fn copy_log(stream: impl Read, mut log: File, ready: &(Mutex<bool>, Condvar)) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { return };
        let text = String::from_utf8_lossy(&line);
        let _ = writeln!(log, "{text}");
        if says_ready(&text) {
            *ready.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            ready.1.notify_all();
        }
    }
}

fn says_ready(line: &str) -> bool {
    let mut before = "";
    line.split(|c: char| !c.is_alphanumeric()).any(|word| {
        let found = word == "ready" && before != "not";
        before = word;
        found
    })
}

#[cfg(test)]
mod tests {
    use super::says_ready;

    #[test]
    fn ready_is_a_word_of_its_own() {
        assert!(says_ready("2026-11-21T09:00:00Z  INFO weir_agent: ready node=\"node-1\" pods=3"));
        assert!(!says_ready("not ready"));
        assert!(!says_ready("already there"));
    }
}
