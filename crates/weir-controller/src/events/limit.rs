//! How many Events there may be: of all objects together, and of one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use weir_compiler::object::ObjectKey;

use super::Kind;

/// Of all objects: so many at once, and one more in this time.
const ALL: (u32, Duration) = (50, Duration::from_millis(200));
/// Of one object.
const OBJECT: (u32, Duration) = (6, Duration::from_secs(600));
/// Above so many objects those that have been silent for long are forgotten.
const OBJECTS: usize = 8192;

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    burst: u32,
    every: Duration,
    tokens: u32,
    /// Tokens are counted from then on.
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(burst: u32, every: Duration, now: Instant) -> Self {
        Bucket { burst, every, tokens: burst, at: now }
    }

    /// How many tokens there are.
    pub fn tokens(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.at).as_nanos() / self.every.as_nanos();
        let new = u32::try_from(passed).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(new).min(self.burst);
        self.at = if self.tokens == self.burst { now.max(self.at) } else { self.at + self.every * new };
        self.tokens
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let some = self.tokens(now) > 0;
        self.tokens -= u32::from(some);
        some
    }
}

/// Those of all objects.
#[derive(Debug, Default)]
pub struct Limits {
    all: Option<Bucket>,
    objects: HashMap<(Kind, ObjectKey), Bucket>,
}

impl Limits {
    /// How many there may be now.
    pub fn room(&mut self, now: Instant) -> usize {
        self.all(now).tokens(now) as usize
    }

    /// Whether there may be one about this object. There is [`room`](Limits::room).
    pub fn take(&mut self, kind: Kind, object: &ObjectKey, now: Instant) -> bool {
        if self.objects.len() >= OBJECTS {
            self.objects.retain(|_, bucket| bucket.tokens(now) < bucket.burst);
        }
        let new = || Bucket::new(OBJECT.0, OBJECT.1, now);
        let of_object = self.objects.entry((kind, object.clone())).or_insert_with(new);
        of_object.take(now) && self.all(now).take(now)
    }

    fn all(&mut self, now: Instant) -> &mut Bucket {
        self.all.get_or_insert_with(|| Bucket::new(ALL.0, ALL.1, now))
    }
}
