//! An agent and its controllers, over TLS: what it has in the end, and whom it does not believe.

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod clusters;
#[path = "common/sender.rs"]
mod sender;
#[path = "common/served.rs"]
mod served;
#[path = "common/whole.rs"]
mod whole;

use std::time::Duration;

use clusters::plain_pod;
use served::{Controller, NAME, Trust, script};
use weir_agent::controller::{Ack, Client, Commit, Told};
use weir_agent::metrics::Metrics;
use weir_compiler::object::{Event, Namespace, ObjectKey, Policy};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};
use weir_proto::Mode;
use weir_proto::pb::from_controller::What;
use weir_proto::pb::{Ask, Changes, Commit as Mark, Welcome};
use weir_proto::{PROTOCOL, member_sums};
use whole::check_each;

/// In the place of the agent's loop.
struct Loop {
    client: Client,
    slice: NodeSlice,
    /// How much was in each commit.
    commits: Vec<usize>,
    lost: Vec<String>,
}

impl Loop {
    fn start(options: weir_agent::controller::Options) -> Loop {
        let client = Client::start(options, Metrics::default());
        Loop { client, slice: NodeSlice::default(), commits: Vec::new(), lost: Vec::new() }
    }

    async fn step(&mut self) {
        let told = tokio::time::timeout(Duration::from_secs(60), self.client.next()).await;
        match told.expect("something happens").unwrap() {
            Told::Welcome { key, reply } => {
                let items = key.items(&self.slice.changes(), |id, members| member_sums(&key, id, members));
                let _ = reply.send(items);
            }
            Told::Commit(Commit { conversation, version, incoming, reply }) => {
                let size = incoming.len();
                let taken = incoming.changes(&self.slice).map(|changes| {
                    check_each(&mut self.slice, &changes);
                    self.commits.push(size);
                    self.client.acknowledge(Ack {
                        conversation,
                        version,
                        problems: Vec::new(),
                        mode: Mode::Enforce,
                    });
                });
                let _ = reply.send(taken);
            }
            Told::Lost { why } => self.lost.push(why),
        }
    }

    async fn until(&mut self, done: impl Fn(&Loop) -> bool) {
        for _ in 0..200 {
            if done(self) {
                return;
            }
            self.step().await;
        }
        panic!("after {:?} commits, and {:?}", self.commits, self.lost);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn pod(name: &str, address: &str) -> Event {
    let mut pod = plain_pod(ObjectKey::new("a", name), address);
    pod.node = Some("n1".into());
    Event::Pod(pod)
}

fn policy(name: &str, port: u16) -> Event {
    let spec = serde_json::json!({
        "podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": port}]}]
    });
    let spec = serde_json::from_value(spec).unwrap();
    Event::Policy(Policy { namespace: "a".into(), name: name.into(), created: 0, audit: None, spec })
}

/// The same objects, told to controllers and compiled here.
struct Cluster(Compiler);

impl Cluster {
    fn new() -> Cluster {
        Cluster(Compiler::new(Scope::AllNodes))
    }

    fn apply(&mut self, to: &[&Controller], events: Vec<Event>) -> NodeSlice {
        to.iter().for_each(|controller| controller.apply(events.clone()));
        self.0.apply(events);
        self.0.slice("n1")
    }
}

#[test]
fn whichever_controller_it_comes_to_only_what_differs_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::new(folder.path());
    let mut cluster = Cluster::new();
    let first = Controller::start(&trust, "127.0.0.1:0", 1);
    let second = Controller::start(&trust, "127.0.0.1:0", 2);
    let at = first.address;
    let mut events = vec![Event::Namespace(Namespace { name: "a".into(), ..Namespace::default() })];
    events.extend((0..100).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"))));
    events.extend((1..50).map(|port| policy(&format!("x{port}"), port)));
    let want = cluster.apply(&[&first, &second], events);

    runtime().block_on(async {
        let mut agent = Loop::start(trust.options(&[first.address, second.address]));
        agent.until(|agent| agent.slice == want).await;
        let whole = agent.commits[0];
        assert!(whole > 250, "one commit with all of it: {:?}", agent.commits);

        let want = cluster.apply(&[&first, &second], vec![policy("y", 8000), pod("q", "10.0.1.1")]);
        agent.until(|agent| agent.slice == want).await;

        // one goes, which may be the one that is followed, and then the other
        let before = agent.commits.len();
        drop(first);
        let want = cluster.apply(&[&second], vec![policy("y", 8001)]);
        agent.until(|agent| agent.slice == want).await;
        let third = Controller::start(&trust, &at.to_string(), 3);
        // it has to be told all that there is
        let mut events = vec![Event::Namespace(Namespace { name: "a".into(), ..Namespace::default() })];
        events.extend((0..100).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"))));
        events.extend((1..50).map(|port| policy(&format!("x{port}"), port)));
        events.extend([policy("y", 8002), pod("q", "10.0.1.2")]);
        drop(second);
        let want = cluster.apply(&[&third], events);
        agent.until(|agent| agent.slice == want).await;
        assert!(!agent.lost.is_empty(), "at least one of those that went was followed");
        let later = &agent.commits[before..];
        assert!(later.iter().all(|size| *size < whole / 4), "{whole} at first, then {later:?}");
    });
}

#[test]
fn nobody_is_believed_who_does_not_prove_what_he_says() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = tempfile::tempdir().unwrap();
    let trust = Trust::new(folder.path());
    let controller = Controller::start(&trust, "127.0.0.1:0", 1);
    let want = Cluster::new().apply(&[&controller], vec![pod("p", "10.0.0.1"), policy("x", 1)]);
    let good = trust.options(&[controller.address]);
    runtime().block_on(async {
        let refused = async |options, why: &str| {
            let mut agent = Loop::start(options);
            agent.until(|agent| agent.lost.len() == 2).await;
            assert!(agent.commits.is_empty());
            assert!(agent.lost.iter().all(|lost| lost.contains(why)), "{why}: {:?}", agent.lost);
        };
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Trust::new(foreign.path());
        let ca = foreign.path().join("ca.crt");
        refused(weir_agent::controller::Options { ca, ..good.clone() }, "certificate").await;
        let ca = write("empty", "");
        refused(weir_agent::controller::Options { ca, ..good.clone() }, "no certificate").await;
        let ca = write("noise", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        refused(weir_agent::controller::Options { ca, ..good.clone() }, "cannot read the controllers' CA")
            .await;
        let name = "other.weir-system.svc".to_owned();
        refused(weir_agent::controller::Options { name, ..good.clone() }, "certificate").await;
        let name = "no name".to_owned();
        refused(weir_agent::controller::Options { name, ..good.clone() }, "--controller-name").await;
        let token = write("stranger", "stranger");
        refused(weir_agent::controller::Options { token, ..good.clone() }, "not valid").await;
        let token = write("two", "node n1\nnode n2");
        refused(weir_agent::controller::Options { token, ..good.clone() }, "it is no token").await;
        let token = folder.path().join("none");
        refused(weir_agent::controller::Options { token, ..good.clone() }, "cannot read this agent's token")
            .await;
        let token = write("other", "node n2");
        refused(weir_agent::controller::Options { token, ..good.clone() }, "for node n2").await;
        let addresses = vec!["no-such-host.invalid:1".parse().unwrap()];
        refused(weir_agent::controller::Options { addresses, ..good.clone() }, "no-such-host").await;

        // a volume that is filled later
        let ca = folder.path().join("later");
        let mut agent = Loop::start(weir_agent::controller::Options { ca: ca.clone(), ..good.clone() });
        agent.until(|agent| !agent.lost.is_empty()).await;
        std::fs::copy(&good.ca, ca).unwrap();
        agent.until(|agent| agent.slice == want).await;
    });
}

fn welcome() -> What {
    let (version, node) = ("0".to_owned(), "n1".to_owned());
    What::Welcome(Welcome { protocol: PROTOCOL, version, node, digest_key: vec![1; 32] })
}

fn changes(change: Vec<Vec<u8>>) -> What {
    What::Changes(Changes { change: change.into_iter().map(Into::into).collect() })
}

#[test]
fn a_controller_that_breaks_the_protocol_is_left_and_nothing_of_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::new(folder.path());
    let slice = Cluster::new().apply(&[], vec![pod("p", "10.0.0.1"), policy("x", 1)]);
    let mut without = slice.changes();
    without.retain(|change| !matches!(change, weir_compiler::slice::Change::Rule(..)));
    let dangling = sender::encoded(&without);
    let mark = |version| What::Commit(Mark { version });
    let other = |change: fn(&mut Welcome)| {
        let What::Welcome(mut welcome) = welcome() else { unreachable!() };
        change(&mut welcome);
        What::Welcome(welcome)
    };
    let scripts = [
        ("first message is no welcome", vec![mark(1)]),
        ("for node n2", vec![other(|welcome| welcome.node = "n2".into())]),
        ("protocol that this agent does not know", vec![other(|welcome| welcome.protocol = PROTOCOL + 1)]),
        ("protocol that this agent does not know", vec![other(|welcome| welcome.protocol = 0)]),
        ("no key of 32 bytes", vec![other(|welcome| welcome.digest_key = vec![1; 31])]),
        ("welcome twice", vec![welcome(), welcome()]),
        ("after the first commit", vec![welcome(), mark(1), What::Ask(Ask { parts: vec![0] })]),
        ("which is not there", vec![welcome(), changes(dangling), mark(1)]),
        ("malformed", vec![welcome(), changes(vec![vec![0xff; 9]]), mark(1)]),
        ("never told", vec![welcome(), changes(vec![weir_proto::forget(&[1]).to_vec()]), mark(1)]),
    ];
    runtime().block_on(async {
        for (why, says) in scripts {
            let address = script(&trust, NAME, says).await;
            let mut agent = Loop::start(trust.options(&[address]));
            agent.until(|agent| !agent.lost.is_empty()).await;
            assert!(agent.lost[0].contains(why), "{why}: {:?}", agent.lost);
            assert_eq!(agent.slice, NodeSlice::default());
        }
        // what comes before a commit is not lost with it
        let whole = sender::encoded(&slice.changes());
        let says = vec![welcome(), changes(whole[..2].to_vec()), changes(whole[2..].to_vec()), mark(9)];
        let address = script(&trust, NAME, says).await;
        let mut agent = Loop::start(trust.options(&[address]));
        agent.until(|agent| agent.slice == slice).await;
    });
}
