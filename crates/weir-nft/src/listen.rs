//! Who changed the ruleset, and when.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::error::OpenError;
use crate::kernel;
use crate::socket::{Received, Socket};
use crate::wire::{self, Kind, be32, string};
use weir_dataplane::model::Family;

/// `NFNLGRP_NFTABLES` as a bit.
const GROUP: u32 = 1 << (7 - 1);

/// A commit by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The generation that it made.
    pub generation: u32,
    /// It changed something of the tables that are listened to.
    pub touched: bool,
    /// The netlink address of the socket that it came from: [`Nft::port`](crate::Nft::port) if it was ours.
    pub port: u32,
    /// The thread that sent it; its first thread has the process's own number.
    pub thread: Option<u32>,
    /// That thread's name, for most programs the program's, such as `nft`.
    pub name: Option<String>,
}

/// What happened since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In their order.
    pub commits: Vec<Commit>,
    /// There were more than the socket's buffer held: some are not in `commits`.
    pub lost: bool,
}

impl Changes {
    /// Somebody else changed one of the tables, or may have: `ours` is [`Nft::port`](crate::Nft::port).
    pub fn foreign(&self, ours: u32) -> bool {
        self.lost || self.commits.iter().any(|commit| commit.touched && commit.port != ours)
    }
}

/// A nonblocking socket that becomes readable when someone changes the ruleset of its network
/// namespace, in any table.
pub struct Listener {
    socket: Socket,
    tables: Vec<(u8, String)>,
    /// Something of the tables was in the commit of which the end is still to come.
    touched: bool,
}

impl Listener {
    /// Opens it for these tables; what was committed before is not reported.
    pub fn open(tables: &[(Family, &str)]) -> Result<Listener, OpenError> {
        let socket = Socket::open(GROUP).map_err(crate::open_error)?;
        let tables = tables.iter().map(|(family, name)| (kernel::family(*family), (*name).to_owned()));
        Ok(Listener { socket, tables: tables.collect(), touched: false })
    }

    /// Takes all that has come. The kernel tells every object that was changed; here it is one entry a commit.
    pub fn drain(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        loop {
            match self.socket.receive()? {
                Received::Nothing => return Ok(changes),
                Received::Lost => changes.lost = true,
                Received::Datagram(datagram) => {
                    for message in wire::messages(datagram) {
                        if !message.is(Kind::NewGen) {
                            // of every object, the first attribute is its table's name
                            let table = message.attrs().value_of(1).map(string);
                            self.touched |= self.tables.iter().any(|(family, name)| {
                                message.family() == Some(*family) && table.as_deref() == Some(name)
                            });
                            continue;
                        }
                        let attributes = message.attrs();
                        let touched = std::mem::take(&mut self.touched);
                        if let Some(generation) = attributes.clone().value_of(1).and_then(be32) {
                            changes.commits.push(Commit {
                                generation,
                                touched,
                                port: message.port,
                                thread: attributes.clone().value_of(2).and_then(be32),
                                name: attributes.value_of(3).map(string),
                            });
                        }
                    }
                }
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.fd().as_raw_fd()
    }
}
