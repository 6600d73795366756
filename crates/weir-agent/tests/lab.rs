//! The agent's program with controllers, and without any: what packets meet.

#[path = "common/node.rs"]
mod node;

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use node::{Node, read};
use weir_agent::state::file::{Header, decode, encode, seal};
use weir_compiler::slice::NodeSlice;
use weir_lab::network::PodLinks;

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: friend, namespace: a, labels: {app: friend}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: a}, spec: {nodeName: n1}, status: {podIP: 10.244.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: a, labels: {app: friend}}, spec: {nodeName: n2}, status: {podIP: 10.244.2.5}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: a},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}
";
const OPEN: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: a},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}}
";
fn passes(from: &UdpSocket, to: &UdpSocket) -> bool {
    let _ = from.send_to(b"hello", to.local_addr().unwrap());
    to.recv_from(&mut [0; 16]).is_ok()
}

struct Pods {
    web: UdpSocket,
    friend: UdpSocket,
    stranger: UdpSocket,
    far: UdpSocket,
}

impl Pods {
    fn of(node: &Node) -> Pods {
        Pods {
            web: node.bind("web", "10.244.1.2"),
            friend: node.bind("friend", "10.244.1.3"),
            stranger: node.bind("stranger", "10.244.1.4"),
            far: node.bind("far", "10.244.2.5"),
        }
    }

    /// As the policy has it.
    fn judged(&self) -> bool {
        !passes(&self.stranger, &self.web) && passes(&self.friend, &self.web) && passes(&self.far, &self.web)
    }

    fn isolated(&self) -> bool {
        let pairs = [(&self.friend, &self.web), (&self.stranger, &self.friend), (&self.stranger, &self.far)];
        pairs.into_iter().all(|(a, b)| !passes(a, b) && !passes(b, a))
    }
}

#[test]
#[ignore = "needs root"]
fn without_controllers_and_without_agent_policies_stay_in_force() {
    let mut node = Node::new(CLUSTER, PodLinks::Calico);
    let pods = Pods::of(&node);
    node.soon("the instrument itself", |_| passes(&pods.stranger, &pods.web));
    let events = read(CLUSTER).1;
    let one = node.controller("127.0.0.1:0", 1, Vec::new());
    let two = node.controller("127.0.0.1:0", 2, Vec::new());
    let at = [one.address, two.address];
    drop((one, two));

    node.start(&at, &[]);
    node.soon("not ready, and why", |node| {
        let (status, reasons) = node.get("/readyz");
        status == 503 && reasons.starts_with("slice: ") && reasons.contains("cannot connect")
    });
    assert_eq!(node.get("/healthz").0, 200);
    let one = node.controller(&at[0].to_string(), 1, events.clone());
    let two = node.controller(&at[1].to_string(), 2, events.clone());
    node.ready();
    node.soon("judged", |_| pods.judged());
    assert_eq!((node.metric("connected"), node.metric("slice_pods")), (1.0, 3.0));

    // one after the other
    drop(one);
    assert!(pods.judged());
    node.soon("the other is followed", |node| node.metric("connected") == 1.0);
    drop(two);
    node.soon("nobody is followed", |node| node.metric("connected") == 0.0);
    assert!(pods.judged());
    assert_eq!(node.get("/readyz").0, 200, "the kernel holds what there is");
    node.soon("on disk", |node| node.metric("disk_writes_total") >= 1.0);

    // a crash, and a start without anybody
    node.kill();
    assert!(pods.judged());
    node.start(&at, &[]);
    node.soon("there", |node| node.get("/healthz").0 == 200);
    assert!(pods.judged());
    node.ready();
    assert!(pods.judged());
    node.nft("delete table inet weir");
    node.soon("repaired from what was on disk", |_| pods.judged());
    node.soon("who it was", |node| {
        std::fs::read_to_string(node.log()).is_ok_and(|log| log.contains("nft has changed Weir's tables"))
    });

    // what changed meanwhile
    let third = node.controller(&at[1].to_string(), 3, events.clone());
    third.apply(read(OPEN).1);
    node.soon("opened", |_| passes(&pods.stranger, &pods.web));

    // a file that is damaged is no reason to open anything, nor to believe it
    third.apply(events);
    node.soon("judged again", |_| pods.judged());
    drop(third);
    node.kill();
    std::fs::write(node.state().join("slice"), "noise").unwrap();
    node.start(&at, &[]);
    node.soon("not ready", |node| node.get("/readyz").1.starts_with("slice: "));
    // (health is served before the file is read)
    node.soon("set aside", |node| node.state().join("slice.damaged").exists());
    assert!(pods.judged());
}

#[test]
#[ignore = "needs root"]
fn a_controller_that_is_gone_without_a_word_is_left() {
    let mut node = Node::new(CLUSTER, PodLinks::Routed);
    let events = read(CLUSTER).1;
    let one = node.controller("127.0.0.1:0", 1, events.clone());
    let two = node.controller("127.0.0.1:0", 2, events);
    node.start(&[one.address, two.address], &[]);
    node.ready();
    // of the one that is followed nothing arrives any more, not even that it is gone
    node.nft("add table inet silence");
    node.nft("add chain inet silence input { type filter hook input priority 0; }");
    let silence = |address: std::net::SocketAddr| {
        let port = address.port();
        node.nft(&format!("add rule inet silence input tcp sport {port} drop"));
        node.nft(&format!("add rule inet silence input tcp dport {port} drop"));
    };
    silence(one.address);
    one.apply(read(OPEN).1);
    two.apply(read(OPEN).1);
    let pods = Pods::of(&node);
    node.soon("the other one is followed", |_| passes(&pods.stranger, &pods.web));
    node.nft("flush chain inet silence input");
    silence(two.address);
    one.apply(read(CLUSTER).1);
    node.soon("the first one is followed again", |_| !passes(&pods.stranger, &pods.web));
}

/// The file of another run of the kernel.
fn rebooted(state: &Path) {
    let path = state.join("slice");
    let stored = decode(&std::fs::read(&path).unwrap(), "n1").unwrap();
    let mut slice = NodeSlice::default();
    slice.apply(&stored.changes);
    let mut bytes = encode(&Header { boot: "another".into(), ..stored.header }, &slice, stored.mode);
    seal(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
#[ignore = "needs root"]
fn after_a_reboot_pods_are_isolated_until_a_controller_answers_or_the_time_is_over() {
    for links in [PodLinks::Calico, PodLinks::Flannel] {
        let mut node = Node::new(CLUSTER, links);
        let pods = Pods::of(&node);
        let events = read(CLUSTER).1;
        let controller = node.controller("127.0.0.1:0", 1, events.clone());
        let at = [controller.address];
        node.start(&at, &[]);
        node.ready();
        node.soon("judged", |_| pods.judged());
        node.soon("on disk", |node| node.metric("disk_writes_total") >= 1.0);
        drop(controller);

        let reboot = |node: &mut Node, seconds: &str| {
            node.kill();
            rebooted(&node.state());
            node.nft("flush ruleset");
            node.start(&at, &["--isolate-after-reboot", seconds]);
            node.soon("started", |node| node.get("/healthz").0 == 200);
        };
        reboot(&mut node, "600");
        node.soon("isolated", |_| pods.isolated());
        let reasons = node.get("/readyz").1;
        assert!(reasons.contains("isolation: "), "{reasons}");
        assert_eq!(node.metric("isolating"), 1.0);
        // the kubelet asks pods whether they live
        let own = match node.lab.netns("n1").unwrap().run(|| Ok(UdpSocket::bind("0.0.0.0:0").unwrap())) {
            Ok(socket) => socket,
            Err(error) => panic!("{error:#}"),
        };
        own.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        own.send_to(b"alive?", pods.friend.local_addr().unwrap()).unwrap();
        let (_, from) = pods.friend.recv_from(&mut [0; 16]).expect("its own node reaches it");
        pods.friend.send_to(b"yes", from).unwrap();
        own.recv_from(&mut [0; 16]).expect("and has an answer");

        // somebody who knows
        let controller = node.controller(&at[0].to_string(), 2, events.clone());
        node.ready();
        node.soon("judged", |_| pods.judged());
        assert_eq!(node.metric("isolating"), 0.0);
        drop(controller);

        // nobody, and the time is over
        node.soon("on disk", |node| node.metric("disk_writes_total") >= 1.0);
        reboot(&mut node, "2");
        node.ready();
        node.soon("judged by what was on disk", |_| pods.judged());

        // nobody, and no isolation is wanted
        reboot(&mut node, "0");
        node.ready();
        assert!(pods.judged());
    }
}
