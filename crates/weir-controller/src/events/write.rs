//! Events on their way to the API server: one at a time, under names that whoever writes the same makes, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{Metadata, NamespaceResourceScope, Resource};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use weir_compiler::object::ObjectKey;

use super::{Kind, Note};
use crate::metrics::Metrics;

/// Who reports.
const CONTROLLER: &str = "weir.dev/controller";
/// Of a policy, what changes its meaning, beside its spec.
const AUDIT: &str = "weir.dev/audit";
/// Bytes that a note may have.
const NOTE: usize = 1024;
/// Of an object's name, so many bytes are in that of its Events.
const NAME: usize = 200;
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// What fails is tried again after these pauses.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Where writing is forbidden it is tried again after so long.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// An object that an Event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// `metadata.uid`
    pub uid: String,
    /// Another one, if it means something else.
    pub version: String,
}

/// See the module.
pub struct Writer {
    client: Client,
    instance: String,
    metrics: Arc<Metrics>,
    /// Nothing is written until then.
    forbidden: Option<Instant>,
    complained: bool,
}

enum Failed {
    /// The object is gone, or its namespace is about to be.
    Gone,
    Forbidden(String),
    Other(String),
}

impl Writer {
    /// Writes as this controller.
    pub fn new(client: Client, instance: &str, metrics: Arc<Metrics>) -> Self {
        let instance = clip(instance, 128);
        Writer { client, instance, metrics, forbidden: None, complained: false }
    }

    /// Writes what comes, until nothing can come any more.
    pub async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let result = self.write(&note).await;
            self.metrics.kubernetes_events(result, 1);
        }
    }

    async fn write(&mut self, note: &Note) -> &'static str {
        if self.forbidden.is_some_and(|until| Instant::now() < until) {
            return "forbidden";
        }
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(note).await {
                Ok(result) => {
                    (self.forbidden, self.complained) = (None, false);
                    return result;
                }
                Err(Failed::Gone) => return "gone",
                Err(Failed::Forbidden(error)) => {
                    self.forbidden = Some(Instant::now() + FORBIDDEN);
                    if !std::mem::replace(&mut self.complained, true) {
                        tracing::warn!(
                            "no Events are written: the controller's ClusterRole must allow to create events of \
                             events.k8s.io, as the chart has it ({error})"
                        );
                    }
                    return "forbidden";
                }
                Err(Failed::Other(error)) => error,
            };
            let Some(pause) = pauses.next() else {
                let (reason, about) = (note.reason.as_str(), &note.about);
                tracing::warn!("an Event ({reason}, {about}) could not be written: {error}");
                return "failed";
            };
            sleep(*pause).await;
        }
    }

    async fn attempt(&self, note: &Note) -> Result<&'static str, Failed> {
        let about = self.find(note.reason.kind(), &note.about).await?;
        let related = match &note.related {
            Some(policy) => Some(self.find(Kind::Policy, policy).await?),
            None => None,
        };
        let event = event(note, &about, related.as_ref(), &self.instance, Timestamp::now());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &note.about.namespace);
        match answer(api.create(&PostParams::default(), &event)).await {
            Ok(_) => Ok("written"),
            Err(Failed::Other(error)) if error == EXISTS => Ok("known"),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, kind: Kind, key: &ObjectKey) -> Result<Found, Failed> {
        match kind {
            Kind::Policy => self.find_one::<NetworkPolicy>(key).await,
            Kind::Pod => self.find_one::<Pod>(key).await,
            Kind::Mode => self.find_one::<ConfigMap>(key).await,
        }
    }

    async fn find_one<K>(&self, key: &ObjectKey) -> Result<Found, Failed>
    where
        K: Resource<Scope = NamespaceResourceScope> + Metadata<Ty = ObjectMeta>,
        K: Clone + std::fmt::Debug + DeserializeOwned,
    {
        // a list, which controllers may do anyway
        let one = ListParams::default().fields(&format!("metadata.name={}", key.name));
        let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = answer(api.list_metadata(&one)).await?;
        let meta = found.items.into_iter().next().ok_or(Failed::Gone)?.metadata;
        let audit = meta.annotations.unwrap_or_default().remove(AUDIT).unwrap_or_default();
        let version = format!("{} {audit}", meta.generation.unwrap_or_default());
        Ok(Found { uid: meta.uid.unwrap_or_default(), version })
    }
}

/// What the API server says of a name that there is.
const EXISTS: &str = "exists";

async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    let error = match timeout(ANSWER, request).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error,
        Err(_) => return Err(Failed::Other("the API server does not answer".to_owned())),
    };
    let kube::Error::Api(status) = &error else { return Err(Failed::Other(error.to_string())) };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let ending = causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating");
    Err(match status.code {
        409 => Failed::Other(EXISTS.to_owned()),
        404 => Failed::Gone,
        403 if ending => Failed::Gone,
        401 | 403 => Failed::Forbidden(status.message.clone()),
        _ => Failed::Other(error.to_string()),
    })
}

/// The Event of a note.
pub fn event(note: &Note, about: &Found, related: Option<&Found>, instance: &str, now: Timestamp) -> Event {
    let kind = note.reason.kind();
    let reference = |kind: Kind, key: &ObjectKey, found: &Found| ObjectReference {
        api_version: Some(kind.api_version().to_owned()),
        kind: Some(kind.as_str().to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(found.uid.clone()),
        ..ObjectReference::default()
    };
    let related = note.related.as_ref().zip(related);
    // what a pod becomes is not known by its generation
    let version = if kind == Kind::Policy { about.version.as_str() } else { "" };
    let (policy, of_policy) = related.map_or(("", ""), |(_, found)| (&found.uid, &found.version));
    let parts = [&about.uid, version, policy, of_policy, note.reason.as_str(), &note.state];
    Event {
        metadata: ObjectMeta {
            name: Some(name(&note.about.name, &parts)),
            namespace: Some(note.about.namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(note.reason.action().to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(clip(&note.text, NOTE)),
        reason: Some(note.reason.as_str().to_owned()),
        regarding: Some(reference(kind, &note.about, about)),
        related: related.map(|(key, found)| reference(Kind::Policy, key, found)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(note.reason.severity().to_owned()),
        ..Event::default()
    }
}

/// The object's name, as much of it as there is room for, and what the parts are, however they are cut.
fn name(object: &str, parts: &[&str]) -> String {
    let mut hash = blake3::Hasher::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let object = object.get(..NAME).unwrap_or(object).trim_end_matches(['.', '-']);
    format!("{object}.{}", &hash.finalize().to_hex()[..24])
}

/// At most so many bytes, in one line: nobody's text ends the line, or moves a terminal's cursor.
fn clip(text: &str, most: usize) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() > most {
        let end = (0..=most - "…".len()).rev().find(|at| clean.is_char_boundary(*at)).unwrap_or(0);
        clean.truncate(end);
        clean.push('…');
    }
    clean
}
