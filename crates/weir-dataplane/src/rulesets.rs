//! A ruleset in the kernel: a chain that says `return` to what may pass in its direction and drops the rest.
//!
//! ```text
//!   few rules: in a row                       many rules: by port, then by peer
//!
//!   peer in A, port 80  -> return             peers of rules for all ports -> return
//!   peer in B, ports P  -> return             port ──vmap──┬─> class: peer in A or B -> return
//!   drop                                                   ├─> class: peer in B  -> return
//!                                                          └─> return (any peer)
//!                                             drop
//! ```
//!
//! A class is the ports that the same peers may use (`ports`); where a class has many peer sets, they are
//! merged into one kernel set (`peers`). So the price of a new connection does not depend on how
//! many rules there are or whom they allow; only what follows policies (rules, verdict maps, port
//! sets) is made anew with the ruleset, and what follows pods is plain elements of hash sets.

use std::collections::{BTreeMap, BTreeSet};

use weir_compiler::object::Protocol;
use weir_compiler::ports::PortSet;
use weir_compiler::selector::Selector;
use weir_compiler::slice::{
    Action, Direction, Effect, Entry, NodeSlice, PeerSet, PeerSetId, PortSetId, Rule, Ruleset, RulesetId,
    Tier,
};

use crate::model::{self, Chain, Set, Verdict};
use crate::peers::{Kind, Union};
use crate::planner::{DenialLog, Settings};
use crate::ports::{Segments, port_set_name, port_sets, segments, verdict_map};
use crate::rules::{End, INVALID, IpFamily, Match};

/// What decides how a ruleset is written; the defaults are measured (docs/performance.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// Up to so many rules stand in a row, and that is the whole chain: they can be read, and share
    /// their sets with other rulesets.
    pub in_a_row: usize,
    /// From more sets of pods, or of endpoints, than this on, a class has them merged into one. A
    /// lookup in a row costs 0.05 to 0.18 µs; a merged set is a copy and takes the memory of its members again.
    pub pod_sets: usize,
    /// The same for CIDRs, which are searched for longer, and copied only when policies change.
    pub cidr_sets: usize,
    /// How many times larger than in a row a ruleset may become by classes: ports that overlap in
    /// many ways would multiply peers by ports. Above this it stays in a row.
    pub growth: usize,
}

impl Default for Costs {
    fn default() -> Self {
        Costs { in_a_row: 4, pod_sets: 8, cidr_sets: 2, growth: 4 }
    }
}

impl Costs {
    const fn merged_above(&self, kind: Kind) -> usize {
        match kind {
            Kind::Pods | Kind::Endpoints => self.pod_sets,
            Kind::Cidrs => self.cidr_sets,
        }
    }
}

/// What a ruleset is in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Its chains by name.
    pub(crate) chains: BTreeMap<String, Chain>,
    /// Maps of its own.
    pub(crate) maps: BTreeMap<String, Set>,
    /// What its rules look up.
    pub(crate) peers: BTreeSet<Union>,
    /// Port sets that its rules look up.
    pub(crate) ports: BTreeSet<PortSetId>,
}

impl Layout {
    /// Whether a chain, set or map of this name is part of it.
    pub(crate) fn has(&self, slice: &NodeSlice, name: &str) -> bool {
        let peers = || self.peers.iter().flat_map(|union| IpFamily::BOTH.map(|family| union.name(family)));
        let ports = || self.ports.iter().flat_map(|id| port_sets(*id, &slice.port_sets[id]).into_keys());
        self.chains.contains_key(name)
            || self.maps.contains_key(name)
            || peers().any(|set| set == name)
            || ports().any(|set| set == name)
    }
}

/// The name of a ruleset's chain. `told`: what it would deny is told, and passes (U29).
pub(crate) fn chain_name(id: RulesetId, direction: Direction, told: bool) -> String {
    let audit = if told { "audit_" } else { "" };
    format!("{audit}{}_{}", direction.as_str(), id.name())
}

/// Whether a ruleset's denials are told, and pass.
fn told(ruleset: &Ruleset, settings: &Settings) -> bool {
    settings.audit || ruleset.effect != Effect::Enforce
}

/// A ruleset that the kernel does not take as it is: it drops everything, unless nothing of it is enforced.
pub(crate) fn closed(id: RulesetId, ruleset: &Ruleset, settings: &Settings) -> Layout {
    let told = told(ruleset, settings);
    let drop = (!told).then(|| Match::default().then(Verdict::Drop));
    let chain = Chain { hook: None, rules: drop.into_iter().collect() };
    Layout { chains: [(chain_name(id, ruleset.direction, told), chain)].into(), ..Layout::default() }
}

/// Whether chains of rulesets drop TCP that is new without SYN, as [`Settings::drop_mid_stream`] has it;
/// `None`: there is no chain of a ruleset.
pub fn drops_mid_stream(chains: &BTreeMap<String, Chain>) -> Option<bool> {
    let heads = no_connection(&Settings { drop_mid_stream: true, ..Settings::default() });
    let mut rulesets = chains.values().filter(|chain| chain.rules.first() == heads.first()).peekable();
    rulesets.peek()?;
    Some(rulesets.any(|chain| chain.rules.get(1) == heads.get(1)))
}

/// What isolated pods drop whatever policies say (U27), at the head of a ruleset's chain.
fn no_connection(settings: &Settings) -> Vec<model::Rule> {
    let invalid = Match::default().ct_state(INVALID).then(Verdict::Drop);
    let mid_stream = Match::default().tcp_new_without_syn().then(Verdict::Drop);
    std::iter::once(invalid).chain(settings.drop_mid_stream.then_some(mid_stream)).collect()
}

/// The chains of a ruleset, one for each tier, with all that they refer to.
pub(crate) fn layout(slice: &NodeSlice, id: RulesetId, ruleset: &Ruleset, settings: &Settings) -> Layout {
    let told = told(ruleset, settings);
    let name = chain_name(id, ruleset.direction, told);
    let mut tiers: Vec<Tier> = ruleset.entries.iter().map(|e| e.tier).collect();
    if ruleset.isolated {
        tiers.retain(|tier| *tier <= Tier::NetworkPolicy); // C5: it is final
        tiers.push(Tier::NetworkPolicy);
    }
    tiers.sort_unstable();
    tiers.dedup();
    let name_of = |tier: &Tier| match Some(tier) == tiers.first() {
        true => name.clone(),
        false => format!("{name}_{tier:?}").to_ascii_lowercase(),
    };
    let end = match ruleset.direction {
        Direction::Ingress => End::Source,
        Direction::Egress => End::Destination,
    };
    let mut writer = Writer {
        slice,
        costs: &settings.costs,
        end,
        told,
        log: settings.log_denials.map(|log| (log, name.clone())),
        layout: Layout::default(),
    };
    for (i, tier) in tiers.iter().enumerate() {
        let next = tiers.get(i + 1).map(name_of);
        let entries: Vec<&Entry> = ruleset.entries.iter().filter(|e| e.tier == *tier).collect();
        let mut rules = Vec::new();
        if i == 0 && !told {
            rules.extend(no_connection(settings));
        }
        if ruleset.isolated && *tier == Tier::NetworkPolicy {
            let rules_of_tier: Vec<&Rule> = entries.iter().map(|e| &slice.rules[&e.rule]).collect();
            rules.extend(writer.unordered(&name_of(tier), &rules_of_tier));
        } else {
            let of_entry = |entry: &&Entry| writer.row(&slice.rules[&entry.rule], next.as_deref());
            rules.extend(entries.iter().flat_map(of_entry));
            rules.extend(next.map(|next| Match::default().then(Verdict::Goto(next))));
        }
        writer.layout.chains.insert(name_of(tier), Chain { hook: None, rules });
    }
    writer.layout
}

/// Who may use some ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Peers {
    /// Any peer at all (N13).
    any: bool,
    sets: BTreeMap<Kind, BTreeSet<PeerSetId>>,
}

impl Peers {
    fn add(&mut self, slice: &NodeSlice, rule: &Rule) {
        match &rule.peers {
            None => *self = Peers { any: true, sets: BTreeMap::new() },
            Some(_) if self.any => {}
            Some(ids) => {
                for id in ids {
                    self.sets.entry(Kind::of(&slice.peer_sets[id].set)).or_default().insert(*id);
                }
                self.only_everything(slice);
            }
        }
    }

    fn join(&mut self, slice: &NodeSlice, other: &Peers) {
        if self.any || other.any {
            *self = Peers { any: true, sets: BTreeMap::new() };
            return;
        }
        for (kind, ids) in &other.sets {
            self.sets.entry(*kind).or_default().extend(ids);
        }
        self.only_everything(slice);
    }

    /// Beside the set of all pods, no other set of pods says anything.
    fn only_everything(&mut self, slice: &NodeSlice) {
        let Some(pods) = self.sets.get_mut(&Kind::Pods) else { return };
        let everything = Selector::everything();
        let is_all = |id: &&PeerSetId| {
            matches!(&slice.peer_sets[*id].set,
            PeerSet::Pods { namespaces, pods } if *namespaces == everything && *pods == everything)
        };
        if pods.len() > 1
            && let Some(all) = pods.iter().find(is_all)
        {
            *pods = [*all].into();
        }
    }

    /// The kernel's sets to look through.
    fn unions(&self, costs: &Costs) -> impl Iterator<Item = Union> {
        self.sets.iter().flat_map(|(kind, ids)| match ids.len() > costs.merged_above(*kind) {
            true => vec![Union::of(*kind, ids)],
            false => ids.iter().map(|id| Union::one(*kind, *id)).collect(),
        })
    }

    /// How many rules it takes, and how many members are copied for it, in sets.
    fn size(&self, costs: &Costs) -> (usize, usize) {
        let merged = |kind: &Kind, n: usize| if n > costs.merged_above(*kind) { (1, n) } else { (n, 0) };
        self.sets
            .iter()
            .map(|(kind, ids)| merged(kind, ids.len()))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }
}

/// The classes of a ruleset's ports.
struct Classes {
    /// May use all ports, and protocols without ports.
    open: Peers,
    classes: Vec<Peers>,
    /// Which class a port has, by protocol.
    by_port: Vec<(Protocol, Segments<usize>)>,
}

impl Classes {
    fn new(slice: &NodeSlice, rules: &[&Rule]) -> Classes {
        let mut by_ports: BTreeMap<PortSetId, Peers> = BTreeMap::new();
        for rule in rules {
            by_ports.entry(rule.ports).or_default().add(slice, rule);
        }
        let mut open = Peers::default();
        let mut groups: Vec<(&PortSet, Peers)> = Vec::new();
        for (id, peers) in by_ports {
            match &slice.port_sets[&id] {
                PortSet::Any => open.join(slice, &peers),
                ports => groups.push((ports, peers)),
            }
        }
        let ports: Vec<&PortSet> = groups.iter().map(|(ports, _)| *ports).collect();
        let mut of_groups: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        let mut classes: BTreeMap<Peers, usize> = BTreeMap::new();
        let by_port = Protocol::ALL.into_iter().map(|protocol| {
            let class = |of: &[usize]| {
                if let Some(class) = of_groups.get(of) {
                    return *class;
                }
                let mut peers = Peers::default();
                of.iter().for_each(|i| peers.join(slice, &groups[*i].1));
                let new = classes.len();
                let class = *classes.entry(peers).or_insert(new);
                of_groups.insert(of.to_vec(), class);
                class
            };
            (protocol, segments(&ports, protocol, class))
        });
        let by_port = by_port.filter(|(_, segments)| !segments.is_empty()).collect();
        let mut all = vec![Peers::default(); classes.len()];
        classes.into_iter().for_each(|(peers, class)| all[class] = peers);
        Classes { open, classes: all, by_port }
    }

    /// Whether this is no more than a few times what the rules are by themselves.
    fn affordable(&self, costs: &Costs, rules: usize, peer_sets: usize) -> bool {
        let sizes = self.classes.iter().chain([&self.open]).map(|peers| peers.size(costs));
        let (rows, copies) = sizes.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        rows <= costs.growth.saturating_mul(rules) && copies <= costs.growth.saturating_mul(peer_sets)
    }
}

struct Writer<'a> {
    slice: &'a NodeSlice,
    costs: &'a Costs,
    /// The peer's end of the packet.
    end: End,
    /// What would be denied passes.
    told: bool,
    /// How denials are told, and under which name.
    log: Option<(DenialLog, String)>,
    layout: Layout,
}

impl Writer<'_> {
    /// The rules of NetworkPolicy's tier, which only accept and have no order (N4), with what ends them.
    fn unordered(&mut self, chain: &str, rules: &[&Rule]) -> Vec<model::Rule> {
        let slice = self.slice;
        let ports = |rule: &Rule| port_matches(rule.ports, &slice.port_sets[&rule.ports]).len();
        let peers = |rule: &Rule| rule.peers.as_ref().map_or(1, |peers| 2 * peers.len());
        let in_a_row: usize = rules.iter().map(|rule| peers(rule) * ports(rule)).sum();
        if in_a_row > self.costs.in_a_row {
            let classes = Classes::new(slice, rules);
            let peer_sets: BTreeSet<&PeerSetId> =
                rules.iter().flat_map(|r| r.peers.iter().flatten()).collect();
            if classes.affordable(self.costs, in_a_row, peer_sets.len()) {
                return self.by_class(chain, classes);
            }
        }
        let mut all: Vec<model::Rule> = rules.iter().flat_map(|rule| self.row(rule, None)).collect();
        all.extend(self.denied());
        all
    }

    /// What a chain ends with.
    fn denied(&self) -> Vec<model::Rule> {
        let log = self.log.as_ref().map(|(log, name)| Match::default().logged(log, name));
        let drop = (!self.told).then(|| Match::default().then(Verdict::Drop));
        log.into_iter().chain(drop).collect()
    }

    fn by_class(&mut self, chain: &str, classes: Classes) -> Vec<model::Rule> {
        let Classes { open, classes, by_port } = classes;
        let mut rules = self.returns(&open);
        if open.any {
            return rules;
        }
        // what all classes end with, once if it is more than one rule
        let mut end = if self.told { Verdict::Return } else { Verdict::Drop };
        if self.log.is_some() {
            let name = format!("{chain}_denied");
            self.layout.chains.insert(name.clone(), Chain { hook: None, rules: self.denied() });
            end = Verdict::Goto(name);
        }
        let verdicts: Vec<Verdict> = classes
            .iter()
            .enumerate()
            .map(|(i, peers)| {
                if peers.any {
                    return Verdict::Return;
                }
                let name = format!("{chain}_{i}");
                let mut rules = self.returns(peers);
                rules.push(Match::default().then(end.clone()));
                self.layout.chains.insert(name.clone(), Chain { hook: None, rules });
                Verdict::Goto(name)
            })
            .collect();
        for (protocol, segments) in by_port {
            let map = format!("{chain}_{}", protocol.as_str().to_ascii_lowercase());
            rules.push(Match::default().port_vmap(protocol, &map));
            let segments = segments.into_iter().map(|(ports, class)| (ports, verdicts[class].clone()));
            self.layout.maps.insert(map, verdict_map(segments.collect()));
        }
        rules.push(Match::default().then(end));
        rules
    }

    /// `return` for these peers.
    fn returns(&mut self, peers: &Peers) -> Vec<model::Rule> {
        if peers.any {
            return vec![Match::default().then(Verdict::Return)];
        }
        let matches: Vec<Match> = peers.unions(self.costs).flat_map(|union| self.union(union)).collect();
        matches.into_iter().map(|m| m.then(Verdict::Return)).collect()
    }

    /// A rule of the graph as rules of the kernel: one for each peer set, family and protocol.
    fn row(&mut self, rule: &Rule, next: Option<&str>) -> Vec<model::Rule> {
        let verdict = match (rule.action, next) {
            (Action::Accept, _) | (Action::Pass, None) => Verdict::Return,
            (Action::Deny, _) if self.told => Verdict::Return,
            (Action::Deny, _) => Verdict::Drop,
            (Action::Pass, Some(next)) => Verdict::Goto(next.to_owned()),
        };
        let peers: Vec<Match> = match &rule.peers {
            None => vec![Match::default()],
            Some(ids) => {
                let kind = |id: &PeerSetId| Kind::of(&self.slice.peer_sets[id].set);
                let unions: Vec<Union> = ids.iter().map(|id| Union::one(kind(id), *id)).collect();
                unions.into_iter().flat_map(|union| self.union(union)).collect()
            }
        };
        let ports = &self.slice.port_sets[&rule.ports];
        self.layout.ports.insert(rule.ports);
        let ports = port_matches(rule.ports, ports);
        peers
            .into_iter()
            .flat_map(|peer| ports.iter().map(move |port| port(peer.clone())))
            .map(|m| m.then(verdict.clone()))
            .collect()
    }

    /// The peer's address is in the union: a match for each family that can be.
    fn union(&mut self, union: Union) -> Vec<Match> {
        let ranges = (union.kind == Kind::Cidrs).then(|| union.ranges(self.slice));
        let mut all = Vec::new();
        for family in IpFamily::BOTH {
            let (none, every) = match (&ranges, family) {
                (Some(c), IpFamily::V4) => (c.v4.is_empty(), c.v4.is_all()),
                (Some(c), IpFamily::V6) => (c.v6.is_empty(), c.v6.is_all()),
                (None, _) => (false, false),
            };
            match union.kind {
                _ if none => {}
                _ if every => all.push(Match::default().ip_family(family)),
                Kind::Endpoints => {
                    all.push(Match::default().endpoint_in(family, self.end, &union.name(family)));
                }
                Kind::Pods | Kind::Cidrs => {
                    all.push(Match::default().address_in(family, self.end, &union.name(family)));
                }
            }
        }
        self.layout.peers.insert(union);
        all
    }
}

type PortMatch<'a> = Box<dyn Fn(Match) -> Match + 'a>;

fn port_matches<'a>(id: PortSetId, ports: &'a PortSet) -> Vec<PortMatch<'a>> {
    let PortSet::Ports(by_protocol) = ports else { return vec![Box::new(|m| m)] };
    let mut all: Vec<PortMatch<'a>> = Vec::new();
    for (protocol, ranges) in Protocol::ALL.into_iter().zip(by_protocol) {
        match ranges.ranges() {
            [] => {}
            [(first, last)] => all.push(Box::new(move |m| m.ports(protocol, *first, *last))),
            _ => all.push(Box::new(move |m| m.port_in(protocol, &port_set_name(id, protocol)))),
        }
    }
    all
}
