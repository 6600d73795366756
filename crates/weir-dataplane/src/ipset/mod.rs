//! Peer sets as kernel ipsets: the same plan, translated.
//!
//! ```text
//!   table inet weir                             table ip weir, table ip6 weir
//!     chains, maps, port sets  ── split ──────>   the same, what is of the other family left out
//!     pods_ID_4, cidrs_ID_4, ... ── sets ─────>   ipset weir_p4_IDa, weir_c4_IDa, ...
//!       ip saddr @pods_ID_4                         xt match "set" weir_p4_IDa src
//!
//!   transactions ── steps ──> changes of ipsets, transactions in stages, changes of ipsets
//! ```
//!
//! The `set` match exists in families ip and ip6 only, so there are two tables in the place of one.
//! The translation knows nothing of policies: of names, only those of peer sets (`sets`); of rules, those
//! that look into one; everything else it copies into the families that it can be in (`split`).
//!
//! An ipset does not commit together with a table, and each element is a step of its own. `steps` orders
//! them so that no state on the way passes what the old and the new one both deny, or drops what both
//! allow; how is told there. `delta` finds what a change is about.

mod delta;
mod model;
mod sets;
mod split;
mod steps;

pub use model::{Element, Ipset, IpsetDecl, IpsetKind, IpsetOp};
pub use sets::is_ours;
pub use steps::{Ipsets, Steps};
