//! Watches of an API server.
//!
//! ```text
//!   namespaces ─┐ follow: streamed list (or paged), then watch; backs off from errors
//!   pods ───────┼──> steps ──> Differ ──> Update::Batch
//!   policies ───┘       └──> Update::Problem
//! ```
//!
//! # Limits
//! Memory is proportional to the number of objects (key and digest of each), plus what is pending
//! for a receiver that is slow: one event per object at most.

mod backoff;
mod follow;
mod lean;

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;

use crate::sync::Differ;
use crate::{Problem, Update};
use follow::Step;

/// Steps that wait for the differ. Small: they hold whole objects.
const STEPS: usize = 256;
/// How long to wait for the server to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Which cluster.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The file to read; without it a pod uses its service account, and anything else what kubectl would
    /// use (`KUBECONFIG`, `~/.kube/config`).
    pub kubeconfig: Option<PathBuf>,
    /// The context in it, instead of the current one.
    pub context: Option<String>,
}

/// Why a cluster cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig is missing or wrong.
    #[error("kubeconfig {}cannot be used: {reason}; name one with --kubeconfig FILE, or run in a pod", .path.as_ref().map(|p| format!("{} ", p.display())).unwrap_or_default())]
    Kubeconfig {
        /// The file, if one was named.
        path: Option<PathBuf>,
        /// What is wrong with it.
        reason: Box<KubeconfigError>,
    },
    /// The pod's service account cannot be used.
    #[error("the pod's service account cannot be used: {0}; is automountServiceAccountToken off?")]
    InCluster(kube::config::InClusterError),
    /// Certificates or keys cannot be used.
    #[error("no connection can be set up: {0}; check the certificates and keys in the kubeconfig")]
    Client(Box<kube::Error>),
}

/// Follows namespaces, pods and NetworkPolicies of a cluster until the receiver is dropped.
///
/// A server that is away or refuses is reported once, and tried again for ever.
///
/// # Errors
/// The kubeconfig or the service account cannot be used.
pub async fn watch(options: Options, updates: Sender<Update>) -> Result<(), Error> {
    let client = connect(options).await?;
    let (sender, mut steps) = channel(STEPS);
    let mut followers = JoinSet::new();
    followers.spawn(follow::follow(Api::<lean::Namespace>::all(client.clone()), sender.clone()));
    followers.spawn(follow::follow(Api::<lean::Policy>::all(client.clone()), sender.clone()));
    followers.spawn(follow::follow(Api::<lean::Pod>::all(client), sender));

    let mut differ = Differ::default();
    let mut buffer = Vec::with_capacity(STEPS);
    loop {
        tokio::select! {
            // What is queued goes into the same batch, but no more is waited for.
            biased;
            permit = updates.reserve(), if differ.has_news() => {
                let Ok(permit) = permit else { return Ok(()) };
                let (events, synced) = differ.take();
                permit.send(Update::Batch { events, synced });
            }
            count = steps.recv_many(&mut buffer, STEPS) => {
                if count == 0 {
                    return Ok(());
                }
                for problem in buffer.drain(..).filter_map(|step| apply(&mut differ, step)) {
                    if updates.send(Update::Problem(problem)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            () = updates.closed() => return Ok(()),
        }
    }
}

fn apply(differ: &mut Differ, step: Step) -> Option<Problem> {
    match step {
        Step::Start(kind) => differ.start(kind),
        Step::Object(outcome) => return differ.object(*outcome),
        Step::Gone(id) => differ.gone(id),
        Step::End(kind) => differ.end(kind),
        Step::Trouble(text) => return Some(Problem::general(text)),
    }
    None
}

async fn connect(options: Options) -> Result<Client, Error> {
    client(configure(options).await?)
}

/// A client of a configuration.
pub(crate) fn client(config: Config) -> Result<Client, Error> {
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}

/// Where the API server is, and who we are.
pub(crate) async fn configure(options: Options) -> Result<Config, Error> {
    let path = options.kubeconfig.clone();
    let wrong = |source| Error::Kubeconfig { path: path.clone(), reason: Box::new(source) };
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let mut config = if options.kubeconfig.is_none() && options.context.is_none() && in_pod {
        Config::incluster().map_err(Error::InCluster)?
    } else {
        let kubeconfig = match &options.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let choice = KubeConfigOptions { context: options.context, ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig.map_err(wrong)?, &choice).await.map_err(wrong)?
    };
    config.connect_timeout = Some(CONNECT);
    Ok(config)
}
