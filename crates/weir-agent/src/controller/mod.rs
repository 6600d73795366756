//! The agent as a client of controllers, any of which has its slice.
//!
//! ```text
//!   Address ──> connect: TCP, TLS ──> conversation ──Told──> the agent's loop ──> kernel
//!     ^                                 │      ^                              │
//!     └── another one, after a pause ───┘ends  └───────────── Ack ────────────┘
//! ```
//!
//! A task of its own does all of it ([`Client`]); the loop is asked for what it holds, told of commits that are
//! whole ([`receive`]), and says what the kernel holds. The task reads no further before a commit is taken in:
//! who sends faster than that waits, and has to keep one state for us instead of many.

pub mod address;
pub mod connect;
mod conversation;
pub mod receive;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use weir_proto::{DigestKey, Items, Mode, pb};
use weir_source::backoff::Backoff;

use crate::metrics::Metrics;
use address::Address;
use conversation::Loop;
use receive::{Incoming, Refused};

pub use conversation::Ended;

/// Which controllers, and who we are.
#[derive(Debug, Clone)]
pub struct Options {
    /// Any of them; of a Service, the one address is all.
    pub addresses: Vec<Address>,
    /// The name that their certificates are for.
    pub name: String,
    /// The certificates that theirs are signed by, read anew at each attempt.
    pub ca: PathBuf,
    /// Who we are, read anew at each attempt.
    pub token: PathBuf,
    /// This node, as the token has it.
    pub node: String,
}

/// What the loop is told.
#[derive(Debug)]
pub enum Told {
    /// A controller knows us, and wants to know what we hold, in digests of this key.
    Welcome {
        /// The conversation's.
        key: DigestKey,
        /// Takes the items of the slice.
        reply: oneshot::Sender<Items>,
    },
    /// Something changed, as a whole.
    Commit(Commit),
    /// No controller is there any more, or this attempt failed.
    Lost {
        /// Of which controller, if one was found, and what happened.
        why: String,
    },
}

/// Changes that belong together.
#[derive(Debug)]
pub struct Commit {
    /// For its [`Ack`].
    pub conversation: u64,
    /// For its [`Ack`].
    pub version: u64,
    /// What came.
    pub incoming: Incoming,
    /// Takes whether it fits.
    pub reply: oneshot::Sender<Result<(), Refused>>,
}

/// The kernel holds this.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack {
    /// Of the [`Commit`].
    pub conversation: u64,
    /// Of the [`Commit`].
    pub version: u64,
    /// What the kernel does not take.
    pub problems: Vec<pb::Problem>,
    /// Whether policies are enforced.
    pub mode: Mode,
}

/// A task that is in a conversation with some controller, or tries to be.
#[derive(Debug)]
pub struct Client {
    told: mpsc::Receiver<Told>,
    acks: watch::Sender<Option<Ack>>,
}

impl Client {
    /// Starts the task. It ends with the client.
    pub fn start(options: Options, metrics: Metrics) -> Client {
        let (sender, told) = mpsc::channel(1);
        let (acks, receiver) = watch::channel(None);
        tokio::spawn(run(options, sender, receiver, metrics));
        Client { told, acks }
    }

    /// What comes next. `None`: the task has ended, which it does not. Cancel-safe.
    pub async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// The kernel holds this now. Of many, the controller may see the last only.
    pub fn acknowledge(&self, ack: Ack) {
        self.acks.send_if_modified(|last| {
            let differs = last.as_ref() != Some(&ack);
            *last = Some(ack);
            differs
        });
    }
}

async fn run(
    options: Options,
    told: mpsc::Sender<Told>,
    acks: watch::Receiver<Option<Ack>>,
    metrics: Metrics,
) {
    let mut backoff = Backoff::default();
    // not all agents begin with the first
    #[allow(clippy::cast_possible_truncation)] // of random bits
    let mut attempt = RandomState::new().hash_one(0) as usize >> 1;
    for conversation in 0.. {
        attempt += 1;
        let agent = Loop { told: &told, acks: &acks, metrics: &metrics };
        let (at, ended) = attempt_one(&options, attempt, conversation, agent, &mut backoff).await;
        metrics.disconnected();
        let (pause, first) = backoff.error(Instant::now());
        let at = at.map(|at| format!(" {at}")).unwrap_or_default();
        let why = format!("controller{at}: {}", with_sources(&ended));
        match ended {
            Ended::Stopping => return,
            // it stops, or wants to see a new token
            Ended::Closed if first => tracing::info!("{why}; going to the next"),
            _ => {
                metrics.connection_errors.inc();
                if first {
                    tracing::warn!("{why}; what is in force stays, trying again");
                } else {
                    tracing::debug!("{why}; next attempt in {pause:?}");
                }
            }
        }
        if told.send(Told::Lost { why }).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told.closed() => return,
        }
    }
}

async fn attempt_one(
    options: &Options,
    attempt: usize,
    conversation: u64,
    agent: Loop<'_>,
    backoff: &mut Backoff,
) -> (Option<SocketAddr>, Ended) {
    let mut known = Vec::new();
    let mut wrong = String::new();
    for address in &options.addresses {
        match address.resolve().await {
            Ok(found) => known.extend(found),
            Err(error) => wrong = format!("{address}: {error}"),
        }
    }
    let Some(address) = known.get(attempt % known.len().max(1)).copied() else {
        return (None, Ended::Resolve(wrong));
    };
    let channel = match connect::connect(address, &options.name, &options.ca).await {
        Ok(channel) => channel,
        Err(error) => return (Some(address), error.into()),
    };
    let metrics = agent.metrics.clone();
    let works = || {
        metrics.connected();
        if backoff.works() {
            tracing::info!("controller {address} is followed again");
        } else {
            tracing::info!("controller {address} is followed");
        }
    };
    let ended =
        conversation::converse(channel, &options.node, &options.token, conversation, agent, works).await;
    (Some(address), ended)
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
