//! Denied connections on the agent's standard output: who, whom, which port, and which policies.

#[path = "common/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use node::{Node, read};
use serde_json::Value;
use weir_lab::network::PodLinks;
use weir_nft::Nft;

/// `web` takes from `friend` alone, `shy` may reach nobody; `many` takes ports by classes.
const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: friend, namespace: a, labels: {app: friend}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: shy, namespace: a, labels: {app: shy}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: many, namespace: a, labels: {app: many}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: a}, spec: {nodeName: n2}, status: {podIP: 10.244.2.5}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: a},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: also-web, namespace: a},
 spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], egress: [{}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shy, namespace: a},
 spec: {podSelector: {matchLabels: {app: shy}}, policyTypes: [Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: many, namespace: a},
 spec: {podSelector: {matchLabels: {app: many}}, ingress: [
  {from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 1, protocol: UDP}, {port: 7, protocol: UDP}]},
  {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 2, protocol: UDP}, {port: 7, protocol: UDP}]},
  {from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 3, protocol: UDP}, {port: 7, protocol: UDP}]}]}}
";

fn lines(node: &Node) -> Vec<Value> {
    let text = std::fs::read_to_string(node.out()).unwrap_or_default();
    // the last one may be half written
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// `from pod or address > to pod or address:port protocol direction: policies` of a line
fn short(line: &Value) -> String {
    let end = |end: &Value| end["pod"].as_str().or(end["address"].as_str()).unwrap_or("?").to_owned();
    let policies: Vec<&str> =
        line["policies"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    format!(
        "{} > {}:{} {} {}: {}",
        end(&line["from"]),
        end(&line["to"]),
        line["to"]["port"],
        line["protocol"].as_str().unwrap_or("?"),
        line["direction"].as_str().unwrap_or("?"),
        policies.join(" ")
    )
}

fn send(from: &UdpSocket, to: &str) {
    let _ = from.send_to(b"hello", to);
}

/// `web` would take from `friend` alone, `shy` would reach `friend` as well, nothing says anything else of them.
const AUDITED: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: friend, namespace: a, labels: {app: friend}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: shy, namespace: a, labels: {app: shy}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: a}, spec: {nodeName: n2}, status: {podIP: 10.244.2.5}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: a, annotations: {weir.dev/audit: 'true'}},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shy, namespace: a},
 spec: {podSelector: {matchLabels: {app: shy}}, policyTypes: [Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: less-shy, namespace: a, annotations: {weir.dev/audit: 'true'}},
 spec: {podSelector: {matchLabels: {app: shy}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 53, protocol: UDP}]}]}}
";

#[test]
#[ignore = "needs root"]
fn u29_what_is_audited_changes_no_verdict_and_is_told() {
    let mut node = Node::new(AUDITED, PodLinks::Calico);
    let controller = node.controller("127.0.0.1:0", 1, read(AUDITED).1);
    node.start(&[controller.address], &[]);
    node.ready();
    let (web, friend, shy) =
        (node.bind("web", "10.244.1.2"), node.bind("friend", "10.244.1.3"), node.bind("shy", "10.244.1.4"));
    let arrives = |to: &UdpSocket| {
        to.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        to.recv_from(&mut [0; 16]).is_ok()
    };
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let find = |node: &Node, what: &str| lines(node).into_iter().find(|line| short(line) == what);

    // nothing isolates web: all arrives, and what the audited policy would not allow is told
    let to_web = format!("10.244.1.2:{}", port(&web));
    send(&friend, &to_web);
    assert!(arrives(&web));
    let other = node.bind("web", "10.244.1.2");
    send(&shy, "10.244.1.3:53");
    let to_other = format!("10.244.1.2:{}", port(&other));
    let far = node.bind("far", "10.244.2.5");
    send(&far, &to_other);
    assert!(arrives(&other), "what would be denied passes");
    let what = format!("10.244.2.5 > a/web:{} UDP ingress: a/web", port(&other));
    node.soon(&what, |node| find(node, &what).is_some());
    assert_eq!(find(&node, &what).unwrap()["verdict"], "would-deny");
    assert!(
        !lines(&node).iter().any(|line| line["from"]["pod"] == "a/friend"),
        "what it would allow is not told"
    );

    // shy is isolated: what the audited policy would allow is denied, and the line says so
    let what = "a/shy > a/friend:53 UDP egress: a/shy";
    node.soon(what, |node| find(node, what).is_some());
    let line = find(&node, what).unwrap();
    assert_eq!(
        (&line["verdict"], &line["would_allow"]),
        (&"denied".into(), &"a/less-shy spec.egress[0] to[0] ports[0]".into())
    );
    send(&shy, "10.244.1.3:54");
    let what = "a/shy > a/friend:54 UDP egress: a/shy";
    node.soon(what, |node| find(node, what).is_some());
    assert_eq!(find(&node, what).unwrap()["would_allow"], Value::Null);
    assert_eq!(node.metric("audit_would_deny_total"), 1.0);
    assert_eq!(node.metric("audit_would_allow_total"), 1.0);

    // nobody would be told: no rule at all for a pod that nothing isolates
    node.start(&[controller.address], &["--log-denied", "off"]);
    node.ready();
    let rules = node.inside("n1", || {
        std::process::Command::new("nft").args(["list", "table", "inet", "weir"]).output().unwrap()
    });
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(
        rules.contains("chain egress_") && !rules.contains("audit_") && !rules.contains("10.244.1.2 :"),
        "{rules}"
    );
}

#[test]
#[ignore = "needs root"]
fn denied_connections_are_told_with_names_and_not_too_many() {
    let mut node = Node::new(CLUSTER, PodLinks::Calico);
    let controller = node.controller("127.0.0.1:0", 1, read(CLUSTER).1);
    node.start(&[controller.address], &[]);
    node.ready();
    let bind = |name: &str, address: &str| node.bind(name, address);
    let (web, friend, shy) =
        (bind("web", "10.244.1.2"), bind("friend", "10.244.1.3"), bind("shy", "10.244.1.4"));
    let far = bind("far", "10.244.2.5");
    let told = |node: &Node, what: &str| lines(node).iter().any(|line| short(line) == what);

    // both ends here; from elsewhere; to where nobody is; by a class of ports, and at a port of no class
    send(&shy, "10.244.2.5:53");
    send(&far, "10.244.1.2:80");
    send(&shy, "203.0.113.9:443");
    send(&web, "10.244.1.5:1");
    send(&web, "10.244.1.5:9");
    for what in [
        "a/shy > 10.244.2.5:53 UDP egress: a/shy",
        "10.244.2.5 > a/web:80 UDP ingress: a/also-web a/web",
        "a/shy > 203.0.113.9:443 UDP egress: a/shy",
        "a/web > a/many:1 UDP ingress: a/many",
        "a/web > a/many:9 UDP ingress: a/many",
    ] {
        node.soon(what, |node| told(node, what));
    }
    let first = lines(&node).remove(0);
    assert_eq!((first["verdict"].as_str(), first["node"].as_str()), (Some("denied"), Some("n1")));
    assert!(first["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{first}");

    // what is allowed is not told
    send(&friend, "10.244.1.2:81");
    send(&web, "10.244.1.5:2");
    send(&friend, "10.244.1.5:7");

    // a flood of one pod: bounded, counted, and another pod's denial is told all the same
    let begin = Instant::now();
    for port in 0..20_000u16 {
        send(&shy, &format!("203.0.113.9:{}", 1000 + port));
    }
    send(&far, "10.244.1.2:4444");
    node.soon("told beside the flood", |node| {
        told(node, "10.244.2.5 > a/web:4444 UDP ingress: a/also-web a/web")
    });
    std::thread::sleep(Duration::from_millis(300));
    let of_shy = |node: &Node| lines(node).iter().filter(|l| l["from"]["pod"] == "a/shy").count() as u64;
    assert!(of_shy(&node) <= 22 + 10 * (begin.elapsed().as_secs() + 1), "{}", of_shy(&node));
    assert!(node.metric("denials_suppressed_total") > 0.0);
    assert_eq!(node.metric("denials_logged_total") as usize, lines(&node).len());
    send(&shy, "203.0.113.9:443");
    node.soon("how many were not told", |node| {
        lines(node)
            .iter()
            .any(|l| l["from"]["pod"] == "a/shy" && l["suppressed"].as_u64().is_some_and(|n| n > 0))
    });
    let allowed = ["a/web:81", "a/many:2 ", "a/many:7 "];
    let told: BTreeSet<String> = lines(&node).iter().map(short).collect();
    assert!(!told.iter().any(|line| allowed.iter().any(|a| line.contains(a))), "{told:?}");

    // started anew it is told as before, and nothing was committed for it
    let generation = |node: &Node| node.inside("n1", || Nft::open().unwrap().generation().unwrap());
    let before = generation(&node);
    node.start(&[controller.address], &[]);
    node.ready();
    assert_eq!(generation(&node), before);
    node.soon("told after a start", |node| {
        send(&far, "10.244.1.2:5555");
        lines(node).iter().any(|line| short(line).contains("a/web:5555 "))
    });

    // without: no rule that logs
    node.start(&[controller.address], &["--log-denied", "off"]);
    node.ready();
    let rules = node.inside("n1", || {
        std::process::Command::new("nft").args(["list", "table", "inet", "weir"]).output().unwrap()
    });
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(rules.contains("chain egress_") && !rules.contains("log prefix"), "{rules}");
}

/// `db` takes from `web`'s label at one port and from one network, `free` is isolated by nobody, `closed` by a policy
/// that allows nothing; all of namespace `a`, which asks for each connection or for one of so many.
fn asking(annotation: &str) -> String {
    format!(
        "
{{apiVersion: v1, kind: Namespace, metadata: {{name: a{annotation}}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: db, namespace: a, labels: {{app: db}}}}, spec: {{nodeName: n1}}, status: {{podIP: 10.244.1.2}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: a, labels: {{app: web}}}}, spec: {{nodeName: n1}}, status: {{podIP: 10.244.1.3}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: quiet, namespace: b}}, spec: {{nodeName: n1}}, status: {{podIP: 10.244.1.4}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: far, namespace: b}}, spec: {{nodeName: n2}}, status: {{podIP: 10.244.2.5}}}}
---
{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: db, namespace: a}},
 spec: {{podSelector: {{matchLabels: {{app: db}}}}, ingress: [
  {{from: [{{podSelector: {{matchLabels: {{app: nobody}}}}}}, {{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: 53, protocol: UDP}}]}},
  {{from: [{{ipBlock: {{cidr: 10.244.2.0/24}}}}]}}]}}}}
"
    )
}

/// `from > to:port direction clause connections/sampled` of a line on what is allowed
fn allowed(line: &Value) -> String {
    let end = |end: &Value| end["pod"].as_str().or(end["address"].as_str()).unwrap_or("?").to_owned();
    let clause = &line["clause"];
    let clause = match clause["policy"].as_str() {
        Some(policy) => {
            format!("{policy}[{}]from[{}]ports[{}]", clause["rule"], clause["peer"], clause["port"])
        }
        None => format!("isolated={}", line["isolated"]),
    };
    let (from, to) = (end(&line["from"]), end(&line["to"]));
    let direction = line["direction"].as_str().unwrap_or("?");
    format!(
        "{from} > {to}:{} {direction} {clause} {}/{}",
        line["to"]["port"], line["connections"], line["sampled"]
    )
}

#[test]
#[ignore = "needs root"]
fn allowed_connections_are_told_where_a_namespace_asks_for_it() {
    let all = asking(", annotations: {weir.dev/log-allowed: \"true\"}");
    let mut node = Node::new(&all, PodLinks::Calico);
    let events = |yaml: &str| read(yaml).1;
    let controller = node.controller("127.0.0.1:0", 1, events(&all));
    node.start(&[controller.address], &[]);
    node.ready();
    let bind = |node: &Node, name: &str, address: &str| node.bind(name, address);
    let (db, web) = (bind(&node, "db", "10.244.1.2"), bind(&node, "web", "10.244.1.3"));
    let (quiet, far) = (bind(&node, "quiet", "10.244.1.4"), bind(&node, "far", "10.244.2.5"));
    let told = |node: &Node| -> Vec<String> {
        lines(node).iter().filter(|line| line["verdict"] == "allowed").map(allowed).collect()
    };
    let soon = |node: &Node, what: &str| node.soon(what, |node| told(node).iter().any(|line| line == what));

    // each end of its own: of the pod that no policy isolates, and the clause of the one that is
    send(&web, "10.244.1.2:53");
    soon(&node, "a/web > a/db:53 egress isolated=false 1/1");
    soon(&node, "a/web > a/db:53 ingress a/db[0]from[1]ports[0] 1/1");
    send(&far, "10.244.1.2:9");
    soon(&node, "10.244.2.5 > a/db:9 ingress a/db[1]from[0]ports[null] 1/1");
    // what ingress denies, egress has allowed; of namespace b nothing is told
    send(&web, "10.244.1.2:54");
    node.soon("denied", |node| lines(node).iter().any(|l| short(l) == "a/web > a/db:54 UDP ingress: a/db"));
    send(&quiet, "10.244.2.5:5");
    send(&quiet, "203.0.113.9:5");
    // further packets of one connection are no connections, answered or not; others are added up
    for _ in 0..20 {
        send(&web, "10.244.1.2:53");
    }
    for _ in 0..5 {
        send(&bind(&node, "web", "10.244.1.3"), "10.244.1.2:53");
    }
    soon(&node, "a/web > a/db:53 ingress a/db[0]from[1]ports[0] 5/1");
    assert!(
        !told(&node).iter().any(|line| line.contains("quiet") || line.contains(":54 ingress")),
        "{:?}",
        told(&node)
    );
    assert_eq!(node.metric("allowed_logged_total") as usize, told(&node).len());

    // one of two: not all and not none, in what is told and in the kernel
    let sampled = asking(", annotations: {weir.dev/log-allowed: \"1/2\"}");
    controller.apply(events(&sampled));
    node.soon("sampled", |node| {
        send(&bind(node, "db", "10.244.1.2"), "203.0.113.9:99");
        told(node).iter().any(|line| {
            line.starts_with("a/db > 203.0.113.9:99 egress isolated=false ") && line.ends_with("/2")
        })
    });
    let count = |node: &Node| node.metric("allowed_connections_total");
    let before = count(&node);
    for _ in 0..150 {
        send(&bind(&node, "db", "10.244.1.2"), "203.0.113.9:77");
    }
    node.soon("some of them", |node| count(node) - before > 30.0);
    assert!(count(&node) - before < 120.0, "{}", count(&node) - before);

    // a restart commits nothing for it
    let generation = |node: &Node| node.inside("n1", || Nft::open().unwrap().generation().unwrap());
    let before = generation(&node);
    node.start(&[controller.address], &[]);
    node.ready();
    assert_eq!(generation(&node), before);

    // off again: no rule is left of it, and denials are told as before
    controller.apply(events(&asking("")));
    let rules = |node: &Node| {
        let list =
            || std::process::Command::new("nft").args(["list", "table", "inet", "weir"]).output().unwrap();
        String::from_utf8_lossy(&node.inside("n1", list).stdout).into_owned()
    };
    node.soon("off", |node| !rules(node).contains("allowed_"));
    assert!(rules(&node).contains("log prefix \"ingress_"));
    let before = told(&node).len();
    send(&bind(&node, "db", "10.244.1.2"), "203.0.113.9:78");
    send(&db, "203.0.113.9:79");
    send(&web, "10.244.1.2:56");
    node.soon("denied", |node| lines(node).iter().any(|l| short(l) == "a/web > a/db:56 UDP ingress: a/db"));
    assert!(
        !told(&node)[before..].iter().any(|line| line.contains(":78 ") || line.contains(":79 ")),
        "{:?}",
        told(&node)
    );
}

#[test]
#[ignore = "needs root"]
fn output_that_nobody_reads_holds_up_nothing() {
    let mut node = Node::new(CLUSTER, PodLinks::Calico);
    let controller = node.controller("127.0.0.1:0", 1, read(CLUSTER).1);
    // full before the agent has written anything
    let (reader, mut writer) = std::io::pipe().unwrap();
    fill(&mut writer);
    node.unread = Some(writer);
    node.start(&[controller.address], &["--log-denied", "1000"]);
    node.ready();

    let (web, shy, far) =
        (node.bind("web", "10.244.1.2"), node.bind("shy", "10.244.1.4"), node.bind("far", "10.244.2.5"));
    // more than all queues together
    node.soon("lines are lost", |node| {
        (0..500).for_each(|port| send(&shy, &format!("203.0.113.9:{}", 1000 + port)));
        node.metric("denials_lost_total") > 0.0
    });
    let at = format!("10.244.1.2:{}", web.local_addr().unwrap().port());
    let passes = || {
        send(&far, &at);
        web.recv(&mut [0; 16]).is_ok()
    };
    assert!(!passes());
    let policies = node.metric("slice_policies");
    let open = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open, namespace: a},
        spec: {podSelector: {matchLabels: {app: web}}, ingress: [{}]}}";
    controller.apply(read(open).1);
    node.soon("an edit is in force", |node| node.metric("slice_policies") > policies && passes());
    node.stop();
    drop(reader);
}

/// Writes until there is no room.
fn fill(pipe: &mut std::io::PipeWriter) {
    use std::io::Write;
    use std::os::fd::AsFd;
    // of the description, which the agent's own copies have too: so it is only for as long as this takes
    let set = |nonblocking: bool| {
        let flags = nix::fcntl::OFlag::from_bits_retain(
            nix::fcntl::fcntl(pipe.as_fd(), nix::fcntl::F_GETFL).unwrap(),
        );
        let mut flags = flags;
        flags.set(nix::fcntl::OFlag::O_NONBLOCK, nonblocking);
        nix::fcntl::fcntl(pipe.as_fd(), nix::fcntl::F_SETFL(flags)).unwrap();
    };
    set(true);
    let mut written = 0;
    while let Ok(more) = (&mut &*pipe).write(&[b'x'; 512]) {
        written += more;
    }
    set(false);
    assert!(written > 0);
}
