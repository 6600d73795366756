//! What pods cannot do without: names, and for some the API server.

use std::collections::{BTreeMap, BTreeSet};

use weir_compiler::object::{Labels, ObjectKey, Protocol};
use weir_compiler::policy::{NAMESPACE_NAME_LABEL, PeerClause, RuleClause};
use weir_compiler::selector::Requirement;

use super::{Checked, Finding, World, allows, pods};
use crate::cluster::NODE_LOCAL_DNS;
use crate::lint::codes::*;
use crate::lint::source::at;

/// Labels by which the cluster's DNS servers are known.
const DNS: [(&str, &str); 3] =
    [("k8s-app", "kube-dns"), ("k8s-app", "coredns"), ("app.kubernetes.io/name", "coredns")];

/// Ports at which API servers listen.
const API: [u16; 3] = [443, 6443, 8443];

pub(super) fn check(world: &World<'_>, out: &mut Vec<Finding>) {
    let dns = Dns::of(world);
    // by the policies that select them, what those pods lack
    let mut lacks: BTreeMap<(ObjectKey, &'static str), BTreeSet<usize>> = BTreeMap::new();
    for (policies, kinds) in profiles(world) {
        let egress = || policies.iter().filter_map(|p| Some((*p, p.read.clauses.egress.as_ref()?)));
        // who may go nowhere at all is not meant to ask for names
        let Some((first, _)) = egress().find(|(_, rules)| !rules.is_empty()) else { continue };
        let any = |f: &dyn Fn(&RuleClause) -> bool| egress().flat_map(|(_, rules)| rules).any(f);
        let mut lack = |code: &'static Code| {
            lacks.entry((first.key.clone(), code.id)).or_default().extend(&kinds);
        };
        if !any(&|rule| dns.allowed(world, rule)) {
            lack(&WEIR207);
        } else if dns.on_nodes && !any(&|rule| dns.cache_allowed(rule)) {
            lack(&WEIR208);
        }
        let calls = |at: &usize| world.inventory.kinds[*at].facts.calls_api;
        if kinds.iter().any(calls) && !any(&api_allowed) {
            lack(&WEIR215);
        }
    }
    for ((policy, code), kinds) in lacks {
        let kinds: Vec<usize> = kinds.into_iter().collect();
        out.push(finding(world, &policy, code, &kinds));
    }
}

fn finding(world: &World<'_>, policy: &ObjectKey, code: &str, kinds: &[usize]) -> Finding {
    let who = match kinds.first() {
        Some(first) => {
            let example = &world.inventory.kinds[*first].example;
            format!("{}, such as {example},", pods(world.inventory.count(kinds)))
        }
        None => "the pods that this selects".to_owned(),
    };
    let path = at!["spec", "egress"];
    match code {
        "WEIR207" => Finding::new(&WEIR207, policy, path, format!("{who} may call others but not ask DNS for their addresses"))
            .why("no rule of the policies that select them allows port 53 of UDP towards the cluster's DNS")
            .help(
                "add to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, \
                 podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}, \
                 {protocol: TCP, port: 53}]",
            ),
        "WEIR208" => Finding::new(&WEIR208, policy, path, format!("{who} may ask DNS, but not the cache on their node, which they ask"))
            .why("node-local-dns runs in the node's network: no selector matches it, that of kube-dns neither (U6)")
            .help(format!("add to the peers of the DNS rule: ipBlock: {{cidr: {NODE_LOCAL_DNS}/32}}")),
        _ => Finding::new(&WEIR215, policy, path, format!("{who} have a service account and may not call the API server"))
            .why("no rule of the policies that select them allows 443, 6443 or 8443/TCP to an ipBlock or to everybody; the API server is no pod")
            .help("add its addresses (kubectl get endpointslices -n default kubernetes) in an ipBlock, or set automountServiceAccountToken: false"),
    }
}

/// Pods that the same policies select. Without any pods, each policy's own.
fn profiles<'w>(world: &'w World<'_>) -> Vec<(Vec<&'w Checked<'w>>, Vec<usize>)> {
    let mut selecting: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, checked) in world.policies.iter().enumerate() {
        for kind in world.networked(&checked.selected) {
            selecting.entry(kind).or_default().push(i);
        }
    }
    let mut by_policies: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (kind, policies) in selecting {
        by_policies.entry(policies).or_default().push(kind);
    }
    if !world.has_pods() {
        for checked in &world.policies {
            // pods with just the labels that it asks for
            let mut labels = Labels::new();
            for requirement in checked.read.subject.requirements() {
                if let Requirement::In(key, values) = requirement {
                    labels.extend(values.first().map(|v| (key.clone(), v.clone())));
                }
            }
            let selects = |(_, other): &(usize, &Checked<'_>)| {
                other.key.namespace == checked.key.namespace && other.read.subject.matches(&labels)
            };
            let of = world.policies.iter().enumerate().filter(selects).map(|(i, _)| i).collect();
            by_policies.entry(of).or_default();
        }
    }
    let with = |list: Vec<usize>| list.into_iter().map(|i| &world.policies[i]).collect();
    by_policies.into_iter().map(|(list, kinds)| (with(list), kinds)).collect()
}

/// What is known of the cluster's DNS.
struct Dns {
    kinds: Vec<usize>,
    /// Their ports; 53 if nothing is known.
    ports: BTreeSet<u16>,
    on_nodes: bool,
}

impl Dns {
    fn of(world: &World<'_>) -> Dns {
        let has = |labels: &Labels, (key, value): (&str, &str)| labels.get(key).is_some_and(|v| v == value);
        let kinds = world.inventory.kinds.iter().enumerate();
        let (servers, caches): (Vec<_>, Vec<_>) = kinds
            .filter(|(_, k)| {
                DNS.iter().any(|l| has(&k.labels, *l)) || has(&k.labels, ("k8s-app", "node-local-dns"))
            })
            .partition(|(_, k)| !has(&k.labels, ("k8s-app", "node-local-dns")));
        let named = servers.iter().flat_map(|(_, k)| &k.named);
        let mut ports: BTreeSet<u16> = named
            .filter(|p| p.protocol == Protocol::Udp && p.name.starts_with("dns"))
            .map(|p| p.port)
            .collect();
        if ports.is_empty() {
            ports.insert(53);
        }
        let kinds = servers.into_iter().filter(|(_, k)| !k.host_network).map(|(at, _)| at).collect();
        Dns { kinds, ports, on_nodes: !caches.is_empty() }
    }

    /// Whether a rule may let questions pass.
    fn allowed(&self, world: &World<'_>, rule: &RuleClause) -> bool {
        let by_name = |name: &str, protocol| {
            let mut named = self.kinds.iter().flat_map(|at| &world.inventory.kinds[*at].named);
            self.kinds.is_empty() && name.starts_with("dns")
                || named.any(|p| p.name == name && p.protocol == protocol && self.ports.contains(&p.port))
        };
        let ports = rule.ports.as_deref();
        // a resolver outside of the cluster, or a cache on the node, is asked at 53
        let to_53 = allows(ports, Protocol::Udp, 53, |_, _| false);
        let to_pods = self.ports.iter().any(|port| allows(ports, Protocol::Udp, *port, by_name));
        let Some(peers) = &rule.peers else { return to_pods || to_53 };
        peers.iter().any(|peer| match peer {
            PeerClause::Cidrs(set) => to_53 && !set.is_empty(),
            PeerClause::Pods { namespaces, .. } if self.kinds.is_empty() => {
                // nobody knows what the DNS server looks like: a rule about 53 is about DNS
                let system = [(NAMESPACE_NAME_LABEL.to_owned(), "kube-system".to_owned())].into();
                (to_53 && ports.is_some()) || (to_pods && namespaces.matches(&system))
            }
            PeerClause::Pods { .. } => {
                to_pods && world.inventory.peers(peer).iter().any(|at| self.kinds.contains(at))
            }
            PeerClause::Nothing => false,
        })
    }

    /// Whether a rule lets questions to the cache on the node pass.
    fn cache_allowed(&self, rule: &RuleClause) -> bool {
        let to_53 = allows(rule.ports.as_deref(), Protocol::Udp, 53, |_, _| false);
        let listens =
            |peer: &PeerClause| matches!(peer, PeerClause::Cidrs(set) if set.contains(NODE_LOCAL_DNS));
        to_53 && rule.peers.as_ref().is_none_or(|peers| peers.iter().any(listens))
    }
}

fn api_allowed(rule: &RuleClause) -> bool {
    let peers = rule.peers.as_ref();
    let anybody = peers
        .is_none_or(|peers| peers.iter().any(|p| matches!(p, PeerClause::Cidrs(set) if !set.is_empty())));
    anybody && API.iter().any(|port| allows(rule.ports.as_deref(), Protocol::Tcp, *port, |_, _| false))
}
