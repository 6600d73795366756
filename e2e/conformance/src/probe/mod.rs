//! Packets: one question from inside a pod, and what came of it.
//!
//! ```text
//!   suite ──API server──kubelet──> loopback of the client's pod: agnhost netexec  /dial
//!                                        │ TCP, UDP or SCTP, as any program in that pod would
//!                                        v
//!                                  the address asked: "hostname?" ──> who answers
//! ```
//!
//! The way in is the API's port forwarding (`forward.rs`), which ends at the pod's own loopback, so that no policy
//! has a say in it; one connection serves many questions. Or each question is `agnhost connect`, executed in
//! the pod (`exec.rs`): the way that upstream's tests take. It starts a process for each question (some 0.3 s
//! of a processor) and does not tell who answered. Both are tried against each other in a case of their own.

mod exec;
mod forward;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use weir_compiler::object::Protocol;

use crate::api::Api;
use crate::world::Port;

/// How questions get into pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Over forwarded ports, to agnhost in the pod.
    Forward,
    /// `agnhost connect`, executed in the pod.
    Exec,
}

/// After so long without an answer agnhost gives up: then, and only then, nobody answered. A shorter wait here
/// would take a busy machine for a denial.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long the way into the pod and back may take besides.
const TRANSPORT: Duration = Duration::from_secs(30);

/// Where a question is sent from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Client {
    /// The API's name of the namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Where agnhost listens in it.
    pub port: u16,
}

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// From here,
    pub client: Client,
    /// to this address
    pub address: IpAddr,
    /// and port.
    pub port: Port,
    /// What is asked; `hostname`, or `clientip`.
    pub ask: &'static str,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Somebody answered this.
    Said(String),
    /// A connection came about; who answered is not known.
    Connected,
    /// Nobody answered in time.
    Silence,
    /// The connection was refused.
    Refused,
    /// The network said something else: no route, and the like.
    Network(String),
    /// It could not be asked.
    Unasked(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Said(name) => write!(f, "answered by {name:?}"),
            Answer::Connected => f.write_str("connected"),
            Answer::Silence => f.write_str("no answer"),
            Answer::Refused => f.write_str("refused"),
            Answer::Network(what) => write!(f, "network error: {what}"),
            Answer::Unasked(why) => write!(f, "could not be asked: {why}"),
        }
    }
}

impl Answer {
    /// Whether it is what ought to come: of who ought to answer, or of nobody. A refusal is a denial that is
    /// told; NetworkPolicy leaves it to engines (U10).
    pub fn is_right(&self, allowed: bool, hostname: &str) -> bool {
        match self {
            Answer::Said(name) => allowed && name == hostname,
            Answer::Connected => allowed,
            Answer::Silence | Answer::Refused | Answer::Network(_) => !allowed,
            Answer::Unasked(_) => false,
        }
    }

    /// Whether packets went both ways.
    pub fn passed(&self) -> bool {
        matches!(self, Answer::Said(_) | Answer::Connected)
    }
}

/// Asks questions.
pub struct Prober {
    way: Way,
    forward: forward::Forward,
    exec: exec::Exec,
}

impl Prober {
    /// One for a run.
    pub fn new(api: &Api, way: Way) -> Prober {
        Prober {
            way,
            forward: forward::Forward::new(api.client().clone()),
            exec: exec::Exec::new(api.client().clone()),
        }
    }

    /// Asks, and waits for what comes of it.
    pub async fn ask(&self, question: &Question) -> Answer {
        match self.way {
            Way::Forward => self.forward.ask(question).await,
            Way::Exec => self.exec.ask(question).await,
        }
    }

    /// Asks in the other of the two ways.
    pub async fn ask_otherwise(&self, question: &Question) -> Answer {
        match self.way {
            Way::Forward => self.exec.ask(question).await,
            Way::Exec => self.forward.ask(question).await,
        }
    }

    /// The name that a pod's servers answer with, asked on its loopback.
    ///
    /// # Errors
    /// The pod cannot be asked.
    pub async fn hostname(&self, client: &Client) -> Result<String, String> {
        self.forward
            .get(client, "/hostname", TRANSPORT)
            .await?
            .ok_or_else(|| "no answer from its loopback".into())
    }

    /// Forgets connections to a pod that is gone.
    pub fn forget(&self, client: &Client) {
        self.forward.forget(client);
    }
}

/// What agnhost calls a protocol.
fn dial_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "http",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
