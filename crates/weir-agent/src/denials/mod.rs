//! Denied connections, as lines of JSON on standard output.
//!
//! ```text
//!   kernel: limit per ruleset ──NFLOG──> watch   a thread: what packet is it, and does its pod have a line left
//!                                          │       (limiter, packet)
//!                                          v  at most QUEUE of them wait
//!                                        the loop: whose addresses are these, which policies isolate the pod (line)
//!                                          v  at most QUEUE of them wait
//!                                        write   a thread: standard output, however slow its reader is
//! ```
//!
//! What policies allow goes the same way where a namespace asks for it, and is added up (allowed, sums).
//!
//! Nothing here makes enforcement wait: each arrow drops what does not fit, and counts it.

mod allowed;
mod limiter;
mod line;
mod packet;
mod sums;

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_dataplane::DenialLog;
use weir_nft::nflog::Nflog;

use crate::metrics::Metrics;
use allowed::{Allowed, Book};
use limiter::Limiter;
use packet::Flow;

/// How many wait for the next in line.
const QUEUE: usize = 1024;
/// How many lines the loop makes before it looks at anything else.
const A_TURN: usize = 64;
/// Datagrams of the kernel's that are read before anything else is looked at.
const AT_ONCE: usize = 64;
/// How soon it is noticed that the agent ends.
const POLL: Duration = Duration::from_millis(200);
/// After which time it is tried again to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// What to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Lines a second of each pod and direction.
    pub per_second: u32,
    /// How the kernel tells of them.
    pub kernel: DenialLog,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Denied,
    /// It passed; what is audited would have denied it (U29).
    WouldDeny,
}

/// A packet that policies denied, or would deny.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    at: SystemTime,
    verdict: Verdict,
    /// The direction of the pod that denies.
    direction: Direction,
    flow: Flow,
    /// Of this pod and direction, so many were not told since the last one.
    suppressed: u64,
}

/// What there is to tell next.
#[derive(Debug)]
pub(crate) enum Next {
    Denied(Denial),
    /// `None`: how many there were since the last line.
    Allowed(Option<Allowed>),
}

/// Where denials come from and go to.
pub(crate) struct Denials {
    node: String,
    denials: mpsc::Receiver<Denial>,
    allowed: Book,
    lines: SyncSender<String>,
    metrics: Metrics,
    end: Arc<AtomicBool>,
}

impl Denials {
    /// Starts both threads.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) fn start(
        node: &str,
        options: Options,
        metrics: Metrics,
        out: impl Write + Send + 'static,
    ) -> std::io::Result<Denials> {
        let (found, denials) = mpsc::channel(QUEUE);
        let (lines, to_write) = sync_channel(QUEUE);
        let end = Arc::new(AtomicBool::new(false));
        let (found_allowed, allowed) = Book::new();
        let watcher =
            Watcher { options, found, found_allowed, metrics: metrics.clone(), end: Arc::clone(&end) };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("denials").spawn(move || watcher.run())?;
        thread("denials-out").spawn(move || write(&to_write, out))?;
        Ok(Denials { node: node.to_owned(), denials, allowed, lines, metrics, end })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Next {
        tokio::select! {
            Some(denial) = self.denials.recv() => Next::Denied(denial),
            allowed = self.allowed.next() => Next::Allowed(allowed),
        }
    }

    /// Tells it, and what else has come, by the names of now; not all of it at once, for others to have their turn.
    pub(crate) fn tell(&mut self, next: Next, slice: &NodeSlice) {
        let mut next = match next {
            Next::Denied(denial) => Some(denial),
            Next::Allowed(allowed) => {
                return self.allowed.tell(allowed, slice, &self.node, &self.lines, &self.metrics);
            }
        };
        for left in (0..A_TURN).rev() {
            let Some(denial) = next else { break };
            let (line, would_allow) = line::line(&self.node, &denial, slice);
            self.metrics.audit_would_allow.inc_by(would_allow.into());
            match self.lines.try_send(line) {
                Ok(()) => self.metrics.denials_logged.inc(),
                Err(_) => self.metrics.denials_lost.inc(),
            };
            next = if left > 0 { self.denials.try_recv().ok() } else { None };
        }
    }
}

impl Drop for Denials {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

struct Watcher {
    options: Options,
    found: mpsc::Sender<Denial>,
    found_allowed: mpsc::Sender<Allowed>,
    metrics: Metrics,
    end: Arc<AtomicBool>,
}

impl Watcher {
    fn run(self) {
        let mut limiter = Limiter::new(self.options.per_second);
        let mut complained = false;
        while !self.end.load(Ordering::Relaxed) {
            match Nflog::open(self.options.kernel.group, self.options.kernel.snaplen) {
                Ok(nflog) => {
                    if std::mem::take(&mut complained) {
                        tracing::info!("denied connections are logged again");
                    }
                    if let Err(error) = self.listen(nflog, &mut limiter) {
                        tracing::warn!("cannot read what NFLOG tells of denied connections: {error}");
                    }
                }
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!("denied connections are not logged, trying again: {error}");
                }
                Err(_) => {}
            }
            let begin = Instant::now();
            while begin.elapsed() < AGAIN && !self.end.load(Ordering::Relaxed) {
                std::thread::sleep(POLL);
            }
        }
    }

    fn listen(&self, mut nflog: Nflog, limiter: &mut Limiter) -> std::io::Result<()> {
        while !self.end.load(Ordering::Relaxed) {
            if !nflog.wait(POLL)? {
                continue;
            }
            let now = Instant::now();
            let lost = nflog.drain(AT_ONCE, |packet| {
                if let Some((direction, one_of)) = allowed::read(packet.prefix) {
                    let Some(flow) = Flow::read(packet.head) else { return };
                    let allowed = Allowed { at: SystemTime::now(), direction, one_of, flow };
                    if self.found_allowed.try_send(allowed).is_err() {
                        self.metrics.allowed_lost.inc();
                    }
                    return;
                }
                // another socket's, or another program's rule
                let Some((verdict, direction)) = told_by(packet.prefix) else { return };
                let Some(flow) = Flow::read(packet.head) else { return };
                self.metrics.audit_would_deny.inc_by((verdict == Verdict::WouldDeny).into());
                let Some(suppressed) = limiter.take(now, (verdict, direction, pod(direction, &flow))) else {
                    self.metrics.denials_suppressed.inc();
                    return;
                };
                let denial = Denial { at: SystemTime::now(), verdict, direction, flow, suppressed };
                if self.found.try_send(denial).is_err() {
                    self.metrics.denials_lost.inc();
                }
            })?;
            self.metrics.denials_lost.inc_by(u64::from(lost));
        }
        Ok(())
    }
}

/// Of the chain of a ruleset, whose name is the prefix of what it logs.
fn told_by(prefix: &str) -> Option<(Verdict, Direction)> {
    let (verdict, rest) = match prefix.strip_prefix("audit_") {
        Some(rest) => (Verdict::WouldDeny, rest),
        None => (Verdict::Denied, prefix),
    };
    let (word, _) = rest.split_once('_')?;
    let direction = Direction::BOTH.into_iter().find(|direction| direction.as_str() == word)?;
    Some((verdict, direction))
}

/// The end whose policies decide.
fn pod(direction: Direction, flow: &Flow) -> IpAddr {
    match direction {
        Direction::Egress => flow.source,
        Direction::Ingress => flow.destination,
    }
}

/// The other end.
fn other(direction: Direction, flow: &Flow) -> IpAddr {
    match direction {
        Direction::Egress => flow.destination,
        Direction::Ingress => flow.source,
    }
}

/// Until there is nobody left who has lines, or nobody who reads them.
fn write(lines: &Receiver<String>, mut out: impl Write) {
    while let Ok(line) = lines.recv() {
        let mut written = out.write_all(line.as_bytes());
        // as many as there are, in one go
        for line in lines.try_iter().take(QUEUE) {
            written = written.and_then(|()| out.write_all(line.as_bytes()));
        }
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::warn!("denied connections cannot be written to standard output any more: {error}");
            return;
        }
    }
}

#[cfg(test)]
mod tests;
