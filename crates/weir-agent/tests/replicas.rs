//! Two controllers, killed one at a time while policies change and packets flow: no packet is judged by anything but
//! old or new policies, and whoever is left sends the agent what it missed and no more.

#[path = "common/node.rs"]
mod node;
#[path = "../../../e2e/lab/tests/common/traffic.rs"]
mod traffic;

use std::time::Duration;

use node::{Controller, Node, read};
use traffic::{LOST_AFTER, Traffic};
use weir_compiler::object::{Event, ObjectKey};
use weir_lab::network::PodLinks;

const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: default, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: default, labels: {app: other}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: default, labels: {app: db}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.4}}
---
";
/// Policies that stay: the slice is large, and to send all of it would be seen.
const STAY: u64 = 200;

/// Lets these peers in to `db` at these ports.
fn policy(name: &str, from: &str, ports: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: default}}, spec: \
         {{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{from}], ports: [{ports}]}}]}}}}\n---\n"
    )
}

fn base() -> Vec<Event> {
    let web = policy("web", "{podSelector: {matchLabels: {app: web}}}", "{port: 80, protocol: UDP}");
    let stay = (0..STAY).map(|i| {
        let from = format!("{{ipBlock: {{cidr: 198.51.{i}.0/24}}}}");
        policy(&format!("stay{i}"), &from, &format!("{{port: {}, protocol: UDP}}", 2000 + i))
    });
    read(&(PODS.to_owned() + &web + &stay.collect::<String>())).1
}

/// What an edit leads to, whichever came before it.
fn edit(number: u64) -> Vec<Event> {
    let names = |edit: u64| (0..edit * 7 % 11).map(|i| format!("p{i}"));
    let mut yaml = String::new();
    for (i, name) in names(number).enumerate() {
        let i = i as u64;
        let from = match i % 3 {
            0 => format!("{{ipBlock: {{cidr: 203.0.{}.0/24}}}}", (number + i) % 256),
            1 => format!("{{podSelector: {{matchLabels: {{app: none{}}}}}}}", (number + i) % 50),
            // may use other ports than the watched one
            _ => "{podSelector: {}}".to_owned(),
        };
        let port = if i % 3 == 2 { 1000 + i } else { 80 };
        yaml += &policy(&name, &from, &format!("{{port: {port}, protocol: UDP}}"));
    }
    let mut events = if yaml.is_empty() { Vec::new() } else { read(&yaml).1 };
    let there: Vec<String> = names(number).collect();
    let gone = (0..11).map(|i| format!("p{i}")).filter(|name| !there.contains(name));
    events.extend(gone.map(|name| Event::PolicyGone(ObjectKey::new("default", name))));
    events
}

#[test]
#[ignore = "needs root"]
fn controllers_are_killed_one_at_a_time_and_nothing_is_lost_or_sent_again() {
    let kills: u64 = std::env::var("KILLS").map_or(12, |text| text.parse().expect("a number"));
    let mut node = Node::new(PODS, PodLinks::Calico);
    let mut now = 0;
    let start = |node: &Node, address: &str, key: u64, edits: u64| -> Controller {
        let mut events = base();
        events.extend(edit(edits));
        node.controller(address, u8::try_from(key % 250).expect("small") + 1, events)
    };
    let mut controllers = [start(&node, "127.0.0.1:0", 0, now), start(&node, "127.0.0.1:0", 1, now)];
    let at = controllers.each_ref().map(|controller| controller.address);
    node.start(&at, &[]);
    node.ready();
    let (all, things) = (node.metric("received_bytes_total"), node.metric("resume_items_sum"));
    assert!(things > 600.0, "policies, rules and sets of all: {things}");
    let traffic = Traffic::start(&node.lab);

    for killed in 0..kills {
        let which = usize::from(killed % 2 == 1);
        for _ in 0..3 {
            now += 1;
            controllers.iter().for_each(|controller| controller.apply(edit(now)));
            std::thread::sleep(Duration::from_millis(37 * (killed % 4)));
        }
        let connects = node.metric("connects_total");
        let address = at[which].to_string();
        // in its place comes another one, which knows more than the agent does
        let followed = std::mem::replace(&mut controllers[which], start(&node, "127.0.0.1:0", 0, now));
        drop(followed);
        now += 1;
        controllers[which] = start(&node, &address, killed + 2, now);
        controllers[1 - which].apply(edit(now));
        node.soon("a controller is followed, and all is acknowledged", |node| {
            node.metric("connected") == 1.0
                && node.metric("slice_policies") == (STAY + 1 + now * 7 % 11) as f64
        });
        println!(
            "killed {which}: {} controllers were followed, {connects} before",
            node.metric("connects_total")
        );
        assert_eq!(traffic.wrong(), (0, 0), "after {} kills and {now} edits", killed + 1);
    }
    // most of what was followed was killed at some time
    let connects = node.metric("connects_total");
    assert!(connects > kills as f64 / 4.0, "{connects} controllers were followed");
    let (resumed, bytes) =
        (node.metric("resume_items_sum") - things, node.metric("received_bytes_total") - all);
    println!(
        "{kills} kills, {now} edits, {} packets: {resumed} items were sent again, {bytes} bytes came",
        traffic.sent()
    );
    assert!(
        resumed < (connects - 1.0) * things / 4.0,
        "{resumed} items in {connects} conversations of {things}"
    );

    // both, when nothing changes: not a byte
    for _ in 0..2 {
        for which in 0..2 {
            let before = (node.metric("received_bytes_total"), node.metric("connects_total"));
            let address = at[which].to_string();
            let fresh = start(&node, "127.0.0.1:0", 99, now);
            drop(std::mem::replace(&mut controllers[which], fresh));
            node.soon("a controller is followed", |node| node.metric("connected") == 1.0);
            controllers[which] = start(&node, &address, 100, now);
            std::thread::sleep(Duration::from_millis(300));
            node.soon("a controller is followed", |node| node.metric("connected") == 1.0);
            let after = (node.metric("received_bytes_total"), node.metric("connects_total"));
            println!("quiet: {before:?} {after:?}");
            assert_eq!(before.0, after.0, "nothing has changed, and {} bytes came", after.0 - before.0);
        }
    }
    std::thread::sleep(LOST_AFTER + Duration::from_millis(500));
    assert_eq!(traffic.wrong(), (0, 0));

    // the instrument itself: without rules it sees what passes
    node.kill();
    node.nft("delete table inet weir");
    node.soon("a moment without rules is seen", |_| traffic.wrong().1 > 0);
    traffic.stop();
}
