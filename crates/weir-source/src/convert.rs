//! From documents to events.
//!
//! # Failing closed
//! A NetworkPolicy whose spec cannot be read isolates what it selects, in both directions, and
//! allows nothing: the pods of its `podSelector` if that much can be read, else all pods of its
//! namespace. A source that has a previous good version of it keeps that one instead.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use weir_compiler::object::{
    Event, LabelSelector, Labels, NamedPort, Namespace, ObjectKey, Pod, Policy, PolicySpec, Protocol,
};

use crate::annotations;
use crate::time::unix_seconds;
use crate::tree::{Error, Tree, Value};
use crate::{Id, Kind};

/// What has become of one document.
#[derive(Debug)]
pub enum Outcome {
    /// It is understood; the notes say what was left out of it.
    Good(Event, Vec<Error>),
    /// A NetworkPolicy that is not understood, and what closes the pods that it selects.
    Closed(Event, Error),
    /// Not understood, and nothing can be done about it.
    Wrong(Option<Id>, Error),
}

/// The metadata that are in use.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) namespace: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) uid: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) labels: Labels,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: Annotations,
    #[serde(default, rename = "creationTimestamp", deserialize_with = "seconds")]
    pub(crate) created: i64,
    #[serde(default, rename = "deletionTimestamp", deserialize_with = "is_there")]
    pub(crate) terminating: bool,
}

/// The annotations that are in use.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Annotations {
    /// [`AUDIT`](weir_compiler::object::AUDIT)
    #[serde(default, rename = "weir.dev/audit")]
    pub(crate) audit: Option<String>,
}

/// `PodSpec`, the fields in use.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    host_network: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "null_is_default")]
    init_containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    restart_policy: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default, deserialize_with = "null_is_default")]
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    container_port: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    protocol: String,
}

/// `PodStatus`, the fields in use.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    #[serde(default, deserialize_with = "null_is_default")]
    phase: String,
    #[serde(default, rename = "podIP", deserialize_with = "null_is_default")]
    pod_ip: String,
    #[serde(default, rename = "podIPs", deserialize_with = "null_is_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodIp {
    #[serde(default, deserialize_with = "null_is_default")]
    ip: String,
}

/// Reads a document of a kind.
pub fn object(kind: Kind, tree: &Tree) -> Outcome {
    let mut meta: Meta = match tree.field("metadata") {
        Ok(meta) => meta,
        Err(error) => return metadata_wrong(kind, tree, error),
    };
    if meta.name.is_empty() {
        return Outcome::Wrong(None, wrong(tree, "metadata.name", "an object needs a name; it is left out"));
    }
    if kind != Kind::Namespace && meta.namespace.is_empty() {
        meta.namespace = "default".to_owned();
    }
    match kind {
        Kind::Namespace => namespace(meta, annotations::of(tree.get("metadata"))),
        Kind::Policy => policy(meta, tree),
        Kind::Pod => {
            let id = Id { kind, key: ObjectKey::new(&meta.namespace, &meta.name) };
            match tree.field("spec").and_then(|spec| Ok((spec, tree.field("status")?))) {
                Ok((spec, status)) => {
                    let (event, notes) = pod(meta, spec, status);
                    Outcome::Good(
                        event,
                        notes.into_iter().map(|note| Error { line: tree.line, ..note }).collect(),
                    )
                }
                Err(error) => Outcome::Wrong(Some(id), error),
            }
        }
    }
}

/// Name and namespace may be readable although something beside them is not, and then a policy
/// still closes its pods.
fn metadata_wrong(kind: Kind, tree: &Tree, error: Error) -> Outcome {
    let Some(meta) = tree.get("metadata") else { return Outcome::Wrong(None, error) };
    let (Some(name), namespace) = (meta.text("name"), meta.text("namespace")) else {
        return Outcome::Wrong(None, error);
    };
    let key = match kind {
        Kind::Namespace => ObjectKey::new("", name),
        _ => ObjectKey::new(namespace.unwrap_or("default"), name),
    };
    match kind {
        Kind::Policy => Outcome::Closed(closed(key, 0, None, tree), error),
        _ => Outcome::Wrong(Some(Id { kind, key }), error),
    }
}

/// A namespace. An annotation that cannot be read is as none.
pub(crate) fn namespace(meta: Meta, log_allowed: Result<u32, Error>) -> Outcome {
    let (log_allowed, notes) = log_allowed.map_or_else(|note| (0, vec![note]), |n| (n, Vec::new()));
    let Meta { name, labels, terminating, .. } = meta;
    Outcome::Good(Event::Namespace(Namespace { name, labels, terminating, log_allowed }), notes)
}

/// A NetworkPolicy; of the document only `spec` is looked at.
pub(crate) fn policy(meta: Meta, tree: &Tree) -> Outcome {
    let Meta { namespace, name, created, annotations: Annotations { audit }, .. } = meta;
    match tree.field::<PolicySpec>("spec") {
        Ok(spec) => {
            Outcome::Good(Event::Policy(Policy { namespace, name, created, audit, spec }), Vec::new())
        }
        Err(error) => Outcome::Closed(closed(ObjectKey::new(namespace, name), created, audit, tree), error),
    }
}

/// What a policy that cannot be read is replaced by.
fn closed(key: ObjectKey, created: i64, audit: Option<String>, tree: &Tree) -> Event {
    let pod_selector =
        tree.get("spec").and_then(|spec| spec.field::<LabelSelector>("podSelector").ok()).unwrap_or_default();
    let policy_types = vec!["Ingress".to_owned(), "Egress".to_owned()];
    let spec = PolicySpec { pod_selector, policy_types, ..PolicySpec::default() };
    Event::Policy(Policy { namespace: key.namespace, name: key.name, created, audit, spec })
}

/// A pod, and what was left out of it: addresses and ports that nobody can read.
pub(crate) fn pod(meta: Meta, spec: PodSpec, status: PodStatus) -> (Event, Vec<Error>) {
    let mut notes = Vec::new();
    let mut note = |path: String, message: String| notes.push(Error { line: 0, path, message });

    // podIP is podIPs[0] where there is both (N74).
    let texts = match status.pod_ips.is_empty() {
        false => status.pod_ips.into_iter().map(|entry| entry.ip).collect(),
        true => vec![status.pod_ip],
    };
    let mut ips = Vec::with_capacity(texts.len());
    for text in texts.into_iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) if !ips.contains(&ip) => ips.push(ip),
            Ok(_) => {}
            Err(_) => note("status.podIPs".into(), format!("{text:?} is not an IP address; it is left out")),
        }
    }

    // N60, U15: of the init containers only those that keep running beside the others.
    let sidecars = spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| !p.name.is_empty()) {
        let protocol = match port.protocol.as_str() {
            "" => Ok(Protocol::Tcp),
            text => text.parse::<Protocol>(),
        };
        match (protocol, u16::try_from(port.container_port)) {
            (Ok(protocol), Ok(number @ 1..)) => {
                ports.push(NamedPort { name: port.name.clone(), protocol, port: number });
            }
            (Err(error), _) => {
                note("spec.containers".into(), format!("port {:?}: {error}; it is left out", port.name))
            }
            (_, _) => note(
                "spec.containers".into(),
                format!("port {:?}: {} is not a port number; it is left out", port.name, port.container_port),
            ),
        }
    }

    let pod = Pod {
        key: ObjectKey::new(meta.namespace, meta.name),
        uid: meta.uid,
        labels: meta.labels,
        node: spec.node_name.filter(|name| !name.is_empty()),
        ips,
        host_network: spec.host_network,
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        terminating: meta.terminating,
        created: meta.created,
        ports,
    };
    (Event::Pod(pod), notes)
}

fn wrong(tree: &Tree, path: &str, message: &str) -> Error {
    Error { line: tree.line, path: path.to_owned(), message: message.to_owned() }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The time decides only between two owners of an address (N77): one that cannot be read is
/// the oldest.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.as_deref().and_then(unix_seconds).unwrap_or_default())
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<serde::de::IgnoredAny>::deserialize(deserializer)?.is_some())
}

/// What a document is, by `apiVersion` and `kind`.
#[derive(Debug, PartialEq)]
pub enum Document<'a> {
    /// An object of a kind that matters.
    Object(Kind),
    /// A list; the kind that its items have where they do not say, as in what the API server itself prints.
    List(&'a [Tree], Option<Kind>),
    /// Of a kind that does not matter to policy.
    Other,
    /// It looks like one that matters, but cannot be read as such.
    Unsupported(String),
}

/// Tells what a document is. `default` is the kind of list items without one.
pub fn classify(tree: &Tree, default: Option<Kind>) -> Document<'_> {
    let Value::Map(_) = tree.value else {
        return Document::Unsupported(
            "this is not a Kubernetes object (a mapping with apiVersion and kind)".into(),
        );
    };
    let version = tree.text("apiVersion").unwrap_or_default();
    let kind = match (tree.text("kind"), default) {
        (Some(kind), _) => kind,
        (None, Some(default)) => return Document::Object(default),
        (None, None) => {
            return Document::Unsupported(
                "no `kind`: this is not a Kubernetes object; it is left out".into(),
            );
        }
    };
    if let Some(items) = list_items(tree, kind) {
        let kind_of_items = Kind::ALL.into_iter().find(|k| kind.strip_suffix("List") == Some(k.as_str()));
        return Document::List(items, kind_of_items);
    }
    if version.split_once('/').is_some_and(|(group, _)| group == "policy.networking.k8s.io") {
        return Document::Unsupported(format!("this version of Weir does not enforce {kind} ({version})"));
    }
    match Kind::ALL.into_iter().find(|k| k.as_str() == kind) {
        None => Document::Other,
        Some(found) if version == found.api_version() => Document::Object(found),
        Some(found) => {
            let said =
                if version.is_empty() { "no apiVersion".to_owned() } else { format!("apiVersion {version}") };
            Document::Unsupported(format!(
                "{said} for kind {kind} is not supported, the object is NOT in force: \
                 write it with apiVersion {}",
                found.api_version()
            ))
        }
    }
}

fn list_items<'a>(tree: &'a Tree, kind: &str) -> Option<&'a [Tree]> {
    if !kind.ends_with("List") {
        return None;
    }
    match tree.get("items").map(|items| &items.value) {
        Some(Value::Seq(items)) => Some(items),
        Some(Value::Null) => Some(&[]),
        _ => None,
    }
}
