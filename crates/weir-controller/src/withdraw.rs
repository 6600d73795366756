//! `weir-controller withdraw`: before Weir is uninstalled, every node's agent removes what it made, and confirms.
//!
//! ```text
//!   weir-mode: withdrawn ──> controllers ──> agents: no tables, no state
//!   weir-status <── who has confirmed ──┘      nodes of the API that nobody confirmed for: told by name
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};
use weir_proto::Mode;
use weir_source::status::Status;

use crate::mode::KEY;

const POLL: Duration = Duration::from_secs(1);
/// For the API server to answer; what fails is tried again.
const ANSWER: Duration = Duration::from_secs(15);

/// What to withdraw.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which cluster.
    pub cluster: weir_source::cluster::Options,
    /// Weir's.
    pub namespace: String,
    /// The ConfigMap that says the mode.
    pub mode_configmap: String,
    /// The ConfigMap in which controllers tell who has confirmed.
    pub status_configmap: String,
    /// The nodes that agents run on, as a label selector.
    pub nodes: String,
    /// How long agents may take.
    pub timeout: Duration,
}

/// Who has withdrawn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// These nodes have nothing of Weir's any more.
    pub confirmed: BTreeSet<String>,
    /// Of these nobody knows, and why that may be.
    pub unreached: BTreeMap<String, String>,
}

/// Sets the mode, and waits until all nodes have confirmed or the time is over.
///
/// # Errors
/// The mode cannot be set, or the nodes are not known.
pub async fn withdraw(options: &Options) -> Result<Outcome> {
    let until = Instant::now() + options.timeout;
    let client = weir_source::cluster::connect(options.cluster.clone()).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
    let version = set(&maps, options, until).await?;
    let mut confirmed = BTreeSet::new();
    let (mut nodes, mut told) = (None, BTreeMap::new());
    let mut problem = String::new();
    loop {
        match look(&client, &maps, options).await {
            Ok((found, said)) => {
                confirmed.extend(said.values().flat_map(|status| confirmed_by(status, &version)).cloned());
                if found.keys().all(|node| confirmed.contains(node)) {
                    return Ok(Outcome { confirmed, unreached: BTreeMap::new() });
                }
                (nodes, told) = (Some(found), said);
            }
            Err(error) => problem = format!("{error:#}"),
        }
        if Instant::now() >= until {
            break;
        }
        sleep(POLL).await;
    }
    let Some(nodes) = nodes else { bail!("cannot see which nodes there are: {problem}") };
    let listening = told.values().filter(|status| status.mode_version == version).count();
    let unreached = nodes.into_iter().filter(|(node, _)| !confirmed.contains(node));
    let unreached = unreached.map(|(node, ready)| {
        let why = if let Some(mode) = told.values().find_map(|status| status.other_mode.get(&node)) {
            format!("its agent is there, and still says {mode}: it is too old, or its kernel refuses")
        } else if !ready {
            "the node is not ready".to_owned()
        } else if listening == 0 {
            "no controller has told anything since: are they running?".to_owned()
        } else {
            "no agent of it follows a controller".to_owned()
        };
        (node, why)
    });
    Ok(Outcome { unreached: unreached.collect(), confirmed })
}

/// Returns the resourceVersion by which controllers tell that they speak of this.
async fn set(maps: &Api<ConfigMap>, options: &Options, until: Instant) -> Result<String> {
    let name = &options.mode_configmap;
    let patch = Patch::Merge(serde_json::json!({ "data": { KEY: Mode::Withdrawn.as_str() } }));
    loop {
        let error = match timeout(ANSWER, maps.patch(name, &PatchParams::default(), &patch)).await {
            Ok(Ok(map)) => return Ok(map.metadata.resource_version.unwrap_or_default()),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403 | 404) => {
                bail!("cannot set the mode in ConfigMap {name} of namespace {}: {status}", options.namespace)
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        if Instant::now() >= until {
            bail!("cannot set the mode in ConfigMap {name}: {error}");
        }
        sleep(POLL).await;
    }
}

/// The nodes, whether each is ready, and what controllers tell.
async fn look(
    client: &Client,
    maps: &Api<ConfigMap>,
    options: &Options,
) -> Result<(BTreeMap<String, bool>, BTreeMap<String, Status>)> {
    let status = &options.status_configmap;
    let told = timeout(ANSWER, maps.get_opt(status)).await.context("the API server does not answer")?;
    let told = told.with_context(|| format!("cannot read ConfigMap {status}"))?;
    let told = told.and_then(|map| map.data).unwrap_or_default();
    let told = told.into_iter().filter_map(|(name, text)| Some((name, serde_json::from_str(&text).ok()?)));
    let api: Api<Node> = Api::all(client.clone());
    let mut nodes = BTreeMap::new();
    let mut page = ListParams::default().labels(&options.nodes).limit(500);
    loop {
        let list = timeout(ANSWER, api.list(&page)).await.context("the API server does not answer")?;
        let list = list.context("cannot list nodes")?;
        nodes.extend(list.items.into_iter().map(|node| {
            let ready = is_ready(&node);
            (node.metadata.name.unwrap_or_default(), ready)
        }));
        match list.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => page = page.continue_token(&more),
            None => break,
        }
    }
    Ok((nodes, told.collect()))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a controller tells of another change of the mode is not about this one.
fn confirmed_by<'a>(status: &'a Status, version: &str) -> impl Iterator<Item = &'a String> {
    status.withdrawn.iter().filter(move |_| status.mode_version == version)
}

impl Outcome {
    /// What to tell who uninstalls Weir, and how to clean by hand.
    pub fn report(&self) -> String {
        let mut text = format!("withdrawn: {} nodes have nothing of Weir's any more", self.confirmed.len());
        for node in &self.confirmed {
            text = format!("{text}\n  {node}");
        }
        if self.unreached.is_empty() {
            return text + "\n";
        }
        text = format!(
            "{text}\nNOT REACHED: {} nodes may still drop packets by Weir's rules",
            self.unreached.len()
        );
        for (node, why) in &self.unreached {
            text = format!("{text}\n  {node}: {why}");
        }
        text + "\nTo open such a node, run on it, as root:\n\
            \x20 nft delete table inet weir; nft delete table bridge weir; rm -rf /var/lib/weir\n\
            (an error that a table does not exist is none), or `weir-agent cleanup`. A node that is gone for good needs \
            nothing: delete it from the API.\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_told_of_this_change_of_the_mode_counts() {
        let status = Status {
            mode_version: "7".to_owned(),
            withdrawn: ["n1".to_owned(), "n2".to_owned()].into(),
            ..Status::default()
        };
        assert_eq!(confirmed_by(&status, "7").count(), 2);
        assert_eq!(confirmed_by(&status, "8").count(), 0, "of an earlier one");
    }

    #[test]
    fn who_was_not_reached_is_named_with_what_to_do() {
        let mut outcome = Outcome { confirmed: ["n1".to_owned()].into(), ..Outcome::default() };
        assert_eq!(outcome.report(), "withdrawn: 1 nodes have nothing of Weir's any more\n  n1\n");
        outcome.unreached.insert("n2".to_owned(), "the node is not ready".to_owned());
        let report = outcome.report();
        for part in ["NOT REACHED: 1 nodes", "  n2: the node is not ready", "nft delete table inet weir"] {
            assert!(report.contains(part), "{part} in:\n{report}");
        }
    }
}
