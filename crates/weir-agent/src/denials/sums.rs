//! Allowed connections of one kind, added up: the first one is told at once, how many more there were after a while.
//!
//! A kind is a pod, a direction, a clause and a peer. A pod has so many of them; what is beyond is told without the peer,
//! and beyond that without the clause. So neither memory nor lines grow with what a pod does.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::Direction;
use weir_compiler::verdict::ClauseRef;

use super::allowed::Allowed;

/// After the first one of a kind, how many more there were is told each time this has passed.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// So many kinds of a pod and direction are told apart by peers,
const PEERS: usize = 64;
/// and so many by clauses.
const CLAUSES: usize = 256;
/// The same for all pods together.
const MOST: usize = 4096;
/// Lines a second, of all pods together; twice as many at once.
const LINES: f64 = 200.0;

/// What connections that are added up have in common, besides pod and direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Policies isolate the pod in this direction.
    pub(super) isolated: bool,
    /// `None`: no policy isolates it, none of them allows it any more, or there are too many kinds.
    pub(super) clause: Option<ClauseRef>,
    /// `None`: it is one of several.
    pub(super) peer: Option<IpAddr>,
}

/// One of a kind, and how many it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) kind: Kind,
    /// The latest.
    pub(super) last: Allowed,
    pub(super) connections: u64,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    last: Allowed,
    /// That were not told so far.
    connections: u64,
}

type Of = BTreeMap<(Kind, u32), Open>;

#[derive(Debug)]
pub(super) struct Sums {
    pods: HashMap<(Direction, ObjectKey), Of>,
    count: usize,
    tokens: f64,
    at: Option<Instant>,
}

impl Default for Sums {
    fn default() -> Self {
        Sums { pods: HashMap::new(), count: 0, tokens: 2.0 * LINES, at: None }
    }
}

impl Sums {
    /// Whether there is nothing of which more could come.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one; if it is the first of its kind: what to tell. Also whether its kind is one of too many.
    pub(super) fn add(
        &mut self,
        now: Instant,
        pod: &ObjectKey,
        mut kind: Kind,
        allowed: Allowed,
    ) -> (Option<Sum>, bool) {
        let of = self.pods.entry((allowed.direction, pod.clone())).or_default();
        let mut merged = false;
        let known = |of: &Of, kind: &Kind| of.contains_key(&(kind.clone(), allowed.one_of));
        for most in [PEERS, CLAUSES] {
            if known(of, &kind) || (of.len() < most && self.count < MOST) {
                break;
            }
            merged = true;
            match kind.peer {
                Some(_) => kind.peer = None,
                None => kind.clause = None,
            }
        }
        if let Some(open) = of.get_mut(&(kind.clone(), allowed.one_of)) {
            open.connections += 1;
            open.last = allowed;
            return (None, merged);
        }
        self.count += 1;
        let first = take(&mut self.tokens, &mut self.at, now);
        let open = Open { since: now, last: allowed.clone(), connections: u64::from(!first) };
        of.insert((kind.clone(), allowed.one_of), open);
        (first.then_some(Sum { kind, last: allowed, connections: 1 }), merged)
    }

    /// What is to be told by now; what has been quiet is forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(ObjectKey, Sum)> {
        let mut due = Vec::new();
        let (tokens, at) = (&mut self.tokens, &mut self.at);
        for ((_, pod), of) in &mut self.pods {
            of.retain(|(kind, _), open| {
                if now.saturating_duration_since(open.since) < WINDOW {
                    return true;
                }
                if open.connections == 0 {
                    return false;
                }
                if take(tokens, at, now) {
                    let connections = std::mem::take(&mut open.connections);
                    due.push((pod.clone(), Sum { kind: kind.clone(), last: open.last.clone(), connections }));
                    open.since = now;
                }
                true
            });
        }
        self.pods.retain(|_, of| !of.is_empty());
        self.count = self.pods.values().map(BTreeMap::len).sum();
        due
    }
}

/// Takes one of the lines that there may be by now.
fn take(tokens: &mut f64, at: &mut Option<Instant>, now: Instant) -> bool {
    let since = at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
    *tokens = (*tokens + since.as_secs_f64() * LINES).min(2.0 * LINES);
    let some = *tokens >= 1.0;
    *tokens -= if some { 1.0 } else { 0.0 };
    some
}

#[cfg(test)]
mod tests {
    use super::super::packet::Flow;
    use super::*;

    fn allowed(n: u32) -> Allowed {
        let flow = Flow {
            source: [10, 0, 0, 1].into(),
            destination: std::net::Ipv4Addr::from_bits(n).into(),
            protocol: 6,
            ports: Some((40_000, 80)),
        };
        Allowed { at: std::time::SystemTime::UNIX_EPOCH, direction: Direction::Egress, one_of: 1, flow }
    }

    fn kind(rule: usize, peer: u32) -> Kind {
        let policy = ObjectKey::new("a", "p");
        let clause = ClauseRef { policy, direction: Direction::Egress, rule, peer: None, port: None };
        Kind { isolated: true, clause: Some(clause), peer: Some(std::net::Ipv4Addr::from_bits(peer).into()) }
    }

    fn pod(n: usize) -> ObjectKey {
        ObjectKey::new("a", n.to_string())
    }

    #[test]
    fn the_first_is_told_at_once_and_then_how_many_more() {
        let (mut sums, begin) = (Sums::default(), Instant::now());
        let (first, merged) = sums.add(begin, &pod(1), kind(0, 1), allowed(1));
        assert_eq!((first.map(|sum| sum.connections), merged), (Some(1), false));
        for _ in 0..7 {
            assert_eq!(sums.add(begin, &pod(1), kind(0, 1), allowed(1)), (None, false));
        }
        // of another clause, peer, pod, or another share: another kind
        for (pod, kind, one_of) in [
            (pod(1), kind(1, 1), 1),
            (pod(1), kind(0, 2), 1),
            (pod(2), kind(0, 1), 1),
            (pod(1), kind(0, 1), 10),
        ] {
            let (first, _) = sums.add(begin, &pod, kind, Allowed { one_of, ..allowed(1) });
            assert!(first.is_some(), "{pod} {one_of}");
        }
        assert_eq!(sums.due(begin + WINDOW - Duration::from_millis(1)), []);
        let due = sums.due(begin + WINDOW);
        let told: Vec<_> =
            due.iter().map(|(pod, sum)| (pod.clone(), sum.kind.clone(), sum.connections)).collect();
        assert_eq!(told, [(pod(1), kind(0, 1), 7)]);
        // quiet for as long again: forgotten, and the next one is a first one
        assert_eq!(sums.due(begin + 2 * WINDOW), []);
        assert!(sums.is_empty());
        assert!(sums.add(begin + 2 * WINDOW, &pod(1), kind(0, 1), allowed(1)).0.is_some());
    }

    #[test]
    fn a_pod_has_so_many_peers_and_clauses_and_takes_none_of_another() {
        let (mut sums, mut now) = (Sums::default(), Instant::now());
        let mut merged = 0;
        for n in 0..10_000 {
            merged += usize::from(sums.add(now, &pod(1), kind(0, n), allowed(n)).1);
        }
        // the last of its kinds is the one of all other peers
        assert_eq!((merged, sums.count), (10_000 - PEERS, PEERS + 1));
        for rule in 0..1000 {
            sums.add(now, &pod(1), kind(rule, 1), allowed(1));
        }
        assert_eq!(sums.count, CLAUSES + 1);
        assert!(!sums.add(now, &pod(2), kind(0, 1), allowed(1)).1);
        // nothing of it is lost
        let mut told = 0;
        for _ in 0..100 {
            now += WINDOW;
            told += sums.due(now).iter().map(|(_, sum)| sum.connections).sum::<u64>();
        }
        assert!(sums.is_empty() && told > 10_000, "{told}");
    }

    #[test]
    fn it_does_not_grow_without_end_nor_do_lines() {
        let (mut sums, now) = (Sums::default(), Instant::now());
        let mut lines = 0;
        for n in 0..50_000u32 {
            lines += usize::from(sums.add(now, &pod(n as usize % 1000), kind(0, n), allowed(n)).0.is_some());
        }
        assert!(sums.count <= MOST + 2 * 1000, "{}", sums.count);
        assert_eq!(lines, 400);
        assert_eq!(sums.due(now + WINDOW).len(), 400);
        assert!(sums.due(now + WINDOW).is_empty(), "the others wait");
        assert_eq!(sums.due(now + WINDOW + Duration::from_secs(1)).len(), 200);
    }
}
