//! Whose a pod is, and pods for those who have none in the manifests.
//!
//! ```text
//!   Pod ──owner──> ReplicaSet ──owner, or pod-template-hash──> Deployment
//!       ──owner──> Job ────────owner, or the time in its name─> CronJob
//!       ──owner──> anything else
//!       ──no owner, but a selector matches it──> a workload of the manifests
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weir_compiler::object::{ObjectKey, Pod};
use weir_compiler::selector::Selector;
use weir_source::inventory::{Inventory, Owner, PodDetails, Workload};
use weir_source::{Place, Problem};

/// The name of a kind on the command line, as kubectl has it: short, and all that are understood.
const KINDS: [(&str, &str, &[&str]); 9] = [
    ("Deployment", "deploy", &["deployment", "deployments"]),
    ("StatefulSet", "sts", &["statefulset", "statefulsets"]),
    ("DaemonSet", "ds", &["daemonset", "daemonsets"]),
    ("ReplicaSet", "rs", &["replicaset", "replicasets"]),
    ("ReplicationController", "rc", &["replicationcontroller", "replicationcontrollers"]),
    ("Job", "job", &["jobs"]),
    ("CronJob", "cronjob", &["cj", "cronjobs"]),
    ("Rollout", "rollout", &["ro", "rollouts"]),
    ("Pod", "pod", &["po", "pods"]),
];

/// The kind that is meant by `deploy`, `deployments.apps`, `Deployment`.
pub(crate) fn kind(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    let text = text.split('.').next().unwrap_or_default();
    let it = KINDS.iter().find(|(_, short, others)| *short == text || others.contains(&text));
    it.map(|(kind, ..)| *kind)
}

/// As it is written on the command line.
pub(crate) fn short(kind: &str) -> String {
    let known = KINDS.iter().find(|(name, ..)| *name == kind);
    known.map_or_else(|| kind.to_ascii_lowercase(), |(_, short, _)| (*short).to_owned())
}

/// The label that a Deployment and its likes tell the ReplicaSet's pods apart by, and who they are.
const HASHES: [(&str, &str); 2] =
    [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];

/// How far the time in the name of a CronJob's Job may be from that of its pod, in minutes: it may have been
/// waiting.
const LATE: i64 = 14 * 24 * 60;

/// Who the pods of an inventory belong to, in the end.
pub(crate) fn owners(inventory: &Inventory, pods: &[Pod]) -> BTreeMap<ObjectKey, Owner> {
    let by_name: HashMap<(&str, &ObjectKey), &Workload> =
        inventory.workloads.iter().map(|w| ((w.kind.as_str(), &w.key), w)).collect();
    let mut selecting: BTreeMap<&str, Vec<(&Workload, Selector)>> = BTreeMap::new();
    for workload in inventory.workloads.iter().filter(|w| w.owner.is_none()) {
        let Some(selector) = &workload.selector else { continue };
        let (selector, unreadable) = Selector::read(selector);
        if unreadable.is_empty() {
            selecting.entry(&workload.key.namespace).or_default().push((workload, selector));
        }
    }
    let mut owners = BTreeMap::new();
    for pod in pods {
        let found = match inventory.pods.get(&pod.key).and_then(|d| d.owner.as_ref()) {
            Some(owner) => Some(top(owner, pod, &by_name)),
            None => {
                let mut all = selecting.get(pod.key.namespace.as_str()).into_iter().flatten();
                let it = all.find(|(_, selector)| selector.matches(&pod.labels));
                it.map(|(w, _)| Owner { kind: w.kind.clone(), name: w.key.name.clone() })
            }
        };
        owners.extend(found.map(|owner| (pod.key.clone(), owner)));
    }
    owners
}

fn top(owner: &Owner, pod: &Pod, by_name: &HashMap<(&str, &ObjectKey), &Workload>) -> Owner {
    let key = ObjectKey::new(&pod.key.namespace, &owner.name);
    if let Some(above) = by_name.get(&(owner.kind.as_str(), &key)).and_then(|w| w.owner.as_ref()) {
        return above.clone();
    }
    let as_kind = |kind: &str, name: &str| Owner { kind: kind.to_owned(), name: name.to_owned() };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hashed = HASHES.iter().find_map(|(label, kind)| {
                let hash = pod.labels.get(label).filter(|hash| !hash.is_empty())?;
                let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
                (!name.is_empty()).then(|| as_kind(kind, name))
            });
            hashed.unwrap_or_else(|| owner.clone())
        }
        "Job" => {
            let timed = owner.name.rsplit_once('-').filter(|(name, minutes)| {
                let minutes: Option<i64> = minutes.parse().ok();
                !name.is_empty() && minutes.is_some_and(|m| (pod.created / 60 - m).abs() <= LATE)
            });
            timed.map_or_else(|| owner.clone(), |(name, _)| as_kind("CronJob", name))
        }
        _ => owner.clone(),
    }
}

/// What was made for workloads without pods.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) pods: Vec<(Pod, PodDetails)>,
    pub(crate) problems: Vec<Problem>,
    /// For which workloads.
    pub(crate) of: Vec<String>,
}

/// Pods for the workloads that have none.
pub(crate) fn stand_ins(inventory: &Inventory, owners: &BTreeMap<ObjectKey, Owner>, pods: &[Pod]) -> Made {
    let with: BTreeSet<(&str, &str, &str)> = owners
        .iter()
        .map(|(pod, owner)| (pod.namespace.as_str(), owner.kind.as_str(), owner.name.as_str()))
        .collect();
    let mut names: BTreeSet<ObjectKey> = pods.iter().map(|p| p.key.clone()).collect();
    let mut made = Made::default();
    // what has an owner is its owner's business
    for workload in inventory.workloads.iter().filter(|w| w.owner.is_none()) {
        let key = &workload.key;
        if with.contains(&(&key.namespace, &workload.kind, &key.name)) {
            continue;
        }
        let taken = |name: &str| names.contains(&ObjectKey::new(&key.namespace, name));
        let all = workload.stand_ins(taken);
        made.of.push(format!("{} {key}", workload.kind));
        for one in all {
            let line = |error: &weir_source::tree::Error| match error.line {
                0 => workload.place.line,
                line => line,
            };
            let mut complain = |error: &weir_source::tree::Error, end: &str| {
                let place = Place { file: workload.place.file.clone(), line: line(error) };
                let reason = format!("{} {key}, pod template: {error}{end}", workload.kind);
                let problem = Problem::at(place, None, reason);
                if !made.problems.contains(&problem) {
                    made.problems.push(problem);
                }
            };
            match one {
                Ok(one) => {
                    one.notes.iter().for_each(|note| complain(note, ""));
                    names.insert(one.pod.key.clone());
                    made.pods.push((one.pod, one.details));
                }
                Err(error) => complain(&error, "; it is left out"),
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_as_kubectl_has_them() {
        for text in ["deploy", "deployment", "Deployments", "deployment.apps", "deployments.v1.apps"] {
            assert_eq!(kind(text), Some("Deployment"), "{text}");
        }
        assert_eq!(kind("po"), Some("Pod"));
        assert_eq!((kind("shop"), kind("")), (None, None));
        assert_eq!((short("StatefulSet"), short("Fleet")), ("sts".into(), "fleet".into()));
    }
}
