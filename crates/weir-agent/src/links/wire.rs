//! rtnetlink's bytes -> [`LinkEvent`], and dump requests -> bytes.
//!
//! Framing and attributes are netlink-packet-core's. Of a message only the attributes in use are
//! read: one that a newer kernel writes differently must not cost the message that it is in, for
//! a lost event is a pod without its policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NlaBuffer, NlasIterator, parse_string, parse_u32};

use super::event::{Hop, Link, LinkEvent, Prefix, Route, RouteKind, TABLE_LOCAL};

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_F_CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BLACKHOLE: u8 = 6;
const RTN_UNREACHABLE: u8 = 7;
const RTN_PROHIBIT: u8 = 8;
const RTN_THROW: u8 = 9;

// linux/if_link.h, linux/if_addr.h, linux/if.h
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Kinds whose `IFLA_LINK` is what they are stacked on. A veth's is its peer.
const STACKED: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"];

/// The dumps of which a table is made, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dump {
    Links,
    RoutesV4,
    RoutesV6,
}

impl Dump {
    pub(super) fn next(self) -> Option<Dump> {
        match self {
            Dump::Links => Some(Dump::RoutesV4),
            Dump::RoutesV4 => Some(Dump::RoutesV6),
            Dump::RoutesV6 => None,
        }
    }

    /// The request, whose answers will carry this sequence number.
    pub(super) fn request(self, sequence: u32) -> Vec<u8> {
        const NLM_F_REQUEST_DUMP: u16 = 0x301;
        // struct ifinfomsg has 16 bytes, struct rtmsg 12; the family is the first of both.
        let (kind, family, body) = match self {
            Dump::Links => (RTM_GETLINK, AF_UNSPEC, 16),
            Dump::RoutesV4 => (RTM_GETROUTE, AF_INET, 12),
            Dump::RoutesV6 => (RTM_GETROUTE, AF_INET6, 12),
        };
        let length: u32 = 16 + body;
        let mut bytes = Vec::with_capacity(32);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.push(family);
        bytes.resize(length as usize, 0);
        bytes
    }
}

/// What a message of this type, with these header flags, says. `None` if it is about nothing that
/// attachments depend on.
pub(super) fn event(kind: u16, flags: u16, body: &[u8]) -> Result<Option<LinkEvent>, DecodeError> {
    const NLM_F_REPLACE: u16 = 0x100;
    const NLM_F_MULTI: u16 = 2;
    match kind {
        RTM_NEWLINK => Ok(link(body)?.map(LinkEvent::Link)),
        RTM_DELLINK => Ok(link(body)?.map(|link| LinkEvent::LinkGone { index: link.index })),
        RTM_NEWROUTE => {
            let replace = flags & NLM_F_REPLACE != 0 && flags & NLM_F_MULTI == 0;
            Ok(route(body)?.map(|route| LinkEvent::Route { route, replace }))
        }
        RTM_DELROUTE => Ok(route(body)?.map(LinkEvent::RouteGone)),
        RTM_DELADDR => address_gone(body),
        _ => Ok(None),
    }
}

fn link(body: &[u8]) -> Result<Option<Link>, DecodeError> {
    let (header, attributes) = split(body, 16)?;
    // Bridges announce ports on the same group, and a port that leaves its bridge as RTM_DELLINK.
    if header[0] != AF_UNSPEC {
        return Ok(None);
    }
    let flags = parse_u32(&header[8..12])?;
    let mut link = Link {
        index: parse_u32(&header[4..8])?,
        name: String::new(),
        kind: None,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        master: None,
        below: None,
        elsewhere: false,
    };
    let mut lower = None;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = parse_string(value)?,
            IFLA_LINK => lower = Some(parse_u32(value)?),
            IFLA_LINK_NETNSID => link.elsewhere = true,
            IFLA_MASTER => link.master = Some(parse_u32(value)?).filter(|&index| index != 0),
            IFLA_LINKINFO => {
                for info in NlasIterator::new(value) {
                    let info = info?;
                    if info.kind() == IFLA_INFO_KIND {
                        link.kind = Some(parse_string(info.value())?);
                    }
                }
            }
            _ => {}
        }
    }
    if !link.elsewhere && link.kind.as_deref().is_some_and(|kind| STACKED.contains(&kind)) {
        link.below = lower.filter(|&index| index != 0);
    }
    Ok(Some(link))
}

fn route(body: &[u8]) -> Result<Option<Route>, DecodeError> {
    let (header, attributes) = split(body, 12)?;
    let [family, length, source_length, tos, table, _protocol, scope, kind] = header[..8] else {
        return Err("route header too short".into());
    };
    let kind = match kind {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_LOCAL => RouteKind::Local,
        RTN_BLACKHOLE | RTN_UNREACHABLE | RTN_PROHIBIT | RTN_THROW => RouteKind::Blocked,
        _ => return Ok(None),
    };
    let cloned = parse_u32(&header[8..12])? & RTM_F_CLONED != 0;
    let unspecified = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Ok(None),
    };
    // Routes for some packets only, and the IPv6 routing cache.
    if source_length != 0 || tos != 0 || cloned {
        return Ok(None);
    }

    let mut destination = unspecified;
    let mut single = None;
    let mut gateway = false;
    let mut route = Route {
        prefix: Prefix::new(unspecified, 0),
        table: u32::from(table),
        metric: 0,
        kind,
        hops: Vec::new(),
        ends_silently: family == AF_INET && scope != RT_SCOPE_HOST,
        source: None,
    };
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => destination = ip(value)?,
            RTA_OIF => single = Some(parse_u32(value)?),
            RTA_GATEWAY | RTA_VIA => gateway = true,
            RTA_PRIORITY => route.metric = parse_u32(value)?,
            RTA_PREFSRC => route.source = Some(ip(value)?),
            RTA_MULTIPATH => route.hops = hops(value)?,
            RTA_TABLE => route.table = parse_u32(value)?,
            _ => {}
        }
    }
    if let Some(link) = single {
        route.hops.push(Hop { link, gateway });
    }
    route.prefix = Prefix::new(destination, length);
    // Every interface has these, no pod is known by them, and an interface would not be a pod's own
    // if they counted as networks behind it.
    let link_local = matches!(destination, IpAddr::V6(a) if a.is_unicast_link_local() || a.is_multicast());
    // What else table local can hold says nothing about pods.
    let odd = route.table == TABLE_LOCAL && kind != RouteKind::Local;
    Ok((!link_local && !odd).then_some(route))
}

/// The `struct rtnexthop`s of a multipath route.
fn hops(mut bytes: &[u8]) -> Result<Vec<Hop>, DecodeError> {
    let mut hops = Vec::new();
    while bytes.len() >= 8 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        if length < 8 || length > bytes.len() {
            return Err("next hop of a multipath route has no valid length".into());
        }
        let mut hop = Hop { link: parse_u32(&bytes[4..8])?, gateway: false };
        for attribute in NlasIterator::new(&bytes[8..length]) {
            hop.gateway |= matches!(attribute?.kind(), RTA_GATEWAY | RTA_VIA);
        }
        hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(hops)
}

fn address_gone(body: &[u8]) -> Result<Option<LinkEvent>, DecodeError> {
    let (header, attributes) = split(body, 8)?;
    if header[0] != AF_INET {
        return Ok(None);
    }
    let index = parse_u32(&header[4..8])?;
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        match attribute.kind() {
            IFA_LOCAL => local = Some(ip(attribute.value())?),
            IFA_ADDRESS => address = Some(ip(attribute.value())?),
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's.
    Ok(match local.or(address) {
        Some(IpAddr::V4(address)) => Some(LinkEvent::AddressGone { index, address }),
        _ => None,
    })
}

fn split(body: &[u8], header: usize) -> Result<(&[u8], &[u8]), DecodeError> {
    body.split_at_checked(header).ok_or_else(|| DecodeError::from("message shorter than its header"))
}

fn ip(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| "address has neither 4 nor 16 bytes".into())
}
