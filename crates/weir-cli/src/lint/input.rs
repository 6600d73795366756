//! What lint reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::{Result, bail};
use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{Event, Labels, ObjectKey, Pod, Policy};
use weir_compiler::policy::namespace_labels;
use weir_source::{Id, Kind, Place, Problem, manifests};

use super::checks::World;
use super::codes::{WEIR001, WEIR002};
use super::finding::Finding;
use super::inventory::{Facts, Inventory};
use super::source::{Sources, YamlPath};

/// Policies and what they are about.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) sources: Sources,
    pub(crate) notes: Vec<String>,
    namespaces: BTreeMap<String, Labels>,
    namespaces_known: bool,
    facts: HashMap<ObjectKey, Facts>,
    problems: Vec<Problem>,
}

impl Input {
    /// Reads manifests.
    ///
    /// # Errors
    /// A path is not there.
    pub(crate) fn load(paths: &[PathBuf]) -> Result<Input> {
        for path in paths {
            if let Err(error) = std::fs::metadata(path) {
                bail!("{}: {error}", path.display());
            }
        }
        let loaded = manifests::read(paths);
        let places: Vec<(Id, Place)> = loaded.events.iter().map(Id::of).zip(loaded.places).collect();
        let of_policies =
            places.iter().filter(|(id, _)| id.kind == Kind::Policy).map(|(id, at)| (&id.key, at));
        let mut input = Input {
            pods: Vec::new(),
            policies: Vec::new(),
            sources: Sources::read(of_policies),
            notes: Vec::new(),
            namespaces: BTreeMap::new(),
            namespaces_known: false,
            facts: facts(&places),
            problems: loaded.problems,
        };
        for event in loaded.events {
            match event {
                Event::Pod(pod) => input.pods.push(pod),
                Event::Policy(policy) => input.policies.push(policy),
                Event::Namespace(namespace) => {
                    let labels = namespace_labels(&namespace.name, &namespace.labels);
                    input.namespaces.insert(namespace.name, labels);
                    input.namespaces_known = true;
                }
                _ => {}
            }
        }
        let used =
            input.pods.iter().map(|p| &p.key.namespace).chain(input.policies.iter().map(|p| &p.namespace));
        let missing: BTreeSet<String> =
            used.filter(|n| !input.namespaces.contains_key(*n)).cloned().collect();
        for name in missing {
            input.namespaces.insert(name.clone(), namespace_labels(&name, &Labels::new()));
        }
        if input.policies.is_empty() {
            input.notes.push("there is no NetworkPolicy in the manifests".to_owned());
        } else if input.pods.is_empty() {
            input.notes.push(
                "there is no Pod in the manifests: nothing is checked against pods (WEIR201 to WEIR216, but for DNS)"
                    .to_owned(),
            );
        }
        Ok(input)
    }

    /// What checks look at.
    pub(crate) fn world(&self, services: CidrSet) -> World<'_> {
        let inventory =
            Inventory::new(self.pods.iter(), self.namespaces.clone(), &self.facts, |pod| !pod.ips.is_empty());
        World::new(self.policies.iter(), inventory, &self.sources, self.namespaces_known, services)
    }

    /// What the source of the objects had to complain about.
    pub(crate) fn complaints(&self) -> Vec<Finding> {
        let finding = |problem: &Problem| {
            let twice = problem.reason.contains("is there twice") || problem.reason.contains("is also in");
            let policy = problem.object.as_ref().filter(|id| id.kind == Kind::Policy);
            let message = match &problem.object {
                Some(id) => format!("{id}: {}", problem.reason),
                None => problem.reason.clone(),
            };
            Finding {
                code: if twice { &WEIR002 } else { &WEIR001 },
                policy: policy.map(|id| id.key.clone()),
                path: YamlPath::default(),
                span: problem.place.clone().map(|place| self.sources.whole(place)),
                message,
                why: None,
                help: Some(
                    if twice {
                        "remove one of them"
                    } else {
                        "correct it; kubectl apply --dry-run=server shows what an API server makes of it"
                    }
                    .to_owned(),
                ),
            }
        };
        self.problems.iter().map(finding).collect()
    }
}

/// What the manifests say of pods beside what policies look at.
fn facts(places: &[(Id, Place)]) -> HashMap<ObjectKey, Facts> {
    let pods: HashMap<(&PathBuf, u64), &ObjectKey> = places
        .iter()
        .filter(|(id, _)| id.kind == Kind::Pod)
        .map(|(id, place)| ((&place.file, place.line), &id.key))
        .collect();
    let files: BTreeSet<&PathBuf> = pods.keys().map(|(file, _)| *file).collect();
    let mut facts = HashMap::new();
    for file in files {
        let Ok(bytes) = std::fs::read(file) else { continue };
        for (kind, tree) in manifests::documents(&bytes) {
            if kind == Some(Kind::Pod)
                && let Some(key) = pods.get(&(file, tree.line))
                && let Some(spec) = tree.get("spec")
            {
                facts.insert((*key).clone(), Facts::of(spec));
            }
        }
    }
    facts
}
