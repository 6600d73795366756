//! Tells whether a program is alive and ready, and its metrics, over HTTP; and its log ([`Log`]).
//!
//! ```text
//!   program ──beat, ready, not_ready──> Health ──┐          GET /healthz  200, or 503: it hangs
//!   program ──counts──────────────────> Registry ┴─ serve ─ GET /readyz   200 and notes, or 503 with the reasons
//!                                                           GET /metrics  text for Prometheus
//! ```
//!
//! [`Health`] is a handle that is cloned freely. [`serve`] is bounded against clients that are slow, many or
//! wrong: see [`CONNECTIONS`], [`LONGEST`] and [`HEADERS`]. Nothing that it tells is secret, and nothing can be
//! changed through it.

mod log;
mod server;
mod state;

pub use log::Log;
pub use server::{CONNECTIONS, HEADERS, LONGEST, serve, serve_in_thread};
pub use state::Health;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Adds `PREFIX_build_info`, which says the version of a program.
pub fn build_info(registry: &mut Registry, prefix: &str, version: &'static str) {
    let labels = vec![("version", version)];
    registry.register(
        format!("{prefix}_build"),
        "The version of this program, as a label",
        Info::new(labels),
    );
}
