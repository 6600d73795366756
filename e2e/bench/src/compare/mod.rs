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

mod bench;
mod case;
pub(crate) mod cost;
mod layouts;
pub(crate) mod plot;
mod samples;
mod traffic;
mod wire;

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Report};
use bench::Bench;
use case::Case;
pub(crate) use case::Random;
use layouts::{ALL, Layout, NOTHING, TRACKING};
use samples::{Samples, Spread, by_round, ratios};
use traffic::PIECE;
use wire::Wired;

/// Policies on the pod, with so many peers among them.
const POLICIES: [usize; 4] = [1, 10, 100, 1_000];
const PEERS_OF_POLICIES: usize = 10_000;
/// Peers, of so many policies.
const PEERS: [usize; 3] = [10, 1_000, 100_000];
const POLICIES_OF_PEERS: usize = 10;

const ROUNDS: usize = 100;
/// Sockets that are open at the same time, by far.
const SOCKETS: u64 = 16_384;

const GOAL_POLICIES: f64 = 1.05;
/// 99% of the throughput without rules.
const GOAL_BULK: f64 = 1.01;
const GOAL_ELEMENT: f64 = 1.0;
const ELEMENT_SAMPLES: usize = 400;

/// A layout with a number of policies and peers: what was measured. Ratios are to no rules at
/// all, for the same connections.
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
        write!(f, "  {:<26} {:>8} {:>7}", self.layout, self.policies, self.peers)?;
        write!(f, " {:>8.1} {:>8.1}", self.connect[0], self.connect[1])?;
        write!(f, " {}, {:>4.2}", self.connect_ratio, self.p99_ratio)?;
        write!(f, " {:>8.0} {}", self.per_second, self.per_second_ratio)?;
        write!(f, " {:>6.1} {}", self.throughput, self.throughput_ratio)
    }
}

/// Measures both series.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    allow_sockets()?;
    let mut layouts = Vec::new();
    let mut programs = BTreeSet::new();
    for layout in ALL {
        match layout.programs() {
            Some(found) => {
                programs.extend(found);
                layouts.push(layout);
            }
            None => println!("\nNot compared here: {} (needs {})", layout.name, layout.needs.join(", ")),
        }
    }
    println!("\nWith {}", programs.into_iter().collect::<Vec<_>>().join("; "));
    let cases: Vec<Case> = POLICIES.map(|policies| Case::new(policies, PEERS_OF_POLICIES)).into();
    series(report, &layouts, "policies", &cases)?;
    element(report, &cases[POLICIES.len() - 1])?;
    let cases: Vec<Case> = PEERS.map(|peers| Case::new(POLICIES_OF_PEERS, peers)).into();
    series(report, &layouts, "peers", &cases)
}

fn series(report: &mut Report, layouts: &[&Layout], name: &'static str, cases: &[Case]) -> Result<()> {
    println!("\nWeir beside others, by {name}; the ratios with their middle half");
    let mut benches = Vec::new();
    for case in cases {
        for layout in layouts {
            benches.push(Bench::new(layout.name, layout.enforces, case, layout.node(case)?)?);
        }
    }
    bench::measure(&mut benches, ROUNDS, true)?;

    let of = |layout: &str, case: &Case| -> Result<&Samples> {
        let found = benches.iter().find(|b| b.name == layout && std::ptr::eq(b.case, case));
        found.map(|bench| &bench.samples).with_context(|| format!("{layout} was not measured"))
    };
    let mut rows = Vec::new();
    for Bench { name: layout, case, samples, .. } in &benches {
        let nothing = of(NOTHING, case)?;
        rows.push(Row {
            series: name.to_owned(),
            layout: layout.clone(),
            policies: case.policies,
            peers: case.peers.len(),
            connect: [samples.connect(50), samples.connect(99)],
            connect_ratio: ratios(&samples.connect, &nothing.connect),
            p99_ratio: samples.connect(99) / nothing.connect(99),
            per_second: 1e6 / Spread::of(&samples.whole).median,
            per_second_ratio: ratios(&nothing.whole, &samples.whole),
            throughput: 8e-3 * PIECE as f64 / Spread::of(&samples.bulk).median,
            throughput_ratio: ratios(&nothing.bulk, &samples.bulk),
        });
    }
    report.compared(rows);

    let (least, most) = (&cases[0], &cases[cases.len() - 1]);
    let number = |case: &Case| if name == "policies" { case.policies } else { case.peers.len() };
    let (few, many) = (number(least), number(most));
    let mut add = |what: String, ratio: Spread, goal: Option<f64>| {
        let figure = Figure { samples: ROUNDS, goal, ..Figure::one("compare", what, "ratio", ratio.median) };
        report.add(figure);
    };
    for weir in layouts.iter().map(|layout| layout.name).filter(|name| name.starts_with("Weir")) {
        // connections to more ports cost more, also without rules
        let ratio =
            |case| Ok::<_, anyhow::Error>(by_round(&of(weir, case)?.connect, &of(NOTHING, case)?.connect));
        let goal = (name == "policies").then_some(GOAL_POLICIES);
        add(format!("{weir}: connect, {many} {name} / {few}"), ratios(&ratio(most)?, &ratio(least)?), goal);
        let bulk = |other| Ok::<_, anyhow::Error>(ratios(&of(weir, most)?.bulk, &of(other, most)?.bulk));
        add(format!("{weir}: bulk, time / no rules"), bulk(NOTHING)?, Some(GOAL_BULK));
        if layouts.iter().any(|layout| layout.name == TRACKING.name) {
            add(format!("{weir}: bulk, time / tracking alone"), bulk(TRACKING.name)?, Some(GOAL_BULK));
        }
    }
    Ok(())
}

/// So many files may be open: each node has listeners.
fn allow_sockets() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, SOCKETS.min(hard), hard)?)
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
