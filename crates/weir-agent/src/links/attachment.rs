//! The answer: how packets of one address are told from others.

pub use weir_dataplane::Attachment;
