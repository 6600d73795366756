//! The program as it is called: completions, as a plugin of kubectl, wrongly.

mod common;

use std::process::Command;

use common::{folder, weir};

#[test]
fn completions_for_four_shells() {
    let dir = folder("");
    for (shell, part) in [
        ("bash", "complete -F _weir"),
        ("zsh", "#compdef weir"),
        ("fish", "complete -c weir"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let run = weir(dir.path(), &["completion", shell]);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{shell}");
        assert!(run.out.contains(part) && run.out.contains("snapshot"), "{shell}: {}", run.out);
    }
    assert_eq!(weir(dir.path(), &["completion", "tcsh"]).code, Some(2));
}

#[test]
fn as_a_plugin_it_is_called_what_people_type() {
    let dir = folder("");
    let plugin = dir.path().join("kubectl-weir").with_extension(std::env::consts::EXE_EXTENSION);
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &plugin).expect("copied");
    let run = Command::new(&plugin).arg("can").output().expect("it runs");
    let text = String::from_utf8(run.stderr).expect("UTF-8");
    assert_eq!(run.status.code(), Some(2));
    assert!(text.contains("Usage: kubectl weir can"), "{text}");
    let run = weir(dir.path(), &["can"]);
    assert!(run.err.contains("Usage: weir can"), "{}", run.err);
}

#[test]
fn near_commands_are_suggested() {
    let dir = folder("");
    let run = weir(dir.path(), &["snapshoot"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("'snapshot'"), "{}", run.err);
}
