//! Who is meant by an end of a question.
//!
//! ```text
//!   web-0, shop/web-0, pod/web-0     a pod
//!   deploy/web, shop/deploy/web      the pods of a workload
//!   ns/shop                          the pods of a namespace
//!   svc/web, shop/svc/web            who answers for a Service
//!   node/n1                          a node, and what is in its network
//!   10.0.0.1                         the pod that has it, or nobody's
//!   10.0.0.0/8, internet             the pods that have one of them, and the addresses that are nobody's
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, bail};
use weir_compiler::cidr::{Cidr, CidrSet};
use weir_compiler::object::ObjectKey;

use crate::cluster::{Cluster, PodState};
use crate::names::{self, Port};
use crate::{services, space, workloads};

/// What a text names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Name {
    Pod(ObjectKey),
    Workload(&'static str, ObjectKey),
    Namespace(String),
    Service(ObjectKey),
    Node(String),
    Address(IpAddr),
    Addresses(CidrSet),
    Internet,
}

/// All that are meant by one end.
#[derive(Debug)]
pub(crate) struct Party<'a> {
    /// As people call it.
    pub(crate) title: String,
    pub(crate) members: Vec<Member<'a>>,
    /// Addresses that are nobody's, of which some may be judged otherwise than others.
    pub(crate) space: Option<CidrSet>,
    /// What the reader should know of it.
    pub(crate) notes: Vec<String>,
    /// One is meant, and not a group that happens to have one.
    pub(crate) single: bool,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) state: Cow<'a, PodState>,
    /// The port of it that is meant; `None`: that of the question.
    pub(crate) port: Option<Port>,
}

impl<'a> Member<'a> {
    pub(crate) fn of(state: &'a PodState) -> Member<'a> {
        Member { state: Cow::Borrowed(state), port: None }
    }
}

/// The kinds beside those of workloads.
fn is_kind(text: &str, kinds: &[&str]) -> bool {
    kinds.contains(&text.to_ascii_lowercase().as_str())
}
pub(crate) const NAMESPACES: [&str; 3] = ["ns", "namespace", "namespaces"];
const NODES: [&str; 3] = ["no", "node", "nodes"];
const SERVICES: [&str; 3] = ["svc", "service", "services"];

/// What a text names; `namespace` is that of what it names without one.
///
/// # Errors
/// It has not the form of a name.
pub(crate) fn parse(cluster: &Cluster, text: &str, namespace: &str) -> Result<Name> {
    if let Some(address) = names::address(text) {
        return Ok(Name::Address(address));
    }
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Some(cidr) = Cidr::parse(inner) {
        return Ok(Name::Addresses(CidrSet::from_cidrs([cidr])));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let namespaced = |kind: &str, namespace: &str, name: &str| {
        let key = ObjectKey::new(namespace, name);
        if is_kind(kind, &SERVICES) {
            return Some(Name::Service(key));
        }
        workloads::kind(kind).map(|kind| match kind {
            "Pod" => Name::Pod(key),
            kind => Name::Workload(kind, key),
        })
    };
    Ok(match parts[..] {
        _ if parts.iter().any(|part| part.is_empty()) => return bad_form(text),
        ["internet"] => Name::Internet,
        [name] => Name::Pod(ObjectKey::new(namespace, name)),
        // a pod may be in a namespace that is called like a kind
        [a, b] if cluster.pods.contains_key(&ObjectKey::new(a, b)) => Name::Pod(ObjectKey::new(a, b)),
        [kind, name] if is_kind(kind, &NAMESPACES) => Name::Namespace(name.to_owned()),
        [kind, name] if is_kind(kind, &NODES) => Name::Node(name.to_owned()),
        [a, b] => namespaced(a, namespace, b).unwrap_or_else(|| Name::Pod(ObjectKey::new(a, b))),
        [namespace, kind, name] => match namespaced(kind, namespace, name) {
            Some(name) => name,
            None => {
                bail!("{kind:?} in {text:?} is no kind: write NAMESPACE/deploy/NAME, or sts, ds, job, svc")
            }
        },
        _ => return bad_form(text),
    })
}

/// Whether it may name an address, with a port or without.
pub(crate) fn may_be_address(text: &str) -> bool {
    let (name, _) = names::split(text);
    names::address(name).is_some()
        || name == "internet"
        || Cidr::parse(name.trim_matches(['[', ']'])).is_some()
}

fn bad_form(text: &str) -> Result<Name> {
    bail!(
        "{text:?} is no name: write NAMESPACE/NAME or NAME and -n NAMESPACE for a pod, deploy/NAME for a workload, \
         ns/NAME, svc/NAME, node/NAME, an address, a CIDR, or internet"
    )
}

/// Who is meant. `port` is asked of Services only, which have their own.
///
/// # Errors
/// Nobody has that name, or nothing can be said of who has it.
pub(crate) fn resolve<'a>(cluster: &'a Cluster, name: &Name, port: Option<&str>) -> Result<Party<'a>> {
    let group = |title: String, members: Vec<Member<'a>>| Party {
        title,
        members,
        space: None,
        notes: Vec::new(),
        single: false,
    };
    Ok(match name {
        Name::Pod(key) => {
            let state = pod(cluster, key)?;
            Party { single: true, ..group(state.name(), vec![Member::of(state)]) }
        }
        Name::Workload(kind, key) => {
            let title = format!("{}/{}/{}", key.namespace, workloads::short(kind), key.name);
            group(title, workload(cluster, kind, key)?)
        }
        Name::Namespace(name) => group(format!("namespace {name}"), namespace(cluster, name)?),
        Name::Service(key) => {
            let (members, notes) = services::backends(cluster, key, port)?;
            Party { notes, ..group(format!("{}/svc/{}", key.namespace, key.name), members) }
        }
        Name::Node(name) => {
            let (state, notes) = node(cluster, name)?;
            let member = Member { state: Cow::Owned(state), port: None };
            Party { notes, single: true, ..group(format!("node {name}"), vec![member]) }
        }
        Name::Address(address) => {
            let state = cluster.at(*address);
            let member = Member { state: Cow::Owned(state), port: None };
            Party { single: true, ..group(member.state.name(), vec![member]) }
        }
        Name::Addresses(set) => {
            let mut members = Vec::new();
            for state in cluster.pods.values().filter(|p| p.out.is_none() && !p.stand_in) {
                let within = state.addresses.iter().copied().filter(|a| set.contains(*a));
                // those of a node's network are told by one of them
                let own = |a: &IpAddr| cluster.owner(*a).is_some_and(|owner| owner.pod.key == state.pod.key);
                let addresses: Vec<IpAddr> = within.filter(own).collect();
                if !addresses.is_empty() {
                    let state = PodState { addresses, ..state.clone() };
                    members.push(Member { state: Cow::Owned(state), port: None });
                }
            }
            for node in cluster.nodes.values() {
                let within = node.addresses.iter().copied();
                let within: Vec<IpAddr> =
                    within.filter(|a| set.contains(*a) && cluster.owner(*a).is_none()).collect();
                if !within.is_empty() {
                    let mut state = PodState::bare(&format!("node/{}", node.name), within);
                    state.pod.node = Some(node.name.clone());
                    state.label = Some(format!("node {}", node.name));
                    members.push(Member { state: Cow::Owned(state), port: None });
                }
            }
            let title: Vec<String> = space::pieces(set, []).into_iter().map(space::name).collect();
            Party { space: Some(set.clone()), ..group(title.join(", "), members) }
        }
        Name::Internet => {
            let mut party = group("internet".to_owned(), Vec::new());
            party.space = Some(space::internet());
            party
        }
    })
}

/// The pod of this name, if anything can be said of it.
///
/// # Errors
/// There is none, or nothing can be said.
pub(crate) fn pod<'a>(cluster: &'a Cluster, key: &ObjectKey) -> Result<&'a PodState> {
    let Some(state) = cluster.pods.get(key) else {
        let near = near_pods(cluster, key);
        let hint = if near.is_empty() {
            let total = cluster.pods.len();
            format!("none of the {total} pods there is named like it")
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        bail!("no pod {key} {}; {hint}", cluster.whence());
    };
    match &state.out {
        Some(why) => bail!("no answer for pod {key}: {why}"),
        None => Ok(state),
    }
}

/// Pods that may be meant instead, at most three, and the workload of this name.
fn near_pods(cluster: &Cluster, key: &ObjectKey) -> Vec<String> {
    let wanted = key.to_string();
    let distance = |k: &ObjectKey| {
        if k.name == key.name {
            return Some(0); // in another namespace
        }
        if k.namespace == key.namespace && k.name.starts_with(&key.name) {
            return Some(1); // a workload's name
        }
        Some(strsim::osa_distance(&k.to_string(), &wanted)).filter(|d| *d <= far(&wanted))
    };
    let mut found: Vec<_> = cluster.pods.keys().filter_map(|k| Some((distance(k)?, k))).collect();
    found.sort();
    if found.first().is_some_and(|(distance, _)| *distance <= 1) {
        found.retain(|(distance, _)| *distance <= 1);
    }
    found.truncate(3);
    let mut names: Vec<String> = found.into_iter().map(|(_, k)| k.to_string()).collect();
    let mut owners = pods_in(cluster, &key.namespace).filter_map(|state| state.workload.as_ref());
    if let Some(owner) = owners.find(|owner| owner.name == key.name) {
        names.push(format!("{}/{}/{}", key.namespace, workloads::short(&owner.kind), owner.name));
    }
    names
}

/// How many letters a name may be off.
fn far(wanted: &str) -> usize {
    (wanted.chars().count() / 3).max(2)
}

/// `; did you mean ...?`, or nothing: the names that are like one.
pub(crate) fn did_you_mean(wanted: &str, names: impl IntoIterator<Item = String>) -> String {
    let names: BTreeSet<String> = names.into_iter().collect();
    let distance = |name: &String| {
        let is_part = name.contains(wanted) && !wanted.is_empty();
        let letters = strsim::osa_distance(name, wanted);
        (is_part || letters <= far(wanted)).then_some(letters)
    };
    let mut found: Vec<(usize, &String)> = names.iter().filter_map(|n| Some((distance(n)?, n))).collect();
    found.sort();
    let found: Vec<&str> = found.iter().take(3).map(|(_, name)| name.as_str()).collect();
    if found.is_empty() { String::new() } else { format!("; did you mean {}?", found.join(" or ")) }
}

fn pods_in<'a>(cluster: &'a Cluster, namespace: &str) -> impl Iterator<Item = &'a PodState> {
    let first = ObjectKey::new(namespace, "");
    let namespace = namespace.to_owned();
    cluster.pods.range(first..).map(|(_, state)| state).take_while(move |s| s.pod.key.namespace == namespace)
}

fn workload<'a>(cluster: &'a Cluster, kind: &str, key: &ObjectKey) -> Result<Vec<Member<'a>>> {
    // a ReplicaSet is asked for by its own name, too
    let is_it = |state: &&PodState| {
        let owners = [state.workload.as_ref(), state.details.owner.as_ref()];
        owners.into_iter().flatten().any(|o| o.kind == kind && o.name == key.name)
    };
    let all: Vec<&PodState> = pods_in(cluster, &key.namespace).filter(is_it).collect();
    if all.is_empty() {
        let known = cluster.pods.values().filter_map(|state| {
            let owner = state.workload.as_ref()?;
            Some(format!("{}/{}/{}", state.pod.key.namespace, workloads::short(&owner.kind), owner.name))
        });
        let wanted = format!("{}/{}/{}", key.namespace, workloads::short(kind), key.name);
        bail!("there are no pods of {kind} {key} {}{}", cluster.whence(), did_you_mean(&wanted, known));
    }
    some(&all, &format!("{kind} {key}"))
}

fn namespace<'a>(cluster: &'a Cluster, name: &str) -> Result<Vec<Member<'a>>> {
    let all: Vec<&PodState> = pods_in(cluster, name).collect();
    if all.is_empty() {
        if cluster.namespaces.contains_key(name) {
            bail!("there are no pods in namespace {name}");
        }
        let known = cluster.namespaces.keys().cloned();
        bail!("no namespace {name} {}{}", cluster.whence(), did_you_mean(name, known));
    }
    some(&all, &format!("namespace {name}"))
}

/// Those of whom anything can be said.
fn some<'a>(all: &[&'a PodState], of: &str) -> Result<Vec<Member<'a>>> {
    let members: Vec<Member<'a>> =
        all.iter().filter(|s| s.out.is_none()).map(|state| Member::of(state)).collect();
    match (members.is_empty(), all.first().and_then(|s| Some((&s.pod.key, s.out.as_ref()?)))) {
        (true, Some((key, why))) => bail!("no answer for {of}: of its pod {key}, {why}"),
        _ => Ok(members),
    }
}

/// A node, as something in its network.
fn node(cluster: &Cluster, name: &str) -> Result<(PodState, Vec<String>)> {
    let here = |p: &&PodState| p.pod.node.as_deref() == Some(name);
    let mut addresses = match cluster.nodes.get(name) {
        Some(node) => node.addresses.clone(),
        None => Vec::new(),
    };
    let on_it: Vec<&PodState> = cluster.pods.values().filter(here).collect();
    if !cluster.nodes.contains_key(name) && on_it.is_empty() {
        let named = cluster.pods.values().filter_map(|p| p.pod.node.clone());
        let known = cluster.nodes.keys().cloned().chain(named);
        bail!("no node {name} {}{}", cluster.whence(), did_you_mean(name, known));
    }
    if addresses.is_empty() {
        let in_its_network = on_it.iter().find(|p| p.pod.host_network && p.out.is_none() && !p.stand_in);
        addresses.extend(in_its_network.into_iter().flat_map(|p| &p.addresses));
    }
    let stand_in = addresses.is_empty();
    let mut notes = Vec::new();
    if stand_in {
        addresses.clone_from(&cluster.spare);
        notes.push(format!(
            "the addresses of node {name} are not known: ipBlock peers cannot be judged for it"
        ));
    }
    let mut state = PodState::bare(&format!("node/{name}"), addresses);
    state.pod.node = Some(name.to_owned());
    state.label = Some(format!("node {name}"));
    state.stand_in = stand_in;
    Ok((state, notes))
}
