//! What `weir can` says, letter by letter.

mod common;

use common::{folder, weir};

/// One node with a pod of each sort.
const CLUSTER: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ops}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db, labels: {app: db}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: probe, labels: {app: probe}}
spec: {nodeName: n2, hostNetwork: true}
status: {podIPs: [{ip: 172.16.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: other, labels: {app: probe}}
spec: {nodeName: n1, hostNetwork: true}
status: {podIPs: [{ip: 172.16.0.1}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: api}}
    - namespaceSelector: {matchLabels: {team: red}}
      podSelector: {}
    - ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.1/32]}
    ports: [{port: sql}]
  - from: [{ipBlock: {cidr: 'fd00::/16'}}]
";

fn ask(from: &str, to: &str) -> (Option<i32>, String) {
    let run = weir(folder(CLUSTER).path(), &["can", from, to, "-f", "m.yaml"]);
    assert_eq!(run.err, "");
    (run.code, run.out)
}

#[test]
fn a_denial_names_the_clauses_that_come_nearest() {
    let (code, out) = ask("shop/web", "shop/db:5432");
    assert_eq!(
        out,
        "\
denied  shop/web -> shop/db  5432/TCP
  IPv4 denied, IPv6 allowed; this is about IPv4
  egress of shop/web  passes: no policy isolates it for egress
  ingress of shop/db  denied: isolated by shop/db; no rule allows it
    shop/db  ingress[0]  m.yaml:39
      ✘ from[0]   podSelector app=api                         shop/web has app=web
      ✘ from[1]   namespaceSelector team=red, podSelector {}  namespace shop has team=blue
      ✘ from[2]   ipBlock 10.0.0.0/24 except 10.0.0.1/32      shop/web has 10.0.0.1
      ✔ ports[0]  sql/TCP
    shop/db  ingress[1]  m.yaml:45
      ✘ from[0]  ipBlock fd00::/16  shop/web has 10.0.0.1
      ✔ ports    all ports
    nearest: label app=api on shop/web, or label team=red on namespace shop
"
    );
    assert_eq!(code, Some(1));
}

#[test]
fn at_most_one_verdict_for_two_families_and_it_is_that_of_both() {
    let run = weir(folder(CLUSTER).path(), &["can", "shop/web", "shop/db:5432", "-f", ".", "-o", "json"]);
    let json = run.json();
    assert_eq!((run.code, &json["allowed"]), (Some(1), &serde_json::json!(false)));
    assert_eq!(json["families"], serde_json::json!({"IPv4": false, "IPv6": true}));
    assert_eq!(json["egress"]["verdict"], "allowed");
    assert_eq!(json["egress"]["reason"], "notIsolated");
    assert_eq!(json["ingress"]["verdict"], "denied");
    assert_eq!(json["ingress"]["isolatedBy"], serde_json::json!(["shop/db"]));
    assert_eq!(
        json["ingress"]["nearestMisses"][0],
        serde_json::json!({"policy": "shop/db", "rule": 0, "peer": 0, "port": 0, "file": "./m.yaml", "line": 40,
            "path": "spec.ingress[0].from[0]", "portPath": "spec.ingress[0].ports[0]",
            "peerMatches": false, "portMatches": true})
    );
    let all =
        weir(folder(CLUSTER).path(), &["can", "--all", "--port", "5432", "-f", ".", "-o", "json"]).json();
    let rows = all.as_array().expect("an array");
    let row = rows.iter().find(|r| r["from"] == "shop/web" && r["to"] == "shop/db").expect("the row");
    assert_eq!((&row["allowed"], &row["families"]), (&json["allowed"], &json["families"]));
}

#[test]
fn n70_n71_n73_what_takes_precedence_over_policies() {
    let (code, out) = ask("ops/probe", "shop/db:1");
    assert_eq!(
        out,
        "\
allowed  ops/probe -> shop/db  1/TCP
  egress of ops/probe  passes: it is in its node's network, where policies select nobody (N70)
  ingress of shop/db   passes: a node always reaches its own pods, whatever policies say (N71)
"
    );
    assert_eq!(code, Some(0));

    let (code, out) = ask("ops/other", "shop/db:1");
    assert_eq!(code, Some(1), "another node's network: {out}");

    let (code, out) = ask("shop/db", "shop/db:1");
    assert_eq!(code, Some(0));
    assert!(out.contains("a pod always reaches itself (N73)"), "{out}");

    let (code, out) = ask("shop/db", "ops/probe:1");
    assert_eq!(code, Some(0));
    assert!(out.contains("ingress of ops/probe  passes: it is in its node's network"), "{out}");
}

#[test]
fn without_a_port_the_answer_says_which_pass() {
    let policy = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{ports: [{port: 80}, {port: 8000, endPort: 8010}, {port: 53, protocol: UDP}]}]
";
    let run = weir(folder(&format!("{CLUSTER}{policy}")).path(), &["can", "shop/db", "shop/web", "-f", "."]);
    assert_eq!(
        run.out,
        "\
allowed  shop/db -> shop/web  some ports
  ✔ 80/TCP, 8000-8010/TCP, 53/UDP
      egress of shop/db    passes: no policy isolates it for egress
      ingress of shop/web  passes: shop/web ingress[0] allows it
  ✘ 1-79/TCP, 81-7999/TCP, 8011-65535/TCP, 1-52/UDP, 54-65535/UDP, all ports of SCTP
      egress of shop/db    passes: no policy isolates it for egress
      ingress of shop/web  denied: isolated by shop/web; no rule allows it
  name a port for the clauses, as in shop/web:80/TCP
"
    );
    assert_eq!(run.code, Some(0));
    let (code, out) = ask("ops/other", "shop/db");
    assert_eq!(code, Some(1));
    assert!(out.starts_with("denied  ops/other -> shop/db  all ports\n  ✘ all ports\n"), "{out}");
    assert_eq!(ask("shop/db", "shop/web").1.lines().next(), Some("allowed  shop/db -> shop/web  all ports"));
}

#[test]
fn selectors_do_not_match_in_the_hosts_network_and_policies_may_have_no_rules() {
    let policy = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-probe}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{namespaceSelector: {}}, {podSelector: {}}]}]
";
    let run =
        weir(folder(&format!("{CLUSTER}{policy}")).path(), &["can", "ops/probe", "shop/web:80", "-f", "."]);
    assert_eq!(
        run.out,
        "\
denied  ops/probe -> shop/web  80/TCP
  egress of ops/probe  passes: it is in its node's network, where policies select nobody (N70)
  ingress of shop/web  denied: isolated by shop/web, shop/web-probe; no rule allows it
    shop/web  has no ingress rules  ./m.yaml:51
    shop/web-probe  ingress[0]  ./m.yaml:59
      ✘ from[0]  namespaceSelector {}  ops/probe is in its node's network, where selectors match nobody (N70)
      ✘ from[1]  podSelector {}        ops/probe is in its node's network, where selectors match nobody (N70)
      ✔ ports    all ports
"
    );
}

#[test]
fn n20_labels_alone_do_not_do_in_another_namespace() {
    let more = "---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: api, labels: {app: api}}
status: {podIPs: [{ip: 10.1.0.9}]}
";
    let run = weir(folder(&format!("{CLUSTER}{more}")).path(), &["can", "ops/api", "shop/db:sql", "-f", "."]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let line = run.out.lines().find(|l| l.contains("✘ from[0]")).expect("the clause");
    assert!(
        line.ends_with("podSelector app=api                         ops/api is not in namespace shop"),
        "{line}"
    );
    assert!(run.out.ends_with("    nearest: label team=red on namespace ops\n"), "{}", run.out);
}

/// A node-local DNS cache is a process of the node: to policy an address that no selector means.
const DNS: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: dns}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{port: 53, protocol: UDP}]
";

fn ask_with(policy: &str, args: &[&str]) -> common::Run {
    let dir = folder(&format!("{CLUSTER}{policy}"));
    weir(dir.path(), &[&["can", "shop/web"], args, &["-f", "m.yaml"]].concat())
}

#[test]
fn u6_why_a_rule_for_kube_dns_does_not_open_the_node_local_cache() {
    let denied = ask_with(DNS, &["169.254.20.10:53/UDP"]);
    assert_eq!(
        denied.out,
        "\
denied  shop/web -> 169.254.20.10  53/UDP
  egress of shop/web        denied: isolated by shop/dns; no rule allows it
    shop/dns  egress[0]  m.yaml:55
      ✘ to[0]     namespaceSelector kubernetes.io/metadata.name=kube-system, podSelector k8s-app=kube-dns  no pod has 169.254.20.10, and selectors match pods only (N25)
      ✔ ports[0]  53/UDP
    nearest: ipBlock 169.254.20.10/32 in egress[0].to of shop/dns
  ingress of 169.254.20.10  passes: no pod has this address, and policies select pods only
"
    );
    assert!(denied.err.contains("a process of the pod's own node, which no selector matches"), "{denied:?}");
    assert!(denied.err.contains("allow it with ipBlock 169.254.20.10/32 beside the selector"), "{denied:?}");
    assert_eq!(denied.code, Some(1));

    // what it says helps
    let fixed = DNS.replace("  - to:\n", "  - to:\n    - ipBlock: {cidr: 169.254.20.10/32}\n");
    assert_ne!(fixed, DNS);
    let allowed = ask_with(&fixed, &["169.254.20.10:53/UDP"]);
    assert_eq!((allowed.code, allowed.err.contains("node-local")), (Some(0), false), "{allowed:?}");
    assert_eq!(ask_with(&fixed, &["169.254.20.10:53/TCP"]).code, Some(1), "the port still counts");
    let relaxed = ask_with(DNS, &["169.254.20.10:53/UDP", "--pod-to-own-node", "allow"]);
    assert!(relaxed.out.contains("passes: pods may reach their own node"), "{relaxed:?}");
    assert_eq!(relaxed.code, Some(0));
}

#[test]
fn u8_an_address_is_that_of_its_pod_or_of_nobody() {
    // the ClusterIP of kube-dns, say
    let nobodys = ask_with(DNS, &["10.96.0.10:53/UDP", "-o", "json"]);
    let json = nobodys.json();
    assert_eq!((&json["to"], &json["ingress"]["reason"]), (&"10.96.0.10".into(), &"noPod".into()));
    assert!(json["notes"][0].as_str().is_some_and(|n| n.contains("ipBlock 10.96.0.10/32")), "{json}");
    let everywhere = ["10.96.0.10:53/UDP", "--pod-to-own-node", "allow"];
    assert_eq!(ask_with(DNS, &everywhere).code, Some(1), "nobody says that it is on the pod's node");
    let v6 = ask_with(DNS, &["[fd00::9]:53/UDP", "-o", "json"]).json();
    assert_eq!((&v6["to"], &v6["families"]), (&"fd00::9".into(), &serde_json::json!({"IPv6": false})));

    // of both addresses of shop/db, the one that was asked about
    let pods = ask_with("", &["[fd00::2]:5432", "-o", "json"]).json();
    assert_eq!((&pods["to"], &pods["families"]), (&"shop/db".into(), &serde_json::json!({"IPv6": true})));
    let pods = ask_with("", &["10.0.0.2:5432", "-o", "json"]).json();
    assert_eq!(pods["families"], serde_json::json!({"IPv4": false}));
    // its own node's, and another's
    let own = ["172.16.0.1:10250", "--pod-to-own-node", "allow"];
    assert_eq!(ask_with(DNS, &own).code, Some(0));
    assert_eq!(ask_with(DNS, &own[..1]).code, Some(1));
    assert_eq!(ask_with(DNS, &["172.16.0.2:10250", own[1], own[2]]).code, Some(1));
}
