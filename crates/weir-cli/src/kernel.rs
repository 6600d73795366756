//! What the agents of nodes would have in the kernel.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Serialize;
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::{Event, Namespace, ObjectKey, Pod, Policy};
use weir_compiler::{Budgets, Compiler, Scope};
use weir_dataplane::model::{Table, Transaction};
use weir_dataplane::{Attachments, DenialLog, Planner, Settings};

use crate::cluster::Cluster;

/// The bit that agents mark revoked connections with, unless they are told otherwise.
const REVOKED_MARK: u32 = 0x1000;

/// What an agent has with its default options, once it has been running for a while.
pub(crate) fn settings(own_node: PodToOwnNode) -> Settings {
    Settings {
        own_node,
        revoked_mark: NonZeroU32::new(REVOKED_MARK),
        drop_mid_stream: true,
        log_denials: Some(DenialLog::default()),
        ..Settings::default()
    }
}

/// What tables cost a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Cost {
    pub(crate) chains: i64,
    pub(crate) rules: i64,
    /// And maps.
    pub(crate) sets: i64,
    pub(crate) elements: i64,
}

impl Cost {
    pub(crate) fn of(tables: &[&Table]) -> Cost {
        let mut cost = Cost::default();
        for table in tables {
            let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            cost.chains += count(table.chains.len());
            cost.rules += table.chains.values().map(|c| count(c.rules.len())).sum::<i64>();
            cost.sets += count(table.sets.len());
            cost.elements += table.sets.values().map(|s| count(s.elements.len())).sum::<i64>();
        }
        cost
    }

    pub(crate) fn since(self, before: Cost) -> Cost {
        Cost {
            chains: self.chains - before.chains,
            rules: self.rules - before.rules,
            sets: self.sets - before.sets,
            elements: self.elements - before.elements,
        }
    }

    pub(crate) fn plus(self, other: Cost) -> Cost {
        Cost {
            chains: self.chains + other.chains,
            rules: self.rules + other.rules,
            sets: self.sets + other.sets,
            elements: self.elements + other.elements,
        }
    }
}

/// As a change: `+1 chain +3 rules +2 sets -7 elements`.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.chains, "chain", "chains"),
            (self.rules, "rule", "rules"),
            (self.sets, "set", "sets"),
            (self.elements, "element", "elements"),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(n, ..)| *n != 0)
            .map(|(n, one, more)| format!("{n:+} {}", if n.abs() == 1 { one } else { more }))
            .collect();
        if parts.is_empty() { f.write_str("as much as before") } else { f.write_str(&parts.join(" ")) }
    }
}

/// How many of its pods are on no node that is known.
pub(crate) fn nowhere(cluster: &Cluster) -> usize {
    let pods = cluster.pods.values().map(|state| &state.pod);
    pods.filter(|pod| pod.node.is_none() && !pod.host_network && !pod.finished).count()
}

fn namespace(cluster: &Cluster, name: &str) -> Namespace {
    Namespace {
        name: name.to_owned(),
        labels: cluster.namespace(name).cloned().unwrap_or_default(),
        log_allowed: cluster.log_allowed.get(name).copied().unwrap_or_default(),
        terminating: false,
    }
}

/// The objects of a cluster, pods on their own nodes.
pub(crate) fn events(cluster: &Cluster) -> Vec<Event> {
    let mut all = Vec::with_capacity(cluster.pods.len() + cluster.policies.len() + cluster.namespaces.len());
    all.extend(cluster.namespaces.keys().map(|name| Event::Namespace(namespace(cluster, name))));
    for state in cluster.pods.values() {
        all.push(Event::Pod(state.pod.clone()));
    }
    all.extend(cluster.policies.values().cloned().map(Event::Policy));
    all
}

/// What one node's tables become.
#[derive(Debug)]
pub(crate) struct NodeChange {
    pub(crate) node: String,
    pub(crate) before: Cost,
    pub(crate) after: Cost,
    /// What the agent would send, if that was asked for.
    pub(crate) transactions: Vec<Transaction>,
}

/// The nodes whose tables change, by name. Interfaces are known on the nodes only: all pods are dispatched
/// by their addresses here.
pub(crate) fn changes(before: &Cluster, after: &Cluster, settings: Settings, text: bool) -> Vec<NodeChange> {
    let (forth, back) = (difference(before, after), difference(after, before));
    if forth.is_empty() {
        return Vec::new();
    }
    let mut compiler = Compiler::with(Scope::AllNodes, Budgets::default());
    compiler.apply(events(before));
    // which nodes: their slices are looked at as they were
    let concerned: Vec<Arc<str>> =
        compiler.apply(forth.iter().cloned()).slices.into_iter().map(|d| d.node).collect();
    compiler.apply(back);
    let snapshots: Vec<_> = concerned.iter().map(|node| compiler.snapshot(node)).collect();
    let deltas: BTreeMap<Arc<str>, _> =
        compiler.apply(forth).slices.into_iter().map(|delta| (delta.node.clone(), delta)).collect();
    let mut all = Vec::new();
    for snapshot in snapshots {
        let Some(delta) = deltas.get(&snapshot.node) else { continue };
        let mut planner = Planner::with(settings);
        planner.update(&snapshot.changes);
        planner.attach(Attachments::new());
        let cost = Cost::of(&planner.tables());
        drop(planner.take());
        planner.update(&delta.changes);
        let after = Cost::of(&planner.tables());
        let transactions = planner.take();
        if transactions.is_empty() {
            continue;
        }
        let transactions = if text { transactions } else { Vec::new() };
        all.push(NodeChange { node: snapshot.node.to_string(), before: cost, after, transactions });
    }
    all
}

/// The events that make one cluster the other.
fn difference(from: &Cluster, to: &Cluster) -> Vec<Event> {
    let mut all = Vec::new();
    for name in to.namespaces.keys() {
        let after = namespace(to, name);
        if !from.namespaces.contains_key(name) || namespace(from, name) != after {
            all.push(Event::Namespace(after));
        }
    }
    let pod = |c: &Cluster, key: &ObjectKey| -> Option<Pod> { c.pods.get(key).map(|s| s.pod.clone()) };
    let policy = |c: &Cluster, key: &ObjectKey| -> Option<Policy> { c.policies.get(key).cloned() };
    for key in from.pods.keys().filter(|key| !to.pods.contains_key(*key)) {
        all.push(Event::PodGone(key.clone()));
    }
    for (key, state) in &to.pods {
        if pod(from, key).as_ref() != Some(&state.pod) {
            all.push(Event::Pod(state.pod.clone()));
        }
    }
    for key in from.policies.keys().filter(|key| !to.policies.contains_key(*key)) {
        all.push(Event::PolicyGone(key.clone()));
    }
    for (key, written) in &to.policies {
        if policy(from, key).as_ref() != Some(written) {
            all.push(Event::Policy(written.clone()));
        }
    }
    for name in from.namespaces.keys().filter(|name| !to.namespaces.contains_key(*name)) {
        all.push(Event::NamespaceGone(name.clone()));
    }
    all
}
