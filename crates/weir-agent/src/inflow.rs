//! Where the agent's slice comes from: objects, which it compiles itself, or a controller.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weir_source::Update;

use crate::controller::{self, Client, Told};
use crate::metrics::Metrics;

/// Where the slice comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder of manifests, followed.
    Manifests(PathBuf),
    /// A cluster's API server.
    Cluster(weir_source::cluster::Options),
    /// Controllers, which compile for all nodes.
    Controller(controller::Options),
}

/// So many updates may wait: then the source does.
const QUEUE: usize = 1024;

/// What came in.
pub(crate) enum News {
    Objects(Vec<Update>),
    Controller(Told),
}

/// A source that has been started.
pub(crate) enum Inflow {
    Objects { updates: mpsc::Receiver<Update>, task: Option<JoinHandle<Result<()>>> },
    Controller(Client),
}

impl Inflow {
    pub(crate) fn start(source: Source, metrics: &Metrics) -> Result<Inflow> {
        let (sender, updates) = mpsc::channel(QUEUE);
        let task = match source {
            Source::Controller(options) => {
                return Ok(Inflow::Controller(Client::start(options, metrics.clone())));
            }
            Source::Manifests(folder) => {
                weir_source::manifests::watch(folder.clone(), sender)
                    .with_context(|| format!("cannot read manifests in {}", folder.display()))?;
                tokio::spawn(std::future::ready(Ok(())))
            }
            Source::Cluster(options) => {
                tokio::spawn(async { Ok(weir_source::cluster::watch(options, sender).await?) })
            }
        };
        Ok(Inflow::Objects { updates, task: Some(task) })
    }

    /// What comes next, as much as there is. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<News> {
        let (updates, task) = match self {
            Inflow::Controller(client) => {
                let told = client.next().await.context("the client of controllers ended unexpectedly")?;
                return Ok(News::Controller(told));
            }
            Inflow::Objects { updates, task } => (updates, task),
        };
        loop {
            let ended = async {
                match task.as_mut() {
                    Some(task) => task.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = ended => match result {
                    Ok(Ok(())) => *task = None,
                    Ok(Err(error)) => return Err(error),
                    Err(error) => bail!("the source of objects ended unexpectedly: {error}"),
                },
                first = updates.recv() => {
                    let mut batch = vec![first.context("the source of objects has ended")?];
                    while batch.len() < QUEUE && let Ok(more) = updates.try_recv() {
                        batch.push(more);
                    }
                    return Ok(News::Objects(batch));
                }
            }
        }
    }
}
