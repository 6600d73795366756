//! Whoever comes to a controller and is no agent: refused or bounded, and agents are served meanwhile.

#[path = "common/served.rs"]
mod served;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use served::{Controller, NAME, Trust};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use weir_agent::controller::connect::connect;
use weir_compiler::object::{Event, Namespace, ObjectKey, Pod};
use weir_proto::pb::slices_client::SlicesClient;
use weir_proto::pb::{FromAgent, Have, Hello, from_agent, from_controller};

/// Longer than a controller waits for anybody.
const LONG: Duration = Duration::from_secs(30);

struct World {
    controller: Controller,
    folder: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let trust = Trust::new(folder.path());
        let controller = Controller::start(&trust, "0.0.0.0:0", 1);
        controller
            .apply(vec![Event::Namespace(Namespace { name: "a".into(), ..Default::default() }), pod(1)]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        World { controller, folder, runtime }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.controller.address.port()))
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address()).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), tcp).await.unwrap()
    }

    /// One request with a body of any bytes: its gRPC status, or none if there was no answer.
    async fn request(&self, token: Option<&str>, body: Vec<u8>) -> Option<String> {
        let stream = self.tls(b"h2").await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let uri = format!("https://{NAME}/weir.v1.Slices/Follow");
        let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let request =
            token.into_iter().fold(request, |request, token| request.header("authorization", token));
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.ok()?;
        if let Some(status) = answer.headers().get("grpc-status") {
            return Some(status.to_str().unwrap().to_owned());
        }
        let body = tokio::time::timeout(LONG, answer.into_body().collect()).await.expect("an end").ok()?;
        Some(body.trailers()?.get("grpc-status")?.to_str().unwrap().to_owned())
    }
}

fn pod(number: u8) -> Event {
    Event::Pod(Pod {
        key: ObjectKey::new("a", format!("p{number}")),
        uid: String::new(),
        labels: Default::default(),
        node: Some("n1".into()),
        ips: vec![[10, 0, 0, number].into()],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: Vec::new(),
    })
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

fn message(what: from_agent::What) -> Vec<u8> {
    framed(&FromAgent { what: Some(what) }.encode_to_vec())
}

fn hello() -> from_agent::What {
    from_agent::What::Hello(Hello { protocol: 1, version: "test".into() })
}

/// An agent of a node: which node it is told to be, and then the names of the pods that it hears of.
struct Agent {
    node: String,
    messages: tonic::Streaming<weir_proto::pb::FromController>,
    _say: tokio::sync::mpsc::Sender<FromAgent>,
}

impl Agent {
    async fn new(address: SocketAddr, ca: PathBuf, token: &str) -> Result<Agent, String> {
        let channel = connect(address, NAME, &ca).await.map_err(|error| error.to_string())?;
        let (say, said) = tokio::sync::mpsc::channel(4);
        for what in [hello(), from_agent::What::Have(Have::default())] {
            say.send(FromAgent { what: Some(what) }).await.unwrap();
        }
        let outgoing =
            futures_util::stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
        let mut request = tonic::Request::new(outgoing);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = SlicesClient::new(channel).follow(request).await.map_err(|status| status.to_string())?;
        let mut agent = Agent { node: String::new(), messages: answer.into_inner(), _say: say };
        match agent.next().await? {
            from_controller::What::Welcome(welcome) => agent.node = welcome.node,
            other => return Err(format!("{other:?} instead of Welcome")),
        }
        Ok(agent)
    }

    async fn next(&mut self) -> Result<from_controller::What, String> {
        let next =
            tokio::time::timeout(LONG, self.messages.next()).await.map_err(|_| "nothing comes".to_owned())?;
        let message = next.ok_or("the end")?.map_err(|status| status.to_string())?;
        message.what.ok_or_else(|| "an empty message".to_owned())
    }

    /// Up to the next commit.
    async fn commit(&mut self) -> Result<usize, String> {
        let mut changes = 0;
        loop {
            match self.next().await? {
                from_controller::What::Changes(more) => changes += more.change.len(),
                from_controller::What::Commit(_) => return Ok(changes),
                other => return Err(format!("{other:?}")),
            }
        }
    }
}

/// Reads until the other end has enough.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> bool {
    let mut buffer = [0; 1024];
    let end = async { while matches!(stream.read(&mut buffer).await, Ok(1..)) {} };
    tokio::time::timeout(LONG, end).await.is_ok()
}

#[test]
fn who_is_no_agent_is_refused() {
    let world = World::new();
    world.runtime.block_on(async {
        let mut agent = Agent::new(world.address(), world.ca(), "node n1").await.unwrap();
        assert_eq!(agent.node, "n1");
        assert_eq!(agent.commit().await, Ok(2));

        // tokens, or none; the node is the token's, whatever an agent would like
        let other = Agent::new(world.address(), world.ca(), "node n2").await.unwrap();
        assert_eq!(other.node, "n2");
        let refused = Agent::new(world.address(), world.ca(), "of somebody").await;
        assert!(refused.is_err_and(|why| why.contains("the token is not valid")));
        assert_eq!(world.request(None, Vec::new()).await.as_deref(), Some("16"));
        assert_eq!(world.request(Some("node n1"), Vec::new()).await.as_deref(), Some("16"), "not a Bearer");

        // who has a token, and talks nonsense
        let token = Some("Bearer node n1");
        let have = |parts| message(from_agent::What::Have(Have { parts }));
        for (what, body, status) in [
            ("nothing", Vec::new(), "3"),
            ("no Hello", have(Vec::new()), "3"),
            ("Hello twice", [message(hello()), message(hello())].concat(), "3"),
            ("of no protocol", message(from_agent::What::Hello(Hello::default())), "3"),
            ("parts of no size", [message(hello()), have(vec![0; 17])].concat(), "3"),
            (
                "parts of a number that is no power of two",
                [message(hello()), have(vec![0; 48])].concat(),
                "3",
            ),
            ("too many parts", [message(hello()), have(vec![0; 16 * 8192])].concat(), "3"),
            ("noise", framed(&[0xff; 100]), "13"),
            ("too long", framed(&vec![0; (1 << 20) + 1]), "11"),
            ("a length of 4 GiB", vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3], "11"),
            ("compressed, as nobody agreed", vec![1, 0, 0, 0, 1, 0], "13"),
        ] {
            assert_eq!(world.request(token, body).await.as_deref(), Some(status), "{what}");
        }

        // no TLS, or not ours; no HTTP/2
        let mut plain = TcpStream::connect(world.address()).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(closed(plain).await, "plain HTTP");
        let mut noise = world.tls(b"h2").await;
        noise.write_all(&[0xee; 4096]).await.unwrap();
        assert!(closed(noise).await, "no HTTP/2");

        // who says nothing is waited for, but not for ever
        let silent = TcpStream::connect(world.address()).await.unwrap();
        let encrypted = world.tls(b"h2").await;
        let (silent, encrypted) = tokio::join!(closed(silent), closed(encrypted));
        assert!(silent && encrypted, "who says nothing");
        let mut metrics = String::new();
        prometheus_client::encoding::text::encode(&mut metrics, &world.controller.registry).unwrap();
        let refused = |reason: &str, count: u32| {
            format!("weir_controller_refused_connections_total{{reason=\"{reason}\"}} {count}\n")
        };
        // plain HTTP; who said nothing is another matter
        assert!(metrics.contains(&refused("no_tls", 1)), "{metrics}");

        world.controller.apply(vec![pod(2)]);
        assert_eq!(agent.commit().await, Ok(1), "the agent is served all the while");
    });
}

#[test]
fn ten_thousand_idle_connections_are_bounded_and_agents_are_served() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const IDLE: usize = 10_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most >= IDLE as u64 + 5000, "needs 15,000 open files: ulimit -Hn is {most}");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();

    let world = World::new();
    world.runtime.block_on(async {
        let mut agent = Agent::new(world.address(), world.ca(), "node n1").await.unwrap();
        assert_eq!(agent.commit().await, Ok(2));

        // half of them from one address, the others from a hundred
        let mut idle = Vec::new();
        let started = Instant::now();
        for number in 0..IDLE {
            let from = if number < IDLE / 2 { 2 } else { 3 + (number % 100) as u8 };
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
            idle.push(socket.connect(world.address()).await.unwrap());
            if number == IDLE / 2 - 1 || number == IDLE - 1 {
                // those that come from elsewhere are served, and so is one from the same place
                let mut new = Agent::new(world.address(), world.ca(), "node n2").await.unwrap();
                new.commit().await.expect("served");
            }
        }
        println!("{IDLE} connections in {:?}", started.elapsed());
        let mut open = Vec::new();
        for stream in idle {
            let mut byte = [0];
            match stream.try_read(&mut byte) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => open.push(stream),
                _ => {}
            }
        }
        println!("{} of them are open", open.len());
        assert!(open.len() <= 2048 + 100, "{} strangers at once", open.len());
        let from_one =
            open.iter().filter(|s| s.local_addr().is_ok_and(|a| a.ip().to_string() == "127.0.0.2"));
        assert!(from_one.count() <= 64 + 10, "from one address");

        world.controller.apply(vec![pod(2)]);
        assert_eq!(agent.commit().await, Ok(1), "the agent is served all the while");
        for stream in open {
            assert!(closed(stream).await, "in the end, all are closed");
        }
    });
}
