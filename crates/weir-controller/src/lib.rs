//! x
pub mod accept;
pub mod authority;
pub mod drive;
pub mod encoder;
pub mod hub;
pub mod identity;
pub mod metrics;
pub mod outbox;
pub mod pending;
pub mod run;
pub mod serve;
pub mod store;
pub mod tls;
