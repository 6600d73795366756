//! `weir graph` and `weir render`: what they print.

mod common;

use std::path::{Path, PathBuf};

use common::{folder, weir};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-examples").join(name)
}

#[test]
fn three_tiers_are_two_arrows() {
    let dir = example("02-three-tier-web");
    for output in ["dot", "mermaid", "svg"] {
        let run = weir(&dir, &["graph", "-f", ".", "-o", output]);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{output}");
        insta::assert_snapshot!(format!("three_tiers_{output}"), run.out);
    }
}

#[test]
fn arrows_of_all_pods_of_a_namespace_are_one() {
    let run = weir(&example("11-same-namespace-and-one-other"), &["graph", "-f", ".", "-o", "mermaid"]);
    insta::assert_snapshot!("same_namespace", run.out);
    let run = weir(&example("06-monitoring-scrape"), &["graph", "-f", ".", "-o", "mermaid"]);
    insta::assert_snapshot!("monitoring", run.out);
    let run = weir(&example("14-egress-partner-range"), &["graph", "-f", ".", "-o", "mermaid"]);
    insta::assert_snapshot!("partner_range", run.out);
}

/// Two pods of one workload of which policies let each use another port.
const UNLIKE: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {pod: a}, ownerReferences: [{kind: StatefulSet, name: web, apiVersion: apps/v1, controller: true}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {pod: b}, ownerReferences: [{kind: StatefulSet, name: web, apiVersion: apps/v1, controller: true}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 81}]}]}}
"#;

#[test]
fn an_arrow_is_all_that_any_pod_of_the_workload_may() {
    let dir = folder(UNLIKE);
    let run = weir(dir.path(), &["graph", "-f", ".", "-o", "mermaid"]);
    assert!(
        run.out.contains("80/TCP") && run.out.contains("81/TCP") || run.out.contains("80-81/TCP"),
        "{run:?}"
    );
}

const HOSTILE: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {namespace: "a\"]<script>&", name: "x\"];\n</text>\e[31m\u202e--", labels: {app: x}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: "a\"]<script>&", name: "y|\\\" end", labels: {app: y}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: "a\"]<script>&", name: p}, spec: {podSelector: {matchLabels: {app: x}}, ingress: [{from: [{podSelector: {matchLabels: {app: y}}}], ports: [{port: 80}]}]}}
"#;

#[test]
fn names_are_only_names_in_every_format() {
    let dir = folder(HOSTILE);
    for output in ["dot", "mermaid", "svg"] {
        let run = weir(dir.path(), &["graph", "-f", ".", "-o", output]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(!run.out.contains(['\x1b', '\u{202e}']), "{output}: {}", run.out);
        insta::assert_snapshot!(format!("hostile_{output}"), run.out);
        if output == "svg" {
            assert!(!run.out.contains("<script") && !run.out.contains("</text>\\"), "{}", run.out);
        }
    }
    let run = weir(dir.path(), &["render", "--node", "n\n1", "-f", "."]);
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{run:?}");
}

const NODE: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: node1}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: api}}, spec: {nodeName: node2}, status: {podIP: 10.0.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}]}}
"#;

#[test]
fn render_is_the_table_of_the_node() {
    let dir = folder(NODE);
    let run = weir(dir.path(), &["render", "--node", "node1", "-f", "."]);
    insta::assert_snapshot!("render", run.out);
    assert!(run.err.contains("1 addresses are dispatched by address"), "{run:?}");
    assert!(run.err.contains("1 pods are on no node that is known"), "{run:?}");
    let run =
        weir(dir.path(), &["render", "--node", "node1", "-f", ".", "--attachment", "10.0.0.1=own:veth7"]);
    assert!(run.out.contains("elements = { \"veth7\" comment \"shop/web\" : jump ingress_"), "{}", run.out);
    assert!(!run.err.contains("dispatched by address"), "{run:?}");
}

#[test]
fn render_says_what_is_wrong() {
    let dir = folder(NODE);
    for (args, why) in [
        (&["--node", "nod1"][..], "did you mean node1?"),
        (&["--node", "elsewhere"], "there are 2: node1, node2"),
        (&["--node", "node1", "--attachment", "10.0.0.1"], "write ADDRESS=own:INTERFACE"),
        (&["--node", "node1", "--attachment", "ten=own:x"], "is not an IP address"),
        (&["--node", "node1", "--attachment", "10.0.0.1=own:a b"], "is not the name of an interface"),
        (&["--node", "node1", "--revoked-mark", "3"], "one bit of 32"),
    ] {
        let run = weir(dir.path(), &[&["render", "-f", "."], args].concat());
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{args:?}: {run:?}");
        assert!(run.err.contains(why), "{args:?}: {run:?}");
    }
    let run = weir(dir.path(), &["render", "-f", ".", "--node", "node1", "--attachment", "10.9.9.9=own:x"]);
    assert!(run.err.contains("warning: --attachment 10.9.9.9: no pod of node1 has this address"), "{run:?}");
}
