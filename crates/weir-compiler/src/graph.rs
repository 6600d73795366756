//! The rule graph: interned, content-addressed vertices, counted references, edges downwards.
//!
//! ```text
//!   Ruleset ──Entry{tier, priority}──> Rule ──Peers──> PeerSet
//!                                       └────Ports──> PortSet
//! ```
//!
//! A vertex lives as long as something refers to it: an edge from above, a policy, a profile, or
//! a node's slice. Who interns a vertex holds a reference to it and must give it back.

use hashbrown::HashMap;
use petgraph::Direction::Outgoing;
use petgraph::stable_graph::{NodeIndex, StableDiGraph, WalkNeighbors};
use petgraph::visit::EdgeRef;

use crate::identity::{Hash, port_set_id};
use crate::ports::PortSet;
use crate::slice::{
    Action, Direction, Effect, Entry, PeerSet, PeerSetId, PortSetId, Rule, RuleId, Ruleset, RulesetId,
};
use crate::small::PlaceMap;

/// A vertex.
pub(crate) type Vertex = NodeIndex<u32>;

#[derive(Debug)]
pub(crate) enum Content {
    PeerSet(PeerSet),
    PortSet(PortSet),
    Rule { action: Action, any_peer: bool },
    Ruleset { direction: Direction, isolated: bool, effect: Effect },
}

#[derive(Debug)]
enum Edge {
    Entry(Entry),
    Peers,
    Ports,
}

#[derive(Debug)]
struct Interned {
    id: [u8; 16],
    refs: u32,
    content: Content,
    /// In which nodes' slices it is, and how many reasons there are for that: vertices above it, and profiles.
    nodes: PlaceMap<u32>,
    /// Where it is in the table of the batch that is being made.
    at: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    vertices: StableDiGraph<Interned, Edge>,
    by_id: HashMap<[u8; 16], Vertex>,
}

impl Graph {
    /// A peer set, whose identity is known, and whether it is new.
    pub(crate) fn peer_set(&mut self, id: PeerSetId, set: impl FnOnce() -> PeerSet) -> (Vertex, bool) {
        self.intern(id.0, || Content::PeerSet(set()))
    }

    /// A port set.
    pub(crate) fn port_set(&mut self, ports: PortSet) -> Vertex {
        self.intern(port_set_id(&ports).0, || Content::PortSet(ports)).0
    }

    /// A rule; takes over the references to its peer sets and ports.
    pub(crate) fn rule(&mut self, action: Action, peers: Option<Vec<Vertex>>, ports: Vertex) -> Vertex {
        let mut hash = Hash::new(b"rule");
        hash.number(action as u64);
        hash.number(peers.is_some().into());
        let any_peer = peers.is_none();
        let mut children = peers.unwrap_or_default();
        let given = children.clone();
        children.sort_unstable_by_key(|v| self.vertices[*v].id);
        children.dedup();
        hash.number(children.len() as u64);
        children.iter().for_each(|v| hash.bytes(&self.vertices[*v].id));
        hash.bytes(&self.vertices[ports].id);
        let (vertex, new) = self.intern(hash.finish(), || Content::Rule { action, any_peer });
        if new {
            for child in children.into_iter().rev() {
                self.retain(child);
                self.vertices.add_edge(vertex, child, Edge::Peers);
            }
            self.retain(ports);
            self.vertices.add_edge(vertex, ports, Edge::Ports);
        }
        // the new edges have references of their own; nothing dies here, for the rule is alive
        given.into_iter().chain([ports]).for_each(|v| self.vertices[v].refs -= 1);
        vertex
    }

    /// A ruleset; the rules keep their references.
    pub(crate) fn ruleset(
        &mut self,
        direction: Direction,
        isolated: bool,
        effect: Effect,
        entries: impl IntoIterator<Item = (crate::slice::Tier, u32, Vertex)>,
    ) -> Vertex {
        let mut entries: Vec<(Entry, Vertex)> = entries
            .into_iter()
            .map(|(tier, priority, v)| (Entry { tier, priority, rule: RuleId(self.vertices[v].id) }, v))
            .collect();
        entries.sort_unstable_by_key(|e| e.0);
        entries.dedup_by_key(|e| e.0);
        let mut hash = Hash::new(b"ruleset");
        hash.number(direction as u64);
        hash.number(isolated.into());
        for (entry, _) in &entries {
            hash.number(entry.tier as u64);
            hash.number(entry.priority.into());
            hash.bytes(&entry.rule.0);
        }
        if effect != Effect::Enforce {
            hash.number(effect as u64);
        }
        let (vertex, new) = self.intern(hash.finish(), || Content::Ruleset { direction, isolated, effect });
        if new {
            for (entry, rule) in entries.into_iter().rev() {
                self.retain(rule);
                self.vertices.add_edge(vertex, rule, Edge::Entry(entry));
            }
        }
        vertex
    }

    fn intern(&mut self, id: [u8; 16], content: impl FnOnce() -> Content) -> (Vertex, bool) {
        if let Some(&vertex) = self.by_id.get(&id) {
            self.vertices[vertex].refs += 1;
            return (vertex, false);
        }
        let interned = Interned { id, refs: 1, content: content(), nodes: PlaceMap::default(), at: None };
        let vertex = self.vertices.add_node(interned);
        self.by_id.insert(id, vertex);
        (vertex, true)
    }

    /// Takes a reference.
    pub(crate) fn retain(&mut self, vertex: Vertex) {
        self.vertices[vertex].refs += 1;
    }

    /// Gives a reference back; vertices that nothing refers to any more go. Peer sets that went
    /// are pushed to `dead`.
    pub(crate) fn release(&mut self, vertex: Vertex, dead: &mut Vec<Vertex>) {
        let mut stack = vec![vertex];
        while let Some(vertex) = stack.pop() {
            self.vertices[vertex].refs -= 1;
            if self.vertices[vertex].refs > 0 {
                continue;
            }
            stack.extend(self.vertices.neighbors_directed(vertex, Outgoing));
            let gone = self.vertices.remove_node(vertex).expect("it was there a line ago");
            self.by_id.remove(&gone.id);
            if matches!(gone.content, Content::PeerSet(_)) {
                dead.push(vertex);
            }
        }
    }

    /// A node's slice needs the vertex for one reason more: whether it is the first.
    pub(crate) fn hold(&mut self, vertex: Vertex, node: u32) -> bool {
        let (count, new) = self.vertices[vertex].nodes.get_or_default(node);
        *count += 1;
        new
    }

    /// For one reason less: whether it was the last.
    pub(crate) fn let_go(&mut self, vertex: Vertex, node: u32) -> bool {
        self.vertices[vertex].nodes.take_one(node)
    }

    /// The nodes whose slices have the vertex.
    pub(crate) fn nodes(&self, vertex: Vertex) -> &PlaceMap<u32> {
        &self.vertices[vertex].nodes
    }

    /// Where the vertex is in the table of the batch that is being made.
    pub(crate) fn at(&mut self, vertex: Vertex) -> &mut Option<u32> {
        &mut self.vertices[vertex].at
    }

    pub(crate) fn content(&self, vertex: Vertex) -> &Content {
        &self.vertices[vertex].content
    }

    pub(crate) fn id(&self, vertex: Vertex) -> [u8; 16] {
        self.vertices[vertex].id
    }

    /// What the vertex refers to, in the order of its edges.
    pub(crate) fn children(&self, vertex: Vertex) -> impl Iterator<Item = Vertex> {
        self.vertices.neighbors_directed(vertex, Outgoing)
    }

    /// The same, one by one, while something else is done with the graph.
    pub(crate) fn walk_children(&self, vertex: Vertex) -> WalkNeighbors<u32> {
        self.vertices.neighbors_directed(vertex, Outgoing).detach()
    }

    /// See [`walk_children`](Graph::walk_children).
    pub(crate) fn next_child(&self, children: &mut WalkNeighbors<u32>) -> Option<Vertex> {
        children.next_node(&self.vertices)
    }

    /// A rule as slices have it.
    pub(crate) fn as_rule(&self, vertex: Vertex) -> Option<Rule> {
        let Content::Rule { action, any_peer } = self.vertices[vertex].content else { return None };
        let (mut peers, mut ports) = (Vec::new(), None);
        for edge in self.vertices.edges_directed(vertex, Outgoing) {
            let id = self.vertices[edge.target()].id;
            match edge.weight() {
                Edge::Peers => peers.push(PeerSetId(id)),
                Edge::Ports => ports = Some(PortSetId(id)),
                Edge::Entry(_) => {}
            }
        }
        peers.sort_unstable();
        Some(Rule { action, peers: (!any_peer).then_some(peers), ports: ports? })
    }

    /// A ruleset as slices have it.
    pub(crate) fn as_ruleset(&self, vertex: Vertex) -> Option<Ruleset> {
        let Content::Ruleset { direction, isolated, effect } = self.vertices[vertex].content else {
            return None;
        };
        let mut entries: Vec<Entry> = self
            .vertices
            .edges_directed(vertex, Outgoing)
            .filter_map(|edge| match edge.weight() {
                Edge::Entry(entry) => Some(*entry),
                Edge::Peers | Edge::Ports => None,
            })
            .collect();
        entries.sort_unstable();
        Some(Ruleset { direction, isolated, effect, entries })
    }

    /// How many vertices there are.
    pub(crate) fn len(&self) -> usize {
        self.vertices.node_count()
    }
}

/// The identity of a ruleset vertex.
pub(crate) fn ruleset_id(graph: &Graph, vertex: Vertex) -> RulesetId {
    RulesetId(graph.id(vertex))
}
