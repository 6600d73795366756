//! What there is to say of pods, in a form that all outputs share. What is documented in `docs/cli.md` stays.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weir_compiler::object::{ObjectKey, Protocol};
use weir_compiler::policy::NAMESPACE_NAME_LABEL;
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::Direction;
use weir_compiler::verdict::ClauseRef;

use super::counters::Counted;
use super::rules::{self, Allowed, Peer, Ports};
use crate::cluster::{Cluster, PodState};
use crate::ends::Party;
use crate::{clauses, space, workloads};

/// How many ranges of addresses are told.
const RANGES: usize = 6;

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// As it was asked for.
    pub(crate) about: String,
    /// Pods of which the same is true are one.
    pub(crate) subjects: Vec<Subject>,
}

/// Pods that no policy tells apart.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Subject {
    pub(crate) pods: Vec<PodInfo>,
    pub(crate) workload: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) ingress: Side,
    pub(crate) egress: Side,
    pub(crate) bypasses: Vec<Bypass>,
    pub(crate) enforcement: Vec<Enforcement>,
    pub(crate) warnings: Vec<String>,
    /// If they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) counters: Option<Counted>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodInfo {
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ports: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Side {
    pub(crate) isolated: bool,
    pub(crate) isolated_by: Vec<Place>,
    pub(crate) rules: Vec<RuleInfo>,
    /// What policies say that are audited and not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audited: Option<Audited>,
}

/// See [`Side::audited`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Audited {
    pub(crate) by: Vec<Place>,
    /// They would isolate the pods, which nothing else does; else they would allow more.
    pub(crate) would_isolate: bool,
    pub(crate) rules: Vec<RuleInfo>,
}

/// A policy, or what is at a path in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Place {
    pub(crate) policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) port_paths: Vec<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u64>,
}

/// Peers that may use the same ports.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuleInfo {
    pub(crate) all_ports: bool,
    pub(crate) ports: Vec<PortInfo>,
    pub(crate) peers: Vec<PeerInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortInfo {
    pub(crate) protocol: Protocol,
    /// None: the port that the other end has by the name.
    pub(crate) first: Option<u16>,
    pub(crate) last: Option<u16>,
    pub(crate) name: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerInfo {
    /// `any`, `pods` or `addresses`.
    pub(crate) kind: &'static str,
    /// In words.
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ranges: Option<Vec<String>>,
    /// How many pods that is now.
    pub(crate) pods: usize,
    pub(crate) workloads: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) members: Option<Vec<MemberInfo>>,
    pub(crate) sources: Vec<Place>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberInfo {
    pub(crate) pod: String,
    pub(crate) addresses: Vec<String>,
}

/// A way past the policies.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bypass {
    pub(crate) who: String,
    pub(crate) why: String,
}

/// Whether a node does what policies say.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enforcement {
    pub(crate) node: Option<String>,
    /// None: it is not known.
    pub(crate) enforced: Option<bool>,
    pub(crate) why: String,
}

/// What can be said of the pods of a party.
pub(crate) fn report(cluster: &Cluster, party: &Party<'_>, members: bool) -> Report {
    let mut alike: BTreeMap<_, Vec<&PodState>> = BTreeMap::new();
    for member in &party.members {
        let state: &PodState = &member.state;
        let profile = cluster.slice.pods.get(&state.pod.key).map(|p| p.profile);
        let key = (profile, state.pod.host_network, &state.pod.ports, state.workload.as_ref());
        alike.entry(key).or_default().push(state);
    }
    let subjects = alike.into_values().map(|pods| subject(cluster, &pods, members)).collect();
    Report { about: party.title.clone(), subjects }
}

fn subject(cluster: &Cluster, pods: &[&PodState], members: bool) -> Subject {
    let first = pods[0];
    let profile = cluster.slice.pods.get(&first.pod.key).map(|p| &cluster.slice.profiles[&p.profile]);
    let policies: Vec<&ObjectKey> = profile.map_or_else(Vec::new, |p| cluster.slice.policies_of(p));
    let mut warnings = Vec::new();
    let mut side = |direction| {
        let mut rules = |by: &[&ObjectKey]| -> Vec<RuleInfo> {
            let (allowed, idle) = rules::merged(cluster, by, direction, &first.pod.ports);
            for (clause, why) in idle {
                let path = clauses::port_path(&clause).unwrap_or_default();
                warnings.push(format!("{} {path}: {why}", clause.policy));
            }
            allowed.into_iter().map(|a| rule(cluster, a, direction, pods, members)).collect()
        };
        let places = |by: Vec<&ObjectKey>| by.into_iter().map(|key| place(cluster, key, None)).collect();
        let slice = &cluster.slice;
        let by: Vec<&ObjectKey> = profile.iter().flat_map(|p| slice.isolating(p, direction)).collect();
        let audited: Vec<&ObjectKey> = profile.iter().flat_map(|p| slice.auditing(p, direction)).collect();
        let isolated = !by.is_empty();
        Side {
            isolated,
            rules: rules(&by),
            isolated_by: places(by),
            audited: (!audited.is_empty()).then(|| Audited {
                would_isolate: !isolated,
                rules: rules(&audited),
                by: places(audited),
            }),
        }
    };
    let (ingress, egress) = (side(Direction::Ingress), side(Direction::Egress));
    for (side, direction) in [(&ingress, "ingress"), (&egress, "egress")] {
        for peer in side.rules.iter().flat_map(|r| &r.peers).filter(|p| p.kind == "pods" && p.pods == 0) {
            warnings.push(format!("{direction} peer matches no pod at present: {}", peer.text));
        }
    }
    if egress.isolated && !lets_ask_dns(&egress) {
        warnings.push("no egress rule has port 53/UDP: it cannot look up names".to_owned());
    }
    warnings.extend(about(cluster, pods, &policies));
    let mut enforcement: Vec<Enforcement> = pods.iter().map(|p| enforcement(cluster, p)).collect();
    enforcement.sort();
    enforcement.dedup();
    Subject {
        pods: pods.iter().map(|p| info(p)).collect(),
        workload: first.workload.as_ref().map(|w| format!("{}/{}", workloads::short(&w.kind), w.name)),
        host_network: first.pod.host_network,
        bypasses: bypasses(cluster, pods, ingress.isolated, egress.isolated),
        ingress,
        egress,
        enforcement,
        warnings,
        counters: None,
    }
}

fn info(state: &PodState) -> PodInfo {
    let port = |p: &weir_source::inventory::DeclaredPort| match p.name.as_str() {
        "" => format!("{}/{}", p.port, p.protocol),
        name => format!("{}/{} ({name})", p.port, p.protocol),
    };
    PodInfo {
        name: state.name(),
        node: state.pod.node.clone(),
        addresses: if state.stand_in {
            Vec::new()
        } else {
            state.addresses.iter().map(ToString::to_string).collect()
        },
        labels: state.pod.labels.clone().into_iter().collect(),
        ports: state.details.ports.iter().map(port).collect(),
    }
}

/// Where a policy, or a clause of it, stands.
fn place(cluster: &Cluster, policy: &ObjectKey, clause: Option<(&ClauseRef, &[usize])>) -> Place {
    let path = clause.map(|(clause, _)| clauses::path(clause));
    let at = cluster.place_of(policy, path.as_deref().unwrap_or_default());
    let ports = clause.map_or_else(Vec::new, |(clause, ports)| {
        let path = |i: &usize| clauses::port_path(&ClauseRef { port: Some(*i), ..clause.clone() });
        ports.iter().filter_map(path).collect()
    });
    Place {
        policy: policy.to_string(),
        path,
        port_paths: ports,
        file: at.as_ref().map(|p| p.file.display().to_string()),
        line: at.map(|p| p.line).filter(|line| *line > 0),
    }
}

fn rule(
    cluster: &Cluster,
    allowed: Allowed,
    direction: Direction,
    of: &[&PodState],
    members: bool,
) -> RuleInfo {
    let Allowed { ports, peers } = allowed;
    let peers = peers.into_iter().map(|(peer, sources)| {
        let found = matching(cluster, &peer, &ports, of);
        let mut makers: BTreeMap<String, usize> = BTreeMap::new();
        for state in &found {
            *makers.entry(maker(state)).or_default() += 1;
        }
        let addresses = |state: &&PodState| MemberInfo {
            pod: state.name(),
            addresses: state.addresses.iter().map(ToString::to_string).collect(),
        };
        let sources = sources.iter().map(|s| place(cluster, &s.clause.policy, Some((&s.clause, &s.ports))));
        PeerInfo {
            kind: match &peer {
                Peer::Any => "any",
                Peer::Pods { .. } => "pods",
                Peer::Addresses(_) => "addresses",
            },
            text: words(&peer),
            ranges: match &peer {
                Peer::Addresses(set) => Some(space::pieces(set, []).into_iter().map(space::name).collect()),
                _ => None,
            },
            pods: found.len(),
            workloads: makers,
            members: members.then(|| found.iter().map(addresses).collect()),
            sources: sources.collect(),
        }
    });
    let peers = peers.collect();
    RuleInfo { all_ports: ports.all, ports: port_infos(&ports, direction, of[0]), peers }
}

/// What made a pod, with its namespace; the pod itself if nothing did.
fn maker(state: &PodState) -> String {
    match &state.workload {
        Some(owner) => {
            format!("{}/{}/{}", state.pod.key.namespace, workloads::short(&owner.kind), owner.name)
        }
        None => state.name(),
    }
}

/// The pods that a peer means at present; a single one that it is a peer of is left out.
fn matching<'c>(cluster: &'c Cluster, peer: &Peer, ports: &Ports, of: &[&PodState]) -> Vec<&'c PodState> {
    let by_name_only = !ports.all && ports.numbers.iter().all(Vec::is_empty);
    let has_port = |state: &PodState| {
        !by_name_only || state.pod.ports.iter().any(|p| ports.names.contains(&(p.name.clone(), p.protocol)))
    };
    let is_it = |state: &&PodState| {
        state.out.is_none()
            && (of.len() > 1 || state.pod.key != of[0].pod.key)
            && match peer {
                Peer::Any => true,
                Peer::Pods { namespaces, pods } => {
                    !state.pod.host_network
                        && pods.matches(&state.pod.labels)
                        && cluster.namespace(&state.pod.key.namespace).is_some_and(|l| namespaces.matches(l))
                }
                Peer::Addresses(set) => {
                    !state.stand_in && state.addresses.iter().any(|address| set.contains(*address))
                }
            }
            && has_port(state)
    };
    cluster.pods.values().filter(is_it).collect()
}

fn port_infos(ports: &Ports, direction: Direction, of: &PodState) -> Vec<PortInfo> {
    let mut infos = Vec::new();
    for (protocol, ranges) in Protocol::ALL.into_iter().zip(&ports.numbers) {
        for &(first, last) in ranges {
            let named = of.pod.ports.iter().find(|p| {
                direction == Direction::Ingress && p.protocol == protocol && (p.port, p.port) == (first, last)
            });
            let name = named.map(|p| p.name.clone());
            infos.push(PortInfo { protocol, first: Some(first), last: Some(last), name });
        }
    }
    for (name, protocol) in &ports.names {
        infos.push(PortInfo { protocol: *protocol, first: None, last: None, name: Some(name.clone()) });
    }
    infos
}

/// A peer, as people say it.
pub(crate) fn words(peer: &Peer) -> String {
    match peer {
        Peer::Any => "anyone".to_owned(),
        Peer::Pods { namespaces, pods } => {
            let who = match is_all(pods) {
                true => "all pods".to_owned(),
                false => format!("pods with {pods}"),
            };
            let mut requirements = namespaces.requirements();
            let one = match (requirements.next(), requirements.next()) {
                (Some(Requirement::In(key, values)), None) if key == NAMESPACE_NAME_LABEL => Some(values),
                _ => None,
            };
            let of = match one {
                Some(names) if names.len() == 1 => "namespace ",
                _ => "namespaces ",
            };
            match one {
                Some(names) => {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    format!("{who} in {of}{}", names.join(", "))
                }
                None if is_all(namespaces) => format!("{who} in all namespaces"),
                None => format!("{who} in namespaces with {namespaces}"),
            }
        }
        Peer::Addresses(set) => {
            let ranges = space::pieces(set, []);
            let mut names: Vec<String> = ranges.iter().take(RANGES).map(|r| space::name(*r)).collect();
            if ranges.len() > RANGES {
                names.push(format!("{} more ranges", ranges.len() - RANGES));
            }
            if names.is_empty() {
                "no address at all".to_owned()
            } else {
                format!("addresses {}", names.join(", "))
            }
        }
    }
}

fn is_all(selector: &Selector) -> bool {
    selector.requirements().next().is_none()
}

fn lets_ask_dns(egress: &Side) -> bool {
    egress.rules.iter().any(|rule| {
        let dns = |p: &PortInfo| {
            p.protocol == Protocol::Udp && p.first.zip(p.last).is_none_or(|(a, b)| (a..=b).contains(&53))
        };
        rule.all_ports || rule.ports.iter().any(dns)
    })
}

/// What bypasses policies of these pods.
fn bypasses(cluster: &Cluster, pods: &[&PodState], ingress: bool, egress: bool) -> Vec<Bypass> {
    let mut all = Vec::new();
    let mut add = |who: String, why: &str| all.push(Bypass { who, why: why.to_owned() });
    if pods[0].pod.host_network {
        add("everything".into(), "it is in its node's network, where policies select nobody (N70)");
        return all;
    }
    if !ingress && !egress {
        return all;
    }
    if ingress {
        let nodes: BTreeSet<&str> = pods.iter().filter_map(|p| p.pod.node.as_deref()).collect();
        let on_them = |p: &&PodState| {
            p.pod.host_network && p.out.is_none() && p.pod.node.as_deref().is_some_and(|n| nodes.contains(n))
        };
        let others = cluster.pods.values().filter(on_them).count();
        let who = match (nodes.len(), nodes.first()) {
            (1, Some(node)) => format!("node {node}"),
            (0, _) => "its own node".to_owned(),
            (n, _) => format!("the own node of each ({n} nodes)"),
        };
        let with = match others {
            0 => String::new(),
            1 => " with the pod in its network".to_owned(),
            n => format!(" with the {n} pods in its network"),
        };
        add(format!("{who}{with}"), "a node always reaches its own pods, as for probes (N71)");
    }
    add("itself".into(), "a pod always reaches itself, also by a Service (N73, U3)");
    add("replies".into(), "of connections that were allowed, and ICMP errors about them (N90, N93)");
    if pods.iter().any(|p| p.addresses.iter().any(std::net::IpAddr::is_ipv6)) {
        add("ICMPv6".into(), "neighbour discovery and multicast listeners (U1)");
    }
    all
}

/// What is odd about the pods.
fn about(cluster: &Cluster, pods: &[&PodState], policies: &[&ObjectKey]) -> Vec<String> {
    let mut warnings = Vec::new();
    for warning in &cluster.warnings {
        if policies.iter().any(|policy| warning.text.contains(&format!("NetworkPolicy {policy}: "))) {
            warnings.push(warning.text.clone());
        }
    }
    let first = pods[0];
    if first.pod.host_network {
        let mine = cluster.policies.values().filter(|policy| {
            let (selector, _) = Selector::read(&policy.spec.pod_selector);
            policy.namespace == first.pod.key.namespace && selector.matches(&first.pod.labels)
        });
        let names: Vec<String> = mine.map(|policy| policy.key().to_string()).collect();
        if !names.is_empty() {
            warnings.push(format!(
                "its labels are those that {} selects, which does nothing for a pod in its node's network (N70)",
                names.join(", ")
            ));
        }
    }
    if first.made_up {
        warnings.push("there is no pod of it: this is what its template says".to_owned());
    } else if pods.iter().any(|p| p.stand_in) {
        warnings.push("it has no address in the manifests: ipBlock peers cannot be judged for it".to_owned());
    }
    if pods.iter().any(|p| p.pod.terminating) {
        warnings.push("it is terminating: its policies hold until it is gone (N76)".to_owned());
    }
    warnings
}

/// Whether the node of a pod does what policies say.
fn enforcement(cluster: &Cluster, state: &PodState) -> Enforcement {
    let node = state.pod.node.clone();
    let says =
        |enforced: Option<bool>, why: &str| Enforcement { node: node.clone(), enforced, why: why.to_owned() };
    let windows = node.as_ref().and_then(|n| cluster.nodes.get(n)).is_some_and(|n| n.windows);
    if windows || state.details.windows {
        return says(Some(false), "it runs Windows, where nothing enforces its policies");
    }
    let Some(name) = &node else { return says(None, "it is not on a node") };
    let is_agent = |p: &&PodState| {
        let label = |key: &str, value: &str| p.pod.labels.get(key).is_some_and(|v| v == value);
        label("app.kubernetes.io/name", "weir") && label("app.kubernetes.io/component", "agent")
    };
    let mut agents = cluster.pods.values().filter(is_agent).peekable();
    if agents.peek().is_none() && !cluster.live {
        return says(None, "no weir-agent is among what was read");
    }
    match agents.find(|p| p.pod.node.as_ref() == Some(name)) {
        Some(_) if cluster.mode.as_deref().is_some_and(|mode| mode != "enforce") => {
            let mode = cluster.mode.as_deref().unwrap_or_default();
            says(
                Some(false),
                &format!("the mode of the cluster is {mode}: no policy is in force (ConfigMap weir-mode)"),
            )
        }
        Some(agent) if agent.details.ready && agent.out.is_none() => {
            says(Some(true), &format!("{} is ready", agent.name()))
        }
        Some(agent) => {
            says(Some(false), &format!("{} is not ready: what it enforced last stays", agent.name()))
        }
        None => says(Some(false), "no weir-agent runs on it: nothing is enforced there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;
    use weir_compiler::object::ObjectKey;
    use weir_source::inventory::live::Wanted;

    const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: w, namespace: weir-system, labels: {app.kubernetes.io/name: weir,
 app.kubernetes.io/component: agent}}, spec: {nodeName: n1, hostNetwork: true}, status: {phase: Running, podIP: 10.0.0.2,
 conditions: [{type: Ready, status: \"True\"}]}}
";

    #[test]
    fn an_agent_that_is_ready_enforces_unless_the_mode_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pods.yaml");
        std::fs::write(&file, PODS).expect("a file");
        let input = Input { files: vec![file], ..Input::default() };
        let mut cluster = input.load(Wanted::ALL).expect("objects");
        for (mode, enforced) in [(None, true), (Some("enforce"), true), (Some("off"), false)] {
            cluster.mode = mode.map(str::to_owned);
            let said = enforcement(&cluster, &cluster.pods[&ObjectKey::new("a", "p")]);
            assert_eq!(said.enforced, Some(enforced), "{said:?}");
            assert_eq!(said.why.contains("the mode of the cluster is off"), !enforced, "{said:?}");
        }
    }
}
