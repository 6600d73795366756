//! Running `weir`, and manifests to run it on.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::process::Command;

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Runs `weir` in a folder.
pub(crate) fn weir(dir: &Path, args: &[&str]) -> Run {
    let run =
        Command::new(env!("CARGO_BIN_EXE_weir")).args(args).current_dir(dir).output().expect("weir runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { code: run.status.code(), out: text(run.stdout), err: text(run.stderr) }
}

/// Runs `weir` in a folder, with this on its standard input.
pub(crate) fn weir_reads(dir: &Path, args: &[&str], text: &str) -> Run {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("weir runs");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let run = child.wait_with_output().expect("weir ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { code: run.status.code(), out: text(run.stdout), err: text(run.stderr) }
}

/// A folder with the manifest `m.yaml`.
pub(crate) fn folder(manifest: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("m.yaml"), manifest).expect("written");
    dir
}
