//! Lists of an API server, with the rights of whoever asks. Nothing is watched.
//!
//! What the user may not list in all namespaces is listed in one, and what they may not list at all
//! is left out: [`Live::unseen`] says so, for an answer from a part of a cluster is one of that part.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{ListParams, Request};
use serde::Deserialize;

use super::Inventory;
use super::collect::Collector;
use super::keep::{Extra, What, keep};
use crate::cluster::{self, Options};
use crate::tree::Tree;
use crate::{Kind, Place};

/// Objects in one page.
const PAGE: u32 = 500;
/// How long a page may take.
const ANSWER: Duration = Duration::from_secs(60);

/// What to read beside namespaces, pods and policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Deployments and the like.
    pub workloads: bool,
    /// Services and their endpoints.
    pub services: bool,
    /// Nodes.
    pub nodes: bool,
}

impl Wanted {
    /// All there is.
    pub const ALL: Wanted = Wanted { workloads: true, services: true, nodes: true };

    fn kinds(self) -> Vec<What> {
        let mut kinds = Kind::ALL.map(What::Core).to_vec();
        let mut extra = |wanted, list: &[Extra]| {
            if wanted {
                kinds.extend(list.iter().map(|e| What::Extra(*e)));
            }
        };
        let workloads = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];
        extra(self.workloads, &workloads.map(Extra::Workload));
        extra(self.services, &[Extra::Service, Extra::EndpointSlice]);
        extra(self.nodes, &[Extra::Node]);
        kinds
    }
}

/// What an API server told.
#[derive(Debug)]
pub struct Live {
    /// The objects.
    pub inventory: Inventory,
    /// The namespace of the context.
    pub namespace: String,
    /// What the user may not see, in sentences.
    pub unseen: Vec<String>,
}

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig or what it names cannot be used.
    #[error(transparent)]
    Client(#[from] cluster::Error),
    /// The user may not list what every answer needs.
    #[error(
        "{resource} may not be listed, in all namespaces or in {namespace} ({message}): ask for the right to `list` \
         them, or take another namespace with -n"
    )]
    Forbidden {
        /// Plural, with its group.
        resource: String,
        /// The one that was tried.
        namespace: String,
        /// What the server says.
        message: String,
    },
    /// Anything else.
    #[error("{resource} cannot be read: {reason}")]
    Failed {
        /// Plural, with its group.
        resource: String,
        /// Why.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct PageMeta {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// What became of a list.
enum Listed {
    All(Vec<Tree>),
    /// Only those of one namespace.
    OfNamespace(Vec<Tree>),
    Forbidden(String),
    /// The server does not have this kind.
    Unknown,
}

/// Lists what is there now. `namespace`: where to look if the user may not look everywhere, instead of
/// the context's. `progress` is told how many objects there are so far.
///
/// # Errors
/// The server cannot be asked, or does not tell of pods or policies.
pub async fn read(
    options: Options,
    namespace: Option<&str>,
    wanted: Wanted,
    keep_all: bool,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Live, Error> {
    let mut config = cluster::configure(options).await?;
    config.read_timeout = Some(ANSWER);
    let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
    let client = cluster::client(config)?;
    let kinds = wanted.kinds();
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let more = |n: usize| progress(seen.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n);
    let lists = join_all(kinds.iter().map(|what| list(&client, *what, &namespace, &more))).await;
    let mut collector = Collector::new(keep_all);
    let mut unseen = Vec::new();
    for (what, listed) in kinds.into_iter().zip(lists) {
        let resource = resource(what);
        let objects = match listed? {
            Listed::All(objects) => objects,
            Listed::OfNamespace(objects) => {
                unseen.push(format!(
                    "you may list {resource} in namespace {namespace} only: others are not seen"
                ));
                objects
            }
            Listed::Forbidden(message) if matches!(what, What::Core(Kind::Pod | Kind::Policy)) => {
                return Err(Error::Forbidden { resource, namespace, message });
            }
            Listed::Forbidden(_) => {
                unseen.push(match what {
                    What::Core(Kind::Namespace) => {
                        "you may not list namespaces: their labels are not seen, and peers with a namespaceSelector \
                         other than by name match nobody"
                            .to_owned()
                    }
                    _ => format!("you may not list {resource}: none are seen"),
                });
                continue;
            }
            Listed::Unknown => continue,
        };
        let nowhere: Arc<Path> = Path::new("").into();
        for object in objects {
            collector.object(what, &object, Place { file: nowhere.clone(), line: 0 });
        }
    }
    Ok(Live { inventory: collector.finish(), namespace, unseen })
}

/// The data of a ConfigMap; `None`: there is none.
///
/// # Errors
/// The server cannot be asked, or does not tell.
pub async fn config_map(
    options: Options,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, Error> {
    let mut config = cluster::configure(options).await?;
    config.read_timeout = Some(ANSWER);
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(cluster::client(config)?, namespace);
    let failed = |error: kube::Error| Error::Failed {
        resource: format!("configmap {name} in namespace {namespace}"),
        reason: chain(&error),
    };
    Ok(api.get_opt(name).await.map_err(failed)?.map(|map| map.data.unwrap_or_default()))
}

/// As RBAC rules have it.
fn resource(what: What) -> String {
    let (version, _, plural) = what.api();
    match version.split_once('/') {
        Some((group, _)) => format!("{plural}.{group}"),
        None => plural.to_owned(),
    }
}

async fn list(client: &Client, what: What, namespace: &str, more: &impl Fn(usize)) -> Result<Listed, Error> {
    let failed = |error: kube::Error| Error::Failed { resource: resource(what), reason: chain(&error) };
    let (version, _, plural) = what.api();
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    match pages(client, what, &format!("{root}/{plural}"), more).await {
        Ok(objects) => Ok(Listed::All(objects)),
        Err(kube::Error::Api(status)) if status.code == 403 && what.namespaced() => {
            match pages(client, what, &format!("{root}/namespaces/{namespace}/{plural}"), more).await {
                Ok(objects) => Ok(Listed::OfNamespace(objects)),
                Err(kube::Error::Api(status)) if status.code == 403 => Ok(Listed::Forbidden(status.message)),
                Err(error) => Err(failed(error)),
            }
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Listed::Forbidden(status.message)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Listed::Unknown),
        Err(error) => Err(failed(error)),
    }
}

async fn pages(
    client: &Client,
    what: What,
    path: &str,
    more: &impl Fn(usize),
) -> Result<Vec<Tree>, kube::Error> {
    let request = Request::new(path);
    let mut objects = Vec::new();
    let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
    loop {
        let asked = request.list(&params).map_err(kube::Error::BuildRequest)?;
        let page: Page = match client.request(asked).await {
            Ok(page) => page,
            // the list changed too much between two pages: once more, in one piece
            Err(kube::Error::Api(status)) if status.code == 410 && params.limit.is_some() => {
                objects.clear();
                params = ListParams::default();
                continue;
            }
            Err(error) => return Err(error),
        };
        more(page.items.len());
        objects.extend(page.items.into_iter().map(|item| keep(what, &Tree::from(item))));
        match page.metadata.next.filter(|next| !next.is_empty()) {
            Some(next) => params.continue_token = Some(next),
            None => return Ok(objects),
        }
    }
}

/// An error with what is behind it, and what to do about the frequent ones.
pub(crate) fn chain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let hint = if status.code == 401 { ": check the credentials in the kubeconfig" } else { "" };
        return format!("{}{hint}", status.message);
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = inner.source();
    }
    text
}
