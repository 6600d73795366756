//! Weir beside other ways to enforce the same policies: what each costs a connection.
//!
//! ```text
//!   Case: policies, peers ──> Layout ──> Wired: client ── node ── server
//!                                          │   one for each layout and case, all at the same time
//!                            verdicts ─────┤   before anything counts
//!                            rounds: each in turn, in another order each time ──> Samples
//! ```
//!
//! The machine may do other things meanwhile. So all layouts are ready beforehand, rounds are short, and
//! what counts is the ratio of two layouts within a round; of many rounds, the median.

mod case;
mod layouts;
mod samples;
mod traffic;
mod wire;

use std::fmt;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Report};
use case::{Case, Random};
use layouts::{ALL, Layout, NOTHING, WEIR};
use samples::{Samples, Spread, ratios};
use traffic::{PIECE, Pipe};
use wire::Wired;

/// Policies on the pod, with so many peers among them.
const POLICIES: [usize; 4] = [1, 10, 100, 1_000];
const PEERS_OF_POLICIES: usize = 10_000;
/// Peers, of so many policies.
const PEERS: [usize; 3] = [10, 1_000, 100_000];
const POLICIES_OF_PEERS: usize = 10;

const ROUNDS: usize = 100;
const CONNECTS: usize = 100;
const WARM: usize = 5;
const PIECES: usize = 32;
/// Sockets that are open at the same time, by far.
const SOCKETS: u64 = 16_384;

const GOAL_POLICIES: f64 = 1.05;
/// 99% of the throughput without rules.
const GOAL_BULK: f64 = 1.01;
const GOAL_ELEMENT: f64 = 1.0;
const ELEMENT_SAMPLES: usize = 400;

/// A layout with a number of policies and peers: what was measured. Ratios are to no rules at all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `policies` or `peers`: what is varied.
    pub(crate) series: String,
    /// The layout.
    pub(crate) layout: String,
    /// Policies that select the pod.
    pub(crate) policies: usize,
    /// Peers of all of them.
    pub(crate) peers: usize,
    /// Time to connect, µs: median, 99th percentile.
    pub(crate) connect: [f64; 2],
    /// Its median, as a ratio.
    pub(crate) connect_ratio: Spread,
    /// The 99th percentiles of all connections, as a ratio.
    pub(crate) p99_ratio: f64,
    /// Connections one after the other, in a second, by the median time of one.
    pub(crate) per_second: f64,
    /// The same as a ratio.
    pub(crate) per_second_ratio: Spread,
    /// Gbit/s of one connection.
    pub(crate) throughput: f64,
    /// The same as a ratio.
    pub(crate) throughput_ratio: Spread,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |n: usize| if n == 0 { "-".to_owned() } else { n.to_string() };
        write!(f, "  {:<26} {:>8} {:>7}", self.layout, of(self.policies), of(self.peers))?;
        write!(f, " {:>8.1} {:>8.1}", self.connect[0], self.connect[1])?;
        write!(f, " {}, {:>4.2}", self.connect_ratio, self.p99_ratio)?;
        write!(f, " {:>8.0} {}", self.per_second, self.per_second_ratio)?;
        write!(f, " {:>6.1} {}", self.throughput, self.throughput_ratio)
    }
}

/// Measures both series.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, SOCKETS.min(hard), hard)?;
    let layouts: Vec<&Layout> = ALL.iter().filter(|layout| layout.available()).collect();
    for missing in ALL.iter().filter(|layout| !layout.available()) {
        println!("\nNot compared here: {} (needs {})", missing.name, missing.needs.join(", "));
    }
    let cases: Vec<Case> = POLICIES.map(|policies| Case::new(policies, PEERS_OF_POLICIES)).into();
    series(report, &layouts, "policies", &cases)?;
    element(report, &cases[POLICIES.len() - 1])?;
    let cases: Vec<Case> = PEERS.map(|peers| Case::new(POLICIES_OF_PEERS, peers)).into();
    series(report, &layouts, "peers", &cases)
}

/// A layout with a case, ready to be measured.
struct Bench<'a> {
    layout: &'a Layout,
    case: &'a Case,
    wired: Wired,
    pipe: Pipe,
    samples: Samples,
}

impl<'a> Bench<'a> {
    fn new(layout: &'a Layout, case: &'a Case) -> Result<Bench<'a>> {
        let wired = layout.node(case)?;
        let flow = case.allowed(&mut Random::new(3));
        // its thread moves into the client's namespace
        let pipe = std::thread::scope(|scope| scope.spawn(|| Pipe::new(&wired, &flow)).join())
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok(Bench { layout, case, wired, pipe, samples: Samples::default() })
    }

    fn round(&mut self, random: &mut Random) -> Result<()> {
        let connects = traffic::connect(&self.wired, &mut || self.case.allowed(random), CONNECTS, WARM)?;
        let bulk = self.pipe.send(PIECES)?;
        self.samples.round(connects, bulk);
        Ok(())
    }
}

fn series(report: &mut Report, layouts: &[&Layout], name: &'static str, cases: &[Case]) -> Result<()> {
    report.heading(&format!("Weir beside others: {name}"));
    let mut benches = Vec::new();
    for layout in layouts {
        // what enforces nothing is the same for all cases
        let cases = if layout.enforces { cases } else { &cases[..1] };
        for case in cases {
            benches.push(Bench::new(layout, case)?);
        }
    }
    // the thread that measures moves from namespace to namespace
    std::thread::scope(|scope| scope.spawn(|| rounds(&mut benches)).join())
        .map_err(|_| anyhow::anyhow!("the thread that measures panicked"))??;

    let nothing = benches.iter().position(|b| b.layout.name == NOTHING).unwrap_or(0);
    let nothing = &benches[nothing].samples;
    let rows = benches.iter().map(|bench| Row {
        series: name.to_owned(),
        layout: bench.layout.name.to_owned(),
        policies: if bench.layout.enforces { bench.case.policies } else { 0 },
        peers: if bench.layout.enforces { bench.case.peers.len() } else { 0 },
        connect: [bench.samples.connect(50), bench.samples.connect(99)],
        connect_ratio: ratios(&bench.samples.connect, &nothing.connect),
        p99_ratio: bench.samples.connect(99) / nothing.connect(99),
        per_second: 1e6 / Spread::of(&bench.samples.whole).median,
        per_second_ratio: ratios(&nothing.whole, &bench.samples.whole),
        throughput: 8e-3 * PIECE as f64 / Spread::of(&bench.samples.bulk).median,
        throughput_ratio: ratios(&nothing.bulk, &bench.samples.bulk),
    });
    report.compared(rows.collect());

    let of_weir = |case: &Case| {
        let found = |b: &&Bench<'_>| b.layout.name == WEIR && std::ptr::eq(b.case, case);
        benches.iter().find(found).map(|bench| &bench.samples)
    };
    let (Some(least), Some(most)) = (of_weir(&cases[0]), of_weir(&cases[cases.len() - 1])) else {
        return Ok(());
    };
    let value = |case: &Case| if name == "policies" { case.policies } else { case.peers.len() };
    let what = format!("Weir: connect, {} {name} / {}", value(&cases[cases.len() - 1]), value(&cases[0]));
    let of_rounds = |ratio: f64| Figure { samples: ROUNDS, ..Figure::one("compare", &what, "ratio", ratio) };
    report.add(of_rounds(ratios(&most.connect, &least.connect).median).goal(GOAL_POLICIES));
    let what = format!("Weir: bulk, no rules / {} {name}", value(&cases[cases.len() - 1]));
    let ratio = ratios(&most.bulk, &nothing.bulk).median;
    let figure = Figure { samples: ROUNDS, ..Figure::one("compare", what, "ratio", ratio) };
    report.add(figure.goal(GOAL_BULK));
    Ok(())
}

fn rounds(benches: &mut [Bench<'_>]) -> Result<()> {
    let checked: Vec<_> =
        benches.iter().map(|b| (b.layout.name, &b.wired, b.case, b.layout.enforces)).collect();
    traffic::check(&checked)?;
    let mut random = Random::new(4);
    let mut order: Vec<usize> = (0..benches.len()).collect();
    for _ in 0..ROUNDS {
        random.shuffle(&mut order);
        order.iter().try_for_each(|i| benches[*i].round(&mut random))?;
    }
    Ok(())
}

/// One pod elsewhere that comes and goes: an element, beside the chains of many policies.
fn element(report: &mut Report, case: &Case) -> Result<()> {
    report.heading(&format!(
        "One element's change: {} policies on a pod, {} peers",
        case.policies,
        case.peers.len()
    ));
    let wired = Wired::new()?;
    wired.node.run(|| {
        let mut node = layouts::weir(case)?;
        let mut random = Random::new(5);
        let (mut all, mut kernel) = (Vec::new(), Vec::new());
        for _ in 0..ELEMENT_SAMPLES / 2 {
            let peer = random.below(case.peers.len());
            for event in [case.peer_gone(peer), case.peer(peer)] {
                let (done, split) = node.turn(vec![event])?;
                ensure!(
                    matches!(done, weir_agent::kernel::Done::Applied { compared: false, .. }),
                    "a peer that comes or goes made no transaction of its own ({done:?})"
                );
                all.push(split.total());
                kernel.push(split.kernel);
            }
        }
        node.check()?;
        report.add(
            Figure::times("compare", "a peer comes or goes", all)
                .goal(GOAL_ELEMENT)
                .split([("kernel", kernel)]),
        );
        Ok(())
    })
}
