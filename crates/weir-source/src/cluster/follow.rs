//! One kind of one cluster: list, watch, and start again from whatever happens.
//!
//! ```text
//!        ┌──────── list: streamed, or else by pages ◄───────────────────┐
//!        v                                                              │ too old (410), or the
//!   version ──> watch ──> objects, bookmarks: version goes on           │ server's version is
//!        ^        │ ends, breaks                                        │ older than ours
//!        └────────┴── regular end: at once; else: pause ──> which version has the server? ──┘
//! ```
//!
//! * What a list does not have is gone only when the list has come to its end ([`Step::End`]); a list that
//!   breaks off, whatever the reason, begins anew.
//! * Every list is a consistent read (no version is named). One of a version that some server has in its
//!   cache can be older than what the watch has told, and take away what is there.
//! * A watch from a version that the server does not have yet says nothing until it has. That happens when
//!   etcd was restored from a backup. So after a break the server's version is looked at first.
//!
//! kube's own watcher does not do: it names version 0 for streamed lists, it asks for ever for a watch that is
//! refused with HTTP 410, and it ends a streamed list in which an object could not be decoded as if it were
//! complete.
//!
//! # Limits
//! A backup that was restored and written to past the version that we have, all while the watch was broken,
//! cannot be told from no backup (etcd's `--bump-revision` is for that).

use std::fmt::Debug;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant as Clock, timeout, timeout_at};

use super::lean::Lean;
use crate::backoff::Backoff;
use crate::convert::Outcome;
use crate::{Id, Kind};

/// For how long the server keeps a watch.
const WATCH: Duration = Duration::from_secs(120);
/// A connection that died unnoticed is given up so long after that.
const LATE: Duration = Duration::from_secs(20);
/// For a watch to begin, and for a page of a list; a list without pages may take longer.
const ANSWER: Duration = Duration::from_secs(30);
const WHOLE_LIST: Duration = Duration::from_secs(300);
/// A streamed list that says nothing for so long comes from a server that does not know how.
const SILENCE: Duration = Duration::from_secs(20);
/// Objects in a page.
const PAGE: u32 = 500;
/// What marks the bookmark at the end of a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// What happens to one kind.
pub(super) enum Step {
    Start(Kind),
    Object(Box<Outcome>),
    Gone(Id),
    End(Kind),
    Trouble(String),
}

/// Follows a kind until nobody listens any more.
pub(super) async fn follow<K>(api: Api<K>, steps: Sender<Step>)
where
    K: Lean + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let follower = Follower { api, steps, backoff: Backoff::default(), lists: Lists::Streamed };
    let Err(Stop) = follower.run().await;
}

/// Nobody listens any more.
struct Stop;

/// How lists are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    Streamed,
    /// The server does not stream them.
    Paged,
    /// The server had forgotten the list's version before its last page was read.
    Whole,
}

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server does not answer")]
    Silence,
    #[error("the API server ends watches at once")]
    Brief,
    #[error("the API server names no resourceVersion")]
    NoVersion,
}

impl Failure {
    fn status(&self) -> Option<&Status> {
        match self {
            Failure::Api(kube::Error::Api(status)) => Some(status),
            _ => None,
        }
    }

    /// This is how the server says "list again"; nothing is wrong.
    fn expired(&self) -> bool {
        self.status().is_some_and(|status| status.code == 410)
    }

    /// Servers without the feature say that `sendInitialEvents` is invalid or forbidden as a value.
    fn refuses_streaming(&self) -> bool {
        self.status().is_some_and(|status| matches!(status.code, 400 | 405 | 406 | 422 | 501))
    }
}

type Events<K> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>;

/// A watch under way.
struct Watch<K> {
    events: Events<K>,
    began: Clock,
}

impl<K> Watch<K> {
    /// What comes next, or the end.
    async fn next(&mut self, until: Clock) -> Result<Option<WatchEvent<K>>, Failure> {
        match timeout_at(until, self.events.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(WatchEvent::Error(status)))) => Err(kube::Error::Api(status).into()),
            Ok(Some(event)) => Ok(Some(event?)),
            Err(_) => Err(Failure::Silence),
        }
    }
}

/// How a watch ended without an error.
enum Ended {
    /// After the time that was asked for.
    Regularly,
    /// Earlier.
    Early,
}

struct Follower<K> {
    api: Api<K>,
    steps: Sender<Step>,
    backoff: Backoff,
    lists: Lists,
}

impl<K> Follower<K>
where
    K: Lean + Clone + Debug + DeserializeOwned + Send + 'static,
{
    async fn run(mut self) -> Result<std::convert::Infallible, Stop> {
        loop {
            let (version, watch) = match self.list().await? {
                Ok(listed) => listed,
                Err(failure) => {
                    self.failed(&failure).await?;
                    continue;
                }
            };
            self.watches(version, watch).await?;
        }
    }

    // --- lists ---------------------------------------------------------------------------

    /// One list to its end: its version, and the watch that goes on from there if it is the same one.
    async fn list(&mut self) -> Result<Result<(String, Option<Watch<K>>), Failure>, Stop> {
        if self.lists != Lists::Streamed {
            return Ok(self.pages().await?.map(|version| (version, None)));
        }
        let listed = self.streamed().await?;
        if let Err(failure) = &listed
            && (failure.refuses_streaming() || matches!(failure, Failure::Silence))
        {
            tracing::debug!(resource = K::RESOURCE, "the server does not stream lists, reading pages");
            self.lists = Lists::Paged;
            return Ok(self.pages().await?.map(|version| (version, None)));
        }
        Ok(listed.map(|(version, watch)| (version, Some(watch))))
    }

    async fn streamed(&mut self) -> Result<Result<(String, Watch<K>), Failure>, Stop> {
        let mut watch = match self.begin(&params().initial_events(), "").await {
            Ok(watch) => watch,
            Err(failure) => return Ok(Err(failure)),
        };
        self.send(Step::Start(K::KIND)).await?;
        loop {
            let until = (Clock::now() + SILENCE).min(watch.began + WATCH + LATE);
            match watch.next(until).await {
                Ok(Some(WatchEvent::Bookmark(mark))) if mark.metadata.annotations.contains_key(LIST_ENDS) => {
                    self.send(Step::End(K::KIND)).await?;
                    self.works();
                    return Ok(Ok((mark.metadata.resource_version, watch)));
                }
                Ok(Some(event)) => _ = self.event(event).await?,
                // it broke off; the next one begins anew
                Ok(None) => return Ok(Err(Failure::Brief)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }

    async fn pages(&mut self) -> Result<Result<String, Failure>, Stop> {
        let whole = std::mem::replace(&mut self.lists, Lists::Paged) == Lists::Whole;
        let mut params = ListParams::default();
        if !whole {
            params = params.limit(PAGE);
        }
        self.send(Step::Start(K::KIND)).await?;
        loop {
            let answer = timeout(if whole { WHOLE_LIST } else { ANSWER }, self.api.list(&params)).await;
            let page = match answer.map_err(|_| Failure::Silence).and_then(|page| Ok(page?)) {
                Ok(page) => page,
                Err(failure) => {
                    // the server has forgotten the version of which this would be the next page
                    if failure.expired() && params.continue_token.is_some() {
                        self.lists = Lists::Whole;
                    }
                    return Ok(Err(failure));
                }
            };
            for object in page.items {
                self.send(Step::Object(Box::new(object.convert()))).await?;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let Some(version) = page.metadata.resource_version.filter(|v| !v.is_empty()) else {
                    return Ok(Err(Failure::NoVersion));
                };
                self.send(Step::End(K::KIND)).await?;
                self.works();
                return Ok(Ok(version));
            }
        }
    }

    // --- watches -------------------------------------------------------------------------

    /// One watch after the other, until there has to be a list again.
    async fn watches(&mut self, mut version: String, mut watch: Option<Watch<K>>) -> Result<(), Stop> {
        let mut broken = false;
        loop {
            let failure = match self.watch(&mut version, watch.take(), &mut broken).await? {
                Ok(Ended::Regularly) => continue,
                Ok(Ended::Early) => None,
                Err(failure) => Some(failure),
            };
            broken = true;
            if let Some(failure) = failure {
                self.failed(&failure).await?;
                if failure.expired() {
                    return Ok(());
                }
            }
        }
    }

    /// One watch, from this version on, until it ends.
    async fn watch(
        &mut self,
        version: &mut String,
        watch: Option<Watch<K>>,
        broken: &mut bool,
    ) -> Result<Result<Ended, Failure>, Stop> {
        let mut watch = match self.resume(version, watch, *broken).await {
            Ok(watch) => watch,
            Err(failure) => return Ok(Err(failure)),
        };
        *broken = false;
        let mut any = false;
        loop {
            match watch.next(watch.began + WATCH + LATE).await {
                Ok(Some(event)) => {
                    any = true;
                    self.works();
                    if let Some(newer) = self.event(event).await? {
                        *version = newer;
                    }
                }
                Ok(None) if watch.began.elapsed() + LATE >= WATCH => {
                    self.works();
                    return Ok(Ok(Ended::Regularly));
                }
                Ok(None) if any => return Ok(Ok(Ended::Early)),
                Ok(None) => return Ok(Err(Failure::Brief)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }

    /// A watch that goes on from this version.
    async fn resume(
        &self,
        version: &str,
        watch: Option<Watch<K>>,
        broken: bool,
    ) -> Result<Watch<K>, Failure> {
        if let Some(watch) = watch {
            return Ok(watch);
        }
        if broken && self.went_back(version).await? {
            tracing::warn!(
                resource = K::RESOURCE,
                "the API server is at an older version than before (restored from a backup?): reading everything again"
            );
            let status = Status::failure("the server's version is older than ours", "Expired").with_code(410);
            return Err(kube::Error::Api(status.boxed()).into());
        }
        self.begin(&params(), version).await
    }

    /// Whether the server's version is older than this one.
    async fn went_back(&self, version: &str) -> Result<bool, Failure> {
        let answer = timeout(ANSWER, self.api.list_metadata(&ListParams::default().limit(1))).await;
        let now = answer.map_err(|_| Failure::Silence)??.metadata.resource_version.unwrap_or_default();
        // versions that are not numbers cannot be compared
        Ok(matches!((now.parse::<u64>(), version.parse::<u64>()), (Ok(now), Ok(ours)) if now < ours))
    }

    async fn begin(&self, params: &WatchParams, version: &str) -> Result<Watch<K>, Failure> {
        let began = Clock::now();
        let answer = timeout(ANSWER, self.api.watch(params, version)).await;
        Ok(Watch { events: Box::pin(answer.map_err(|_| Failure::Silence)??), began })
    }

    /// Passes an event on; its version.
    async fn event(&mut self, event: WatchEvent<K>) -> Result<Option<String>, Stop> {
        let (version, step) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.meta().resource_version.clone(), Some(Step::Object(Box::new(object.convert()))))
            }
            WatchEvent::Deleted(object) => {
                (object.meta().resource_version.clone(), Some(Step::Gone(object.id())))
            }
            WatchEvent::Bookmark(mark) => (Some(mark.metadata.resource_version), None),
            WatchEvent::Error(_) => (None, None),
        };
        if let Some(step) = step {
            self.send(step).await?;
        }
        Ok(version.filter(|version| !version.is_empty()))
    }

    // --- what becomes of failures ------------------------------------------------------------

    fn works(&mut self) {
        if self.backoff.works() {
            tracing::info!(resource = K::RESOURCE, "the API server answers again");
        }
    }

    /// Says so, if it is the first of its streak, and waits.
    async fn failed(&mut self, failure: &Failure) -> Result<(), Stop> {
        let (pause, first) = self.backoff.error(Instant::now());
        tracing::debug!(resource = K::RESOURCE, error = %failure, ?pause, "watch");
        if first && !failure.expired() && !matches!(failure, Failure::Brief) {
            self.send(Step::Trouble(trouble::<K>(failure))).await?;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.steps.closed() => Err(Stop),
        }
    }

    async fn send(&self, step: Step) -> Result<(), Stop> {
        self.steps.send(step).await.map_err(|_| Stop)
    }
}

fn params() -> WatchParams {
    #[allow(clippy::cast_possible_truncation)] // a constant
    WatchParams::default().timeout(WATCH.as_secs() as u32)
}

fn trouble<K: Lean>(failure: &Failure) -> String {
    let resource = K::RESOURCE;
    let what = match failure.status() {
        Some(status) if status.code == 401 => {
            format!("the API server does not know us ({}): check the credentials", status.message)
        }
        Some(status) if status.code == 403 => {
            format!("no permission ({}): grant `list` and `watch` on {resource}", status.message)
        }
        _ => chain(failure),
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
