//! What a clause of a policy says, in words, and why it does not match.

use weir_compiler::cidr::Cidr;
use weir_compiler::object::{IpBlock, LabelSelector, Labels, ObjectKey, Peer, PolicyPort, PortRef};
use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{ClauseRef, Miss};

use crate::judge::{InFamily, Pair};
use crate::names::Port;

/// How many misses of one end are told.
pub(crate) const MISSES: usize = 5;

/// What is said of a part that cannot be read (N101).
const CLOSED: &str = "cannot be read: matches nothing";

/// The name of the list of peers.
pub(crate) fn peers_field(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

/// A path in the policy's YAML.
pub(crate) fn path(clause: &ClauseRef) -> String {
    let mut path = format!("spec.{}[{}]", clause.direction.as_str(), clause.rule);
    if let Some(peer) = clause.peer {
        path.push_str(&format!(".{}[{peer}]", peers_field(clause.direction)));
    }
    path
}

/// The path of a clause's port.
pub(crate) fn port_path(clause: &ClauseRef) -> Option<String> {
    Some(format!("spec.{}[{}].ports[{}]", clause.direction.as_str(), clause.rule, clause.port?))
}

/// The clauses of one end that come nearest, the best first.
pub(crate) fn nearest(pair: &Pair<'_>, direction: Direction, family: &InFamily, port: Port) -> Vec<Miss> {
    let subject = &pair.subject(direction).pod.key;
    let l4 = weir_compiler::ports::L4::Port(port.protocol, port.number);
    pair.cluster.slice.nearest_misses(subject, direction, family.peer(direction), l4)
}

/// The peer of a clause as it was written.
pub(crate) fn peer_text(pair: &Pair<'_>, clause: &ClauseRef) -> String {
    match written_peer(pair, clause) {
        None if clause.peer.is_some() => "rule".to_owned(), // closed as a whole
        None => "any peer".to_owned(),
        Some(Peer { ip_block: Some(block), pod_selector: None, namespace_selector: None, .. }) => {
            block_text(block)
        }
        Some(peer) => {
            let parts = [
                ("namespaceSelector", peer.namespace_selector.as_ref()),
                ("podSelector", peer.pod_selector.as_ref()),
            ];
            let said: Vec<String> = parts
                .into_iter()
                .filter_map(|(name, s)| Some(format!("{name} {}", selector_text(s?))))
                .chain(peer.ip_block.as_ref().map(block_text))
                .collect();
            if said.is_empty() { "{}".to_owned() } else { said.join(", ") }
        }
    }
}

fn block_text(block: &IpBlock) -> String {
    match &block.except[..] {
        [] => format!("ipBlock {}", block.cidr),
        excepts => format!("ipBlock {} except {}", block.cidr, excepts.join(", ")),
    }
}

fn selector_text(selector: &LabelSelector) -> String {
    let (read, unreadable) = Selector::read(selector);
    match (read == Selector::everything(), unreadable.is_empty()) {
        (_, false) => "(cannot be read)".to_owned(),
        (true, true) => "{}".to_owned(),
        (false, true) => read.to_string(),
    }
}

/// The port of a clause as it was written.
pub(crate) fn port_text(pair: &Pair<'_>, clause: &ClauseRef) -> String {
    let Some(PolicyPort { protocol, port, end_port, .. }) = written_port(pair, clause) else {
        return "all ports".to_owned();
    };
    let protocol = protocol.as_deref().unwrap_or("TCP");
    match (port, end_port) {
        (None, _) => format!("all ports of {protocol}"),
        (Some(PortRef::Number(first)), Some(last)) => format!("{first}-{last}/{protocol}"),
        (Some(PortRef::Number(number)), None) => format!("{number}/{protocol}"),
        (Some(PortRef::Name(name)), _) => format!("{name}/{protocol}"),
    }
}

/// Why the peer of a clause does not match.
pub(crate) fn why_not_peer(pair: &Pair<'_>, family: &InFamily, clause: &ClauseRef) -> String {
    let state = pair.peer(clause.direction);
    let peer = &state.pod;
    if peer_is_closed(pair, clause) {
        return CLOSED.to_owned();
    }
    let Some(written) = written_peer(pair, clause) else { return String::new() };
    if written.ip_block.is_some() {
        if state.stand_in {
            return format!("{} has no address in the manifests", peer.key);
        }
        if state.bare_address {
            return String::new();
        }
        return format!("{} has {}", peer.key, family.peer(clause.direction));
    }
    if let Some(label) = state.label.as_ref().filter(|_| state.bare_address) {
        return match state.pod.node {
            Some(_) => format!("{label} is no pod, and selectors match pods only (N25)"),
            None => "addresses of no pod, and selectors match pods only (N25)".to_owned(),
        };
    }
    if state.bare_address {
        return format!("no pod has {}, and selectors match pods only (N25)", family.peer(clause.direction));
    }
    if peer.host_network {
        return format!("{} is in its node's network, where selectors match nobody (N70)", peer.key);
    }
    let (mut failed, _) = unmatched(pair, clause);
    failed.truncate(3);
    failed.join(", ")
}

/// What the peer's labels and its namespace's lack; and what they would have to be, where it is as simple
/// as a label.
fn unmatched(pair: &Pair<'_>, clause: &ClauseRef) -> (Vec<String>, Vec<String>) {
    let peer = &pair.peer(clause.direction).pod;
    let Some(written) = written_peer(pair, clause) else { return (Vec::new(), Vec::new()) };
    let (mut has, mut needs) = (Vec::new(), Vec::new());
    let namespace = &peer.key.namespace;
    match &written.namespace_selector {
        Some(selector) => {
            let labels = pair.cluster.namespace(namespace).cloned().unwrap_or_default();
            compare(selector, &labels, &format!("namespace {namespace}"), &mut has, &mut needs);
        }
        None if *namespace != clause.policy.namespace => {
            has.push(format!("{} is not in namespace {}", peer.key, clause.policy.namespace)); // N20
        }
        None => {}
    }
    if let Some(selector) = &written.pod_selector {
        compare(selector, &peer.labels, &peer.key.to_string(), &mut has, &mut needs);
    }
    (has, needs)
}

fn compare(
    selector: &LabelSelector,
    labels: &Labels,
    who: &str,
    has: &mut Vec<String>,
    needs: &mut Vec<String>,
) {
    let (selector, _) = Selector::read(selector);
    for requirement in selector.requirements().filter(|r| !r.matches(labels)) {
        let (Requirement::In(key, _)
        | Requirement::NotIn(key, _)
        | Requirement::Exists(key)
        | Requirement::DoesNotExist(key)) = requirement;
        has.push(match labels.get(key) {
            Some(value) => format!("{who} has {key}={value}"),
            None => format!("{who} has no label {key}"),
        });
        needs.push(match requirement {
            Requirement::In(key, values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                format!("label {key}={} on {who}", values.join(" or "))
            }
            Requirement::Exists(key) => format!("label {key} on {who}"),
            Requirement::NotIn(key, _) => format!("another value of label {key} on {who}"),
            Requirement::DoesNotExist(key) => format!("no label {key} on {who}"),
        });
    }
}

/// Why the port of a clause does not match; empty where the numbers tell it.
pub(crate) fn why_not_port(pair: &Pair<'_>, clause: &ClauseRef) -> String {
    let Some(written) = written_port(pair, clause) else { return String::new() };
    if port_is_closed(pair, clause) {
        return CLOSED.to_owned();
    }
    match &written.port {
        Some(PortRef::Name(name)) => named_port(&pair.to.pod.ports, &pair.to.pod.key, name),
        _ => String::new(),
    }
}

fn named_port(ports: &[weir_compiler::object::NamedPort], key: &ObjectKey, name: &str) -> String {
    let known: Vec<String> =
        ports.iter().filter(|p| p.name == name).map(|p| format!("{}/{}", p.port, p.protocol)).collect();
    if known.is_empty() {
        format!("{key} has no port named {name}")
    } else {
        format!("{name} of {key} is {}", known.join(" and "))
    }
}

/// What would have to be different for a clause to let it pass.
pub(crate) fn hint(pair: &Pair<'_>, miss: &Miss) -> Option<String> {
    if miss.port_matches && !peer_is_closed(pair, &miss.clause) {
        let peer = pair.peer(miss.clause.direction);
        let (has, needs) = unmatched(pair, &miss.clause);
        // as many needs as complaints: labels are all that is missing
        if peer.bare_address && written_peer(pair, &miss.clause).is_some() {
            let address = peer.addresses[0];
            let block = match (&peer.label, &peer.pod.node) {
                (Some(label), None) if Cidr::parse(label).is_some() => label.clone(),
                (Some(label), None) => format!("that has {label}"),
                _ if address.is_ipv4() => format!("{address}/32"),
                _ => format!("{address}/128"),
            };
            let (policy, rule) = (&miss.clause.policy, miss.clause.rule);
            let field = peers_field(miss.clause.direction);
            return Some(format!(
                "ipBlock {block} in {}[{rule}].{field} of {policy}",
                miss.clause.direction.as_str()
            ));
        }
        if !peer.pod.host_network && !needs.is_empty() && has.len() == needs.len() {
            return Some(needs.join(" and "));
        }
    }
    (miss.peer_matches && miss.clause.port.is_some()).then(|| port_text(pair, &miss.clause))
}

/// What the compiler made of the rule of a clause.
fn read_rule<'a>(pair: &Pair<'a>, clause: &ClauseRef) -> Option<&'a RuleClause> {
    pair.cluster.slice.policies.get(&clause.policy)?.rules(clause.direction)?.get(clause.rule)
}

/// Whether the compiler closed the peer of a clause.
fn peer_is_closed(pair: &Pair<'_>, clause: &ClauseRef) -> bool {
    let peer = read_rule(pair, clause).and_then(|rule| rule.peers.as_ref()?.get(clause.peer?));
    matches!(peer, Some(PeerClause::Nothing))
}

/// Whether the compiler closed the port of a clause.
fn port_is_closed(pair: &Pair<'_>, clause: &ClauseRef) -> bool {
    let port = read_rule(pair, clause).and_then(|rule| rule.ports.as_ref()?.get(clause.port?));
    matches!(port, Some(PortClause::Nothing))
}

fn written_peer<'a>(pair: &Pair<'a>, clause: &ClauseRef) -> Option<&'a Peer> {
    let spec = &pair.cluster.policies.get(&clause.policy)?.spec;
    let peers = match clause.direction {
        Direction::Ingress => &spec.ingress.get(clause.rule)?.from,
        Direction::Egress => &spec.egress.get(clause.rule)?.to,
    };
    peers.get(clause.peer?)
}

fn written_port<'a>(pair: &Pair<'a>, clause: &ClauseRef) -> Option<&'a PolicyPort> {
    let spec = &pair.cluster.policies.get(&clause.policy)?.spec;
    let ports = match clause.direction {
        Direction::Ingress => &spec.ingress.get(clause.rule)?.ports,
        Direction::Egress => &spec.egress.get(clause.rule)?.ports,
    };
    ports.get(clause.port?)
}
