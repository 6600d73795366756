//! Selectors, against the pods and namespaces that there are.

use std::collections::BTreeSet;

use weir_compiler::object::{LabelSelector, Labels, ObjectKey};
use weir_compiler::policy::{NAMESPACE_NAME_LABEL, PeerClause};
use weir_compiler::selector::{Requirement, Selector};

use super::{Checked, Finding, World, pods};
use crate::lint::codes::*;
use crate::lint::near;
use crate::lint::source::{YamlPath, at};

pub(super) fn check(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    if world.has_pods() {
        subject(world, checked, out);
    }
    for rule in checked.rules() {
        for (i, (peer, written)) in rule.read.peers.iter().flatten().zip(rule.peers).enumerate() {
            let PeerClause::Pods { namespaces, pods: selector } = peer else { continue };
            let path = rule.peers_path().then(i);
            let mut found = world.inventory.matching_namespaces(namespaces);
            if let (Some(_), None) = (&written.namespace_selector, found.next()) {
                no_namespace(world, checked, &path, namespaces, out);
                continue;
            }
            drop(found);
            if world.has_pods() {
                peer_pods(world, checked, &path, namespaces, selector, out);
            }
            if let Some(selector) = &written.pod_selector {
                let of: BTreeSet<&str> = world.inventory.matching_namespaces(namespaces).collect();
                values(world, &checked.key, &path.then("podSelector"), selector, &of, out);
            }
        }
    }
}

fn subject(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    let inventory = &world.inventory;
    let path = at!["spec", "podSelector"];
    let namespace = checked.key.namespace.as_str();
    if checked.selected.is_empty() {
        let labels: Vec<&Labels> =
            inventory.kinds.iter().filter(|k| k.namespace == namespace).map(|k| &k.labels).collect();
        let (mut why, mut help) =
            near::why_none(&checked.read.subject, &labels, &format!("pod of {namespace}"));
        if labels.is_empty() {
            why = Some(format!("{namespace} has no pods"));
            let names: BTreeSet<&str> = inventory.kinds.iter().map(|k| k.namespace.as_str()).collect();
            help =
                near::nearest(namespace, names.into_iter()).map(|n| format!("did you mean namespace {n}?"));
        }
        let elsewhere = inventory.matching(&Selector::everything(), &checked.read.subject);
        if help.is_none() && !elsewhere.is_empty() && checked.read.subject != Selector::everything() {
            let names: BTreeSet<&str> =
                elsewhere.iter().map(|at| inventory.kinds[*at].namespace.as_str()).collect();
            help = Some(format!(
                "pods with these labels are in {}; a policy selects pods of its own namespace only",
                near::some(names)
            ));
        }
        let message = format!("{} selects no pod", checked.key);
        let finding = Finding::new(&WEIR201, &checked.key, path, message);
        out.push(Finding { why, help, ..finding });
        return;
    }
    let on_hosts = checked.selected.iter().filter(|at| inventory.kinds[**at].host_network);
    let on_hosts: Vec<usize> = on_hosts.copied().collect();
    if on_hosts.len() == checked.selected.len() {
        let example = &inventory.kinds[on_hosts[0]].example;
        let message = format!("all pods that this selects are in their node's network, such as {example}");
        out.push(
            Finding::new(&WEIR211, &checked.key, path.clone(), message)
                .why("policies are about pods with a network of their own: nothing is enforced for these (N70)")
                .help("restrict them on the node, or run them without hostNetwork"),
        );
    }
    values(world, &checked.key, &path, &checked.policy.spec.pod_selector, &[namespace].into(), out);
    let windows = |at: &&usize| inventory.kinds[**at].facts.windows;
    let windows: Vec<usize> = checked.selected.iter().filter(windows).copied().collect();
    if let Some(first) = windows.first() {
        let message = format!(
            "{} of those that this selects run on Windows nodes, such as {}",
            pods(inventory.count(&windows)),
            inventory.kinds[*first].example
        );
        out.push(
            Finding::new(&WEIR213, &checked.key, path, message)
                .why("Weir enforces on Linux nodes only: these pods stay open")
                .help("enforce with the network plugin of the Windows nodes"),
        );
    }
}

fn no_namespace(
    world: &World<'_>,
    checked: &Checked<'_>,
    path: &YamlPath,
    selector: &Selector,
    out: &mut Vec<Finding>,
) {
    let by_name = selector.requirements().all(|r| key_of(r) == NAMESPACE_NAME_LABEL);
    if !world.namespaces_known && !by_name {
        return; // their labels are not known
    }
    let labels: Vec<&Labels> = world.inventory.namespaces.values().collect();
    let (why, help) = near::why_none(selector, &labels, "namespace");
    let message = format!("no namespace has {selector}");
    let finding = Finding::new(&WEIR203, &checked.key, path.then("namespaceSelector"), message);
    let help = help.or_else(|| {
        Some("to name a namespace use the label kubernetes.io/metadata.name, which each has".to_owned())
    });
    out.push(Finding { why, help, ..finding });
}

fn peer_pods(
    world: &World<'_>,
    checked: &Checked<'_>,
    path: &YamlPath,
    namespaces: &Selector,
    selector: &Selector,
    out: &mut Vec<Finding>,
) {
    let inventory = &world.inventory;
    let found = inventory.matching(namespaces, selector);
    let of: BTreeSet<&str> = inventory.matching_namespaces(namespaces).collect();
    let scope = if of.len() == 1 {
        format!("pod of {}", near::some(&of))
    } else {
        "pod of these namespaces".to_owned()
    };
    let Some(first) = found.first() else {
        let of_them = inventory.kinds.iter().filter(|k| of.contains(k.namespace.as_str()));
        let labels: Vec<&Labels> = of_them.map(|k| &k.labels).collect();
        let (mut why, mut help) = near::why_none(selector, &labels, &scope);
        if labels.is_empty() {
            why = Some(format!("there is no {scope}"));
        }
        let elsewhere = inventory.matching(&Selector::everything(), selector);
        if help.is_none() && !elsewhere.is_empty() && *selector != Selector::everything() {
            let names: BTreeSet<&str> =
                elsewhere.iter().map(|at| inventory.kinds[*at].namespace.as_str()).collect();
            let names = near::some(names);
            help = Some(format!(
                "such pods are in {names}: name it in a namespaceSelector beside the podSelector, in the same item"
            ));
        }
        let message = format!("this peer matches no pod: there is no {scope} with {selector}");
        let finding = Finding::new(&WEIR202, &checked.key, path.clone(), message);
        out.push(Finding { why, help, ..finding });
        return;
    };
    if found.iter().all(|at| inventory.kinds[*at].host_network) {
        let message = format!(
            "all pods that this peer means are in their node's network, such as {}",
            inventory.kinds[*first].example
        );
        out.push(
            Finding::new(&WEIR212, &checked.key, path.clone(), message)
                .why("their packets have the node's address, and selectors match nobody there (N70)")
                .help(
                    "name the addresses of the nodes in an ipBlock; a pod's own node reaches it anyway (N71)",
                ),
        );
    }
}

/// One value of several that nobody has, and that looks like one that somebody has.
fn values(
    world: &World<'_>,
    policy: &ObjectKey,
    path: &YamlPath,
    selector: &LabelSelector,
    of: &BTreeSet<&str>,
    out: &mut Vec<Finding>,
) {
    for (i, requirement) in selector.match_expressions.iter().enumerate() {
        if requirement.operator != "In" || requirement.values.len() < 2 {
            continue;
        }
        let kinds = world.inventory.kinds.iter().filter(|k| of.contains(k.namespace.as_str()));
        let there: BTreeSet<&str> =
            kinds.filter_map(|k| k.labels.get(&requirement.key)).map(String::as_str).collect();
        let any = requirement.values.iter().any(|v| there.contains(v.as_str()));
        for value in requirement.values.iter().filter(|v| any && !there.contains(v.as_str())) {
            let others = there.iter().copied().filter(|t| !requirement.values.iter().any(|v| v == t));
            let Some(near) = near::nearest(value, others) else { continue };
            out.push(
                Finding::new(
                    &WEIR204,
                    policy,
                    path.then("matchExpressions").then(i).then("values"),
                    format!("no pod there has {}={value}", requirement.key),
                )
                .why(format!("there are pods with {}={near}", requirement.key))
                .help(format!("did you mean {near}?")),
            );
        }
    }
}

fn key_of(requirement: &Requirement) -> &str {
    let (Requirement::In(key, _)
    | Requirement::NotIn(key, _)
    | Requirement::Exists(key)
    | Requirement::DoesNotExist(key)) = requirement;
    key
}
