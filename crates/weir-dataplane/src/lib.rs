//! Turns the slice of a node into nftables tables, and two states of them into one transaction.
//!
//! ```text
//!   NodeSlice changes ──┐
//!   attachments ────────┴─> Planner ──> Table (the plan) ──────────> text (nft -f)
//!                              │            │
//!                              │            ├─> difference ──> Transaction ──> weir-nft ──> kernel
//!                              │   dump ────┘                      ^
//!                              └─> take: what changed ─────────────┘
//! ```
//!
//! Pure: no Kubernetes, no netlink, no clock. A [`model::Table`] is both what should be in the
//! kernel and what is read back from it, a [`model::Transaction`] is a value that can be printed,
//! sent, or given to the [`fake`] kernel. What becomes of which part of the rule graph is in
//! `rulesets`, the fixed chains and dispatch maps are in `planner`.

mod change;
pub mod fake;
pub mod model;
mod planner;
mod rules;
mod rulesets;
mod text;

pub use change::difference;
pub use planner::{Attachment, Attachments, Options, Planner, TABLE};
