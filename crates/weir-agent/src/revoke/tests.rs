//! What is judged, when, and for how long, without a kernel.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use weir_compiler::object::{
    Event, IngressRule, LabelSelector, ObjectKey, Peer, Pod, Policy, PolicyPort, PolicySpec, PortRef,
};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};
use weir_nft::conntrack::{Entry, Layer4, Tuple};

use super::departed::{Departed, HOLD};
use super::judge::{Judge, Known};
use super::need::Need;

const SERVER: &str = "10.0.0.1";
const FRIEND: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
const NODE: &str = "192.0.2.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        key: ObjectKey::new("x", name),
        uid: "1".into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        node: Some("n".into()),
        ips: vec![ip(address)],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: Vec::new(),
    }
}

/// What the server may get, from friends on 80/TCP; `egress`: nothing may leave it.
fn policy(egress: bool) -> Policy {
    let select = |app: &str| LabelSelector {
        match_labels: [("app".to_owned(), app.to_owned())].into(),
        ..LabelSelector::default()
    };
    let from = Peer { pod_selector: Some(select("friend")), ..Peer::default() };
    let port = PolicyPort { port: Some(PortRef::Number(80)), ..PolicyPort::default() };
    let rule = IngressRule { from: vec![from], ports: vec![port], ..IngressRule::default() };
    let types = if egress { vec!["Ingress".to_owned(), "Egress".to_owned()] } else { Vec::new() };
    let spec = PolicySpec {
        pod_selector: select("server"),
        policy_types: types,
        ingress: vec![rule],
        ..PolicySpec::default()
    };
    Policy { namespace: "x".into(), name: "p".into(), created: 0, audit: None, spec }
}

struct World {
    compiler: Compiler,
    slice: NodeSlice,
    need: Need,
}

impl World {
    fn new(policy: Option<Policy>) -> World {
        let mut world = World {
            compiler: Compiler::new(Scope::Node("n".into())),
            slice: NodeSlice::default(),
            need: Need::everything("n"),
        };
        let pods = [pod("server", SERVER), pod("friend", FRIEND), pod("other", OTHER)];
        world.apply(pods.map(Event::Pod).into_iter().chain(policy.map(Event::Policy)), true);
        assert_eq!(world.need.take(), Some(true), "the start");
        world
    }

    /// The addresses that pods let go of.
    fn apply(&mut self, events: impl IntoIterator<Item = Event>, marked: bool) -> Vec<IpAddr> {
        let events: Vec<Event> = events.into_iter().collect();
        let mut left = Vec::new();
        for event in &events {
            left.extend(self.need.replaced(&self.slice, event));
        }
        for delta in self.compiler.apply(events).slices {
            for change in &delta.changes {
                left.extend(self.need.change(&self.slice, change, marked));
                self.slice.apply(std::slice::from_ref(change));
            }
        }
        left
    }

    fn allows(&self, entry: &Entry, pod_to_own_node: bool) -> bool {
        let mut known = Known::default();
        let is_local = |address| address == ip(NODE);
        let mut judge = Judge::new(&self.slice, &is_local, pod_to_own_node, &mut known);
        let answer = judge.allows(entry);
        assert_eq!(judge.allows(entry), answer, "what is known");
        answer
    }
}

fn tuple(source: &str, destination: &str, protocol: u8, ports: (u16, u16)) -> Tuple {
    let layer4 = match protocol {
        1 => Layer4::Icmp { id: 1, kind: 8, code: 0 },
        6 | 17 | 132 => Layer4::Ports { source: ports.0, destination: ports.1 },
        _ => Layer4::Other,
    };
    Tuple { source: ip(source), destination: ip(destination), protocol, layer4 }
}

fn entry(source: &str, destination: &str, protocol: u8, port: u16) -> Entry {
    let tuple = tuple(source, destination, protocol, (4000, port));
    Entry::new(tuple, tuple.reversed())
}

#[test]
fn u9_an_entry_is_judged_as_a_new_connection() {
    let world = World::new(Some(policy(true)));
    for (source, destination, protocol, port, allowed) in [
        (FRIEND, SERVER, 6, 80, true),
        (FRIEND, SERVER, 6, 81, false),
        (FRIEND, SERVER, 17, 80, false),
        (FRIEND, SERVER, 1, 0, false), // U1
        (FRIEND, SERVER, 47, 0, false),
        (OTHER, SERVER, 6, 80, false),
        ("198.51.100.1", SERVER, 6, 80, false),
        (SERVER, FRIEND, 6, 80, false), // egress
        (SERVER, NODE, 6, 80, false),   // U6
        (NODE, SERVER, 6, 81, true),    // N71
        (NODE, SERVER, 1, 0, true),
        (SERVER, SERVER, 6, 81, true), // U3
        (FRIEND, OTHER, 6, 1, true),
        ("198.51.100.1", "198.51.100.2", 6, 1, true),
    ] {
        let entry = entry(source, destination, protocol, port);
        assert_eq!(world.allows(&entry, false), allowed, "{source} {destination} {protocol} {port}");
    }
    assert!(world.allows(&entry(SERVER, NODE, 6, 80), true), "pods reach their own node if they are to");
    assert!(!world.allows(&entry(SERVER, FRIEND, 6, 80), true));
}

/// N47, N52: the address and the port behind a Service, and the client before masquerade.
#[test]
fn u9_translated_addresses_are_those_that_forward_sees() {
    let world = World::new(Some(policy(false)));
    let through = |client: &str, service: (&str, u16), port: u16| {
        Entry::new(
            tuple(client, service.0, 6, (4000, service.1)),
            tuple(SERVER, NODE, 6, (port, 50_000)), // masqueraded
        )
    };
    assert!(world.allows(&through(FRIEND, ("10.96.0.1", 443), 80), false));
    assert!(!world.allows(&through(FRIEND, ("10.96.0.1", 80), 443), false));
    assert!(!world.allows(&through(OTHER, ("10.96.0.1", 443), 80), false));
    assert!(world.allows(&through(NODE, ("10.96.0.1", 443), 81), false), "the node, by way of a Service");
}

#[test]
fn n93_an_announced_connection_is_judged_as_the_one_that_announced_it() {
    let world = World::new(Some(policy(false)));
    let master = |client: &str| tuple(client, SERVER, 6, (4000, 80));
    let child = |client: &str| Entry { master: Some(master(client)), ..entry(client, SERVER, 6, 50_001) };
    assert!(world.allows(&child(FRIEND), false));
    assert!(!world.allows(&child(OTHER), false));
}

#[test]
fn u9_what_can_neither_forbid_nor_allow_again_asks_for_no_look() {
    let mut world = World::new(Some(policy(false)));
    let elsewhere = |app: &str, address: &str| {
        let labels = [("app".to_owned(), app.to_owned())].into();
        Event::Pod(Pod { node: Some("m".into()), labels, ..pod("elsewhere", address) })
    };
    let remote = "10.0.1.1";
    assert!(world.apply([elsewhere("friend", remote)], false).is_empty());
    assert_eq!(world.need.take(), None, "a peer more");
    world.apply([elsewhere("other", remote)], false);
    assert_eq!(world.need.take(), Some(false), "a peer less");
    world.apply([elsewhere("friend", remote)], true);
    assert_eq!(world.need.take(), Some(false), "a peer more, and something is marked");
    world.apply([Event::Policy(Policy { name: "q".into(), ..policy(false) })], false);
    assert_eq!(world.need.take(), None, "a policy more, which says what another one says");
    world.apply([Event::Policy(Policy { name: "q".into(), ..policy(true) })], false);
    assert_eq!(world.need.take(), Some(false), "a policy that isolates in another direction");
    world.apply([Event::Pod(pod("friend", FRIEND))], false);
    assert_eq!(world.need.take(), None, "nothing new");
}

#[test]
fn t10_pods_let_go_of_addresses() {
    let mut world = World::new(None);
    let friend = || pod("friend", FRIEND);
    // gone, and back
    assert_eq!(world.apply([Event::PodGone(friend().key)], false), [ip(FRIEND)]);
    assert_eq!(world.need.take(), Some(true));
    assert!(world.apply([Event::Pod(friend())], false).is_empty());
    // finished
    assert_eq!(world.apply([Event::Pod(Pod { finished: true, ..friend() })], false), [ip(FRIEND)]);
    world.apply([Event::Pod(friend())], false);
    // another address
    let moved = Pod { ips: vec![ip("10.0.0.9")], ..friend() };
    assert_eq!(world.apply([Event::Pod(moved)], false), [ip(FRIEND)]);
    world.apply([Event::Pod(friend())], false);
    // another pod of the same name, at once
    let other = || Pod { uid: "2".into(), ..friend() };
    assert_eq!(world.apply([Event::Pod(other())], false), [ip(FRIEND)]);
    assert!(world.apply([Event::Pod(other())], false).is_empty());
    world.need.take();
    // another owner, at once
    let heir = Pod { created: 1, ..pod("heir", FRIEND) };
    assert_eq!(world.apply([Event::Pod(heir)], false), [ip(FRIEND)]);
    assert_eq!(world.need.take(), Some(true));
}

#[test]
fn t10_former_connections_are_held_until_long_after_the_address_has_an_owner() {
    let (now, friend) = (Instant::now(), ip(FRIEND));
    let mut departed = Departed::default();
    let former = entry(FRIEND, SERVER, 6, 80);
    let look = |departed: &mut Departed, entries: &[&Entry]| {
        departed.begin();
        let held = entries.iter().map(|entry| departed.holds(entry)).collect::<Vec<_>>();
        departed.end();
        held
    };
    assert_eq!(look(&mut departed, &[&former]), [false]);
    departed.leave(vec![friend]);
    let another = entry(SERVER, OTHER, 6, 80);
    assert_eq!(look(&mut departed, &[&former, &another]), [true, false]);
    assert!(departed.addresses().contains(&friend));
    // nobody has it: for as long as that is so
    assert_eq!(departed.next(), None);
    departed.owned(|address| address == friend, now);
    assert_eq!(departed.next(), Some(now + HOLD));
    // the next owner's own, also of the same tuple
    let own = Entry { id: 2, ..former.clone() };
    assert_eq!(look(&mut departed, &[&former, &own]), [true, false]);
    assert!(!departed.release(now + HOLD - Duration::from_secs(1)));
    assert!(departed.release(now + HOLD));
    assert_eq!(look(&mut departed, &[&former]), [false]);
    assert_eq!(departed.next(), None);
    // an entry that a look does not meet is forgotten
    departed.leave(vec![friend]);
    assert_eq!(look(&mut departed, &[&former]), [true]);
    assert_eq!(look(&mut departed, &[]), [false; 0]);
    assert!(departed.addresses().is_empty());
}
