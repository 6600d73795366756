//! Packets between pods: who answers, and who does not.
//!
//! Sockets belong for ever to the namespace in which they were made. Each is made by a short-lived thread
//! inside of its pod's namespace, and then all of them are driven together by one runtime outside. Every pod
//! listens on every port that is probed, and says its name to whoever connects, so that a connection that
//! ends at the wrong pod does not count as one that passes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::runtime::{Handle, Runtime};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use crate::cluster::Pod;
use crate::network::Network;
use crate::ports::{Port, Transport};

mod echo;
mod sctp;

/// Sockets in flight at one time.
const IN_FLIGHT: usize = 6000;
/// A UDP probe is sent again after this long without an answer.
const RESEND: Duration = Duration::from_millis(100);

/// One question: does this flow pass?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Index of the pod that opens the connection.
    pub from: usize,
    /// Index of the pod that answers.
    pub to: usize,
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol and destination port.
    pub port: Port,
}

/// Who is asked, and who is to answer.
#[derive(Debug, Clone)]
struct Target {
    at: SocketAddr,
    name: String,
    /// Payload of the question, if it is to be large.
    bytes: u16,
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The right pod answered.
    Passed,
    /// Nobody did.
    Silent,
    /// Somebody else did, or an error came back.
    Wrong(String),
}

/// Listeners, and the runtime that drives all sockets.
#[derive(Debug)]
pub struct Prober {
    runtime: Runtime,
    listeners: HashMap<(SocketAddr, Transport), Listener>,
}

#[derive(Debug)]
struct Listener {
    /// The namespace's inode: a pod that is built again has another.
    inside: u64,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    /// No listeners yet.
    pub fn new() -> Result<Prober> {
        let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (_, hard) = nix::sys::resource::getrlimit(limit)?;
        nix::sys::resource::setrlimit(limit, hard, hard)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Prober { runtime, listeners: HashMap::new() })
    }

    /// The runtime's handle, for watchers.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Ends all listeners of pods that are gone, and makes every pod listen on `ports`.
    pub fn listen(&mut self, network: &Network, pods: &[Pod], ports: &[Port]) -> Result<()> {
        let mut owners: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for pod in pods {
            let inside =
                network.pod(pod).with_context(|| format!("{} has no namespace", pod.key))?.inode()?;
            owners.extend(pod.addresses.iter().map(|ip| (*ip, inside)));
        }
        self.listeners.retain(|(at, _), l| owners.get(&at.ip()) == Some(&l.inside) && !l.task.is_finished());
        for pod in pods {
            let name = place(pod);
            let missing: BTreeSet<(SocketAddr, Transport)> = pod
                .addresses
                .iter()
                .flat_map(|ip| ports.iter().filter_map(|port| listener(*ip, *port)))
                .filter(|key| !self.listeners.contains_key(key))
                .collect();
            if missing.is_empty() {
                continue;
            }
            let netns = network.pod(pod).with_context(|| format!("{} has no namespace", pod.key))?;
            let _runtime = self.runtime.enter();
            let sockets = netns.run(|| {
                let open = |(at, protocol): &(SocketAddr, Transport)| match protocol {
                    Transport::Udp => std::net::UdpSocket::bind(at).map(Bound::Udp),
                    Transport::Sctp => sctp::socket(at.ip()).map(Bound::Sctp),
                    Transport::Tcp | Transport::Icmp => std::net::TcpListener::bind(at).map(Bound::Tcp),
                };
                let named =
                    |key| open(key).with_context(|| format!("{name} cannot listen on {}/{}", key.0, key.1));
                missing.iter().map(named).collect::<Result<Vec<_>>>()
            })?;
            for (key, socket) in missing.into_iter().zip(sockets) {
                let task = socket.serve(name.clone())?;
                self.listeners.insert(key, Listener { inside: netns.inode()?, task });
            }
        }
        Ok(())
    }

    /// Tries all flows, as many at a time as there may be sockets, and waits for each at most `patience`.
    pub fn probe(
        &self,
        network: &Network,
        pods: &[Pod],
        flows: &[Flow],
        patience: Duration,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = vec![Outcome::Silent; flows.len()];
        let indexes: Vec<usize> = (0..flows.len()).collect();
        for wave in indexes.chunks(IN_FLIGHT) {
            let mut by_source: BTreeMap<(usize, IpAddr), Vec<usize>> = BTreeMap::new();
            for &i in wave {
                by_source.entry((flows[i].from, flows[i].source)).or_default().push(i);
            }
            let mut tasks = JoinSet::new();
            for ((from, source), wanted) in by_source {
                let netns = network
                    .pod(&pods[from])
                    .with_context(|| format!("{} has no namespace", pods[from].key))?;
                let mut by_protocol: BTreeMap<Transport, Vec<(usize, Target)>> = BTreeMap::new();
                for i in wanted {
                    by_protocol.entry(flows[i].port.protocol).or_default().push((i, target(pods, &flows[i])));
                }
                let _runtime = self.runtime.enter();
                let sockets = netns.run(|| {
                    let open = |(protocol, targets)| Sockets::open(protocol, source, targets);
                    Ok(by_protocol.into_iter().map(open).collect::<io::Result<Vec<_>>>()?)
                })?;
                for sockets in sockets {
                    sockets.drive(&mut tasks, patience)?;
                }
            }
            self.runtime.block_on(async {
                while let Some(done) = tasks.join_next().await {
                    for (i, outcome) in done.map_err(|e| anyhow!("a probe ended early: {e}"))? {
                        outcomes[i] = outcome;
                    }
                }
                Ok::<_, anyhow::Error>(())
            })?;
        }
        Ok(outcomes)
    }
}

/// Where something must listen for probes of this port.
fn listener(address: IpAddr, port: Port) -> Option<(SocketAddr, Transport)> {
    match port.protocol {
        Transport::Icmp => None,
        // One raw socket has all ports.
        Transport::Sctp => Some((SocketAddr::new(address, 0), Transport::Sctp)),
        protocol => Some((SocketAddr::new(address, port.number), protocol)),
    }
}

fn target(pods: &[Pod], flow: &Flow) -> Target {
    let at = SocketAddr::new(flow.destination, flow.port.number);
    Target { at, name: place(&pods[flow.to]), bytes: flow.port.bytes }
}

/// What asks the targets of one source over one protocol.
enum Sockets {
    Tcp(Vec<(usize, Target, TcpSocket)>),
    Udp(std::net::UdpSocket, Vec<(usize, Target)>),
    Sctp(std::net::UdpSocket, Vec<(usize, Target)>),
    Echo(std::net::UdpSocket, Vec<(usize, Target)>),
}

impl Sockets {
    /// In the calling thread's namespace.
    fn open(protocol: Transport, source: IpAddr, targets: Vec<(usize, Target)>) -> io::Result<Sockets> {
        Ok(match protocol {
            Transport::Tcp => {
                let with_socket = |(i, target)| Ok((i, target, tcp_client(source)?));
                Sockets::Tcp(targets.into_iter().map(with_socket).collect::<io::Result<_>>()?)
            }
            Transport::Udp => Sockets::Udp(udp_client(source)?, targets),
            Transport::Sctp => Sockets::Sctp(sctp::socket(source)?, targets),
            Transport::Icmp => Sockets::Echo(echo::socket(source)?, targets),
        })
    }

    fn drive(self, tasks: &mut JoinSet<Vec<(usize, Outcome)>>, patience: Duration) -> io::Result<()> {
        match self {
            Sockets::Tcp(all) => {
                for (i, Target { at, name, .. }, socket) in all {
                    tasks.spawn(async move { vec![(i, connect(socket, at, &name, patience).await)] });
                }
            }
            Sockets::Udp(socket, targets) => {
                tasks.spawn(ask_all(UdpSocket::from_std(socket)?, targets, patience));
            }
            Sockets::Sctp(socket, targets) => {
                tasks.spawn(sctp::ask_all(UdpSocket::from_std(socket)?, targets, patience));
            }
            Sockets::Echo(socket, targets) => {
                tasks.spawn(echo::ask_all(UdpSocket::from_std(socket)?, targets, patience));
            }
        }
        Ok(())
    }
}

/// Who answers for a pod: host-network pods share their node's namespace, and its listeners.
pub(crate) fn place(pod: &Pod) -> String {
    if pod.host_network { format!("node {}", pod.node) } else { pod.key.to_string() }
}

/// A UDP socket of the calling thread's namespace.
pub(crate) fn udp_client(source: IpAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind((source, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A TCP socket of the calling thread's namespace that leaves nothing behind when it is closed.
pub(crate) fn tcp_client(source: IpAddr) -> io::Result<TcpSocket> {
    let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.bind((source, 0).into())?;
    Ok(socket)
}

enum Bound {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
    Sctp(std::net::UdpSocket),
}

impl Bound {
    fn serve(self, name: String) -> io::Result<JoinHandle<()>> {
        match self {
            Bound::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                Ok(tokio::spawn(async move {
                    loop {
                        let Ok((mut stream, _)) = listener.accept().await else { continue };
                        // Fits the empty send buffer: this never waits for the client.
                        let _ = stream.write_all(name.as_bytes()).await;
                    }
                }))
            }
            Bound::Udp(socket) => {
                socket.set_nonblocking(true)?;
                let socket = UdpSocket::from_std(socket)?;
                Ok(tokio::spawn(async move {
                    // The rest of a question is there for its size alone.
                    let mut buffer = [0u8; 8];
                    loop {
                        let Ok((n, client)) = socket.recv_from(&mut buffer).await else { continue };
                        let answer = [&buffer[..n], name.as_bytes()].concat();
                        let _ = socket.send_to(&answer, client).await;
                    }
                }))
            }
            Bound::Sctp(socket) => Ok(tokio::spawn(sctp::serve(UdpSocket::from_std(socket)?, name))),
        }
    }
}

/// Connects and reads the name of whoever answers.
pub(crate) async fn connect(socket: TcpSocket, at: SocketAddr, name: &str, patience: Duration) -> Outcome {
    let talk = async {
        let mut stream = socket.connect(at).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    match tokio::time::timeout(patience, talk).await {
        Err(_) => Outcome::Silent,
        Ok(Ok(answer)) if answer == name.as_bytes() => Outcome::Passed,
        Ok(Ok(answer)) => Outcome::Wrong(format!("{:?} answered", String::from_utf8_lossy(&answer))),
        Ok(Err(e)) => Outcome::Wrong(e.to_string()),
    }
}

/// Asks everybody from one socket, again and again until they have answered or patience ends. `ask` writes a question
/// and says where it goes, `hear` tells whose answer it is, and `judge` what it is worth.
async fn exchange<A>(
    socket: UdpSocket,
    targets: Vec<(usize, Target)>,
    patience: Duration,
    ask: impl Fn(usize, &Target) -> (Vec<u8>, SocketAddr),
    hear: impl Fn(&[u8], SocketAddr) -> Option<(usize, A)>,
    judge: impl Fn(&Target, A, SocketAddr) -> Outcome,
) -> Vec<(usize, Outcome)> {
    let deadline = Instant::now() + patience;
    let mut open: HashMap<usize, Target> = targets.into_iter().collect();
    let mut done = Vec::new();
    let mut buffer = [0u8; 2048];
    while !open.is_empty() && Instant::now() < deadline {
        for (index, target) in &open {
            let (question, at) = ask(*index, target);
            // Refused by a rule of the own node (EPERM), too large for the path, no route: silence tells it.
            let _ = socket.send_to(&question, at).await;
        }
        let until = (Instant::now() + RESEND).min(deadline);
        while !open.is_empty() {
            let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await else { break };
            let Ok((n, from)) = received else { continue };
            let Some((index, answer)) = hear(&buffer[..n], from) else { continue };
            // A second answer to the same question finds nothing here.
            let Some(target) = open.remove(&index) else { continue };
            done.push((index, judge(&target, answer, from)));
        }
    }
    done.extend(open.into_keys().map(|index| (index, Outcome::Silent)));
    done
}

/// UDP: each datagram carries its flow's index, and so does its answer, with the name of who gave it.
async fn ask_all(
    socket: UdpSocket,
    targets: Vec<(usize, Target)>,
    patience: Duration,
) -> Vec<(usize, Outcome)> {
    let ask = |index: usize, target: &Target| {
        let mut question = (index as u64).to_be_bytes().to_vec();
        question.resize(question.len().max(target.bytes.into()), 0);
        (question, target.at)
    };
    let hear = |bytes: &[u8], _| {
        let (index, said) = bytes.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*index) as usize, said.to_vec()))
    };
    let judge = |target: &Target, said: Vec<u8>, from| {
        if said != target.name.as_bytes() || from != target.at {
            Outcome::Wrong(format!("{:?} at {from} answered", String::from_utf8_lossy(&said)))
        } else {
            Outcome::Passed
        }
    };
    exchange(socket, targets, patience, ask, hear, judge).await
}
