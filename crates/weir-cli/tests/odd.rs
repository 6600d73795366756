//! Names that nobody should have: nothing panics, nothing steers a terminal, and pictures stay pictures.

mod common;

use common::{Run, folder, weir};
use proptest::prelude::*;
use serde_json::json;

/// Texts that somebody may take for something else.
fn odd() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        3 => "[a-z0-9.-]{1,6}",
        1 => any::<char>().prop_map(String::from),
        2 => prop::sample::select(vec![
            "\u{1b}[31m", "\n", "\r", "\t", "\u{0}", "\u{202e}", "\u{200b}", "\"", "\\", "'", "`", "<b>", "&amp;", "]", "}", "{",
            "-->", ";", ":", "/", "//", "#", "%", "*", "é", "\u{9b}", "\u{feff}", "ns/", "svc/", "deploy/", "internet",
            "10.0.0.0/8", "::", "[", "--", "- ", "|", "true", "~", " ",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(pieces, 1..5).prop_map(|all| all.concat())
}

/// What is printed has no control characters but line ends, and was not printed by a panic.
fn check(run: &Run, args: &[&str]) -> Result<(), TestCaseError> {
    prop_assert!(matches!(run.code, Some(0..=2)), "{:?}: {:?}", args, run);
    prop_assert!(!run.err.contains("panicked"), "{:?}: {}", args, run.err);
    for text in [&run.out, &run.err] {
        let bad = |c: &char| {
            (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202e}' | '\u{200b}' | '\u{feff}')
        };
        prop_assert_eq!(text.chars().find(bad), None, "{:?}: {:?}", args, text);
    }
    Ok(())
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12).min(2000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn names_of_any_form(
        namespace in odd(), pod in odd(), workload in odd(), policy in odd(), node in odd(), port in odd(), key in odd(),
        value in odd(), cidr in odd(), question in odd(),
    ) {
        let objects = [
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": pod, "labels": {&key: value},
                "ownerReferences": [{"kind": workload, "name": workload, "controller": true}]},
                "spec": {"nodeName": node, "containers": [{"ports": [{"name": port, "containerPort": 80}]}]},
                "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": cidr}]}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "b"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "status": {"addresses": [{"address": cidr}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": pod},
                "spec": {"selector": {&key: value}, "ports": [{"name": port, "port": 80, "targetPort": port}]}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": workload},
                "spec": {"selector": {"matchLabels": {&value: key}}, "template": {"metadata": {"labels": {&value: key}}, "spec": {}}}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": policy},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress", value], "ingress": [{"from": [
                    {"podSelector": {"matchLabels": {&key: value}}}, {"ipBlock": {"cidr": cidr, "except": [value]}}],
                    "ports": [{"port": port}, {"port": 80, "protocol": value}], &key: value}]}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": "good"},
                "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {&key: value}}}],
                    "ports": [{"port": port}]}]}}),
        ];
        let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
        let dir = folder(&text);
        let (a, b) = (format!("{namespace}/{pod}"), format!("{namespace}/b"));
        // what begins with - is a flag, and a NUL cannot be an argument
        let arg = |text: &str| format!("x{text}")[usize::from(!text.starts_with('-'))..].replace('\u{0}', "0");
        let (pod_name, other, question, node, service) =
            (arg(&a), arg(&format!("{b}:80")), arg(&question), format!("node/{}", arg(&node)), format!("svc/{}", arg(&pod)));
        let mut questions: Vec<Vec<&str>> = vec![
            vec!["can", &pod_name, &other],
            vec!["can", &pod_name, &question],
            vec!["can", &question, &other, "-o", "json"],
            vec!["can", &node, &other],
            vec!["can", &pod_name, &service],
            vec!["can", "--all", "--port", "80"],
            vec!["snapshot"],
            vec!["explain", &question],
        ];
        for output in ["wide", "json", "yaml", "nft", "dot", "mermaid"] {
            questions.push(vec!["explain", &pod_name, "-o", output, "--members"]);
        }
        for args in questions {
            let run = weir(dir.path(), &[&args[..], &["-f", "m.yaml"]].concat());
            check(&run, &args)?;
        }
    }
}

/// What names may not break out of.
#[test]
fn pictures_and_nft_text_quote_names() {
    let name = "a\"];\n}--> <b>`";
    let pods = [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"l": "x"}}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"l": name}}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "q"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"l": name}}}]}]}}),
    ];
    let text: String = pods.iter().map(|object| format!("---\n{object}\n")).collect();
    let dir = folder(&text);
    let out = |output: &str| weir(dir.path(), &["explain", "ns/default", "-f", "m.yaml", "-o", output]).out;
    let dot = out("dot");
    assert!(dot.contains(r#"l=a\"];\\u{a}}--> <b>`"#), "{dot}");
    assert!(dot.lines().all(|l| l.starts_with("  ") || l == "digraph weir {" || l == "}"), "{dot}");
    let mermaid = out("mermaid");
    assert!(mermaid.contains("l=a#34;#93;#59;#92;u#123;a#125;#125;--#62; #60;b#62;#96;"), "{mermaid}");
    let nft = out("nft");
    assert_eq!(nft.matches("table inet weir {").count(), 1, "{nft}");
    assert!(!nft.contains(name) && !nft.contains("\n}-->"), "{nft}");
}
