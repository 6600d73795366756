//! Where Kubernetes objects come from.
//!
//! ```text
//!   folder of manifests                         API server
//!     │ files                                     │ watches of three kinds
//!     │ yaml: text -> Tree (with lines)           │ lean: only the fields in use
//!     v                                           v
//!   convert: Tree -> Event ............... convert: lean -> Event
//!     │ what is wrong: Problem                    │ what is wrong: Problem
//!     v                                           v
//!   manifests::store                          sync::Differ
//!     which file's object is in force,          what a list no longer has,
//!     what differs from before                  what differs from before
//!     └──────────────────┬────────────────────────┘
//!                        v
//!         Update::Batch { events, synced }, Update::Problem
//! ```
//!
//! * [`manifests::read`] reads files once, `manifests::watch` follows a folder (feature `watch`).
//! * [`cluster::watch`] follows an API server (feature `cluster`).
//! * [`inventory::read`] and `inventory::live::read` read once, and more: workloads, Services, nodes.
//!
//! Both speak only of real differences: an object that is new, that changed in a field which
//! matters to policy, or that is gone. Neither keeps objects: a key and a digest of each are
//! enough to tell what is different.
//!
//! # Nothing is lost
//! A file that cannot be read or parsed, a list that breaks off, a server that is away: what was
//! known before stays in force, and a [`Problem`] says so. A NetworkPolicy of which the spec cannot be
//! understood is not left out: it closes the pods that it selects (see [`convert`]).

pub mod annotations;
pub mod backoff;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod convert;
mod id;
pub mod inventory;
#[cfg(feature = "cluster")]
pub mod logs;
pub mod manifests;
mod problem;
pub mod status;
#[cfg(feature = "cluster")]
pub mod sync;
mod time;
pub mod tree;

pub use id::{Id, Kind};
pub use problem::{Place, Problem};
pub use weir_compiler::object::Event;

/// What a source sends.
#[derive(Debug)]
pub enum Update {
    /// Differences to all batches before. Each object is in it once at most.
    Batch {
        /// What is new, changed or gone.
        events: Vec<Event>,
        /// The first complete set of objects has been delivered, with this batch at the latest.
        synced: bool,
    },
    /// Something is wrong with the objects or with the way to them; the source goes on.
    Problem(Problem),
}
