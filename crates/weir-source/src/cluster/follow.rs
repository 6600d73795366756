//! One kind of one cluster: list, watch, and start again from whatever happens.

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Config, Error, Event, watcher};
use kube::{Api, core::Status};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::lean::Lean;
use crate::backoff::Backoff;
use crate::convert::Outcome;
use crate::{Id, Kind};

/// Seconds for which the server keeps a watch; a connection that died unnoticed is given up
/// shortly after.
const WATCH: u32 = 120;
/// A streamed list that says nothing for so long comes from a server that does not know how.
const SILENCE: Duration = Duration::from_secs(20);

/// What happens to one kind.
pub(super) enum Step {
    Start(Kind),
    Object(Box<Outcome>),
    Gone(Id),
    End(Kind),
    Trouble(String),
}

/// Why a stream is given up for another.
enum Next {
    /// The server does not stream lists.
    PagedLists,
    /// Nobody listens any more.
    Stop,
}

/// Follows a kind until nobody listens any more.
pub(super) async fn follow<K>(api: Api<K>, steps: Sender<Step>)
where
    K: Lean + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut backoff = Backoff::default();
    let config = Config::default().timeout(WATCH);
    match stream(api.clone(), config.clone().streaming_lists(), true, &mut backoff, &steps).await {
        Next::Stop => {}
        Next::PagedLists => {
            tracing::debug!(resource = K::RESOURCE, "the server does not stream lists, reading pages");
            stream(api, config, false, &mut backoff, &steps).await;
        }
    }
}

async fn stream<K>(
    api: Api<K>,
    config: Config,
    streamed: bool,
    backoff: &mut Backoff,
    steps: &Sender<Step>,
) -> Next
where
    K: Lean + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, config));
    let mut listing = false;
    loop {
        let event = if streamed && listing {
            match tokio::time::timeout(SILENCE, events.next()).await {
                Ok(event) => event,
                Err(_) => return Next::PagedLists,
            }
        } else {
            events.next().await
        };
        let step = match event {
            None => return Next::Stop,
            Some(Ok(event)) => {
                // That a paged list starts says nothing about the server yet.
                if !matches!(event, Event::Init) && backoff.works() {
                    tracing::info!(resource = K::RESOURCE, "the API server answers again");
                }
                match event {
                    Event::Init => {
                        listing = true;
                        Step::Start(K::KIND)
                    }
                    Event::InitDone => {
                        listing = false;
                        Step::End(K::KIND)
                    }
                    Event::InitApply(object) | Event::Apply(object) => {
                        Step::Object(Box::new(object.convert()))
                    }
                    Event::Delete(object) => Step::Gone(object.id()),
                }
            }
            Some(Err(error)) if streamed && refuses_streaming(&error) => return Next::PagedLists,
            Some(Err(error)) => {
                listing = false;
                let (pause, first) = backoff.error(Instant::now());
                // Too old a version is how the server says "list again"; nothing is wrong.
                let expired = status(&error).is_some_and(|status| status.code == 410);
                tracing::debug!(resource = K::RESOURCE, %error, ?pause, "watch");
                if first && !expired && steps.send(Step::Trouble(trouble::<K>(&error))).await.is_err() {
                    return Next::Stop;
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => continue,
                    () = steps.closed() => return Next::Stop,
                }
            }
        };
        if steps.send(step).await.is_err() {
            return Next::Stop;
        }
    }
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// Servers without the feature say that `sendInitialEvents` is invalid or forbidden as a value.
fn refuses_streaming(error: &watcher::Error) -> bool {
    status(error).is_some_and(|status| matches!(status.code, 400 | 405 | 406 | 422 | 501))
}

fn trouble<K: Lean>(error: &watcher::Error) -> String {
    let resource = K::RESOURCE;
    let what = match status(error) {
        Some(status) if status.code == 401 => {
            format!("the API server does not know us ({}): check the credentials", status.message)
        }
        Some(status) if status.code == 403 => {
            format!("no permission ({}): grant `list` and `watch` on {resource}", status.message)
        }
        _ => chain(error),
    };
    format!("{resource} cannot be watched: {what}; what is known stays in force, trying again")
}

/// An error with what is behind it; the outer ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        source = error.source();
    }
    text
}
