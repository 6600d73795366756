//! `weir diff`: what people and programs are told of a change.

mod common;

use std::path::Path;

use common::{Run, weir, weir_reads};
use serde_json::Value;

const OLD: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: ops}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}}}
---
apiVersion: v1
kind: Pod
metadata:
  {name: web-5d8-a, namespace: shop, labels: {app: web, pod-template-hash: 5d8}, ownerReferences: [{kind: ReplicaSet, name: web-5d8, controller: true}]}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata:
  {name: web-5d8-b, namespace: shop, labels: {app: web, pod-template-hash: 5d8}, ownerReferences: [{kind: ReplicaSet, name: web-5d8, controller: true}]}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.3}, {ip: "fd00::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.0.4}, {ip: "fd00::4"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cron, namespace: ops, labels: {app: cron}}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}]}
"#;

const DB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: api}}}]
      ports: [{port: 5432}]
";

/// A folder with `old/` and `new/`.
fn folders(old: &[&str], new: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in [("old", old.join("\n---\n")), ("new", new.to_owned())] {
        std::fs::create_dir(dir.path().join(name)).expect("a folder");
        std::fs::write(dir.path().join(name).join("m.yaml"), text).expect("written");
    }
    dir
}

fn diff(dir: &Path, args: &[&str]) -> Run {
    weir(dir, &[&["diff", "--from", "old", "-f", "new"], args].concat())
}

#[test]
fn a_first_policy_is_told_by_workload_and_port() {
    let dir = folders(&[OLD], DB);
    let run = diff(dir.path(), &["--exit-code"]);
    assert_eq!((run.code, run.err.as_str()), (Some(1), ""));
    insta::assert_snapshot!("first_policy", run.out);
    insta::assert_snapshot!("first_policy_markdown", diff(dir.path(), &["-o", "markdown"]).out);
    insta::assert_snapshot!("first_policy_json", diff(dir.path(), &["-o", "json"]).out);
    insta::assert_snapshot!("first_policy_nft", diff(dir.path(), &["--nft"]).out);
}

#[test]
fn exit_codes_are_those_of_git_diff() {
    let dir = folders(&[OLD, DB], DB);
    let same = diff(dir.path(), &["--exit-code"]);
    assert_eq!((same.code, same.out.as_str()), (Some(0), "no flow changes\nnodes: none changes\n"));
    let dir = folders(&[OLD], DB);
    assert_eq!(diff(dir.path(), &[]).code, Some(0));
    assert_eq!(diff(dir.path(), &["--exit-code"]).code, Some(1));
    for args in [
        &["diff", "--from", "old", "-f", "none"][..],
        &["diff", "--from", "old"],
        &["diff", "--from", "-", "-f", "-"],
    ] {
        let run = weir(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{args:?}");
    }
    let empty = folders(&[OLD], "");
    let run = diff(empty.path(), &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.err.contains("in what is new (-f)"), "{run:?}");
}

/// (change, from, to) of all flows.
fn flows(json: &Value) -> Vec<(String, Vec<String>, Vec<String>)> {
    let names = |ends: &Value| -> Vec<String> {
        let workloads = ends["workloads"].as_array().expect("workloads").iter();
        workloads.map(|w| w["name"].as_str().expect("a name").to_owned()).collect()
    };
    let flows = json["flows"].as_array().expect("flows").iter();
    flows
        .map(|f| (f["change"].as_str().expect("a change").to_owned(), names(&f["from"]), names(&f["to"])))
        .collect()
}

#[test]
fn prune_deletes_what_is_not_in_new() {
    let other = DB.replace("name: db", "name: other").replace("app: db", "app: api");
    let dir = folders(&[OLD, DB], &other);
    let kept = diff(dir.path(), &["-o", "json"]).json();
    assert_eq!(kept["policies"]["removed"], serde_json::json!([]));
    let json = diff(dir.path(), &["-o", "json", "--prune"]).json();
    assert_eq!(json["policies"]["removed"], serde_json::json!(["shop/db"]));
    assert!(flows(&json).iter().any(|(change, _, to)| change == "opened" && to == &["db"]), "{json}");
    assert_eq!(json["pods"], serde_json::json!({"added": 0, "removed": 0}), "pods stay: new has none");
    // and nothing at all in new
    let none = folders(&[OLD, DB], "");
    let json = diff(none.path(), &["-o", "json", "--prune"]).json();
    assert_eq!(json["policies"]["removed"], serde_json::json!(["shop/db"]));
}

#[test]
fn a_new_template_moves_the_pods_of_its_workload() {
    let template = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web, role: api}}}}
";
    let by_role = DB.replace("app: api", "role: api");
    let dir = folders(&[OLD, &by_role], template);
    let json = diff(dir.path(), &["-o", "json"]).json();
    assert_eq!(
        flows(&json),
        [("opened".to_owned(), vec!["web".to_owned()], vec!["db".to_owned()])],
        "{json}"
    );
    assert_eq!(
        json["flows"][0]["gained"]["ports"],
        serde_json::json!([{"protocol": "TCP", "first": 5432, "last": 5432}])
    );
    assert_eq!(json["flows"][0]["families"], serde_json::json!(["IPv4", "IPv6"]));
    assert_eq!(json["flows"][0]["pairs"], 4, "two pods, two families");
}

#[test]
fn addresses_outside_of_the_cluster_are_flows_too() {
    let blocks = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: api}}}]
      ports: [{port: 5432}]
    - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]
      ports: [{protocol: UDP, port: 53}]
";
    let dir = folders(&[OLD, DB], blocks);
    let run = diff(dir.path(), &[]);
    assert!(run.out.contains("opened    192.0.2.0/25 -> shop/db"), "{run:?}");
    let json = diff(dir.path(), &["-o", "json"]).json();
    assert_eq!(json["flows"].as_array().expect("flows").len(), 1, "{json}");
    assert_eq!(json["flows"][0]["from"], serde_json::json!({"workloads": [], "addresses": ["192.0.2.0/25"]}));
}

#[test]
fn standard_input_may_be_what_is_new() {
    let dir = folders(&[OLD], DB);
    let run = weir_reads(dir.path(), &["diff", "--from", "old", "-f", "-"], DB);
    assert_eq!(run.out, diff(dir.path(), &[]).out);
}

#[test]
fn names_steer_neither_terminal_nor_markdown() {
    let hostile = DB.replace("name: db", "name: \"d\\e[31m`|<b>\\u202e\"");
    let dir = folders(&[OLD], &hostile);
    for output in ["text", "markdown", "json"] {
        let run = diff(dir.path(), &["-o", output, "--nft"]);
        // JSON has the names as they are, with its own escapes
        assert!(!run.out.contains('\x1b'), "{output}: {}", run.out);
        assert!(output == "json" || !run.out.contains('\u{202e}'), "{output}: {}", run.out);
        if output == "markdown" {
            assert!(!run.out.contains("<b>") && !run.out.contains("[31m`|"), "{}", run.out);
        }
    }
}
