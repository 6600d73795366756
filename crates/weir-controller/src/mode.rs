//! The mode of the cluster: a ConfigMap that controllers watch, so that all nodes change without a restart.
//!
//! ```text
//!   ConfigMap weir-mode ──list──> Told ──> hub ──> every agent
//!             └──watch: something happened ──^
//! ```
//!
//! What cannot be read changes nothing: agents keep the mode that they have, and new ones enforce. So it is if the
//! ConfigMap is gone, as it is for a moment in which Weir is uninstalled.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;
use weir_proto::Mode;
use weir_source::backoff::Backoff;

/// The key in the ConfigMap.
pub const KEY: &str = "mode";
/// A watch ends after so many seconds, and the ConfigMap is read again.
const WATCH: u32 = 60;
/// For the API server to answer, or for a watch to end.
const ANSWER: Duration = Duration::from_secs(15);
/// After a watch that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// What the ConfigMap says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// It was asked for, and there was an answer: agents can be served.
    pub asked: bool,
    /// The last mode that it said.
    pub mode: Option<Mode>,
    /// Its resourceVersion, where that mode comes from.
    pub version: String,
    /// Why it does not say one now.
    pub problem: Option<String>,
}

impl Told {
    /// What is known when the ConfigMap says this, or is not there.
    fn next(&self, name: &str, found: Option<ConfigMap>) -> Told {
        let keep = |problem: String| Told { asked: true, problem: Some(problem), ..self.clone() };
        let Some(map) = found else {
            return keep(format!("ConfigMap {name} is not there: agents keep their mode, new ones enforce"));
        };
        let data = map.data.unwrap_or_default();
        let Some(text) = data.get(KEY) else {
            return keep(format!(
                "ConfigMap {name} has no key {KEY}: agents keep their mode, new ones enforce"
            ));
        };
        match Mode::parse(text.trim()) {
            Ok(mode) => {
                let version = map.metadata.resource_version.unwrap_or_default();
                Told { asked: true, mode: Some(mode), version, problem: None }
            }
            Err(unknown) => {
                keep(format!("ConfigMap {name}: {unknown}: agents keep their mode, new ones enforce"))
            }
        }
    }
}

/// Follows the ConfigMap until nobody listens any more.
pub async fn follow(client: Client, namespace: &str, name: &str, tell: watch::Sender<Told>) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut backoff = Backoff::default();
    // a list, for its version: that of the object may be too old for a watch
    let one = ListParams::default().fields(&format!("metadata.name={name}"));
    while !tell.is_closed() {
        let found = match timeout(ANSWER, api.list(&one)).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        };
        let mut version = String::new();
        let (next, pause) = match found {
            Ok(list) => {
                backoff.works();
                version = list.metadata.resource_version.unwrap_or_default();
                (tell.borrow().next(name, list.items.into_iter().next()), None)
            }
            Err(error) => {
                let problem = format!("ConfigMap {name} cannot be read, agents keep their mode: {error}");
                let next = Told { asked: true, problem: Some(problem), ..tell.borrow().clone() };
                (next, Some(backoff.error(Instant::now()).0))
            }
        };
        tell.send_if_modified(|told| {
            let other = *told != next;
            if other {
                match &next.problem {
                    Some(problem) if told.problem != next.problem => tracing::warn!("{problem}"),
                    None if told.mode != next.mode || told.problem.is_some() => {
                        tracing::info!(mode = next.mode.map(Mode::as_str), "the mode of the cluster");
                    }
                    _ => {}
                }
            }
            *told = next;
            other
        });
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => happens(&api, name, &version).await,
        }
    }
}

/// Waits until something happens to it, or a while.
async fn happens(api: &Api<ConfigMap>, name: &str, version: &str) {
    let params =
        WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH).disable_bookmarks();
    let longest = Duration::from_secs(WATCH.into()) + ANSWER;
    let event = async {
        let mut events = api.watch(&params, version).await?.boxed();
        events.next().await.transpose()
    };
    match timeout(longest, event).await {
        Ok(Ok(Some(WatchEvent::Error(error)))) => {
            tracing::debug!("the watch of ConfigMap {name} begins anew: {error}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => {
            tracing::debug!("the watch of ConfigMap {name} begins anew: {error}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Option<ConfigMap> {
        let json = serde_json::json!({"metadata": {"name": "weir-mode", "resourceVersion": text}, "data": {"mode": text}});
        Some(serde_json::from_value(json).expect("a ConfigMap"))
    }

    #[test]
    fn what_cannot_be_read_changes_nothing_and_is_told() {
        let nothing = Told::default().next("weir-mode", None);
        assert!(nothing.asked && nothing.mode.is_none() && nothing.problem.is_some(), "{nothing:?}");
        let off = nothing.next("weir-mode", map("off"));
        assert_eq!((off.mode, off.version.as_str(), &off.problem), (Some(Mode::Off), "off", &None));
        for bad in [map("of"), map("Off"), map(""), None, Some(ConfigMap::default())] {
            let kept = off.next("weir-mode", bad);
            assert_eq!((kept.mode, kept.version.as_str()), (Some(Mode::Off), "off"), "{kept:?}");
            assert!(kept.problem.is_some(), "{kept:?}");
        }
        assert_eq!(off.next("weir-mode", map("audit")).mode, Some(Mode::Audit));
        assert_eq!(off.next("weir-mode", map("enforce\n")).mode, Some(Mode::Enforce));
    }
}
