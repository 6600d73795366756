//! Packets that rules tell of: NFLOG.
//!
//! ```text
//!   rule: log group 29 ──> the kernel gathers up to a few dozen ──> Nflog::drain ──> Packet
//! ```
//!
//! One socket at a time listens to a group of a network namespace. What nobody takes in time is lost, and counted:
//! nothing waits for whoever listens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::OpenError;
use crate::socket::{Outcome, Received, Socket};
use crate::wire::{self, F_ACK, begin_message, end_message, put};

/// `NFNL_SUBSYS_ULOG`
const SUBSYS: u16 = 4;
/// `enum nfulnl_msg_types`
const PACKET: u16 = SUBSYS << 8;
const CONFIG: u16 = SUBSYS << 8 | 1;

/// `enum nfulnl_attr_config`
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CFG_QTHRESH: u16 = 5;
/// `NFULNL_CFG_CMD_BIND`
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`
const COPY_PACKET: u8 = 2;

/// `enum nfulnl_attr_type`
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

/// The kernel hands packets on after so many of them, or so many hundredths of a second.
const AT_ONCE: u32 = 32;
const WITHIN: u32 = 10;

/// A packet that a rule told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What the rule calls it.
    pub prefix: &'a str,
    /// From the IP header on; as much as the rule says.
    pub head: &'a [u8],
}

/// A nonblocking socket that becomes readable when there are packets of a group.
pub struct Nflog {
    socket: Socket,
}

impl Nflog {
    /// Listens to a group of this network namespace, to `snaplen` bytes of each packet at most.
    ///
    /// # Errors
    /// There is no permission, no NFLOG in the kernel (`nfnetlink_log`), or somebody else listens.
    pub fn open(group: u16, snaplen: u32) -> Result<Nflog, OpenError> {
        let mut socket = Socket::open(0).map_err(crate::open_error)?;
        let mut mode = snaplen.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        let settings: [(u16, &[u8]); 4] = [
            (CFG_CMD, &[BIND]),
            (CFG_MODE, &mode),
            (CFG_TIMEOUT, &WITHIN.to_be_bytes()),
            (CFG_QTHRESH, &AT_ONCE.to_be_bytes()),
        ];
        for (kind, value) in settings {
            let write = |out: &mut Vec<u8>, seq| {
                let start = begin_message(out, CONFIG, F_ACK, seq, 0, group);
                put(out, kind, value);
                end_message(out, start);
            };
            match socket.request(write, |_| {}).map_err(crate::open_error)? {
                Outcome::Done => {}
                Outcome::Interrupted => return Err(OpenError::Io(Errno::EINTR.into())),
                Outcome::Refused(Errno::EINVAL | Errno::EOPNOTSUPP) => return Err(OpenError::NoNflog),
                Outcome::Refused(Errno::EBUSY) => return Err(OpenError::NflogTaken { group }),
                Outcome::Refused(errno) => return Err(crate::open_error(errno)),
            }
        }
        Ok(Nflog { socket })
    }

    /// Waits until there are packets, for so long at most; returns whether there are.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, time) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Hands over the packets that have come, of `datagrams` of the kernel's at most, and returns whether some
    /// were lost.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn drain(&mut self, datagrams: usize, mut each: impl FnMut(Packet<'_>)) -> io::Result<bool> {
        let mut lost = false;
        for _ in 0..datagrams {
            match self.socket.receive()? {
                Received::Nothing => break,
                Received::Lost => lost = true,
                Received::Datagram(datagram) => {
                    for message in wire::messages(datagram).filter(|message| message.kind == PACKET) {
                        let attributes = message.attrs();
                        let prefix = attributes.clone().value_of(PREFIX).unwrap_or_default();
                        let prefix = prefix.strip_suffix(&[0]).unwrap_or(prefix);
                        let head = attributes.value_of(PAYLOAD).unwrap_or_default();
                        each(Packet { prefix: std::str::from_utf8(prefix).unwrap_or_default(), head });
                    }
                }
            }
        }
        Ok(lost)
    }
}

impl AsFd for Nflog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

impl AsRawFd for Nflog {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.fd().as_raw_fd()
    }
}
