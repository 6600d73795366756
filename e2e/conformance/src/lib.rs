//! Tries any cluster's policy engine against what NetworkPolicy says, through the Kubernetes API alone.
//!
//! ```text
//!   cases ──> actions ──────────────> API server ──> whatever enforces policies there
//!     │       (policies, labels)         │ objects as they are now
//!     │                                  v
//!     └─────> questions            judge: Weir's evaluator ──> what has to come, and why
//!               │ who asks whom                                       │
//!               v                                                     v
//!             probe: agnhost in pods ──> answers ──────────────> compared ──> report
//! ```
//!
//! - [`world`]: three namespaces with six pods; cases follow one another in it, several worlds side by side;
//! - [`case`]: what a case consists of; [`netpol`] has those of the profile of that name;
//! - [`live`]: a world in a cluster; [`probe`]: packets; [`judge`]: expectations;

//! - [`services`], [`kubelet`], [`churn`], [`restart`]: the other profiles; [`steady`]: questions without a pause;
//! - [`statements`]: which statements of docs/semantics.md are tried, and why others cannot be;
//! - [`report`]: text, JUnit, JSON; [`run`]: from start to clean-up.
//!
//! Nothing here knows of Weir's agent, of nftables or of nodes' insides: what is seen is seen from pods.

pub mod api;
pub mod case;
pub mod churn;
pub mod judge;
pub mod kubelet;
pub mod live;
pub mod netpol;
pub mod probe;
pub mod report;
pub mod restart;
pub mod run;
pub mod services;
pub mod statements;
pub mod steady;
pub mod world;
