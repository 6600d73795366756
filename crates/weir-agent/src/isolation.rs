//! After a reboot: who has which address is not known, until somebody says so.
//!
//! A slice from the disk names addresses that its pods had before. The pods that are there now have others, or
//! each other's. So all that looks like a pod, by the same signs as an unknown one (U11), is closed: nothing is
//! forwarded from or to it. Its own node reaches it, and is reached, so that probes of the kubelet pass: what is
//! behind a bridge is closed as a whole, and not port by port.

use std::time::Duration;

use tokio::time::Instant;
use weir_dataplane::{Attachment, Attachments, Ports};

use crate::links::{Link, LinkTable};

/// Whether pods are isolated, and until when.
#[derive(Debug, Default)]
pub struct Isolation {
    until: Option<Instant>,
}

impl Isolation {
    /// From now on, for this time at most.
    pub fn begin(&mut self, time: Duration) {
        self.until = Some(Instant::now() + time);
    }

    /// Whether it was on.
    pub fn end(&mut self) -> bool {
        self.until.take().is_some()
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// When it ends by itself.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// If it is on: adds all that looks like a pod, known or not, to what is closed.
    pub fn add_to(&self, ports: &mut Ports, attachments: &Attachments, links: &LinkTable) {
        if !self.is_on() {
            return;
        }
        // none of them can be trusted to be whose it was
        ports.pods.clear();
        ports.unknown_own = links.pod_like();
        let bridges = attachments.values().map(Attachment::interface).filter(|name| {
            links.bridge_ports(name).is_some_and(|all| all.into_iter().any(Link::is_pod_like))
        });
        ports.unknown_own.extend(bridges.map(str::to_owned));
    }
}
