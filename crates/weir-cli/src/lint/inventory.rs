//! Who is there, for selectors to match: pods of one kind (the same namespace, labels and ports) once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use weir_compiler::object::{Labels, NamedPort, ObjectKey, Protocol};
use weir_compiler::policy::PeerClause;
use weir_compiler::selector::{Anchor, Selector};

use crate::cluster::PodState;

/// What a manifest says of a pod that no rule of a node depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Facts {
    /// The ports that containers declare, with a name or without.
    pub(crate) declared: BTreeSet<(Protocol, u16)>,
    /// It can run on Windows nodes only.
    pub(crate) windows: bool,
    /// It has a service account of its own.
    pub(crate) calls_api: bool,
}

/// Pods of one kind.
#[derive(Debug, Clone)]
pub(crate) struct PodKind {
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) host_network: bool,
    pub(crate) named: Vec<NamedPort>,
    pub(crate) facts: Facts,
    /// Those of its pods' that the manifests have.
    pub(crate) addresses: Vec<IpAddr>,
    /// One of them.
    pub(crate) example: ObjectKey,
    pub(crate) count: usize,
}

impl PodKind {
    /// Whether a container declares the port, by name or without.
    pub(crate) fn declares(&self, protocol: Protocol, port: u16) -> bool {
        let named = self.named.iter().map(|p| (p.protocol, p.port));
        let declared = self.facts.declared.iter().copied();
        named.chain(declared).any(|declared| declared == (protocol, port))
    }

    /// All ports that its containers declare, as people write them.
    pub(crate) fn ports(&self) -> BTreeSet<String> {
        let declared = self.facts.declared.iter();
        let numbers = declared.filter(|(p, n)| !self.named.iter().any(|o| (o.protocol, o.port) == (*p, *n)));
        let named = self.named.iter().map(|p| format!("{}/{} ({})", p.port, p.protocol, p.name));
        named.chain(numbers.map(|(p, n)| format!("{n}/{p}"))).collect()
    }
}

/// The kinds that a selector of namespaces and one of pods match.
type Answers = HashMap<(Selector, Selector), Rc<Vec<usize>>>;

/// All pods and namespaces.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) kinds: Vec<PodKind>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    by_namespace: HashMap<String, Vec<usize>>,
    by_value: HashMap<(String, String), Vec<usize>>,
    by_key: HashMap<String, Vec<usize>>,
    asked: RefCell<Answers>,
}

impl Inventory {
    /// Of pods that have not finished.
    pub(crate) fn new<'a>(
        pods: impl Iterator<Item = &'a PodState>,
        namespaces: BTreeMap<String, Labels>,
        facts: impl Fn(&PodState) -> Facts,
    ) -> Inventory {
        let mut inventory = Inventory { namespaces, ..Inventory::default() };
        let mut known = HashMap::new();
        for state in pods.filter(|state| !state.pod.finished) {
            let (pod, facts) = (&state.pod, facts(state));
            let what = (&pod.key.namespace, &pod.labels, pod.host_network, &pod.ports, facts.clone());
            let at = *known.entry(what).or_insert_with(|| {
                inventory.kinds.push(PodKind {
                    namespace: pod.key.namespace.clone(),
                    labels: pod.labels.clone(),
                    host_network: pod.host_network,
                    named: pod.ports.clone(),
                    facts,
                    addresses: Vec::new(),
                    example: pod.key.clone(),
                    count: 0,
                });
                inventory.kinds.len() - 1
            });
            let kind = &mut inventory.kinds[at];
            kind.count += 1;
            if !state.stand_in {
                kind.addresses.extend(&pod.ips);
            }
        }
        for (at, kind) in inventory.kinds.iter().enumerate() {
            inventory.by_namespace.entry(kind.namespace.clone()).or_default().push(at);
            for (key, value) in &kind.labels {
                inventory.by_value.entry((key.clone(), value.clone())).or_default().push(at);
                inventory.by_key.entry(key.clone()).or_default().push(at);
            }
        }
        inventory
    }

    /// The kinds that both selectors match, in the host's network or not.
    pub(crate) fn matching(&self, namespaces: &Selector, pods: &Selector) -> Rc<Vec<usize>> {
        let question = (namespaces.clone(), pods.clone());
        if let Some(known) = self.asked.borrow().get(&question) {
            return known.clone();
        }
        let of: BTreeSet<&str> = self.matching_namespaces(namespaces).collect();
        let fits = |at: &usize| {
            let kind = &self.kinds[*at];
            of.contains(kind.namespace.as_str()) && pods.matches(&kind.labels)
        };
        let list = |found: Option<&Vec<usize>>| found.into_iter().flatten().copied().collect::<Vec<_>>();
        let candidates = match pods.anchor() {
            _ if of.len() == 1 => list(of.first().and_then(|one| self.by_namespace.get(*one))),
            Anchor::Values(key, values) => {
                let of_value = |v: &String| list(self.by_value.get(&(key.to_owned(), v.clone())));
                values.iter().flat_map(of_value).collect()
            }
            Anchor::Key(key) => list(self.by_key.get(key)),
            Anchor::None => (0..self.kinds.len()).collect(),
        };
        let mut found: Vec<usize> = candidates.into_iter().filter(fits).collect();
        found.sort_unstable();
        let found = Rc::new(found);
        self.asked.borrow_mut().insert(question, found.clone());
        found
    }

    /// The kinds that a peer means: pods with a network of their own (N25).
    pub(crate) fn peers(&self, peer: &PeerClause) -> Vec<usize> {
        let PeerClause::Pods { namespaces, pods } = peer else { return Vec::new() };
        let found = self.matching(namespaces, pods);
        found.iter().copied().filter(|at| !self.kinds[*at].host_network).collect()
    }

    /// The names of the namespaces that a selector matches.
    pub(crate) fn matching_namespaces(&self, selector: &Selector) -> impl Iterator<Item = &str> {
        self.namespaces.iter().filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name.as_str())
    }

    /// How many pods these are.
    pub(crate) fn count(&self, kinds: &[usize]) -> usize {
        kinds.iter().map(|at| self.kinds[*at].count).sum()
    }
}
