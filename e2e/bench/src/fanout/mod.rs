//! How long a change takes from one controller to 5,000 agents, and what it costs the controller.
//!
//! ```text
//!   this process: 5,000 simulated agents              child: a controller, all of it but the API server
//!        │ TLS, gRPC: Hello, Have, Ack                     │ hub, outboxes, connections
//!        │<──────────────── changes ───────────────────────│ 100,000 pods
//!        │ stdin: "all", "one N" ─────────────────────────>│ applies an event, says when
//! ```
//!
//! On loopback, with certificates and tokens as in a cluster, but tokens are nodes' names. Agents take in every
//! message and acknowledge every version; they do not keep slices.

mod agents;
mod controller;
mod population;

use anyhow::Result;
use clap::Args;

pub(crate) use agents::agent;
pub(crate) use controller::{NAME, serve};

/// What is simulated.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Fanout {
    /// Agents, each on a node of its own
    #[arg(long, default_value_t = 5000)]
    agents: usize,
    /// Pods, spread over the nodes
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    /// How often each kind of change is made
    #[arg(long, default_value_t = 50)]
    runs: usize,
}

/// Measures, and prints a table and a line of JSON.
pub(crate) fn run(fanout: Fanout) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(agents::run(fanout))
}

/// Descriptors for all connections.
fn enough_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}
