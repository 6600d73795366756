//! Network namespaces without names: a file descriptor keeps one alive.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; it ends with its last holder.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one, with nothing in it but a loopback device that is down.
    pub fn new() -> Result<Netns> {
        // Only the thread that unshares moves: the rest of the process stays where it is.
        let file = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (root needed)")?;
            File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")
        })
        .join()
        .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))??;
        Ok(Netns { file })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs `f` on a thread of its own inside of the namespace. Sockets that it makes stay there, whoever
    /// uses them later.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    f()
                })
                .join()
                .map_err(|_| anyhow!("a thread inside of a network namespace panicked"))?
        })
    }

    /// Its number, which no other has while anything of it is left.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// A path by which other processes find the namespace as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Carries out lines of the `ip` command, all of them or an error that shows the first that failed.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        self.batch("ip", lines)
    }

    /// The same for the `bridge` command.
    pub fn bridge(&self, lines: &[String]) -> Result<()> {
        self.batch("bridge", lines)
    }

    fn batch(&self, program: &str, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.run(|| {
            let mut child = Command::new(program)
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run `{program}` (package iproute2)"))?;
            let mut stdin = child.stdin.take().context("a command has no input")?;
            // A batch that stops early closes the pipe: its own message says more than EPIPE.
            let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
            drop(stdin);
            let output = child.wait_with_output()?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            let number: Option<usize> = said
                .split("Command failed -:")
                .nth(1)
                .and_then(|s| s.split_whitespace().next())
                .and_then(|s| s.trim_end_matches(':').parse().ok());
            let line = number.and_then(|n| lines.get(n - 1)).map_or("?", String::as_str);
            bail!("`{program} {line}` failed: {}", said.trim().replace('\n', "; "))
        })
    }

    /// Sets sysctls below `net/`; `(path, value)`.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                // /proc/sys/net shows the namespace of the thread that opens it.
                let path = format!("/proc/sys/net/{name}");
                std::fs::write(&path, value).with_context(|| format!("cannot set {path} to {value}"))?;
            }
            Ok(())
        })
    }
}
