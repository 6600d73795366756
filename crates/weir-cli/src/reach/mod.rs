//! Who may reach whom, exactly, without asking about every pair of pods.
//!
//! ```text
//!   two states of a cluster ──> points      the addresses of pods, and of everybody else
//!   (or one state twice)          v
//!                              classes     points of which the evaluator cannot tell one from another: the same
//!                                 │        rulesets, in the same peer sets, before and after
//!                                 v
//!                               rows       from one class to all, and from all to one: traffic before and after
//!                                          (both ends, ports as sets of ranges: cut where rules cut them)
//! ```
//!
//! A ruleset says the same of all peers in none of its sets, so a row is that answer for all, and a look at
//! those that are in one. The evaluator itself is [`weir_compiler::flow`]; tests compare each answer with it.

mod classes;
mod rules;
pub(crate) mod traffic;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use classes::{Reach, Who};

use std::net::IpAddr;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::NodeSlice;

/// A pod in one state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodEnd<'a> {
    pub(crate) key: &'a ObjectKey,
    /// Those that are its own.
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) node: Option<&'a str>,
    pub(crate) host_network: bool,
}

/// A state of a cluster.
#[derive(Debug)]
pub(crate) struct State<'a> {
    /// Sorted by key; those of which something can be said.
    pub(crate) pods: Vec<PodEnd<'a>>,
    /// Has all of them that policies concern.
    pub(crate) slice: &'a NodeSlice,
}

/// Before is 0, after is 1.
pub(crate) type Both<T> = [T; 2];
