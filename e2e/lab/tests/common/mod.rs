//! What the tests share: manifests in short, and labs in folders that vanish.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod talk;
pub mod traffic;

use std::path::PathBuf;

use tempfile::TempDir;
use weir_lab::network::PodLinks;
use weir_lab::objects::{Family, Objects};
use weir_lab::{Lab, Options, agent};

/// Objects from YAML, the way users give them.
pub fn objects(yaml: &str) -> Objects {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("test.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let (objects, notes) = Objects::read(&[file]).expect("manifests");
    assert_eq!(notes, Vec::<String>::new());
    objects
}

/// A lab, and the folder that it lives in.
pub struct TestLab {
    pub lab: Lab,
    _dir: TempDir,
}

/// Agents or none, and how pods are linked.
pub fn start(objects: Objects, agent: Option<PathBuf>, links: PodLinks, family: Option<Family>) -> TestLab {
    start_with(objects, Options { links: links.into(), family, agent, ..Options::default() })
}

/// With all there is to choose; the folder is made here.
pub fn start_with(objects: Objects, options: Options) -> TestLab {
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options { dir: dir.path().to_owned(), ..options };
    TestLab { lab: Lab::start(objects, options).expect("the lab starts"), _dir: dir }
}

/// With agents.
pub fn with_agents(objects: Objects) -> TestLab {
    start(objects, Some(agent::find().expect("cargo build -p weir-agent")), PodLinks::Routed, None)
}
