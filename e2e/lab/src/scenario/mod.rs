//! Scenarios: a cluster, and what happens to it step by step, with packets after each step.
//!
//! ```text
//!   file ──> Scenario { network, objects, steps }
//!                │                       │ do: label, apply, delete, phase, addresses, replug, mtu, restart
//!                └──> Lab <──────────────┘
//!                      └──> all pairs against the evaluator, and against the step's own table
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Machines;
use crate::expectation::Expectation;
use crate::lab::{Lab, Options};
use crate::network::{Fabric, Links};
use crate::objects::{Family, Objects};
use crate::ports::Port;
use crate::report::Report;

mod action;

pub use action::Action;

/// A file of a scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What is shown, in a line.
    pub name: String,
    /// How pods are joined to their nodes.
    #[serde(default)]
    pub links: Links,
    /// How nodes are joined to each other.
    #[serde(default)]
    pub fabric: Fabric,
    /// Addresses for pods without any.
    pub family: Option<Family>,
    /// What takes part in probes besides pods.
    #[serde(default)]
    pub machines: Machines,
    /// What to probe after each step.
    #[serde(deserialize_with = "ports")]
    pub ports: Vec<Port>,
    /// The cluster at the beginning.
    pub objects: Vec<Value>,
    /// What happens; each step's packets are held against the evaluator.
    pub steps: Vec<Step>,
}

/// A step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it shows.
    pub name: String,
    /// What happens. Changes of objects that follow each other are one change.
    #[serde(default, rename = "do")]
    pub actions: Vec<Action>,
    /// What passes, as somebody who is not the evaluator sees it.
    #[serde(default)]
    pub expect: String,
}

/// What became of a step.
#[derive(Debug)]
pub struct StepResult {
    /// Its name.
    pub name: String,
    /// All flows.
    pub report: Report,
    /// Where packets differ from the step's own table.
    pub wrong: Vec<String>,
    /// How long it took, packets and all.
    pub took: Duration,
}

impl StepResult {
    /// Packets do what the evaluator says and the table.
    pub fn is_good(&self) -> bool {
        self.wrong.is_empty() && !self.report.differs()
    }
}

impl Scenario {
    /// Reads a file.
    pub fn read(file: &Path) -> Result<Scenario> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let scenario: Scenario =
            serde_saphyr::from_str(&text).with_context(|| format!("{} is no scenario", file.display()))?;
        for step in &scenario.steps {
            let read = Expectation::parse(&step.expect);
            read.with_context(|| format!("{}, step {:?}", file.display(), step.name))?;
        }
        Ok(scenario)
    }

    /// Plays it, in a folder of its own, with this agent. Ends after the first step that is not good.
    ///
    /// `links`, if given, take the place of the scenario's own.
    pub fn play(
        &self,
        agent: Option<PathBuf>,
        dir: PathBuf,
        links: Option<&Links>,
        mut each: impl FnMut(&StepResult),
    ) -> Result<Vec<StepResult>> {
        let options = Options {
            links: links.unwrap_or(&self.links).clone(),
            fabric: self.fabric,
            machines: self.machines,
            family: self.family,
            agent,
            agent_arguments: Vec::new(),
            dir,
        };
        let mut lab = Lab::start(Objects::from_values(self.objects.clone())?, options)?;
        let mut results: Vec<StepResult> = Vec::new();
        for step in &self.steps {
            let began = Instant::now();
            action::carry_out(&mut lab, &step.actions).with_context(|| format!("step {:?}", step.name))?;
            let report = lab.report(&self.ports)?;
            let wrong = Expectation::parse(&step.expect)?.compare(&report);
            results.push(StepResult { name: step.name.clone(), report, wrong, took: began.elapsed() });
            let Some(result) = results.last() else { break };
            each(result);
            if !result.is_good() {
                break;
            }
        }
        Ok(results)
    }
}

fn ports<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Port>, D::Error> {
    let words: Vec<String> = Vec::deserialize(from)?;
    words.iter().map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

/// The scenarios that these paths name: files, and the `.yaml` files of folders.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| file.extension().is_some_and(|e| e == "yaml"))
            .collect();
        anyhow::ensure!(!found.is_empty(), "{} has no .yaml file", path.display());
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenarios_of_the_repository_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files = files(&[folder]).unwrap();
        assert!(files.len() >= 5);
        for file in files {
            let scenario = Scenario::read(&file).unwrap();
            assert!(!scenario.steps.is_empty() && !scenario.ports.is_empty(), "{}", file.display());
            Objects::from_values(scenario.objects).unwrap();
        }
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.yaml");
        std::fs::write(&file, "{name: x, ports: [80/TCP], objects: [], steps: [{name: y, do: [{jump: 1}]}]}")
            .unwrap();
        assert!(format!("{:#}", Scenario::read(&file).unwrap_err()).contains("jump"));
    }
}
