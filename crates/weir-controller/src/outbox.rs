//! What goes to one agent: a stream that is asked when the connection can take more, and never before. Until
//! then changes are put together in [`Pending`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use prometheus_client::metrics::counter::Counter;
use prost::bytes::Bytes;
use tonic::Status;
use weir_proto::pb::{Changes, Commit, FromController, from_controller::What};

use crate::pending::Pending;

/// Changes are sent in messages of about this size, in bytes.
const MESSAGE: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    /// Cut into messages already, to be sent as they are.
    messages: VecDeque<FromController>,
    pending: Pending,
    /// The agent is known to lack just what is pending.
    live: bool,
    /// Sent, and not acknowledged.
    sent: VecDeque<Sent>,
    acknowledged: u64,
    end: Option<Status>,
    ended: bool,
    /// Of changes, that were sent.
    bytes: Counter,
}

#[derive(Debug)]
struct Sent {
    version: u64,
    batches: u64,
    since: Option<Instant>,
    at: Instant,
}

impl Outbox {
    /// An empty one, which counts the bytes of the changes that it sends.
    pub fn new(bytes: Counter) -> Self {
        Outbox { state: Mutex::new(State { bytes, ..State::default() }), waker: AtomicWaker::new() }
    }

    /// Sends a message of the conversation's beginning.
    pub fn say(&self, what: What) {
        self.lock().messages.push_back(FromController { what: Some(what) });
        self.waker.wake();
    }

    /// Changes what is pending.
    pub fn update(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock().pending);
        self.waker.wake();
    }

    /// From now on, what is pending is sent.
    pub fn go_live(&self) {
        self.lock().live = true;
        self.waker.wake();
    }

    /// Ends the stream, after nothing more.
    pub fn end(&self, status: Status) {
        let mut state = self.lock();
        state.messages.clear();
        state.end.get_or_insert(status);
        drop(state);
        self.waker.wake();
    }

    /// The agent's kernel holds a version: how long each change in it took, from when it was heard of.
    pub fn acknowledged(&self, version: u64, now: Instant) -> Vec<Duration> {
        let mut state = self.lock();
        let mut took = Vec::new();
        while state.sent.front().is_some_and(|sent| sent.version <= version) {
            let Some(sent) = state.sent.pop_front() else { break };
            state.acknowledged = sent.batches;
            took.extend(sent.since.map(|since| now.saturating_duration_since(since)));
        }
        took
    }

    /// How many versions that concern this agent its kernel does not hold yet.
    pub fn behind(&self) -> u64 {
        let state = self.lock();
        state.pending.batches() - state.acknowledged
    }

    /// How long the oldest version waits that concerns this agent and that its kernel does not hold yet.
    pub fn waits(&self, now: Instant) -> Duration {
        let state = self.lock();
        let sent = state.sent.front().map(|sent| sent.since.unwrap_or(sent.at));
        let oldest = sent.or_else(|| state.pending.since());
        oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Nobody reads the stream any more.
    pub fn is_ended(&self) -> bool {
        self.lock().ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // whoever panicked with it left no half of a change: all are single statements
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Result<FromController, Status>> {
        if let Some(status) = self.end.take() {
            self.ended = true;
            return Some(Err(status));
        }
        if self.messages.is_empty() && self.live && self.pending.is_due() {
            let taken = self.pending.take();
            self.bytes.inc_by(taken.changes.iter().map(|bytes| bytes.len() as u64).sum());
            self.messages = messages(taken.changes, taken.version);
            self.sent.push_back(Sent {
                version: taken.version,
                batches: taken.batches,
                since: taken.since,
                at: Instant::now(),
            });
        }
        self.messages.pop_front().map(Ok)
    }
}

fn messages(changes: Vec<Bytes>, version: u64) -> VecDeque<FromController> {
    let mut all = VecDeque::new();
    let mut size = 0;
    let mut change = Vec::new();
    for bytes in changes {
        if size > 0 && size + bytes.len() > MESSAGE {
            all.push_back(What::Changes(Changes { change: std::mem::take(&mut change) }));
            size = 0;
        }
        size += bytes.len();
        change.push(bytes);
    }
    if !change.is_empty() {
        all.push_back(What::Changes(Changes { change }));
    }
    all.push_back(What::Commit(Commit { version }));
    all.into_iter().map(|what| FromController { what: Some(what) }).collect()
}

/// The stream of an [`Outbox`].
#[derive(Debug)]
pub struct Outgoing(pub Arc<Outbox>);

impl Stream for Outgoing {
    type Item = Result<FromController, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.waker.register(context.waker());
        let mut state = self.0.lock();
        if state.ended {
            return Poll::Ready(None);
        }
        match state.next() {
            Some(message) => Poll::Ready(Some(message)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.0.lock().ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_longest_counts_sent_or_not() {
        let outbox = Outbox::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(outbox.waits(at(9)), Duration::ZERO);
        // nobody takes it yet: the connection is stuck, or the agent is told other things first
        outbox.update(|pending| pending.commit(1, Some(at(1))));
        assert_eq!(outbox.waits(at(9)), Duration::from_secs(8));
        outbox.go_live();
        assert!(outbox.lock().next().is_some());
        outbox.update(|pending| pending.commit(2, Some(at(5))));
        assert_eq!(outbox.waits(at(9)), Duration::from_secs(8));
        outbox.acknowledged(1, at(9));
        assert_eq!((outbox.waits(at(9)), outbox.behind()), (Duration::from_secs(4), 1));
        assert!(outbox.lock().next().is_some());
        outbox.acknowledged(2, at(10));
        assert_eq!((outbox.waits(at(20)), outbox.behind()), (Duration::ZERO, 0));
    }
}
