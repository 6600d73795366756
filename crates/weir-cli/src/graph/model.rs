//! Who may talk to whom, small enough to draw.
//!
//! * Workloads of a namespace that policies cannot tell apart are one node.
//! * What a node accepts from everybody, or may send to everybody, is said at the node and is no edge.
//! * Edges are there where a rule at one end names the other. Those from (or to) all nodes of a namespace, or to all
//!   pods there are, are one edge.

use std::collections::{BTreeMap, BTreeSet};

use weir_compiler::flow::PodToOwnNode;
use weir_compiler::slice::Direction;

use crate::cluster::Cluster;
use crate::parties::{Roll, Workload, addresses};
use crate::reach::traffic::{ALL, Traffic};
use crate::reach::{PodEnd, Reach, State, Who};

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// No pods of this cluster, or all of them.
    Everybody,
    Namespace(String),
}

/// A box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) lane: Lane,
    /// Workloads by name, or what it stands for.
    pub(super) names: Vec<String>,
    pub(super) pods: usize,
    /// It stands for many: all pods (of a namespace), or addresses.
    pub(super) whole: bool,
    /// What passes from and to everybody.
    pub(super) from_all: Traffic,
    pub(super) to_all: Traffic,
    /// Among its own pods, if it is not what everybody has.
    pub(super) among: Traffic,
    pub(super) isolated: [bool; 2],
}

impl Node {
    pub(super) fn is_isolated(&self, direction: Direction) -> bool {
        self.isolated[direction as usize]
    }
}

/// An arrow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) traffic: Traffic,
}

/// Boxes and arrows.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
    /// Pods in their nodes' network that nobody names.
    pub(super) hosts: usize,
    /// Pods without an address of the family.
    pub(super) others: usize,
}

impl Graph {
    /// Of the pods with addresses of a family; with `only`, what concerns these namespaces.
    pub(super) fn new(cluster: &Cluster, v4: bool, own_node: PodToOwnNode, only: Option<&str>) -> Graph {
        let roll = Roll::new(&[cluster]);
        let state = || State {
            pods: cluster
                .pods
                .values()
                .filter(|p| p.out.is_none())
                .map(|p| PodEnd {
                    key: &p.pod.key,
                    addresses: &p.addresses,
                    node: p.pod.node.as_deref(),
                    host_network: p.pod.host_network,
                })
                .collect(),
            slice: &cluster.slice,
        };
        let mut reach = Reach::new(&[state(), state()], v4, own_node);
        let mut builder = Builder::default();
        builder.graph.others = cluster.pods.values().filter(|p| p.out.is_none()).count() - reach.pods.len();
        builder.boxes(&reach, &roll);
        builder.arrows(&mut reach);
        builder.merge();
        builder.finish(only)
    }
}

#[derive(Debug, Default)]
struct Builder {
    graph: Graph,
    /// The nodes of a class: of pods several, where its workloads are of several namespaces or kinds.
    of_class: Vec<Vec<usize>>,
    /// By (from, to).
    arrows: BTreeMap<(usize, usize), Traffic>,
    /// By namespace; all of them are pods.
    members: BTreeMap<String, BTreeSet<usize>>,
}

impl Builder {
    fn boxes(&mut self, reach: &Reach, roll: &Roll) {
        let mut classes_of: BTreeMap<&Workload, BTreeMap<usize, usize>> = BTreeMap::new();
        for (at, class) in reach.classes.iter().enumerate() {
            let Who::Pods(pods) = &class.who else { continue };
            for workload in pods.iter().filter_map(|p| roll.workload(&reach.pods[*p as usize])) {
                *classes_of.entry(workload).or_default().entry(at).or_default() += 1;
            }
        }
        self.of_class = vec![Vec::new(); reach.classes.len()];
        let mut alike: BTreeMap<_, Vec<(&Workload, usize)>> = BTreeMap::new();
        for (workload, classes) in &classes_of {
            let pods = classes.values().sum();
            let key: (&str, Vec<usize>) = (&workload.namespace, classes.keys().copied().collect());
            alike.entry(key).or_default().push((workload, pods));
        }
        for ((namespace, classes), workloads) in alike {
            let index = self.graph.nodes.len();
            let any = |direction| {
                // what passes for each of its pods
                let bases = classes.iter().map(|c| reach.traffic(reach.base(*c, direction)).clone());
                bases.reduce(|a, b| a.and(&b)).unwrap_or_default()
            };
            let isolated = Direction::BOTH.map(|d| classes.iter().any(|c| reach.is_isolated(*c, d)));
            self.graph.nodes.push(Node {
                lane: Lane::Namespace(namespace.to_owned()),
                names: workloads.iter().map(|(w, _)| w.name.clone()).collect(),
                pods: workloads.iter().map(|(_, pods)| pods).sum(),
                whole: false,
                from_all: any(Direction::Ingress),
                to_all: any(Direction::Egress),
                among: Traffic::default(),
                isolated,
            });
            classes.iter().for_each(|c| self.of_class[*c].push(index));
            // the host's network is nobody's peer by selectors: it does not count for "all of a namespace"
            if !classes.iter().all(|c| reach.is_host(*c)) {
                self.members.entry(namespace.to_owned()).or_default().insert(index);
            }
        }
        for (at, class) in reach.classes.iter().enumerate() {
            if let Who::Addresses(set) = &class.who {
                self.of_class[at].push(self.graph.nodes.len());
                self.graph.nodes.push(Node::standing_for(Lane::Everybody, addresses(set)));
            }
        }
    }

    fn arrows(&mut self, reach: &mut Reach) {
        for ((from, to), traffic) in reach.named_pairs() {
            let passes = reach.traffic(traffic);
            if passes.is_empty() {
                continue;
            }
            for &a in &self.of_class[from as usize] {
                for &b in &self.of_class[to as usize] {
                    let known = self.arrows.entry((a, b)).or_default();
                    *known = known.or(passes);
                }
            }
        }
        // what everybody may is said at the box; only what is more than that is an arrow
        let nodes = &mut self.graph.nodes;
        let arrows = std::mem::take(&mut self.arrows);
        for ((from, to), traffic) in arrows {
            let free = nodes[from].to_all.is_all() && !traffic.minus(&nodes[to].from_all).is_empty();
            let open = nodes[to].from_all.is_all() && !traffic.minus(&nodes[from].to_all).is_empty();
            let implied = nodes[from].to_all.and(&nodes[to].from_all);
            if !(free || open || !traffic.minus(&implied).is_empty()) {
                continue;
            }
            if from == to {
                nodes[from].among = traffic;
            } else {
                self.arrows.insert((from, to), traffic);
            }
        }
        debug_assert_eq!(reach.traffic(ALL), &Traffic::all());
    }

    /// Arrows from all of a namespace, and from all pods, become one; then the same for those to.
    fn merge(&mut self) {
        for outgoing in [false, true] {
            let mut by_end: BTreeMap<(usize, Traffic), BTreeSet<usize>> = BTreeMap::new();
            for ((from, to), traffic) in std::mem::take(&mut self.arrows) {
                let (end, other) = if outgoing { (from, to) } else { (to, from) };
                by_end.entry((end, traffic)).or_default().insert(other);
            }
            for ((end, traffic), mut others) in by_end {
                // a node among its own namespace's: its own pods are told of at the box
                let with_own = |members: &BTreeSet<usize>, others: &BTreeSet<usize>, nodes: &[Node]| {
                    members.iter().all(|m| {
                        others.contains(m)
                            || (*m == end && (nodes[end].pods == 1 || nodes[end].among == traffic))
                    })
                };
                let mut found = Vec::new();
                let all: BTreeSet<usize> = self.members.values().flatten().copied().collect();
                if all.len() > 2 && with_own(&all, &others, &self.graph.nodes) {
                    found.push((Lane::Everybody, "every pod".to_owned()));
                    others.retain(|o| !all.contains(o));
                } else {
                    for (namespace, members) in &self.members {
                        let besides = members.iter().filter(|m| **m != end).count();
                        if besides > 1 && with_own(members, &others, &self.graph.nodes) {
                            found.push((Lane::Namespace(namespace.clone()), format!("all of {namespace}")));
                            others.retain(|o| !members.contains(o));
                        }
                    }
                }
                let standing: Vec<usize> =
                    found.into_iter().map(|(lane, name)| self.standing_for(lane, name)).collect();
                for other in others.into_iter().chain(standing) {
                    let pair = if outgoing { (end, other) } else { (other, end) };
                    let known = self.arrows.entry(pair).or_default();
                    *known = known.or(&traffic);
                }
            }
        }
    }

    fn standing_for(&mut self, lane: Lane, name: String) -> usize {
        let same = |n: &Node| n.whole && n.lane == lane && n.names[0] == name;
        if let Some(known) = self.graph.nodes.iter().position(same) {
            return known;
        }
        self.graph.nodes.push(Node::standing_for(lane, name));
        self.graph.nodes.len() - 1
    }

    /// Without what nothing is said of.
    fn finish(mut self, only: Option<&str>) -> Graph {
        let of_it = |n: &Node| only.is_none_or(|only| n.lane == Lane::Namespace(only.to_owned()));
        let nodes = &self.graph.nodes;
        self.arrows.retain(|(from, to), _| of_it(&nodes[*from]) || of_it(&nodes[*to]));
        let used: BTreeSet<usize> = self.arrows.keys().flat_map(|(a, b)| [*a, *b]).collect();
        let in_members: BTreeSet<usize> = self.members.values().flatten().copied().collect();
        let mut numbers = BTreeMap::new();
        let mut kept = Vec::new();
        for (at, node) in std::mem::take(&mut self.graph.nodes).into_iter().enumerate() {
            let is_pod = in_members.contains(&at) && of_it(&node);
            if used.contains(&at) || is_pod {
                numbers.insert(at, kept.len());
                kept.push(node);
            } else if !node.whole && !in_members.contains(&at) {
                self.graph.hosts += node.pods;
            }
        }
        self.graph.nodes = kept;
        self.graph.edges = self
            .arrows
            .into_iter()
            .map(|((from, to), traffic)| Edge { from: numbers[&from], to: numbers[&to], traffic })
            .collect();
        self.graph
    }
}

impl Node {
    fn standing_for(lane: Lane, name: String) -> Node {
        Node {
            lane,
            names: vec![name],
            pods: 0,
            whole: true,
            from_all: Traffic::all(),
            to_all: Traffic::all(),
            among: Traffic::default(),
            isolated: [false, false],
        }
    }
}
