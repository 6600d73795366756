//! Connections: what conntrack knows of them, and bits of their marks.
//!
//! ```text
//!   dump ──> Entry: both tuples, mark, ... ──> judged by somebody else ──> Marking ──> mark
//! ```
//!
//! A [`Conntrack`] reads every entry of its network namespace, and sets and clears bits of entries'
//! marks, whatever else is in them. Three things that are not obvious:
//!
//! - An entry is addressed by its original tuple and zone, in the kernel's own bytes. The kernel ignores
//!   an entry's id in such a message, so that a successor of the same tuple is hit: whoever marks looks
//!   a second time.
//! - There are no batches here: each message stands for itself, and many of them fit into one datagram.
//!   Only those that fail are answered.
//! - A dump is not of one moment. An entry can come twice, and one that is made meanwhile not at all.

mod entry;

use std::fmt;
use std::io;
use std::num::NonZeroU32;

use nix::errno::Errno;

pub use entry::{Entry, Key, Layer4, Tuple};

use crate::error::OpenError;
use crate::socket::{self, Outcome, Received, Socket};
use crate::wire::{
    self, F_CREATE, F_DUMP, F_EXCL, NLMSG_ERROR, be32, begin_message, begin_nest, end_message, end_nest, put,
};

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYS: u16 = 1;
/// `enum cntl_msg_types`
const NEW: u16 = SUBSYS << 8;
const GET: u16 = SUBSYS << 8 | 1;
const DELETE: u16 = SUBSYS << 8 | 2;
const GET_STATS: u16 = SUBSYS << 8 | 5;

/// A dump that lost answers is made again so often.
const ATTEMPTS: u32 = 5;
/// Messages of about 130 bytes in a datagram; all of them may be answered.
const AT_ONCE: usize = 1024;

/// What is to become of an entry's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marking {
    /// Of which entry.
    pub key: Key,
    /// Set the bits, or clear them.
    pub set: bool,
}

/// Why conntrack could not be asked or told.
#[derive(Debug)]
pub struct ConntrackError {
    doing: &'static str,
    source: io::Error,
}

impl fmt::Display for ConntrackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} conntrack: {}", self.doing, self.source)
    }
}

impl std::error::Error for ConntrackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A connection to the conntrack of the network namespace in which it was opened.
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens it, and makes sure that it can be used.
    pub fn open() -> Result<Conntrack, OpenError> {
        let mut conntrack = Conntrack { socket: Socket::open(0).map_err(crate::open_error)? };
        match conntrack.ask_count() {
            Ok(_) => Ok(conntrack),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Err(OpenError::NoConntrack),
            Err(errno) => Err(crate::open_error(errno)),
        }
    }

    /// How many entries there are. Where nothing uses conntrack there are none.
    pub fn count(&mut self) -> Result<u32, ConntrackError> {
        self.ask_count().map_err(|errno| error("count the entries of", errno))
    }

    /// Hands over every entry, of both families. Some may come more than once.
    pub fn dump(&mut self, mut each: impl FnMut(Entry)) -> Result<(), ConntrackError> {
        for _ in 0..ATTEMPTS {
            let outcome = self.socket.request(
                |out, seq| {
                    let start = begin_message(out, GET, F_DUMP, seq, 0, 0);
                    end_message(out, start);
                },
                |message| {
                    if message.kind == NEW
                        && let Some(entry) = message.family().and_then(|f| Entry::decode(f, message.attrs()))
                    {
                        each(entry);
                    }
                },
            );
            match outcome.map_err(|errno| error("list", errno))? {
                Outcome::Done => return Ok(()),
                Outcome::Interrupted => tracing::debug!("a dump of conntrack lost answers"),
                Outcome::Refused(errno) => return Err(error("list", errno)),
            }
        }
        Err(error("list", Errno::ENOBUFS))
    }

    /// Sets or clears these bits of entries' marks. An entry that is gone is no error.
    pub fn mark(&mut self, bits: NonZeroU32, markings: &[Marking]) -> Result<(), ConntrackError> {
        let value = |set: bool| if set { bits.get() } else { 0 }.to_be_bytes();
        let mask = bits.get().to_be_bytes();
        let write = |out: &mut Vec<u8>, seq, marking: &Marking| {
            let start = begin_message(out, NEW, 0, seq, marking.key.family(), 0);
            marking.key.write(out);
            put(out, entry::MARK, &value(marking.set));
            put(out, entry::MARK_MASK, &mask);
            end_message(out, start);
        };
        for markings in markings.chunks(AT_ONCE) {
            let sent = self.send_all(markings, write, |errno| errno == Errno::ENOENT);
            sent.map_err(|errno| error("mark an entry of", errno))?;
        }
        Ok(())
    }

    /// Deletes every entry, which breaks connections whose addresses are translated.
    pub fn flush(&mut self) -> Result<(), ConntrackError> {
        let outcome = self.socket.request(
            |out, seq| {
                let start = begin_message(out, DELETE, 0, seq, 0, 0);
                end_message(out, start);
            },
            |_| {},
        );
        match outcome.map_err(|errno| error("flush", errno))? {
            Outcome::Refused(errno) => Err(error("flush", errno)),
            Outcome::Done | Outcome::Interrupted => Ok(()),
        }
    }

    /// Makes entries as if packets had been seen: what tests and measurements fill a table with. The
    /// reply of each comes from where its reply tuple says; TCP is established.
    pub fn insert(&mut self, entries: &[(Tuple, Tuple)], timeout: u32) -> Result<(), ConntrackError> {
        let write = |out: &mut Vec<u8>, seq, (orig, reply): &(Tuple, Tuple)| {
            let start = begin_message(out, NEW, F_CREATE | F_EXCL, seq, orig.family(), 0);
            orig.write(out, entry::TUPLE_ORIG);
            reply.write(out, entry::TUPLE_REPLY);
            put(out, entry::TIMEOUT, &timeout.to_be_bytes());
            if orig.protocol == entry::TCP {
                let info = begin_nest(out, entry::PROTOINFO);
                let tcp = begin_nest(out, entry::PROTOINFO_TCP);
                put(out, entry::PROTOINFO_TCP_STATE, &[entry::TCP_ESTABLISHED]);
                end_nest(out, tcp);
                end_nest(out, info);
            }
            end_message(out, start);
        };
        for entries in entries.chunks(AT_ONCE) {
            self.send_all(entries, write, |_| false).map_err(|errno| error("add an entry to", errno))?;
        }
        Ok(())
    }

    /// Sends a message for each item in one datagram, and reads the answers to those that failed. The
    /// error of the last of them, but for those that are harmless.
    fn send_all<T>(
        &mut self,
        items: &[T],
        write: impl Fn(&mut Vec<u8>, u32, &T),
        harmless: impl Fn(Errno) -> bool,
    ) -> nix::Result<()> {
        let count = items.len() as u32;
        let first = self.socket.take_seqs(count);
        let mut bytes = Vec::with_capacity(items.len() * 160);
        (first..).zip(items).for_each(|(seq, item)| write(&mut bytes, seq, item));
        self.socket.send(&bytes)?;
        let mut result = Ok(());
        loop {
            match self.socket.receive()? {
                Received::Nothing => return result,
                Received::Lost => tracing::debug!("answers of conntrack were lost"),
                Received::Datagram(datagram) => {
                    let ours = |seq: u32| seq.wrapping_sub(first) < count;
                    for message in wire::messages(datagram).filter(|m| ours(m.seq) && m.kind == NLMSG_ERROR) {
                        match socket::error_of(&message) {
                            Some(errno) if !harmless(errno) => result = Err(errno),
                            _ => {}
                        }
                    }
                }
            }
        }
    }

    fn ask_count(&mut self) -> nix::Result<u32> {
        let mut count = None;
        let outcome = self.socket.request(
            |out, seq| {
                let start = begin_message(out, GET_STATS, 0, seq, 0, 0);
                end_message(out, start);
            },
            |message| {
                if message.kind == GET_STATS {
                    count = message.attrs().value_of(1).and_then(be32);
                }
            },
        )?;
        match (outcome, count) {
            (Outcome::Refused(errno), _) => Err(errno),
            (_, Some(count)) => Ok(count),
            _ => Err(Errno::EPROTO),
        }
    }
}

fn error(doing: &'static str, errno: Errno) -> ConntrackError {
    ConntrackError { doing, source: errno.into() }
}
