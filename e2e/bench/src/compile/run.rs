//! One run, in a process that does nothing else.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blake3::Hasher;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use weir_compiler::object::Event;
use weir_compiler::slice::{Change, SliceDelta};
use weir_compiler::{Compiler, Scope};
use weir_proto::DigestKey;

use super::scenario::{Cluster, Scenario};
use crate::compare::Random;

/// What one run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    /// From the first event to the last slice.
    pub(crate) seconds: f64,
    /// Of these, until the compiler has answered.
    pub(crate) compile_seconds: f64,
    /// Processor time of all of it: other programs on the machine are not in it.
    pub(crate) cpu_seconds: f64,
    /// The process at its highest, the events of the beginning included.
    pub(crate) peak_rss_bytes: u64,
    /// The same when the events were there, and nothing else.
    pub(crate) events_rss_bytes: u64,
    /// How much there was of what.
    pub(crate) counts: Counts,
    /// Of all slices.
    pub(crate) digest: String,
    /// Changes afterwards, by name: microseconds to the deltas.
    pub(crate) changes: Vec<(String, Vec<f64>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) namespaces: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    pub(crate) vertices: usize,
    pub(crate) profiles: usize,
    pub(crate) nodes: usize,
    /// Items of all slices, each as often as it is in one.
    pub(crate) items: usize,
    /// Of all slices, likewise.
    pub(crate) encoded_bytes: u64,
    /// The same, with what slices have in common counted once.
    pub(crate) once_bytes: u64,
}

/// All changes of a batch, each encoded once, as the controller sends it; those of one slice are some of these.
struct Encoded {
    /// One behind the other: what each thread encoded.
    bytes: Vec<Vec<u8>>,
    /// Where each change ends.
    ends: Vec<usize>,
    /// The sum of the digests of all changes before each.
    sums: Vec<u128>,
}

/// A node's slice, ready to be sent.
struct Slice {
    node: Arc<str>,
    items: usize,
    /// Where it is in [`Encoded::bytes`], piece by piece.
    pieces: Vec<Range<usize>>,
    digest: u128,
}

impl Encoded {
    /// With two threads, if there are as many processors: changes have nothing to do with each other.
    fn of(table: &[Change]) -> Encoded {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(2);
        let parts = table.chunks(table.len().div_ceil(threads).max(1));
        let parts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = parts.map(|part| scope.spawn(|| encode(part))).collect();
            threads.into_iter().map(|thread| thread.join().expect("encoding does not panic")).collect()
        });
        let mut all = Encoded { bytes: Vec::new(), ends: vec![0], sums: vec![0] };
        let (mut start, mut sum) = (0, 0u128);
        for (bytes, changes) in parts {
            for (end, digest) in changes {
                sum = sum.wrapping_add(digest);
                all.ends.push(start + end);
                all.sums.push(sum);
            }
            start += bytes.len();
            all.bytes.push(bytes);
        }
        all
    }

    /// The digest does not depend on the order of the changes.
    fn slice(&self, delta: &SliceDelta) -> Slice {
        let mut pieces = Vec::with_capacity(delta.changes.places().len());
        let (mut items, mut digest) = (0, 0u128);
        for place in delta.changes.places() {
            let (start, end) = (place.start as usize, place.end as usize);
            items += end - start;
            digest = digest.wrapping_add(self.sums[end].wrapping_sub(self.sums[start]));
            pieces.push(self.ends[start]..self.ends[end]);
        }
        Slice { node: delta.node.clone(), items, pieces, digest }
    }
}

/// The bytes of these changes; for each, where they end, and its digest.
fn encode(changes: &[Change]) -> (Vec<u8>, Vec<(usize, u128)>) {
    // the same in each run, so that digests can be compared
    let key = DigestKey::new([7; 32]);
    let mut bytes = Vec::new();
    let digests = changes.iter().map(|change| {
        let encoded = weir_proto::change(change);
        let mut digest = key.digest(&encoded);
        bytes.extend_from_slice(&encoded);
        if let Change::PeerSet(id, _, members) = change {
            for encoded in weir_proto::members(*id, true, members, &[]) {
                bytes.extend_from_slice(&encoded);
            }
            let digests = members.iter().map(|member| key.member(*id, *member).1);
            digest = digests.fold(digest, u128::wrapping_add);
        }
        (bytes.len(), digest)
    });
    let digests = digests.collect();
    (bytes, digests)
}

/// Compiles a cluster; `seed`: its events in another order.
pub(crate) fn run(scenario: Scenario, percent: usize, seed: Option<u64>, samples: usize) -> Result<Run> {
    let cluster = Cluster::new(scenario, percent);
    let mut events = cluster.events();
    if let Some(seed) = seed {
        Random::new(seed).shuffle(&mut events);
    }
    let events_rss_bytes = status("VmRSS")?;

    let cpu_before = cpu()?;
    let started = Instant::now();
    let mut compiler = Compiler::new(Scope::AllNodes);
    let deltas = compiler.apply(events);
    let compiled = started.elapsed();
    let encoded = Encoded::of(deltas.slices.first().map_or(&[], |delta| delta.changes.table()));
    let slices: Vec<Slice> = deltas.slices.iter().map(|delta| encoded.slice(delta)).collect();
    let took = started.elapsed();
    let cpu_seconds = (cpu()? - cpu_before).as_secs_f64();
    let peak_rss_bytes = status("VmHWM")?;
    drop(deltas);

    let of_graph = compiler.counts();
    ensure!(of_graph.pods == cluster.pods(), "{} pods, not {}", of_graph.pods, cluster.pods());
    ensure!(of_graph.policies == cluster.policies(), "{} policies", of_graph.policies);
    let counts = Counts {
        namespaces: cluster.namespaces(),
        pods: of_graph.pods,
        policies: of_graph.policies,
        vertices: of_graph.vertices,
        profiles: of_graph.profiles,
        nodes: slices.len(),
        items: slices.iter().map(|slice| slice.items).sum(),
        encoded_bytes: slices.iter().flat_map(|s| &s.pieces).map(|p| p.len() as u64).sum(),
        once_bytes: encoded.bytes.iter().map(|part| part.len() as u64).sum(),
    };
    let digest = of_all(slices);
    let changes = changes(&cluster, &mut compiler, samples)?;
    Ok(Run {
        seconds: took.as_secs_f64(),
        compile_seconds: compiled.as_secs_f64(),
        cpu_seconds,
        peak_rss_bytes,
        events_rss_bytes,
        counts,
        digest,
        changes,
    })
}

fn of_all(mut slices: Vec<Slice>) -> String {
    slices.sort_unstable_by(|a, b| a.node.cmp(&b.node));
    let mut hash = Hasher::new();
    for slice in &slices {
        hash.update(slice.node.as_bytes());
        hash.update(&slice.digest.to_le_bytes());
    }
    hash.finalize().to_hex()[..32].to_owned()
}

/// What the changes of one object cost.
fn changes(cluster: &Cluster, compiler: &mut Compiler, samples: usize) -> Result<Vec<(String, Vec<f64>)>> {
    const KINDS: [&str; 4] = ["label of a pod", "pod added", "policy added", "label of a namespace"];
    let mut all = Vec::new();
    let mut random = Random::new(2);
    for kind in KINDS {
        let mut times = Vec::with_capacity(samples);
        for _ in 0..samples {
            let pod = random.below(cluster.pods());
            let group = cluster.group_of(pod);
            // where the pod is must be known, to leave it there
            let (change, back) = match kind {
                "label of a pod" => {
                    let node = node_of(cluster, pod);
                    (cluster.pod(pod, cluster.other_group(group), node), cluster.pod(pod, group, node))
                }
                "pod added" => {
                    let more = cluster.pods();
                    let gone = Event::PodGone(cluster.pod_key(more));
                    (cluster.pod(more, group, random.below(1_000)), gone)
                }
                "policy added" => {
                    let event = cluster.another_policy(pod);
                    let Event::Policy(policy) = &event else { unreachable!("it is a policy") };
                    let gone = Event::PolicyGone(policy.key());
                    (event, gone)
                }
                _ => {
                    let namespace = random.below(cluster.namespaces());
                    (cluster.namespace(namespace, true), cluster.namespace(namespace, false))
                }
            };
            let (took, changed) = timed(compiler, change);
            ensure!(changed || kind == "label of a namespace", "{kind}: no slice changed");
            times.push(took.as_secs_f64() * 1e6);
            timed(compiler, back);
        }
        all.push((kind.to_owned(), times));
    }
    Ok(all)
}

fn timed(compiler: &mut Compiler, event: Event) -> (Duration, bool) {
    let started = Instant::now();
    let deltas = compiler.apply([event]);
    let took = started.elapsed();
    (took, !deltas.slices.is_empty())
}

/// The node on which [`Cluster::events`] has a pod.
fn node_of(cluster: &Cluster, pod: usize) -> usize {
    cluster.nodes().nth(pod).expect("it is one of its pods")
}

/// Processor time that this process took so far.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot tell the processor time")?;
    let of = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// A field of this process's status, in bytes.
fn status(field: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no such field")?;
    Ok(kib.parse::<u64>()? * 1024)
}
