//! The mode of the cluster: every agent is told, once, and what is known of who has confirmed is true.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Agent;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use weir_compiler::object::{Event, ObjectKey, Pod, Policy};
use weir_controller::drive::Driver;
use weir_controller::events::{Note, Reason, Reporter};
use weir_controller::hub::Hub;
use weir_controller::metrics::Metrics;
use weir_controller::mode::Told;
use weir_controller::outbox::{Outbox, Outgoing};
use weir_controller::serve::Call;
use weir_health::Health;
use weir_proto::{DigestKey, Items, Mode, pb};
use weir_source::Update;
use weir_source::status::Status;

const KEY: [u8; 32] = [1; 32];

fn join(hub: &mut Hub, agent: &Agent) -> Outgoing {
    let outbox = Arc::new(Outbox::default());
    hub.join("n1", agent.have(&DigestKey::new(KEY)), outbox.clone());
    Outgoing(outbox)
}

fn read(agent: &mut Agent, stream: &mut Outgoing) -> common::Came {
    agent.read(stream, &Items::default(), &DigestKey::new(KEY))
}

#[test]
fn agents_that_are_there_and_those_that_come_are_told_once() {
    let mut hub = Hub::new(DigestKey::new(KEY));
    let mut agent = Agent::default();
    let mut stream = join(&mut hub, &agent);
    read(&mut agent, &mut stream);
    assert_eq!(agent.mode, None, "where nobody has said anything, agents keep what they have");

    for mode in [Mode::Off, Mode::Enforce, Mode::Withdrawn] {
        hub.set_mode(mode, Instant::now());
        assert_eq!(hub.mode(), (Some(mode), hub.version()));
        let came = read(&mut agent, &mut stream);
        assert_eq!((agent.mode, came.changes, came.versions), (Some(mode), 1, vec![hub.version()]));
        hub.set_mode(mode, Instant::now());
        assert_eq!(read(&mut agent, &mut stream).versions, Vec::<u64>::new(), "it is the same");
    }
    // changed twice before the agent reads: it gets to hear of the last
    hub.set_mode(Mode::Off, Instant::now());
    hub.set_mode(Mode::Enforce, Instant::now());
    let came = read(&mut agent, &mut stream);
    assert_eq!((agent.mode, came.changes), (Some(Mode::Enforce), 1));

    hub.set_mode(Mode::Off, Instant::now());
    let mut late = Agent::default();
    let mut stream = join(&mut hub, &late);
    read(&mut late, &mut stream);
    assert_eq!(late.mode, Some(Mode::Off));
}

/// A controller without a network.
struct World {
    calls: mpsc::Sender<Call>,
    updates: mpsc::Sender<(Instant, Update)>,
    mode: watch::Sender<Told>,
    status: watch::Receiver<Status>,
    synced: Arc<AtomicBool>,
    health: Health,
    notes: mpsc::Receiver<Note>,
}

fn world() -> World {
    let ((calls, heard), (updates, stamped)) = (mpsc::channel(16), mpsc::channel(16));
    let (mode, told) = watch::channel(Told::default());
    let (tell, status) = watch::channel(Status::default());
    let synced = Arc::new(AtomicBool::new(false));
    let health = Health::new(Duration::from_secs(600));
    health.not_ready("mode", "not yet");
    let (note, notes) = mpsc::channel(weir_controller::events::QUEUE);
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let driver = Driver {
        hub: Hub::new(DigestKey::new(KEY)),
        updates: stamped,
        calls: heard,
        mode: told,
        synced: synced.clone(),
        metrics: metrics.clone(),
        namespace: "weir-system".to_owned(),
        health: health.clone(),
        status: tell,
        events: Reporter::new(ObjectKey::new("weir-system", "weir-mode"), note, metrics),
    };
    tokio::spawn(driver.run());
    World { calls, updates, mode, status, synced, health, notes }
}

impl World {
    fn say(&self, mode: Mode, version: &str) {
        let told = Told { asked: true, mode: Some(mode), version: version.to_owned(), problem: None };
        self.mode.send_replace(told);
    }

    async fn join(&self, node: &str) -> (usize, Outgoing) {
        let outbox = Arc::new(Outbox::default());
        let have = Agent::default().have(&DigestKey::new(KEY));
        let (number, joined) = oneshot::channel();
        let (node, version) = (node.to_owned(), "1".to_owned());
        self.calls.send(Call::Join { node, version, have, outbox: outbox.clone(), number }).await.unwrap();
        (joined.await.unwrap(), Outgoing(outbox))
    }

    async fn ack(&self, session: usize, version: u64, mode: i32) {
        self.calls.send(Call::Ack(session, pb::Ack { version, problems: vec![], mode })).await.unwrap();
    }

    async fn until(&mut self, done: impl Fn(&Status) -> bool) -> Status {
        let found = tokio::time::timeout(Duration::from_secs(60), self.status.wait_for(|s| done(s))).await;
        found.expect("it is told").unwrap().clone()
    }
}

#[tokio::test]
async fn only_who_has_acknowledged_that_very_change_is_told_to_have_withdrawn() {
    let mut world = world();
    world.say(Mode::Withdrawn, "1");
    let (first, mut stream) = world.join("n1").await;
    let (old, _of_an_older_agent) = world.join("n2").await;
    let mut agent = Agent::default();
    // the mode is one version of the hub
    while agent.mode.is_none() {
        read(&mut agent, &mut stream);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.ack(first, 1, pb::Mode::Withdrawn.into()).await;
    world.ack(old, 1, 0).await;
    let status = world.until(|s| s.mode_version == "1" && !s.withdrawn.is_empty()).await;
    assert_eq!(status.withdrawn.iter().collect::<Vec<_>>(), ["n1"]);
    assert_eq!(status.mode.as_deref(), Some("withdrawn"));
    assert_eq!(status.modes, [("enforce".to_owned(), 1), ("withdrawn".to_owned(), 1)].into());
    assert_eq!(status.other_mode, [("n2".to_owned(), "enforce".to_owned())].into(), "it knows of no modes");

    // back, and withdrawn again before the agent has said anything to either
    world.say(Mode::Enforce, "2");
    world.until(|s| s.mode_version == "2" && s.withdrawn.is_empty()).await;
    world.say(Mode::Withdrawn, "3");
    let status = world.until(|s| s.mode_version == "3").await;
    assert!(status.withdrawn.is_empty(), "what it said was of the first time: {status:?}");
    world.ack(first, 3, pb::Mode::Withdrawn.into()).await;
    world.until(|s| s.withdrawn.contains("n1")).await;
}

#[tokio::test]
async fn a_switch_is_an_event_and_the_first_mode_is_none() {
    let mut world = world();
    for (mode, version) in [(Mode::Enforce, "1"), (Mode::Enforce, "2"), (Mode::Off, "3"), (Mode::Off, "4")] {
        world.say(mode, version);
        world.until(|status| status.mode_version == version).await;
    }
    let note = world.notes.try_recv().expect("it is told at once");
    assert_eq!((note.reason, &*note.state), (Reason::PoliciesNotEnforced, "off 3"));
    assert_eq!(note.about, ObjectKey::new("weir-system", "weir-mode"));
    assert!(world.notes.try_recv().is_err(), "once");
}

#[tokio::test]
async fn an_agent_speaks_only_of_policies_that_its_node_has() {
    let mut world = world();
    let policy = |name: &str, node: &str| {
        let spec = json!({"podSelector": {"matchLabels": {"on": node}}, "policyTypes": ["Ingress"]});
        Event::Policy(Policy {
            created: 0,
            audit: None,
            namespace: "a".into(),
            name: name.into(),
            spec: serde_json::from_value(spec).unwrap(),
        })
    };
    let pods = [("n1", "10.0.0.1"), ("n2", "10.0.0.2")].map(|(node, address)| {
        Event::Pod(Pod {
            key: ObjectKey::new("a", node),
            uid: node.to_owned(),
            labels: [("on".to_owned(), node.to_owned())].into_iter().collect(),
            node: Some(node.to_owned()),
            ips: vec![address.parse().unwrap()],
            host_network: false,
            finished: false,
            terminating: false,
            created: 0,
            ports: vec![],
        })
    });
    let events = pods.into_iter().chain([policy("one", "n1"), policy("two", "n2")]).collect();
    world.say(Mode::Enforce, "1");
    world.updates.send((Instant::now(), Update::Batch { events, synced: true })).await.unwrap();
    world.until(|status| status.synced).await;
    let (session, _stream) = world.join("n1").await;
    let problem = |name: &str| pb::Problem {
        kind: "NetworkPolicy".to_owned(),
        namespace: "a".to_owned(),
        name: name.to_owned(),
        reason: "too large".to_owned(),
    };
    let problems = vec![problem("two"), problem("nowhere"), problem("one")];
    let ack = pb::Ack { version: 1, problems, mode: pb::Mode::Enforce.into() };
    world.calls.send(Call::Ack(session, ack)).await.unwrap();
    let note = tokio::time::timeout(Duration::from_secs(60), world.notes.recv()).await.unwrap().unwrap();
    assert_eq!((note.reason, note.about), (Reason::RefusedByKernel, ObjectKey::new("a", "one")));
    assert!(note.text.contains("on n1") && note.text.contains("too large"), "{}", note.text);
    // all that was due is told at once
    assert!(world.notes.try_recv().is_err(), "of others it knows nothing");
}

#[tokio::test]
async fn agents_are_served_when_objects_and_mode_are_known_or_the_mode_cannot_be() {
    let world = world();
    let all = Update::Batch { events: vec![], synced: true };
    world.updates.send((Instant::now(), all)).await.unwrap();
    let (_, _stream) = world.join("n1").await;
    assert!(!world.synced.load(Ordering::Acquire) && !world.health.is_ready(), "the mode is not known");
    let problem = Some("the ConfigMap is not there".to_owned());
    world.mode.send_replace(Told { asked: true, problem, ..Told::default() });
    let served = async {
        while !(world.synced.load(Ordering::Acquire) && world.health.is_ready()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), served).await.expect("it is served");
}
