//! What agents write on standard output, read through the Kubernetes API with the rights of whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::{self, Options};
use crate::inventory::live::{Error, chain};

/// The labels of agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=weir,app.kubernetes.io/component=agent";
/// How often it is looked for new ones.
const LOOK: Duration = Duration::from_secs(10);
/// How soon a log that broke is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// What to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of the agents.
    pub namespace: String,
    /// Goes on with what comes.
    pub follow: bool,
    /// No older than so many seconds.
    pub since: Option<i64>,
    /// So many of the last lines of each agent.
    pub tail: Option<i64>,
    /// Of the agents of these nodes alone.
    pub nodes: Option<BTreeSet<String>>,
}

/// Since when there is a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Of the agent of this node.
    pub node: String,
    /// As its first line has it; what is older is gone.
    pub time: String,
}

/// Hands over the lines that begin like an object of JSON, in the order of each agent. With `follow` it ends with an
/// error only. What is said by `complain` concerns one agent.
///
/// # Errors
/// Pods may not be listed, there is no agent, or the server does not answer.
pub async fn read(
    options: Options,
    wanted: &Wanted,
    mut line: impl FnMut(String),
    mut complain: impl FnMut(String),
) -> Result<(), Error> {
    let api: Api<Pod> =
        Api::namespaced(cluster::client(cluster::configure(options).await?)?, &wanted.namespace);
    let (sender, mut told) = mpsc::channel(256);
    let mut readers = JoinSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            said = told.recv() => match said {
                Some(Said::Line(text)) => line(text),
                Some(Said::Problem(text)) => complain(text),
                None => return Ok(()),
            },
            _ = look.tick(), if wanted.follow || known.is_empty() => {
                let names: BTreeSet<String> = match agents(&api, wanted).await {
                    Ok(agents) => agents.into_keys().collect(),
                    Err(error) if known.is_empty() => return Err(error),
                    Err(_) => continue,
                };
                if names.is_empty() && known.is_empty() {
                    return Err(Error::Failed {
                        resource: format!("the logs of Weir's agents in namespace {}", wanted.namespace),
                        reason: match &wanted.nodes {
                            Some(nodes) => {
                                let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
                                format!("there is none on {}", nodes.join(", "))
                            }
                            None => "there is none".to_owned(),
                        },
                    });
                }
                // of one that is new, everything is
                let first = known.is_empty();
                for name in names.difference(&known) {
                    let wanted = Wanted { since: wanted.since.filter(|_| first), ..wanted.clone() };
                    readers.spawn(one(api.clone(), name.clone(), wanted, sender.clone()));
                }
                known = names;
            }
            Some(_) = readers.join_next(), if !readers.is_empty() => {
                if readers.is_empty() && !wanted.follow {
                    told.close();
                }
            }
        }
    }
}

enum Said {
    Line(String),
    Problem(String),
}

/// Since when there are logs of the agents that are wanted; of one that has none, nothing.
///
/// # Errors
/// As [`read`].
pub async fn begins(options: Options, wanted: &Wanted) -> Result<Vec<Begin>, Error> {
    let api: Api<Pod> =
        Api::namespaced(cluster::client(cluster::configure(options).await?)?, &wanted.namespace);
    let mut begins = Vec::new();
    for (name, node) in agents(&api, wanted).await? {
        let head = LogParams {
            container: Some("agent".to_owned()),
            limit_bytes: Some(4096),
            ..LogParams::default()
        };
        // whoever reads the log itself is told what is wrong with it
        let Ok(text) = api.logs(&name, &head).await else { continue };
        begins.extend(text.lines().find_map(time_of).map(|time| Begin { node, time: time.to_owned() }));
    }
    Ok(begins)
}

/// The time with which a line of an agent begins.
fn time_of(line: &str) -> Option<&str> {
    let text = line.strip_prefix("{\"time\":\"").unwrap_or(line);
    let time = text.split(['"', ' ']).next()?;
    crate::time::unix_seconds(time).map(|_| time)
}

/// Agents' pods, with their nodes.
async fn agents(api: &Api<Pod>, wanted: &Wanted) -> Result<BTreeMap<String, String>, Error> {
    let listed = api.list(&ListParams::default().labels(AGENTS)).await.map_err(|error| Error::Failed {
        resource: format!("pods of Weir's agents in namespace {}", wanted.namespace),
        reason: chain(&error),
    })?;
    let named =
        |pod: Pod| Some((pod.metadata.name?, pod.spec.and_then(|spec| spec.node_name).unwrap_or_default()));
    let all = listed.items.into_iter().filter_map(named);
    Ok(all.filter(|(_, node)| wanted.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))).collect())
}

/// The log of one agent; with `follow` until its pod is gone.
async fn one(api: Api<Pod>, name: String, wanted: Wanted, sender: mpsc::Sender<Said>) {
    let mut since = wanted.since;
    let mut last = String::new();
    let (mut complained, mut resumed) = (false, false);
    loop {
        let params = LogParams {
            container: Some("agent".to_owned()),
            follow: wanted.follow,
            since_seconds: since,
            tail_lines: wanted.tail.filter(|_| last.is_empty()),
            ..LogParams::default()
        };
        let begin = std::time::Instant::now();
        let read = async {
            let mut lines = api.log_stream(&name, &params).await.map_err(Failed::Api)?.lines();
            while let Some(line) = lines.try_next().await.map_err(Failed::Read)? {
                if !line.starts_with('{') {
                    continue;
                }
                // after a break some come again; they begin with their time
                if resumed && head(&line) <= head(&last) {
                    continue;
                }
                resumed = false;
                last.clone_from(&line);
                if sender.send(Said::Line(line)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let ended: Result<(), Failed> = read.await;
        let gone = matches!(&ended, Err(Failed::Api(kube::Error::Api(status))) if status.code == 404);
        if let Err(error) = ended
            && !std::mem::replace(&mut complained, true)
            && !(gone && wanted.follow)
        {
            let why = match error {
                Failed::Api(error) => chain(&error),
                Failed::Read(error) => error.to_string(),
            };
            let _ = sender
                .send(Said::Problem(format!("the log of {}/{name} cannot be read: {why}", wanted.namespace)))
                .await;
        }
        if !wanted.follow || gone || sender.is_closed() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
        resumed = !last.is_empty();
        since = Some(i64::try_from(begin.elapsed().as_secs()).unwrap_or(i64::MAX).saturating_add(1));
    }
}

/// `{"time":"2026-11-21T18:55:01.123`
fn head(line: &str) -> &str {
    line.get(..32).unwrap_or(line)
}

enum Failed {
    Api(kube::Error),
    Read(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_with_their_time() {
        let line = "{\"time\":\"2026-11-21T18:55:01.123Z\",\"verdict\":\"denied\"}";
        assert_eq!(time_of(line), Some("2026-11-21T18:55:01.123Z"));
        let line = "2026-11-21T18:55:01.123456Z  INFO weir_agent::run: ready";
        assert_eq!(time_of(line), Some("2026-11-21T18:55:01.123456Z"));
        assert_eq!(["", "{", "weir-agent: no", "{\"time\":\"x\"}"].map(time_of), [None; 4]);
    }
}
