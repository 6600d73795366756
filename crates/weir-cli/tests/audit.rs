//! Audited policies (U29): answers are those without them, and say what would be with them.

mod common;

use std::path::Path;

use common::{Run, weir};
use serde_json::Value;

/// `db` is isolated, and would let in one more; nothing isolates `web`, and one policy would.
const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, spec: {nodeName: n1}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: n2}, status: {podIP: 10.0.0.3}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]
"#;

const AUDITED: &str = r#"---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-more, namespace: shop, annotations: {weir.dev/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, annotations: {weir.dev/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]
"#;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let enforced = AUDITED.replace(", annotations: {weir.dev/audit: \"true\"}", "");
    assert!(!enforced.contains("weir.dev"));
    for (name, text) in [("cluster.yaml", CLUSTER), ("audited.yaml", AUDITED), ("enforced.yaml", &enforced)] {
        std::fs::write(dir.path().join(name), text).expect("it can be written");
    }
    dir
}

fn ask(dir: &Path, args: &[&str]) -> Run {
    weir(dir, &[args, &["-f", "cluster.yaml", "-f", "audited.yaml"]].concat())
}

#[test]
fn u29_explain_shows_what_is_audited_apart() {
    let dir = folder();
    let all: Vec<String> =
        ["shop/db", "shop/web"].iter().map(|pod| ask(dir.path(), &["explain", pod]).out).collect();
    insta::assert_snapshot!(all.join("\n"));
    let json = |pod: &str| -> Value {
        serde_json::from_str(&ask(dir.path(), &["explain", pod, "-o", "json"]).out).expect("JSON")
    };
    let db = &json("shop/db")["subjects"][0]["ingress"];
    assert_eq!((&db["isolated"], &db["audited"]["wouldIsolate"]), (&true.into(), &false.into()));
    assert_eq!(db["isolatedBy"].as_array().map(Vec::len), Some(1));
    let web = &json("shop/web")["subjects"][0]["ingress"];
    assert_eq!((&web["isolated"], &web["audited"]["wouldIsolate"]), (&false.into(), &true.into()));
    assert_eq!(json("shop/api")["subjects"][0]["ingress"].get("audited"), None);
}

#[test]
fn u29_can_answers_without_what_is_audited_and_says_what_would_be() {
    let dir = folder();
    let denied = ask(dir.path(), &["can", "shop/web", "shop/db:5432"]);
    assert_eq!(denied.code, Some(1));
    let would = "if what is audited were enforced, ingress of shop/db would be allowed, by \
                 shop/db-more spec.ingress[0] from[0] ports[0]";
    assert!(denied.err.contains(would), "{}", denied.err);
    let allowed = ask(dir.path(), &["can", "shop/db", "shop/web:80"]);
    assert_eq!(allowed.code, Some(0));
    let would = "if what is audited were enforced, ingress of shop/web would be denied, by shop/web ";
    assert!(allowed.err.contains(would), "{}", allowed.err);
    let same = ask(dir.path(), &["can", "shop/api", "shop/web:80"]);
    assert!(same.code == Some(0) && !same.err.contains("audited"), "{}", same.err);
    // of all ports, those for which it differs
    let ports = ask(dir.path(), &["can", "shop/web", "shop/db"]);
    assert!(ports.err.contains("would be allowed at 5432/TCP"), "{}", ports.err);
    let json: Value =
        serde_json::from_str(&ask(dir.path(), &["can", "shop/web", "shop/db:5432", "-o", "json"]).out)
            .expect("JSON");
    let side = &json["ingress"];
    assert_eq!(
        (&side["verdict"], &side["audited"]["verdict"]),
        (&"denied".into(), &"allowed".into()),
        "{json}"
    );
    assert_eq!(side["audited"]["clause"]["policy"], "shop/db-more");
}

#[test]
fn u29_diff_shows_what_enforcing_them_would_change() {
    let dir = folder();
    let from = ["--from", "cluster.yaml", "--from", "audited.yaml"];
    let would = weir(dir.path(), &[&["diff", "--enforce-audited"], &from[..]].concat());
    let does = weir(dir.path(), &[&["diff", "-f", "enforced.yaml"], &from[..]].concat());
    assert_eq!((would.code, would.out.as_str()), (Some(0), does.out.as_str()), "{}", would.err);
    assert!(would.out.contains("shop/web") && would.out.contains("shop/db"), "{}", would.out);
    // to begin to audit is to stop to enforce
    let begin = weir(
        dir.path(),
        &["diff", "-f", "audited.yaml", "--from", "cluster.yaml", "--from", "enforced.yaml"],
    );
    assert!(begin.out != does.out && begin.out.contains("shop/web"), "{}", begin.out);
    let nothing = weir(dir.path(), &["diff", "--enforce-audited", "--from", "cluster.yaml"]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.err.contains("nothing is audited"), "{}", nothing.err);
}
