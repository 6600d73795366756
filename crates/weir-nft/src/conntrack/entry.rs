//! An entry of conntrack, as far as it is in use here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use crate::wire::{Attrs, attrs, be32, begin_nest, end_nest, put};

/// `enum ctattr_type`
pub(super) const TUPLE_ORIG: u16 = 1;
pub(super) const TUPLE_REPLY: u16 = 2;
pub(super) const PROTOINFO: u16 = 4;
pub(super) const TIMEOUT: u16 = 7;
pub(super) const MARK: u16 = 8;
pub(super) const MARK_MASK: u16 = 21;
const STATUS: u16 = 3;
const ID: u16 = 12;
const TUPLE_MASTER: u16 = 14;
const ZONE: u16 = 18;
/// `enum ctattr_tuple`
const IP: u16 = 1;
const PROTO: u16 = 2;
/// `enum ctattr_l4proto`
const PROTO_NUM: u16 = 1;
const SRC_PORT: u16 = 2;
const DST_PORT: u16 = 3;
/// Id, type and code: of ICMP, and of ICMPv6.
const ICMP: [u16; 3] = [4, 5, 6];
const ICMPV6: [u16; 3] = [7, 8, 9];
/// `enum ctattr_protoinfo`, `enum ctattr_protoinfo_tcp`
pub(super) const PROTOINFO_TCP: u16 = 1;
pub(super) const PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_ESTABLISHED`
pub(super) const TCP_ESTABLISHED: u8 = 3;

pub(super) const TCP: u8 = 6;
const PROTO_ICMP: u8 = 1;
const PROTO_ICMPV6: u8 = 58;
/// `AF_INET`, `AF_INET6`
const INET: u8 = 2;
const INET6: u8 = 10;

/// What tells the flows of a protocol between two addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer4 {
    /// TCP, UDP, SCTP and their like.
    Ports {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// ICMP and ICMPv6: requests that have an answer.
    Icmp {
        /// The identifier.
        id: u16,
        /// The message's type.
        kind: u8,
        /// The message's code.
        code: u8,
    },
    /// Nothing that is known here.
    Other,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where packets come from.
    pub source: IpAddr,
    /// Where they go to.
    pub destination: IpAddr,
    /// Their protocol, by its IANA number.
    pub protocol: u8,
    /// What belongs to the protocol.
    pub layer4: Layer4,
}

impl Tuple {
    pub(super) fn family(&self) -> u8 {
        if self.source.is_ipv4() { INET } else { INET6 }
    }

    /// The direction in which replies come if no address is translated.
    pub fn reversed(&self) -> Tuple {
        let layer4 = match self.layer4 {
            Layer4::Ports { source, destination } => {
                Layer4::Ports { source: destination, destination: source }
            }
            other => other,
        };
        Tuple { source: self.destination, destination: self.source, protocol: self.protocol, layer4 }
    }

    fn decode(bytes: &[u8]) -> Option<Tuple> {
        let (mut ip, mut proto) = (None, None);
        for (kind, value) in attrs(bytes) {
            match kind {
                IP => ip = addresses(value),
                PROTO => proto = layer4(value),
                _ => {}
            }
        }
        let ((source, destination), (protocol, layer4)) = (ip?, proto?);
        Some(Tuple { source, destination, protocol, layer4 })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, kind: u16) {
        let tuple = begin_nest(out, kind);
        self.write_fields(out);
        end_nest(out, tuple);
    }

    fn write_fields(&self, out: &mut Vec<u8>) {
        let ip = begin_nest(out, IP);
        for (v4, v6, address) in [(1, 3, self.source), (2, 4, self.destination)] {
            match address {
                IpAddr::V4(address) => put(out, v4, &address.octets()),
                IpAddr::V6(address) => put(out, v6, &address.octets()),
            }
        }
        end_nest(out, ip);
        let proto = begin_nest(out, PROTO);
        put(out, PROTO_NUM, &[self.protocol]);
        match self.layer4 {
            Layer4::Ports { source, destination } => {
                put(out, SRC_PORT, &source.to_be_bytes());
                put(out, DST_PORT, &destination.to_be_bytes());
            }
            Layer4::Icmp { id, kind, code } => {
                let kinds = if self.source.is_ipv4() { ICMP } else { ICMPV6 };
                put(out, kinds[0], &id.to_be_bytes());
                put(out, kinds[1], &[kind]);
                put(out, kinds[2], &[code]);
            }
            Layer4::Other => {}
        }
        end_nest(out, proto);
    }
}

fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    let v4 = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    let v6 = |value: &[u8]| <[u8; 16]>::try_from(value).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b)));
    for (kind, value) in attrs(bytes) {
        match kind {
            1 => source = v4(value),
            2 => destination = v4(value),
            3 => source = v6(value),
            4 => destination = v6(value),
            _ => {}
        }
    }
    Some((source?, destination?))
}

fn layer4(bytes: &[u8]) -> Option<(u8, Layer4)> {
    let mut protocol = None;
    let (mut source, mut destination) = (None, None);
    let (mut id, mut icmp_kind, mut code) = (0, 0, 0);
    let number = |value: &[u8]| Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?));
    for (kind, value) in attrs(bytes) {
        let byte = value.first().copied().unwrap_or_default();
        match kind {
            PROTO_NUM => protocol = Some(byte),
            SRC_PORT => source = number(value),
            DST_PORT => destination = number(value),
            kind if kind == ICMP[0] || kind == ICMPV6[0] => id = number(value)?,
            kind if kind == ICMP[1] || kind == ICMPV6[1] => icmp_kind = byte,
            kind if kind == ICMP[2] || kind == ICMPV6[2] => code = byte,
            _ => {}
        }
    }
    let protocol = protocol?;
    let layer4 = match (protocol, source, destination) {
        (PROTO_ICMP | PROTO_ICMPV6, ..) => Layer4::Icmp { id, kind: icmp_kind, code },
        (_, Some(source), Some(destination)) => Layer4::Ports { source, destination },
        _ => Layer4::Other,
    };
    Some((protocol, layer4))
}

/// What addresses an entry: its original tuple, in the kernel's own bytes, and its zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    family: u8,
    zone: u16,
    tuple: SmallVec<[u8; 56]>,
}

/// Of the entry with this original tuple in the zone that everything is in if nobody says otherwise.
impl From<&Tuple> for Key {
    fn from(tuple: &Tuple) -> Key {
        let mut bytes = Vec::with_capacity(64);
        tuple.write_fields(&mut bytes);
        Key { family: tuple.family(), zone: 0, tuple: SmallVec::from_vec(bytes) }
    }
}

impl Key {
    pub(super) fn family(&self) -> u8 {
        self.family
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let tuple = begin_nest(out, TUPLE_ORIG);
        out.extend_from_slice(&self.tuple);
        end_nest(out, tuple);
        if self.zone != 0 {
            put(out, ZONE, &self.zone.to_be_bytes());
        }
    }
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What addresses it.
    pub key: Key,
    /// Of the packets of the side that opened it, before any translation.
    pub orig: Tuple,
    /// Of the replies as they come: its source is who answers, after translation of the destination.
    pub reply: Tuple,
    /// `enum ip_conntrack_status`, a bit mask.
    pub status: u32,
    /// The connection's mark.
    pub mark: u32,
    /// Zones keep equal addresses of different networks apart.
    pub zone: u16,
    /// Another entry of the same tuple has another.
    pub id: u32,
    /// `enum tcp_conntrack`; TCP only.
    pub tcp_state: Option<u8>,
    /// The connection that this one was announced in (`ct helper`), by its original tuple.
    pub master: Option<Tuple>,
}

impl Entry {
    /// One that is nothing but its two tuples.
    pub fn new(orig: Tuple, reply: Tuple) -> Entry {
        let key = Key::from(&orig);
        Entry { key, orig, reply, status: 0, mark: 0, zone: 0, id: 0, tcp_state: None, master: None }
    }

    /// `None`: a message without one of the tuples, which the kernel does not send.
    pub(super) fn decode(family: u8, attributes: Attrs<'_>) -> Option<Entry> {
        let (mut orig, mut reply, mut master, mut tcp_state) = (None, None, None, None);
        let mut tuple = SmallVec::new();
        let (mut status, mut mark, mut zone, mut id) = (0, 0, 0, 0);
        for (kind, value) in attributes {
            match kind {
                TUPLE_ORIG => {
                    orig = Tuple::decode(value);
                    tuple = SmallVec::from_slice(value);
                }
                TUPLE_REPLY => reply = Tuple::decode(value),
                TUPLE_MASTER => master = Tuple::decode(value),
                STATUS => status = be32(value).unwrap_or_default(),
                MARK => mark = be32(value).unwrap_or_default(),
                ID => id = be32(value).unwrap_or_default(),
                ZONE => zone = value.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])),
                PROTOINFO => {
                    let tcp = attrs(value).value_of(PROTOINFO_TCP);
                    let state = tcp.and_then(|tcp| attrs(tcp).value_of(PROTOINFO_TCP_STATE));
                    tcp_state = state.and_then(|state| state.first().copied());
                }
                _ => {}
            }
        }
        let key = Key { family, zone, tuple };
        Some(Entry { key, orig: orig?, reply: reply?, status, mark, zone, id, tcp_state, master })
    }
}
