//! What the rounds gave, and ratios of two layouts within a round.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::traffic::Connects;

/// Of a layout with a case; all in µs.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Every connection.
    times: Vec<f64>,
    /// The median of each round.
    pub(super) connect: Vec<f64>,
    /// The same of whole connections: made, connected, accepted and closed.
    pub(super) whole: Vec<f64>,
    /// The same of a piece of bulk.
    pub(super) bulk: Vec<f64>,
}

impl Samples {
    /// Takes a round.
    pub(super) fn round(&mut self, connects: Connects, bulk: Vec<Duration>) {
        let median =
            |times: Vec<Duration>| percentile(&times.into_iter().map(micros).collect::<Vec<_>>(), 50);
        self.times.extend(connects.connect.iter().copied().map(micros));
        self.connect.push(median(connects.connect));
        self.whole.push(median(connects.whole));
        self.bulk.push(median(bulk));
    }

    /// A percentile of all connections.
    pub(super) fn connect(&self, percent: usize) -> f64 {
        percentile(&self.times, percent)
    }
}

/// The median of many rounds, and what the middle half of them is between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Half of them are below.
    pub(crate) median: f64,
    /// A quarter is below.
    pub(crate) low: f64,
    /// A quarter is above.
    pub(crate) high: f64,
}

impl Spread {
    /// Of these.
    pub(super) fn of(samples: &[f64]) -> Spread {
        let at = |percent| percentile(samples, percent);
        Spread { median: at(50), low: at(25), high: at(75) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5.3} ({:>5.3}-{:>5.3})", self.median, self.low, self.high)
    }
}

/// What `over` is to `under`, round by round.
pub(super) fn ratios(over: &[f64], under: &[f64]) -> Spread {
    Spread::of(&by_round(over, under))
}

/// The same, each of them.
pub(super) fn by_round(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under).collect()
}

/// What `over` is more than `under`, round by round, by so many.
pub(super) fn differences(over: &[f64], under: &[f64], parts: usize) -> Spread {
    let all: Vec<f64> = over.iter().zip(under).map(|(over, under)| (over - under) / parts as f64).collect();
    Spread::of(&all)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    crate::figures::rank(&sorted, percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        // the machine was ten times slower in the second round, for both
        let (over, under) = ([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]);
        assert_eq!(ratios(&over, &under), Spread { median: 2.0, low: 2.0, high: 3.0 });
        assert_eq!(differences(&over, &under, 2), Spread { median: 2.0, low: 0.5, high: 5.0 });
    }
}
