//! What there is: pods, policies, where they stand, and one slice that has all pods.
//!
//! The evaluator asks a slice, which is usually that of a node. Here all pods are in one, since the
//! slice of a pod does not depend on where it runs; where that matters (N71), `weir_compiler::flow`
//! knows it from the pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail};
use weir_compiler::cidr::CidrSet;
use weir_compiler::flow::{End, PodToOwnNode};
use weir_compiler::object::{Event, Labels, ObjectKey, Pod, Policy};
use weir_compiler::policy::{Effect, PeerClause, PolicyClauses, ReadPolicy, namespace_labels};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Budgets, Compiler, Deltas, Scope, read_within};
use weir_source::inventory::{EndpointSlice, Node, Owner, PodDetails, Service};
use weir_source::tree::Tree;
use weir_source::{Id, Place, Problem};

use crate::addresses::StandIns;
use crate::excerpt::{self, Sources};
use crate::input::Found;
use crate::{refused, workloads};

/// The node on which all pods are compiled.
const NODE: &str = "all";

/// Where NodeLocal DNSCache listens on every node, unless it was told otherwise.
pub(crate) const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// How many warnings are told.
const WARNINGS: usize = 50;

/// How many names are listed in a note.
const NAMED: usize = 10;

/// A pod.
#[derive(Debug, Clone)]
pub(crate) struct PodState {
    pub(crate) pod: Pod,
    /// Those that are its own (N77), or stand-ins.
    pub(crate) addresses: Vec<IpAddr>,
    /// The manifests have no address of it.
    pub(crate) stand_in: bool,
    /// Why nothing can be said of it.
    pub(crate) out: Option<String>,
    /// No pod at all, but an address that none of them has: a machine, a node, or something on a node.
    pub(crate) bare_address: bool,
    /// Who made it, or would.
    pub(crate) workload: Option<Owner>,
    /// What policies do not look at.
    pub(crate) details: PodDetails,
    /// It is not there: it stands for those that its workload would make.
    pub(crate) made_up: bool,
    /// What it is called, if that is neither its name nor its address: a node, a range of addresses.
    pub(crate) label: Option<String>,
    /// It is on every node, hence on the other end's.
    pub(crate) everywhere: bool,
}

impl PodState {
    /// As people call it: `NAMESPACE/NAME`, or the address.
    pub(crate) fn name(&self) -> String {
        match &self.label {
            Some(label) => label.clone(),
            None if self.bare_address => self.addresses[0].to_string(),
            None => self.pod.key.to_string(),
        }
    }

    /// What is no pod, but has addresses.
    pub(crate) fn bare(name: &str, addresses: Vec<IpAddr>) -> PodState {
        let pod = Pod {
            key: ObjectKey::new("", name),
            uid: String::new(),
            labels: Labels::new(),
            node: None,
            ips: addresses.clone(),
            host_network: true,
            finished: false,
            terminating: false,
            created: 0,
            ports: Vec::new(),
        };
        PodState { addresses, bare_address: true, ..PodState::of(pod) }
    }

    /// Of a pod, with nothing known beside it.
    fn of(pod: Pod) -> PodState {
        PodState {
            pod,
            addresses: Vec::new(),
            stand_in: false,
            out: None,
            bare_address: false,
            workload: None,
            details: PodDetails::default(),
            made_up: false,
            label: None,
            everywhere: false,
        }
    }
}

/// Something wrong with what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning {
    /// Where, what and why, in one line.
    pub(crate) text: String,
    /// The line of the file.
    pub(crate) excerpt: Option<String>,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// All that there is.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) pods: BTreeMap<ObjectKey, PodState>,
    pub(crate) policies: BTreeMap<ObjectKey, Policy>,
    /// Policies as written, with lines.
    pub(crate) documents: BTreeMap<ObjectKey, Tree>,
    pub(crate) services: BTreeMap<ObjectKey, Service>,
    pub(crate) endpoint_slices: Vec<EndpointSlice>,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// The namespace of what is named without one.
    pub(crate) default_namespace: String,
    /// It comes from an API server.
    pub(crate) live: bool,
    /// What agents are told to do with policies, if that was asked for and is known.
    pub(crate) mode: Option<String>,
    pub(crate) places: BTreeMap<ObjectKey, Place>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    /// Those in which allowed connections are told of: all (1), or one of so many.
    pub(crate) log_allowed: BTreeMap<String, u32>,
    /// Policies that cannot be read on the outside: they allow nothing.
    closed: BTreeSet<ObjectKey>,
    /// Policies of which the source of the manifests had to complain.
    complained: BTreeSet<ObjectKey>,
    compiler: Compiler,
    pub(crate) slice: NodeSlice,
    /// What agents were told of pods that call their own node.
    pub(crate) own_node: PodToOwnNode,
    /// What is wrong with the manifests, for standard error.
    pub(crate) warnings: Vec<Warning>,
    /// What the source of the objects complained about.
    pub(crate) problems: Vec<Problem>,
    /// What was assumed.
    pub(crate) notes: Vec<String>,
    pub(crate) sources: Sources,
    ignored: usize,
    /// Who has an address; stand-ins are nobody's.
    by_address: HashMap<IpAddr, ObjectKey>,
    /// Addresses that nobody has, for what has none that is known.
    pub(crate) spare: Vec<IpAddr>,
}

impl Cluster {
    /// Makes one of what was read, with all policies in force; what cannot be read is a warning, and the rest
    /// counts.
    pub(crate) fn new(found: Found) -> Cluster {
        let mut cluster = Cluster::without_policies(found);
        cluster.enforce(|_| true);
        cluster
    }

    /// The same before any policy is in force: the names in a question tell which ones matter.
    pub(crate) fn without_policies(found: Found) -> Cluster {
        let Found { mut inventory, namespace, live, unseen, sources } = found;
        let complained = inventory.problems.iter().filter_map(|p| p.object.as_ref());
        let complained = complained.filter(|id| id.kind == weir_source::Kind::Policy);
        let complained = complained.map(|id| id.key.clone()).collect();
        let events = std::mem::take(&mut inventory.events);
        let places = events.iter().map(Id::of).zip(std::mem::take(&mut inventory.places));
        let places =
            places.filter(|(id, at)| id.kind == weir_source::Kind::Policy && !at.file.as_os_str().is_empty());
        let mut cluster = Cluster {
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            documents: std::mem::take(&mut inventory.policies),
            services: std::mem::take(&mut inventory.services),
            endpoint_slices: std::mem::take(&mut inventory.endpoint_slices),
            nodes: std::mem::take(&mut inventory.nodes),
            default_namespace: namespace,
            live,
            mode: None,
            places: places.map(|(id, at)| (id.key, at)).collect(),
            namespaces: BTreeMap::new(),
            log_allowed: BTreeMap::new(),
            closed: BTreeSet::new(),
            complained,
            compiler: Compiler::with(Scope::Node(NODE.to_owned()), Budgets::default()),
            slice: NodeSlice::default(),
            own_node: PodToOwnNode::default(),
            warnings: Vec::new(),
            problems: Vec::new(),
            notes: unseen,
            sources,
            ignored: inventory.ignored,
            by_address: HashMap::new(),
            spare: Vec::new(),
        };
        let mut pods = Vec::new();
        let mut rest = Vec::new();
        for event in events {
            match event {
                Event::Pod(pod) => pods.push(pod),
                Event::Namespace(namespace) => {
                    let labels = namespace_labels(&namespace.name, &namespace.labels);
                    cluster.namespaces.insert(namespace.name.clone(), labels);
                    if namespace.log_allowed > 0 {
                        cluster.log_allowed.insert(namespace.name.clone(), namespace.log_allowed);
                    }
                    rest.push(Event::Namespace(namespace));
                }
                Event::Policy(policy) => drop(cluster.policies.insert(policy.key(), policy)),
                gone => rest.push(gone),
            }
        }
        let owners = workloads::owners(&inventory, &pods);
        let mut details = std::mem::take(&mut inventory.pods);
        let mut made_up = BTreeSet::new();
        let mut problems = std::mem::take(&mut inventory.problems);
        if !live {
            let made = workloads::stand_ins(&inventory, &owners, &pods);
            problems.extend(made.problems);
            cluster.say(&made.of, "no pods of it in the manifests, judged by its template: ");
            for (pod, detail) in made.pods {
                made_up.insert(pod.key.clone());
                details.insert(pod.key.clone(), detail);
                pods.push(pod);
            }
        }
        for problem in &problems {
            cluster.warn(problem, None);
        }
        cluster.problems = problems;
        let stand_ins = cluster.complete(&mut pods);
        let here = |pod: &Pod| Event::Pod(Pod { node: Some(NODE.to_owned()), ..pod.clone() });
        let deltas = cluster.compiler.apply(rest.into_iter().chain(pods.iter().map(here)));
        cluster.take(&deltas);
        cluster.problems();
        if !live {
            cluster.refusals();
        }
        cluster.add(pods, &stand_ins);
        for (key, state) in &mut cluster.pods {
            state.details = details.remove(key).unwrap_or_default();
            state.made_up = made_up.contains(key);
            state.workload = match state.made_up {
                true => state.details.owner.clone(),
                false => owners.get(key).cloned(),
            };
        }
        cluster
    }

    /// For questions about pods.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn need_pods(&self) -> Result<()> {
        if !self.pods.is_empty() {
            return Ok(());
        }
        self.tell();
        if self.live {
            bail!("there are no pods in this cluster that you may see");
        }
        let others = match self.ignored {
            0 => String::new(),
            n => format!(", and {n} objects of other kinds, which are passed over"),
        };
        bail!(
            "no Pod in the manifests (there are {} NetworkPolicies{others}): pods are needed as \
             kubectl get pods -o yaml prints them, or by hand with metadata.name, namespace and labels; \
             or Deployments and the like",
            self.policies.len()
        );
    }

    fn warn(&mut self, problem: &Problem, path: Option<&str>) {
        let in_object = |part: &&str| {
            !part.contains(' ') && ["metadata", "spec", "status"].iter().any(|root| part.starts_with(root))
        };
        let path = path.or_else(|| problem.reason.split(": ").find(in_object));
        let key = path.and_then(excerpt::last_key);
        let told = self.warnings.len() < WARNINGS;
        let excerpt =
            problem.place.as_ref().filter(|_| told).and_then(|place| self.sources.excerpt(place, key));
        self.warnings.push(Warning { text: problem.to_string(), excerpt });
    }

    /// A note that ends with names, of which not too many are told.
    fn say(&mut self, names: &[String], what: &str) {
        if names.is_empty() {
            return;
        }
        let mut told: Vec<String> = names.iter().take(NAMED).cloned().collect();
        if names.len() > NAMED {
            told.push(format!("{} more", names.len() - NAMED));
        }
        self.notes.push(format!("{what}{}", told.join(", ")));
    }

    /// Where an object, or what is at a path in it, was written.
    pub(crate) fn place_of(&self, policy: &ObjectKey, path: &str) -> Option<Place> {
        let place = self.places.get(policy)?;
        let line = self.documents.get(policy).map_or(0, |tree| excerpt::line_of(tree, path));
        Some(Place { file: place.file.clone(), line: if line > 0 { line } else { place.line } })
    }

    /// Gives addresses to pods without any; returns which.
    fn complete(&mut self, pods: &mut [Pod]) -> BTreeSet<ObjectKey> {
        let written: BTreeSet<IpAddr> = pods.iter().flat_map(|p| &p.ips).copied().collect();
        let v6 = written.iter().any(IpAddr::is_ipv6);
        let v4 = !v6 || written.iter().any(IpAddr::is_ipv4);
        let read: Vec<_> = self.policies.values().map(|p| ReadPolicy::read(p).clauses).collect();
        let mut stand_ins = StandIns::new([v4, v6], read.iter().flat_map(|c| blocks(c)), written);
        self.spare = stand_ins.next();
        let without = pods.iter_mut().filter(|p| p.ips.is_empty() && !p.finished);
        without
            .map(|pod| {
                pod.ips = stand_ins.next();
                pod.key.clone()
            })
            .collect()
    }

    /// Puts the policies of some namespaces in force.
    pub(crate) fn enforce(&mut self, namespace: impl Fn(&str) -> bool) {
        let wanted = self.policies.values().filter(|policy| namespace(&policy.namespace));
        let deltas = self.compiler.apply(wanted.cloned().map(Event::Policy));
        self.take(&deltas);
    }

    fn take(&mut self, deltas: &Deltas) {
        for delta in &deltas.slices {
            self.slice.apply(&delta.changes);
        }
    }

    /// Tells what of policies cannot be enforced.
    fn problems(&mut self) {
        for ReadPolicy { key, problems, .. } in read_within(self.policies.values(), &Budgets::default()) {
            for problem in problems {
                if matches!(problem.effect, Effect::PolicyAllowsNothing | Effect::BeyondBudget) {
                    self.closed.insert(key.clone());
                }
                let id = Id { kind: weir_source::Kind::Policy, key: key.clone() };
                let place = self.place_of(&key, &problem.path);
                // kubectl refuses unknown fields; an API server drops them, or knows them by now
                let taken = matches!(problem.effect, Effect::BeyondBudget | Effect::PolicyIsEnforced);
                let refused = if taken || problem.reason.starts_with("unknown field") {
                    ""
                } else {
                    ", and an API server refuses it"
                };
                let told = Problem { place, object: Some(id), reason: format!("{problem}{refused}") };
                self.warn(&told, Some(&problem.path));
            }
        }
    }

    /// Tells of policies that could never be in force as they are written.
    fn refusals(&mut self) {
        let found: Vec<(ObjectKey, String, String)> = self
            .policies
            .iter()
            .flat_map(|(key, policy)| {
                let all = refused::reasons(policy, self.documents.get(key));
                all.into_iter().map(|(path, reason)| (key.clone(), path, reason))
            })
            .collect();
        for (key, path, reason) in found {
            let place = self.place_of(&key, &path);
            let id = Id { kind: weir_source::Kind::Policy, key };
            let reason =
                format!("{path}: {reason}; an API server refuses the policy, here it counts as written");
            self.warn(&Problem { place, object: Some(id), reason }, Some(&path));
        }
    }

    fn add(&mut self, pods: Vec<Pod>, stand_ins: &BTreeSet<ObjectKey>) {
        let used = pods.iter().map(|p| &p.key.namespace).chain(self.policies.keys().map(|k| &k.namespace));
        let missing: BTreeSet<String> = used.filter(|n| !self.namespaces.contains_key(*n)).cloned().collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().cloned().collect();
            if !self.live {
                self.say(&names, "not in the manifests, assumed without labels of their own: Namespace ");
            }
        }
        for name in missing {
            let labels = namespace_labels(&name, &Labels::new());
            self.namespaces.insert(name, labels);
        }
        for pod in pods {
            let stand_in = stand_ins.contains(&pod.key);
            let owned = |ip: &&IpAddr| {
                pod.host_network || self.slice.pods.get(&pod.key).is_some_and(|p| p.addresses.contains(ip))
            };
            let addresses: Vec<IpAddr> = pod.ips.iter().filter(owned).copied().collect();
            let out = if pod.finished {
                Some("it has finished: it has no network, and policies do not concern it (N75)".to_owned())
            } else if addresses.is_empty() {
                Some("its addresses are by now those of a newer pod (N77)".to_owned())
            } else {
                None
            };
            if out.is_none() && !stand_in {
                for address in &addresses {
                    self.by_address.entry(*address).or_insert_with(|| pod.key.clone());
                }
            }
            self.pods.insert(pod.key.clone(), PodState { addresses, stand_in, out, ..PodState::of(pod) });
        }
    }

    /// Whose an address is: a pod's, a node's, or nobody's. Of that one it is the only address here.
    pub(crate) fn at(&self, address: IpAddr) -> PodState {
        if let Some(state) = self.owner(address) {
            let addresses = vec![address];
            return PodState { addresses, ..state.clone() };
        }
        let mut state = PodState::bare(&address.to_string(), vec![address]);
        state.everywhere = address == NODE_LOCAL_DNS;
        let node = self.nodes.values().find(|node| node.addresses.contains(&address));
        state.pod.node = node.map(|node| node.name.clone());
        state
    }

    /// The pod that has an address; of those in a node's network, any, for they are on one node.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&PodState> {
        self.pods.get(self.by_address.get(&address)?)
    }

    /// Of what is called, without its namespace, in messages: a pod of the manifests, or of the cluster.
    pub(crate) fn whence(&self) -> &'static str {
        if self.live { "in this cluster" } else { "in the manifests" }
    }

    /// The pod as an end of a flow.
    pub(crate) fn end<'a>(&'a self, state: &'a PodState) -> End<'a> {
        let Pod { key, node, host_network, .. } = &state.pod;
        End { key, node: node.as_deref(), host_network: *host_network, slice: &self.slice }
    }

    /// Why a policy has no rules of a kind, in a few words.
    pub(crate) fn why_no_rules(&self, policy: &ObjectKey, kind: &str) -> String {
        if self.closed.contains(policy) {
            "cannot be read: allows nothing".to_owned()
        } else if self.complained.contains(policy) {
            format!("has no {kind} rules, see the warning about it")
        } else {
            format!("has no {kind} rules")
        }
    }

    /// What the reader of all answers should know: what is not known of pods, and matters.
    pub(crate) fn unknowns(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let stand_ins: Vec<&PodState> = self.pods.values().filter(|p| p.stand_in).collect();
        let chooses = |ip: &IpAddr| {
            self.slice.policies.values().flat_map(|p| blocks(&p.clauses)).any(|b| is_choice(b, *ip))
        };
        // stand-ins are all of the same families
        if stand_ins.first().is_some_and(|p| p.addresses.iter().any(chooses)) {
            notes.push(format!(
                "{} pods have no address in the manifests: ipBlock peers cannot be judged for them, and are taken \
                 not to match unless they are everything",
                stand_ins.len()
            ));
        }
        let on_hosts: Vec<&Pod> = self.pods.values().map(|p| &p.pod).filter(|p| p.host_network).collect();
        let nodeless = |p: &Pod| p.node.is_none() && !p.finished;
        let all_nodes_known = !self.pods.values().any(|p| nodeless(&p.pod));
        if !on_hosts.is_empty() && !all_nodes_known {
            notes.push(
                "the manifests do not say of all pods on which node they are: those that are on the node of a pod \
                 with hostNetwork let it pass, whatever policies say (N71)"
                    .to_owned(),
            );
        }
        notes
    }

    /// The labels of a namespace, as selectors see them.
    pub(crate) fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// Tells what was assumed and what is wrong, on standard error.
    pub(crate) fn tell(&self) {
        for warning in self.warnings.iter().take(WARNINGS) {
            crate::term::note("warning", &warning.text);
            if let Some(excerpt) = &warning.excerpt {
                eprintln!("{excerpt}");
            }
        }
        if self.warnings.len() > WARNINGS {
            crate::term::note("warning", &format!("and {} more", self.warnings.len() - WARNINGS));
        }
        self.notes.iter().for_each(|n| crate::term::note("note", n));
    }
}

/// Whether some addresses of this one's family are in the ranges, and some are not.
pub(crate) fn is_choice(set: &CidrSet, of: IpAddr) -> bool {
    match of {
        IpAddr::V4(_) => !set.v4.is_empty() && !set.v4.is_all(),
        IpAddr::V6(_) => !set.v6.is_empty() && !set.v6.is_all(),
    }
}

/// All ranges of a policy's peers.
pub(crate) fn blocks(clauses: &PolicyClauses) -> impl Iterator<Item = &CidrSet> {
    let rules = clauses.ingress.iter().chain(&clauses.egress).flatten();
    rules.flat_map(|rule| rule.peers.iter().flatten()).filter_map(|peer| match peer {
        PeerClause::Cidrs(set) => Some(&**set),
        _ => None,
    })
}
