//! Behind which interface of this node does a pod's address live?
//!
//! ```text
//!   kernel ──RTM_NEWLINK, RTM_DELROUTE, ...──> wire ──LinkEvent──> LinkTable ──> Attachment
//!             (one socket, events and dumps)                        (pure)
//! ```
//!
//! Every CNI has its own names for interfaces, but all of them must tell the kernel how to reach a
//! pod. So the answer is read from the routes: a host route straight to an interface that leads to
//! nothing else is an interface of the pod's [own](Attachment::Own); anything else that is on-link
//! is [shared](Attachment::Shared); a gateway means that the pod lives on another node.
//!
//! [`LinkTable`] is a state machine without I/O: links and routes come and go in the kernel's order,
//! [`LinkTable::attachments`] answers. [`Watcher`] feeds it from a netlink socket that subscribes
//! before it dumps, and dumps again whenever the kernel may have changed something without saying so.

mod attachment;
mod event;
mod table;
mod watcher;
mod wire;

#[cfg(test)]
mod tests;

pub use attachment::Attachment;
pub use event::{Hop, Link, LinkEvent, Prefix, Route, RouteKind};
pub use table::{AddressAttachment, LinkTable, Outcome};
pub use watcher::{Watcher, WatcherError};
