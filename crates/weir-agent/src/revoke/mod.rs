//! Ends connections that a change forbids (U9): a bit in the mark of exactly their conntrack entries,
//! which the first rule of the base chains drops.
//!
//! ```text
//!   changes of the slice ──> Need ──commit──> look ──────────────────> Worker (a thread)
//!                                              ^                         │ dump, entries of our pods
//!                    again, shortly after ─────┤                         v
//!                    an address is let go ─────┘      Judge <──chunks── entries
//!                                                       │
//!                                                       └──markings──> Worker ──> conntrack
//! ```
//!
//! Deleting entries would not do: the server's next packet makes another in the reverse direction, and
//! the connection lives on. A marked entry stays for as long as anybody sends, and nothing passes.
//!
//! - **When.** After a commit that can forbid something, or allow again what is marked (`need.rs`); at the
//!   start; and a second time shortly after, for connections whose first packet was on its way through
//!   the old rules while the first dump ran. There is no periodic look. Bursts share a look, and looks
//!   take no more than half of the time.
//! - **Where.** The dump is made by a thread of its own, which hands over what concerns this node's pods
//!   in chunks; each chunk is judged in a turn of the agent's loop, so that no commit waits for long.
//! - **Addresses.** What a pod's address was an end of when the pod let go of it is revoked whatever
//!   policies say (`departed.rs`): its next owner takes no connections along.

mod departed;
mod judge;
mod need;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_compiler::object::Event;
use weir_compiler::slice::{Change, NodeSlice};
use weir_nft::OpenError;
use weir_nft::conntrack::{Conntrack, ConntrackError, Entry, Marking};

use departed::Departed;
use need::Need;
use worker::{Report, Worker};

pub use judge::{Judge, Known};

/// What connections are revoked with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The bits of the mark that say: revoked.
    pub mark: NonZeroU32,
    /// Whether a pod reaches its own node whatever its policies say (U6).
    pub pod_to_own_node: bool,
}

/// From the end of a look to the next that is for what was under way during the first.
const SECOND_LOOK: Duration = Duration::from_millis(50);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Something for [`Revoker::step`].
#[derive(Debug)]
pub struct Step(Inner);

#[derive(Debug)]
enum Inner {
    Worker(Report),
    Time,
}

/// What a look that is under way has found.
#[derive(Debug, Default)]
struct Look {
    /// It is the first since something changed: another follows.
    first: bool,
    entries: usize,
    revoked: usize,
    restored: usize,
    marked: usize,
}

/// See the module.
pub struct Revoker {
    options: Options,
    worker: Worker,
    need: Need,
    departed: Departed,
    /// The addresses of this node's pods.
    pods: Arc<HashSet<IpAddr>>,
    known: Known,
    look: Option<(Look, Instant)>,
    /// A look is to come, at the earliest at this time.
    next: Option<Instant>,
    /// The next look is for something that changed, and not just a second one.
    fresh: bool,
    /// Looks do not begin before: they take half of the time at most.
    not_before: Instant,
    /// There were marked entries at the last look.
    marked: bool,
    looks: u64,
    failing: bool,
}

impl Revoker {
    /// Opens conntrack in this thread's network namespace; `node` is the name of its node. The first commit is followed by a look at everything.
    ///
    /// # Errors
    /// There is no permission, or no ctnetlink.
    pub fn open(node: &str, options: Options) -> Result<Self, OpenError> {
        let worker = Worker::start(options.mark, Conntrack::open()?, Conntrack::open()?)?;
        Ok(Revoker {
            options,
            worker,
            need: Need::everything(node),
            departed: Departed::default(),
            pods: Arc::default(),
            known: Known::default(),
            look: None,
            next: None,
            fresh: false,
            not_before: Instant::now(),
            marked: true,
            looks: 0,
            failing: false,
        })
    }

    /// Takes note of what objects say before it becomes changes of the slice: a pod of another uid with the
    /// name and the address of the one before is none there.
    pub fn events(&mut self, slice: &NodeSlice, events: &[Event]) {
        for event in events {
            let left = self.need.replaced(slice, event);
            self.departed.leave(left);
        }
    }

    /// Takes note of changes that are about to be carried out on `slice`.
    pub fn changes<'a>(&mut self, slice: &NodeSlice, changes: impl IntoIterator<Item = &'a Change>) {
        self.known = Known::default();
        for change in changes {
            let left = self.need.change(slice, change, self.marked);
            self.departed.leave(left);
        }
    }

    /// The kernel holds the plan of `slice`: if that can forbid or allow again, a look is due.
    pub fn committed(&mut self, slice: &NodeSlice) {
        let Some(pods) = self.need.take() else { return };
        if pods {
            self.pods = Arc::new(slice.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect());
            self.departed.owned(|address| self.pods.contains(&address), Instant::now());
        }
        self.fresh = true;
        self.next = Some(Instant::now());
        self.begin();
    }

    /// Somebody else changed the rules: what passed meanwhile is to be judged.
    pub fn repaired(&mut self) {
        self.need.all();
    }

    /// How many looks have come to their end.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// No look is under way or to come, and the next one would begin at once.
    pub fn is_idle(&self) -> bool {
        self.look.is_none() && self.next.is_none() && self.not_before <= Instant::now()
    }

    /// Waits for something to do. Cancel-safe.
    pub async fn next(&mut self) -> Step {
        let at = match &self.look {
            None => self.next.map(|at| at.max(self.not_before)).into_iter().chain(self.departed.next()).min(),
            Some(_) => None,
        };
        let time = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            report = self.worker.report() => Step(Inner::Worker(report)),
            () = time => Step(Inner::Time),
        }
    }

    /// Does what [`next`](Revoker::next) waited for. `is_local` knows the node's own addresses.
    pub fn step(&mut self, step: Step, slice: &NodeSlice, is_local: impl Fn(IpAddr) -> bool) {
        match step.0 {
            Inner::Time => {
                if self.departed.release(Instant::now()) {
                    self.next.get_or_insert_with(Instant::now);
                }
                self.begin();
            }
            Inner::Worker(Report::Entries(entries)) => self.judge(entries, slice, is_local),
            Inner::Worker(Report::Done(result)) => self.done(result),
        }
    }

    fn begin(&mut self) {
        let now = Instant::now();
        if self.look.is_some() || self.next.is_none_or(|at| at > now) || self.not_before > now {
            return;
        }
        self.next = None;
        let first = std::mem::take(&mut self.fresh);
        self.departed.begin();
        let left = self.departed.addresses();
        self.worker.look(Arc::clone(&self.pods), left);
        self.look = Some((Look { first, ..Look::default() }, now));
    }

    fn judge(&mut self, entries: Vec<Entry>, slice: &NodeSlice, is_local: impl Fn(IpAddr) -> bool) {
        let Some((look, _)) = &mut self.look else { return };
        look.entries += entries.len();
        let mut judge = Judge::new(slice, &is_local, self.options.pod_to_own_node, &mut self.known);
        let mut markings = Vec::new();
        for entry in entries {
            let allowed = !self.departed.holds(&entry) && judge.allows(&entry);
            let marked = entry.mark & self.options.mark.get() != 0;
            look.marked += usize::from(!allowed);
            if allowed == marked {
                look.revoked += usize::from(!allowed);
                look.restored += usize::from(allowed);
                markings.push(Marking { key: entry.key, set: !allowed });
            }
        }
        self.worker.mark(markings);
    }

    fn done(&mut self, result: Result<(), ConntrackError>) {
        let Some((look, started)) = self.look.take() else { return };
        let took = started.elapsed();
        self.not_before = Instant::now() + took;
        match result {
            Ok(()) => {
                self.failing = false;
                self.looks += 1;
                self.departed.end();
                self.marked = look.marked > 0;
                if look.revoked + look.restored > 0 {
                    tracing::info!(
                        revoked = look.revoked,
                        allowed_again = look.restored,
                        ?took,
                        "connections of changed policies"
                    );
                }
                tracing::debug!(entries = look.entries, first = look.first, ?took, "looked at connections");
                if !look.first {
                    self.known = Known::default();
                } else {
                    self.next.get_or_insert(Instant::now() + SECOND_LOOK);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("connections that policies forbid may live on, trying again: {error}");
                }
                self.fresh |= look.first;
                self.next = Some(Instant::now() + RETRY);
            }
        }
        self.begin();
    }
}
