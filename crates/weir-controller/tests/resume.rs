//! Whatever an agent has missed, and whichever controller it comes to: it has its node's slice in the end, and
//! only what differs was sent.

mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod compiler;

use std::sync::Arc;
use std::time::Instant;

use common::Agent;
use compiler::{NODES, batches};
use proptest::prelude::*;
use weir_controller::hub::{Hub, Joined};
use weir_controller::outbox::{Outbox, Outgoing};
use weir_proto::{DigestKey, Items};

/// A conversation of the agent of a node with one of the hubs.
struct Conversation {
    hub: usize,
    number: usize,
    stream: Outgoing,
    /// What the agent held when it began.
    at: Items,
}

/// What may happen between batches.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The agent reads what is there.
    Read(usize),
    /// The connection breaks, and the agent goes to a hub.
    Join(usize, usize),
    /// It comes back with nothing.
    Lose(usize, usize),
    /// The connection breaks in the middle of the beginning: it was asked, and never answers.
    Half(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES.len();
    prop_oneof![
        4 => node.clone().prop_map(Step::Read),
        2 => (node.clone(), 0..2usize).prop_map(|(n, h)| Step::Join(n, h)),
        1 => (node.clone(), 0..2usize).prop_map(|(n, h)| Step::Lose(n, h)),
        1 => (node, 0..2usize).prop_map(|(n, h)| Step::Half(n, h)),
    ]
}

fn key(hub: usize) -> DigestKey {
    DigestKey::new([u8::try_from(hub).expect("small") + 1; 32])
}

fn join(hubs: &mut [Hub; 2], hub: usize, node: usize, agent: &Agent) -> (Conversation, Joined) {
    let (key, outbox) = (key(hub), Arc::new(Outbox::default()));
    let (number, joined) = hubs[hub].join(NODES[node], agent.have(&key), outbox.clone());
    (Conversation { hub, number, stream: Outgoing(outbox), at: agent.items(&key) }, joined)
}

/// Reads all, and answers if it is asked.
fn read(hubs: &mut [Hub; 2], conversation: &mut Conversation, agent: &mut Agent) -> common::Came {
    let key = key(conversation.hub);
    let mut came = agent.read(&mut conversation.stream, &conversation.at, &key);
    if let Some(asked) = came.asked.take() {
        let held = agent.holdings(&key, &agent.have(&key), &asked);
        hubs[conversation.hub].holdings(conversation.number, &held);
        let more = agent.read(&mut conversation.stream, &conversation.at, &key);
        came.changes += more.changes;
        came.bytes += more.bytes;
        came.versions.extend(more.versions);
    }
    came
}

proptest! {
    #![proptest_config(compiler::cases(150))]

    #[test]
    fn an_agent_has_its_slice_in_the_end(
        batches in batches(10),
        steps in proptest::collection::vec(proptest::collection::vec(step(), 0..5), 10),
    ) {
        let mut hubs = [Hub::new(key(0)), Hub::new(key(1))];
        let mut agents: Vec<Agent> = vec![Agent::default(); NODES.len()];
        let mut conversations: Vec<Option<Conversation>> = NODES.iter().map(|_| None).collect();
        for (batch, steps) in batches.into_iter().zip(steps) {
            // the second hub hears of them one by one
            hubs[0].apply(batch.clone(), Instant::now());
            batch.into_iter().for_each(|event| drop(hubs[1].apply(vec![event], Instant::now())));
            for step in steps {
                let (Step::Read(node) | Step::Join(node, _) | Step::Lose(node, _) | Step::Half(node, _)) = step;
                match step {
                    Step::Read(_) => {
                        let Some(conversation) = &mut conversations[node] else { continue };
                        read(&mut hubs, conversation, &mut agents[node]);
                        let hub = &hubs[conversation.hub];
                        prop_assert_eq!(agents[node].slice(), hub.compiler().slice(NODES[node]));
                    }
                    Step::Join(_, hub) | Step::Lose(_, hub) | Step::Half(_, hub) => {
                        if let Some(old) = conversations[node].take() {
                            hubs[old.hub].leave(old.number);
                        }
                        if matches!(step, Step::Lose(..)) {
                            agents[node] = Agent::default();
                        }
                        let (conversation, _) = join(&mut hubs, hub, node, &agents[node]);
                        if matches!(step, Step::Half(..)) {
                            hubs[hub].leave(conversation.number);
                        } else {
                            conversations[node] = Some(conversation);
                        }
                    }
                }
            }
        }
        for (node, agent) in agents.iter_mut().enumerate() {
            if let Some(mut old) = conversations[node].take() {
                read(&mut hubs, &mut old, agent);
                hubs[old.hub].leave(old.number);
            }
            // one that has all is sent nothing, by either hub
            for hub in 0..2 {
                let (mut conversation, _) = join(&mut hubs, hub, node, agent);
                read(&mut hubs, &mut conversation, agent);
                hubs[hub].leave(conversation.number);
                prop_assert_eq!(agent.slice(), hubs[hub].compiler().slice(NODES[node]));
                let (mut conversation, joined) = join(&mut hubs, hub, node, agent);
                let came = read(&mut hubs, &mut conversation, agent);
                hubs[hub].leave(conversation.number);
                prop_assert!(joined != Joined::Asked(0, 0));
                prop_assert_eq!((came.changes, came.versions.len()), (0, 1), "{:?}", joined);
            }
        }
    }
}

/// So many members that each part of a set has several: one that went meanwhile goes, and what is beside it is all
/// that is sent again.
#[test]
fn of_a_large_set_the_parts_that_differ_are_sent() {
    use weir_compiler::object::{
        Event, IngressRule, LabelSelector, Namespace, ObjectKey, Peer, Policy, PolicySpec,
    };
    let pod = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let key = ObjectKey::new("a", format!("p{number}"));
        let mut pod = compiler::plain_pod(key, &format!("10.0.{high}.{low}"));
        pod.node = Some(NODES[0].to_owned());
        Event::Pod(pod)
    };
    let from = vec![Peer { pod_selector: Some(LabelSelector::default()), ..Peer::default() }];
    let ingress = vec![IngressRule { from, ..IngressRule::default() }];
    let spec = PolicySpec { ingress, ..PolicySpec::default() };
    let mut events = vec![
        Event::Namespace(Namespace { name: "a".into(), ..Namespace::default() }),
        Event::Policy(Policy { namespace: "a".into(), name: "p".into(), created: 0, audit: None, spec }),
    ];
    events.extend((0..2000).map(pod));
    let mut hubs = [Hub::new(key(0)), Hub::new(key(1))];
    hubs.iter_mut().for_each(|hub| drop(hub.apply(events.clone(), Instant::now())));
    let mut agent = Agent::default();
    let (mut conversation, joined) = join(&mut hubs, 0, 0, &agent);
    assert_eq!(joined, Joined::Empty);
    let all = read(&mut hubs, &mut conversation, &mut agent);
    hubs[0].leave(conversation.number);
    hubs[1].apply(vec![Event::PodGone(ObjectKey::new("a", "p7"))], Instant::now());
    let (mut conversation, _) = join(&mut hubs, 1, 0, &agent);
    let some = read(&mut hubs, &mut conversation, &mut agent);
    assert_eq!(agent.slice(), hubs[1].compiler().slice(NODES[0]));
    assert!(some.bytes * 50 < all.bytes, "{} bytes after {}", some.bytes, all.bytes);
}
