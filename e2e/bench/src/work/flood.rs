//! Pods that are denied send ten thousand new connections a second: what the log of denied connections costs, and
//! whether policies come into force any later for it.
//!
//! Edits of a policy are timed in turns with the flood and without, in one run: what else the machine does is in both.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use weir_lab::netns::Netns;

use super::api::{ApiServer, Kind};
use super::objects::{APPS, Life, Shape, Tenant, node, simple_pod};
use super::process::Cost;
use super::scene::{Out, Scene};
use crate::figures::{Figure, Report};

const SHAPE: Shape = Shape { nodes: 50, namespaces: 20, places: 5_000 };
/// Pods of a node that are denied everything, each by a policy of its own.
const PODS: usize = 100;
/// Packets a second, each of a connection that is new.
const RATE: u32 = 10_000;
/// Without and with the flood, in turns.
const ROUNDS: usize = 4;
const QUIET: Duration = Duration::from_secs(4);
const FLOOD: Duration = Duration::from_secs(5);
/// From one edit to the next.
const PAUSE: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures the flood of one pod, that of a hundred, and the latter while nobody reads.
pub(crate) fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    report.heading(&format!(
        "Denied connections: {RATE} new ones each second, {} s; a policy is edited meanwhile",
        (FLOOD * u32::try_from(ROUNDS)?).as_secs()
    ));
    let api = ApiServer::default();
    let put = |kind, (key, json, _): (String, String, _)| api.put(kind, &key, &json);
    (0..SHAPE.namespaces).for_each(|n| _ = put(Kind::Namespace, SHAPE.namespace(n)));
    (0..SHAPE.namespaces * APPS).for_each(|n| _ = put(Kind::Policy, SHAPE.policy(n)));
    for place in 0..SHAPE.places {
        put(Kind::Pod, SHAPE.pod(Tenant { place, number: u32::try_from(place)? }, Life::Running));
    }
    let mut scene = Scene::start(folder, api)?;
    for (number, out) in [Out::File, Out::Unread].into_iter().enumerate() {
        for (kind, key, json) in objects(number) {
            scene.api.put(kind, &key, &json);
        }
        let mut pods = None;
        scene.node(number, &[], out, |netns| {
            pods = Some(wire(netns, number)?);
            Ok(())
        })?;
        let pods = pods.context("the pods' namespace")?;
        scene.settle()?;
        let scenarios: &[(&str, usize)] = match out {
            Out::File => &[("one pod", 1), ("100 pods", PODS)],
            Out::Unread => &[("100 pods, nobody reads", PODS)],
        };
        for (name, from) in scenarios {
            run(report, &mut scene, number, &pods, name, *from)?;
        }
    }
    Ok(())
}

/// The pods of a node that are denied, and the policies that deny: kind, key and JSON of each.
pub(super) fn objects(number: usize) -> impl Iterator<Item = (Kind, String, String)> {
    (0..=PODS).flat_map(move |place| {
        let name = format!("pod-{number}-{place}");
        let (key, json) = simple_pod("flood", &name, place, number, address(number, place));
        [(Kind::Policy, format!("flood/{place}"), policy(place, 0)), (Kind::Pod, key, json)]
    })
}

fn address(node: usize, place: usize) -> Ipv4Addr {
    let [node, place] = [node, place].map(|n| u8::try_from(n).unwrap_or(u8::MAX));
    Ipv4Addr::new(100, 64, node, place)
}

/// The policy of a pod, which lets nobody in but one address, and lets it out to one.
pub(super) fn policy(place: usize, edit: u32) -> String {
    let [_, b, c, d] = edit.to_be_bytes();
    format!(
        "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{{\"name\":\"{place}\",\
         \"namespace\":\"flood\",\"uid\":\"{place}\",\"resourceVersion\":\"{}\"}},\"spec\":{{\"podSelector\":\
         {{\"matchLabels\":{{\"place\":\"{place}\"}}}},\"policyTypes\":[\"Ingress\",\"Egress\"],\"ingress\":[{{\"from\":\
         [{{\"ipBlock\":{{\"cidr\":\"11.{b}.{c}.{d}/32\"}}}}]}}],\"egress\":[{{\"to\":[{{\"ipBlock\":{{\"cidr\":\
         \"203.0.113.{place}/32\"}}}}]}}]}}}}",
        super::api::VERSION
    )
}

/// Pods' links, as network plugins make them that route; all their ends are in one namespace, which is returned.
pub(super) fn wire(netns: &Netns, number: usize) -> Result<Netns> {
    let pods = Netns::new()?;
    pods.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    for place in 0..=PODS {
        let address = address(number, place);
        outer.extend([
            format!(
                "link add cali{place} address ee:ee:ee:ee:ee:ee type veth peer name p{place} netns {}",
                pods.path()
            ),
            format!("link set cali{place} up"),
            format!("route add {address}/32 dev cali{place} scope link"),
        ]);
        inner.extend([
            format!("addr add {address}/32 dev p{place}"),
            format!("link set p{place} up"),
            format!("neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev p{place}"),
            // which of them, the socket says
            format!("route add 198.51.100.0/24 via 169.254.1.1 dev p{place} onlink metric {}", place + 1),
        ]);
    }
    netns.ip(&outer)?;
    pods.ip(&inner)?;
    Ok(pods)
}

/// What the agent has said of denied connections so far.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    logged: f64,
    suppressed: f64,
    lost: f64,
}

fn told(scene: &Scene, number: usize) -> Result<Told> {
    let one = |name: &str| scene.of_agent(number, &format!("denials_{name}_total"));
    Ok(Told { logged: one("logged")?, suppressed: one("suppressed")?, lost: one("lost")? })
}

fn run(
    report: &mut Report,
    scene: &mut Scene,
    number: usize,
    pods: &Netns,
    name: &str,
    from: usize,
) -> Result<()> {
    scene.nodes[number].agent.reset_peak()?;
    let (before, told_before) = (scene.nodes[number].agent.cost()?, told(scene, number)?);
    let [mut quiet, mut flooded] = [Vec::new(), Vec::new()];
    let [mut quiet_busy, mut flood_busy] = [Duration::ZERO; 2];
    let mut sent = 0;
    for round in 0..ROUNDS {
        let start = scene.nodes[number].agent.cost()?.processor;
        edits(scene, number, QUIET, &mut quiet).with_context(|| format!("{name}, round {round}, quiet"))?;
        let between = scene.nodes[number].agent.cost()?.processor;
        let flood = Flood::start(pods, number, from)?;
        edits(scene, number, FLOOD, &mut flooded).with_context(|| format!("{name}, round {round}, flood"))?;
        sent += flood.stop()?;
        flood_busy += scene.nodes[number].agent.cost()?.processor - between;
        quiet_busy += between - start;
    }
    // what is on its way
    std::thread::sleep(Duration::from_millis(500));
    let (after, told) = (scene.nodes[number].agent.cost()?, told(scene, number)?);
    let rounds = u32::try_from(ROUNDS)?;
    let percent = |busy: Duration, of: Duration| busy.as_secs_f64() / (of * rounds).as_secs_f64() * 100.0;
    let mut add = |figure: Figure| report.add(figure);
    let one = |what: &str, unit, value| Figure::one("flood", format!("{name}: {what}"), unit, value);
    add(Figure::times("flood", format!("{name}: edit to kernel, quiet"), quiet));
    add(Figure::times("flood", format!("{name}: edit to kernel, flood"), flooded));
    add(one("weir-agent, processor, quiet", "%", percent(quiet_busy, QUIET)));
    add(one("weir-agent, processor, flood", "%", percent(flood_busy, FLOOD)));
    let Cost { resident, peak, .. } = after;
    add(one("weir-agent, resident before", "MiB", before.resident));
    add(one("weir-agent, resident after", "MiB", resident));
    add(one("weir-agent, resident at its highest", "MiB", peak));
    let (logged, suppressed) = (told.logged - told_before.logged, told.suppressed - told_before.suppressed);
    let lost = told.lost - told_before.lost;
    add(one("denied connections", "", sent as f64));
    add(one("lines", "", logged));
    add(one("suppressed: their pod had its lines", "", suppressed));
    add(one("lost: nobody read, or the agent was slow", "", lost));
    add(one("not told by the kernel: 100 a second", "", sent as f64 - logged - suppressed - lost));
    if scene.nodes[number].is_read() {
        let file = std::fs::File::open(&scene.nodes[number].out)?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        let whole = lines.filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
        ensure!(whole as f64 == told.logged, "{whole} lines of JSON, and {} were logged", told.logged);
    }
    Ok(())
}

/// Edits the policy of a pod without a flood for a while: from when the API server told it to when the kernel had
/// the pod's new rules in force.
fn edits(scene: &Scene, number: usize, time: Duration, times: &mut Vec<Duration>) -> Result<()> {
    static EDIT: AtomicU64 = AtomicU64::new(1);
    let end = Instant::now() + time;
    let kernel = &scene.nodes[number].kernel;
    while Instant::now() < end {
        std::thread::sleep(PAUSE);
        kernel.take()?;
        let edit = u32::try_from(EDIT.fetch_add(1, Ordering::Relaxed))?;
        let [_, b, c, d] = edit.to_be_bytes();
        let marker = [11, b, c, d];
        let begin = scene.api.put(Kind::Policy, "flood/0", &policy(0, edit));
        let (mut there, mut in_force) = (false, None);
        while in_force.is_none() {
            ensure!(begin.elapsed() < PATIENCE, "the kernel of {} does not have edit {edit}", node(number));
            std::thread::sleep(Duration::from_micros(200));
            for element in kernel.take()?.0 {
                there |= element.came && element.key == marker;
                if there && element.came && element.set.starts_with("ingress_by_") {
                    in_force.get_or_insert(element.at);
                }
            }
        }
        times.extend(in_force.map(|at| at.saturating_duration_since(begin)));
    }
    Ok(())
}

/// Packets of pods that are denied, until it is stopped.
pub(super) struct Flood {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Flood {
    /// Of so many pods.
    pub(super) fn start(pods: &Netns, number: usize, from: usize) -> Result<Flood> {
        let sockets: Vec<UdpSocket> = pods.run(|| {
            (1..=from)
                .map(|place| {
                    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                    socket.bind_device(Some(format!("p{place}").as_bytes()))?;
                    socket.bind(&SocketAddr::new(IpAddr::V4(address(number, place)), 0).into())?;
                    Ok(UdpSocket::from(socket))
                })
                .collect()
        })?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::Builder::new().name("flood".to_owned()).spawn(move || {
            let (begin, mut sent) = (Instant::now(), 0_u64);
            while !ended.load(Ordering::Relaxed) {
                let due = begin.elapsed().as_micros() * u128::from(RATE) / 1_000_000;
                while u128::from(sent) < due {
                    let socket = &sockets[sent as usize % sockets.len()];
                    // each has a port and an address that are not soon used again
                    let n = sent / sockets.len() as u64;
                    let host = Ipv4Addr::new(198, 51, 100, (n / 60_000 % 250 + 1) as u8);
                    socket.send_to(b"denied", (host, (n % 60_000 + 1_000) as u16))?;
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(sent)
        })?;
        Ok(Flood { end, thread })
    }

    /// How many there were.
    pub(super) fn stop(self) -> Result<u64> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
    }
}
