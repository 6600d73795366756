//! What lint reads.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use weir_compiler::cidr::{Cidr, CidrSet};
use weir_source::inventory::live::Wanted;
use weir_source::{Kind, Problem, annotations};

use super::checks::World;
use super::codes::{WEIR001, WEIR002, WEIR114};
use super::finding::Finding;
use super::inventory::{Facts, Inventory};
use super::source::{Sources, YamlPath};
use crate::cluster::Cluster;

/// Policies and what they are about.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) cluster: Cluster,
    pub(crate) sources: Sources,
    pub(crate) notes: Vec<String>,
    /// The labels of namespaces are known: manifests have some, or it is a cluster.
    namespaces_known: bool,
}

impl Input {
    /// Reads manifests, a snapshot or a cluster.
    ///
    /// # Errors
    /// A path is not there, or the API server does not answer.
    pub(crate) fn load(input: &crate::input::Input) -> Result<Input> {
        let found = input.find(Wanted { workloads: false, services: true, nodes: true }, false)?;
        let namespaces_known = found.live
            || found.inventory.events.iter().any(|e| matches!(e, weir_source::Event::Namespace(_)));
        let mut cluster = Cluster::new(found);
        let mut sources = Sources::new(&cluster.places);
        let of_problems = cluster.problems.iter().filter_map(|p| Some(&p.place.as_ref()?.file));
        let files: BTreeSet<Arc<Path>> =
            cluster.places.values().map(|p| &p.file).chain(of_problems).cloned().collect();
        for file in files {
            if let Some(text) = cluster.sources.text(&file) {
                sources.add(&file, text);
            }
        }
        let mut notes = cluster.notes.clone();
        if cluster.policies.is_empty() {
            notes.push("there is no NetworkPolicy to look at".to_owned());
        } else if cluster.pods.is_empty() {
            notes.push(
                "there is no Pod and no workload: nothing is checked against pods (WEIR201 to WEIR216, but for DNS)"
                    .to_owned(),
            );
        }
        Ok(Input { cluster, sources, notes, namespaces_known })
    }

    /// What checks look at.
    pub(crate) fn world(&self, mut services: CidrSet) -> World<'_> {
        let nodes = &self.cluster.nodes;
        let facts = |state: &crate::cluster::PodState| Facts {
            declared: state.details.ports.iter().map(|p| (p.protocol, p.port)).collect(),
            windows: state.details.windows
                || state.pod.node.as_ref().and_then(|n| nodes.get(n)).is_some_and(|n| n.windows),
            calls_api: state.details.service_account,
        };
        let inventory = Inventory::new(self.cluster.pods.values(), self.cluster.namespaces.clone(), facts);
        let single = self
            .cluster
            .services
            .values()
            .flat_map(|s| &s.cluster_ips)
            .filter_map(|ip| Cidr::parse(&format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })));
        services = CidrSet::union([&services, &CidrSet::from_cidrs(single)]);
        let documents = &self.cluster.documents;
        World::new(self.cluster.policies.values(), inventory, documents, self.namespaces_known, services)
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
            let annotation = problem.reason.contains(annotations::LOG_ALLOWED);
            let help = if twice {
                "remove one of them"
            } else if annotation {
                "write \"true\" for each new connection, or \"1/100\" for one of a hundred"
            } else {
                "correct it; kubectl apply --dry-run=server shows what an API server makes of it"
            };
            Finding {
                code: match (twice, annotation) {
                    (true, _) => &WEIR002,
                    (_, true) => &WEIR114,
                    _ => &WEIR001,
                },
                policy: policy.map(|id| id.key.clone()),
                path: YamlPath::default(),
                span: problem.place.clone().map(|place| self.sources.whole(place)),
                message,
                why: None,
                help: Some(help.to_owned()),
            }
        };
        self.cluster.problems.iter().map(finding).collect()
    }
}
