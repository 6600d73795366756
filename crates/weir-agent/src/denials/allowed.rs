//! Allowed connections, where a namespace asks for them: whose they are, and which clause allows them.
//!
//! ```text
//!   the same NFLOG, prefix allowed_... ──> a queue of its own ──> judge: the slice says which clause
//!                                                                   v
//!                                         lines <── at once, or when a while has passed <── sums
//! ```
//!
//! The kernel has decided already, and the slice is asked again for the name of the clause. That is not free, so what is
//! equal is asked once, and no more is asked in a turn than takes a moment; what does not fit into the queue is counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::sync::mpsc;
use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_compiler::verdict::{ClauseRef, Reason};

use super::line::{self, End};
use super::packet::Flow;
use super::sums::{Kind, Sum, Sums, WINDOW};
use super::{QUEUE, other, pod};
use crate::metrics::Metrics;

/// How long one turn takes at most.
const TURN: Duration = Duration::from_millis(2);
/// How many answers of the slice are kept, for one window.
const ANSWERS: usize = 4096;
/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_secs(1);

/// The first packet of a connection that policies allowed at one of its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(super) at: SystemTime,
    /// The direction of the pod that allows it.
    pub(super) direction: Direction,
    /// It stands for so many.
    pub(super) one_of: u32,
    pub(super) flow: Flow,
}

/// `allowed_egress_ID_10`, `allowed_ingress_1`: the direction, and how many one stands for.
pub(super) fn read(prefix: &str) -> Option<(Direction, u32)> {
    let (chain, one_of) = prefix.strip_prefix("allowed_")?.rsplit_once('_')?;
    let named = |word| Direction::BOTH.into_iter().find(|direction| direction.as_str() == word);
    let direction = chain.split('_').find_map(named)?;
    Some((direction, one_of.parse().ok().filter(|n| *n > 0)?))
}

/// What the slice says of equal ones.
#[derive(Debug)]
struct Judged {
    pod: ObjectKey,
    isolated: bool,
    clause: Option<ClauseRef>,
}

type Equal = (Direction, IpAddr, IpAddr, u8, Option<u16>);

/// Where allowed connections come from, and what is kept of them.
pub(super) struct Book {
    found: mpsc::Receiver<Allowed>,
    sums: Sums,
    answers: HashMap<Equal, Option<Arc<Judged>>>,
    answers_since: Instant,
    look: tokio::time::Instant,
}

impl Book {
    /// With the end that takes them.
    pub(super) fn new() -> (mpsc::Sender<Allowed>, Book) {
        let (sender, found) = mpsc::channel(QUEUE);
        let (answers_since, look) = (Instant::now(), tokio::time::Instant::now());
        (sender, Book { found, sums: Sums::default(), answers: HashMap::new(), answers_since, look })
    }

    /// The next one; `None`: it is time to look for what is due.
    pub(super) async fn next(&mut self) -> Option<Allowed> {
        let look = self.look;
        tokio::select! {
            Some(allowed) = self.found.recv() => Some(allowed),
            () = tokio::time::sleep_until(look), if !self.sums.is_empty() => None,
            else => std::future::pending().await,
        }
    }

    /// Takes it, and what else has come, by the names of now.
    pub(super) fn tell(
        &mut self,
        next: Option<Allowed>,
        slice: &NodeSlice,
        node: &str,
        lines: &SyncSender<String>,
        metrics: &Metrics,
    ) {
        let begin = Instant::now();
        if begin.saturating_duration_since(self.answers_since) >= WINDOW || self.answers.len() >= ANSWERS {
            self.answers.clear();
            self.answers_since = begin;
        }
        let tell = |pod: &ObjectKey, sum: &Sum| {
            match lines.try_send(text(node, pod, sum, slice)) {
                Ok(()) => metrics.allowed_logged.inc(),
                Err(_) => metrics.allowed_lost.inc_by(sum.connections),
            };
        };
        let mut next = next;
        while let Some(allowed) = next {
            metrics.allowed_connections.inc();
            // of a pod that has gone by now nobody could say more
            if let Some(judged) = self.judge(&allowed, slice) {
                let peer = Some(other(allowed.direction, &allowed.flow));
                let kind = Kind { isolated: judged.isolated, clause: judged.clause.clone(), peer };
                let (first, merged) = self.sums.add(begin, &judged.pod, kind, allowed);
                first.iter().for_each(|sum| tell(&judged.pod, sum));
                metrics.allowed_merged.inc_by(u64::from(merged));
            }
            next = if begin.elapsed() < TURN { self.found.try_recv().ok() } else { None };
        }
        if tokio::time::Instant::now() >= self.look {
            self.look = tokio::time::Instant::now() + LOOK;
            self.sums.due(begin).iter().for_each(|(pod, sum)| tell(pod, sum));
        }
    }

    fn judge(&mut self, allowed: &Allowed, slice: &NodeSlice) -> Option<Arc<Judged>> {
        let Allowed { direction, flow, .. } = allowed;
        let (subject, peer) = (pod(*direction, flow), other(*direction, flow));
        let port = flow.ports.map(|(_, destination)| destination);
        let answer = || {
            let (key, state) = line::pods(slice, subject).next()?;
            let isolated =
                slice.profiles.get(&state.profile).is_some_and(|p| p.ruleset(*direction).is_some());
            let verdict = slice.verdict(key, *direction, peer, flow.l4());
            // policies are others by now, or are audited: that is told of as a denial
            let clause = match verdict.allowed.then_some(verdict.reason)? {
                Reason::Clause(clause) => Some(clause),
                _ => None,
            };
            Some(Arc::new(Judged { pod: key.clone(), isolated, clause }))
        };
        let equal = (*direction, subject, peer, flow.protocol, port);
        self.answers.entry(equal).or_insert_with(answer).clone()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    verdict: &'static str,
    node: &'a str,
    direction: &'static str,
    from: End,
    to: End,
    protocol: line::Protocol,
    isolated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    clause: Option<Clause>,
    connections: u64,
    sampled: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    others: bool,
}

#[derive(Serialize)]
struct Clause {
    policy: String,
    direction: &'static str,
    rule: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<usize>,
}

/// With its newline.
fn text(node: &str, of: &ObjectKey, sum: &Sum, slice: &NodeSlice) -> String {
    let Sum { kind, last: Allowed { at, direction, one_of, flow }, connections } = sum;
    let end = |address: IpAddr, port: Option<u16>| {
        let mut end = line::end(slice, address, port);
        if address == pod(*direction, flow) {
            end.pod = Some(of.to_string());
        }
        end
    };
    let clause = kind.clause.as_ref().map(|clause| Clause {
        policy: clause.policy.to_string(),
        direction: clause.direction.as_str(),
        rule: clause.rule,
        peer: clause.peer,
        port: clause.port,
    });
    let line = Line {
        time: line::time(*at),
        verdict: "allowed",
        node,
        direction: direction.as_str(),
        from: end(flow.source, flow.ports.map(|(source, _)| source)),
        to: end(flow.destination, flow.ports.map(|(_, destination)| destination)),
        protocol: line::protocol(flow.protocol),
        isolated: kind.isolated,
        clause,
        connections: *connections,
        sampled: *one_of,
        others: kind.peer.is_none(),
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_says_direction_and_share() {
        let of = |prefix| read(prefix);
        assert_eq!(of("allowed_egress_gtqupezbmcqc4fw5nokwsz2i2f_1"), Some((Direction::Egress, 1)));
        assert_eq!(
            of("allowed_ingress_gtqupezbmcqc4fw5nokwsz2i2f_65536"),
            Some((Direction::Ingress, 65_536))
        );
        assert_eq!(of("allowed_ingress_10"), Some((Direction::Ingress, 10)));
        assert_eq!(of("allowed_audit_egress_gtqupezbmcqc4fw5nokwsz2i2f_2"), Some((Direction::Egress, 2)));
        for prefix in ["", "allowed_", "allowed_egress", "allowed_egress_0", "egress_1", "allowed_x_1"] {
            assert_eq!(of(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn a_line() {
        let flow = Flow {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: 6,
            ports: Some((40_000, 5432)),
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let last = Allowed { at, direction: Direction::Ingress, one_of: 10, flow };
        let policy = ObjectKey::new("shop", "db");
        let clause = ClauseRef { policy, direction: Direction::Ingress, rule: 2, peer: Some(0), port: None };
        let kind = Kind { isolated: true, clause: Some(clause), peer: Some(flow.source) };
        let mut sum = Sum { kind, last, connections: 3 };
        let pod = ObjectKey::new("shop", "db-0");
        assert_eq!(
            text("node1", &pod, &sum, &NodeSlice::default()),
            "{\"time\":\"2027-01-15T08:00:00.123Z\",\"verdict\":\"allowed\",\"node\":\"node1\",\
             \"direction\":\"ingress\",\"from\":{\"address\":\"10.0.0.1\",\"port\":40000},\
             \"to\":{\"pod\":\"shop/db-0\",\"address\":\"10.0.0.2\",\"port\":5432},\"protocol\":\"TCP\",\
             \"isolated\":true,\"clause\":{\"policy\":\"shop/db\",\"direction\":\"ingress\",\"rule\":2,\"peer\":0},\
             \"connections\":3,\"sampled\":10}\n"
        );
        sum.kind = Kind { isolated: false, clause: None, peer: None };
        let text = text("node1", &pod, &sum, &NodeSlice::default());
        assert!(
            text.ends_with("\"isolated\":false,\"connections\":3,\"sampled\":10,\"others\":true}\n"),
            "{text}"
        );
    }
}
