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
//! of rulesets in `rulesets`, which chooses by [`Costs`], their sets in `peers` and `ports`. What keeps
//! pods from using addresses that are not theirs is in `guard` and, for pods of a bridge, in `bridge`. Where
//! peer sets are to be kernel ipsets, [`ipset`] turns tables and transactions into those that use them.

mod bridge;
mod change;
pub mod fake;
mod guard;
pub mod ipset;
pub mod model;
mod peers;
mod planner;
mod ports;
mod rules;
mod rulesets;
mod stages;
mod text;
mod told;

pub use bridge::{Port, Ports};
pub use change::{difference, differences, rebuilt};
pub use planner::{Attachment, Attachments, DenialLog, Planner, Settings, TABLE, TABLES};
pub use rulesets::{Costs, drops_mid_stream};
pub use stages::stages;
