//! One connection's course: who we are, what we hold, what differs, what changes.

use std::path::Path;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use weir_proto::pb::slices_client::SlicesClient;
use weir_proto::pb::{self, from_agent, from_controller};
use weir_proto::{DigestKey, Items, LONGEST_FROM_AGENT, LONGEST_FROM_CONTROLLER, PROTOCOL, Parts};

use super::connect::ConnectError;
use super::receive::{Incoming, Refused};
use super::{Ack, Commit, Told};
use crate::metrics::Metrics;

/// How long a controller may take to look at the token and say welcome.
const PATIENCE: Duration = Duration::from_secs(30);
/// What waits for a commit, as it was sent: far more than the largest slice.
const MOST_BYTES: usize = 512 << 20;
/// So many items of 32 bytes are in one message.
const ITEMS: usize = LONGEST_FROM_AGENT / 32 - 1024;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It did not begin.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The address of no controller is known.
    #[error("no controller's address can be found: {0}")]
    Resolve(String),
    /// The token that shows who we are cannot be used.
    #[error("cannot read this agent's token in {path}: {reason}")]
    Token {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The controller refuses, or the connection broke.
    #[error("{}", said(.0))]
    Status(#[from] Status),
    /// The controller said nothing for too long.
    #[error("the controller did not answer within {} s", PATIENCE.as_secs())]
    Late,
    /// It ended in order, as that of a controller that stops.
    #[error("the controller ended the conversation")]
    Closed,
    /// The token is that of another node's agent.
    #[error("the token is for node {0}, which is not this agent's --node")]
    OtherNode(String),
    /// What was said is not in the protocol.
    #[error("the controller broke the protocol: {0}")]
    Protocol(&'static str),
    /// A commit cannot be taken in.
    #[error("a commit of the controller was refused, nothing of it is applied: {0}")]
    Refused(#[from] Refused),
    /// The agent ends.
    #[error("the agent stops")]
    Stopping,
}

fn said(status: &Status) -> String {
    let mut text = format!("{}: {}", status.code().description(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The two ends of this agent's loop.
pub(super) struct Loop<'a> {
    pub(super) told: &'a mpsc::Sender<Told>,
    pub(super) acks: &'a watch::Receiver<Option<Ack>>,
    pub(super) metrics: &'a Metrics,
}

/// Speaks until it ends. `works` is called with the first commit.
pub(super) async fn converse(
    channel: Channel,
    node: &str,
    token: &Path,
    conversation: u64,
    agent: Loop<'_>,
    works: impl FnOnce(),
) -> Ended {
    match follow(channel, node, token, conversation, agent, works).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

enum Never {}

async fn follow(
    channel: Channel,
    node: &str,
    token: &Path,
    conversation: u64,
    agent: Loop<'_>,
    works: impl FnOnce(),
) -> Result<Never, Ended> {
    let (say, outgoing) = mpsc::channel(4);
    let say = async |what| say.send(pb::FromAgent { what: Some(what) }).await.map_err(|_| Ended::Closed);
    let hello = pb::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    say(from_agent::What::Hello(hello)).await?;
    let mut request = tonic::Request::new(messages(outgoing, agent.acks.clone(), conversation));
    request.metadata_mut().insert("authorization", bearer(token)?);
    let mut client = SlicesClient::new(channel).max_decoding_message_size(LONGEST_FROM_CONTROLLER);

    let welcome = async {
        let mut incoming = client.follow(request).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, Ended>((incoming, first))
    };
    let (mut incoming, first) = tokio::time::timeout(PATIENCE, welcome).await.map_err(|_| Ended::Late)??;
    let Some(from_controller::What::Welcome(welcome)) = first.ok_or(Ended::Closed)?.what else {
        return Err(Ended::Protocol("its first message is no welcome"));
    };
    if welcome.node != node {
        return Err(Ended::OtherNode(welcome.node));
    }
    if !(1..=PROTOCOL).contains(&welcome.protocol) {
        return Err(Ended::Protocol("it wants to speak a protocol that this agent does not know"));
    }
    let key: [u8; 32] =
        welcome.digest_key[..].try_into().map_err(|_| Ended::Protocol("no key of 32 bytes"))?;
    let key = DigestKey::new(key);
    tracing::debug!(version = welcome.version, "the controller says welcome");

    let (reply, items) = oneshot::channel();
    agent.told.send(Told::Welcome { key, reply }).await.map_err(|_| Ended::Stopping)?;
    let mut held: Option<Items> = Some(items.await.map_err(|_| Ended::Stopping)?);
    let parts = Parts::of(held.as_ref().expect("it has just been told"));
    say(from_agent::What::Have(pb::Have { parts: parts.to_bytes() })).await?;

    let mut works = Some(works);
    let mut waiting = Incoming::new(key, MOST_BYTES);
    loop {
        let message = incoming.message().await?.ok_or(Ended::Closed)?;
        match message.what {
            Some(from_controller::What::Ask(ask)) => {
                let held = held.as_ref().ok_or(Ended::Protocol("it asks after the first commit"))?;
                for holdings in holdings(&parts, ask, held) {
                    say(from_agent::What::Holdings(holdings)).await?;
                }
            }
            Some(from_controller::What::Changes(changes)) => {
                for change in &changes.change {
                    agent.metrics.received_bytes.inc_by(change.len() as u64);
                    if !waiting.take(change, held.as_ref())? {
                        tracing::debug!("a newer controller says something that this agent does not know");
                    }
                }
            }
            Some(from_controller::What::Commit(pb::Commit { version })) => {
                if held.take().is_some() {
                    agent.metrics.resumed.observe(waiting.len() as f64);
                }
                let incoming = std::mem::replace(&mut waiting, Incoming::new(key, MOST_BYTES));
                let (reply, taken) = oneshot::channel();
                let commit = Commit { conversation, version, incoming, reply };
                agent.told.send(Told::Commit(commit)).await.map_err(|_| Ended::Stopping)?;
                // what comes meanwhile waits at the controller, as one state and not as many
                taken.await.map_err(|_| Ended::Stopping)??;
                if let Some(works) = works.take() {
                    works();
                }
            }
            Some(from_controller::What::Welcome(_)) => return Err(Ended::Protocol("it says welcome twice")),
            // of a newer protocol, although this one was agreed on
            None => {}
        }
    }
}

fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, Ended> {
    let wrong = |reason: String| Ended::Token { path: path.display().to_string(), reason };
    let token = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
    let mut value = value.map_err(|_| wrong("it is no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What was said so far, and then the last word on what the kernel holds, whenever that is another.
fn messages(
    first: mpsc::Receiver<pb::FromAgent>,
    acks: watch::Receiver<Option<Ack>>,
    conversation: u64,
) -> impl Stream<Item = pb::FromAgent> + Send + 'static {
    unfold((first, acks), move |(mut first, mut acks)| async move {
        loop {
            tokio::select! {
                biased;
                Some(message) = first.recv() => return Some((message, (first, acks))),
                changed = acks.changed() => {
                    changed.ok()?;
                    let ack = acks.borrow_and_update().clone();
                    let Some(ack) = ack.filter(|ack| ack.conversation == conversation) else { continue };
                    let Ack { version, problems, mode, .. } = ack;
                    let mode = mode.to_wire().into();
                    let what = from_agent::What::Ack(pb::Ack { version, problems, mode });
                    return Some((pb::FromAgent { what: Some(what) }, (first, acks)));
                }
            }
        }
    })
}

/// What is in the parts that were asked for, in as many messages as it takes: one at least.
fn holdings(parts: &Parts, ask: pb::Ask, held: &Items) -> Vec<pb::Holdings> {
    let mut asked = ask.parts;
    asked.sort_unstable();
    let items: Vec<u8> = held
        .iter()
        .filter(|(name, _)| parts.covers(&asked, **name))
        .flat_map(|(name, (digest, _))| [name.to_be_bytes(), digest.to_be_bytes()])
        .flatten()
        .collect();
    let mut all: Vec<pb::Holdings> =
        items.chunks(32 * ITEMS).map(|items| pb::Holdings { items: items.to_vec(), more: true }).collect();
    if all.is_empty() {
        all.push(pb::Holdings::default());
    }
    if let Some(last) = all.last_mut() {
        last.more = false;
    }
    all
}
