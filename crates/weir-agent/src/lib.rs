//! Keeps the kernel of one node equal to the policies of its pods.
//!
//! ```text
//!   weir-source ──events──> Compiler ──changes of the slice──> Planner ──transaction──> kernel
//!                                                                 ^                       │
//!   links (routes, interfaces) ──────────attachments──────────────┘   differs from plan? <┘
//! ```
//!
//! Or, in the place of source and compiler, a controller ([`controller`]), whose last slice is kept on disk
//! ([`state`]).
//!
//! One thread, one loop ([`run`]): whatever came in since the last turn becomes one transaction. The
//! kernel is the only truth ([`kernel`]): at the start, after an error, and when somebody else has
//! changed the ruleset, the table is read back, compared with the plan, and only what differs is
//! changed; peer sets are named sets or ipsets ([`backend`]). What the kernel refuses closes the policies
//! that it belongs to, and no others ([`enforce`]). Rules stay when the agent ends; [`kernel::cleanup`]
//! removes them. What another engine has left, [`npm`] takes out.

mod agent;
pub mod backend;
mod bare;
pub mod bridge;
pub mod bypass;
pub mod controller;
pub mod denials;
pub mod enforce;
pub mod engines;
pub mod host;
mod inflow;
pub mod isolation;
pub mod kernel;
pub mod links;
pub mod metrics;
pub mod needs;
pub mod npm;
pub mod ports;
pub mod revoke;
pub mod run;
pub mod state;
