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
//! sent, or given to the [`fake`] kernel. The fixed chains and dispatch maps are in `planner`, the chains
//! of rulesets in `rulesets`, which chooses by [`Costs`], their sets in `peers` and `ports`. Where peer
//! sets are to be kernel ipsets, [`ipset`] turns tables and transactions into those that use them.

mod change;
pub mod fake;
pub mod ipset;
pub mod model;
mod peers;
mod planner;
mod ports;
mod rules;
mod rulesets;
mod text;

pub use change::{difference, differences, rebuilt};
pub use planner::{Attachment, Attachments, Planner, TABLE, TABLES};
pub use rulesets::Costs;
