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

#[cfg(test)]
mod tests {
    use super::super::layouts::{ALL, TRACKING};
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn every_layout_says_what_the_policies_say_and_is_measured() {
        let case = Case::new(5, 20);
        let mut benches = Vec::new();
        for layout in ALL.iter().filter(|layout| layout.programs().is_some()) {
            let node = layout.node(&case).unwrap();
            benches.push(Bench::new(layout.name, layout.enforces, &case, node).unwrap());
        }
        assert!(benches.len() > 2);
        measure(&mut benches, 1, true).unwrap();
        assert!(benches.iter().all(|b| b.samples.connect(50) > 0.0 && b.samples.bulk.len() == 1));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_layout_that_lets_through_what_policies_deny_is_not_measured() {
        let case = Case::new(5, 20);
        let node = TRACKING.node(&case).unwrap();
        let mut benches = [Bench::new("open", true, &case, node).unwrap()];
        let error = measure(&mut benches, 1, false).unwrap_err().to_string();
        assert!(error.contains("was let through"), "{error}");
        assert!(benches[0].samples.connect.is_empty());
    }

    #[test]
    #[ignore = "needs root"]
    fn a_layout_that_holds_back_what_policies_allow_is_not_measured() {
        let (case, other) = (Case::new(5, 20), Case::new(5, 21));
        let weir = ALL.iter().find(|layout| layout.name == "Weir, nft sets").unwrap();
        let wired = weir.node(&other).unwrap();
        let error = aside(|| traffic::check(&[("other", &wired, &case, true)])).unwrap_err().to_string();
        assert!(error.contains("was not let through"), "{error}");
    }
}
