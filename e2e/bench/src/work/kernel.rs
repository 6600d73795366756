//! What the kernel of a node says that it holds: which addresses came into sets and left them, and when.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Result;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weir_lab::netns::Netns;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// nftables' messages: the subsystem in the upper half.
const NEW_ELEMENT: u16 = 10 << 8 | 12;
const DELETED_ELEMENT: u16 = 10 << 8 | 14;
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// An element that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// When that was heard of.
    pub(super) at: Instant,
    /// It came, or it went.
    pub(super) came: bool,
    /// Of the set or map.
    pub(super) set: String,
    /// What begins the key: an address, or the beginning of a name.
    pub(super) key: [u8; 4],
}

impl Element {
    /// Its key, if it is one of addresses.
    pub(super) fn address(&self) -> Ipv4Addr {
        self.key.into()
    }
}

#[derive(Debug, Default)]
struct Heard {
    elements: Vec<Element>,
    commits: usize,
    lost: bool,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    heard: Arc<Mutex<Heard>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    /// Listens in a namespace.
    pub(super) fn start(netns: &Netns) -> Result<Watched> {
        let socket = netns.run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.add_membership(GROUP)?;
            socket.set_rx_buf_sz(4_i32 << 20)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        })?;
        let (heard, end) = (Arc::<Mutex<Heard>>::default(), Arc::new(AtomicBool::new(false)));
        let (to, ended) = (heard.clone(), end.clone());
        let thread = std::thread::Builder::new().name("kernel".to_owned()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if is_readable(&socket) {
                    listen(&socket, &to);
                }
            }
        })?;
        Ok(Watched { heard, end, thread: Some(thread) })
    }

    /// What was heard since the last time, and how many commits there were.
    ///
    /// # Errors
    /// Something was lost: nobody can say.
    pub(super) fn take(&self) -> Result<(Vec<Element>, usize)> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(!heard.lost, "this program was too slow to hear all that the kernel tells");
        Ok((std::mem::take(&mut heard.elements), std::mem::take(&mut heard.commits)))
    }

    /// How many elements wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elements.len()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether there is something to read, within a while.
fn is_readable(socket: &Socket) -> bool {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut wanted, PollTimeout::from(100_u16)).is_ok_and(|ready| ready > 0)
}

fn listen(socket: &Socket, to: &Mutex<Heard>) {
    let mut buffer = Vec::with_capacity(1 << 16);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(0) => return,
            Ok(_) => {
                let at = Instant::now();
                let mut heard = to.lock().unwrap_or_else(PoisonError::into_inner);
                read(&buffer, at, &mut heard);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                to.lock().unwrap_or_else(PoisonError::into_inner).lost = true;
            }
            Err(_) => return,
        }
    }
}

fn read(mut datagram: &[u8], at: Instant, heard: &mut Heard) {
    while let Some((message, rest)) = message(datagram) {
        datagram = rest;
        let (kind, body) = message;
        let came = match kind {
            NEW_GENERATION => {
                heard.commits += 1;
                continue;
            }
            NEW_ELEMENT => true,
            DELETED_ELEMENT => false,
            _ => continue,
        };
        let [mut set, mut elements] = [&[][..]; 2];
        for (kind, value) in attributes(body) {
            match kind {
                2 => set = value.strip_suffix(&[0]).unwrap_or(value),
                3 => elements = value,
                _ => {}
            }
        }
        for (_, element) in attributes(elements) {
            let key = attributes(element).find(|(kind, _)| *kind == 1).map(|(_, key)| key);
            let value = key.and_then(|key| attributes(key).find(|(kind, _)| *kind == 1));
            let Some(key) = value.and_then(|(_, value)| value.first_chunk::<4>()) else { continue };
            let set = String::from_utf8_lossy(set).into_owned();
            heard.elements.push(Element { at, came, set, key: *key });
        }
    }
}

type Message<'a> = (u16, &'a [u8]);

/// The first message of a datagram, without its heads, and what follows it.
fn message(datagram: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*datagram.get(4)?, *datagram.get(5)?]);
    let body = datagram.get(20..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(((kind, body), rest))
}

/// Types and values.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
