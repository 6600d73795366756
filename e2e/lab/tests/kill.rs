//! Agents are killed at random moments while policies change and packets flow.
//!
//! Every packet is judged anew: they are UDP, nobody answers, and so their connections stay new. The allowed
//! ones are sent no faster than they arrive, so that one that is missing was dropped by a rule and not by a
//! full queue; the denied ones keep pace with them.
//!
//! `KILLS` and `PACKETS` set how many of each there are at least (20 and 1,000,000), `KILL_SEED` the moments.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{TestLab, objects, with_agents};
use weir_lab::netns::Netns;
use weir_lab::objects::Objects;

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, labels: {app: other}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n1}}
";

/// Lets `web` in at 80 and nobody else, by as many policies as `edit` says: some of the chains are in a
/// row, some by port class, and all of them change with each edit.
fn policies(edit: u64) -> Objects {
    let policy = |name: u64, from: &str, ports: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{name}}}, spec: {{podSelector: \
             {{matchLabels: {{app: db}}}}, ingress: [{{from: [{from}], ports: [{ports}]}}]}}}}\n---\n"
        )
    };
    let mut all = policy(0, "{podSelector: {matchLabels: {app: web}}}", "{port: 80, protocol: UDP}");
    for i in 1..=(edit * 7 % 40) {
        let from = match i % 3 {
            0 => format!("{{ipBlock: {{cidr: 198.51.{}.0/24}}}}", (edit + i) % 256),
            1 => format!("{{podSelector: {{matchLabels: {{app: none{}}}}}}}", (edit + i) % 50),
            // may use other ports than the watched one
            _ => "{podSelector: {}}".to_owned(),
        };
        let port = if i % 3 == 2 { 1000 + i } else { 80 };
        all += &policy(i, &from, &format!("{{port: {port}, protocol: UDP}}"));
    }
    objects(&all)
}

/// How many packets may be on their way: far fewer than any queue between the pods holds.
const ON_THEIR_WAY: u64 = 64;
/// A packet that takes longer is not coming.
const LOST_AFTER: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    allowed_sent: AtomicU64,
    allowed_received: AtomicU64,
    allowed_lost: AtomicU64,
    denied_sent: AtomicU64,
    denied_received: AtomicU64,
}

struct Traffic {
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
    fn start(t: &TestLab) -> Traffic {
        let cluster = t.lab.cluster();
        let address = |pod: &str| cluster.pod(pod).expect("a pod").addresses[0];
        let netns = |pod: &str| t.lab.netns(pod).expect("its namespace");
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

    fn sent(&self) -> u64 {
        self.counters.allowed_sent.load(SeqCst) + self.counters.denied_sent.load(SeqCst)
    }

    /// Packets of allowed flows that did not arrive, and of denied ones that did.
    fn wrong(&self) -> (u64, u64) {
        (self.counters.allowed_lost.load(SeqCst), self.counters.denied_received.load(SeqCst))
    }

    fn stop(self) {
        self.counters.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().expect("no thread panics");
        }
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "needs root"]
fn killed_at_any_moment_the_kernel_holds_old_or_new_policies() {
    let (kills, packets) = (number("KILLS", 20), number("PACKETS", 1_000_000));
    let mut seed = number("KILL_SEED", std::process::id().into());
    println!("KILL_SEED={seed}");
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };

    let mut cluster = objects(CLUSTER);
    cluster.overlay(policies(0));
    let mut t = with_agents(cluster);
    let traffic = Traffic::start(&t);
    let (mut killed, mut edit) = (0, 0);
    while killed < kills || traffic.sent() < packets {
        // the moment is anywhere from the first steps of a start to long after it
        for _ in 0..random(4) {
            edit += 1;
            t.lab.apply(policies(edit)).expect("an edit");
            std::thread::sleep(Duration::from_millis(random(40)));
        }
        std::thread::sleep(Duration::from_millis(random(60)));
        if killed < kills || random(4) == 0 {
            let mut agent = t.lab.agents().remove("n1").expect("an agent");
            assert!(agent.is_running(), "it ended by itself:\n{}", agent.log());
            agent.kill().expect("it is ours");
            t.lab.start_agent("n1").expect("another");
            killed += 1;
        }
        assert_eq!(traffic.wrong(), (0, 0), "after {killed} kills, {edit} edits, {} packets", traffic.sent());
    }
    std::thread::sleep(LOST_AFTER + Duration::from_millis(500));
    let (sent, wrong) = (traffic.sent(), traffic.wrong());
    println!(
        "{killed} kills, {edit} edits, {sent} packets: {} allowed lost, {} denied passed",
        wrong.0, wrong.1
    );
    assert_eq!(wrong, (0, 0));

    // the instrument itself: without rules it sees what passes, and a rule too many it sees as well
    t.lab.agents().remove("n1").expect("an agent").kill().expect("it is ours");
    let node = t.lab.netns("n1").expect("the node");
    let nft =
        |text: &str| node.run(|| Ok(Command::new("nft").arg(text).status()?.success())).expect("nft runs");
    assert!(nft("delete table inet weir"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while traffic.wrong().1 == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(traffic.wrong().1 > 0, "a moment without rules would not have been seen");
    assert!(nft("table inet x { chain x { type filter hook forward priority 0; drop; }; }"));
    while traffic.wrong().0 == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(traffic.wrong().0 > 0, "a rule too many would not have been seen");
    traffic.stop();
}
