//! What README.md shows of `weir` is what `weir` says.

use std::path::Path;
use std::process::Command;

/// Commands that are shown with what they print: indented, after a dollar sign, up to an empty line.
fn shown(readme: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("    $ ") else { continue };
        let output = lines.by_ref().take_while(|line| line.starts_with("    "));
        let output = output.map(|line| format!("{}\n", &line[4..])).collect();
        all.push((command.to_owned(), output));
    }
    all
}

#[test]
fn the_readmes_examples_print_what_they_show() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let examples = shown(&readme);
    assert!(!examples.is_empty());
    for (command, output) in examples {
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("weir"), "{command}");
        let out = Command::new(env!("CARGO_BIN_EXE_weir")).args(words).current_dir(&root).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), output, "{command}");
    }
}
