//! The two states that are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Result, bail};
use weir_compiler::object::{AUDIT, Event, ObjectKey};
use weir_source::inventory::live::Wanted;
use weir_source::{Id, Kind};

use crate::cluster::Cluster;
use crate::input::{Answerer, Found, Input};

/// Before and after.
#[derive(Debug)]
pub(super) struct States {
    pub(super) before: Answerer,
    pub(super) after: Answerer,
}

/// Which objects differ.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
    /// Pods that are in one state only.
    pub(super) pods_added: usize,
    pub(super) pods_removed: usize,
}

/// Reads what is there, and what of it new manifests replace. With `prune`, what they do not have is gone:
/// policies, and Namespaces and Pods if they have any of these.
///
/// # Errors
/// A path is not there, the API server does not answer, or there is nothing new.
pub(super) fn states(old: &Input, new: &[PathBuf], prune: bool, enforce_audited: bool) -> Result<States> {
    if new.iter().any(|p| p.as_os_str() == "-") && old.files.iter().any(|p| p.as_os_str() == "-") {
        bail!("standard input cannot be both what is there (--from) and what is new (-f)");
    }
    let before = old.find(Wanted { workloads: true, services: false, nodes: false }, false)?;
    let of_new = Input { files: new.to_vec(), namespace: Some(before.namespace.clone()), ..Input::default() };
    let new = match new {
        [] => Found { namespace: before.namespace.clone(), ..Found::default() },
        _ => of_new.find(Wanted::default(), false)?,
    };
    let audited = before.inventory.events.iter().any(is_audited);
    if enforce_audited && of_new.files.is_empty() && !audited {
        bail!("nothing is audited: no NetworkPolicy has the annotation {AUDIT}: \"true\"");
    }
    if new.inventory.events.is_empty() && new.inventory.workloads.is_empty() && !prune && !enforce_audited {
        let why = new.inventory.problems.first().map_or_else(String::new, |p| format!(": {p}"));
        bail!("there is no NetworkPolicy, Namespace, Pod or workload in what is new (-f){why}");
    }
    let mut inventory = before.inventory.clone();
    let replaced: BTreeSet<Id> = new.inventory.events.iter().map(Id::of).collect();
    let has = |kind: Kind| replaced.iter().any(|id| id.kind == kind);
    let pruned = |id: &Id| prune && (id.kind == Kind::Policy || has(id.kind));
    let mut kept: Vec<_> = inventory.events.into_iter().zip(inventory.places).collect();
    kept.retain(|(event, _)| {
        let id = Id::of(event);
        !replaced.contains(&id) && !pruned(&id)
    });
    kept.extend(new.inventory.events.into_iter().zip(new.inventory.places));
    if enforce_audited {
        for (event, _) in &mut kept {
            if let Event::Policy(policy) = event {
                policy.audit = None;
            }
        }
    }
    roll_out(&mut kept, &before, &new.inventory.workloads);
    (inventory.events, inventory.places) = kept.into_iter().unzip();
    inventory.pods.extend(new.inventory.pods);
    inventory.policies.extend(new.inventory.policies);
    let of = |w: &weir_source::inventory::Workload| (w.kind.clone(), w.key.clone());
    let newer: BTreeSet<_> = new.inventory.workloads.iter().map(of).collect();
    inventory.workloads.retain(|w| !newer.contains(&of(w)));
    inventory.workloads.extend(new.inventory.workloads);
    inventory.problems = new.inventory.problems;
    let after = Found {
        inventory,
        namespace: before.namespace.clone(),
        live: false,
        unseen: Vec::new(),
        sources: new.sources,
    };
    // of a large cluster most of the time goes into these two
    Ok(std::thread::scope(|scope| {
        let before = scope.spawn(|| Cluster::new(before));
        let after = Cluster::new(after);
        States { before: Answerer::new(joined(before)), after: Answerer::new(after) }
    }))
}

fn is_audited(event: &Event) -> bool {
    matches!(event, Event::Policy(policy) if policy.is_audited())
}

/// What a thread found.
pub(super) fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Pods of a workload whose template is new have its labels and ports once they are made again.
fn roll_out(
    events: &mut [(Event, weir_source::Place)],
    before: &Found,
    workloads: &[weir_source::inventory::Workload],
) {
    if workloads.is_empty() {
        return;
    }
    let pods: Vec<_> = before
        .inventory
        .events
        .iter()
        .filter_map(|e| if let Event::Pod(pod) = e { Some(pod.clone()) } else { None })
        .collect();
    let owners = crate::workloads::owners(&before.inventory, &pods);
    let mut templates = BTreeMap::new();
    for workload in workloads {
        if let Some(Ok(one)) = workload.stand_ins(|_| false).into_iter().next() {
            templates.insert((workload.kind.as_str(), workload.key.clone()), one.pod);
        }
    }
    for (event, _) in events {
        let Event::Pod(pod) = event else { continue };
        let Some(owner) = owners.get(&pod.key) else { continue };
        let key = ObjectKey::new(&pod.key.namespace, &owner.name);
        let Some(template) = templates.get(&(owner.kind.as_str(), key)) else { continue };
        // what controllers add stays, but for what another version gets
        let old = std::mem::take(&mut pod.labels);
        pod.labels = template.labels.clone();
        let added = |key: &str| OF_CONTROLLERS.contains(&key);
        pod.labels.extend(old.into_iter().filter(|(key, _)| added(key)));
        pod.ports.clone_from(&template.ports);
        pod.host_network = template.host_network;
    }
}

/// Labels of pods that no template has.
const OF_CONTROLLERS: [&str; 10] = [
    "pod-template-hash",
    "rollouts-pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

impl States {
    /// Which objects differ.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        let (before, after) = (&self.before, &self.after);
        for (key, policy) in &after.policies {
            match before.policies.get(key) {
                None => objects.added.push(key.to_string()),
                Some(old) if old != policy => objects.changed.push(key.to_string()),
                Some(_) => {}
            }
        }
        let gone = before.policies.keys().filter(|key| !after.policies.contains_key(*key));
        objects.removed = gone.map(ObjectKey::to_string).collect();
        let there = |c: &Cluster, key: &ObjectKey| c.pods.get(key).is_some_and(|p| p.out.is_none());
        objects.pods_added = after.pods.keys().filter(|k| there(after, k) && !there(before, k)).count();
        objects.pods_removed = before.pods.keys().filter(|k| there(before, k) && !there(after, k)).count();
        objects
    }
}
