//! What policies mean, read from `docs/semantics.md` and from nothing else.
//!
//! ```text
//!   World: the objects as written ──> allows(pod, direction, peer, traffic)
//!                                        which policies isolate the pod (N1, N5, N8, N9, N79)
//!                                        which of their clauses match, one by one (N15)
//! ```
//!
//! It is naive on purpose, and shares nothing with the compiler but the types of the objects: no
//! graph, no sets, no ranges, no canonical forms, another way to read CIDRs (bit by bit) and selectors.

use std::net::IpAddr;

use weir_compiler::object::*;

use super::World;

/// What a packet is above IP: a protocol with ports and the destination's port, or anything else (U1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Port(Protocol, u16),
    Portless,
}

/// The pod that an address belongs to (N70, N75, N77).
pub fn owner(world: &World, address: IpAddr) -> Option<&Pod> {
    let mut best: Option<&Pod> = None;
    for pod in world.pods.values() {
        if pod.host_network || pod.finished || !pod.ips.contains(&address) {
            continue;
        }
        let better = match best {
            None => true,
            Some(b) if b.terminating != pod.terminating => b.terminating,
            Some(b) if b.created != pod.created => b.created < pod.created,
            Some(b) if b.uid != pod.uid => b.uid < pod.uid,
            Some(b) => b.key < pod.key,
        };
        if better {
            best = Some(pod);
        }
    }
    best
}

/// Whether an address is this pod's.
pub fn owns(world: &World, pod: &Pod, address: IpAddr) -> bool {
    owner(world, address).is_some_and(|p| p.key == pod.key)
}

/// Whether the policies of a pod that owns an address let a new connection pass at its end.
pub fn allows(world: &World, pod: &Pod, ingress: bool, peer: IpAddr, traffic: Traffic) -> bool {
    if owns(world, pod, peer) {
        return true; // N73
    }
    let of_it: Vec<&Policy> = world.policies_in_force().filter(|p| isolates(p, pod, ingress)).collect();
    of_it.is_empty() || of_it.iter().any(|p| policy_allows(world, p, pod, ingress, peer, traffic))
}

/// Whether a new connection between two pods passes: both ends, and whom nobody asks (N3, N70, N71, N73).
pub fn passes(
    world: &World,
    from: &Pod,
    source: IpAddr,
    to: &Pod,
    destination: IpAddr,
    traffic: Traffic,
) -> bool {
    if from.key == to.key {
        return true;
    }
    let own_node = from.host_network && from.node.is_some() && from.node == to.node;
    (from.host_network || allows(world, from, false, destination, traffic))
        && (to.host_network || own_node || allows(world, to, true, source, traffic))
}

/// Whether a policy selects the pod for a direction (N5 to N11, N16, N30, N101).
pub fn isolates(policy: &Policy, pod: &Pod, ingress: bool) -> bool {
    let spec = &policy.spec;
    let selected = policy.namespace == pod.key.namespace
        && spec.pod_selector.match_labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
        // N30: what cannot be read is left out, so that more are selected
        && spec.pod_selector.match_expressions.iter().all(|r| holds(r, &pod.labels) != Some(false));
    let has_type = match spec.policy_types.as_slice() {
        [] if ingress => true,
        [] => !spec.egress.is_empty(),
        types => types.iter().any(|t| t == if ingress { "Ingress" } else { "Egress" }),
    };
    selected && (is_closed(policy) || has_type)
}

/// Whether the outside of a policy cannot be read: it isolates in both directions and allows nothing.
fn is_closed(policy: &Policy) -> bool {
    let spec = &policy.spec;
    !spec.unknown.is_empty()
        || !readable(&spec.pod_selector)
        || spec.policy_types.iter().any(|t| t != "Ingress" && t != "Egress")
}

fn policy_allows(
    world: &World,
    policy: &Policy,
    pod: &Pod,
    ingress: bool,
    peer: IpAddr,
    traffic: Traffic,
) -> bool {
    let rules = if ingress { policy.spec.ingress.len() } else { policy.spec.egress.len() };
    (0..rules).any(|i| {
        let (peers, ports) = lengths(policy, ingress, i);
        let either = |n: usize| if n == 0 { vec![None] } else { (0..n).map(Some).collect() };
        either(peers).into_iter().any(|peer_at| {
            either(ports).into_iter().any(|port_at| {
                clause_allows(world, policy, pod, ingress, (i, peer_at, port_at), peer, traffic)
            })
        })
    })
}

fn lengths(policy: &Policy, ingress: bool, rule: usize) -> (usize, usize) {
    if ingress {
        let rule = &policy.spec.ingress[rule];
        (rule.from.len(), rule.ports.len())
    } else {
        let rule = &policy.spec.egress[rule];
        (rule.to.len(), rule.ports.len())
    }
}

/// Whether one clause of a policy allows it by itself: a rule by its index, one of its peers and one of
/// its ports, or `None` where it has none (N13 to N15).
pub fn clause_allows(
    world: &World,
    policy: &Policy,
    pod: &Pod,
    ingress: bool,
    (rule, peer_at, port_at): (usize, Option<usize>, Option<usize>),
    peer: IpAddr,
    traffic: Traffic,
) -> bool {
    let spec = &policy.spec;
    let (peers, ports, unknown) = if ingress {
        let Some(rule) = spec.ingress.get(rule) else { return false };
        (&rule.from, &rule.ports, &rule.unknown)
    } else {
        let Some(rule) = spec.egress.get(rule) else { return false };
        (&rule.to, &rule.ports, &rule.unknown)
    };
    if is_closed(policy) || !unknown.is_empty() {
        return false;
    }
    let peer_ok = match peer_at {
        None => peers.is_empty(),
        Some(i) => peers.get(i).is_some_and(|p| peer_matches(world, policy, p, peer)),
    };
    // N55, N56: who names the port
    let named_by = if ingress { Some(pod) } else { owner(world, peer) };
    let port_ok = match port_at {
        None => ports.is_empty(),
        Some(i) => ports.get(i).is_some_and(|p| port_matches(p, traffic, named_by)),
    };
    peer_ok && port_ok
}

fn peer_matches(world: &World, policy: &Policy, peer: &Peer, address: IpAddr) -> bool {
    if !peer.unknown.is_empty() {
        return false; // N101
    }
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (None, None, None) => false, // N24
        (Some(block), None, None) => block_matches(block, address),
        (Some(_), _, _) => false, // N24
        (None, namespaces, pods) => {
            // N30: an unreadable selector closes its peer, whatever the other one says
            if namespaces.iter().chain(pods).any(|s| !readable(s)) {
                return false;
            }
            let Some(pod) = owner(world, address) else { return false }; // N25
            let namespace_ok = match namespaces {
                None => pod.key.namespace == policy.namespace, // N20
                Some(s) => selects(s, &namespace_labels(world, &pod.key.namespace)),
            };
            namespace_ok && pods.as_ref().is_none_or(|s| selects(s, &pod.labels))
        }
    }
}

fn namespace_labels(world: &World, name: &str) -> Labels {
    let mut labels = match world.namespaces.get(name) {
        Some(ns) => ns.labels.clone(), // N32: also while it is terminating
        None => Labels::new(),
    };
    labels.insert("kubernetes.io/metadata.name".into(), name.into()); // N29
    labels
}

fn readable(selector: &LabelSelector) -> bool {
    let nothing = Labels::new();
    selector.unknown.is_empty() && selector.match_expressions.iter().all(|r| holds(r, &nothing).is_some())
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().all(|r| holds(r, labels) == Some(true))
}

/// N27; `None`: nobody can tell (N30, N101).
fn holds(r: &LabelRequirement, labels: &Labels) -> Option<bool> {
    if !r.unknown.is_empty() || r.key.is_empty() {
        return None;
    }
    let value = labels.get(&r.key);
    let listed = value.is_some_and(|v| r.values.iter().any(|w| w == v));
    match (r.operator.as_str(), r.values.len()) {
        ("In", 1..) => Some(listed),
        ("NotIn", 1..) => Some(!listed),
        ("Exists", 0) => Some(value.is_some()),
        ("DoesNotExist", 0) => Some(value.is_none()),
        _ => None,
    }
}

fn port_matches(port: &PolicyPort, traffic: Traffic, named_by: Option<&Pod>) -> bool {
    let Traffic::Port(protocol, number) = traffic else { return false }; // U1
    if !port.unknown.is_empty() {
        return false; // N101
    }
    let text = match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    if port.protocol.as_deref().unwrap_or("TCP") != text {
        return false; // N50, N62
    }
    let number = i64::from(number);
    let valid = |n: i64| (1..=65535).contains(&n);
    match (&port.port, port.end_port) {
        (None, None) => true,     // N51
        (None, Some(_)) => false, // N61
        (Some(PortRef::Number(n)), None) => valid(*n) && *n == number,
        (Some(PortRef::Number(n)), Some(end)) => {
            valid(*n) && valid(end) && *n <= end && *n <= number && number <= end
        }
        (Some(PortRef::Name(_)), Some(_)) => false, // N61
        (Some(PortRef::Name(name)), None) => named_by.is_some_and(|pod| {
            pod.ports.iter().any(|p| p.name == *name && p.protocol == protocol && i64::from(p.port) == number)
        }),
    }
}

/// N41 to N46.
fn block_matches(block: &IpBlock, address: IpAddr) -> bool {
    let Some(cidr) = cidr(&block.cidr) else { return false };
    let mut excepts = Vec::new();
    for text in &block.except {
        match self::cidr(text) {
            Some(except) if except.starts_with(&cidr) => excepts.push(except), // N42
            _ => return false,
        }
    }
    let address = address_bits(address);
    block.unknown.is_empty() && address.starts_with(&cidr) && !excepts.iter().any(|e| address.starts_with(e))
}

/// The family, then the bits: `4` or `6`, then `0` and `1`. A prefix of it is a network.
pub fn address_bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => a.octets().iter().fold("4".to_owned(), |bits, o| format!("{bits}{o:08b}")),
        IpAddr::V6(a) => a.octets().iter().fold("6".to_owned(), |bits, o| format!("{bits}{o:08b}")),
    }
}

/// A CIDR as Go's `ParseCIDRSloppy` reads it, as the bits that all of its addresses begin with (N45).
pub fn cidr(text: &str) -> Option<String> {
    let slash = text.find('/')?;
    let (address, length) = (&text[..slash], &text[slash + 1..]);
    let length = digits(length, 10)? as usize;
    if let Some(bits) = bits4(address) {
        return (length <= 32).then(|| format!("4{}", &bits[..length]));
    }
    let bits = bits6(address)?;
    if length > 128 {
        return None;
    }
    let mapped = format!("{}{}", "0".repeat(80), "1".repeat(16));
    match bits[..length].strip_prefix(mapped.as_str()) {
        Some(rest) => Some(format!("4{rest}")), // IPv4-mapped, up to and with the mapping
        None => Some(format!("6{}", &bits[..length])),
    }
}

/// Digits and nothing else. Leading zeros mean nothing; Go stops at 0xffffff.
fn digits(text: &str, radix: u32) -> Option<u32> {
    if text.is_empty() || !text.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let short = text.trim_start_matches('0');
    if short.is_empty() {
        return Some(0);
    }
    u32::from_str_radix(short, radix).ok().filter(|n| *n < 0xff_ffff)
}

fn bits4(text: &str) -> Option<String> {
    let parts: Vec<u32> = text.split('.').map(|p| digits(p, 10)).collect::<Option<_>>()?;
    let fits = parts.len() == 4 && parts.iter().all(|p| *p < 256);
    fits.then(|| parts.iter().map(|p| format!("{p:08b}")).collect())
}

fn bits6(text: &str) -> Option<String> {
    // groups of 16 bits; only the last of the whole text may be in IPv4's form
    let groups = |text: &str, last: bool| -> Option<String> {
        if text.is_empty() {
            return Some(String::new());
        }
        let parts: Vec<&str> = text.split(':').collect();
        let mut bits = String::new();
        for (i, part) in parts.iter().enumerate() {
            if last && i + 1 == parts.len() && part.contains('.') {
                bits += &bits4(part)?;
            } else {
                let group = digits(part, 16).filter(|g| *g < 65536)?;
                bits += &format!("{group:016b}");
            }
        }
        Some(bits)
    };
    match text.split("::").collect::<Vec<_>>().as_slice() {
        [all] => groups(all, true).filter(|bits| bits.len() == 128),
        [left, right] => {
            let (left, right) = (groups(left, false)?, groups(right, true)?);
            // the gap stands for one group at least
            let gap = 128usize.checked_sub(left.len() + right.len()).filter(|gap| *gap >= 16)?;
            Some(format!("{left}{}{right}", "0".repeat(gap)))
        }
        _ => None,
    }
}
