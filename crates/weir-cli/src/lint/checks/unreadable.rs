//! What cannot be enforced, and what an API server refuses.

use weir_compiler::object::AUDIT;
use weir_compiler::policy::{Effect, Problem};

use super::{Checked, Finding, World};
use crate::lint::codes::*;
use crate::lint::source::{Step, YamlPath, at};
use crate::refused;

pub(super) fn check(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    for problem in &checked.read.problems {
        let (code, help) = code(problem);
        let why = match problem.effect {
            Effect::ClauseMatchesNothing => "an API server refuses it; Weir lets it match nothing",
            Effect::PolicyAllowsNothing => {
                "an API server refuses it; Weir closes the pods that the policy selects in both directions"
            }
            Effect::BeyondBudget => "Weir lets it allow nothing, so that no author can starve a node",
            Effect::PolicyIsEnforced => "Weir enforces the policy; an API server takes any text here",
        };
        let path = match *code == WEIR011 {
            true => at!["metadata", "annotations", AUDIT],
            false => YamlPath::parse(&problem.path),
        };
        let message = match path.0.last() {
            Some(Step::Key(field)) if *code == WEIR003 && problem.reason == "unknown field" => {
                format!("NetworkPolicy has no field {field:?} here")
            }
            _ => problem.reason.clone(),
        };
        let finding = Finding::new(code, &checked.key, path, message);
        out.push(finding.why(why).help(help));
    }
    for (path, reason) in refused::reasons(checked.policy, world.documents.get(&checked.key)) {
        let (code, help) = match () {
            () if path.starts_with("metadata") => (&WEIR010, "write names in lower case, as that of a host"),
            () if path.contains(".ports[") => {
                (&WEIR009, "a number has no quotes; a name is that of a container's port")
            }
            () if path.contains(".ipBlock") => (&WEIR007, "leave out the peer, or except less of it"),
            () if path.contains("policyTypes") => (&WEIR004, "name each type once"),
            () => (&WEIR005, "write keys and values as labels have them"),
        };
        let finding = Finding::new(code, &checked.key, YamlPath::parse(&path), reason);
        out.push(finding.why("an API server refuses it; Weir takes it as it is written").help(help));
    }
}

fn code(problem: &Problem) -> (&'static Code, &'static str) {
    let Problem { path, reason, .. } = problem;
    if reason.starts_with("unknown field") {
        return (
            &WEIR003,
            "look for a typing error, or for wrong indentation: the field may belong elsewhere",
        );
    }
    if problem.effect == Effect::BeyondBudget {
        return (&WEIR012, "ranges instead of addresses, labels instead of names; or raise the budget");
    }
    if path.starts_with("metadata.annotations") {
        return (
            &WEIR011,
            "write \"true\", in quotes, to audit the policy; remove the annotation to enforce it",
        );
    }
    if path.contains("policyTypes") {
        return (&WEIR004, "policyTypes: [Ingress], [Egress] or both");
    }
    if path.contains("matchExpressions") {
        return (&WEIR005, "operator: In or NotIn with values, Exists or DoesNotExist without");
    }
    if path.contains(".except[") && reason.contains("is not within") {
        return (&WEIR007, "an exception takes a smaller range out of the cidr beside it");
    }
    if path.contains(".ipBlock") {
        return (&WEIR006, "write a network and the length of its prefix, as 10.0.0.0/8 or 192.0.2.7/32");
    }
    if path.contains(".ports[") {
        return (
            &WEIR009,
            "protocol is TCP, UDP or SCTP, port a number from 1 to 65535 or a name, endPort needs a number",
        );
    }
    (&WEIR008, "a peer is either ipBlock, or podSelector, namespaceSelector or both")
}
