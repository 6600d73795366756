//! ICMP and ICMPv6 echo. The kernel of whoever has the address answers: no name tells who that was.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Duration, Instant, timeout_at};

use super::{Outcome, RESEND, Target};

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
    let deadline = Instant::now() + patience;
    let mut open: HashMap<usize, Target> = targets.into_iter().collect();
    let mut done = Vec::new();
    let mut buffer = [0u8; 256];
    while !open.is_empty() && Instant::now() < deadline {
        for (index, target) in &open {
            // Identifier and checksum are the kernel's to fill in.
            let request = if target.at.is_ipv4() { 8 } else { 128 };
            let mut packet = [request, 0, 0, 0, 0, 0, 0, 1].to_vec();
            packet.extend((*index as u64).to_be_bytes());
            // Refused by a rule of the own node (EPERM), no route: silence tells it.
            let _ = socket.send_to(&packet, SocketAddr::new(target.at.ip(), 0)).await;
        }
        let until = (Instant::now() + RESEND).min(deadline);
        while !open.is_empty() {
            let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await else { break };
            let Ok((n, from)) = received else { continue };
            let Some(payload) = buffer[..n].get(HEADER..).and_then(|rest| rest.first_chunk::<8>()) else {
                continue;
            };
            let index = u64::from_be_bytes(*payload) as usize;
            let Some(target) = open.remove(&index) else { continue };
            let outcome = if from.ip() == target.at.ip() {
                Outcome::Passed
            } else {
                Outcome::Wrong(format!("{} answered", from.ip()))
            };
            done.push((index, outcome));
        }
    }
    done.extend(open.into_keys().map(|index| (index, Outcome::Silent)));
    done
}
