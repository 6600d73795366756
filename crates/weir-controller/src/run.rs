//! The whole program: what is started, and in which order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Client;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use weir_compiler::Budgets;
use weir_compiler::object::ObjectKey;
use weir_health::Health;
use weir_proto::DigestKey;
use weir_source::Update;

use crate::accept;
use crate::authority::{self, Authorities, Leaf};
use crate::drive::Driver;
use crate::events::{self, Reporter, Writer};
use crate::hub::Hub;
use crate::identity::Review;
use crate::metrics::Metrics;
use crate::mode;
use crate::serve::{Call, Server};
use crate::status::{self, Status};
use crate::store;
use crate::tls::{Mounted, Presented};

/// So many updates, and so many calls, may wait for the hub.
const QUEUE: usize = 1024;
/// How often certificates are looked after.
const CERTIFICATES: Duration = Duration::from_secs(60);
/// The hub's thread must turn at least this often, or the program is taken to hang.
const HANGS: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where agents connect to.
    pub listen: SocketAddr,
    /// Where health and metrics are.
    pub metrics_listen: SocketAddr,
    /// Our namespace, which is the agents' too.
    pub namespace: String,
    /// The name of our Service: certificates are for `SERVICE.NAMESPACE.svc`.
    pub service: String,
    /// The agents' service account.
    pub agent_service_account: String,
    /// Of the agents' tokens.
    pub audience: String,
    /// Where certificates come from.
    pub certificates: Certificates,
    /// The ConfigMap that says the mode.
    pub mode_configmap: String,
    /// The ConfigMap in which `weir status` finds what controllers know.
    pub status_configmap: String,
    /// Our own name in it.
    pub name: String,
    /// What policies may have.
    pub budgets: Budgets,
    /// Which cluster.
    pub cluster: weir_source::cluster::Options,
}

/// Where certificates come from.
#[derive(Debug, Clone)]
pub enum Certificates {
    /// From an authority of the controllers' own.
    Own {
        /// The Secret that it is kept in.
        secret: String,
        /// The ConfigMap that it is published in.
        config_map: String,
    },
    /// From files.
    Mounted {
        /// PEM
        certificate: PathBuf,
        /// PEM
        key: PathBuf,
    },
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot begin, or the source of objects ends. What fails later is reported and tried again.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut registry = Registry::default();
    weir_health::build_info(&mut registry, "weir_controller", env!("CARGO_PKG_VERSION"));
    let metrics = Arc::new(Metrics::new(&mut registry));
    let health = Health::new(HANGS);
    health.not_ready("objects", "not all objects are known yet");
    health.not_ready("mode", "the ConfigMap of the mode has not been read yet");
    health.not_ready("certificate", "there is no certificate yet");
    let at = weir_health::serve_in_thread(options.metrics_listen, health.clone(), registry)
        .with_context(|| format!("cannot listen at {} for health and metrics", options.metrics_listen))?;
    tracing::info!("health and metrics at http://{at}");

    let client = weir_source::cluster::connect(options.cluster.clone()).await?;
    let key = random_key()?;
    let synced = Arc::new(AtomicBool::new(false));
    let (calls, heard) = mpsc::channel(QUEUE);
    let (updates, stamped) = mpsc::channel(QUEUE);
    let (tell, told) = watch::channel(Status::default());
    let (say, mode) = watch::channel(mode::Told::default());
    let (whose, namespace, map) = (client.clone(), options.namespace.clone(), options.mode_configmap.clone());
    tokio::spawn(async move { mode::follow(whose, &namespace, &map, say).await });
    let (note, notes) = mpsc::channel(events::QUEUE);
    tokio::spawn(Writer::new(client.clone(), &options.name, metrics.clone()).run(notes));
    let map = ObjectKey::new(&options.namespace, &options.mode_configmap);
    let driver = Driver {
        events: Reporter::new(map, note, metrics.clone()),
        hub: Hub::with(key, options.budgets),
        updates: stamped,
        calls: heard,
        mode,
        synced: synced.clone(),
        metrics: metrics.clone(),
        namespace: options.namespace.clone(),
        health: health.clone(),
        status: tell,
    };
    let mut hub = drive(driver)?;
    let mut source = tokio::spawn(objects(client.clone(), updates));
    let (whose, namespace, map) =
        (client.clone(), options.namespace.clone(), options.status_configmap.clone());
    tokio::spawn(async move { status::publish(whose, &namespace, map, options.name, told).await });

    let presented = match &options.certificates {
        Certificates::Mounted { certificate, key } => mounted(certificate.clone(), key.clone())?,
        Certificates::Own { secret, config_map } => {
            let name = (&options.service, &options.namespace);
            let names = vec![format!("{}.{}.svc", name.0, name.1), name.0.clone()];
            let store =
                store::Cluster::new(client.clone(), &options.namespace, secret.clone(), config_map.clone());
            own(store, names, metrics.clone()).await?
        }
    };
    health.ready("certificate");

    let review = Review::new(
        client,
        &options.namespace,
        &options.agent_service_account,
        options.audience,
        calls.clone(),
    );
    let server = Server { identify: Arc::new(review), calls: calls.clone(), synced, key, metrics };
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen at {}", options.listen))?;
    tracing::info!("agents are served at {}", listener.local_addr()?);
    tokio::spawn(accept::accept(listener, presented.acceptor()?, server));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = &mut source => anyhow::bail!("the source of objects ended unexpectedly"),
        _ = &mut hub => anyhow::bail!("the hub ended unexpectedly"),
    }
    health.not_ready("end", "it is going away");
    // each agent is told to go to another controller
    let (done, gone) = tokio::sync::oneshot::channel();
    if calls.send(Call::End(done)).await.is_ok() {
        let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    tracing::info!("stopping; agents go on with what they have");
    Ok(())
}

/// The hub has a thread of its own: compiling may take long, and connections must not wait for it.
fn drive(driver: Driver) -> Result<tokio::sync::oneshot::Receiver<()>> {
    let (end, ended) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let work = move || {
        runtime.block_on(driver.run());
        // the other end may have gone first
        let _ = end.send(());
    };
    std::thread::Builder::new().name("hub".to_owned()).spawn(work)?;
    Ok(ended)
}

/// Notes when each update came in.
async fn objects(client: Client, to: mpsc::Sender<(Instant, Update)>) {
    let (sender, mut updates) = mpsc::channel(QUEUE);
    tokio::spawn(weir_source::cluster::watch_with(client, sender));
    while let Some(update) = updates.recv().await {
        if to.send((Instant::now(), update)).await.is_err() {
            break;
        }
    }
}

fn random_key() -> Result<DigestKey> {
    let mut bytes = [0; 32];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(DigestKey::new(bytes))
}

fn mounted(certificate: PathBuf, key: PathBuf) -> Result<Arc<Presented>> {
    let (mut mounted, presented) = Mounted::open(&certificate, &key)?;
    let target = presented.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(CERTIFICATES).await;
            match mounted.refresh(&target) {
                Ok(false) => {}
                Ok(true) => tracing::info!("a new certificate is presented"),
                Err(error) => tracing::warn!("the certificate in use stays: {error:#}"),
            }
        }
    });
    Ok(presented)
}

/// Makes or finds the authority, and keeps it and our certificate fresh.
async fn own(store: store::Cluster, names: Vec<String>, metrics: Arc<Metrics>) -> Result<Arc<Presented>> {
    let mut pause = Duration::from_millis(500);
    // without an authority nobody can be served: the API server may come later
    let (authorities, mut leaf) = loop {
        match agreed(&store, &names).await {
            Ok(found) => break found,
            Err(error) => tracing::warn!("no certificate yet, trying again: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(20));
    };
    metrics.authority_ends(authorities.ends());
    let presented = Presented::new(leaf.certificate.as_bytes(), leaf.key.as_bytes())?;
    let target = presented.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(CERTIFICATES).await;
            let now = OffsetDateTime::now_utc();
            let authorities = match authority::agree(&store, now).await {
                Ok(authorities) => authorities,
                Err(error) => {
                    tracing::warn!("the certificates in use stay, trying again: {error}");
                    continue;
                }
            };
            metrics.authority_ends(authorities.ends());
            if authorities.outdated(&leaf, now) {
                let renewed = authorities.issue(&names, now).map_err(anyhow::Error::from).and_then(|new| {
                    target.replace(new.certificate.as_bytes(), new.key.as_bytes())?;
                    Ok(new)
                });
                match renewed {
                    Ok(new) => leaf = new,
                    Err(error) => tracing::warn!("the certificate in use stays, trying again: {error:#}"),
                }
            }
        }
    });
    Ok(presented)
}

async fn agreed(store: &store::Cluster, names: &[String]) -> Result<(Authorities, Leaf), authority::Error> {
    let now = OffsetDateTime::now_utc();
    let authorities = authority::agree(store, now).await?;
    let leaf = authorities.issue(names, now)?;
    Ok((authorities, leaf))
}
