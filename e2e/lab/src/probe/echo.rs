//! ICMP and ICMPv6 echo. The kernel of whoever has the address answers: no name tells who that was.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Duration;

use super::{Outcome, Target, exchange};

const HEADER: usize = 8;

/// A ping socket of the calling thread's namespace, with an identifier of its own: to connection tracking,
/// each is another exchange. The type is only the way in which it is driven.
pub(super) fn socket(source: IpAddr) -> io::Result<std::net::UdpSocket> {
    let protocol = if source.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = Socket::new(Domain::for_address((source, 0).into()), Type::DGRAM, Some(protocol))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Pings everybody from one socket; the payload tells whose answer it is.
pub(super) async fn ask_all(
    socket: UdpSocket,
    targets: Vec<(usize, Target)>,
    patience: Duration,
) -> Vec<(usize, Outcome)> {
    let ask = |index: usize, target: &Target| {
        // Identifier and checksum are the kernel's to fill in.
        let request = if target.at.is_ipv4() { 8 } else { 128 };
        let mut packet = [request, 0, 0, 0, 0, 0, 0, 1].to_vec();
        packet.extend((index as u64).to_be_bytes());
        (packet, SocketAddr::new(target.at.ip(), 0))
    };
    let hear = |bytes: &[u8], _| {
        let payload = bytes.get(HEADER..)?.first_chunk::<8>()?;
        Some((u64::from_be_bytes(*payload) as usize, ()))
    };
    let judge = |target: &Target, (), from: SocketAddr| {
        if from.ip() == target.at.ip() {
            Outcome::Passed
        } else {
            Outcome::Wrong(format!("{} answered", from.ip()))
        }
    };
    exchange(socket, targets, patience, ask, hear, judge).await
}
