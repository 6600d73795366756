//! What goes from a controller to the agents: one node's slice, as differences.
//!
//! ```text
//!   Change (weir-compiler) ──encode──> Bytes, once for all agents ──gRPC──> decode ──> Received
//!                                                                                        │
//!   slice, as items: (name, digest) ── digest: what does the other end lack? ────────────┘
//! ```
//!
//! `proto/weir.proto` is the protocol and tells its course; [`pb`] is made of it. A slice is a set of
//! *items*: each vertex, policy, profile and pod is one ([`Key`]), and so is each of the 256 parts of a peer
//! set's members. Two ends that meet compare digests of items, so that only what differs is sent.
//! Neither end's logic is here: `weir-controller` decides what to send, `weir-agent` what to do with it.

mod decode;
mod digest;
mod encode;
mod key;
mod mode;
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("weir.v1");
}

pub use decode::{Malformed, Received, decode};
pub use digest::{DigestKey, Item, Items, Parts, member_sums};
pub use encode::{change, forget, gone, members, mode};
pub use key::Key;
pub use mode::{Mode, UnknownMode};

/// The newest protocol that this version speaks.
pub const PROTOCOL: u32 = 1;
/// The audience of the tokens by which agents show who they are.
pub const AUDIENCE: &str = "weir-controller";
/// The longest message that an agent sends, in bytes.
pub const LONGEST_FROM_AGENT: usize = 1 << 20;
/// The longest message that a controller sends, in bytes: one policy or profile may be long, and is not cut up.
pub const LONGEST_FROM_CONTROLLER: usize = 64 << 20;
