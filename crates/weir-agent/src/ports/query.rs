//! What a veth has at its other end, in whatever network namespace that is.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_ADDRESS: u16 = 1;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_TARGET_NETNSID: u16 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Larger than a part of a dump.
const BUFFER: usize = 64 << 10;

/// Kinds of links with another end.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// What the other end of a port has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// All of its addresses, link-local ones, too.
    pub addresses: Vec<IpAddr>,
}

/// A netlink socket to ask with.
pub struct Query {
    socket: Socket,
    sequence: u32,
}

/// What is of interest in a link's description.
#[derive(Default)]
struct Link {
    kind: Option<String>,
    other: Option<u32>,
    namespace: Option<u32>,
    mac: Option<[u8; 6]>,
}

impl Query {
    /// Opens it.
    ///
    /// # Errors
    /// There is no rtnetlink for this process, or it is older than Linux 4.20.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // all that the kernel answers is there when a request has been sent
        socket.set_non_blocking(true)?;
        // else it would ignore which namespace is asked for, and tell of this one
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Query { socket, sequence: 0 })
    }

    /// What is at the other end of this interface; `None`: it has none, or it is in this namespace.
    ///
    /// # Errors
    /// The interface is gone, or the kernel does not let this process see the other namespace.
    pub fn port(&mut self, index: u32) -> io::Result<Option<Seen>> {
        let near = self.link(index, None)?;
        let (Some(other), Some(namespace)) = (near.other, near.namespace) else { return Ok(None) };
        if !near.kind.is_some_and(|kind| PAIRS.contains(&kind.as_str())) {
            return Ok(None);
        }
        let far = self.link(other, Some(namespace))?;
        let Some(mac) = far.mac.filter(|_| far.other == Some(index)) else { return Ok(None) };
        let mut addresses = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.addresses(family, other, namespace, &mut addresses)?;
        }
        Ok(Some(Seen { mac, addresses }))
    }

    fn link(&mut self, index: u32, namespace: Option<u32>) -> io::Result<Link> {
        // struct ifinfomsg
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        if let Some(namespace) = namespace {
            put(&mut body, IFLA_TARGET_NETNSID, namespace);
        }
        let mut link = Link::default();
        self.ask(RTM_GETLINK, 0, &body, |kind, body| {
            if kind != RTM_NEWLINK {
                return;
            }
            for attribute in NlasIterator::new(body.get(16..).unwrap_or_default()).flatten() {
                let value = attribute.value();
                match attribute.kind() {
                    IFLA_ADDRESS => link.mac = value.try_into().ok(),
                    IFLA_LINK => link.other = number(value),
                    IFLA_LINK_NETNSID => link.namespace = number(value),
                    IFLA_LINKINFO => {
                        let infos = NlasIterator::new(value).flatten();
                        let kind = infos.filter(|info| info.kind() == IFLA_INFO_KIND);
                        let text =
                            |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
                        link.kind = kind.map(|info| text(info.value())).last();
                    }
                    _ => {}
                }
            }
        })?;
        Ok(link)
    }

    fn addresses(&mut self, family: u8, index: u32, namespace: u32, all: &mut Vec<IpAddr>) -> io::Result<()> {
        // struct ifaddrmsg
        let mut body = vec![family, 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        put(&mut body, IFA_TARGET_NETNSID, namespace);
        self.ask(RTM_GETADDR, NLM_F_DUMP, &body, |kind, body| {
            let of = body.get(4..8).and_then(number);
            if kind != RTM_NEWADDR || of != Some(index) {
                return;
            }
            let (mut local, mut address) = (None, None);
            for attribute in NlasIterator::new(body.get(8..).unwrap_or_default()).flatten() {
                match attribute.kind() {
                    IFA_LOCAL => local = ip(attribute.value()),
                    IFA_ADDRESS => address = ip(attribute.value()),
                    _ => {}
                }
            }
            // with a peer, IFA_ADDRESS is the peer's
            all.extend(local.or(address));
        })
    }

    /// Sends a request and takes all of its answer.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut answer: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut request = Vec::with_capacity(16 + body.len());
        request.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(body);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv_from(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                let length = message.length() as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if message.sequence_number() != self.sequence {
                    continue; // of a request that failed half-way
                }
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = message.payload().first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        let failed = || Err(io::Error::from_raw_os_error(-code));
                        return if code < 0 { failed() } else { Ok(()) };
                    }
                    kind => answer(kind, message.payload()),
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(());
                }
            }
        }
    }
}

fn put(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend_from_slice(&8_u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(&value.to_ne_bytes());
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}
