//! Input as people write it: incomplete, wrong, hostile.

mod common;

use common::{folder, weir};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-7d9, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: db-0, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0}
";
const ASSUMED: &str =
    "weir: note: not in the manifests, assumed without labels of their own: Namespace default, shop\n";

fn policy(spec: &str) -> String {
    format!(
        "{PODS}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: shop, name: db}}\nspec:\n  podSelector: {{matchLabels: {{app: db}}}}\n{spec}"
    )
}

#[test]
fn pods_by_hand_need_neither_node_nor_address() {
    let dir = folder(&policy("  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]\n"));
    let run = weir(dir.path(), &["can", "web-7d9", "db-0:80", "-n", "shop", "-f", "m.yaml"]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ASSUMED), "{}", run.out);
    let run = weir(dir.path(), &["can", "db-0", "shop/db-0:80", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(1), "default/db-0 is meant, which may not: {}", run.out);
}

#[test]
fn ip_blocks_are_not_judged_for_pods_without_addresses() {
    for (block, code, told) in [
        ("{cidr: 192.0.2.0/24}", 1, true),
        ("{cidr: 0.0.0.0/0}", 0, false),
        ("{cidr: 0.0.0.0/0, except: [192.0.2.0/24]}", 1, true),
        ("{cidr: 'fd00::/8'}", 1, false),
    ] {
        let dir = folder(&policy(&format!("  ingress: [{{from: [{{ipBlock: {block}}}]}}]\n")));
        let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:80", "-f", "."]);
        assert_eq!(run.code, Some(code), "{block}: {run:?}");
        let note = "shop/web-7d9 has no address in the manifests: ipBlock peers in ingress of shop/db-0";
        assert_eq!(run.err.contains(note), told, "{block}: {run:?}");
        let all = weir(dir.path(), &["can", "--all", "-f", ".", "--port", "80", "-o", "json"]);
        let note = "3 pods have no address in the manifests: ipBlock peers cannot be judged for them";
        assert_eq!((all.code, all.err.contains(note)), (Some(0), told), "{block}: {all:?}");
    }
}

#[test]
fn unknown_names_suggest_near_ones() {
    let dir = folder(PODS);
    let err = |args: &[&str]| {
        let run = weir(dir.path(), &[&["can"], args, &["-f", "m.yaml"]].concat());
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{args:?}");
        run.err.strip_prefix(ASSUMED).unwrap_or(&run.err).to_owned()
    };
    assert_eq!(
        err(&["shop/web-7d8", "shop/db-0"]),
        "weir: no pod shop/web-7d8 in the manifests; did you mean shop/web-7d9?\n"
    );
    assert_eq!(
        err(&["shop/web", "db"]),
        "weir: no pod shop/web in the manifests; did you mean shop/web-7d9?\n\
         weir: no pod default/db in the manifests; did you mean default/db-0?\n"
    );
    assert_eq!(
        err(&["web-7d9", "db-0"]),
        "weir: no pod default/web-7d9 in the manifests; did you mean shop/web-7d9?\n"
    );
    assert!(err(&["xyz", "db-0"]).contains("none of the 3 pods there is named like it"));
    assert!(err(&["shop/db-0", "db-0:http"]).contains("default/db-0 has no port named \"http\""));
    assert!(err(&["shop/db-0", "db-0:80/ICMP"]).contains("protocol \"ICMP\" is not TCP, UDP or SCTP"));
    assert!(err(&["shop/db-0", "db-0:0"]).contains("port \"0\" is not a number from 1 to 65535"));
    assert!(err(&["shop/db-0", "db-0:"]).contains("there is no port after the colon"));
    assert!(err(&["a/b/c", "db-0"]).contains("\"b\" in \"a/b/c\" is no kind: write NAMESPACE/deploy/NAME"));
    assert!(err(&["a/b/c/d", "db-0"]).contains("write NAMESPACE/NAME"));
}

#[test]
fn what_is_not_there_is_an_error() {
    let dir = folder("kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\n");
    let run = weir(dir.path(), &["can", "a", "b", "-f", "none.yaml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.starts_with("weir: none.yaml: "), "{}", run.err);
    let run = weir(dir.path(), &["can", "a", "b", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("no Pod in the manifests"), "{}", run.err);
    for args in [&["can", "a", "-f", "."][..], &["can", "--all", "a", "b", "-f", "."]] {
        assert_eq!(weir(dir.path(), args).code, Some(2), "{args:?}");
    }
}

#[test]
fn a_broken_policy_is_named_with_its_line_and_the_rest_counts() {
    let rules = "  ingress:\n  - from: [{ipBlock: {cidr: ten}}]\n  - from: [{podSelector: {}}]\n    ports: [{port: 80}]\n";
    let dir = folder(&format!("{}---\nkind: Pod\nmetadata: {{name: [}}\n", policy(rules)));
    let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:80", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let warnings: Vec<&str> = run.err.lines().filter(|l| l.contains("warning")).collect();
    assert_eq!(warnings.len(), 2, "{run:?}");
    assert!(warnings[0].starts_with("weir: warning: m.yaml:24: not readable as YAML"), "{warnings:?}");
    assert!(
        warnings[1].starts_with(
            "weir: warning: m.yaml:19: NetworkPolicy shop/db: spec.ingress[0].from[0].ipBlock.cidr: \"ten\""
        ),
        "{warnings:?}"
    );
    let excerpt = "\n   |\n19 |   - from: [{ipBlock: {cidr: ten}}]\n   |                       ^^^^\n";
    assert!(run.err.contains(excerpt), "{}", run.err);
    let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:81", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(1));
    assert!(run.out.contains("✘ ports[0]  80/TCP"), "{}", run.out);
}

#[test]
fn a_policy_that_cannot_be_read_at_all_closes_what_it_selects() {
    let closed = "cannot be read: allows nothing";
    for (spec, why, line) in [
        ("  policyTypes: [Inwards]\n  ingress: [{}]\n", closed, 19),
        ("  inwards: [{}]\n  ingress: [{}]\n", closed, 19),
        ("  ingress: 7\n", "has no ingress rules, see the warning about it", 18),
    ] {
        let dir = folder(&policy(spec));
        let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:80", "-f", "m.yaml"]);
        assert_eq!(run.code, Some(1), "{spec}: {run:?}");
        assert!(run.out.contains(&format!("    shop/db  {why}  m.yaml:{line}\n")), "{spec}: {run:?}");
        assert!(run.err.contains("weir: warning: m.yaml:1"), "{spec}: {run:?}");
    }
}

#[test]
fn n71_without_a_node_it_is_not_known_who_is_the_own_one() {
    let dir = folder(&policy(
        "  ingress: []\n  policyTypes: [Ingress]\n---\napiVersion: v1\nkind: Pod\n\
        metadata: {name: host}\nspec: {hostNetwork: true}\n",
    ));
    let run = weir(dir.path(), &["can", "host", "shop/db-0:80", "-f", "."]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.err.contains("it is not known whether shop/db-0 runs on that node"), "{run:?}");
    let run = weir(dir.path(), &["can", "shop/db-0", "host:80", "-f", "."]);
    assert_eq!((run.code, run.err.contains("runs on that node")), (Some(0), false), "{run:?}");
    let run = weir(dir.path(), &["can", "--all", "-f", "."]);
    assert!(run.err.contains("do not say of all pods on which node they are"), "{run:?}");
}

#[test]
fn nothing_of_the_manifests_steers_the_terminal() {
    let rules = "  ingress: [{from: [{podSelector: {matchLabels: {app: \"x\\e[31m\\n\\u202e\"}}}]}]\n";
    let dir = folder(&policy(rules));
    let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:80", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(1));
    assert!(run.out.contains("podSelector app=x\\u{1b}[31m\\u{a}\\u{202e}"), "{}", run.out);
    assert!(!run.out.contains('\x1b') && !run.err.contains('\x1b'), "no colours either, this is no terminal");
    let run = weir(dir.path(), &["can", "shop/a\x1b[31m", "shop/db-0", "-f", "m.yaml"]);
    assert!(run.err.contains("\\u{1b}") && !run.err.contains('\x1b'), "{run:?}");
}

#[test]
fn n75_n77_pods_of_which_nothing_can_be_said_are_left_out() {
    let more = "---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: job}
status: {phase: Succeeded, podIPs: [{ip: 10.0.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: old, creationTimestamp: '2026-01-01T00:00:00Z'}
status: {podIPs: [{ip: 10.0.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: new, creationTimestamp: '2026-01-02T00:00:00Z'}
status: {podIPs: [{ip: 10.0.0.9}]}
";
    let dir = folder(&format!("{PODS}{more}"));
    let run = weir(dir.path(), &["can", "--all", "--port", "80", "-f", ".", "-o", "json"]);
    assert_eq!(run.json().as_array().expect("an array").len(), 4 * 3, "{}", run.out);
    assert!(run.err.contains("note: left out: pod shop/job: it has finished"), "{}", run.err);
    assert!(run.err.contains("note: left out: pod shop/old: its addresses are by now"), "{}", run.err);
    let run = weir(dir.path(), &["can", "shop/new", "shop/job:80", "-f", "."]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("no answer for pod shop/job: it has finished"), "{}", run.err);
}

#[test]
fn families_that_two_pods_do_not_share() {
    let status = |ip: &str| format!("status: {{podIPs: [{{ip: '{ip}'}}]}}\n");
    let pod = |name: &str| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n");
    let text = [pod("four"), status("10.0.0.1"), pod("six"), status("fd00::6"), pod("any")].concat();
    let dir = folder(&text);
    let run = weir(dir.path(), &["can", "four", "six:80", "-f", "."]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("default/four has IPv4 only and default/six IPv6 only"), "{}", run.err);
    let run = weir(dir.path(), &["can", "any", "six:80", "-f", ".", "-o", "json"]);
    assert_eq!(run.json()["families"], serde_json::json!({"IPv6": true}));
    let run = weir(dir.path(), &["can", "--all", "--port", "80", "-f", "."]);
    assert_eq!(run.out.lines().count(), 1 + 4, "{}", run.out);
    assert!(run.err.contains("left out: 2 pairs of pods"), "{}", run.err);
}

#[test]
fn what_an_api_server_refuses_is_named_and_the_rest_counts() {
    let spec = "  ingress:\n  - from: [{podSelector: {matchLabels: {app: 'not a value'}}}]\n    ports: [{port: HTTP}]\n  \
                - from: [{podSelector: {matchLabels: {app: web}}}]\n";
    let dir = folder(&policy(spec).replace("name: db}\nspec", "name: Db_1}\nspec"));
    let run = weir(dir.path(), &["can", "shop/web-7d9", "shop/db-0:80", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let warnings: Vec<&str> = run.err.lines().filter(|l| l.contains("warning")).collect();
    assert_eq!(warnings.len(), 3, "{}", run.err);
    for (warning, (line, path)) in warnings.iter().zip([
        (15, "metadata.name: \"Db_1\" is no name"),
        (19, "spec.ingress[0].from[0].podSelector.matchLabels.app: \"not a value\" is no value of a label"),
        (20, "spec.ingress[0].ports[0].port: \"HTTP\" is no name of a port"),
    ]) {
        let told = format!("weir: warning: m.yaml:{line}: NetworkPolicy shop/Db_1: {path}");
        assert!(warning.starts_with(&told), "{warning}");
        assert!(
            warning.ends_with("an API server refuses the policy, here it counts as written"),
            "{warning}"
        );
    }
}
