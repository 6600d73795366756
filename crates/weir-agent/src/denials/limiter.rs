//! So many lines a second of each pod, and how many there would have been more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use weir_compiler::slice::Direction;

use super::Verdict;

/// So many pods and directions are remembered; a node has a few hundred.
const MOST: usize = 4096;

/// Whose lines they are: of what is denied or what would be (U29), for this direction of this pod.
pub(super) type Key = (Verdict, Direction, IpAddr);

#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    /// Twice as many at once.
    burst: f64,
    buckets: HashMap<Key, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    suppressed: u64,
}

impl Limiter {
    pub(super) fn new(per_second: u32) -> Limiter {
        let per_second = f64::from(per_second);
        Limiter { per_second, burst: 2.0 * per_second, buckets: HashMap::new() }
    }

    /// How many were not told since the last one that was; `None`: this one is not to be told.
    pub(super) fn take(&mut self, now: Instant, key: Key) -> Option<u64> {
        let (per_second, burst) = (self.per_second, self.burst);
        let filled = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + since * per_second).min(burst)
        };
        if self.buckets.len() >= MOST && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| filled(bucket) < burst);
            if self.buckets.len() >= MOST {
                return None;
            }
        }
        let new = Bucket { tokens: burst, at: now, suppressed: 0 };
        let bucket = self.buckets.entry(key).or_insert(new);
        bucket.tokens = filled(bucket);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn pod(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn one_pod_takes_no_lines_of_another_ones() {
        let mut limiter = Limiter::new(10);
        let now = Instant::now();
        let told = (0..1000)
            .filter(|_| limiter.take(now, (Verdict::Denied, Direction::Egress, pod(1))).is_some())
            .count();
        assert_eq!(told, 20);
        assert_eq!(limiter.take(now, (Verdict::Denied, Direction::Egress, pod(2))), Some(0));
        assert_eq!(limiter.take(now, (Verdict::Denied, Direction::Ingress, pod(1))), Some(0));
        assert_eq!(limiter.take(now, (Verdict::WouldDeny, Direction::Egress, pod(1))), Some(0));
        // and later it is told how many there were
        let later = now + Duration::from_millis(100);
        assert_eq!(limiter.take(later, (Verdict::Denied, Direction::Egress, pod(1))), Some(980));
        assert_eq!(limiter.take(later, (Verdict::Denied, Direction::Egress, pod(1))), None);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut limiter = Limiter::new(10);
        let now = Instant::now();
        let most = u32::try_from(MOST).expect("small");
        assert!((0..most).all(|n| limiter.take(now, (Verdict::Denied, Direction::Egress, pod(n))).is_some()));
        assert_eq!(limiter.take(now, (Verdict::Denied, Direction::Egress, pod(most))), None);
        // those that have been quiet are forgotten
        let later = now + Duration::from_secs(2);
        assert_eq!(limiter.take(later, (Verdict::Denied, Direction::Egress, pod(most))), Some(0));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
