//! What the head of a packet says: addresses, protocol, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_compiler::object::Protocol;
use weir_compiler::ports::L4;

/// Of a packet, as policies see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// As IP numbers them.
    pub(super) protocol: u8,
    /// Source and destination, of protocols that have ports.
    pub(super) ports: Option<(u16, u16)>,
}

/// TCP, UDP, UDP-Lite, SCTP, DCCP.
const WITH_PORTS: [u8; 5] = [6, 17, 136, 132, 33];

/// IPv6's headers before the one of the protocol that are not counted as one: hop-by-hop options, routing,
/// destination options.
const OPTIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;

impl Flow {
    /// Of an IP packet from its first byte on, of which the end may be missing. `None`: it is none.
    pub(super) fn read(head: &[u8]) -> Option<Flow> {
        match head.first()? >> 4 {
            4 => Flow::v4(head),
            6 => Flow::v6(head),
            _ => None,
        }
    }

    /// As clauses see it.
    pub(super) fn l4(&self) -> L4 {
        let named = Protocol::ALL.into_iter().find(|protocol| protocol.number() == self.protocol);
        match (named, self.ports) {
            (Some(protocol), Some((_, destination))) => L4::Port(protocol, destination),
            _ => L4::Other(self.protocol),
        }
    }

    fn v4(head: &[u8]) -> Option<Flow> {
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 4] = head.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        };
        let protocol = *head.get(9)?;
        let first = u16_at(head, 6)? & 0x1fff == 0;
        let payload = head.get(usize::from(head[0] & 0xf) * 4..).filter(|_| first).unwrap_or_default();
        Some(Flow {
            source: address(12)?,
            destination: address(16)?,
            protocol,
            ports: ports(protocol, payload),
        })
    }

    fn v6(head: &[u8]) -> Option<Flow> {
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = head.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        };
        let (mut protocol, mut rest) = (*head.get(6)?, head.get(40..)?);
        let mut first = true;
        // each header that is passed over is at least eight bytes long
        loop {
            let len = match protocol {
                FRAGMENT => {
                    first = u16_at(rest, 2).is_some_and(|offset| offset & 0xfff8 == 0);
                    8
                }
                of if OPTIONS.contains(&of) => match rest.get(1) {
                    Some(len) => (usize::from(*len) + 1) * 8,
                    None => break,
                },
                _ => break,
            };
            let (Some(next), Some(after)) = (rest.first(), rest.get(len..)) else { break };
            (protocol, rest) = (*next, after);
        }
        let payload = if first { rest } else { &[] };
        Some(Flow {
            source: address(8)?,
            destination: address(24)?,
            protocol,
            ports: ports(protocol, payload),
        })
    }
}

fn ports(protocol: u8, payload: &[u8]) -> Option<(u16, u16)> {
    if !WITH_PORTS.contains(&protocol) {
        return None;
    }
    Some((u16_at(payload, 0)?, u16_at(payload, 2)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 20 + options * 4];
        head[0] = 0x45 + u8::try_from(options).expect("few");
        head[6..8].copy_from_slice(&fragment.to_be_bytes());
        head[9] = protocol;
        head[12..16].copy_from_slice(&[10, 0, 0, 1]);
        head[16..20].copy_from_slice(&[10, 0, 0, 2]);
        head.extend_from_slice(payload);
        head
    }

    fn v6(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 40];
        head[0] = 0x60;
        head[6] = first;
        head[8..24].copy_from_slice(&"fd00::1".parse::<Ipv6Addr>().expect("one").octets());
        head[24..40].copy_from_slice(&"fd00::2".parse::<Ipv6Addr>().expect("one").octets());
        head.extend_from_slice(payload);
        head
    }

    const PORTS: [u8; 8] = [0x1f, 0x90, 0x00, 0x35, 0, 0, 0, 0];

    #[test]
    fn ipv4() {
        let flow = Flow::read(&v4(6, 0x4000, 0, &PORTS)).expect("a packet");
        assert_eq!((flow.protocol, flow.ports), (6, Some((8080, 53))));
        assert_eq!((flow.source, flow.destination), ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        // behind options; not in a fragment that is not the first; not of ICMP
        assert_eq!(Flow::read(&v4(17, 0, 10, &PORTS)).expect("one").ports, Some((8080, 53)));
        assert_eq!(Flow::read(&v4(6, 0x2001, 0, &PORTS)).expect("one").ports, None);
        assert_eq!(Flow::read(&v4(1, 0, 0, &PORTS)).expect("one").ports, None);
    }

    #[test]
    fn ipv6() {
        let flow = Flow::read(&v6(132, &PORTS)).expect("a packet");
        assert_eq!((flow.protocol, flow.ports), (132, Some((8080, 53))));
        // behind hop-by-hop options of 16 bytes and the header of a first fragment
        let mut payload = vec![FRAGMENT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([6, 0, 0, 1, 0, 0, 0, 0]);
        payload.extend(PORTS);
        let flow = Flow::read(&v6(0, &payload)).expect("a packet");
        assert_eq!((flow.protocol, flow.ports), (6, Some((8080, 53))));
        payload[19] = 9; // a later fragment
        let flow = Flow::read(&v6(0, &payload)).expect("a packet");
        assert_eq!((flow.protocol, flow.ports), (6, None));
    }

    proptest! {
        /// Whoever writes packets chooses every byte of them.
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 3u8..8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0xf | version << 4;
            }
            let flow = Flow::read(&bytes);
            prop_assert!(flow.is_none() || bytes.len() >= 20);
        }
    }
}
