//! One conversation with one agent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming, async_trait};
use weir_proto::pb::{Ack, FromAgent, Welcome, from_agent, from_controller, slices_server::Slices};
use weir_proto::{DigestKey, PROTOCOL, Parts};

use crate::accept::Connection;
use crate::identity::{Identify, Refused};
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Outgoing};

/// An agent that says nothing for so long when it is its turn is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many items an agent may tell of: 32 MiB.
const MOST_ITEMS: usize = 1 << 20;
/// A conversation ends after this time and up to a quarter more, and its agent shows a new token. Nothing is sent
/// twice for that.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a conversation wants of the hub.
#[derive(Debug)]
pub enum Call {
    /// An agent tells what it holds. The answer is its number.
    Join {
        /// From its token.
        node: String,
        /// Of the agent.
        version: String,
        /// Digests.
        have: Parts,
        /// Where to.
        outbox: Arc<Outbox>,
        /// `None`: not yet.
        number: tokio::sync::oneshot::Sender<usize>,
    },
    /// An agent tells what is in some parts of it.
    Holdings(usize, HashMap<u128, u128>),
    /// An agent's kernel holds a version.
    Ack(usize, Ack),
    /// The agent is away.
    Leave(usize),
    /// The node of the pod with this UID, if it is an agent's.
    NodeOf(String, tokio::sync::oneshot::Sender<Option<String>>),
    /// All conversations are to end.
    End(tokio::sync::oneshot::Sender<()>),
}

/// The service.
#[derive(Clone)]
pub struct Server {
    /// Who knows agents by their tokens.
    pub identify: Arc<dyn Identify>,
    /// The hub.
    pub calls: mpsc::Sender<Call>,
    /// The hub knows all objects.
    pub synced: Arc<AtomicBool>,
    /// Of the digests.
    pub key: DigestKey,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl Slices for Server {
    type FollowStream = Outgoing;

    async fn follow(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Outgoing>, Status> {
        if !self.synced.load(Ordering::Acquire) {
            return Err(Status::unavailable("this controller does not know all objects yet"));
        }
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .ok_or_else(|| self.refuse(&Refused::NoToken))?;
        let node = self.identify.node(token).await.map_err(|refused| self.refuse(&refused))?;
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        if let Some(connection) = &connection {
            connection.is_known();
        }
        let outbox = Arc::new(Outbox::new(self.metrics.bytes.clone()));
        let conversation = Conversation {
            node,
            server: self.clone(),
            outbox: outbox.clone(),
            messages: request.into_inner(),
            connection,
        };
        tokio::spawn(conversation.hold());
        Ok(Response::new(Outgoing(outbox)))
    }
}

impl Server {
    fn refuse(&self, refused: &Refused) -> Status {
        self.metrics.refused(refused.reason());
        tracing::debug!(%refused, "an agent is refused");
        match refused {
            Refused::NoToken | Refused::NotValid(_) => Status::unauthenticated(refused.to_string()),
            Refused::NotAnAgent(_) => Status::permission_denied(refused.to_string()),
            Refused::NotNow(_) => Status::unavailable(refused.to_string()),
        }
    }
}

struct Conversation {
    node: String,
    server: Server,
    outbox: Arc<Outbox>,
    messages: Streaming<FromAgent>,
    connection: Option<Arc<Connection>>,
}

impl Conversation {
    async fn hold(mut self) {
        let mut number = None;
        let status = self.speak(&mut number).await.err().unwrap_or_else(|| Status::ok("goodbye"));
        tracing::debug!(node = %self.node, %status, "an agent's conversation is over");
        self.outbox.end(status);
        if let Some(number) = number {
            // the hub forgets it, and lives as long as this process
            let _ = self.server.calls.send(Call::Leave(number)).await;
        }
        if let Some(connection) = self.connection {
            // time for the last words
            tokio::time::sleep(Duration::from_secs(1)).await;
            connection.close();
        }
    }

    async fn speak(&mut self, joined: &mut Option<usize>) -> Result<(), Status> {
        let from_agent::What::Hello(hello) = self.next().await? else {
            return Err(Status::invalid_argument("the first message is Hello"));
        };
        if hello.protocol == 0 {
            return Err(Status::invalid_argument("Hello tells a protocol, from 1 on"));
        }
        self.outbox.say(from_controller::What::Welcome(Welcome {
            protocol: hello.protocol.min(PROTOCOL),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            digest_key: self.server.key.as_bytes().to_vec(),
        }));
        let from_agent::What::Have(have) = self.next().await? else {
            return Err(Status::invalid_argument("after Welcome comes Have"));
        };
        let have = Parts::from_bytes(&have.parts).ok_or_else(|| {
            Status::invalid_argument("Have: a power of two of 16 bytes, 4096 of them at most")
        })?;
        let (reply, number) = tokio::sync::oneshot::channel();
        let join = Call::Join {
            node: self.node.clone(),
            version: hello.version.chars().take(64).collect(),
            have,
            outbox: self.outbox.clone(),
            number: reply,
        };
        self.call(join).await?;
        let number = number.await.map_err(|_| Status::unavailable("this controller is going away"))?;
        *joined = Some(number);
        tracing::info!(node = %self.node, version = %hello.version, "an agent is here");

        let jitter = LONGEST.mul_f64(f64::from(random() % 1000) / 4000.0);
        let until = tokio::time::sleep_until((Instant::now() + LONGEST + jitter).into());
        tokio::pin!(until);
        let mut held = HashMap::new();
        loop {
            let message = tokio::select! {
                message = self.messages.message() => message?,
                () = &mut until => return Err(Status::unavailable("come again, with a new token")),
            };
            match message.map(|message| message.what) {
                None => return Ok(()),
                Some(Some(from_agent::What::Ack(ack))) => self.call(Call::Ack(number, ack)).await?,
                Some(Some(from_agent::What::Holdings(holdings))) => {
                    let (items, rest) = holdings.items.as_chunks::<32>();
                    if !rest.is_empty() || held.len() + items.len() > MOST_ITEMS {
                        return Err(Status::invalid_argument(
                            "Holdings: 32 bytes an item, a million at most",
                        ));
                    }
                    let number_of = |bytes: &[u8]| u128::from_be_bytes(bytes.try_into().expect("16 of 32"));
                    held.extend(items.iter().map(|item| (number_of(&item[..16]), number_of(&item[16..]))));
                    if !holdings.more {
                        self.call(Call::Holdings(number, std::mem::take(&mut held))).await?;
                    }
                }
                Some(Some(_)) => {
                    return Err(Status::invalid_argument("Hello and Have come once, at the beginning"));
                }
                // of a newer protocol, although it was told which one is spoken
                Some(None) => {}
            }
            if self.outbox.is_ended() {
                return Ok(());
            }
        }
    }

    async fn next(&mut self) -> Result<from_agent::What, Status> {
        let message = timeout(PATIENCE, self.messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no message came"))??;
        message
            .and_then(|message| message.what)
            .ok_or_else(|| Status::invalid_argument("the conversation ended where a message was expected"))
    }

    async fn call(&self, call: Call) -> Result<(), Status> {
        self.server.calls.send(call).await.map_err(|_| Status::unavailable("this controller is going away"))
    }
}

#[allow(clippy::cast_possible_truncation)] // of random bits
fn random() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}
