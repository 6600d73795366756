//! `weir explain`: every output, of the cluster of `shop/`. Answers are in `snapshots/`.

mod common;

use std::path::Path;

use common::{Run, folder, weir};

fn explain(args: &[&str]) -> Run {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shop");
    weir(&dir, &[&["explain"], args, &["-f", "cluster.yaml", "-f", "policies.yaml"]].concat())
}

fn said(args: &[&str]) -> String {
    let run = explain(args);
    let notes = if run.err.is_empty() { String::new() } else { format!("--- standard error\n{}", run.err) };
    format!(
        "$ weir explain {}\n{}{notes}--- exit code {}\n",
        args.join(" "),
        run.out,
        run.code.expect("an exit")
    )
}

#[test]
fn outputs() {
    for (name, args) in [
        ("pod", &["pod", "shop/db-0"][..]),
        ("pod_members", &["pod/db-0", "-n", "shop", "--members"]),
        ("workload", &["deploy/web", "-n", "shop"]),
        ("workload_wide", &["shop/deploy/web", "-o", "wide"]),
        ("groups", &["sts", "shop/db"]),
        ("host_network", &["pod", "ops/probe"]),
        ("open", &["cronjob", "ops/backup"]),
        ("json", &["shop/db-0", "-o", "json"]),
        ("json_members", &["shop/deploy/web", "-o", "json", "--members"]),
        ("yaml", &["shop/db-0", "-o", "yaml"]),
        ("nft", &["shop/db-0", "-o", "nft"]),
        ("dot", &["ns", "shop", "-o", "dot"]),
        ("mermaid", &["ns", "shop", "-o", "mermaid"]),
    ] {
        insta::assert_snapshot!(name, said(args));
    }
}

#[test]
fn errors() {
    let questions = [
        &["pod", "shop/db"][..],
        &["fleet", "shop/db"],
        &["svc", "shop/db"],
        &["svc/db", "-n", "shop"],
        &["node/n1"],
        &["10.0.1.1"],
        &["deploy", "web"],
        &[],
    ];
    let all: Vec<String> = questions.iter().map(|args| said(args)).collect();
    insta::assert_snapshot!("errors", all.concat());
}

#[test]
fn yaml_says_what_json_says() {
    let json = explain(&["ns/shop", "-o", "json", "--members"]).json();
    let yaml = explain(&["ns/shop", "-o", "yaml", "--members"]).out;
    let read: serde_json::Value = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(read, json);
}

/// Whether a node enforces is known from the agent on it.
#[test]
fn enforcement() {
    let agent = |node: &str, ready: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: kube-system, name: weir-agent-{node}, labels: \
             {{app.kubernetes.io/name: weir, app.kubernetes.io/component: agent}}}}\nspec: {{nodeName: {node}, \
             hostNetwork: true}}\nstatus: {{podIPs: [{{ip: 172.16.0.1}}], conditions: [{{type: Ready, status: \
             '{ready}'}}]}}\n"
        )
    };
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: n1}\n";
    let says = |text: String| {
        let run = weir(folder(&text).path(), &["explain", "pod", "a", "-f", "m.yaml", "-o", "json"]);
        run.json()["subjects"][0]["enforcement"][0].clone()
    };
    let with = |extra: &str| says(format!("{pod}{extra}"));
    assert_eq!(with("")["enforced"], serde_json::Value::Null);
    assert_eq!(with(&agent("n1", "True"))["enforced"], true);
    assert_eq!(with(&agent("n1", "False"))["enforced"], false);
    assert_eq!(with(&agent("n2", "True"))["enforced"], false);
    let windows =
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {kubernetes.io/os: windows}}\n";
    let both = with(&(agent("n1", "True") + windows));
    assert_eq!((both["enforced"].as_bool(), both["node"].as_str()), (Some(false), Some("n1")));
}

#[test]
fn warnings_of_what_does_nothing() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {app: a}}
spec: {nodeName: n1, hostNetwork: true}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: nobody}}}]
    ports: [{port: 80}]
  - ports: [{port: nowhere}]
  egress: [{ports: [{port: 443}]}]
";
    let dir = folder(text);
    let warnings = |pod: &str| {
        let run = weir(dir.path(), &["explain", "pod", pod, "-f", "m.yaml", "-o", "json"]);
        let json = run.json();
        let all = json["subjects"][0]["warnings"].as_array().expect("a list").clone();
        all.iter().map(|w| w.as_str().expect("a text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("a"),
        [
            "default/p spec.ingress[1].ports[0]: no port of the pod is named nowhere: it matches nothing",
            "ingress peer matches no pod at present: pods with app=nobody in namespace default",
            "no egress rule has port 53/UDP: it cannot look up names",
            "it has no address in the manifests: ipBlock peers cannot be judged for it",
        ]
    );
    assert_eq!(
        warnings("host")[0],
        "its labels are those that default/p selects, which does nothing for a pod in its node's network (N70)"
    );
}
