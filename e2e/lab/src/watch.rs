//! Packets without a pause, for the time of a change: each from a fresh socket, so that no connection that
//! was let through earlier answers for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::net::UdpSocket;

use crate::lab::Lab;
use crate::ports::Transport;
use crate::probe::{self, Flow, Outcome};

/// How many packets had which end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The right pod answered.
    pub passed: u64,
    /// Nobody did, in time.
    pub silent: u64,
    /// Somebody else did, or an error came back.
    pub wrong: u64,
}

#[derive(Debug, Default)]
struct Tally {
    started: AtomicU64,
    passed: AtomicU64,
    silent: AtomicU64,
    wrong: AtomicU64,
}

/// A flow that is tried over and over.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Watch {
    /// Starts to try `flow` every `interval`; its answer must come within `patience`. The pods of the lab must
    /// listen on its port.
    pub fn start(lab: &Lab, flow: &Flow, interval: Duration, patience: Duration) -> Result<Watch> {
        anyhow::ensure!(
            matches!(flow.port.protocol, Transport::Tcp | Transport::Udp),
            "a watch sends TCP or UDP, not {}",
            flow.port
        );
        let pods = &lab.cluster().ends();
        let netns = lab.network().pod(&pods[flow.from]).context("the client has no namespace")?;
        let name = probe::place(&pods[flow.to]);
        let path = netns.path();
        let handle = lab.prober().handle().clone();
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let (stopped, counted, flow) = (Arc::clone(&stop), Arc::clone(&tally), flow.clone());
        let namespace = std::fs::File::open(&path).with_context(|| path.clone())?;
        let thread = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let _runtime = handle.enter();
            while !stopped.load(Ordering::Relaxed) {
                let at = std::net::SocketAddr::new(flow.destination, flow.port.number);
                counted.started.fetch_add(1, Ordering::Relaxed);
                let (tally, name) = (Arc::clone(&counted), name.clone());
                if flow.port.protocol == Transport::Udp {
                    let socket = UdpSocket::from_std(probe::udp_client(flow.source)?)?;
                    handle.spawn(async move { tally.add(ask_once(&socket, at, &name, patience).await) });
                } else {
                    let socket = probe::tcp_client(flow.source)?;
                    handle.spawn(async move { tally.add(probe::connect(socket, at, &name, patience).await) });
                }
                std::thread::sleep(interval);
            }
            Ok(())
        });
        Ok(Watch { stop, tally, thread })
    }

    /// Ends it, waits for the last answers, and says what became of all packets.
    pub fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a watch panicked"))??;
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        // Every probe ends by itself after its patience.
        for _ in 0..1000 {
            let t = &self.tally;
            let counts =
                Counts { passed: count(&t.passed), silent: count(&t.silent), wrong: count(&t.wrong) };
            if counts.passed + counts.silent + counts.wrong == count(&t.started) {
                return Ok(counts);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(anyhow!("probes of a watch did not end within 10 s"))
    }
}

impl Tally {
    fn add(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Passed => &self.passed,
            Outcome::Silent => &self.silent,
            Outcome::Wrong(_) => &self.wrong,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn ask_once(socket: &UdpSocket, at: std::net::SocketAddr, name: &str, patience: Duration) -> Outcome {
    let mut buffer = [0u8; 600];
    let talk = async {
        socket.send_to(b"hello", at).await?;
        socket.recv_from(&mut buffer).await
    };
    match tokio::time::timeout(patience, talk).await {
        Err(_) => Outcome::Silent,
        Ok(Err(e)) => Outcome::Wrong(e.to_string()),
        Ok(Ok((n, from))) => match buffer[..n].strip_prefix(b"hello") {
            Some(said) if said == name.as_bytes() && from == at => Outcome::Passed,
            _ => Outcome::Wrong(format!("{from} answered")),
        },
    }
}
