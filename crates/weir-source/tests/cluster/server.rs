//! An API server that a test tells what goes wrong.
//!
//! It has lists (whole, by pages, streamed) and watches as Kubernetes documents them, of namespaces, pods and
//! NetworkPolicies, whose one value is a label. What it does to a request is the next [`Fault`] in line.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use weir_source::Kind;

/// An object: its kind and name.
pub(crate) type Key = (Kind, String);
/// All objects of one moment, each with its label and version.
pub(crate) type Objects = BTreeMap<Key, (u32, u64)>;

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Nothing,
    /// It is answered with an HTTP status.
    Status(u16),
    /// There is no connection.
    Refused,
    /// After so many objects or events the connection breaks, in the middle of a line.
    Cut(usize),
    /// After so many objects or events a watch ends as if that were all; a list is cut.
    Ends(usize),
    /// After so many events of a watch comes an event that is an error; a list has that status.
    Error(usize, u16),
    /// After so many events of a watch comes a line that is no event, and the next ones are lost.
    Garbage(usize),
    /// After so many events of a watch nothing comes any more.
    Silent(usize),
}

#[derive(Debug, Default)]
struct World {
    version: u64,
    objects: Objects,
    /// What was there at each version.
    history: BTreeMap<u64, Objects>,
    log: Vec<(u64, Key, Option<u32>)>,
    /// The oldest version from which the server can tell what happened.
    compacted: u64,
    /// Objects that were gone at some time.
    deleted: BTreeSet<Key>,
    /// Counts restarts.
    epoch: u64,
    faults: VecDeque<Fault>,
    /// Versions that a server's cache lags behind; what names version 0 gets to see it.
    lag: usize,
    requests: Vec<String>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<()>>,
    streams: bool,
}

const PAGE: usize = 2;
const KINDS: [(&str, Kind); 3] =
    [("namespaces", Kind::Namespace), ("pods", Kind::Pod), ("networkpolicies", Kind::Policy)];

type Body = BoxBody<Bytes, io::Error>;

impl Server {
    /// Whether it streams lists, too.
    pub(crate) fn new(streams: bool) -> Self {
        let world = World { version: 100, compacted: 1, ..World::default() };
        let server = Server { world: Arc::new(Mutex::new(world)), changed: Arc::default(), streams };
        server.change(|world| _ = world.history.insert(world.version, Objects::new()));
        server
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world.lock().unwrap());
        self.changed.send_replace(());
        result
    }

    /// Makes an object, or gives it another label.
    pub(crate) fn put(&self, kind: Kind, name: &str, label: u32) {
        self.change(|world| world.commit((kind, name.to_owned()), Some(label)));
    }

    /// Deletes an object, if it is there.
    pub(crate) fn delete(&self, kind: Kind, name: &str) {
        self.change(|world| {
            let key = (kind, name.to_owned());
            if world.objects.contains_key(&key) {
                world.commit(key, None);
            }
        });
    }

    /// What happened before now can be asked for no more.
    pub(crate) fn compact(&self) {
        self.change(|world| world.compacted = world.version);
    }

    /// All connections break.
    pub(crate) fn restart(&self) {
        self.change(|world| world.epoch += 1);
    }

    /// As if etcd were restored from a backup that is so many versions old. Connections break.
    pub(crate) fn restore(&self, versions: u64) {
        self.change(|world| {
            let oldest = *world.history.keys().next().unwrap();
            world.version = world.version.saturating_sub(versions).max(oldest);
            let before = std::mem::replace(&mut world.objects, world.history[&world.version].clone());
            let gone = before.into_keys().filter(|key| !world.objects.contains_key(key));
            world.deleted.extend(gone.collect::<Vec<_>>());
            world.history.split_off(&(world.version + 1));
            let version = world.version;
            world.log.retain(|(v, ..)| *v <= version);
            world.compacted = world.compacted.min(version);
            world.epoch += 1;
        });
    }

    /// What goes wrong with the next requests.
    pub(crate) fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.change(|world| world.faults.extend(faults));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn mend(&self) {
        self.change(|world| world.faults.clear());
    }

    /// What names version 0 sees what was so many versions ago.
    pub(crate) fn lag(&self, versions: usize) {
        self.change(|world| world.lag = versions);
    }

    /// What is there: the label of each.
    pub(crate) fn objects(&self) -> BTreeMap<Key, u32> {
        self.change(|world| world.objects.iter().map(|(key, (label, _))| (key.clone(), *label)).collect())
    }

    /// Whether it was gone at some time.
    pub(crate) fn was_deleted(&self, key: &Key) -> bool {
        self.change(|world| world.deleted.contains(key))
    }

    /// The requests so far, each with its path and query.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.change(|world| world.requests.clone())
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = server.answer(&request);
            async move { answer }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Result<Response<Body>, io::Error> {
        let uri = request.uri();
        let query: BTreeMap<&str, &str> =
            uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('=')).collect();
        let kind = KINDS.iter().find(|(name, _)| uri.path().ends_with(name)).expect("a kind").1;
        let fault = self.change(|world| {
            world.requests.push(uri.to_string());
            world.faults.pop_front().unwrap_or(Fault::Nothing)
        });
        match fault {
            Fault::Status(code) => return Ok(status(code)),
            Fault::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            Fault::Error(_, code) if !query.contains_key("watch") => return Ok(status(code)),
            _ => {}
        }
        if !query.contains_key("watch") {
            return Ok(self.list(kind, &query, fault));
        }
        if query.contains_key("sendInitialEvents") && !self.streams {
            return Ok(status(422));
        }
        Ok(self.watch(kind, &query, fault))
    }

    fn list(&self, kind: Kind, query: &BTreeMap<&str, &str>, fault: Fault) -> Response<Body> {
        let (limit, from) = (query.contains_key("limit"), query.get("continue").copied());
        let body = self.change(|world| {
            let (version, after) = match from.map(|token| token.split_once('.').expect("ours")) {
                None => (world.version, String::new()),
                Some((version, after)) => (version.parse().unwrap(), after.to_owned()),
            };
            if version < world.compacted || !world.history.contains_key(&version) {
                return None;
            }
            let all = world.history[&version].iter().filter(|((k, name), _)| *k == kind && *name > after);
            let all: Vec<_> = all.collect();
            let page = if limit { &all[..all.len().min(PAGE)] } else { &all[..] };
            let mut meta = json!({"resourceVersion": version.to_string()});
            if page.len() < all.len() {
                meta["continue"] = json!(format!("{version}.{}", page.last().unwrap().0.1));
            }
            let items: Vec<Value> =
                page.iter().map(|((kind, name), at)| object(*kind, name, at.0, at.1)).collect();
            Some(json!({"apiVersion": "v1", "kind": "List", "metadata": meta, "items": items}).to_string())
        });
        let Some(body) = body else { return status(410) };
        match fault {
            Fault::Cut(_) | Fault::Ends(_) | Fault::Garbage(_) | Fault::Silent(_) => {
                let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
                let frames = [Ok(http_body::Frame::data(half)), Err(io::ErrorKind::ConnectionReset.into())];
                respond(200, StreamBody::new(stream::iter(frames)).boxed())
            }
            _ => respond(200, full(body)),
        }
    }

    fn watch(&self, kind: Kind, query: &BTreeMap<&str, &str>, fault: Fault) -> Response<Body> {
        let (sender, receiver) = mpsc::channel(1);
        let from = query["resourceVersion"].to_owned();
        let first = query.contains_key("sendInitialEvents");
        let seconds: u64 = query["timeoutSeconds"].parse().unwrap();
        let server = self.clone();
        let epoch = self.world.lock().unwrap().epoch;
        tokio::spawn(async move {
            let mut feed = Feed { sender, fault, sent: 0 };
            let served = server.serve(kind, &from, first, epoch, &mut feed);
            // it closes what it was told to
            let _ = tokio::time::timeout(Duration::from_secs(seconds), served).await;
            if matches!(fault, Fault::Silent(after) if feed.sent >= after) {
                std::future::pending::<()>().await;
            }
        });
        let frames = stream::unfold(receiver, async |mut receiver| {
            let frame: Result<String, io::Error> = receiver.recv().await?;
            Some((frame.map(|text| http_body::Frame::data(Bytes::from(text))), receiver))
        });
        respond(200, StreamBody::new(frames).boxed())
    }

    async fn serve(
        &self,
        kind: Kind,
        from: &str,
        first: bool,
        epoch: u64,
        feed: &mut Feed,
    ) -> Option<Infallible> {
        let mut changed = self.changed.subscribe();
        let (initial, mut cursor, compacted) = self.world.lock().unwrap().initial(from, first);
        if !first && cursor < compacted {
            feed.line(&event("ERROR", expired(410))).await?;
            return None;
        }
        if first {
            for ((_, name), (label, version)) in initial.iter().filter(|((k, _), _)| *k == kind) {
                feed.line(&event("ADDED", object(kind, name, *label, *version))).await?;
            }
            feed.line(&bookmark(kind, cursor, true)).await?;
        }
        let mut quiet = 0;
        loop {
            let news = self.world.lock().unwrap().since(cursor, epoch);
            let Some(news) = news else {
                let _ = feed.sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
                return None;
            };
            for (version, (k, name), label) in news {
                cursor = version;
                if k == kind {
                    let what = if label.is_some() { "MODIFIED" } else { "DELETED" };
                    feed.line(&event(what, object(kind, &name, label.unwrap_or(0), version))).await?;
                }
            }
            tokio::select! {
                changed = changed.changed() => changed.ok()?,
                () = tokio::time::sleep(Duration::from_secs(7)) => {
                    quiet += 1;
                    // a bookmark has the version of the server's cache, of other kinds' changes too; not one
                    // that is behind what was asked for
                    if quiet % 2 == 0 {
                        feed.line(&bookmark(kind, cursor, false)).await?;
                    }
                }
            }
        }
    }
}

impl World {
    fn commit(&mut self, key: Key, label: Option<u32>) {
        self.version += 1;
        match label {
            Some(label) => _ = self.objects.insert(key.clone(), (label, self.version)),
            None => {
                self.objects.remove(&key);
                self.deleted.insert(key.clone());
            }
        }
        self.log.push((self.version, key, label));
        self.history.insert(self.version, self.objects.clone());
    }

    /// What has happened since, unless there was a restart.
    fn since(&self, version: u64, epoch: u64) -> Option<Vec<(u64, Key, Option<u32>)>> {
        let news = self.log.iter().filter(|(v, ..)| *v > version);
        (self.epoch == epoch).then(|| news.cloned().collect())
    }

    /// What a watch begins with, and at which version; and from which on there are events.
    fn initial(&self, from: &str, first: bool) -> (Objects, u64, u64) {
        let version = match from {
            "" => self.version,
            // any version will do: that of a cache
            "0" if first => *self.history.keys().rev().nth(self.lag).unwrap_or(&self.version),
            from => from.parse().unwrap(),
        };
        (self.history.get(&version).cloned().unwrap_or_default(), version, self.compacted)
    }
}

/// The lines of one watch, with its fault.
struct Feed {
    sender: mpsc::Sender<Result<String, io::Error>>,
    fault: Fault,
    sent: usize,
}

impl Feed {
    async fn line(&mut self, line: &Value) -> Option<()> {
        let line = format!("{line}\n");
        match self.fault {
            Fault::Cut(after) if self.sent >= after => {
                self.sender.send(Ok(line[..line.len() / 2].to_owned())).await.ok()?;
                let _ = self.sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
                return None;
            }
            Fault::Ends(after) if self.sent >= after => return None,
            Fault::Error(after, code) if self.sent >= after => {
                self.sender.send(Ok(format!("{}\n", event("ERROR", expired(code))))).await.ok()?;
                return None;
            }
            // one line is lost, and not the end
            Fault::Garbage(after) if self.sent == after => {
                self.sender.send(Ok("{\"type\": \"ADDED\", \"object\": 1}\n".to_owned())).await.ok()?;
            }
            Fault::Silent(after) if self.sent >= after => std::future::pending().await,
            _ => self.sender.send(Ok(line)).await.ok()?,
        }
        self.sent += 1;
        Some(())
    }
}

fn object(kind: Kind, name: &str, label: u32, version: u64) -> Value {
    let mut meta = json!({"name": name, "uid": name, "resourceVersion": version.to_string(),
        "labels": {"is": label.to_string()}});
    match kind {
        Kind::Namespace => json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}),
        Kind::Pod => {
            meta["namespace"] = json!("n");
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": {}})
        }
        Kind::Policy => {
            meta["namespace"] = json!("n");
            let spec = json!({"podSelector": {"matchLabels": {"is": label.to_string()}}});
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec})
        }
    }
}

fn event(what: &str, object: Value) -> Value {
    json!({"type": what, "object": object})
}

fn bookmark(kind: Kind, version: u64, list_ends: bool) -> Value {
    let mut meta = json!({"resourceVersion": version.to_string()});
    if list_ends {
        meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    event("BOOKMARK", json!({"apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": meta}))
}

fn expired(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "a fault",
        "reason": "Fault", "code": code})
}

fn status(code: u16) -> Response<Body> {
    respond(code, full(expired(code).to_string()))
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed()
}

fn respond(code: u16, body: Body) -> Response<Body> {
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
