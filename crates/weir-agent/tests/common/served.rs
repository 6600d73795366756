//! Controllers to connect to, over TLS on loopback: real ones, and such as say what they are told to.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt, iter, pending};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming, async_trait};
use weir_agent::controller::{Options, address::Address};
use weir_compiler::object::{Event, ObjectKey};
use weir_controller::accept::accept;
use weir_controller::authority::Authorities;
use weir_controller::drive::Driver;
use weir_controller::events::Reporter;
use weir_controller::hub::Hub;
use weir_controller::identity::{Identify, Refused};
use weir_controller::metrics::Metrics;
use weir_controller::mode::Told;
use weir_controller::serve::Server;
use weir_controller::tls::Presented;
use weir_health::Health;
use weir_proto::pb::{FromAgent, FromController, from_controller, slices_server};
use weir_proto::{DigestKey, Mode};
use weir_source::Update;

pub const NAME: &str = "weir-controller.weir-system.svc";

/// What controllers and agents have in common: an authority, and tokens.
pub struct Trust {
    authorities: Authorities,
    folder: PathBuf,
}

impl Trust {
    /// With files in a folder.
    pub fn new(folder: &Path) -> Trust {
        let authorities = Authorities::new(OffsetDateTime::now_utc()).unwrap();
        std::fs::write(folder.join("ca.crt"), authorities.bundle()).unwrap();
        std::fs::write(folder.join("token"), "node n1\n").unwrap();
        Trust { authorities, folder: folder.to_owned() }
    }

    /// An agent of node n1.
    pub fn options(&self, addresses: &[SocketAddr]) -> Options {
        let address = |address: &SocketAddr| address.to_string().parse::<Address>().unwrap();
        Options {
            addresses: addresses.iter().map(address).collect(),
            name: NAME.to_owned(),
            ca: self.folder.join("ca.crt"),
            token: self.folder.join("token"),
            node: "n1".to_owned(),
        }
    }

    fn acceptor(&self, name: &str) -> tokio_rustls::TlsAcceptor {
        let leaf = self.authorities.issue(&[name.to_owned()], OffsetDateTime::now_utc()).unwrap();
        Presented::new(leaf.certificate.as_bytes(), leaf.key.as_bytes()).unwrap().acceptor().unwrap()
    }
}

/// Believes what tokens say.
struct Gullible;

#[async_trait]
impl Identify for Gullible {
    async fn node(&self, token: &str) -> Result<String, Refused> {
        let node = token.strip_prefix("node ").map(str::to_owned);
        node.ok_or_else(|| Refused::NotValid("it is none".to_owned()))
    }
}

/// A controller. Dropped, it is gone without a word.
pub struct Controller {
    pub address: SocketAddr,
    /// Its metrics.
    pub registry: Registry,
    updates: mpsc::Sender<(Instant, Update)>,
    mode: watch::Sender<Told>,
    runtime: Option<Runtime>,
}

impl Controller {
    /// Listens at an address, which may have port 0.
    pub fn start(trust: &Trust, address: &str, key: u8) -> Controller {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (calls, heard) = mpsc::channel(16);
        let (updates, stamped) = mpsc::channel(16);
        let synced = Arc::new(AtomicBool::new(false));
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let key = DigestKey::new([key; 32]);
        let (mode, told) = watch::channel(Told { asked: true, ..Told::default() });
        let driver = Driver {
            hub: Hub::new(key),
            updates: stamped,
            calls: heard,
            mode: told,
            synced: synced.clone(),
            metrics: metrics.clone(),
            namespace: "weir-system".to_owned(),
            health: Health::new(Duration::from_secs(600)),
            status: tokio::sync::watch::channel(Default::default()).0,
            // nobody writes them
            events: Reporter::new(
                ObjectKey::new("weir-system", "weir-mode"),
                mpsc::channel(1).0,
                metrics.clone(),
            ),
        };
        let server = Server { identify: Arc::new(Gullible), calls, synced, key, metrics };
        let listener = listen(address);
        let at = listener.local_addr().unwrap();
        let inside = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        runtime.spawn(driver.run());
        runtime.spawn(accept(listener, trust.acceptor(NAME), server));
        drop(inside);
        Controller { address: at, registry, updates, mode, runtime: Some(runtime) }
    }

    /// The cluster's mode is this one now.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(Told { asked: true, mode: Some(mode), ..Told::default() });
    }

    /// Objects change; all are known from the first time on.
    pub fn apply(&self, events: Vec<Event>) {
        let update = (Instant::now(), Update::Batch { events, synced: true });
        let runtime = self.runtime.as_ref().unwrap();
        let updates = self.updates.clone();
        runtime.spawn(async move { updates.send(update).await.unwrap() });
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The one before may have left connections behind.
fn listen(address: &str) -> std::net::TcpListener {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true).unwrap();
                return listener;
            }
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says always the same, to everybody, and then nothing.
#[derive(Clone)]
struct Script(Arc<Vec<from_controller::What>>);

#[async_trait]
impl slices_server::Slices for Script {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<FromController, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        // or the agent would see that nobody listens
        let mut heard = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = heard.message().await {} });
        let said: Vec<_> =
            self.0.iter().map(|what| Ok(FromController { what: Some(what.clone()) })).collect();
        Ok(Response::new(iter(said).chain(pending()).boxed()))
    }
}

/// A controller, so to speak, with a certificate for `name`.
pub async fn script(trust: &Trust, name: &str, says: Vec<from_controller::What>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, service) = (trust.acceptor(name), slices_server::SlicesServer::new(Script(Arc::new(says))));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (tls, service) = (tls.clone(), service.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(tcp).await else { return };
                let service = TowerToHyperService::new(service);
                let _ = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}
