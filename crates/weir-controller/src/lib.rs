//! Compiles the policies of a cluster once, and serves each node its part.
//!
//! ```text
//!   API server ──watches──> weir-source ──events──> hub: Compiler ──deltas──> encoder ──> one Pending per agent
//!                                           (drive)    ^                                    │ outbox: when it
//!                                                      │ Have, Holdings, Ack                v can take more
//!   agents ──TLS──> accept ──gRPC──> serve ────────────┴──────────<──────────────── conversation
//!                     ^                └─ identity: TokenReview: which node's agent is it?
//!                     └─ tls <── authority (Secret, ConfigMap), or mounted files
//!   ConfigMap weir-mode ──watch──> mode ──> hub     enforce, off, withdrawn: for all agents alike
//!   hub, mode ──events──> Kubernetes Events, which `kubectl get events` shows
//!   hub ──status──> ConfigMap, which `weir status` reads, and withdraw: has every agent withdrawn?
//! ```
//!
//! Controllers keep nothing: the API server is the database, any number of them run at once, and any of them
//! serves any agent. An agent says in digests what it holds ([`weir_proto`]), so that it may come to another
//! controller, or come back, and is sent only what differs. What is slow is the connection's matter: an
//! [`outbox`] is asked for more when its agent can take it, and until then holds one update per thing
//! ([`pending`]). The [`hub`] is synchronous and has a thread of its own.
//!
//! # Limits
//! Connections that have not shown who they are: 2,048, of one address 64; the oldest goes. Conversations of one
//! node: 3. A conversation lasts an hour and a quarter at most; then its agent shows a new token.

pub mod accept;
pub mod authority;
pub mod drive;
pub mod encoder;
pub mod events;
pub mod hub;
pub mod identity;
pub mod metrics;
pub mod mode;
pub mod outbox;
pub mod pending;
pub mod run;
pub mod serve;
pub mod status;
pub mod store;
pub mod tls;
pub mod withdraw;
