//! What an API server refuses of a policy although Weir can read it.
//!
//! What Weir cannot read is told by the compiler (`weir_compiler::policy::Problem`), and an API server refuses
//! that, too. Here is the rest: names, labels and ports that are no such thing, which would never be stored, so
//! that an answer that counts them is about a policy that cannot come into force as it is written.

use weir_compiler::object::{
    EgressRule, IngressRule, IpBlock, LabelSelector, Labels, Peer, Policy, PolicyPort, PortRef,
};
use weir_source::tree::Tree;

/// The path and the reason of each refusal. `document` has the labels of the policy itself.
pub(crate) fn reasons(policy: &Policy, document: Option<&Tree>) -> Vec<(String, String)> {
    let mut out = Refusals(Vec::new());
    out.check("metadata.name", subdomain(&policy.name));
    out.check("metadata.namespace", dns_label(&policy.namespace));
    let labels = document.and_then(|tree| tree.get("metadata")).map(|meta| meta.field::<Labels>("labels"));
    if let Some(Ok(labels)) = labels {
        out.labels("metadata.labels", &labels);
    }
    let spec = &policy.spec;
    out.selector("spec.podSelector", &spec.pod_selector);
    if spec.policy_types.len() > 2 {
        out.check("spec.policyTypes", Err(format!("{} entries: two at most", spec.policy_types.len())));
    }
    for (i, IngressRule { from, ports, .. }) in spec.ingress.iter().enumerate() {
        out.rule(&format!("spec.ingress[{i}]"), "from", from, ports);
    }
    for (i, EgressRule { to, ports, .. }) in spec.egress.iter().enumerate() {
        out.rule(&format!("spec.egress[{i}]"), "to", to, ports);
    }
    out.0
}

struct Refusals(Vec<(String, String)>);

impl Refusals {
    fn check(&mut self, path: &str, result: Result<(), String>) {
        if let Err(reason) = result {
            self.0.push((path.to_owned(), reason));
        }
    }

    fn labels(&mut self, path: &str, labels: &Labels) {
        for (key, value) in labels {
            self.check(path, label_key(key));
            self.check(&format!("{path}.{key}"), label_value(value));
        }
    }

    fn selector(&mut self, path: &str, selector: &LabelSelector) {
        self.labels(&format!("{path}.matchLabels"), &selector.match_labels);
        for (i, requirement) in selector.match_expressions.iter().enumerate() {
            let path = format!("{path}.matchExpressions[{i}]");
            if !requirement.key.is_empty() {
                self.check(&format!("{path}.key"), label_key(&requirement.key));
            }
            for (j, value) in requirement.values.iter().enumerate() {
                self.check(&format!("{path}.values[{j}]"), label_value(value));
            }
        }
    }

    fn rule(&mut self, path: &str, list: &str, peers: &[Peer], ports: &[PolicyPort]) {
        for (i, peer) in peers.iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            for (name, selector) in
                [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)]
            {
                if let Some(selector) = selector {
                    self.selector(&format!("{path}.{name}"), selector);
                }
            }
            if let Some(IpBlock { cidr, except, .. }) = &peer.ip_block {
                for (j, text) in except.iter().enumerate().filter(|(_, text)| same_range(text, cidr)) {
                    let reason = format!("{text:?} is all of {cidr:?}: it has to be a part");
                    self.check(&format!("{path}.ipBlock.except[{j}]"), Err(reason));
                }
            }
        }
        for (i, port) in ports.iter().enumerate() {
            if let Some(PortRef::Name(name)) = &port.port {
                self.check(&format!("{path}.ports[{i}].port"), port_name(name));
            }
        }
    }
}

fn same_range(a: &str, b: &str) -> bool {
    use weir_compiler::cidr::Cidr;
    Cidr::parse(a).is_some_and(|a| Cidr::parse(b) == Some(a))
}

fn is_alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn dns_label(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if !text.is_empty() && text.len() <= 63 && text.chars().all(good) && ends {
        return Ok(());
    }
    Err(format!("{text:?} is no name: it has up to 63 of a-z, 0-9 and -, with none of the - at an end"))
}

fn subdomain(text: &str) -> Result<(), String> {
    let parts = text.len() <= 253
        && text.split('.').all(|part| {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !part.is_empty() && part.chars().all(good) && !part.starts_with('-') && !part.ends_with('-')
        });
    if parts {
        return Ok(());
    }
    Err(format!(
        "{text:?} is no name: it has up to 253 of a-z, 0-9, - and ., with a letter or digit at both ends"
    ))
}

fn label_word(text: &str) -> bool {
    let good = |c: char| is_alphanumeric(c) || matches!(c, '-' | '_' | '.');
    text.len() <= 63
        && text.chars().all(good)
        && text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
}

fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if label_word(name) && prefix.is_none_or(|prefix| subdomain(prefix).is_ok()) {
        return Ok(());
    }
    Err(format!(
        "{key:?} is no key of a label: it is up to 63 letters, digits, -, _ and ., perhaps with a domain and / in front"
    ))
}

fn label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || label_word(value) {
        return Ok(());
    }
    Err(format!("{value:?} is no value of a label: it is up to 63 letters, digits, -, _ and ."))
}

fn port_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=15).contains(&name.len())
        && name.chars().all(good)
        && name.contains(|c: char| c.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        return Ok(());
    }
    Err(format!("{name:?} is no name of a port: it has up to 15 of a-z, 0-9 and -, and a letter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_their_rules() {
        for (check, good, bad) in [
            (dns_label as fn(&str) -> Result<(), String>, &["a", "a-1"][..], &["", "A", "-a", "a.b"][..]),
            (subdomain, &["a.b-c", "0"], &["a..b", "a_b", ".a", "a-", "A"]),
            (label_key, &["app", "a.b/c_D", "x/y.z"], &["", "/a", "a/", "a/b/c", "-a", "a b"]),
            (label_value, &["", "A_b.1"], &["-a", "a b", "a/b", "é"]),
            (port_name, &["http", "p80", "a-b"], &["", "80", "a--b", "-a", "HTTP", "sixteenlettersxx"]),
        ] {
            for name in good {
                assert_eq!(check(name), Ok(()), "{name}");
            }
            for name in bad {
                assert!(check(name).is_err(), "{name}");
            }
        }
        assert!(label_value(&"a".repeat(64)).is_err() && subdomain(&"a".repeat(254)).is_err());
        assert!(same_range("10.0.0.1/8", "10.0.0.0/8") && !same_range("10.0.0.0/9", "10.0.0.0/8"));
    }
}
