//! What policies say of a connection that exists.

use std::collections::HashMap;
use std::net::IpAddr;

use weir_compiler::object::{ObjectKey, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_nft::conntrack::{Entry, Layer4, Tuple};

/// Answers that were given already: connections have addresses and destination ports in common.
pub type Known = HashMap<(IpAddr, Direction, IpAddr, L4), bool>;

/// Judges entries as the chains would judge a new connection: by the addresses that `forward` sees, after
/// translation of the destination and before that of the source.
pub struct Judge<'a> {
    /// What the kernel enforces.
    pub slice: &'a NodeSlice,
    /// Whose each address of the slice's pods is.
    pub owners: &'a HashMap<IpAddr, ObjectKey>,
    /// The node's own addresses.
    pub is_local: &'a dyn Fn(IpAddr) -> bool,
    /// A pod reaches its own node whatever its policies say (U6).
    pub pod_to_own_node: bool,
    /// Answers of this slice.
    pub known: &'a mut Known,
}

impl Judge<'_> {
    /// Whether policies let it pass. A connection that was announced in another (by way of a conntrack
    /// helper) passes the chains as *related*, whatever its ports are: it is judged as the other (N93).
    pub fn allows(&mut self, entry: &Entry) -> bool {
        match &entry.master {
            // of another family or address translated: as far as its own tuple tells
            Some(master) => self.passes(master.source, master.destination, port_of(&master.reversed())),
            None => self.passes(entry.orig.source, entry.reply.source, port_of(&entry.reply)),
        }
    }

    /// A pod to itself, through a Service as well, is a matter of the evaluator's (N73, U3).
    fn passes(&mut self, source: IpAddr, destination: IpAddr, l4: L4) -> bool {
        let (from, to) = (self.owners.get(&source), self.owners.get(&destination));
        let egress = match from {
            Some(_) if self.pod_to_own_node && (self.is_local)(destination) => true,
            Some(pod) => self.end(pod, Direction::Egress, source, destination, l4),
            None => true,
        };
        let ingress = || match to {
            Some(_) if (self.is_local)(source) => None, // N71
            to => to,
        };
        egress && ingress().is_none_or(|pod| self.end(pod, Direction::Ingress, destination, source, l4))
    }

    fn end(&mut self, pod: &ObjectKey, direction: Direction, own: IpAddr, peer: IpAddr, l4: L4) -> bool {
        let ask = || self.slice.allows(pod, direction, peer, l4);
        *self.known.entry((own, direction, peer, l4)).or_insert_with(ask)
    }
}

/// The destination's port, from the direction of the replies.
fn port_of(reply: &Tuple) -> L4 {
    let protocol = Protocol::ALL.into_iter().find(|p| p.number() == reply.protocol);
    match (protocol, reply.layer4) {
        (Some(protocol), Layer4::Ports { source, .. }) => L4::Port(protocol, source),
        _ => L4::Other(reply.protocol), // U1
    }
}
