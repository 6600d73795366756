//! Whatever happens between Weir and the API server: no object is taken for deleted that was there all along,
//! and in the end nothing is missing.

mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use server::{Fault, Key, Server};
use tokio::sync::mpsc;
use weir_compiler::object::Event;
use weir_source::{Id, Kind, Update, cluster};

/// Longer than all pauses and time limits together.
const LONG: Duration = Duration::from_secs(3600);

/// What has been told of a server.
struct Client {
    server: Server,
    updates: mpsc::Receiver<Update>,
    known: BTreeMap<Key, u32>,
    synced: bool,
    problems: Vec<String>,
}

impl Client {
    fn new(server: &Server) -> Self {
        let (sender, updates) = mpsc::channel(16);
        tokio::spawn(cluster::watch_with(server.client(), sender));
        Client {
            server: server.clone(),
            updates,
            known: BTreeMap::new(),
            synced: false,
            problems: Vec::new(),
        }
    }

    fn take(&mut self, update: Update) {
        let (events, synced) = match update {
            Update::Batch { events, synced } => (events, synced),
            Update::Problem(problem) => return self.problems.push(problem.to_string()),
        };
        for event in events {
            let id = Id::of(&event);
            let key = (id.kind, id.key.name);
            let label = match event {
                Event::Namespace(namespace) => namespace.labels["is"].clone(),
                Event::Pod(pod) => pod.labels["is"].clone(),
                Event::Policy(policy) => policy.spec.pod_selector.match_labels["is"].clone(),
                Event::NamespaceGone(_) | Event::PodGone(_) | Event::PolicyGone(_) => {
                    assert!(
                        self.server.was_deleted(&key),
                        "{key:?} is told to be gone, and was there all along"
                    );
                    self.known.remove(&key);
                    continue;
                }
            };
            self.known.insert(key, label.parse().unwrap());
        }
        if synced && !self.synced {
            self.synced = true;
            for (key, label) in self.server.objects() {
                let there = self.known.contains_key(&key) || self.server.was_deleted(&key) || label > 0;
                assert!(there, "{key:?} was there from the start, and synced without it");
            }
        }
    }

    /// Until nothing is missing, nothing too much, and all kinds have been listed.
    async fn settle(&mut self) {
        let end = tokio::time::Instant::now() + LONG;
        while !self.synced || self.known != self.server.objects() {
            match tokio::time::timeout_at(end, self.updates.recv()).await {
                Ok(update) => self.take(update.expect("it follows")),
                Err(_) => panic!(
                    "an hour later it still is\n{:?}\nand not\n{:?}\nafter {:#?}",
                    self.known,
                    self.server.objects(),
                    self.server.requests().iter().rev().take(12).collect::<Vec<_>>()
                ),
            }
        }
    }

    /// Goes on for a time.
    async fn go_on(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(update) = tokio::time::timeout_at(end, self.updates.recv()).await {
            self.take(update.expect("it follows"));
        }
    }
}

/// A server with three objects of each kind.
fn server(streams: bool) -> Server {
    let server = Server::new(streams);
    for kind in Kind::ALL {
        ["a", "b", "c"].iter().for_each(|name| server.put(kind, name, 0));
    }
    server
}

/// Something of each kind changes, comes, and goes.
fn changes(server: &Server, label: u32) {
    for kind in Kind::ALL {
        server.put(kind, "a", label);
        server.put(kind, &format!("new-{label}"), label);
        server.delete(kind, &format!("new-{}", label.saturating_sub(1)));
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// A client that has settled, of a server that streams lists or does not.
async fn settled(streams: bool) -> (Server, Client) {
    let server = server(streams);
    let mut client = Client::new(&server);
    client.settle().await;
    (server, client)
}

#[tokio::test(start_paused = true)]
async fn a_list_that_ends_early_takes_away_nothing() {
    for streams in [true, false] {
        for fault in
            [Fault::Cut(1), Fault::Ends(1), Fault::Garbage(1), Fault::Error(1, 500), Fault::Error(1, 410)]
        {
            let (server, mut client) = settled(streams).await;
            // a list is needed, and does not come to its end
            server.compact();
            changes(&server, 1);
            server.compact();
            server.restart();
            server.faults([Fault::Nothing; 3]);
            server.faults([fault; 12]);
            client.settle().await;
            changes(&server, 2);
            client.settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_list_that_ends_early_is_not_complete() {
    for streams in [true, false] {
        for fault in [Fault::Cut(1), Fault::Ends(1), Fault::Garbage(1), Fault::Refused, Fault::Status(503)] {
            let server = server(streams);
            server.faults([fault; 9]);
            let mut client = Client::new(&server);
            client.settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_old_a_version_leads_to_a_list() {
    for streams in [true, false] {
        // as an event of a watch, and as the status of a request
        for fault in [Fault::Error(0, 410), Fault::Status(410)] {
            let (server, mut client) = settled(streams).await;
            server.restart();
            changes(&server, 1);
            server.faults([Fault::Nothing; 3]);
            server.faults([fault; 3]);
            client.settle().await;
            assert_eq!(
                client.problems.iter().filter(|p| p.contains("a fault")).count(),
                0,
                "nothing is wrong"
            );
        }
        // and where it really is
        let (server, mut client) = settled(streams).await;
        server.restart();
        changes(&server, 1);
        server.compact();
        client.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_server_loses_nothing() {
    for streams in [true, false] {
        let (server, mut client) = settled(streams).await;
        for label in 1..6 {
            server.faults([Fault::Refused; 20]);
            server.restart();
            changes(&server, label);
            client.settle().await;
        }
        // one sentence for each kind and restart at most, and the watch went on where it was
        assert!((1..=15).contains(&client.problems.len()), "{:?}", client.problems);
        let lists = server
            .requests()
            .iter()
            .filter(|r| r.contains("sendInitialEvents") || r.contains("limit=500"))
            .count();
        assert!(lists <= if streams { 3 } else { 3 + 6 }, "{:#?}", server.requests());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_stream_lists_is_asked_for_pages() {
    let (server, mut client) = settled(false).await;
    changes(&server, 1);
    client.settle().await;
    assert_eq!(client.problems, Vec::<String>::new());
    assert_eq!(
        server.requests().iter().filter(|r| r.contains("sendInitialEvents")).count(),
        3,
        "once for each kind"
    );
    assert!(server.requests().iter().any(|r| r.contains("continue=")));
}

#[tokio::test(start_paused = true)]
async fn a_list_never_shows_what_was_before() {
    // whatever is asked for with version 0 may come from a cache that is behind
    for streams in [true, false] {
        let (server, mut client) = settled(streams).await;
        changes(&server, 1);
        client.settle().await;
        server.lag(12);
        server.restart();
        server.faults([Fault::Nothing; 3]);
        server.faults([Fault::Status(410); 3]);
        client.go_on(MINUTE).await;
        client.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_went_back_is_followed_back() {
    for streams in [true, false] {
        let (server, mut client) = settled(streams).await;
        changes(&server, 1);
        client.settle().await;
        server.restore(5);
        client.settle().await;
        changes(&server, 2);
        client.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_next_page_has_expired_is_read_as_a_whole() {
    let server = server(false);
    // the refusals to stream, the first pages, and then what they were pages of is gone
    server.faults([Fault::Status(422), Fault::Status(422), Fault::Status(422)]);
    server.faults([Fault::Nothing; 3]);
    server.faults([Fault::Status(410); 3]);
    let mut client = Client::new(&server);
    client.settle().await;
    assert_eq!(client.problems, Vec::<String>::new());
    let requests = server.requests();
    let whole = |r: &&String| !r.contains("watch=") && !r.contains("limit=");
    assert_eq!(requests.iter().filter(whole).count(), 3, "{requests:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_is_where_the_watch_goes_on() {
    let (server, mut client) = settled(true).await;
    // only pods change, and what was before is forgotten: without bookmarks the other watches would be too old
    for label in 1..20 {
        server.put(Kind::Pod, "a", label);
    }
    client.go_on(MINUTE).await;
    server.compact();
    server.restart();
    client.settle().await;
    client.go_on(MINUTE).await;
    let lists = server.requests().iter().filter(|r| r.contains("sendInitialEvents")).count();
    assert_eq!(lists, 3, "{:#?}", server.requests());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_unnoticed_is_given_up() {
    for streams in [true, false] {
        let (server, mut client) = settled(streams).await;
        server.faults([Fault::Nothing; 3]);
        server.faults([Fault::Silent(0); 3]);
        server.restart();
        client.go_on(MINUTE).await;
        changes(&server, 1);
        client.settle().await;
    }
}

// --- at random ------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Put(usize, u8),
    Delete(usize, u8),
    Compact,
    Restart,
    Restore(u64),
    Lag(usize),
    Faults(Vec<Fault>),
    Wait(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Nothing),
        Just(Fault::Refused),
        prop::sample::select(vec![410, 429, 500, 503, 504]).prop_map(Fault::Status),
        (0usize..5).prop_map(Fault::Cut),
        (0usize..5).prop_map(Fault::Ends),
        (0usize..5, prop::sample::select(vec![410, 500])).prop_map(|(after, code)| Fault::Error(after, code)),
        (0usize..5).prop_map(Fault::Garbage),
        (0usize..5).prop_map(Fault::Silent),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0usize..3, 0u8..6).prop_map(|(kind, name)| Act::Put(kind, name)),
        3 => (0usize..3, 0u8..6).prop_map(|(kind, name)| Act::Delete(kind, name)),
        1 => Just(Act::Compact),
        2 => Just(Act::Restart),
        1 => (1u64..12).prop_map(Act::Restore),
        1 => (0usize..6).prop_map(Act::Lag),
        4 => prop::collection::vec(fault(), 1..8).prop_map(Act::Faults),
        4 => (0u64..200).prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens(streams: bool, acts in prop::collection::vec(act(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let server = server(streams);
            let mut client = Client::new(&server);
            for (label, act) in (1..).zip(acts) {
                match act {
                    Act::Put(kind, name) => server.put(Kind::ALL[kind], &format!("new-{name}"), label),
                    Act::Delete(kind, name) => server.delete(Kind::ALL[kind], &format!("new-{name}")),
                    Act::Compact => server.compact(),
                    Act::Restart => server.restart(),
                    Act::Restore(versions) => {
                        server.restore(versions);
                        // written to only when whoever watched has noticed (see follow.rs, limits)
                        server.mend();
                        client.go_on(5 * MINUTE).await;
                    }
                    Act::Lag(versions) => server.lag(versions),
                    Act::Faults(faults) => server.faults(faults),
                    Act::Wait(seconds) => client.go_on(Duration::from_secs(seconds)).await,
                }
            }
            server.mend();
            client.settle().await;
            client.go_on(5 * MINUTE).await;
            client.settle().await;
        });
    }
}
