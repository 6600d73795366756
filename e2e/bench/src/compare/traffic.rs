//! What is measured with packets: time to connect, connections one after the other, bulk; and whether a
//! layout says what the policies say.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use super::case::{Case, Flow, Random, SERVER};
use super::wire::{LOST, Wired};

/// Of each kind, allowed and denied, are tried before a layout is measured.
const VERDICTS: usize = 50;
/// What passes has arrived by then: nothing waits on the way.
const DENIED_AFTER: Duration = Duration::from_millis(250);
/// What is under way at a time.
const CHUNK: usize = 128 << 10;
/// What is timed, in bulk: bytes.
pub(super) const PIECE: usize = 1 << 20;

/// What each connection of a round took.
#[derive(Debug, Default)]
pub(super) struct Connects {
    /// Its `connect`.
    pub(super) connect: Vec<Duration>,
    /// All of it: made, connected, accepted, closed.
    pub(super) whole: Vec<Duration>,
}

/// Connects one after the other; the thread moves into the client's namespace. The first `warm` do not count.
pub(super) fn connect(
    wired: &Wired,
    flows: &mut dyn FnMut() -> Flow,
    count: usize,
    warm: usize,
) -> Result<Connects> {
    wired.client.enter()?;
    let mut connects = Connects::default();
    for i in 0..warm + count {
        let flow = flows();
        let started = Instant::now();
        let socket = client(&flow)?;
        let before = Instant::now();
        socket.connect(&server(&flow).into()).with_context(|| format!("{flow:?} does not connect"))?;
        let took = before.elapsed();
        let (accepted, _) = wired.listener(flow.port).accept()?;
        drop(socket); // resets
        drop(accepted);
        if i >= warm {
            connects.connect.push(took);
            connects.whole.push(started.elapsed());
        }
    }
    Ok(connects)
}

fn client(flow: &Flow) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(SocketAddrV4::new(flow.source, 0)).into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_write_timeout(Some(LOST))?;
    Ok(socket)
}

fn server(flow: &Flow) -> SocketAddr {
    SocketAddrV4::new(SERVER, flow.port).into()
}

/// A connection that stays, for bulk.
#[derive(Debug)]
pub(super) struct Pipe {
    client: TcpStream,
    server: TcpStream,
    buffer: Vec<u8>,
}

impl Pipe {
    pub(super) fn new(wired: &Wired, flow: &Flow) -> Result<Pipe> {
        wired.client.enter()?;
        let socket = client(flow)?;
        socket.connect(&server(flow).into()).with_context(|| format!("{flow:?} does not connect"))?;
        let (accepted, _) = wired.listener(flow.port).accept()?;
        let pipe = Pipe { client: socket.into(), server: accepted, buffer: vec![0; CHUNK] };
        for stream in [&pipe.client, &pipe.server] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        Ok(pipe)
    }

    /// Sends pieces and receives them, in turns, in this one thread: no scheduler is measured along. What
    /// each piece took.
    pub(super) fn send(&mut self, pieces: usize) -> Result<Vec<Duration>> {
        (0..pieces).map(|_| self.piece()).collect()
    }

    /// Half of it to the server, and half of it back.
    fn piece(&mut self) -> Result<Duration> {
        let started = Instant::now();
        for _ in 0..PIECE / CHUNK / 2 {
            transfer(&mut self.client, &mut self.server, &mut self.buffer)?;
            transfer(&mut self.server, &mut self.client, &mut self.buffer)?;
        }
        Ok(started.elapsed())
    }
}

/// All of the buffer.
fn transfer(from: &mut TcpStream, to: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let started = Instant::now();
    let (mut sent, mut received) = (0, 0);
    while received < buffer.len() {
        if sent < buffer.len() {
            sent += blocked(from.write(&buffer[sent..]))?;
        }
        received += blocked(to.read(buffer))?;
        ensure!(started.elapsed() < LOST, "bulk: {} bytes have not arrived within {LOST:?}", buffer.len());
    }
    Ok(())
}

fn blocked(result: std::io::Result<usize>) -> Result<usize> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        Ok(0) => bail!("bulk: the connection was closed"),
        other => Ok(other?),
    }
}

/// What is to be checked: the layout's name, its node, its policies, and whether it enforces them.
pub(super) type Checked<'a> = (&'a str, &'a Wired, &'a Case, bool);

/// Tries flows at random, allowed and denied ones, in all layouts at the same time, and fails if one does
/// not get through, or is held back, as the policies say.
pub(super) fn check(layouts: &[Checked<'_>]) -> Result<()> {
    let mut random = Random::new(2);
    let mut attempts = Vec::new();
    for (name, wired, case, enforces) in layouts {
        wired.client.enter()?;
        for _ in 0..VERDICTS {
            for flow in [case.allowed(&mut random), case.denied(&mut random)] {
                let socket = client(&flow)?;
                socket.set_nonblocking(true)?;
                // in progress, or refused at once: asked for below
                let _ = socket.connect(&server(&flow).into());
                attempts.push((*name, flow, flow.allowed || !enforces, socket));
            }
        }
    }
    std::thread::sleep(DENIED_AFTER);
    let mut wrong = Vec::new();
    for (name, flow, expected, socket) in &attempts {
        if socket.peer_addr().is_ok() != *expected {
            let is = if *expected { "not let through" } else { "let through" };
            wrong.push(format!("{name}: {}:{} was {is}", flow.source, flow.port));
        }
    }
    drop(attempts);
    layouts.iter().try_for_each(|(_, wired, ..)| wired.drain())?;
    ensure!(
        wrong.is_empty(),
        "{} verdicts are wrong, so no time counts; the first: {}",
        wrong.len(),
        wrong[..wrong.len().min(3)].join("; ")
    );
    Ok(())
}
