//! `weir can --all` says of every policy example what its table says.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::weir;

/// (port, from, to) to whether it passes, as `expected.txt` has it.
fn table(file: &Path) -> BTreeMap<(String, String, String), bool> {
    let text = std::fs::read_to_string(file).expect("a table");
    let mut table = BTreeMap::new();
    let mut head: Vec<&str> = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0].starts_with(|c: char| c.is_ascii_digit()) {
            head = words;
            continue;
        }
        assert_eq!(words.len(), head.len(), "{}: {line}", file.display());
        for (word, to) in words.iter().zip(&head).skip(1).filter(|(word, _)| **word != ".") {
            assert!(["pass", "drop"].contains(word), "{}: {word}", file.display());
            table.insert((head[0].to_owned(), words[0].to_owned(), (*to).to_owned()), *word == "pass");
        }
    }
    table
}

#[test]
fn all_pairs_equal_the_tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-examples");
    let mut examples = 0;
    for example in std::fs::read_dir(folder).expect("policy-examples").map(|e| e.expect("an entry").path()) {
        if !example.is_dir() {
            continue;
        }
        let expected = table(&example.join("expected.txt"));
        assert!(!expected.is_empty(), "{}", example.display());
        let mut ports: Vec<&str> = expected.keys().map(|(port, ..)| port.as_str()).collect();
        ports.dedup();
        let mut args = vec!["can", "--all", "-f", ".", "-o", "json"];
        ports.iter().for_each(|port| args.extend(["--port", port]));
        let run = weir(&example, &args);
        assert_eq!(run.code, Some(0), "{}: {run:?}", example.display());
        // finished pods, and families that two pods do not share: in no table
        let told: Vec<&str> = run.err.lines().filter(|l| !l.contains("note: left out: ")).collect();
        assert_eq!(told, Vec::<&str>::new(), "{}", example.display());
        let rows = run.json();
        let rows = rows.as_array().expect("an array");
        let mut said = BTreeMap::new();
        for row in rows {
            let text = |field: &str| row[field].as_str().expect(field).to_owned();
            let port = format!("{}/{}", row["port"], text("protocol"));
            let key = (port, text("from"), text("to"));
            assert_eq!(
                said.insert(key, row["allowed"].as_bool().expect("allowed")),
                None,
                "{row} is there twice"
            );
        }
        // a table need not have all pods; what it has must be there
        let wrong: Vec<_> = expected.iter().filter(|(flow, pass)| said.get(*flow) != Some(*pass)).collect();
        assert!(wrong.is_empty(), "{}: expected {wrong:?}", example.display());
        examples += 1;
    }
    assert!(examples >= 5, "{examples}");
}

#[test]
fn one_question_and_all_ports_say_what_all_pairs_say() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-examples/02-three-tier-web");
    let all = weir(&example, &["can", "--all", "-f", ".", "-o", "json"]).json();
    let rows = all.as_array().expect("an array");
    assert!(rows.len() > 100, "{}", rows.len());
    let mut ranges = BTreeMap::new();
    for row in rows {
        let (from, to) = (row["from"].as_str().expect("from"), row["to"].as_str().expect("to"));
        let (port, protocol) = (row["port"].as_u64().expect("a port"), &row["protocol"]);
        let ports = ranges
            .entry((from, to))
            .or_insert_with(|| weir(&example, &["can", from, to, "-f", ".", "-o", "json"]).json());
        let of = ports["ports"].as_array().expect("ports").iter().filter(|r| r["protocol"] == *protocol);
        let mut at = of.filter(|r| {
            (r["first"].as_u64().expect("first")..=r["last"].as_u64().expect("last")).contains(&port)
        });
        assert_eq!(at.next().expect("a range")["allowed"], row["allowed"], "{row}");
        assert!(at.next().is_none(), "ranges overlap: {ports}");
    }
    for row in rows.iter().step_by(9) {
        let (from, to) = (row["from"].as_str().expect("from"), row["to"].as_str().expect("to"));
        let to = format!("{to}:{}/{}", row["port"], row["protocol"].as_str().expect("a protocol"));
        let one = weir(&example, &["can", from, &to, "-f", "."]);
        assert_eq!(one.code, Some(if row["allowed"] == true { 0 } else { 1 }), "{row} {one:?}");
    }
}
