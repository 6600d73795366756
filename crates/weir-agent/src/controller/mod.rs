//! The agent as a client of controllers.

pub mod receive;
