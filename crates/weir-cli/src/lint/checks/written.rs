//! What the text says, other than its author may think.

use weir_compiler::object::{AUDIT, LabelSelector, Peer, Protocol};
use weir_compiler::policy::{NAMESPACE_NAME_LABEL, PortClause};
use weir_compiler::selector::Selector;
use weir_compiler::slice::Direction;
use weir_source::tree::Value;

use super::{Checked, Finding, Rule, SelectorOf, World, allows};
use crate::lint::codes::*;
use crate::lint::source::{YamlPath, at};

/// Labels that a controller puts on the pods of one version.
const OF_A_ROLLOUT: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
];

pub(super) fn check(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    types(world, checked, out);
    if checked.read.audit {
        let path = at!["metadata", "annotations", AUDIT];
        let message = "this policy is audited: it neither isolates pods nor allows anything".to_owned();
        out.push(
            Finding::new(&WEIR113, &checked.key, path, message)
                .why("what it would change is logged by agents; all else here is said as if it were enforced")
                .help("`weir logs` shows it, `weir diff --enforce-audited` what would change; to enforce it, remove the annotation"),
        );
    }
    for rule in checked.rules() {
        empty_lists(world, checked, &rule, out);
        two_peers(world, checked, &rule, out);
        if rule.read.peers.is_none() && rule.read.ports.is_none() {
            let (direction, whom) = match rule.direction {
                Direction::Ingress => ("from", "everybody, the nodes and the Internet included"),
                Direction::Egress => ("to", "every address"),
            };
            let message = format!("this rule allows all traffic {direction} {whom}");
            out.push(
                Finding::new(&WEIR103, &checked.key, rule.path.clone(), message)
                    .why("neither peers nor ports are named, and then all match")
                    .help(format!("if less is meant, name it under `{direction}` and `ports`; `podSelector: {{}}` is all pods of this namespace")),
            );
        }
    }
    dns_over_tcp(checked, out);
    for (path, selector, of) in checked.selectors() {
        if of != SelectorOf::Namespaces {
            rollouts(checked, &path, selector, out);
        }
    }
}

fn types(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    let spec = &checked.policy.spec;
    let lists = [("Ingress", "ingress", spec.ingress.len()), ("Egress", "egress", spec.egress.len())];
    for (kind, field, rules) in lists {
        let named = spec.policy_types.iter().any(|t| t == kind);
        let readable = spec.policy_types.iter().all(|t| lists.iter().any(|(kind, ..)| t == kind));
        if rules > 0 && !spec.policy_types.is_empty() && readable && !named {
            let message = format!("`{field}` is passed over: policyTypes does not name {kind}");
            let why =
                format!("the pods that it selects stay open for {field}, unless another policy closes them");
            let mut types = spec.policy_types.clone();
            types.push(kind.to_owned());
            out.push(
                Finding::new(&WEIR101, &checked.key, at!["spec", field], message)
                    .why(why)
                    .help(format!("policyTypes: [{}]", types.join(", "))),
            );
        }
    }
    let path = at!["spec", "egress"];
    let written = world.value(&checked.key, &path).map(|tree| &tree.value);
    let empty = matches!(written, Some(Value::Seq(items)) if items.is_empty())
        || matches!(written, Some(Value::Null));
    if empty && spec.policy_types.is_empty() {
        out.push(
            Finding::new(&WEIR102, &checked.key, path, "this does not close egress".to_owned())
                .why("without policyTypes a policy is about egress only if it has an egress rule")
                .help("to deny all egress: policyTypes: [Ingress, Egress]"),
        );
    }
}

fn empty_lists(world: &World<'_>, checked: &Checked<'_>, rule: &Rule<'_>, out: &mut Vec<Finding>) {
    let peers = rule.peers_path();
    let ports = rule.path.then("ports");
    for (path, of) in [(peers, "peers"), (ports, "ports of all protocols")] {
        let Some(tree) = world.value(&checked.key, &path) else { continue };
        let empty =
            matches!(&tree.value, Value::Null) || matches!(&tree.value, Value::Seq(i) if i.is_empty());
        if empty {
            out.push(
                Finding::new(&WEIR104, &checked.key, path, format!("an empty list here means all {of}"))
                    .why("it is read as if the field were not there")
                    .help("to allow nothing leave out the rule; to allow all leave out the field, which says so more clearly"),
            );
        }
    }
}

fn two_peers(world: &World<'_>, checked: &Checked<'_>, rule: &Rule<'_>, out: &mut Vec<Finding>) {
    let has_labels = |s: &Option<LabelSelector>| {
        s.as_ref().is_some_and(|s| !s.match_labels.is_empty() || !s.match_expressions.is_empty())
    };
    for (i, pair) in rule.peers.windows(2).enumerate() {
        let only_namespaces =
            |p: &Peer| p.namespace_selector.is_some() && p.pod_selector.is_none() && p.ip_block.is_none();
        let only_pods =
            |p: &Peer| has_labels(&p.pod_selector) && p.namespace_selector.is_none() && p.ip_block.is_none();
        let (namespaces, pods) = match pair {
            [a, b] if only_namespaces(a) && only_pods(b) => (a, b),
            [a, b] if only_pods(a) && only_namespaces(b) => (b, a),
            _ => continue,
        };
        let read = |s: &Option<LabelSelector>| Selector::read(&s.clone().unwrap_or_default()).0;
        let (of, who) = (read(&namespaces.namespace_selector), read(&pods.pod_selector));
        let own = Selector::label(NAMESPACE_NAME_LABEL, &checked.key.namespace);
        let here = world.inventory.matching(&own, &who);
        let there = world.inventory.matching(&of, &who);
        if world.has_pods() && !here.is_empty() && there.iter().all(|kind| here.contains(kind)) {
            continue; // pods of this namespace are meant: there are some, and there are none of them elsewhere
        }
        let all = if of == Selector::everything() {
            "all namespaces".to_owned()
        } else {
            format!("namespaces with {of}")
        };
        out.push(
            Finding::new(
                &WEIR105,
                &checked.key,
                rule.peers_path().then(i + 1),
                format!("two peers: all pods of {all}, and pods with {who} of {} itself", checked.key.namespace),
            )
            .why("each item of the list is a peer of its own, and any of them may match")
            .help("if pods with these labels in those namespaces are meant, write both selectors in one item: remove this dash"),
        );
    }
}

fn dns_over_tcp(checked: &Checked<'_>, out: &mut Vec<Finding>) {
    let Some(rules) = &checked.read.clauses.egress else { return };
    let no_name = |_: &str, _| false;
    if rules.iter().any(|r| allows(r.ports.as_deref(), Protocol::Udp, 53, no_name)) {
        return;
    }
    for (i, rule) in rules.iter().enumerate() {
        let ports = rule.ports.iter().flatten();
        for (j, port) in
            ports.enumerate().filter(|(_, p)| matches!(p, PortClause::Range(Protocol::Tcp, 53, 53)))
        {
            let said = checked.policy.spec.egress[i].ports[j].protocol.is_some();
            let why = if said {
                "DNS asks over UDP first"
            } else {
                "without `protocol` a port is one of TCP, and DNS asks over UDP first"
            };
            debug_assert!(matches!(port, PortClause::Range(..)));
            out.push(
                Finding::new(
                    &WEIR108,
                    &checked.key,
                    at!["spec", "egress", i, "ports", j],
                    "this is port 53 of TCP, and no rule allows that of UDP".to_owned(),
                )
                .why(why)
                .help("name both: {protocol: UDP, port: 53} and {protocol: TCP, port: 53}"),
            );
        }
    }
}

fn rollouts(checked: &Checked<'_>, path: &YamlPath, selector: &LabelSelector, out: &mut Vec<Finding>) {
    let labels = selector.match_labels.keys().map(|k| (k, path.then("matchLabels").then(k.as_str())));
    let expressions = selector.match_expressions.iter().enumerate();
    let expressions = expressions.map(|(i, r)| (&r.key, path.then("matchExpressions").then(i).then("key")));
    for (key, path) in labels.chain(expressions).filter(|(key, _)| OF_A_ROLLOUT.contains(&key.as_str())) {
        out.push(
            Finding::new(
                &WEIR109,
                &checked.key,
                path,
                format!("{key} has another value after the next rollout"),
            )
            .why("a controller sets it; pods of the next version do not match any more")
            .help("select by labels of the workload's template that you have written yourself"),
        );
    }
}
