//! Packets without end: of a flow that policies allow, and of one that they deny.
//!
//! Every packet is judged anew: they are UDP, nobody answers, and so their connections stay new. The allowed
//! ones are sent no faster than they arrive, so that one that is missing was dropped by a rule and not by a
//! full queue; the denied ones keep pace with them.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_lab::Lab;
use weir_lab::netns::Netns;

/// How many packets may be on their way: far fewer than any queue between the pods holds.
const ON_THEIR_WAY: u64 = 64;
/// A packet that takes longer is not coming.
pub const LOST_AFTER: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    allowed_sent: AtomicU64,
    allowed_received: AtomicU64,
    allowed_lost: AtomicU64,
    denied_sent: AtomicU64,
    denied_received: AtomicU64,
}

/// From pod `web` to port 80 of `db`: allowed. From `near`: denied.
pub struct Traffic {
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
}

fn in_netns(netns: &Netns, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let namespace = std::fs::File::open(netns.path()).expect("a namespace");
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("may enter it");
        work();
    })
}

impl Traffic {
    pub fn start(lab: &Lab) -> Traffic {
        let cluster = lab.cluster();
        let address = |pod: &str| cluster.pod(pod).expect("a pod").addresses[0];
        let netns = |pod: &str| lab.netns(pod).expect("its namespace");
        let (web, near, at) = (address("web"), address("near"), SocketAddr::new(address("db"), 80));
        let counters = Arc::new(Counters::default());
        let mut threads = Vec::new();

        let (bound, is_bound) = std::sync::mpsc::channel();
        let c = Arc::clone(&counters);
        threads.push(in_netns(netns("db"), move || {
            let socket = UdpSocket::bind(at).expect("port 80 of db");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            bound.send(()).expect("somebody waits");
            let mut buffer = [0; 16];
            while !c.stop.load(SeqCst) {
                match socket.recv_from(&mut buffer) {
                    Ok((_, from)) if from.ip() == web => drop(c.allowed_received.fetch_add(1, SeqCst)),
                    Ok((_, from)) if from.ip() == near => drop(c.denied_received.fetch_add(1, SeqCst)),
                    _ => {}
                }
            }
        }));
        is_bound.recv().expect("db listens");

        let c = Arc::clone(&counters);
        threads.push(in_netns(netns("web"), move || {
            let socket = UdpSocket::bind((web, 0)).expect("a socket");
            let mut progress = (0, Instant::now());
            while !c.stop.load(SeqCst) {
                let arrived = c.allowed_received.load(SeqCst) + c.allowed_lost.load(SeqCst);
                let on_their_way = c.allowed_sent.load(SeqCst).saturating_sub(arrived);
                if arrived != progress.0 {
                    progress = (arrived, Instant::now());
                }
                if on_their_way < ON_THEIR_WAY {
                    // a send that fails (EPERM, say) is a packet that does not arrive
                    c.allowed_sent.fetch_add(1, SeqCst);
                    let _ = socket.send_to(b"hello", at);
                } else if progress.1.elapsed() > LOST_AFTER {
                    c.allowed_lost.fetch_add(on_their_way, SeqCst);
                    progress.1 = Instant::now();
                } else {
                    std::thread::yield_now();
                }
            }
        }));

        let c = Arc::clone(&counters);
        threads.push(in_netns(netns("near"), move || {
            let socket = UdpSocket::bind((near, 0)).expect("a socket");
            while !c.stop.load(SeqCst) {
                if c.denied_sent.load(SeqCst) < c.allowed_sent.load(SeqCst) {
                    c.denied_sent.fetch_add(1, SeqCst);
                    let _ = socket.send_to(b"hello", at);
                } else {
                    std::thread::yield_now();
                }
            }
        }));
        Traffic { counters, threads }
    }

    pub fn sent(&self) -> u64 {
        self.counters.allowed_sent.load(SeqCst) + self.counters.denied_sent.load(SeqCst)
    }

    /// Packets of allowed flows that did not arrive, and of denied ones that did.
    pub fn wrong(&self) -> (u64, u64) {
        (self.counters.allowed_lost.load(SeqCst), self.counters.denied_received.load(SeqCst))
    }

    pub fn stop(self) {
        self.counters.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().expect("no thread panics");
        }
    }
}
