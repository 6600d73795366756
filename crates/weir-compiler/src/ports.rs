//! Sets of ports.

use crate::object::Protocol;
use crate::ranges::RangeSet;

/// The traffic that a rule's ports let match.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortSet {
    /// All traffic, of protocols without ports too: a rule without `ports` (N14).
    Any,
    /// Destination ports by protocol, in the order of [`Protocol::ALL`].
    Ports([RangeSet<u16>; 3]),
}

impl PortSet {
    /// A set of (protocol, first, last).
    pub fn from_ranges(ranges: impl IntoIterator<Item = (Protocol, u16, u16)>) -> Self {
        let mut by_protocol: [Vec<(u16, u16)>; 3] = Default::default();
        for (protocol, first, last) in ranges {
            by_protocol[protocol as usize].push((first, last));
        }
        PortSet::Ports(by_protocol.map(RangeSet::from_ranges))
    }

    /// Whether nothing matches.
    pub fn is_empty(&self) -> bool {
        match self {
            PortSet::Any => false,
            PortSet::Ports(sets) => sets.iter().all(RangeSet::is_empty),
        }
    }

    /// Whether traffic of this kind matches.
    pub fn contains(&self, l4: L4) -> bool {
        match (self, l4) {
            (PortSet::Any, _) => true,
            (PortSet::Ports(sets), L4::Port(protocol, port)) => sets[protocol as usize].contains(port),
            (PortSet::Ports(_), L4::Other(_)) => false, // U1
        }
    }
}

/// What a packet is above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum L4 {
    /// A protocol with ports, and the destination port (N52).
    Port(Protocol, u16),
    /// Another protocol, by its IANA number.
    Other(u8),
}
