//! What cannot be enforced, and what an API server refuses.

use weir_compiler::cidr::Cidr;
use weir_compiler::object::{LabelSelector, PortRef};
use weir_compiler::policy::{Effect, Problem};

use super::{Checked, Finding};
use crate::lint::codes::*;
use crate::lint::source::{Step, YamlPath};

pub(super) fn check(checked: &Checked<'_>, out: &mut Vec<Finding>) {
    for problem in &checked.read.problems {
        let (code, help) = code(problem);
        let why = match problem.effect {
            Effect::ClauseMatchesNothing => "an API server refuses it; Weir lets it match nothing",
            Effect::PolicyAllowsNothing => {
                "an API server refuses it; Weir closes the pods that the policy selects in both directions"
            }
        };
        let path = YamlPath::parse(&problem.path);
        let message = match path.0.last() {
            Some(Step::Key(field)) if *code == WEIR003 && problem.reason == "unknown field" => {
                format!("NetworkPolicy has no field {field:?} here")
            }
            _ => problem.reason.clone(),
        };
        let finding = Finding::new(code, &checked.key, path, message);
        out.push(finding.why(why).help(help));
    }
    for (_, path, block) in checked.blocks() {
        for (i, except) in block.except.iter().enumerate() {
            let cidr = Cidr::parse(&block.cidr);
            if cidr.is_some() && Cidr::parse(except) == cidr {
                let message = format!("{except:?} is all of {:?}: the peer matches nobody", block.cidr);
                let finding = Finding::new(&WEIR007, &checked.key, path.then("except").then(i), message);
                out.push(
                    finding.why("an API server refuses it").help("leave out the peer, or except less of it"),
                );
            }
        }
    }
    for (path, selector, _) in checked.selectors() {
        labels(checked, &path, selector, out);
    }
    for rule in checked.rules() {
        for (i, port) in rule.ports.iter().enumerate() {
            let Some(PortRef::Name(name)) = &port.port else { continue };
            let path = rule.path.then("ports").then(i).then("port");
            if let Some(message) = bad_port_name(name) {
                let help = match name.parse::<u16>() {
                    Ok(number) => format!("a number has no quotes: port: {number}"),
                    Err(_) => "write the name as the container has it".to_owned(),
                };
                out.push(
                    Finding::new(&WEIR009, &checked.key, path, message)
                        .why("an API server refuses it")
                        .help(help),
                );
            }
        }
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

/// What an API server refuses of labels; Weir takes it literally (N30).
fn labels(checked: &Checked<'_>, path: &YamlPath, selector: &LabelSelector, out: &mut Vec<Finding>) {
    let mut refuse = |path: YamlPath, message: String| {
        let finding = Finding::new(&WEIR005, &checked.key, path, message);
        out.push(finding.why("an API server refuses it, and no label can be like it").help(
            "63 characters at most: letters, digits, '-', '_' and '.', the first and the last a letter or digit",
        ));
    };
    for (key, value) in &selector.match_labels {
        let at = path.then("matchLabels").then(key.as_str());
        if !is_label_key(key) {
            refuse(at.clone(), format!("{key:?} cannot be the key of a label"));
        }
        if !is_label_value(value) {
            refuse(at, format!("{value:?} cannot be the value of a label"));
        }
    }
    for (i, requirement) in selector.match_expressions.iter().enumerate() {
        let at = path.then("matchExpressions").then(i);
        if !requirement.key.is_empty() && !is_label_key(&requirement.key) {
            refuse(at.then("key"), format!("{:?} cannot be the key of a label", requirement.key));
        }
        for value in requirement.values.iter().filter(|v| !is_label_value(v)) {
            refuse(at.then("values"), format!("{value:?} cannot be the value of a label"));
        }
    }
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name(value)
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => {
            let part = |p: &str| {
                let inner = p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                !p.is_empty() && inner && !p.starts_with('-') && !p.ends_with('-')
            };
            prefix.len() <= 253 && prefix.split('.').all(part) && is_name(name)
        }
    }
}

fn is_name(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// N54.
fn bad_port_name(name: &str) -> Option<String> {
    let good = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if name.is_empty() {
        return Some("an empty text is no name of a port".to_owned());
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return Some(format!("the text {name:?} is neither a number nor a name of a port"));
    }
    if !good || ends || !name.bytes().any(|b| b.is_ascii_lowercase()) {
        return Some(format!(
            "{name:?} cannot be the name of a port: lower-case letters, digits and single '-'"
        ));
    }
    (name.len() > 15).then(|| format!("{name:?} has more than 15 characters, which no name of a port has"))
}
