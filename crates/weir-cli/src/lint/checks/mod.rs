//! What is looked for, by what it needs to know.
//!
//! ```text
//!   unreadable   WEIR003-012  what ReadPolicy could not read, and what an API server refuses besides
//!   written      WEIR101-113  the policy's text alone
//!   cidrs        WEIR106-110, 209, 210, 214   ranges, alone and against addresses
//!   redundant    WEIR111-112  policies against each other
//!   selectors    WEIR201-204, 211-213   against pods and namespaces
//!   ports        WEIR205-206  against containers
//!   names        WEIR207-208, 215   what a pod cannot do without: DNS, the API server
//!   ends         WEIR216      one end of a connection against the other
//! ```

mod cidrs;
mod ends;
mod names;
mod ports;
mod redundant;
mod selectors;
mod unreadable;
mod written;

use std::collections::BTreeMap;
use std::rc::Rc;

use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{IpBlock, LabelSelector, ObjectKey, Peer, Policy, Protocol};
use weir_compiler::policy::{NAMESPACE_NAME_LABEL, PolicyClauses, PortClause, ReadPolicy, RuleClause};
use weir_compiler::selector::Selector;
use weir_compiler::slice::Direction;
use weir_compiler::{Budgets, read_within};
use weir_source::tree::Tree;

use super::finding::Finding;
use super::inventory::Inventory;
use super::source::{self, YamlPath, at};

/// A policy, as written and as read.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) key: ObjectKey,
    pub(crate) read: ReadPolicy,
    /// The kinds of pods that it selects, those of the host's network too.
    pub(crate) selected: Rc<Vec<usize>>,
}

/// Everything that checks look at.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) policies: Vec<Checked<'a>>,
    pub(crate) inventory: Inventory,
    /// As written.
    pub(crate) documents: &'a BTreeMap<ObjectKey, Tree>,
    /// The labels of namespaces are known: manifests have some, or it is a cluster.
    pub(crate) namespaces_known: bool,
    /// Addresses of Services.
    pub(crate) services: CidrSet,
}

impl<'a> World<'a> {
    pub(crate) fn new(
        policies: impl Iterator<Item = &'a Policy>,
        inventory: Inventory,
        documents: &'a BTreeMap<ObjectKey, Tree>,
        namespaces_known: bool,
        services: CidrSet,
    ) -> World<'a> {
        let policies: Vec<&Policy> = policies.collect();
        let reads = read_within(policies.iter().copied(), &Budgets::default());
        let check = |(policy, read): (&'a Policy, ReadPolicy)| {
            let namespace = Selector::label(NAMESPACE_NAME_LABEL, &policy.namespace);
            let selected = inventory.matching(&namespace, &read.subject);
            Checked { policy, key: policy.key(), read, selected }
        };
        let policies = policies.into_iter().zip(reads).map(check).collect();
        World { policies, inventory, documents, namespaces_known, services }
    }

    /// Everything that is found, in the order of the policies.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        for checked in &self.policies {
            unreadable::check(self, checked, &mut all);
            written::check(self, checked, &mut all);
            cidrs::check(self, checked, &mut all);
            selectors::check(self, checked, &mut all);
            ports::check(self, checked, &mut all);
        }
        redundant::check(self, &mut all);
        names::check(self, &mut all);
        ends::check(self, &mut all);
        all
    }

    /// The value at a path of a policy, as it was written.
    fn value(&self, policy: &ObjectKey, path: &YamlPath) -> Option<&'a Tree> {
        source::value(self.documents.get(policy)?, path)
    }

    /// Whether anything can be said of pods.
    fn has_pods(&self) -> bool {
        !self.inventory.kinds.is_empty()
    }

    /// Of these kinds those that policies concern.
    fn networked(&self, kinds: &[usize]) -> Vec<usize> {
        kinds.iter().copied().filter(|at| !self.inventory.kinds[*at].host_network).collect()
    }
}

/// A rule as written, with what was made of it.
struct Rule<'a> {
    direction: Direction,
    path: YamlPath,
    peers: &'a [Peer],
    read: &'a RuleClause,
}

impl Rule<'_> {
    fn peers_path(&self) -> YamlPath {
        self.path.then(match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        })
    }
}

impl Checked<'_> {
    /// The rules of both directions that count.
    fn rules(&self) -> Vec<Rule<'_>> {
        let spec = &self.policy.spec;
        let clauses: &PolicyClauses = &self.read.clauses;
        let mut all = Vec::new();
        // a policy that is closed as a whole has no clauses for what is written
        for (i, (rule, read)) in spec.ingress.iter().zip(clauses.ingress.iter().flatten()).enumerate() {
            let path = at!["spec", "ingress", i];
            all.push(Rule { direction: Direction::Ingress, path, peers: &rule.from, read });
        }
        for (i, (rule, read)) in spec.egress.iter().zip(clauses.egress.iter().flatten()).enumerate() {
            let path = at!["spec", "egress", i];
            all.push(Rule { direction: Direction::Egress, path, peers: &rule.to, read });
        }
        all
    }

    /// All selectors that are written, with their paths; of a subject, true.
    fn selectors(&self) -> Vec<(YamlPath, &LabelSelector, SelectorOf)> {
        let spec = &self.policy.spec;
        let mut all = vec![(at!["spec", "podSelector"], &spec.pod_selector, SelectorOf::Subject)];
        let from = spec.ingress.iter().enumerate().map(|(i, r)| (at!["spec", "ingress", i, "from"], &r.from));
        let to = spec.egress.iter().enumerate().map(|(i, r)| (at!["spec", "egress", i, "to"], &r.to));
        for (path, peers) in from.chain(to) {
            for (i, peer) in peers.iter().enumerate() {
                let path = path.then(i);
                let pods =
                    peer.pod_selector.as_ref().map(|s| (path.then("podSelector"), s, SelectorOf::Pods));
                let namespaces = peer.namespace_selector.as_ref();
                let namespaces =
                    namespaces.map(|s| (path.then("namespaceSelector"), s, SelectorOf::Namespaces));
                all.extend(pods.into_iter().chain(namespaces));
            }
        }
        all
    }

    /// All `ipBlock`s that count, with their paths.
    fn blocks(&self) -> Vec<(Rule<'_>, YamlPath, &IpBlock)> {
        let mut all = Vec::new();
        for rule in self.rules() {
            let peers = rule.peers;
            let path = rule.peers_path();
            for (i, peer) in peers.iter().enumerate() {
                if let Some(block) = &peer.ip_block {
                    let rule = Rule { path: rule.path.clone(), ..rule };
                    all.push((rule, path.then(i).then("ipBlock"), block));
                }
            }
        }
        all
    }
}

/// What a selector selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SelectorOf {
    Subject,
    Pods,
    Namespaces,
}

/// Whether ports let some traffic to (protocol, port) pass; names are looked up by `named`.
fn allows(
    ports: Option<&[PortClause]>,
    protocol: Protocol,
    port: u16,
    named: impl Fn(&str, Protocol) -> bool,
) -> bool {
    ports.is_none_or(|ports| {
        ports.iter().any(|clause| match clause {
            PortClause::Range(p, first, last) => *p == protocol && (*first..=*last).contains(&port),
            PortClause::Named(name, p) => *p == protocol && named(name, *p),
            PortClause::Nothing => false,
        })
    })
}

/// "1 pod", "2 pods".
fn pods(count: usize) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}
