//! Kernel ipsets, as they are planned and as they are read back.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::net::IpAddr;

use crate::model::Family;

/// An ipset and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipset {
    /// What cannot change while it exists.
    pub decl: IpsetDecl,
    /// What is in it.
    pub elements: BTreeSet<Element>,
}

/// The type of an ipset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpsetDecl {
    /// What an element is.
    pub kind: IpsetKind,
    /// [`Family::Ip`] or [`Family::Ip6`].
    pub family: Family,
}

/// What an element of an ipset is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpsetKind {
    /// `hash:ip`: an address.
    Address,
    /// `hash:ip,port`: an address, a protocol and a port.
    Endpoint,
    /// `hash:net`: a prefix.
    Net,
    /// Found in a dump only: a type that Weir does not write, by its name, or one that it does with
    /// something else to it, such as timeouts. It differs from every planned one.
    Foreign(String),
}

/// An element of an ipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// Of `hash:ip`.
    Address(IpAddr),
    /// Of `hash:ip,port`: with the protocol's number.
    Endpoint(IpAddr, u8, u16),
    /// Of `hash:net`: with the length of the prefix, which is not 0.
    Net(IpAddr, u8),
}

impl Element {
    /// Its address, or the first of the prefix.
    pub fn address(&self) -> IpAddr {
        match *self {
            Element::Address(address) | Element::Endpoint(address, ..) | Element::Net(address, _) => address,
        }
    }
}

/// As `ipset` writes it.
impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Address(address) => write!(f, "{address}"),
            Element::Endpoint(address, 6, port) => write!(f, "{address},tcp:{port}"),
            Element::Endpoint(address, 17, port) => write!(f, "{address},udp:{port}"),
            Element::Endpoint(address, 132, port) => write!(f, "{address},sctp:{port}"),
            Element::Endpoint(address, protocol, port) => write!(f, "{address},{protocol}:{port}"),
            Element::Net(address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

impl IpsetDecl {
    /// The name of the kernel's type.
    pub fn type_name(&self) -> &str {
        match &self.kind {
            IpsetKind::Address => "hash:ip",
            IpsetKind::Endpoint => "hash:ip,port",
            IpsetKind::Net => "hash:net",
            IpsetKind::Foreign(name) => name,
        }
    }
}

/// A change of ipsets. Each element is a step of its own for packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpsetOp {
    /// Creates an ipset with what is in it. No rule refers to it yet.
    Create {
        /// Its name.
        name: String,
        /// What it shall be.
        set: Ipset,
    },
    /// Adds elements that are not there.
    Add {
        /// The ipset's name.
        name: String,
        /// Its type, for the encoding.
        decl: IpsetDecl,
        /// In this order.
        elements: Vec<Element>,
    },
    /// Removes elements that are there.
    Remove {
        /// The ipset's name.
        name: String,
        /// Its type, for the encoding.
        decl: IpsetDecl,
        /// In this order.
        elements: Vec<Element>,
    },
    /// Destroys an ipset that no rule refers to any more.
    Destroy {
        /// Its name.
        name: String,
    },
}

/// As `ipset restore` reads it.
impl Display for IpsetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpsetOp::Create { name, set } => {
                let family = if set.decl.family == Family::Ip6 { "inet6" } else { "inet" };
                let max = u32::MAX;
                writeln!(f, "create {name} {} family {family} maxelem {max}", set.decl.type_name())?;
                set.elements.iter().try_for_each(|element| writeln!(f, "add {name} {element}"))
            }
            IpsetOp::Add { name, elements, .. } => {
                elements.iter().try_for_each(|element| writeln!(f, "add {name} {element}"))
            }
            IpsetOp::Remove { name, elements, .. } => {
                elements.iter().try_for_each(|element| writeln!(f, "del {name} {element}"))
            }
            IpsetOp::Destroy { name } => writeln!(f, "destroy {name}"),
        }
    }
}
