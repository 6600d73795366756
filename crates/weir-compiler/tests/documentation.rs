//! Every statement about NetworkPolicy has a test, or says why not.
//!
//! In `docs/semantics.md` a statement N or a T of NetworkPolicy has one of these nested items:
//! `Tests:` with functions and scripts that are in this workspace, `Not observable from outside:` with the
//! reason, or `Not yet:`, of which there are only as many as are listed here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What is planned, and has no test for that reason.
const NOT_YET: [&str; 0] = [];
/// The Ts of ClusterNetworkPolicy.
const NOT_OF_NETWORK_POLICY: [&str; 2] = ["T2", "T3"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[derive(Default)]
struct Statement {
    tests: Vec<String>,
    reason: Option<String>,
    not_yet: bool,
}

/// The statements of the document with what proves them.
fn statements(text: &str) -> BTreeMap<String, Statement> {
    let mut all = BTreeMap::new();
    let mut current: Option<String> = None;
    let mut items: Vec<String> = Vec::new();
    let mut finish = |name: Option<String>, items: &mut Vec<String>| {
        let Some(name) = name else { return items.clear() };
        let mut statement = Statement::default();
        for item in items.drain(..) {
            if let Some(tests) = item.strip_prefix("Tests:") {
                statement.tests.extend(tests.split('`').skip(1).step_by(2).map(str::to_owned));
                assert!(!statement.tests.is_empty(), "{name} has `Tests:` that name none");
            } else if let Some(why) = item.strip_prefix("Not observable from outside:") {
                assert!(why.trim().len() > 15, "{name} does not say why: {why:?}");
                statement.reason = Some(why.trim().to_owned());
            } else if let Some(when) = item.strip_prefix("Not yet:") {
                assert!(when.trim().len() > 15, "{name} does not say when: {when:?}");
                statement.not_yet = true;
            }
        }
        assert!(all.insert(name.clone(), statement).is_none(), "{name} is there twice");
    };
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("- **") {
            let name = rest.split("**").next().expect("split has a first part").to_owned();
            finish(current.replace(name), &mut items);
        } else if line.starts_with('#') {
            finish(current.take(), &mut items);
        } else if let Some(item) = line.strip_prefix("  - ") {
            items.push(item.to_owned());
        } else if let (Some(item), true) = (items.last_mut(), line.starts_with("    ")) {
            item.push(' ');
            item.push_str(line.trim());
        }
    }
    finish(current, &mut items);
    all
}

/// The names of all functions that are tests, anywhere in the workspace.
fn test_functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root().join("crates"), root().join("e2e")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let mut is_test = false;
                for line in text.lines().map(str::trim) {
                    if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                        is_test = true;
                    } else if let Some(name) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
                    {
                        if is_test {
                            found.insert(name.split(['(', '<']).next().expect("a part").to_owned());
                        }
                        is_test = false;
                    }
                }
            }
        }
    }
    found
}

#[test]
fn every_statement_has_a_test_or_says_why_not() {
    let text = std::fs::read_to_string(root().join("docs/semantics.md")).expect("docs/semantics.md");
    let statements = statements(&text);
    let functions = test_functions();
    assert!(functions.len() > 100, "{functions:?}");
    let count = |letter: char| statements.keys().filter(|n| n.starts_with(letter)).count();
    assert_eq!((count('N'), count('U'), count('T'), count('C')), (75, 30, 20, 19));

    let mut wrong = Vec::new();
    for (name, statement) in &statements {
        for test in &statement.tests {
            let is_there =
                if test.contains('/') { root().join(test).is_file() } else { functions.contains(test) };
            if !is_there {
                wrong.push(format!("{name} cites {test}, which is not there"));
            }
        }
        let must = name.starts_with('N') || name.starts_with('T');
        let not_yet = NOT_YET.contains(&name.as_str());
        if statement.not_yet != not_yet {
            wrong.push(format!("{name} is among NOT_YET or says `Not yet:`, and not both"));
        }
        let has = !statement.tests.is_empty() || statement.reason.is_some() || statement.not_yet;
        if must && !has && !NOT_OF_NETWORK_POLICY.contains(&name.as_str()) {
            wrong.push(format!("{name} has neither a test nor `Not observable from outside: why`"));
        }
        if statement.reason.is_some() && !statement.tests.is_empty() {
            wrong.push(format!("{name} is not observable, and has tests"));
        }
    }
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
}

/// What SECURITY.md says is shown by tests is.
#[test]
fn tests_that_security_cites_are_there() {
    let text = std::fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let functions = test_functions();
    let quoted = text.split('`').skip(1).step_by(2);
    let name = |word: &&str| {
        word.matches('_').count() >= 1
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let cited: BTreeSet<&str> = quoted.filter(name).collect();
    assert!(cited.len() >= 20, "{cited:?}");
    let missing: Vec<&&str> = cited.iter().filter(|name| !functions.contains(**name)).collect();
    assert!(missing.is_empty(), "SECURITY.md cites tests that are not there: {missing:?}");
}

/// The document is read as it is meant to be.
#[test]
fn what_a_statement_cites_is_found() {
    let text = "- **N1** a\n  - Weir: b\n  - Tests: `x_y`,\n    `dir/z.sh`.\n- **N2** c\n  - Not observable from outside: it is a\n    definition.\n- **T3** d\n  - Not yet: comes with something else.\n# E\n- **T4** f\n";
    let all = statements(text);
    assert_eq!(all["N1"].tests, ["x_y", "dir/z.sh"]);
    assert_eq!(all["N2"].reason.as_deref(), Some("it is a definition."));
    assert!(all["T3"].not_yet && !all["T4"].not_yet && all["T4"].tests.is_empty());
}
