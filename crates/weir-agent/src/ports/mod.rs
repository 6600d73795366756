//! Behind which port of its bridge is a pod?
//!
//! ```text
//!   links: ports of bridges ──┐
//!   slice: pods' addresses ───┼─> Book ──> Ports ──> Planner (table bridge weir)
//!   CNI plugins' results ─────┤    remembers who was where first
//!   kernel: what the port's ──┘
//!     other end has (Query)
//! ```
//!
//! Neither the bridge's table of MAC addresses nor the node's neighbours are asked: any pod of the
//! bridge can write there. A veth names its other end, and the kernel tells which addresses that has
//! in the pod's network namespace, without entering it: CAP_NET_ADMIN over the namespace is enough, and
//! no path to it is needed.
//!
//! A pod that may configure its interface can give it another pod's address. So the [`Book`] asks
//! once, when the pod appears, and a port that is a pod's is nobody else's as long as it lives.

mod book;
pub mod cni;
mod query;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weir_compiler::object::ObjectKey;
use weir_dataplane::{Attachment, Attachments, Ports};

use crate::links::LinkTable;
pub use book::{Alive, Book, Found, Place};
pub use cni::Told;
pub use query::{Query, Seen};

/// First look again, when a pod has no port yet: addresses of pods come without an announcement.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(10);
/// A pod that has no port for as long is worth a line.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// Finds the ports of a node's pods.
pub struct Finder {
    /// The folder of the container runtime.
    cni_results: PathBuf,
    query: Query,
    book: Book,
    retry: Option<Duration>,
    next: Instant,
    /// Since when pods have no port, and whether that has been said.
    missing: BTreeMap<ObjectKey, (Instant, bool)>,
    disputed: BTreeSet<ObjectKey>,
}

impl Finder {
    /// Opens a netlink socket. The folder is where the container runtime keeps what CNI plugins told it.
    ///
    /// # Errors
    /// The kernel has no rtnetlink, or does not let this process use it.
    pub fn new(cni_results: PathBuf) -> std::io::Result<Self> {
        Ok(Finder {
            cni_results,
            query: Query::open()?,
            book: Book::default(),
            retry: None,
            next: Instant::now(),
            missing: BTreeMap::new(),
            disputed: BTreeSet::new(),
        })
    }

    /// The ports of these pods, as far as they are known now. With `close`, what looks like a pod's
    /// and is none of these is unknown: ports of their bridges, and interfaces of their own.
    pub fn find<'a>(
        &mut self,
        pods: impl Iterator<Item = (&'a ObjectKey, &'a [IpAddr])>,
        attachments: &Attachments,
        links: &LinkTable,
        close: bool,
    ) -> Ports {
        let mut places = BTreeMap::new();
        let mut alive = BTreeMap::new();
        // name, and whether it is a bridge
        let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
        for (key, addresses) in pods {
            let mut bridges = BTreeSet::new();
            for address in addresses {
                let Some(Attachment::Shared(name)) = attachments.get(address) else { continue };
                let is_bridge = *seen.entry(name).or_insert_with(|| {
                    let ports = links.bridge_ports(name);
                    alive.extend(ports.iter().flatten().map(|link| {
                        let (port, pod_like) = (link.name.clone(), link.is_pod_like());
                        (link.index, Alive { name: port, bridge: name.clone(), pod_like })
                    }));
                    ports.is_some()
                });
                if is_bridge {
                    bridges.insert(name.clone());
                }
            }
            if !bridges.is_empty() {
                places.insert(key.clone(), Place { addresses: addresses.to_vec(), bridges });
            }
        }
        let (query, folder) = (&mut self.query, &self.cni_results);
        let found = self.book.update(
            &places,
            &alive,
            || cni::read(folder),
            |index| match query.port(index) {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(index, %error, "a port's other end could not be asked");
                    None
                }
            },
        );
        self.report(&found);
        let mut ports = Ports { pods: found.pods, ..Ports::default() };
        if close {
            ports.unknown = found.unknown;
            let known: BTreeSet<&str> = attachments.values().map(Attachment::interface).collect();
            ports.unknown_own = links.pod_like();
            ports.unknown_own.retain(|interface| !known.contains(interface.as_str()));
        }
        ports
    }

    /// When to look again, if a pod has no port.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry.map(|_| self.next.saturating_duration_since(Instant::now()))
    }

    fn report(&mut self, found: &Found) {
        for (pod, ports) in found.disputed.iter().filter(|(pod, _)| !self.disputed.contains(*pod)) {
            tracing::warn!(
                "the addresses of pod {pod} are at several ports of its bridge ({}): one of these pods has taken \
                 them; none of them is guarded, and {pod} is known by its addresses alone",
                ports.join(", ")
            );
        }
        self.disputed = found.disputed.keys().cloned().collect();
        let new = found.missing.iter().any(|pod| !self.missing.contains_key(pod));
        self.missing.retain(|pod, _| found.missing.contains(pod));
        for pod in &found.missing {
            let (since, said) = self.missing.entry(pod.clone()).or_insert_with(|| (Instant::now(), false));
            if since.elapsed() >= SAY_AFTER && !std::mem::replace(said, true) {
                tracing::warn!(
                    "the port of pod {pod} was not found: no interface of its bridge has a veth's other end with \
                     the pod's addresses; its frames are not guarded, and it is known by its addresses alone"
                );
            }
        }
        let doubled = |retry: Duration| (retry * 2).min(RETRY_MOST);
        self.retry = match self.retry {
            _ if found.missing.is_empty() && found.disputed.is_empty() => None,
            Some(retry) if !new => Some(doubled(retry)),
            _ => Some(RETRY),
        };
        self.next = Instant::now() + self.retry.unwrap_or_default();
    }
}
