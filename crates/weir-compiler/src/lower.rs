//! From the clauses of a policy to rules of the graph.

use std::sync::Arc;

use crate::cidr::CidrSet;
use crate::graph::{Graph, Vertex};
use crate::identity::peer_set_id;
use crate::object::Protocol;
use crate::policy::{PeerClause, PolicyClauses, PortClause, RuleClause};
use crate::population::Population;
use crate::ports::PortSet;
use crate::selector::Selector;
use crate::slice::{Action, Direction, PeerSet, PeerSetId};
use crate::small::{Places, place};

/// A policy's rules in the graph. Holds references to vertices; [`Lowered::release`] gives them back.
#[derive(Debug)]
pub(crate) struct Lowered {
    /// They are not enforced (U29).
    pub(crate) audit: bool,
    ingress: Option<Vec<LoweredRule>>,
    egress: Option<Vec<LoweredRule>>,
}

/// One rule.
#[derive(Debug)]
pub(crate) enum LoweredRule {
    /// The same for every pod.
    Fixed(Vertex),
    /// An ingress rule with named ports, which each selected pod resolves for itself (N55).
    Named {
        /// `None`: any peer.
        peers: Option<Vec<Vertex>>,
        /// The ports by number.
        ranges: Vec<(Protocol, u16, u16)>,
        /// The ports by name.
        names: Vec<(String, Protocol)>,
    },
}

impl Lowered {
    pub(crate) fn new(
        audit: bool,
        clauses: &PolicyClauses,
        graph: &mut Graph,
        population: &mut Population,
        peer_sets: &mut PeerSets,
    ) -> Self {
        let mut lower = Lower { graph, population, peer_sets };
        Lowered {
            audit,
            ingress: clauses
                .ingress
                .as_ref()
                .map(|rules| rules.iter().filter_map(|r| lower.ingress(r)).collect()),
            egress: clauses.egress.as_ref().map(|rules| rules.iter().flat_map(|r| lower.egress(r)).collect()),
        }
    }

    /// `None`: the policy does not isolate in this direction.
    pub(crate) fn rules(&self, direction: Direction) -> Option<&[LoweredRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Gives all references back: the peer sets that died of it.
    pub(crate) fn release(self, graph: &mut Graph) -> Vec<Vertex> {
        let mut dead = Vec::new();
        for rule in [self.ingress, self.egress].into_iter().flatten().flatten() {
            match rule {
                LoweredRule::Fixed(rule) => graph.release(rule, &mut dead),
                LoweredRule::Named { peers, .. } => {
                    peers.into_iter().flatten().for_each(|p| graph.release(p, &mut dead));
                }
            }
        }
        dead
    }
}

struct Lower<'a> {
    graph: &'a mut Graph,
    population: &'a mut Population,
    peer_sets: &'a mut PeerSets,
}

impl Lower<'_> {
    fn ingress(&mut self, rule: &RuleClause) -> Option<LoweredRule> {
        let (ranges, names) = split_ports(rule);
        let numbers = match &ranges {
            None => PortSet::Any,
            Some(ranges) => PortSet::from_ranges(ranges.iter().copied()),
        };
        if numbers.is_empty() && names.is_empty() {
            return None; // ports that cannot be read: it matches nothing
        }
        let peers = self.peers(rule)?;
        if names.is_empty() {
            return Some(LoweredRule::Fixed(self.rule(peers, numbers)));
        }
        Some(LoweredRule::Named { peers, ranges: ranges.unwrap_or_default(), names })
    }

    fn egress(&mut self, rule: &RuleClause) -> Vec<LoweredRule> {
        let (ranges, names) = split_ports(rule);
        let numbers = match ranges {
            None => PortSet::Any,
            Some(ranges) => PortSet::from_ranges(ranges),
        };
        let mut rules = Vec::new();
        if !numbers.is_empty()
            && let Some(peers) = self.peers(rule)
        {
            rules.push(LoweredRule::Fixed(self.rule(peers, numbers)));
        }
        // N56: a name means a port of the destination pod
        let mut endpoints = Vec::new();
        for (name, protocol) in names {
            for (namespaces, pods, within) in endpoint_peers(rule) {
                let selection = self.population.retain(&namespaces, &pods);
                let set = PeerSet::Endpoints { namespaces, pods, within, name: name.clone(), protocol };
                endpoints.push(self.peer_set(peer_set_id(&set), selection, || set));
            }
        }
        if !endpoints.is_empty() {
            rules.push(LoweredRule::Fixed(self.rule(Some(endpoints), PortSet::Any)));
        }
        rules
    }

    fn rule(&mut self, peers: Option<Vec<Vertex>>, ports: PortSet) -> Vertex {
        let ports = self.graph.port_set(ports);
        self.graph.rule(Action::Accept, peers, ports)
    }

    /// The peer sets of a rule. `Some(None)`: any peer. `None`: no peer that can be read.
    fn peers(&mut self, rule: &RuleClause) -> Option<Option<Vec<Vertex>>> {
        let Some(clauses) = &rule.peers else { return Some(None) };
        let mut sets = Vec::new();
        for clause in clauses {
            if let PeerClause::Pods { namespaces, pods } = clause {
                sets.push(self.pods(namespaces, pods));
            }
        }
        if let Some(cidrs) = all_cidrs(clauses) {
            let set = PeerSet::Cidrs(cidrs);
            sets.push(self.graph.peer_set(peer_set_id(&set), || set).0);
        }
        (!sets.is_empty()).then_some(Some(sets))
    }

    fn pods(&mut self, namespaces: &Selector, pods: &Selector) -> Vertex {
        let selection = self.population.retain(namespaces, pods);
        let set = || PeerSet::Pods { namespaces: namespaces.clone(), pods: pods.clone() };
        self.peer_set(self.population.selection(selection).id, selection, set)
    }

    /// A peer set whose members come from a selection, to which it takes over the reference.
    fn peer_set(&mut self, id: PeerSetId, selection: u32, set: impl FnOnce() -> PeerSet) -> Vertex {
        let (vertex, new) = self.graph.peer_set(id, set);
        if new {
            self.population.attach(selection, vertex, self.graph.content(vertex));
            self.peer_sets.0.insert(place(vertex.index()), selection);
        } else {
            self.population.release(selection);
        }
        vertex
    }
}

/// The ports by number (`None`: the rule has no ports, hence all traffic), and those by name.
type SplitPorts = (Option<Vec<(Protocol, u16, u16)>>, Vec<(String, Protocol)>);

fn split_ports(rule: &RuleClause) -> SplitPorts {
    let Some(clauses) = &rule.ports else { return (None, Vec::new()) };
    let (mut ranges, mut names) = (Vec::new(), Vec::new());
    for clause in clauses {
        match clause {
            PortClause::Range(protocol, first, last) => ranges.push((*protocol, *first, *last)),
            PortClause::Named(name, protocol) => names.push((name.clone(), *protocol)),
            PortClause::Nothing => {}
        }
    }
    (Some(ranges), names)
}

/// The ports of a rule by name.
pub(crate) fn names(rule: &RuleClause) -> Vec<(String, Protocol)> {
    split_ports(rule).1
}

/// All ipBlock peers of a rule as one set: exceptions were taken out of each on its own (T1).
fn all_cidrs(clauses: &[PeerClause]) -> Option<Arc<CidrSet>> {
    let mut sets = clauses.iter().filter_map(|clause| match clause {
        PeerClause::Cidrs(set) => Some(set),
        PeerClause::Pods { .. } | PeerClause::Nothing => None,
    });
    let first = sets.next()?;
    let mut rest = sets.peekable();
    let all = match rest.peek() {
        None => first.clone(),
        Some(_) => Arc::new(CidrSet::union([first].into_iter().chain(rest).map(Arc::as_ref))),
    };
    (!all.is_empty()).then_some(all)
}

/// The pods at which a named egress port of this rule is looked up. One entry for all CIDRs.
pub(crate) fn endpoint_peers(rule: &RuleClause) -> Vec<(Selector, Selector, Option<Arc<CidrSet>>)> {
    let everything = |within| (Selector::everything(), Selector::everything(), within);
    let Some(clauses) = &rule.peers else { return vec![everything(None)] };
    let mut all: Vec<_> = clauses
        .iter()
        .filter_map(|clause| match clause {
            PeerClause::Pods { namespaces, pods } => Some((namespaces.clone(), pods.clone(), None)),
            PeerClause::Cidrs(_) | PeerClause::Nothing => None,
        })
        .collect();
    all.extend(all_cidrs(clauses).map(|cidrs| everything(Some(cidrs))));
    all
}

/// Which peer sets of the graph have members of their own, and from which selections these come.
#[derive(Debug, Default)]
pub(crate) struct PeerSets(Places<u32, u32>);

impl PeerSets {
    /// The selection of a vertex; `None` if the vertex has no members of its own.
    pub(crate) fn selection(&self, vertex: Vertex) -> Option<u32> {
        self.0.get(&place(vertex.index())).copied()
    }

    /// Lets go of what belonged to peer sets that died.
    pub(crate) fn bury(&mut self, dead: Vec<Vertex>, population: &mut Population) {
        for vertex in dead {
            if let Some(selection) = self.0.remove(&place(vertex.index())) {
                population.detach(selection, vertex);
            }
        }
    }
}
