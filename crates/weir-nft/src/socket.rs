//! A netlink socket of `NETLINK_NETFILTER`.
//!
//! nf_tables does its work within `sendmsg`: when that returns, every answer is in the receive
//! queue already, and a dump goes on within `recvmsg`. So nothing here ever waits: an empty queue
//! means that there are no more answers.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendmsg,
    socket,
};

use crate::ffi::{SocketOption, set_option};
use crate::wire::{self, F_ACK_TLVS, F_CAPPED, F_DUMP_INTR, HEADER, Message, NLMSG_DONE, NLMSG_ERROR};

/// The kernel fills at most 32 KiB with a dump's messages; errors and events are smaller.
const DATAGRAM: usize = 64 * 1024;
/// For answers to a batch with many errors.
const RECEIVE_BUFFER: i32 = 8 * 1024 * 1024;

/// An open socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    seq: u32,
    send_buffer: usize,
    buffer: Box<[u8]>,
}

/// What reading gave.
pub(crate) enum Received<'a> {
    Datagram(&'a [u8]),
    /// Messages were lost because the receive buffer was full; there may be more.
    Lost,
    /// The queue is empty.
    Nothing,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The state changed during the dump, or answers were lost: ask again.
    Interrupted,
    /// The kernel said no.
    Refused(Errno),
}

impl Socket {
    /// `groups` is a bit mask of multicast groups to listen to.
    pub(crate) fn open(groups: u32) -> nix::Result<Socket> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        // Both are older than the kernels that Weir runs on (4.2 and 4.12).
        set_option(fd.as_fd(), SocketOption::CapAck, 1)?;
        set_option(fd.as_fd(), SocketOption::ExtAck, 1)?;
        // Force needs CAP_NET_ADMIN in the initial user namespace; less also does, hence no error.
        if set_option(fd.as_fd(), SocketOption::ReceiveBufferForce, RECEIVE_BUFFER).is_err() {
            let _ = set_option(fd.as_fd(), SocketOption::ReceiveBuffer, RECEIVE_BUFFER);
        }
        let buffer = vec![0; DATAGRAM].into_boxed_slice();
        Ok(Socket { fd, port, seq: 0, send_buffer: 0, buffer })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Our address; the kernel repeats it in the events that we cause.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// A sequence number such that it and the `count - 1` after it have not been used.
    pub(crate) fn take_seqs(&mut self, count: u32) -> u32 {
        // 0 is what events have that nobody caused.
        if self.seq.checked_add(count + 1).is_none() {
            self.seq = 0;
        }
        let first = self.seq + 1;
        self.seq += count;
        first
    }

    /// Sends everything as one datagram.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> nix::Result<()> {
        if bytes.len() > self.send_buffer {
            // The kernel doubles it, for its own overhead.
            let size = i32::try_from(bytes.len().max(1 << 20)).map_err(|_| Errno::EMSGSIZE)?;
            if set_option(self.fd(), SocketOption::SendBufferForce, size).is_err() {
                set_option(self.fd(), SocketOption::SendBuffer, size)?;
            }
            self.send_buffer = bytes.len().max(1 << 20);
        }
        let to = NetlinkAddr::new(0, 0);
        let sent = sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::empty(), Some(&to))?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    /// Takes one datagram from the queue.
    pub(crate) fn receive(&mut self) -> nix::Result<Received<'_>> {
        loop {
            // With MSG_TRUNC the result is the datagram's own length.
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(len) if len <= self.buffer.len() => return Ok(Received::Datagram(&self.buffer[..len])),
                Ok(_) | Err(Errno::ENOBUFS) => return Ok(Received::Lost),
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Empties the queue of what an earlier request may have left there.
    fn drain(&mut self) -> nix::Result<()> {
        while !matches!(self.receive()?, Received::Nothing) {}
        Ok(())
    }

    /// Sends one message that `write` makes from a sequence number, and hands over each answer.
    /// Reads to the end whatever happens, since the kernel allows one dump at a time.
    pub(crate) fn request(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>, u32),
        mut answer: impl FnMut(&Message<'_>),
    ) -> nix::Result<Outcome> {
        self.drain()?;
        let seq = self.take_seqs(1);
        let mut bytes = Vec::with_capacity(128);
        write(&mut bytes, seq);
        self.send(&bytes)?;
        let mut outcome = Outcome::Done;
        let mut interrupted = false;
        loop {
            match self.receive()? {
                Received::Nothing => break,
                Received::Lost => interrupted = true,
                Received::Datagram(datagram) => {
                    for message in wire::messages(datagram).filter(|message| message.seq == seq) {
                        interrupted |= message.flags & F_DUMP_INTR != 0;
                        match message.kind {
                            // The end of a dump can carry an error.
                            NLMSG_DONE | NLMSG_ERROR => match error_of(&message) {
                                None => {}
                                Some(Errno::EINTR) => interrupted = true,
                                Some(errno) => outcome = Outcome::Refused(errno),
                            },
                            _ => answer(&message),
                        }
                    }
                }
            }
        }
        Ok(if interrupted { Outcome::Interrupted } else { outcome })
    }
}

/// The error of a message of type `NLMSG_ERROR` or `NLMSG_DONE`; `None` is an acknowledgement.
pub(crate) fn error_of(message: &Message<'_>) -> Option<Errno> {
    match wire::u32_at(message.payload, 0).map(|code| code as i32) {
        Some(0) | None => None,
        Some(code) => Some(Errno::from_raw(-code)),
    }
}

/// What an error message says beyond the number.
#[derive(Debug, Default)]
pub(crate) struct Extended {
    /// In words.
    pub(crate) text: Option<String>,
    /// Where in the message that was sent the attribute is.
    pub(crate) offset: Option<usize>,
}

/// Reads the attributes of an error message (`enum nlmsgerr_attrs`).
pub(crate) fn extended(message: &Message<'_>) -> Extended {
    let mut out = Extended::default();
    if message.flags & F_ACK_TLVS == 0 {
        return out;
    }
    // The number, the header of the message that it is about, and, unless it is capped, its rest.
    let about = wire::u32_at(message.payload, 4).unwrap_or_default() as usize;
    let skip = 4 + if message.flags & F_CAPPED != 0 { HEADER } else { about.next_multiple_of(4) };
    for (kind, value) in wire::attrs(message.payload.get(skip..).unwrap_or_default()) {
        match kind {
            1 => out.text = Some(wire::string(value)),
            2 => out.offset = wire::u32_at(value, 0).map(|offset| offset as usize),
            _ => {}
        }
    }
    out
}
