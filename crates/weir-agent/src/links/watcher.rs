//! Keeps a [`LinkTable`] equal to the kernel's links and routes, by way of one netlink socket.
//!
//! Events and dumps share the socket, so that they arrive in the order in which they happened. It
//! subscribes first; while a dump runs, its answers and the events between them go into a fresh table,
//! which then takes the place of the old one. A new dump is made when events were lost (ENOBUFS), when
//! the table says that it is [stale](Outcome::Stale), and once a minute for what nobody foresaw.

use std::io;
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::event::LinkEvent;
use super::table::{LinkTable, Outcome};
use super::wire::{self, Dump};

/// RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE
const GROUPS: [u32; 4] = [1, 5, 7, 11];
/// Asked for; the kernel grants up to `net.core.rmem_max`.
const RECEIVE_BUFFER: i32 = 1 << 20;
/// Larger than any message that the kernel sends unasked, and than a part of a dump.
const MESSAGE_BUFFER: usize = 128 << 10;
/// An event can precede what it announces (an address' routes go after RTM_DELADDR), and dumps need
/// not wait for the lock under which both happen. Bundles what comes in bursts, too.
const STALE_DELAY: Duration = Duration::from_millis(10);
/// The longest that a change waits for others to join it.
const GATHER: Duration = Duration::from_millis(20);
const RESYNC: Duration = Duration::from_secs(60);
/// A dump that has not ended by then is begun anew.
const DUMP_TIMEOUT: Duration = Duration::from_secs(5);
const DUMP_RETRY: Duration = Duration::from_millis(100);
const DUMP_ATTEMPTS: u32 = 20;
/// So many dumps in a row that the kernel calls inconsistent, before one is used all the same.
const INTERRUPTED_ATTEMPTS: u32 = 5;
const INTERRUPTED_RETRY: Duration = Duration::from_secs(1);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const ENOBUFS: i32 = 105;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

/// Why links and routes cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatcherError {
    /// The socket could not be made.
    #[error(
        "cannot open a netlink socket for links and routes: {0}; is AF_NETLINK forbidden by a seccomp profile?"
    )]
    Open(#[source] io::Error),
    /// The kernel does not announce one of the groups.
    #[error("cannot subscribe to rtnetlink group {group}: {source}")]
    Subscribe {
        /// `RTNLGRP_*`
        group: u32,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Sending or receiving failed, in a way that no new dump mends.
    #[error("netlink socket for links and routes: {0}; restart the agent, rules stay in force meanwhile")]
    Socket(#[source] io::Error),
    /// The kernel did not finish a dump, again and again.
    #[error("the kernel does not list its links and routes: {reason}, {DUMP_ATTEMPTS} times in a row")]
    Dump {
        /// What went wrong the last time.
        reason: String,
    },
}

/// A dump under way.
#[derive(Debug)]
struct Running {
    part: Dump,
    sequence: u32,
    fresh: LinkTable,
    deadline: Instant,
    /// The kernel says that what it listed is not of one moment: entries may be missing.
    interrupted: bool,
}

/// Follows the links and routes of the network namespace that it was made in.
#[derive(Debug)]
pub struct Watcher {
    socket: AsyncFd<Socket>,
    /// The socket's own address.
    port: u32,
    buffer: Vec<u8>,
    table: LinkTable,
    /// When the table began to differ from what the last return of `changed` left.
    changed_since: Option<Instant>,
    running: Option<Running>,
    /// When to begin the next dump.
    dump_at: Instant,
    sequence: u32,
    failed_dumps: u32,
    interrupted_dumps: u32,
    dumps: u64,
}

impl Watcher {
    /// Subscribes, dumps, and returns with a complete table.
    ///
    /// # Errors
    /// If the socket cannot be made, or the kernel does not list its links and routes.
    pub async fn new() -> Result<Self, WatcherError> {
        Watcher::with_receive_buffer(RECEIVE_BUFFER).await
    }

    pub(super) async fn with_receive_buffer(bytes: i32) -> Result<Self, WatcherError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(WatcherError::Open)?;
        socket.set_non_blocking(true).map_err(WatcherError::Open)?;
        let port = socket.bind_auto().map_err(WatcherError::Open)?.port_number();
        socket.set_rx_buf_sz(bytes).map_err(WatcherError::Open)?;
        for group in GROUPS {
            socket.add_membership(group).map_err(|source| WatcherError::Subscribe { group, source })?;
        }
        let mut watcher = Watcher {
            socket: register(socket).map_err(WatcherError::Open)?,
            port,
            buffer: Vec::with_capacity(MESSAGE_BUFFER),
            table: LinkTable::new(),
            changed_since: None,
            running: None,
            dump_at: Instant::now(),
            sequence: 0,
            failed_dumps: 0,
            interrupted_dumps: 0,
            dumps: 0,
        };
        while watcher.dumps == 0 {
            watcher.step().await?;
        }
        watcher.changed_since = None;
        Ok(watcher)
    }

    /// The links and routes as of now, or of a moment ago while a new dump is under way.
    pub fn table(&self) -> &LinkTable {
        &self.table
    }

    /// Waits until the table is another than when this was last called. What comes in a burst is one
    /// change. Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// If the kernel can no longer be followed; the table is then as it was last.
    pub async fn changed(&mut self) -> Result<(), WatcherError> {
        loop {
            let drained = self.receive_all()?;
            if let Some(since) = self.changed_since
                && (drained || since.elapsed() > GATHER)
            {
                self.changed_since = None;
                return Ok(());
            }
            if drained {
                self.step().await?;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    /// How many dumps there have been.
    #[cfg(test)]
    pub(super) fn dumps(&self) -> u64 {
        self.dumps
    }

    /// Waits for a message or for the time of a dump, and sees to it.
    async fn step(&mut self) -> Result<(), WatcherError> {
        let wake = self.running.as_ref().map_or(self.dump_at, |running| running.deadline);
        tokio::select! {
            guard = self.socket.readable() => {
                // Readiness is only cleared on a read that would have to wait.
                let mut guard = guard.map_err(WatcherError::Socket)?;
                let buffer = &mut self.buffer;
                buffer.clear();
                let read = guard.try_io(|socket| receive(socket.get_ref(), buffer));
                if let Ok(read) = read {
                    self.received(read)?;
                }
            }
            () = sleep_until(wake) => self.dump_due()?,
        }
        Ok(())
    }

    /// Takes in what is there. Whether that was all: a storm of events must not keep the caller away.
    fn receive_all(&mut self) -> Result<bool, WatcherError> {
        for _ in 0..256 {
            self.buffer.clear();
            match receive(self.socket.get_ref(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                read => self.received(read)?,
            }
        }
        Ok(false)
    }

    fn received(&mut self, read: io::Result<bool>) -> Result<(), WatcherError> {
        match read {
            Ok(true) => self.take_in(),
            // Not from the kernel.
            Ok(false) => Ok(()),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                debug!("events about links and routes were lost: a new dump follows");
                self.dump_at = Instant::now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(WatcherError::Socket(error)),
        }
    }

    fn take_in(&mut self) -> Result<(), WatcherError> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        let mut result = Ok(());
        while result.is_ok() && !rest.is_empty() {
            let Ok(message) = NetlinkBuffer::new_checked(rest) else {
                // Cut off, or garbled: what it said is lost.
                warn!("a message about links and routes could not be read: a new dump follows");
                self.stale();
                break;
            };
            result = self.message(&message);
            let length = message.length() as usize;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        self.buffer = buffer;
        result
    }

    fn message(&mut self, message: &NetlinkBuffer<&[u8]>) -> Result<(), WatcherError> {
        // An answer carries this socket's port, an announcement that of whoever made the change.
        let answer = message.port_number() == self.port;
        let sequence = message.sequence_number();
        let mine = self.running.as_mut().filter(|running| answer && running.sequence == sequence);
        let payload = message.payload();
        match (message.message_type(), mine) {
            (NLMSG_ERROR | NLMSG_DONE, Some(running)) => {
                running.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return self.dump_ended(-code);
            }
            (_, Some(running)) => running.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0,
            // What is left of a dump that was given up.
            (_, None) if answer => return Ok(()),
            (_, None) => {}
        }
        match wire::event(message.message_type(), message.flags(), payload) {
            Ok(Some(event)) => self.apply(event),
            Ok(None) => {}
            Err(error) => {
                warn!(%error, kind = message.message_type(), "a link or route could not be read and is ignored");
            }
        }
        Ok(())
    }

    fn apply(&mut self, event: LinkEvent) {
        let table = self.running.as_mut().map_or(&mut self.table, |running| &mut running.fresh);
        let outcome = table.apply(event);
        if outcome == Outcome::Stale {
            self.stale();
        }
        if outcome != Outcome::Same && self.running.is_none() {
            self.changed_since.get_or_insert_with(Instant::now);
        }
    }

    fn stale(&mut self) {
        self.dump_at = self.dump_at.min(Instant::now() + STALE_DELAY);
    }

    fn dump_due(&mut self) -> Result<(), WatcherError> {
        if self.running.take().is_some() {
            return self.dump_failed("no answer".to_owned());
        }
        self.dump_at = Instant::now() + RESYNC;
        self.ask(Dump::Links, LinkTable::new(), false)
    }

    fn ask(&mut self, part: Dump, fresh: LinkTable, interrupted: bool) -> Result<(), WatcherError> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let kernel = SocketAddr::new(0, 0);
        match self.socket.get_ref().send_to(&part.request(self.sequence), &kernel, 0) {
            Ok(_) => {
                let deadline = Instant::now() + DUMP_TIMEOUT;
                self.running = Some(Running { part, sequence: self.sequence, fresh, deadline, interrupted });
                Ok(())
            }
            Err(error) => self.dump_failed(error.to_string()),
        }
    }

    /// One part of a dump came to its end, with this error number or 0.
    fn dump_ended(&mut self, error: i32) -> Result<(), WatcherError> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let without_v6 = running.part == Dump::RoutesV6 && [EOPNOTSUPP, EAFNOSUPPORT].contains(&error);
        if error != 0 && !without_v6 {
            return self.dump_failed(io::Error::from_raw_os_error(error).to_string());
        }
        if let Some(next) = running.part.next() {
            return self.ask(next, running.fresh, running.interrupted);
        }
        if running.interrupted {
            // Where links and routes come and go all the time, a dump with gaps and all events since
            // is better than none; but it is not the last word.
            self.interrupted_dumps += 1;
            if !self.interrupted_dumps.is_multiple_of(INTERRUPTED_ATTEMPTS) {
                self.dump_at = Instant::now() + STALE_DELAY;
                return Ok(());
            }
            self.dump_at = self.dump_at.min(Instant::now() + INTERRUPTED_RETRY);
        } else {
            self.interrupted_dumps = 0;
        }
        self.failed_dumps = 0;
        self.dumps += 1;
        if self.table != running.fresh {
            self.table = running.fresh;
            self.changed_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn dump_failed(&mut self, reason: String) -> Result<(), WatcherError> {
        self.failed_dumps += 1;
        if self.failed_dumps >= DUMP_ATTEMPTS {
            return Err(WatcherError::Dump { reason });
        }
        debug!(reason, "a dump of links and routes failed and is repeated");
        self.dump_at = Instant::now() + DUMP_RETRY;
        Ok(())
    }
}

/// Hands the socket to tokio's reactor.
#[allow(
    deprecated,
    reason = "the successor is unsafe for types that may close or replace their descriptor; Socket owns one for life"
)]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::new(socket)
}

/// One datagram; whether it is the kernel's.
fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let (_, sender) = socket.recv_from(buffer, 0)?;
    Ok(sender.port_number() == 0)
}
