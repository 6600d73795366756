//! An API server, as far as a controller needs one: lists and watches of three kinds, reviews of tokens, and a
//! ConfigMap with the mode. Whatever else is asked for is empty, and whatever is written is taken.
//!
//! It has no store to wait for: what it is told goes out to the watches before [`ApiServer::put`] returns.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Where an object's text has its version.
pub(super) const VERSION: &str = "@VERSION@";
/// Events of each kind that a watch can begin before.
const HISTORY: usize = 5_000;
/// How long a watch of what is always the same stays open.
const QUIET: Duration = Duration::from_secs(60);

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Namespaces.
    Namespace,
    /// Pods.
    Pod,
    /// NetworkPolicies.
    Policy,
}

const KINDS: [(&str, Kind, &str, &str); 3] = [
    ("/api/v1/namespaces", Kind::Namespace, "v1", "Namespace"),
    ("/api/v1/pods", Kind::Pod, "v1", "Pod"),
    ("/apis/networking.k8s.io/v1/networkpolicies", Kind::Policy, "networking.k8s.io/v1", "NetworkPolicy"),
];

#[derive(Debug, Default)]
struct Objects {
    /// By namespace and name: the text before and after the version.
    now: BTreeMap<String, (String, String)>,
    log: VecDeque<(u64, Bytes)>,
    /// The newest version that is not in the log any more.
    forgotten: u64,
    watches: Vec<(u64, mpsc::UnboundedSender<Bytes>)>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    kinds: [Objects; 3],
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct ApiServer(Arc<Mutex<State>>);

type Body = BoxBody<Bytes, Infallible>;

impl ApiServer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is new or changed; `text` is its JSON, with [`VERSION`] in it. When it went out.
    pub(super) fn put(&self, kind: Kind, key: &str, text: &str) -> Instant {
        let (before, after) = text.split_once(VERSION).expect("a place for the version");
        let parts = (before.to_owned(), after.to_owned());
        let mut state = self.state();
        let known = state.kinds[kind as usize].now.insert(key.to_owned(), parts.clone()).is_some();
        state.tell(kind, if known { "MODIFIED" } else { "ADDED" }, &parts)
    }

    /// An object is gone. When that went out; `None`: it was not there.
    pub(super) fn remove(&self, kind: Kind, key: &str) -> Option<Instant> {
        let mut state = self.state();
        let parts = state.kinds[kind as usize].now.remove(key)?;
        Some(state.tell(kind, "DELETED", &parts))
    }

    /// Answers until the runtime ends.
    pub(super) async fn serve(self, listener: std::net::TcpListener) -> Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let server = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                // whoever asked may have gone
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<&str, &str> =
            parts.uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('=')).collect();
        if parts.method != Method::GET {
            let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let value = serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
            let created = parts.method == Method::POST;
            let value = if path.ends_with("/tokenreviews") { review(value) } else { value };
            return respond(if created { StatusCode::CREATED } else { StatusCode::OK }, value.to_string());
        }
        let watch = query.get("watch").is_some_and(|watch| ["1", "true"].contains(watch));
        let Some(&(_, kind, ..)) = KINDS.iter().find(|(at, ..)| *at == path) else {
            return if watch { nothing_happens(&query) } else { respond(StatusCode::OK, other(&path)) };
        };
        if watch { self.watch(kind, &query) } else { respond(StatusCode::OK, self.list(kind, &query)) }
    }

    fn list(&self, kind: Kind, query: &BTreeMap<&str, &str>) -> String {
        let (_, _, api, name) = KINDS[kind as usize];
        let state = self.state();
        // one is asked for to know the version
        let wanted = if query.get("limit") == Some(&"1") { 0 } else { usize::MAX };
        let items: Vec<String> = state.kinds[kind as usize]
            .now
            .values()
            .take(wanted)
            .map(|(before, after)| format!("{before}{}{after}", state.version))
            .collect();
        format!(
            "{{\"apiVersion\":\"{api}\",\"kind\":\"{name}List\",\"metadata\":{{\"resourceVersion\":\"{}\"}},\
             \"items\":[{}]}}",
            state.version,
            items.join(",")
        )
    }

    fn watch(&self, kind: Kind, query: &BTreeMap<&str, &str>) -> Response<Body> {
        let (_, _, api, name) = KINDS[kind as usize];
        let (sender, lines) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.version += 1;
        let (number, version) = (state.version, state.version);
        let objects = &mut state.kinds[kind as usize];
        if query.contains_key("sendInitialEvents") {
            for (before, after) in objects.now.values() {
                let _ = sender.send(line("ADDED", before, version, after));
            }
            let mark = json!({"apiVersion": api, "kind": name, "metadata": {"resourceVersion": version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}});
            let _ = sender.send(format!("{}\n", json!({"type": "BOOKMARK", "object": mark})).into());
        } else {
            let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            if from < objects.forgotten {
                let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "reason": "Expired", "message": "too old", "code": 410});
                return respond(StatusCode::GONE, gone.to_string());
            }
            for (_, line) in objects.log.iter().filter(|(version, _)| *version > from) {
                let _ = sender.send(line.clone());
            }
        }
        objects.watches.push((number, sender));
        drop(state);
        let server = self.clone();
        let time = seconds(query);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            server.state().kinds[kind as usize].watches.retain(|(watch, _)| *watch != number);
        });
        let frames = stream::unfold(lines, async |mut lines| {
            let line = lines.recv().await?;
            Some((Ok(Frame::data(line)), lines))
        });
        with_type(StatusCode::OK, StreamBody::new(frames).boxed())
    }
}

impl State {
    fn tell(&mut self, kind: Kind, what: &str, (before, after): &(String, String)) -> Instant {
        self.version += 1;
        let version = self.version;
        let objects = &mut self.kinds[kind as usize];
        let line = line(what, before, version, after);
        let now = Instant::now();
        objects.watches.retain(|(_, watch)| watch.send(line.clone()).is_ok());
        objects.log.push_back((version, line));
        if objects.log.len() > HISTORY {
            objects.forgotten = objects.log.pop_front().map_or(0, |(version, _)| version);
        }
        now
    }
}

fn line(what: &str, before: &str, version: u64, after: &str) -> Bytes {
    format!("{{\"type\":\"{what}\",\"object\":{before}{version}{after}}}\n").into()
}

/// Tokens are the names of nodes; any other is nobody's.
fn review(mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    review["status"] = if token.starts_with("node-") {
        json!({"authenticated": true, "audiences": review["spec"]["audiences"], "user": {
            "username": "system:serviceaccount:weir-system:weir-agent", "extra": {
                "authentication.kubernetes.io/pod-uid": ["weir-agent"],
                "authentication.kubernetes.io/node-name": [token]}}})
    } else {
        json!({"authenticated": false, "error": "nobody's token"})
    };
    review
}

/// A list of what is no kind of ours: the ConfigMap with the mode, or nothing.
fn other(path: &str) -> String {
    let mut items = Vec::new();
    if path.ends_with("/configmaps") {
        items.push(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "weir-mode", "namespace": "weir-system", "resourceVersion": "1"},
            "data": {"mode": "enforce"}}));
    }
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
        .to_string()
}

fn seconds(query: &BTreeMap<&str, &str>) -> Duration {
    query.get("timeoutSeconds").and_then(|text| text.parse().ok()).map_or(QUIET, Duration::from_secs)
}

fn nothing_happens(query: &BTreeMap<&str, &str>) -> Response<Body> {
    let time = seconds(query);
    let frames = stream::unfold((), move |()| async move {
        tokio::time::sleep(time).await;
        None::<(Result<Frame<Bytes>, Infallible>, ())>
    });
    with_type(StatusCode::OK, StreamBody::new(frames).boxed())
}

fn respond(code: StatusCode, text: String) -> Response<Body> {
    with_type(code, Full::new(Bytes::from(text)).boxed())
}

fn with_type(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
