//! Nodes that are ready to be measured, and the rounds in which they are, in turns.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::case::{Case, Random};
use super::samples::Samples;
use super::traffic::{self, Pipe};
use super::wire::Wired;

/// Connections in a round.
const CONNECTS: usize = 100;
/// Before them: what was measured last is in the processor's caches.
const WARM: usize = 5;
/// Pieces of bulk in a round.
const PIECES: usize = 32;

/// For all rounds together.
const AT_MOST: Duration = Duration::from_secs(80);
/// Fewer rounds say nothing.
const AT_LEAST: usize = 20;

/// A node with rules, and what was measured there.
pub(super) struct Bench<'a> {
    pub(super) name: String,
    /// Whether the rules are those of the case, or let everything pass.
    pub(super) enforces: bool,
    pub(super) case: &'a Case,
    pub(super) samples: Samples,
    wired: Wired,
    pipe: Pipe,
}

impl<'a> Bench<'a> {
    pub(super) fn new(name: &str, enforces: bool, case: &'a Case, wired: Wired) -> Result<Bench<'a>> {
        let flow = case.allowed(&mut Random::new(3));
        let pipe = aside(|| Pipe::new(&wired, &flow))?;
        Ok(Bench { name: name.to_owned(), enforces, case, samples: Samples::default(), wired, pipe })
    }

    fn round(&mut self, random: &mut Random, bulk: bool) -> Result<()> {
        let connects = traffic::connect(&self.wired, &mut || self.case.allowed(random), CONNECTS, WARM)?;
        let bulk = if bulk { self.pipe.send(PIECES)? } else { Vec::new() };
        self.samples.round(connects, bulk);
        Ok(())
    }
}

/// Checks the verdicts of all, then measures all of them in each round; in fewer rounds, if they take too long.
pub(super) fn measure(benches: &mut [Bench<'_>], rounds: usize, bulk: bool) -> Result<()> {
    aside(|| {
        let checked: Vec<_> =
            benches.iter().map(|b| (b.name.as_str(), &b.wired, b.case, b.enforces)).collect();
        traffic::check(&checked)?;
        let mut random = Random::new(4);
        let mut order: Vec<usize> = (0..benches.len()).collect();
        let started = Instant::now();
        for round in 0..rounds {
            if round >= AT_LEAST && started.elapsed() > AT_MOST {
                println!("  the machine is busy: {round} rounds and not {rounds}");
                break;
            }
            random.shuffle(&mut order);
            order.iter().try_for_each(|i| benches[*i].round(&mut random, bulk))?;
        }
        Ok(())
    })
}

/// On a thread of its own, for it moves from namespace to namespace.
fn aside<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(f).join())
        .map_err(|_| anyhow!("a thread that measures panicked"))?
}
