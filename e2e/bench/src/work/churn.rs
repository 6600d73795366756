//! Pods come and go at some rate: what that costs, how soon kernels know, and whether they know all.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_agent::links::Watcher;
use weir_compiler::object::{Event, ObjectKey};
use weir_compiler::slice::{Change, Member, NodeSlice};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::{Attachments, DenialLog, Planner, Settings};
use weir_lab::netns::Netns;
use weir_nft::Nft;

use super::api::{ApiServer, Kind};
use super::kernel::Element;
use super::objects::{APPS, Life, Shape, Tenant, node};
use super::process::Cost;
use super::scene::{Node, Out, Scene};
use crate::figures::{Figure, Report};

const SHAPE: Shape = Shape { nodes: 50, namespaces: 20, places: 5_000 };
/// Nodes with an agent; all others have a follower.
pub(super) const REAL: usize = 3;
/// Pods replaced in a second.
const RATES: [u32; 3] = [10, 100, 1_000];
/// Of each rate, and of nothing at all.
const SECONDS: u32 = 25;
/// What does not come to a kernel within this time is lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interfaces for pods on a node: more than it has pods at any time.
const LINKS: usize = 180;
/// Of a replaced pod, from the first event on: its successor is there, has a node, and an address; then it is to end,
/// and is gone.
const STEPS: [(Duration, Step); 5] = [
    (Duration::ZERO, Step::Comes(Life::Pending)),
    (Duration::from_millis(20), Step::Comes(Life::Bound)),
    (Duration::from_millis(500), Step::Comes(Life::Running)),
    (Duration::from_millis(1_000), Step::Goes(false)),
    (Duration::from_millis(1_500), Step::Goes(true)),
];

#[derive(Debug, Clone, Copy)]
enum Step {
    Comes(Life),
    /// It is gone, or is to go.
    Goes(bool),
}

/// Measures all rates, after a time without any change.
pub(crate) fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    report.heading(&format!(
        "At work: {} nodes ({REAL} with weir-agent), {} pods, {} policies; pods replaced each second, for {SECONDS} s",
        SHAPE.nodes,
        SHAPE.places,
        SHAPE.namespaces * APPS
    ));
    let (mut world, mut scene) = World::start(folder)?;
    world.window(report, &mut scene, 0)?;
    for rate in RATES {
        world.window(report, &mut scene, rate)?;
    }
    world.check(&scene)
}

/// The cluster as it should be, and all that happened to it.
pub(super) struct World {
    /// Who is in each place.
    tenants: Vec<Tenant>,
    next: u32,
    /// What kernels should hold, of each real node.
    compilers: Vec<(Compiler, NodeSlice)>,
    links: Vec<Links>,
}

/// What was sent when.
pub(super) type Sent = Vec<(Instant, Event)>;

impl World {
    /// All of it, at rest.
    pub(super) fn start(folder: &Path) -> Result<(World, Scene)> {
        let api = ApiServer::default();
        let mut events = Vec::new();
        let mut put = |kind, (key, json, event): (String, String, Event)| {
            api.put(kind, &key, &json);
            events.push(event);
        };
        (0..SHAPE.namespaces).for_each(|n| put(Kind::Namespace, SHAPE.namespace(n)));
        (0..SHAPE.namespaces * APPS).for_each(|n| put(Kind::Policy, SHAPE.policy(n)));
        let tenants: Vec<Tenant> = (0..SHAPE.places)
            .map(|place| Tenant { place, number: u32::try_from(place).unwrap_or(0) })
            .collect();
        tenants.iter().for_each(|tenant| put(Kind::Pod, SHAPE.pod(*tenant, Life::Running)));

        let mut scene = Scene::start(folder, api)?;
        let mut links = Vec::new();
        for number in 0..REAL {
            let here: Vec<Tenant> = tenants.iter().copied().filter(|t| SHAPE.on(t.place) == number).collect();
            scene.node(number, &[], Out::File, |netns| {
                links.push(Links::start(netns, &here)?);
                Ok(())
            })?;
        }
        scene.followers(REAL..SHAPE.nodes)?;
        scene.settle()?;
        let mut compilers = Vec::new();
        for number in 0..REAL {
            let mut compiler = Compiler::new(Scope::Node(node(number)));
            let mut slice = NodeSlice::default();
            compiler.apply(events.clone()).slices.iter().for_each(|delta| slice.apply(&delta.changes));
            compilers.push((compiler, slice));
        }
        let next = u32::try_from(SHAPE.places)?;
        Ok((World { tenants, next, compilers, links }, scene))
    }

    /// Replaces pods at a rate, and tells what that cost.
    fn window(&mut self, report: &mut Report, scene: &mut Scene, rate: u32) -> Result<()> {
        for node in &scene.nodes {
            node.kernel.take()?;
            node.agent.reset_peak()?;
        }
        scene.controller.reset_peak()?;
        let before = costs(scene)?;
        let (events, followed) = (scene.of_controller("events_total")?, scene.followed());
        let started = Instant::now();
        let (sent, late) = self.churn(scene, rate, SECONDS)?;
        std::thread::sleep(
            (started + Duration::from_secs(SECONDS.into())).saturating_duration_since(Instant::now()),
        );
        let (took, after) = (started.elapsed(), costs(scene)?);
        let expected = self.expected(sent);
        let patience = Instant::now() + PATIENCE;
        let missing = |node: &Node, expected: &Vec<_>| node.kernel.len() < expected.len();
        while Instant::now() < patience
            && scene.nodes.iter().zip(&expected).any(|(node, expected)| missing(node, expected))
        {
            std::thread::sleep(Duration::from_millis(50));
        }
        scene.settle()?;
        let events = scene.of_controller("events_total")? - events;
        let followed = scene.followed() - followed;

        let (mut times, mut batches, mut wrong) = (Vec::new(), 0, (0, 0));
        for (node, expected) in scene.nodes.iter().zip(expected) {
            let (elements, commits) = node.kernel.take()?;
            batches += commits;
            let (lost, twice) = compare(expected, elements, &mut times);
            wrong = (wrong.0 + lost, wrong.1 + twice);
        }
        let name = if rate == 0 { "idle".to_owned() } else { format!("{rate}/s") };
        let mut add =
            |what: &str, unit, value| report.add(Figure::one("work", format!("{name}: {what}"), unit, value));
        let percent = |before: Cost, after: Cost| {
            (after.processor - before.processor).as_secs_f64() / took.as_secs_f64() * 100.0
        };
        let waited = |before: Cost, after: Cost| {
            after.waited.saturating_sub(before.waited).as_secs_f64() / took.as_secs_f64() * 100.0
        };
        let agents = || before[1..].iter().zip(&after[1..]);
        add("weir-controller, processor", "%", percent(before[0], after[0]));
        add("weir-controller, waited for a processor", "%", waited(before[0], after[0]));
        add("weir-controller, resident before", "MiB", before[0].resident);
        add("weir-controller, resident after", "MiB", after[0].resident);
        add("weir-controller, resident at its highest", "MiB", after[0].peak);
        let most = |of: &dyn Fn(Cost, Cost) -> f64| agents().map(|(b, a)| of(*b, *a)).fold(0.0, f64::max);
        add("weir-agent, processor, the most of them", "%", most(&|b, a| percent(b, a)));
        add("weir-agent, waited for a processor", "%", most(&waited));
        add("weir-agent, resident before", "MiB", most(&|b, _| b.resident));
        add("weir-agent, resident after", "MiB", most(&|_, a| a.resident));
        add("weir-agent, resident at its highest", "MiB", most(&|_, a| a.peak));
        add("events that the controller took in", "", events);
        add("commits, of one follower", "", followed as f64 / (SHAPE.nodes - REAL) as f64);
        add("kernel batches, of one node", "", batches as f64 / REAL as f64);
        if rate > 0 {
            let checked = times.len();
            report.add(Figure::times("work", format!("{name}: from event to kernel"), times));
            println!(
                "  {checked} addresses came to kernels or left them, {} are missing, {} came twice; {}",
                wrong.0,
                wrong.1,
                format_args!("the latest event went out {:.0} ms late", late.as_secs_f64() * 1e3)
            );
        }
        ensure!(wrong == (0, 0), "{} changes did not come to kernels, {} came twice", wrong.0, wrong.1);
        Ok(())
    }

    /// Sends what happens, in time; what was sent, and how late the latest of it was.
    pub(super) fn churn(&mut self, scene: &Scene, rate: u32, seconds: u32) -> Result<(Sent, Duration)> {
        // each place in turn, far from the one before
        let count = rate * seconds;
        let mut steps: Vec<(Duration, u32, Step)> = (0..count)
            .flat_map(|n| {
                let begin = Duration::from_secs(1) * n / rate.max(1);
                STEPS.map(|(after, step)| (begin + after, n, step))
            })
            .collect();
        steps.sort_by_key(|(at, ..)| *at);
        let first = self.next;
        self.next += count;
        let place = |n: u32| ((first + n) as usize * 2_741) % SHAPE.places;
        let (started, mut late) = (Instant::now(), Duration::ZERO);
        let mut sent = Vec::with_capacity(steps.len());
        let mut leaving: HashMap<u32, Tenant> = HashMap::new();
        for (at, n, step) in steps {
            let due = started + at;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            late = late.max(due.elapsed());
            let place = place(n);
            let new = Tenant { place, number: first + n };
            let (tenant, life) = match step {
                Step::Comes(life) => (new, life),
                Step::Goes(_) => {
                    let old =
                        *leaving.entry(n).or_insert_with(|| std::mem::replace(&mut self.tenants[place], new));
                    (old, Life::Terminating)
                }
            };
            let links = self.links.get_mut(SHAPE.on(place));
            let (key, json, event) = SHAPE.pod(tenant, life);
            if let Step::Goes(true) = step {
                let (namespace, name) = key.split_once('/').context("a key")?;
                let at = scene.api.remove(Kind::Pod, &key).context("a pod is there until it goes")?;
                sent.push((at, Event::PodGone(ObjectKey::new(namespace, name))));
                links.map_or(Ok(()), |links| links.goes(tenant))?;
                leaving.remove(&n);
            } else {
                if let Step::Comes(Life::Bound) = step {
                    links.map_or(Ok(()), |links| links.comes(tenant))?;
                }
                sent.push((scene.api.put(Kind::Pod, &key, &json), event));
            }
        }
        Ok((sent, late))
    }

    /// When which addresses should have come and gone, of each real node.
    fn expected(&mut self, sent: Sent) -> Vec<Vec<(Instant, bool, Ipv4Addr)>> {
        let mut all = vec![Vec::new(); self.compilers.len()];
        for (at, event) in sent {
            for ((compiler, slice), expected) in self.compilers.iter_mut().zip(&mut all) {
                for delta in compiler.apply([event.clone()]).slices {
                    for change in delta.changes.iter() {
                        if let Change::Members { added, removed, .. } = change {
                            let members =
                                added.iter().map(|m| (m, true)).chain(removed.iter().map(|m| (m, false)));
                            expected.extend(members.filter_map(|(member, came)| match member {
                                Member::Address(IpAddr::V4(address)) => Some((at, came, *address)),
                                _ => None,
                            }));
                        }
                    }
                    slice.apply(&delta.changes);
                }
            }
        }
        all
    }

    /// What each kernel holds in the end is what its slice says, to the last byte.
    fn check(&self, scene: &Scene) -> Result<()> {
        for (node, (_, slice)) in scene.nodes.iter().zip(&self.compilers) {
            node.netns.run(|| check(node, slice)).with_context(|| format!("node-{}", node.number))?;
        }
        println!(
            "  in the end each of the {REAL} kernels holds what a compiler that saw all events one by one says"
        );
        Ok(())
    }
}

fn check(node: &Node, slice: &NodeSlice) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let links = runtime.block_on(async { Ok::<_, anyhow::Error>(Watcher::new().await?.table().clone()) })?;
    let mut planner = Planner::with(Settings {
        revoked_mark: NonZeroU32::new(0x1000),
        drop_mid_stream: true,
        log_denials: Some(DenialLog::default()),
        ..Settings::default()
    });
    planner.update(&slice.changes());
    let pods = slice.pods.iter().map(|(key, pod)| (key, pod.addresses.as_slice()));
    let attachments: Attachments = links
        .attachments(pods)
        .into_iter()
        .flat_map(|(_, addresses)| addresses)
        .filter_map(|(address, attachment)| Some((address, attachment?)))
        .collect();
    planner.attach(attachments);
    let plan = planner.table();
    let installed = Nft::open()?.dump(plan.family, &plan.name)?.context("there is no table")?;
    ensure!(installed == *plan, "the kernel does not hold the plan; the agent said: {}", node.agent.said());
    Ok(())
}

/// Pairs what came with what should have; how many are missing, and how many came that should not have.
fn compare(
    expected: Vec<(Instant, bool, Ipv4Addr)>,
    elements: Vec<Element>,
    times: &mut Vec<Duration>,
) -> (usize, usize) {
    let mut heard: HashMap<(bool, Ipv4Addr), Vec<Instant>> = HashMap::new();
    for element in elements.into_iter().rev().filter(|element| element.set.starts_with("pods_")) {
        heard.entry((element.came, element.address())).or_default().push(element.at);
    }
    let mut lost = 0;
    for (sent, came, address) in expected {
        match heard.get_mut(&(came, address)).and_then(Vec::pop) {
            Some(at) => times.push(at.saturating_duration_since(sent)),
            None => lost += 1,
        }
    }
    (lost, heard.values().map(Vec::len).sum())
}

/// The controller's, then agents'.
fn costs(scene: &mut Scene) -> Result<Vec<Cost>> {
    let mut all = vec![scene.controller.cost()?];
    for node in &mut scene.nodes {
        all.push(node.agent.cost()?);
    }
    Ok(all)
}

/// A node's interfaces for pods, and the program that gives them routes, as network plugins do.
struct Links {
    ip: Child,
    lines: ChildStdin,
    free: Vec<usize>,
    of: HashMap<u32, usize>,
}

impl Links {
    /// With those of the pods that are there already. Nobody is at the other end of a link: it is the next pod's.
    fn start(netns: &Netns, here: &[Tenant]) -> Result<Links> {
        let mut lines = Vec::new();
        for pair in (0..LINKS).step_by(2) {
            lines.push(format!("link add veth{pair} type veth peer name veth{}", pair + 1));
            lines.extend([pair, pair + 1].map(|end| format!("link set veth{end} up")));
        }
        netns.ip(&lines)?;
        let mut ip = netns.run(|| {
            let mut command = Command::new("ip");
            command.args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
            command.spawn().context("cannot run `ip` (package iproute2)")
        })?;
        let lines = ip.stdin.take().context("a pipe")?;
        let mut links = Links { ip, lines, free: (0..LINKS).rev().collect(), of: HashMap::new() };
        here.iter().try_for_each(|tenant| links.comes(*tenant))?;
        Ok(links)
    }

    fn comes(&mut self, tenant: Tenant) -> Result<()> {
        let link = self.free.pop().context("more pods on a node than interfaces")?;
        self.of.insert(tenant.number, link);
        Ok(writeln!(self.lines, "route add {}/32 dev veth{link} scope link", tenant.address())?)
    }

    fn goes(&mut self, tenant: Tenant) -> Result<()> {
        let link = self.of.remove(&tenant.number).context("a pod with an interface")?;
        self.free.insert(0, link);
        Ok(writeln!(self.lines, "route del {}/32 dev veth{link} scope link", tenant.address())?)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // ours, and it ends with its input in any case
        let _ = self.ip.kill();
        let _ = self.ip.wait();
    }
}
