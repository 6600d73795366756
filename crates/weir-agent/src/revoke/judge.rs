//! What policies say of a connection that exists.

use std::collections::HashMap;
use std::net::IpAddr;

use weir_compiler::object::Protocol;
use weir_compiler::ports::L4;
use weir_compiler::slice::{NodeSlice, RulesetId};
use weir_nft::conntrack::{Entry, Layer4, Tuple};

/// What was found out about a slice. Connections have addresses and destination ports in common, and pods
/// rulesets; it is of no use any more when the slice has changed.
#[derive(Debug, Default)]
pub struct Known {
    ends: HashMap<IpAddr, End>,
    answers: HashMap<(RulesetId, IpAddr, L4), bool>,
}

/// A pod of the slice, and what decides about it.
#[derive(Debug, Clone, Copy)]
struct End {
    pod: usize,
    ingress: Option<RulesetId>,
    egress: Option<RulesetId>,
}

/// Judges entries as the chains would judge a new connection: by the addresses that `forward` sees, after
/// translation of the destination and before that of the source.
pub struct Judge<'a> {
    slice: &'a NodeSlice,
    /// The node's own addresses.
    is_local: &'a dyn Fn(IpAddr) -> bool,
    /// A pod reaches its own node whatever its policies say (U6).
    pod_to_own_node: bool,
    known: &'a mut Known,
}

impl<'a> Judge<'a> {
    /// `known` is empty, or was filled with the same slice. `is_local` knows the node's own addresses;
    /// `pod_to_own_node`: a pod reaches them whatever its policies say (U6).
    pub fn new(
        slice: &'a NodeSlice,
        is_local: &'a dyn Fn(IpAddr) -> bool,
        pod_to_own_node: bool,
        known: &'a mut Known,
    ) -> Self {
        if known.ends.is_empty() {
            for (pod, state) in slice.pods.values().enumerate() {
                let profile = &slice.profiles[&state.profile];
                let end = End { pod, ingress: profile.ingress, egress: profile.egress };
                known.ends.extend(state.addresses.iter().map(|address| (*address, end)));
            }
        }
        Judge { slice, is_local, pod_to_own_node, known }
    }

    /// Whether policies let it pass. A connection that was announced in another (by way of a conntrack
    /// helper) passes the chains as *related*, whatever its ports are: it is judged as the other (N93).
    pub fn allows(&mut self, entry: &Entry) -> bool {
        match &entry.master {
            // of another family or address translated: as far as its own tuple tells
            Some(master) => self.passes(master.source, master.destination, port_of(&master.reversed())),
            None => self.passes(entry.orig.source, entry.reply.source, port_of(&entry.reply)),
        }
    }

    fn passes(&mut self, source: IpAddr, destination: IpAddr, l4: L4) -> bool {
        let (from, to) = (self.known.ends.get(&source).copied(), self.known.ends.get(&destination).copied());
        // a pod to itself, through a Service as well (N73, U3)
        if let (Some(from), Some(to)) = (from, to)
            && from.pod == to.pod
        {
            return true;
        }
        let mut egress = from.and_then(|end| end.egress);
        if egress.is_some() && self.pod_to_own_node && (self.is_local)(destination) {
            egress = None;
        }
        let mut ingress = to.and_then(|end| end.ingress);
        if ingress.is_some() && (self.is_local)(source) {
            ingress = None; // N71
        }
        self.accepts(egress, destination, l4) && self.accepts(ingress, source, l4)
    }

    /// `None`: not isolated (N1).
    fn accepts(&mut self, ruleset: Option<RulesetId>, peer: IpAddr, l4: L4) -> bool {
        let Some(ruleset) = ruleset else { return true };
        let ask = || self.slice.accepts(ruleset, peer, l4);
        *self.known.answers.entry((ruleset, peer, l4)).or_insert_with(ask)
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
