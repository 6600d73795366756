//! Programs in network namespaces, and what they cost.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use weir_lab::netns::Netns;

/// A clock tick of `/proc/PID/stat`, which is the same on every Linux that this runs on.
const TICK: Duration = Duration::from_millis(10);

/// A program that runs; it ends with this, and with the thread that started it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
    _starter: mpsc::Sender<()>,
}

/// What a process has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// On all cores.
    pub(super) processor: Duration,
    /// How long its threads could have run, and had to wait: the machine was busy with something else.
    pub(super) waited: Duration,
    /// Resident memory now, in MiB.
    pub(super) resident: f64,
    /// The most it was since [`Process::reset_peak`], in MiB.
    pub(super) peak: f64,
}

impl Process {
    /// Starts a program beside this one; what it says on standard error goes to `log`.
    pub(super) fn start(
        program: &str,
        arguments: &[String],
        netns: &Netns,
        out: Stdio,
        log: &Path,
    ) -> Result<Process> {
        let own = std::env::current_exe().context("cannot find the running program")?;
        let path = own.with_file_name(program);
        anyhow::ensure!(
            path.is_file(),
            "no {}: build it (cargo build --release --workspace)",
            path.display()
        );
        // setpriv (util-linux) sets the parent-death signal and executes the program: same process
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(path).args(arguments);
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").stdin(Stdio::null()).stdout(out);
        command.stderr(File::options().create(true).append(true).open(log)?);
        let (starter, hold) = mpsc::channel::<()>();
        let (answer, child) = mpsc::channel();
        let namespace = File::open(netns.path())?;
        std::thread::spawn(move || {
            let spawned = setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(anyhow::Error::from)
                .and_then(|()| command.spawn().context("cannot run setpriv (package util-linux)"));
            let _ = answer.send(spawned);
            let _ = hold.recv();
        });
        let child =
            child.recv_timeout(Duration::from_secs(5)).map_err(|_| anyhow!("{program}: not started"))??;
        Ok(Process { child, log: log.to_owned(), _starter: starter })
    }

    /// What it said.
    pub(super) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has cost.
    pub(super) fn cost(&mut self) -> Result<Cost> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended with {status}: {}", self.said());
        }
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", self.child.id()));
        let stat = read("stat")?;
        // the name, in brackets, may have anything in it
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u32>().ok());
        let ticks = ticks(11).zip(ticks(12)).context("/proc/PID/stat")?;
        let status = read("status")?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0).context("/proc/PID/status")
        };
        Ok(Cost {
            processor: TICK * (ticks.0 + ticks.1),
            waited: self.waited()?,
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
        })
    }

    /// Of the threads that it has now.
    fn waited(&self) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // it may have ended by now
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let nanoseconds = text.split(' ').nth(1).and_then(|text| text.parse().ok());
            all += Duration::from_nanos(nanoseconds.unwrap_or(0));
        }
        Ok(all)
    }

    /// Begins anew with the most memory.
    pub(super) fn reset_peak(&self) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }
}

impl Process {
    /// As a crash does.
    pub(super) fn kill(&mut self) {
        // ours, and not waited for yet; if it has ended already there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program serves at a path: status and body.
pub(super) fn get(netns: &Netns, address: &str, path: &str) -> Result<(u16, String)> {
    netns.run(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok((code, body.to_owned()))
    })
}

/// The sum of a metric over all of its labels; 0 if there is none.
pub(super) fn metric(text: &str, name: &str) -> f64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let lines = lines.filter(|rest| rest.starts_with(['{', ' ']));
    lines.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
