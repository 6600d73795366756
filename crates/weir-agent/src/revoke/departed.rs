//! Addresses that pods have let go of: nobody takes over the connections that they were an end of.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use weir_nft::conntrack::{Entry, Key};

/// How long after an address has another owner its former connections are held: conntrack's own time for
/// a UDP conversation that nobody goes on with.
pub(super) const HOLD: Duration = Duration::from_secs(120);

/// Entries that are revoked whatever policies say.
///
/// An address that a pod lets go of is noted until the next look, and whatever it is an end of at that look
/// is held: also what the next owner has opened before Weir knew of it, for nothing tells the two apart.
/// What is opened after that look is the next owner's own. As long as nobody of this node owns
/// the address, its entries are held; from then on for [`HOLD`], after which policies alone decide: else two pods
/// that always talk from the same port to the same port could never speak again.
#[derive(Debug, Default)]
pub(super) struct Departed {
    /// Let go of since the last look began.
    leaving: HashSet<IpAddr>,
    /// The same, for the look that is under way.
    looking: HashSet<IpAddr>,
    held: HashMap<(Key, u32), Held>,
    /// Of the held entries' addresses, those that have an owner again, and since when.
    owned: HashMap<IpAddr, Instant>,
}

#[derive(Debug)]
struct Held {
    address: IpAddr,
    /// The look that is under way has met it.
    seen: bool,
}

impl Departed {
    /// A pod lets go of these addresses.
    pub(super) fn leave(&mut self, addresses: Vec<IpAddr>) {
        for address in addresses {
            self.owned.remove(&address);
            self.leaving.insert(address);
        }
    }

    /// Pods have changed: some addresses may have an owner again.
    pub(super) fn owned(&mut self, is_owned: impl Fn(IpAddr) -> bool, now: Instant) {
        let held = self.held.values().map(|held| held.address);
        for address in held.chain(self.leaving.iter().copied()).chain(self.looking.iter().copied()) {
            if is_owned(address) {
                self.owned.entry(address).or_insert(now);
            } else {
                self.owned.remove(&address);
            }
        }
    }

    /// A look begins.
    pub(super) fn begin(&mut self) {
        self.looking.extend(std::mem::take(&mut self.leaving));
        self.held.values_mut().for_each(|held| held.seen = false);
    }

    /// Addresses whose entries the look must see although no pod has them.
    pub(super) fn addresses(&self) -> HashSet<IpAddr> {
        self.held.values().map(|held| held.address).chain(self.looking.iter().copied()).collect()
    }

    /// Whether an entry is held.
    pub(super) fn holds(&mut self, entry: &Entry) -> bool {
        let place = || (entry.key.clone(), entry.id);
        let ends = [entry.orig.source, entry.reply.source];
        if let Some(address) = ends.into_iter().find(|end| self.looking.contains(end)) {
            self.held.insert(place(), Held { address, seen: true });
            return true;
        }
        if self.held.is_empty() {
            return false;
        }
        self.held.get_mut(&place()).map(|held| held.seen = true).is_some()
    }

    /// The look has met all there is.
    pub(super) fn end(&mut self) {
        self.looking.clear();
        self.held.retain(|_, held| held.seen);
        let addresses: HashSet<IpAddr> = self.held.values().map(|held| held.address).collect();
        self.owned.retain(|address, _| addresses.contains(address) || self.leaving.contains(address));
    }

    /// When entries are to be let go of.
    pub(super) fn next(&self) -> Option<Instant> {
        self.owned.values().min().map(|since| *since + HOLD)
    }

    /// Lets go of what was held long enough; whether there was any.
    pub(super) fn release(&mut self, now: Instant) -> bool {
        let over: HashSet<IpAddr> =
            self.owned.iter().filter(|(_, since)| **since + HOLD <= now).map(|(a, _)| *a).collect();
        self.owned.retain(|address, _| !over.contains(address));
        self.held.retain(|_, held| !over.contains(&held.address));
        !over.is_empty()
    }
}
