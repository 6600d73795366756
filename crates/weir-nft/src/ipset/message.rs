//! Messages of ipset (`linux/netfilter/ipset/ip_set.h`): what is asked, and elements both ways.

use std::net::IpAddr;

use weir_dataplane::ipset::Element;

use crate::wire::{Attrs, attrs, begin_message, begin_nest, end_message, end_nest, put};

const SUBSYS: u16 = 6;
/// Since Linux 4.20; it has indices.
const PROTOCOL: u8 = 7;
const AF_INET: u8 = 2;

/// `enum ipset_cmd`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Destroy = 3,
    List = 7,
    Add = 9,
    Del = 10,
    GetByName = 14,
}

impl Command {
    pub(crate) const fn message_type(self) -> u16 {
        SUBSYS << 8 | self as u16
    }
}

/// Attributes of messages.
pub(crate) const SETNAME: u16 = 2;
pub(crate) const TYPENAME: u16 = 3;
pub(crate) const FAMILY: u16 = 5;
pub(crate) const FLAGS: u16 = 6;
pub(crate) const DATA: u16 = 7;
pub(crate) const ADT: u16 = 8;
pub(crate) const INDEX: u16 = 11;

/// Attributes of elements and of types.
const IP: u16 = 1;
const CIDR: u16 = 3;
const PORT: u16 = 4;
pub(crate) const TIMEOUT: u16 = 6;
const PROTO: u16 = 7;
pub(crate) const CADT_FLAGS: u16 = 8;
pub(crate) const NETMASK: u16 = 20;
const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

/// The value is in network byte order: without it the kernel refuses the attribute.
const NET_BYTEORDER: u16 = 0x4000;

/// A message about a set, or about all.
pub(crate) fn message(
    out: &mut Vec<u8>,
    command: Command,
    flags: u16,
    seq: u32,
    set: Option<&str>,
    more: impl FnOnce(&mut Vec<u8>),
) {
    let start = begin_message(out, command.message_type(), flags, seq, AF_INET, 0);
    put(out, 1, &[PROTOCOL]);
    if let Some(set) = set {
        let mut name = set.as_bytes().to_vec();
        name.push(0);
        put(out, SETNAME, &name);
    }
    more(out);
    end_message(out, start);
}

/// Asks for less than everything of a set.
pub(crate) fn put_flags(out: &mut Vec<u8>, flags: u32) {
    put(out, FLAGS | NET_BYTEORDER, &flags.to_be_bytes());
}

pub(crate) fn put_element(out: &mut Vec<u8>, element: Element) {
    let data = begin_nest(out, DATA);
    let ip = begin_nest(out, IP);
    match element.address() {
        IpAddr::V4(address) => put(out, IPADDR_V4 | NET_BYTEORDER, &address.octets()),
        IpAddr::V6(address) => put(out, IPADDR_V6 | NET_BYTEORDER, &address.octets()),
    }
    end_nest(out, ip);
    match element {
        Element::Address(_) => {}
        Element::Endpoint(_, protocol, port) => {
            put(out, PORT | NET_BYTEORDER, &port.to_be_bytes());
            put(out, PROTO, &[protocol]);
        }
        Element::Net(_, prefix) => put(out, CIDR, &[prefix]),
    }
    end_nest(out, data);
}

/// The element in an attribute; `None` if it is one that Weir does not write.
pub(crate) fn element(attributes: Attrs<'_>) -> Option<Element> {
    let (mut address, mut prefix, mut port, mut protocol) = (None, None, None, None);
    for (kind, value) in attributes {
        match kind {
            IP => {
                let v4 = attrs(value).value_of(IPADDR_V4).and_then(|a| <[u8; 4]>::try_from(a).ok());
                let v6 = attrs(value).value_of(IPADDR_V6).and_then(|a| <[u8; 16]>::try_from(a).ok());
                address = v4.map(IpAddr::from).or(v6.map(IpAddr::from));
            }
            CIDR => prefix = value.first().copied(),
            PORT => port = <[u8; 2]>::try_from(value).ok().map(u16::from_be_bytes),
            PROTO => protocol = value.first().copied(),
            // such as nomatch
            _ => return None,
        }
    }
    match (address?, prefix, protocol, port) {
        (address, None, None, None) => Some(Element::Address(address)),
        (address, Some(prefix), None, None) => Some(Element::Net(address, prefix)),
        (address, None, Some(protocol), Some(port)) => Some(Element::Endpoint(address, protocol, port)),
        _ => None,
    }
}
