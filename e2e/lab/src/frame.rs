//! Frames as a pod may send them that writes them itself: any address, any type.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;

/// A MAC address.
pub type Mac = [u8; 6];
/// To everybody.
pub const BROADCAST: Mac = [0xff; 6];

const VLAN: u16 = 0x8100;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A socket that sends and receives whole frames on one interface.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl Wire {
    /// On an interface in a namespace.
    pub fn open(netns: &Netns, interface: &str) -> Result<Wire> {
        netns.run(|| {
            let all = nix::ifaddrs::getifaddrs()?;
            let named = all.filter(|address| address.interface_name == interface);
            let address = named.filter_map(|a| a.address?.as_link_addr().copied()).next();
            let interface = address.with_context(|| format!("no interface {interface}"))?;
            let raw = SockType::Raw;
            let socket = socket(AddressFamily::Packet, raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
            // all of the namespace's interfaces, of which there is one; what is there already is old
            let _ = bind(socket.as_raw_fd(), &interface);
            Ok(Wire { socket, interface })
        })
    }

    /// The interface's own address.
    pub fn mac(&self) -> Mac {
        self.interface.addr().unwrap_or_default()
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty())?;
        Ok(())
    }

    /// Whether a frame that contains these bytes comes in.
    pub fn receives(&self, bytes: &[u8], patience: std::time::Duration) -> bool {
        let deadline = std::time::Instant::now() + patience;
        let mut buffer = [0; 2048];
        while std::time::Instant::now() < deadline {
            let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            if buffer[..length].windows(bytes.len()).any(|window| window == bytes) {
                return true;
            }
        }
        false
    }
}

/// A frame around a payload.
pub fn ethernet(from: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// The same with a tag of VLAN 7.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &VLAN.to_be_bytes(), &7_u16.to_be_bytes(), &frame[12..]].concat()
}

/// An ARP message: `operation` 1 asks for `target`, 2 answers.
pub fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

/// UDP over IPv4.
pub fn udp4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let length = (28 + data.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&length.to_be_bytes());
    ip.extend_from_slice(&[0, 1, 0, 0, 64, UDP, 0, 0]);
    ip.extend_from_slice(&from.0.octets());
    ip.extend_from_slice(&to.0.octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = [from.1, to.1, length - 20].map(u16::to_be_bytes).concat();
    udp.extend_from_slice(&[0, 0]);
    [&ip[..], &udp, data].concat()
}

/// UDP over IPv6.
pub fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), data: &[u8]) -> Vec<u8> {
    let mut udp = [from.1, to.1, 8 + data.len() as u16].map(u16::to_be_bytes).concat();
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(data);
    ipv6(UDP, from.0, to.0, &mut udp, 6)
}

/// An ICMPv6 message of neighbour discovery: type, what follows the type's reserved word.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, flags, 0, 0, 0], body].concat();
    ipv6(ICMPV6, from, to, &mut message, 2)
}

/// A neighbour advertisement: this address is at this MAC.
pub fn advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    icmp6(from, to, 136, 0x20, &[&target.octets()[..], &[2, 1], &mac].concat())
}

fn ipv6(protocol: u8, from: Ipv6Addr, to: Ipv6Addr, message: &mut [u8], checksum_at: usize) -> Vec<u8> {
    let length = message.len() as u16;
    let pseudo = [0, 0, 0, 0, 0, 0, 0, protocol];
    let sum = checksum(&[&from.octets(), &to.octets(), &length.to_be_bytes(), &pseudo, message]);
    message[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[protocol, 255]);
    [&packet[..], &from.octets(), &to.octets(), message].concat()
}

/// The internet checksum of parts that each begin at an even place.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071, section 3
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }
}
