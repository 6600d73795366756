//! Connections that go on: the server speaks first and keeps sending, numbered.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_lab::netns::Netns;

const EVERY: Duration = Duration::from_millis(2);
/// So long nothing comes of what is sent every 2 ms: it does not pass.
const SILENCE: Duration = Duration::from_millis(600);
/// Until then what should happen must have happened.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection between two namespaces. The client says hello; from then on the server sends a number every 2
/// ms, and the client, if it is [`Both`](Speakers::Both), too.
pub struct Talk {
    name: String,
    sent: Arc<AtomicU64>,
    /// What the client got, in order.
    got: Arc<Mutex<Vec<u64>>>,
    /// What the server got from the client since hello.
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speakers {
    Server,
    Both,
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

impl Talk {
    fn new(name: String) -> Talk {
        let (sent, answered, got, stop) = Default::default();
        Talk { name, sent, got, answered, stop }
    }

    /// `at` is what the client connects to; the server listens on `port` of all its addresses.
    pub fn tcp(client: &Netns, server: &Netns, at: (IpAddr, u16), port: u16, speakers: Speakers) -> Talk {
        let talk = Talk::new(format!("TCP to {at:?}, {speakers:?}"));
        let any = unspecified(at.0);
        let listener = server.run(|| Ok(TcpListener::bind((any, port))?)).expect("a listener");
        let mut theirs = client
            .run(|| Ok(TcpStream::connect_timeout(&SocketAddr::from(at), Duration::from_secs(5))?))
            .unwrap_or_else(|e| panic!("{}: {e:#}", talk.name));
        let (mut ours, _) = listener.accept().expect("a client");
        let (sent, stop) = (Arc::clone(&talk.sent), Arc::clone(&talk.stop));
        for stream in [&ours, &theirs] {
            stream.set_nodelay(true).expect("an option");
            stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        }
        let reader = (ours.try_clone().expect("a copy"), Arc::clone(&talk.answered), Arc::clone(&talk.stop));
        std::thread::spawn(move || numbers(&stop, |n| ours.write_all(&n.to_be_bytes()).is_ok(), &sent));
        std::thread::spawn(move || {
            let (mut stream, answered, stop) = reader;
            read_all(&mut stream, &stop, |_| {
                answered.fetch_add(1, SeqCst);
            });
        });
        if speakers == Speakers::Both {
            let (mut writer, stop) = (theirs.try_clone().expect("a copy"), Arc::clone(&talk.stop));
            let sent = Arc::new(AtomicU64::new(0));
            std::thread::spawn(move || numbers(&stop, |n| writer.write_all(&n.to_be_bytes()).is_ok(), &sent));
        }
        let (got, stop) = (Arc::clone(&talk.got), Arc::clone(&talk.stop));
        std::thread::spawn(move || {
            read_all(&mut theirs, &stop, |n| got.lock().expect("a lock").push(n));
        });
        talk.alive();
        talk
    }

    /// The same for UDP. `from` is the client's port, 0: any.
    pub fn udp(
        client: &Netns,
        server: &Netns,
        from: u16,
        at: (IpAddr, u16),
        port: u16,
        speakers: Speakers,
    ) -> Talk {
        let talk = Talk::new(format!("UDP to {at:?}, {speakers:?}"));
        let any = unspecified(at.0);
        let ours = server.run(|| Ok(UdpSocket::bind((any, port))?)).expect("a socket");
        let theirs = client.run(|| Ok(UdpSocket::bind((any, from))?)).expect("a socket");
        theirs.connect(SocketAddr::from(at)).expect("a route");
        for socket in [&ours, &theirs] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        }
        theirs.send(b"hello").expect("sent");
        ours.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let (_, peer) =
            ours.recv_from(&mut [0; 16]).unwrap_or_else(|e| panic!("{}: no hello: {e}", talk.name));
        let (sent, stop) = (Arc::clone(&talk.sent), Arc::clone(&talk.stop));
        let (reader, answered) = (ours.try_clone().expect("a copy"), Arc::clone(&talk.answered));
        std::thread::spawn(move || {
            numbers(&stop, |n| sent_or_lost(ours.send_to(&n.to_be_bytes(), peer)), &sent);
        });
        let stop = Arc::clone(&talk.stop);
        std::thread::spawn(move || {
            while !stop.load(SeqCst) {
                if reader.recv_from(&mut [0; 16]).is_ok() {
                    answered.fetch_add(1, SeqCst);
                }
            }
        });
        if speakers == Speakers::Both {
            let (writer, stop) = (theirs.try_clone().expect("a copy"), Arc::clone(&talk.stop));
            let sent = Arc::new(AtomicU64::new(0));
            std::thread::spawn(move || {
                numbers(&stop, |n| sent_or_lost(writer.send(&n.to_be_bytes())), &sent)
            });
        }
        let (got, stop) = (Arc::clone(&talk.got), Arc::clone(&talk.stop));
        std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while !stop.load(SeqCst) {
                if theirs.recv(&mut buffer).is_ok_and(|n| n == 8) {
                    got.lock().expect("a lock").push(u64::from_be_bytes(buffer));
                }
            }
        });
        talk.alive();
        talk
    }

    fn counts(&self) -> (usize, u64) {
        (self.got.lock().expect("a lock").len(), self.answered.load(SeqCst))
    }

    /// What the server sends arrives.
    pub fn alive(&self) {
        let (before, deadline) = (self.counts().0, Instant::now() + PATIENCE);
        while self.counts().0 < before + 20 {
            assert!(Instant::now() < deadline, "{} is dead and should live", self.name);
            std::thread::sleep(EVERY);
        }
    }

    /// Nothing arrives any more, in either direction, and stays so.
    pub fn dead(&self) {
        all_dead(&[self]);
    }

    /// All that the server has sent until now arrived, in order.
    pub fn lost_nothing(&self) {
        let sent = self.sent.load(SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while self.got.lock().expect("a lock").last().is_none_or(|last| *last < sent) {
            assert!(Instant::now() < deadline, "{} is dead and should live", self.name);
            std::thread::sleep(EVERY);
        }
        let got = self.got.lock().expect("a lock");
        let gap = got.windows(2).find(|pair| pair[1] != pair[0] + 1);
        assert_eq!(gap, None, "{} lost packets", self.name);
    }
}

/// Of none of them anything arrives any more, in either direction, and it stays so.
pub fn all_dead(talks: &[&Talk]) {
    let deadline = Instant::now() + PATIENCE;
    let counts = || talks.iter().map(|talk| talk.counts()).collect::<Vec<_>>();
    let living = |before: &[(usize, u64)]| {
        let pairs = talks.iter().zip(before);
        pairs.filter(|(talk, before)| talk.counts() != **before).map(|(talk, _)| &*talk.name).collect()
    };
    loop {
        let before = counts();
        std::thread::sleep(SILENCE);
        let living: Vec<&str> = living(&before);
        if living.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "these live and should be dead: {living:?}");
    }
    let before = counts();
    std::thread::sleep(2 * SILENCE);
    assert_eq!(living(&before), Vec::<&str>::new(), "these came back");
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() }
}

/// An error of a datagram's is that of one before it, such as that nobody was there.
fn sent_or_lost(_: std::io::Result<usize>) -> bool {
    true
}

fn numbers(stop: &AtomicBool, mut send: impl FnMut(u64) -> bool, sent: &AtomicU64) {
    let mut number = 0;
    while !stop.load(SeqCst) {
        if send(number) {
            sent.store(number, SeqCst);
            number += 1;
        }
        std::thread::sleep(EVERY);
    }
}

fn read_all(stream: &mut TcpStream, stop: &AtomicBool, mut each: impl FnMut(u64)) {
    let (mut buffer, mut have) = ([0; 8], 0);
    while !stop.load(SeqCst) {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return,
            Ok(n) => have += n,
            Err(_) => {}
        }
        if have == 8 {
            have = 0;
            each(u64::from_be_bytes(buffer));
        }
    }
}
