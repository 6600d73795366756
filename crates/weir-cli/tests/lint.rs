//! `weir lint`: each code is documented, and has a policy that it is about and one that it is not about.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{folder, weir};
use serde_json::Value;

const DOCS: &str = include_str!("../../../docs/lint.md");

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint")
}

/// Codes as the program knows them, with severity and title.
fn codes() -> Vec<(String, String, String)> {
    let log = weir(&fixtures(), &["lint", "-f", "WEIR103.good.yaml", "-o", "sarif"]).json();
    let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().expect("rules");
    let text = |v: &Value| v.as_str().expect("a text").to_owned();
    rules
        .iter()
        .map(|rule| {
            let level = text(&rule["defaultConfiguration"]["level"]).replace("note", "info");
            (text(&rule["id"]), level, text(&rule["shortDescription"]["text"]))
        })
        .collect()
}

fn found(file: &str) -> BTreeSet<String> {
    let run = weir(&fixtures(), &["lint", "-f", file, "-o", "json"]);
    assert!(matches!(run.code, Some(0 | 1)), "{file}: {run:?}");
    let findings = run.json()["findings"].as_array().expect("findings").clone();
    findings.iter().map(|f| f["code"].as_str().expect("a code").to_owned()).collect()
}

#[test]
fn every_code_is_documented_and_nothing_else_is() {
    let documented: Vec<&str> = DOCS.lines().filter_map(|l| l.strip_prefix("### ")).collect();
    let known = codes();
    assert_eq!(documented, known.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>());
    for (id, severity, title) in known {
        let section = DOCS.split(&format!("\n### {id}\n")).nth(1).expect("a section");
        let section = section.split("\n#").next().expect("text");
        assert!(section.contains(&format!("**{severity}: {title}**")), "{id}: {section}");
        assert!(section.contains("\nInstead: "), "{id} says what to write instead");
        let run = weir(&fixtures(), &["lint", "--explain", &id.to_lowercase()]);
        assert!(run.out.starts_with(&id) && run.out.contains(&title), "{run:?}");
        assert!(!run.out.contains("\n#"), "only its own section: {}", run.out);
    }
}

#[test]
fn every_code_has_a_policy_that_it_is_about_and_one_that_it_is_not() {
    let files = std::fs::read_dir(fixtures()).expect("fixtures").count();
    let known = codes();
    assert_eq!(files, 2 * known.len());
    for (id, severity, _) in known {
        let (bad, good) = (found(&format!("{id}.bad.yaml")), found(&format!("{id}.good.yaml")));
        assert!(bad.contains(&id), "{id}: {bad:?}");
        assert!(!good.contains(&id), "{id}: {good:?}");
        let run = weir(&fixtures(), &["lint", "-f", &format!("{id}.bad.yaml"), "--fail-on", &severity]);
        assert_eq!(run.code, Some(1), "{run:?}");
    }
}

#[test]
fn findings_show_the_place_why_and_what_to_write() {
    let mut all = String::new();
    for (id, ..) in codes() {
        all.push_str(&weir(&fixtures(), &["lint", "-f", &format!("{id}.bad.yaml")]).out);
    }
    insta::assert_snapshot!("findings", all);
}

#[test]
fn json_has_the_documented_fields() {
    let run = weir(&fixtures(), &["lint", "-f", "WEIR202.bad.yaml", "-o", "json"]);
    insta::assert_snapshot!("json", run.out);
}

#[test]
fn sarif_is_a_log_of_version_2_1_0() {
    for (id, ..) in codes() {
        let run = weir(&fixtures(), &["lint", "-f", &format!("{id}.bad.yaml"), "-o", "sarif"]);
        sarif(&run.json());
    }
}

/// What the schema requires, and what readers of it rely on.
fn sarif(log: &Value) {
    assert_eq!(log["version"], "2.1.0");
    let [one] = &log["runs"].as_array().expect("runs")[..] else { panic!("one run") };
    let rules = one["tool"]["driver"]["rules"].as_array().expect("rules");
    assert!(one["tool"]["driver"]["name"].is_string());
    let ids: BTreeSet<&str> = rules.iter().map(|r| r["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), rules.len(), "ids are unique");
    let results = one["results"].as_array().expect("results");
    assert!(!results.is_empty());
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("small");
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().expect("a level")));
        assert!(!result["message"]["text"].as_str().expect("a message").is_empty());
        let physical = &result["locations"][0]["physicalLocation"];
        let uri = physical["artifactLocation"]["uri"].as_str().expect("an URI");
        assert!(uri.bytes().all(|b| b.is_ascii_graphic()), "{uri}");
        let region = &physical["region"];
        assert!(region["startLine"].as_u64().expect("a line") >= 1);
        if let Some(column) = region["startColumn"].as_u64() {
            assert!(column >= 1 && region["endColumn"].as_u64().expect("an end") > column, "{region}");
        }
    }
}

const SHOP: &str = "\
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-1, labels: {app: web}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: wbe}}
    - {}
";

#[test]
fn comments_and_flags_silence_a_finding() {
    let codes = |manifest: &str, args: &[&str]| {
        let dir = folder(manifest);
        let run = weir(dir.path(), &[&["lint", "-f", "m.yaml", "-o", "json"], args].concat());
        let found = run.json();
        let codes: Vec<String> = found["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .map(|f| f["code"].as_str().expect("code").to_owned())
            .collect();
        (codes.join(" "), found["summary"]["ignored"].as_u64().expect("a number"), run.code)
    };
    let all = "WEIR111 WEIR202 WEIR103".to_owned();
    assert_eq!(codes(SHOP, &[]), (all, 0, Some(0)));
    assert_eq!(codes(SHOP, &["--ignore", "WEIR111"]), ("WEIR202 WEIR103".to_owned(), 1, Some(0)));
    assert_eq!(codes(SHOP, &["--severity", "warning"]), ("WEIR202".to_owned(), 0, Some(0)));
    assert_eq!(codes(SHOP, &["--severity", "error", "--exit-code"]), (String::new(), 0, Some(0)));
    assert_eq!(codes(SHOP, &["--exit-code"]).2, Some(1));
    let here = SHOP.replace("    - {}", "    - {} # weir: ignore WEIR103, everybody may");
    assert_eq!(codes(&here, &[]), ("WEIR111 WEIR202".to_owned(), 1, Some(0)));
    let above = SHOP.replace("        - podS", "        # weir: ignore WEIR202\n        - podS");
    assert_eq!(codes(&above, &[]), ("WEIR111 WEIR103".to_owned(), 1, Some(0)));
    let other = SHOP.replace("    - {}", "    - {} # weir: ignore WEIR104");
    assert_eq!(codes(&other, &[]).1, 0);
}

#[test]
fn the_examples_are_clean_but_for_what_they_leave_to_the_reader() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-examples");
    let mut seen = BTreeSet::new();
    for example in std::fs::read_dir(examples).expect("examples").map(|e| e.expect("an entry").path()) {
        if example.is_dir() {
            let run = weir(&example, &["lint", "-f", ".", "-o", "json", "--severity", "warning"]);
            for finding in run.json()["findings"].as_array().expect("findings") {
                let name = example.file_name().expect("a name").to_string_lossy().into_owned();
                seen.insert(format!("{} {name}", finding["code"].as_str().expect("a code")));
            }
        }
    }
    // names are looked up by another policy there, or addresses are written down; metrics ports are rarely declared
    let known = [
        "WEIR205 21-kube-system-baseline",
        "WEIR207 08-named-ports",
        "WEIR207 14-egress-partner-range",
        "WEIR207 20-api-server-clients",
        "WEIR207 23-quarantine",
    ];
    assert_eq!(seen, known.map(str::to_owned).into());
}

#[test]
fn bad_input_is_one_clear_error() {
    let dir = folder("a: [\n");
    let run = weir(dir.path(), &["lint", "-f", "m.yaml"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.out.starts_with("error[WEIR001]: not readable as YAML or JSON"), "{run:?}");
    assert!(run.out.contains("--> m.yaml:"), "{run:?}");
    for args in [
        &["lint", "-f", "none"][..],
        &["lint"],
        &["lint", "-f", ".", "--service-cidr", "ten"],
        &["lint", "--explain", "WEIR999"],
    ] {
        let run = weir(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!run.err.is_empty());
    }
    let hostile = folder(&SHOP.replace("app: wbe", "\"a\\e[31m\\u202eb\": \"\\u0007\""));
    let run = weir(hostile.path(), &["lint", "-f", "."]);
    assert!(!run.out.contains(['\x1b', '\u{202e}', '\u{7}']), "{run:?}");
    assert!(run.out.contains("WEIR005"), "{run:?}");
    let empty = folder("");
    let run = weir(empty.path(), &["lint", "-f", "m.yaml"]);
    assert_eq!((run.code, run.out.as_str()), (Some(0), "nothing found in 0 policies\n"));
}
