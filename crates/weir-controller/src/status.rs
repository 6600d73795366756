//! What `weir status` shows: each controller writes what it knows into one ConfigMap, under its own name.
//!
//! Whoever may read that ConfigMap needs no way to Weir's ports. A controller owns its key (server-side apply), and
//! takes away those of controllers that have written nothing for long.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use weir_proto::Mode;
pub use weir_source::status::{Status, ToEnforce};

/// How often it is written, if something has changed; and at the latest, so that readers see that it is alive.
const OFTEN: Duration = Duration::from_secs(15);
const LATEST: Duration = Duration::from_secs(60);
/// How often while somebody waits for who has withdrawn.
const AWAITED: Duration = Duration::from_secs(2);
/// Who has written nothing for so long is gone.
const GONE: u64 = 600;
/// So many nodes, and so many problems, are named; of the others only the number is told.
pub const NAMED: usize = 100;

/// The last times that it took to enforce a change.
#[derive(Debug, Default)]
pub struct Recent {
    times: Vec<Duration>,
    next: usize,
}

impl Recent {
    /// So many are kept.
    pub const MOST: usize = 1024;

    /// One more.
    pub fn add(&mut self, time: Duration) {
        if self.times.len() < Self::MOST {
            self.times.push(time);
        } else {
            self.times[self.next] = time;
            self.next = (self.next + 1) % Self::MOST;
        }
    }

    /// What they amount to.
    pub fn summary(&self) -> ToEnforce {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).map_or(0.0, Duration::as_secs_f64)
        };
        ToEnforce { count: sorted.len(), median_seconds: at(50), p99_seconds: at(99) }
    }
}

/// Writes what is new, until nobody tells any more.
pub async fn publish(
    client: Client,
    namespace: &str,
    config_map: String,
    name: String,
    mut told: watch::Receiver<Status>,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut failing = false;
    loop {
        let waited = tokio::time::timeout(LATEST, told.changed()).await;
        if matches!(waited, Ok(Err(_))) {
            return;
        }
        let status = told.borrow_and_update().clone();
        let pause = if status.mode.as_deref() == Some(Mode::Withdrawn.as_str()) { AWAITED } else { OFTEN };
        match write(&api, &config_map, &name, status).await {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        "cannot write ConfigMap {config_map}, trying again (weir status reads it): {error}"
                    );
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn write(
    api: &Api<ConfigMap>,
    config_map: &str,
    name: &str,
    mut status: Status,
) -> Result<(), kube::Error> {
    status.at = now();
    let text = serde_json::to_string(&status).map_err(kube::Error::SerdeError)?;
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": config_map, "labels": { "app.kubernetes.io/name": "weir" } },
        "data": { name: text },
    });
    let ours = PatchParams::apply(&format!("weir-controller/{name}")).force();
    let written = api.patch(config_map, &ours, &Patch::Apply(&object)).await?;
    let gone: BTreeMap<String, Option<String>> = written
        .data
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, text)| is_gone(text, status.at))
        .map(|(k, _)| (k, None))
        .collect();
    if !gone.is_empty() {
        api.patch(config_map, &PatchParams::default(), &Patch::Merge(json!({ "data": gone }))).await?;
    }
    Ok(())
}

fn is_gone(text: &str, now: u64) -> bool {
    serde_json::from_str::<Status>(text).map_or(true, |status| status.at + GONE < now)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_last_times_half_are_below_the_median() {
        let mut recent = Recent::default();
        assert_eq!(recent.summary(), ToEnforce::default());
        // those before the last 1,024 are forgotten
        (0..5000).for_each(|_| recent.add(Duration::from_secs(100)));
        (0..1024).for_each(|ms| recent.add(Duration::from_millis(ms)));
        let summary = recent.summary();
        assert_eq!(summary.count, Recent::MOST);
        assert!(
            (summary.median_seconds - 0.512).abs() < 1e-9 && (summary.p99_seconds - 1.013).abs() < 1e-9,
            "{summary:?}"
        );
    }

    #[test]
    fn who_has_written_nothing_for_long_is_gone() {
        let at = |at| serde_json::to_string(&Status { at, ..Status::default() }).expect("JSON");
        assert!(is_gone(&at(1000), 1000 + GONE + 1) && !is_gone(&at(1000), 1000 + GONE));
        assert!(is_gone("noise", 0));
    }
}
