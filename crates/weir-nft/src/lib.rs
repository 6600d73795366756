//! The safe face of nf_tables: applies [`Transaction`]s to the kernel, and reads a [`Table`] back.
//!
//! ```text
//!                Transactions                                        Table
//!                     │                                                ▲
//!                     ▼                                                │
//!   batch.rs    one batch of messages                     dump.rs   a generation, whole
//!      │  tables, chains, sets, rules: libnftnl (ffi.rs)     │   rules.rs, decl.rs, elements.rs:
//!      │  elements: elements.rs                              │   attributes -> model
//!      │                                                     │
//!      └──────────────> socket.rs: one sendmsg, recv until empty <──────┘
//!                                   │ wire.rs: messages and attributes
//!                                   ▼
//!                          the kernel ──── every commit ───> listen.rs
//! ```
//!
//! What was written is what is read: `dump(apply(x)) == x`. The model is in the kernel's own
//! terms, so that little is to be translated; what is, is this: an interval has both its ends in
//! the model, and is two elements in the kernel (`elements.rs`); types of keys are words in the
//! model and numbers in the kernel (`decl.rs`, `kernel.rs`); nft's notes for itself, without which
//! `nft list ruleset` could not show what Weir made, are added and taken off (`userdata.rs`). What
//! somebody else put in, and Weir cannot say, comes back as `Foreign`, and makes no dump fail.
//!
//! Three things that are not obvious about talking to nf_tables:
//!
//! - A batch is one datagram. The kernel takes each datagram of a longer batch as a batch of its
//!   own; so there is one `sendmsg`, and the send buffer is made as large as it takes.
//! - Success is one acknowledgement, of the last message. Asked for one each, the kernel overflows
//!   the receive buffer and reports ENOBUFS for a batch that it has committed. If even the one is
//!   lost, the generation of the ruleset tells what happened.
//! - Every refused message is answered with its sequence number, and on newer kernels (6.2) with
//!   the place of the refused element in it; that is how an error can name the object.
//!
//! Beside nf_tables there are [`conntrack`]: connections, and bits of their marks; and [`nflog`]: packets that
//! rules tell of. What is not Weir's is in [`others`], and in iptables' old tables ([`legacy`]).
//!
//! Needs Linux 5.15 and `CAP_NET_ADMIN` in the user namespace that owns the network namespace.

mod batch;
pub mod conntrack;
mod decl;
mod dump;
mod elements;
mod error;
#[cfg(feature = "faults")]
pub mod faults;
mod ffi;
mod ipset;
mod kernel;
pub mod legacy;
mod listen;
pub mod nflog;
pub mod others;
mod rules;
mod socket;
mod text;
mod userdata;
mod wire;

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use weir_dataplane::model::{Chain, Family, Table, Transaction};

pub use error::{ApplyError, DumpError, OpenError, Refusal};
pub use ipset::{IPSETS, IpsetError};
pub use listen::{Changes, Commit, Listener};

use batch::Batch;
use dump::Failure;
use socket::{Received, Socket};

/// Refusals that an error carries at most.
const REFUSALS: usize = 16;

/// A connection to the nf_tables of the network namespace in which it was opened.
pub struct Nft {
    socket: Socket,
    #[cfg(feature = "faults")]
    faults: Option<Box<dyn faults::Faults>>,
}

impl Nft {
    /// Opens it, and makes sure that it can be used.
    pub fn open() -> Result<Nft, OpenError> {
        let socket = Socket::open(0).map_err(open_error)?;
        let mut nft = Nft {
            socket,
            #[cfg(feature = "faults")]
            faults: None,
        };
        dump::generation(&mut nft.socket).map_err(open_error)?;
        Ok(nft)
    }

    /// The current generation: every commit, by whomever and in whatever table, makes a new one.
    pub fn generation(&mut self) -> io::Result<u32> {
        Ok(dump::generation(&mut self.socket)?)
    }

    /// The netlink address that [`Commit::port`] has in commits that came from here.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Applies transactions, of one table each, in one batch: all of them or nothing.
    pub fn apply(&mut self, transactions: &[Transaction]) -> Result<(), ApplyError> {
        self.send(transactions, None)
    }

    /// Applies transactions if the ruleset is still of the generation for which they were made, and
    /// fails with [`ApplyError::Stale`] if it is not.
    pub fn apply_at(&mut self, generation: u32, transactions: &[Transaction]) -> Result<(), ApplyError> {
        self.send(transactions, Some(generation))
    }

    /// Reads a table, or `None` if there is none of that name. All of it is of one generation: if
    /// something changes meanwhile it is read again, up to twenty times and with short pauses.
    pub fn dump(&mut self, family: Family, table: &str) -> Result<Option<Table>, DumpError> {
        self.read(family, table, |socket| dump::table(socket, family, table))
    }

    /// The same of its chains with their rules alone, which cost nothing beside large sets.
    pub fn chains(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<Option<BTreeMap<String, Chain>>, DumpError> {
        self.read(family, table, |socket| dump::chains(socket, family, table))
    }

    fn read<T>(
        &mut self,
        family: Family,
        table: &str,
        read: impl Fn(&mut Socket) -> Result<T, Failure>,
    ) -> Result<T, DumpError> {
        for attempt in 0..dump::ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(dump::pause(attempt));
            }
            #[cfg(feature = "faults")]
            if self.faults.as_mut().is_some_and(|faults| faults.dump()) {
                continue;
            }
            match read(&mut self.socket) {
                Ok(read) => return Ok(read),
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Changed) => {
                    tracing::debug!(table, attempt, "the ruleset changed while it was read");
                }
            }
        }
        let table = format!("{} {table}", kernel::family_name(family));
        Err(DumpError::Unstable { table, attempts: dump::ATTEMPTS })
    }

    fn send(&mut self, transactions: &[Transaction], generation: Option<u32>) -> Result<(), ApplyError> {
        let ops = transactions.iter().map(|transaction| transaction.ops.len()).sum::<usize>();
        if ops == 0 {
            return Ok(());
        }
        let first_seq = self.socket.take_seqs(batch::most_messages(transactions));
        let ipsets = ipset::indices_of(&mut self.socket, transactions)?;
        let batch = Batch::new(transactions, &ipsets, generation, first_seq)?;
        let before = self.generation()?;
        #[cfg(feature = "faults")]
        let answer = self.exchange(transactions, &batch)?;
        #[cfg(not(feature = "faults"))]
        let answer = self.send_and_read(&batch)?;
        tracing::debug!(
            tables = transactions.len(),
            ops,
            bytes = batch.bytes.len(),
            acknowledged = answer.acknowledged,
            refusals = answer.refusals.len(),
            "batch"
        );
        if answer.stale {
            return Err(ApplyError::Stale { generation: generation.unwrap_or(before) });
        }
        let mut refusals = answer.refusals.into_iter();
        if let Some(first) = refusals.next() {
            return Err(ApplyError::Refused { first, others: refusals.collect() });
        }
        if answer.acknowledged {
            return Ok(());
        }
        // No answer at all: it was lost, and the generation tells. One more than before was most likely
        // ours; when it was not bound to a generation, or others were at it too, nobody knows.
        match self.generation()?.wrapping_sub(before) {
            0 => Err(ApplyError::Io(io::Error::other("the kernel dropped the batch without an answer"))),
            1 => Ok(()),
            _ => Err(ApplyError::Uncertain),
        }
    }

    fn send_and_read(&mut self, batch: &Batch<'_>) -> Result<Answer, ApplyError> {
        match self.socket.send(&batch.bytes) {
            Ok(()) => self.answer(batch),
            Err(Errno::EMSGSIZE) => Err(ApplyError::TooLarge { bytes: batch.bytes.len() }),
            Err(errno) => Err(ApplyError::Io(errno.into())),
        }
    }

    /// Reads all that the kernel answered to a batch.
    fn answer(&mut self, batch: &Batch<'_>) -> Result<Answer, ApplyError> {
        let mut answer = Answer::default();
        let seqs = batch.seqs();
        loop {
            match self.socket.receive().map_err(io::Error::from)? {
                Received::Nothing => return Ok(answer),
                Received::Lost => tracing::debug!("answers to a batch were lost"),
                Received::Datagram(datagram) => {
                    for message in wire::messages(datagram) {
                        if message.kind != wire::NLMSG_ERROR || !seqs.contains(&message.seq) {
                            continue;
                        }
                        match socket::error_of(&message) {
                            None => answer.acknowledged |= message.seq == batch.last_seq(),
                            Some(Errno::ERESTART) => answer.stale = true,
                            Some(errno) if answer.refusals.len() < REFUSALS => {
                                let extended = socket::extended(&message);
                                answer.refusals.push(Refusal {
                                    object: batch.object(message.seq, extended.offset),
                                    name: batch.name(message.seq),
                                    errno: errno as i32,
                                    detail: extended.text,
                                });
                            }
                            Some(_) => {}
                        }
                    }
                }
            }
        }
    }
}

/// The kernel's answers to a batch.
#[derive(Default)]
struct Answer {
    acknowledged: bool,
    stale: bool,
    refusals: Vec<Refusal>,
}

fn open_error(errno: Errno) -> OpenError {
    match errno {
        Errno::EPERM | Errno::EACCES => OpenError::NoPermission,
        // No netlink or no nfnetlink; no subsystem of nfnetlink with nf_tables' number.
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP => {
            OpenError::NoNfTables
        }
        errno => OpenError::Io(errno.into()),
    }
}
