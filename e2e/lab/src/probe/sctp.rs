//! SCTP without the kernel's help: an INIT chunk from a raw socket, and an INIT ACK as the answer.
//!
//! Connection tracking takes the two for the start of an association, so that policies judge them as they
//! would judge a real one (N62). The server's name travels as the state cookie.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Duration;

use super::{Outcome, Target, exchange};

const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const STATE_COOKIE: u16 = 7;
/// A chunk's header, and the fields that both chunks begin with.
const CHUNK: usize = 20;
const HEADER: usize = 12;

/// Source ports are not used again soon: connection tracking would take a second INIT for a part of the first
/// association.
static SOURCE_PORT: AtomicU16 = AtomicU16::new(0);

/// A raw socket of the calling thread's namespace. The type is only the way in which it is driven.
pub(super) fn socket(address: IpAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address((address, 0).into()), Type::RAW, Some(SCTP.into()))?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What is of interest of an INIT or INIT ACK.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    source_port: u16,
    destination_port: u16,
    /// The receiver's tag; of an INIT 0.
    verification_tag: u32,
    chunk: u8,
    /// The sender's tag.
    initiate_tag: u32,
    cookie: Vec<u8>,
}

impl Packet {
    fn encode(&self) -> Vec<u8> {
        let parameter = if self.cookie.is_empty() { 0 } else { 4 + self.cookie.len() };
        let mut bytes = Vec::with_capacity(HEADER + CHUNK + parameter + 3);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        bytes.extend([0; 4]); // the checksum
        bytes.extend([self.chunk, 0]);
        bytes.extend(((CHUNK + parameter) as u16).to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(65_536u32.to_be_bytes()); // receiver window
        bytes.extend([0, 1, 0, 1]); // one stream each way
        bytes.extend(self.initiate_tag.to_be_bytes()); // initial TSN
        if parameter > 0 {
            bytes.extend(STATE_COOKIE.to_be_bytes());
            bytes.extend((parameter as u16).to_be_bytes());
            bytes.extend(&self.cookie);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// `None`: something else, or damaged.
    fn decode(bytes: &[u8]) -> Option<Packet> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let u32_at = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let mut unsigned = bytes.to_vec();
        unsigned.get_mut(8..HEADER)?.fill(0);
        if *bytes.get(8..)?.first_chunk()? != crc32c(&unsigned).to_le_bytes() {
            return None;
        }
        let length = usize::from(u16_at(HEADER + 2)?);
        let cookie = match u16_at(HEADER + CHUNK) {
            Some(STATE_COOKIE) => bytes.get(HEADER + CHUNK + 4..(HEADER + length).min(bytes.len()))?.to_vec(),
            _ => Vec::new(),
        };
        Some(Packet {
            source_port: u16_at(0)?,
            destination_port: u16_at(2)?,
            verification_tag: u32_at(4)?,
            chunk: *bytes.get(HEADER)?,
            initiate_tag: u32_at(HEADER + 4)?,
            cookie,
        })
    }
}

/// Raw sockets see IPv4's header, but not IPv6's.
fn without_ip(bytes: &[u8], from: SocketAddr) -> &[u8] {
    let header = if from.is_ipv4() { bytes.first().map_or(0, |b| usize::from(b & 15) * 4) } else { 0 };
    bytes.get(header..).unwrap_or(&[])
}

/// Answers every INIT, whatever its port, with `name`.
pub(super) async fn serve(socket: UdpSocket, name: String) {
    let mut buffer = [0u8; 2048];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(init) = Packet::decode(without_ip(&buffer[..n], from)).filter(|p| p.chunk == INIT) else {
            continue;
        };
        let answer = Packet {
            source_port: init.destination_port,
            destination_port: init.source_port,
            verification_tag: init.initiate_tag,
            chunk: INIT_ACK,
            initiate_tag: 1,
            cookie: name.clone().into_bytes(),
        };
        let _ = socket.send_to(&answer.encode(), SocketAddr::new(from.ip(), 0)).await;
    }
}

/// Sends an INIT for each target; the tag that the answer repeats tells which it is for.
pub(super) async fn ask_all(
    socket: UdpSocket,
    targets: Vec<(usize, Target)>,
    patience: Duration,
) -> Vec<(usize, Outcome)> {
    let port = |(index, _): &(usize, Target)| {
        (*index, 32_768 + SOURCE_PORT.fetch_add(1, Ordering::Relaxed) % 32_768)
    };
    let ports: HashMap<usize, u16> = targets.iter().map(port).collect();
    let ask = |index: usize, target: &Target| {
        let init = Packet {
            source_port: ports[&index],
            destination_port: target.at.port(),
            verification_tag: 0,
            chunk: INIT,
            initiate_tag: index as u32 + 1,
            cookie: Vec::new(),
        };
        (init.encode(), SocketAddr::new(target.at.ip(), 0))
    };
    let hear = |bytes: &[u8], from| {
        let answer = Packet::decode(without_ip(bytes, from)).filter(|p| p.chunk == INIT_ACK)?;
        Some((answer.verification_tag.checked_sub(1)? as usize, answer))
    };
    let judge = |target: &Target, answer: Packet, from: SocketAddr| {
        let as_asked = from.ip() == target.at.ip() && answer.source_port == target.at.port();
        if as_asked && answer.cookie == target.name.as_bytes() {
            Outcome::Passed
        } else {
            let said = String::from_utf8_lossy(&answer.cookie).into_owned();
            Outcome::Wrong(format!("{said:?} at {from} answered"))
        }
    };
    exchange(socket, targets, patience, ask, hear, judge).await
}

/// CRC-32C (Castagnoli), as RFC 9260 wants it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_read_as_they_are_written() {
        let packet = Packet {
            source_port: 40_000,
            destination_port: 9,
            verification_tag: 7,
            chunk: INIT_ACK,
            initiate_tag: 1,
            cookie: b"x/a".to_vec(),
        };
        let bytes = packet.encode();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(Packet::decode(&bytes), Some(packet));
        let mut damaged = bytes.clone();
        damaged[3] ^= 1;
        assert_eq!(Packet::decode(&damaged), None);
        assert_eq!(Packet::decode(&bytes[..11]), None);
    }
}
