//! What is written of an Event, and what becomes of it whatever the API server says.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use weir_compiler::object::ObjectKey;
use weir_controller::events::{Note, Reason, Writer};
use weir_controller::metrics::Metrics;

/// An API server that has some objects, and keeps Events.
#[derive(Debug, Default)]
struct Server {
    /// Metadata, by path and name.
    objects: BTreeMap<(String, String), Value>,
    events: BTreeMap<String, Value>,
    /// What the next requests to write are answered with.
    faults: VecDeque<Value>,
    written: usize,
}

type Shared = Arc<Mutex<Server>>;

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies";
const PODS: &str = "/api/v1/namespaces/a/pods";

fn status(code: u16, message: &str, cause: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message,
        "reason": "", "details": {"causes": [{"reason": cause}]}})
}

impl Server {
    fn new() -> Shared {
        let policy = json!({"name": "p", "namespace": "a", "uid": "uid-p", "generation": 1});
        let pod = json!({"name": "x", "namespace": "a", "uid": "uid-x"});
        let objects = [((POLICIES, "p"), policy), ((PODS, "x"), pod)];
        let objects = objects.into_iter().map(|((path, name), of)| ((path.to_owned(), name.to_owned()), of));
        Arc::new(Mutex::new(Server { objects: objects.collect(), ..Server::default() }))
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &[u8]) -> Value {
        if *method == Method::GET {
            let name = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
            let name = name.expect("one object is asked for").to_owned();
            let found: Vec<Value> = self.objects.get(&(path.to_owned(), name)).into_iter().cloned().collect();
            let items: Vec<Value> = found.into_iter().map(|metadata| json!({"metadata": metadata})).collect();
            return json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items});
        }
        assert_eq!((method, path), (&Method::POST, "/apis/events.k8s.io/v1/namespaces/a/events"));
        self.written += 1;
        if let Some(fault) = self.faults.pop_front() {
            return fault;
        }
        let event: Value = serde_json::from_slice(body).expect("JSON");
        let name = event["metadata"]["name"].as_str().expect("a name").to_owned();
        if self.events.contains_key(&name) {
            return status(409, "it exists", "");
        }
        self.events.insert(name, event.clone());
        event
    }
}

fn client(server: &Shared) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.expect("a body");
            let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
            let answer = server.lock().unwrap().answer(&head.method, path, query, &body);
            let code = answer["code"].as_u64().map_or(200, |code| u16::try_from(code).unwrap());
            let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    Client::new(service, "default")
}

/// Writes these, and counts what became of them.
async fn write(server: &Shared, instance: &str, notes: Vec<Note>) -> BTreeMap<String, u64> {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let (sender, receiver) = mpsc::channel(notes.len().max(1));
    for note in notes {
        sender.send(note).await.unwrap();
    }
    drop(sender);
    Writer::new(client(server), instance, metrics).run(receiver).await;
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let counts = text.lines().filter_map(|line| {
        let (result, count) =
            line.strip_prefix("weir_controller_kubernetes_events_total{result=\"")?.split_once("\"} ")?;
        Some((result.to_owned(), count.parse().unwrap()))
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

fn counts<const N: usize>(all: [(&str, u64); N]) -> BTreeMap<String, u64> {
    all.into_iter().map(|(result, count)| (result.to_owned(), count)).collect()
}

fn note(reason: Reason, name: &str, text: &str) -> Note {
    let related = (reason == Reason::Isolated).then(|| ObjectKey::new("a", "p"));
    Note {
        reason,
        about: ObjectKey::new("a", name),
        related,
        text: text.to_owned(),
        state: "state".to_owned(),
    }
}

#[tokio::test]
async fn an_event_has_what_kubernetes_wants_of_it() {
    let server = Server::new();
    let isolated = note(Reason::Isolated, "x", "NetworkPolicy a/p isolates it");
    assert_eq!(write(&server, "weir-controller-1", vec![isolated]).await, counts([("written", 1)]));
    let server = server.lock().unwrap();
    let (name, event) = server.events.first_key_value().unwrap();
    assert!(name.starts_with("x.") && name.len() == "x.".len() + 24, "{name}");
    let mut event = event.clone();
    let time = event.as_object_mut().unwrap().remove("eventTime").expect("it is required");
    assert!(time.as_str().is_some_and(|time| time.contains('.') && time.ends_with('Z')), "{time}");
    let wanted = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "a"},
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "x", "uid": "uid-x"},
        "related": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "a", "name": "p", "uid": "uid-p"},
        "reason": "Isolated",
        "action": "Isolate",
        "type": "Normal",
        "note": "NetworkPolicy a/p isolates it",
        "reportingController": "weir.dev/controller",
        "reportingInstance": "weir-controller-1",
    });
    assert_eq!(event, wanted);
}

#[tokio::test]
async fn another_replica_and_another_run_write_the_same_and_another_generation_does_not() {
    let server = Server::new();
    let all = || vec![note(Reason::SelectsNoPod, "p", "none"), note(Reason::Isolated, "x", "it is")];
    assert_eq!(write(&server, "one", all()).await, counts([("written", 2)]));
    // what is said need not be the same in each word
    let mut others = all();
    others[0].text = "in other words".to_owned();
    assert_eq!(write(&server, "two", others).await, counts([("known", 2)]));
    let mut others = all();
    others.iter_mut().for_each(|note| note.state = "another".to_owned());
    assert_eq!(write(&server, "one", others).await, counts([("written", 2)]));
    server.lock().unwrap().objects.get_mut(&(POLICIES.to_owned(), "p".to_owned())).unwrap()["generation"] =
        json!(2);
    assert_eq!(write(&server, "one", all()).await, counts([("written", 2)]));
    let audited = json!({"weir.dev/audit": "true"});
    server.lock().unwrap().objects.get_mut(&(POLICIES.to_owned(), "p".to_owned())).unwrap()["annotations"] =
        audited;
    assert_eq!(write(&server, "one", all()).await, counts([("written", 2)]));
    server.lock().unwrap().objects.get_mut(&(PODS.to_owned(), "x".to_owned())).unwrap()["uid"] =
        json!("another");
    assert_eq!(write(&server, "one", all()).await, counts([("known", 1), ("written", 1)]));
}

#[tokio::test]
async fn what_is_gone_is_left_alone() {
    let server = Server::new();
    let all = vec![note(Reason::SelectsNoPod, "gone", "none"), note(Reason::Isolated, "gone", "it is")];
    assert_eq!(write(&server, "one", all).await, counts([("gone", 2)]));
    assert_eq!(server.lock().unwrap().written, 0);
    // the namespace is about to go: no lack of rights
    server.lock().unwrap().faults.push_back(status(403, "is being terminated", "NamespaceTerminating"));
    let all = vec![note(Reason::SelectsNoPod, "p", "none"), note(Reason::Isolated, "x", "it is")];
    assert_eq!(write(&server, "one", all).await, counts([("gone", 1), ("written", 1)]));
}

#[tokio::test]
async fn where_it_is_forbidden_it_is_not_tried_for_each() {
    let server = Server::new();
    server.lock().unwrap().faults.push_back(status(403, "events is forbidden", ""));
    let all = (0..100).map(|_| note(Reason::SelectsNoPod, "p", "none")).collect();
    assert_eq!(write(&server, "one", all).await, counts([("forbidden", 100)]));
    assert_eq!(server.lock().unwrap().written, 1);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_given_up() {
    let server = Server::new();
    let busy = || status(500, "busy", "");
    server.lock().unwrap().faults.extend([busy()]);
    let one = || vec![note(Reason::SelectsNoPod, "p", "none")];
    assert_eq!(write(&server, "one", one()).await, counts([("written", 1)]));
    server.lock().unwrap().faults.extend([busy(), busy(), busy()]);
    let mut other = one();
    other[0].state = "another".to_owned();
    assert_eq!(write(&server, "one", other).await, counts([("failed", 1)]));
    assert_eq!(server.lock().unwrap().written, 5);
}

#[tokio::test]
async fn whatever_is_in_names_and_texts_the_event_can_be_written() {
    let server = Server::new();
    let name = format!("{}.{}", "n".repeat(199), "m".repeat(50));
    let metadata = json!({"name": name, "namespace": "a", "uid": "u", "generation": 1});
    server.lock().unwrap().objects.insert((POLICIES.to_owned(), name.clone()), metadata);
    let text = format!("one\nline\u{1b}[31m {}", "ä".repeat(2000));
    assert_eq!(
        write(&server, &"i".repeat(300), vec![note(Reason::SelectsNoPod, &name, &text)]).await,
        counts([("written", 1)])
    );
    let server = server.lock().unwrap();
    let (name, event) = server.events.first_key_value().unwrap();
    assert!(name.len() <= 253 && !name.contains("..") && !name.contains(".-"), "{name}");
    let note = event["note"].as_str().unwrap();
    assert!(note.len() <= 1024 && note.starts_with("one line [31m ä") && note.ends_with('…'), "{note}");
    assert!(event["reportingInstance"].as_str().unwrap().len() <= 128);
}
