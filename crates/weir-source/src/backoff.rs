//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(20);
/// Without an error for so long, the next one is another story. Longer than an attempt and the pause
/// before it can take together.
const FORGOTTEN: Duration = Duration::from_secs(90);

/// Doubling pauses with jitter, so that agents do not all come back in the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    errors: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// An error at this time: how long to wait, and whether it is the first of its streak.
    pub fn error(&mut self, now: Instant) -> (Duration, bool) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > FORGOTTEN) {
            self.errors = 0;
        }
        self.last = Some(now);
        let pause = FIRST.saturating_mul(1 << self.errors.min(10)).min(LONGEST);
        self.errors += 1;
        // Between a half and three halves of it.
        #[allow(clippy::cast_possible_truncation)] // of random bits
        let thousandths = 500 + (RandomState::new().hash_one(self.errors) % 1000) as u32;
        (pause * thousandths / 1000, self.errors == 1)
    }

    /// It works: true if it did not before.
    pub fn works(&mut self) -> bool {
        std::mem::take(&mut self.errors) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_limit_and_reports_each_streak_once() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        let (pause, first) = backoff.error(now);
        assert!(first && pause >= FIRST / 2 && pause < FIRST * 3 / 2, "{pause:?}");
        for _ in 0..50 {
            let (pause, first) = backoff.error(now);
            assert!(!first && pause < LONGEST * 3 / 2, "{pause:?}");
        }
        assert!(backoff.error(now).0 >= LONGEST / 2);
        assert!(backoff.works() && !backoff.works());
        assert!(backoff.error(now).1, "a new streak");
        assert!(!backoff.error(now).1);
        assert!(backoff.error(now + FORGOTTEN * 2).1, "a new streak after quiet");
    }
}
