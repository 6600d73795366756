//! What the kernel says of links and routes, cut down to what attachments depend on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `RT_TABLE_MAIN`
pub(super) const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`
pub(super) const TABLE_LOCAL: u32 = 255;

/// One change, in the order in which the kernel makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// A link was added or changed.
    Link(Link),
    /// The link of this index is gone; its IPv4 routes went with it, unannounced.
    LinkGone {
        /// Interface index.
        index: u32,
    },
    /// A route was added.
    Route {
        /// The route.
        route: Route,
        /// It took the place of one with the same destination, table and metric (`NLM_F_REPLACE`),
        /// for which there is no event of its own.
        replace: bool,
    },
    /// A route was removed.
    RouteGone(Route),
    /// An IPv4 address of the node was removed. Routes with this source, and all routes of the
    /// interface if it was its last address, go with it, unannounced.
    AddressGone {
        /// Interface index.
        index: u32,
        /// The address.
        address: Ipv4Addr,
    },
}

/// An interface of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index: what identifies it. Names change, and come back with another index.
    pub index: u32,
    /// Name, as nftables' `iifname` shows it.
    pub name: String,
    /// `IFLA_INFO_KIND`, such as `veth` or `bridge`; hardware has none.
    pub kind: Option<String>,
    /// `IFF_UP`: whether the administrator wants it up, not whether it has a carrier.
    pub up: bool,
    /// `IFF_LOOPBACK`
    pub loopback: bool,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// Index of the interface that it is stacked on (VLAN, macvlan, ipvlan and the like).
    pub below: Option<u32>,
    /// What it is linked to (a veth's other end) is in another network namespace.
    pub elsewhere: bool,
}

impl Link {
    /// A veth or netkit that leads to another network namespace.
    pub fn is_pod_like(&self) -> bool {
        self.elsewhere && self.kind.as_deref().is_some_and(|kind| ["veth", "netkit"].contains(&kind))
    }
}

/// A destination: one address, or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    v6: bool,
    length: u8,
    bits: u128,
}

impl Prefix {
    /// The network of `length` bits that `address` is in. A length beyond the family's is cut to it.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let (v6, width, bits) = match address {
            IpAddr::V4(a) => (false, 32, u128::from(a.to_bits())),
            IpAddr::V6(a) => (true, 128, a.to_bits()),
        };
        let length = length.min(width);
        let host_bits = u32::from(width - length);
        let bits = bits.checked_shr(host_bits).map_or(0, |b| b.checked_shl(host_bits).unwrap_or(0));
        Prefix { v6, length, bits }
    }

    /// Whether it is IPv6.
    pub fn is_v6(self) -> bool {
        self.v6
    }

    /// Number of bits that are fixed.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether it is a single address (/32 or /128).
    pub fn is_host(self) -> bool {
        self.length == if self.v6 { 128 } else { 32 }
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(self.bits))
        } else {
            // An IPv4 prefix is only ever built from 32 bits.
            IpAddr::V4(Ipv4Addr::from_bits(self.bits as u32))
        }
    }
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Keeps it: the address is the node's own.
    Local,
    /// Drops or refuses it (blackhole, unreachable, prohibit), or leaves the table (throw). It hides
    /// shorter prefixes, which is why it is kept at all.
    Blocked,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Interface index.
    pub link: u32,
    /// Through a router, whatever its address and family.
    pub gateway: bool,
}

/// A route of any table, without source prefix or type of service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination.
    pub prefix: Prefix,
    /// Routing table; 254 is main, 255 local.
    pub table: u32,
    /// Priority: the smallest wins.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Where it leads: several if it is multipath, none if it needs no interface.
    pub hops: Vec<Hop>,
    /// The kernel drops it without a word when its link goes down. So it does with all of IPv4 but scope
    /// host, which the node's own addresses have and the routes of the CNI plugin ptp: those stay, and
    /// are in use again when the link is up. Of IPv6 it announces every end.
    pub ends_silently: bool,
    /// The preferred source address (`src`).
    pub source: Option<IpAddr>,
}

impl Route {
    /// Whether both are for the same packets and of the same rank.
    pub(super) fn same_place(&self, other: &Route) -> bool {
        self.prefix == other.prefix && self.table == other.table && self.metric == other.metric
    }
}
