//! A node with 100,000 connections: from the commit to the last mark on those that it forbids.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_agent::revoke::{Options, Revoker};
use weir_compiler::object::{
    Event, IngressRule, LabelSelector, Labels, ObjectKey, Peer, Pod, Policy, PolicyPort, PolicySpec, PortRef,
};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};
use weir_lab::netns::Netns;
use weir_nft::conntrack::{Conntrack, Layer4, Tuple};

use crate::cluster::NODE;
use crate::figures::{Figure, Report};

const ENTRIES: u32 = 100_000;
const HERE: u32 = 110;
const CLIENTS: u32 = 1_000;
/// One policy for each hundredth of the clients.
const POLICIES: u32 = 100;
const ROUNDS: usize = 5;
const GOAL: f64 = 100.0;
const MARK: NonZeroU32 = NonZeroU32::new(0x1000).expect("a number");
const SECONDS: u32 = 3_600;

/// Measures a change that forbids one of a hundred connections, and one that forbids all of them.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    report.heading(&format!(
        "From a commit to the last mark: {ENTRIES} connections of {HERE} pods, {POLICIES} policies on each"
    ));
    Netns::new()?.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(report))
    })
}

async fn run(report: &mut Report) -> Result<()> {
    let mut conntrack = Conntrack::open()?;
    fill(&mut conntrack)?;
    let [mut dumps, mut cpu] = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let (started, busy, mut seen) = (Instant::now(), cpu_time()?, 0);
        conntrack.dump(|_| seen += 1)?;
        dumps.push(started.elapsed());
        cpu.push(cpu_time()? - busy);
        ensure!(seen >= ENTRIES, "{seen} entries of {ENTRIES}");
    }
    report.add(Figure::times("revoke", "a dump alone", dumps).split([("processor", cpu)]));

    let mut node = Node {
        compiler: Compiler::new(Scope::Node(NODE.to_owned())),
        slice: NodeSlice::default(),
        revoker: Revoker::open(NODE, Options { mark: MARK, pod_to_own_node: false })?,
    };
    let policies = || (0..POLICIES).map(|number| Event::Policy(policy(number)));
    let pods =
        (0..HERE).map(|n| pod(here(n), Some(n), 0)).chain((0..CLIENTS).map(|n| pod(client(n), None, n)));
    node.turn(pods.map(Event::Pod).chain(policies()).collect()).await?;
    ensure!(marked(&mut conntrack)? == 0, "everything is allowed at first");

    let [mut some, mut again, mut all] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        some.push(node.turn(vec![Event::PolicyGone(key(0))]).await?);
        ensure!(marked(&mut conntrack)? == ENTRIES / POLICIES, "one of {POLICIES} is denied");
        again.push(node.turn(vec![Event::Policy(policy(0))]).await?);
        ensure!(marked(&mut conntrack)? == 0, "everything is allowed again");
    }
    for _ in 0..ROUNDS {
        let gone = (1..POLICIES).map(|number| Event::PolicyGone(key(number)));
        let nobody = Policy { spec: PolicySpec { ingress: Vec::new(), ..policy(0).spec }, ..policy(0) };
        all.push(node.turn(gone.chain([Event::Policy(nobody)]).collect()).await?);
        let found = marked(&mut conntrack)?;
        ensure!(found == ENTRIES, "everything is denied, {found} are marked");
        node.turn(policies().collect()).await?;
    }
    report.add(Figure::times("revoke", "1 of 100 connections denied", some).goal(GOAL));
    report.add(Figure::times("revoke", "1 of 100 connections allowed again", again).goal(GOAL));
    report.add(Figure::times("revoke", "all connections denied", all).goal(GOAL));
    Ok(())
}

/// The agent's state, without rules in the kernel: packets take no part in this.
struct Node {
    compiler: Compiler,
    slice: NodeSlice,
    revoker: Revoker,
}

impl Node {
    /// Compiles, and looks at connections until the first look is over: how long that took.
    async fn turn(&mut self, events: Vec<Event>) -> Result<Duration> {
        // no burst is measured
        self.drive(|revoker| !revoker.is_idle()).await?;
        for delta in self.compiler.apply(events).slices {
            self.revoker.changes(&self.slice, &delta.changes);
            self.slice.apply(&delta.changes);
        }
        let (started, looks) = (Instant::now(), self.revoker.looks());
        self.revoker.committed(&self.slice);
        self.drive(|revoker| revoker.looks() == looks).await?;
        Ok(started.elapsed())
    }

    async fn drive(&mut self, more: impl Fn(&Revoker) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while more(&self.revoker) {
            ensure!(Instant::now() < deadline, "no look within a minute");
            // what is waited for may be a time only
            let next = tokio::time::timeout(Duration::from_millis(20), self.revoker.next()).await;
            if let Ok(step) = next {
                self.revoker.step(step, &self.slice, |_| false);
            }
        }
        Ok(())
    }
}

/// What this thread has used so far, in the kernel too.
fn cpu_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(text.split(' ').next().context("schedstat is empty")?.parse()?))
}

fn marked(conntrack: &mut Conntrack) -> Result<u32> {
    let mut marked = std::collections::HashSet::new();
    conntrack.dump(|entry| {
        if entry.mark == MARK.get() {
            marked.insert(entry.key); // ids are 32 bits of a hash, of which two in 100,000 can be equal
        }
    })?;
    Ok(u32::try_from(marked.len())?)
}

fn here(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a01_0002 + number).into()
}

fn client(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a02_0000 + number).into()
}

/// Clients go round, and so do the pods that they talk to.
fn fill(conntrack: &mut Conntrack) -> Result<()> {
    let entry = |number: u32| {
        let source = u16::try_from(1_024 + number / CLIENTS)?;
        let tuple = Tuple {
            source: client(number % CLIENTS),
            destination: here(number % HERE),
            protocol: 6,
            layer4: Layer4::Ports { source, destination: 8080 },
        };
        Ok((tuple, tuple.reversed()))
    };
    let entries: Vec<(Tuple, Tuple)> = (0..ENTRIES).map(entry).collect::<Result<_>>()?;
    conntrack.insert(&entries, SECONDS).context("net.netfilter.nf_conntrack_max may be below 100,000")
}

fn labels(key: &str, value: String) -> Labels {
    [(key.to_owned(), value)].into()
}

fn pod(address: IpAddr, here: Option<u32>, number: u32) -> Pod {
    Pod {
        key: ObjectKey::new("x", address.to_string()),
        uid: String::new(),
        labels: match here {
            Some(_) => labels("app", "server".to_owned()),
            None => labels("group", (number % POLICIES).to_string()),
        },
        node: here.map(|_| NODE.to_owned()),
        ips: vec![address],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: Vec::new(),
    }
}

/// A group of clients reaches the pods of this node.
fn policy(number: u32) -> Policy {
    let selector = |labels| LabelSelector { match_labels: labels, ..LabelSelector::default() };
    let from = Peer { pod_selector: Some(selector(labels("group", number.to_string()))), ..Peer::default() };
    let port = PolicyPort { port: Some(PortRef::Number(8080)), ..PolicyPort::default() };
    let rule = IngressRule { from: vec![from], ports: vec![port], ..IngressRule::default() };
    let pod_selector = selector(labels("app", "server".to_owned()));
    let spec = PolicySpec { pod_selector, ingress: vec![rule], ..PolicySpec::default() };
    let ObjectKey { namespace, name } = key(number);
    Policy { namespace, name, created: 0, audit: None, spec }
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new("x", format!("policy-{number}"))
}
