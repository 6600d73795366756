//! May this traffic pass at one of its ends, and which clause says so.
//!
//! The verdict walks the rulesets of a slice, which are what becomes kernel state; the clause is
//! then looked up in the policies that select the pod. A flow passes if both of its ends let it (N3).

use std::net::IpAddr;

use crate::identity::peer_set_id;
use crate::lower::endpoint_peers;
use crate::object::ObjectKey;
use crate::policy::{PeerClause, PortClause, RuleClause};
use crate::ports::L4;
use crate::slice::{
    Action, Direction, Effect, Member, NodeSlice, PeerSet, PeerSetId, RuleId, Ruleset, RulesetId, SlicePod,
    Tier,
};

/// What one end says of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may pass.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
}

/// Why a verdict is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The slice has no such pod: it is on another node, in the host's network, finished, or
    /// without an address, and no policy concerns it here (N70, N74, N75).
    NoSuchPod,
    /// The peer is the pod itself (N73, U3).
    Itself,
    /// No policy isolates the pod in this direction (N1).
    NotIsolated,
    /// This clause allows it. Others may, too.
    Clause(ClauseRef),
    /// No clause of the policies that isolate the pod in this direction allows it.
    NoClause(Vec<ObjectKey>),
}

/// A place in a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClauseRef {
    /// The policy.
    pub policy: ObjectKey,
    /// Its list of rules.
    pub direction: Direction,
    /// Index in that list.
    pub rule: usize,
    /// Index in the rule's `from` or `to`; `None`: there is none, any peer.
    pub peer: Option<usize>,
    /// Index in the rule's `ports`; `None`: there is none, all ports.
    pub port: Option<usize>,
}

/// A clause that does not let the traffic pass, and what of it does match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// A peer with a port; where the rule has several of one that does not match, each of them.
    pub clause: ClauseRef,
    /// The peer matches; the port does not.
    pub peer_matches: bool,
    /// The port matches; the peer does not.
    pub port_matches: bool,
}

impl std::fmt::Display for ClauseRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = self.direction.as_str();
        write!(f, "{} spec.{direction}[{}]", self.policy, self.rule)?;
        if let Some(peer) = self.peer {
            let list = if self.direction == Direction::Ingress { "from" } else { "to" };
            write!(f, " {list}[{peer}]")?;
        }
        if let Some(port) = self.port {
            write!(f, " ports[{port}]")?;
        }
        Ok(())
    }
}

impl NodeSlice {
    /// What a pod's end says of a new connection in a direction: from `peer` to the pod
    /// (ingress), or from the pod to `peer` (egress). `l4` is the destination's port either way (N52).
    ///
    /// What bypasses policy is not known here: replies and related ICMP errors (N90, N93), a node
    /// to its own pods (N71), neighbour discovery (N92).
    pub fn verdict(&self, pod: &ObjectKey, direction: Direction, peer: IpAddr, l4: L4) -> Verdict {
        let allow = |reason| Verdict { allowed: true, reason };
        let Some(state) = self.pods.get(pod) else { return allow(Reason::NoSuchPod) };
        let profile = &self.profiles[&state.profile];
        let Some(ruleset) = profile.ruleset(direction) else { return allow(Reason::NotIsolated) };
        if state.addresses.contains(&peer) {
            return allow(Reason::Itself);
        }
        let ruleset = &self.rulesets[&ruleset];
        match self.decide(ruleset, peer, l4) {
            Some(Action::Deny) => return Verdict { allowed: false, reason: Reason::NoClause(Vec::new()) },
            Some(_) => {
                let policies = self.isolating(profile, direction);
                let clause = self.clause(state, policies, direction, peer, l4);
                return allow(clause.map_or(Reason::NotIsolated, Reason::Clause));
            }
            None => {}
        }
        if !ruleset.isolated {
            return allow(Reason::NotIsolated);
        }
        let by = self.isolating(profile, direction).cloned().collect();
        Verdict { allowed: false, reason: Reason::NoClause(by) }
    }

    /// What the [`verdict`](NodeSlice::verdict) would be if the policies that are audited were enforced, too.
    /// `None`: the same (U29).
    pub fn audited(&self, pod: &ObjectKey, direction: Direction, peer: IpAddr, l4: L4) -> Option<Verdict> {
        let state = self.pods.get(pod)?;
        let profile = &self.profiles[&state.profile];
        let ruleset = profile.audited(direction)?;
        let accepted = self.accepts(ruleset, peer, l4);
        if state.addresses.contains(&peer) || accepted == self.verdict(pod, direction, peer, l4).allowed {
            return None;
        }
        let reason = match accepted {
            true => {
                Reason::Clause(self.clause(state, self.auditing(profile, direction), direction, peer, l4)?)
            }
            false => Reason::NoClause(self.auditing(profile, direction).cloned().collect()),
        };
        match (self.rulesets[&ruleset].effect, accepted) {
            (Effect::WouldDeny, false) | (Effect::WouldAllow, true) => {
                Some(Verdict { allowed: accepted, reason })
            }
            _ => None,
        }
    }

    /// Whether a pod with this ruleset lets it pass, without the reason, which is what costs in a
    /// [`verdict`](NodeSlice::verdict). A pod to itself is not known here (N73, U3).
    pub fn accepts(&self, ruleset: RulesetId, peer: IpAddr, l4: L4) -> bool {
        let ruleset = &self.rulesets[&ruleset];
        match self.decide(ruleset, peer, l4) {
            Some(action) => action == Action::Accept,
            None => !ruleset.isolated,
        }
    }

    /// What the rule that decides says: to accept or to deny. `None`: no rule decides.
    fn decide(&self, ruleset: &Ruleset, peer: IpAddr, l4: L4) -> Option<Action> {
        let mut passed = None;
        for entry in &ruleset.entries {
            if ruleset.isolated && entry.tier > Tier::NetworkPolicy {
                break; // C5: its tier is final for pods that it isolates
            }
            if passed == Some(entry.tier) || !self.rule_matches(entry.rule, peer, l4) {
                continue;
            }
            match self.rules[&entry.rule].action {
                Action::Pass => passed = Some(entry.tier),
                action => return Some(action),
            }
        }
        None
    }

    /// The clauses of the policies that isolate the pod in a direction which come nearest to letting
    /// this traffic pass: those of which one half matches, or, if there are none, all. In the order of
    /// names and indexes.
    pub fn nearest_misses(&self, pod: &ObjectKey, direction: Direction, peer: IpAddr, l4: L4) -> Vec<Miss> {
        let Some(state) = self.pods.get(pod) else { return Vec::new() };
        let mut misses = Vec::new();
        for policy in self.isolating(&self.profiles[&state.profile], direction) {
            for (rule, clause) in self.policies[policy].rules(direction).into_iter().flatten().enumerate() {
                let peers = indexes(clause.peers.as_deref());
                let ports = indexes(clause.ports.as_deref());
                for (peer_at, port_at) in peers.iter().flat_map(|p| ports.iter().map(move |q| (*p, *q))) {
                    // the rule with this peer and this port alone
                    let one_peer =
                        peer_at.map(|i| vec![clause.peers.as_ref().expect("it has peers")[i].clone()]);
                    let one_port =
                        port_at.map(|i| vec![clause.ports.as_ref().expect("it has ports")[i].clone()]);
                    let only = |peers, ports| RuleClause { peers, ports };
                    let matches =
                        |rule: &RuleClause| self.match_rule(state, rule, direction, peer, l4).is_some();
                    if matches(&only(one_peer.clone(), one_port.clone())) {
                        continue;
                    }
                    misses.push(Miss {
                        clause: ClauseRef {
                            policy: policy.clone(),
                            direction,
                            rule,
                            peer: peer_at,
                            port: port_at,
                        },
                        peer_matches: matches(&only(one_peer, None)),
                        port_matches: matches(&only(None, one_port)),
                    });
                }
            }
        }
        if misses.iter().any(|m| m.peer_matches || m.port_matches) {
            misses.retain(|m| m.peer_matches || m.port_matches);
        }
        misses
    }

    fn rule_matches(&self, rule: RuleId, peer: IpAddr, l4: L4) -> bool {
        let rule = &self.rules[&rule];
        self.port_sets[&rule.ports].contains(l4)
            && rule.peers.as_ref().is_none_or(|sets| sets.iter().any(|id| self.has_peer(*id, peer, l4)))
    }

    fn has_peer(&self, id: PeerSetId, peer: IpAddr, l4: L4) -> bool {
        let Some(state) = self.peer_sets.get(&id) else { return false };
        match (&state.set, l4) {
            (PeerSet::Pods { .. }, _) => state.members.contains(&Member::Address(peer)),
            (PeerSet::Cidrs(set), _) => set.contains(peer),
            (PeerSet::Endpoints { .. }, L4::Port(protocol, port)) => {
                state.members.contains(&Member::Endpoint(peer, protocol, port))
            }
            (PeerSet::Endpoints { .. }, L4::Other(_)) => false,
        }
    }

    /// The first clause, in the order of names and indexes, that lets the traffic pass.
    fn clause<'a>(
        &self,
        pod: &SlicePod,
        mut policies: impl Iterator<Item = &'a ObjectKey>,
        direction: Direction,
        peer: IpAddr,
        l4: L4,
    ) -> Option<ClauseRef> {
        policies.find_map(|policy| {
            let rules = self.policies[policy].rules(direction)?;
            rules.iter().enumerate().find_map(|(rule, clause)| {
                let (peer, port) = self.match_rule(pod, clause, direction, peer, l4)?;
                Some(ClauseRef { policy: policy.clone(), direction, rule, peer, port })
            })
        })
    }

    /// The peer and the port of a rule that match together.
    fn match_rule(
        &self,
        pod: &SlicePod,
        rule: &RuleClause,
        direction: Direction,
        peer: IpAddr,
        l4: L4,
    ) -> Option<(Option<usize>, Option<usize>)> {
        let peer_at = self.match_peer(rule, peer, l4);
        match &rule.ports {
            None => Some((peer_at?, None)),
            Some(ports) => ports.iter().enumerate().find_map(|(i, clause)| match (clause, l4) {
                (PortClause::Range(protocol, first, last), L4::Port(p, port)) => {
                    let hit = *protocol == p && (*first..=*last).contains(&port);
                    hit.then_some((peer_at?, Some(i)))
                }
                (PortClause::Named(name, protocol), L4::Port(p, port)) if *protocol == p => match direction {
                    Direction::Ingress => {
                        let named = |n: &crate::object::NamedPort| {
                            n.name == *name && n.protocol == p && n.port == port
                        };
                        pod.ports.iter().any(named).then_some((peer_at?, Some(i)))
                    }
                    Direction::Egress => self.match_endpoint(rule, name, peer, l4).map(|at| (at, Some(i))),
                },
                _ => None,
            }),
        }
    }

    /// Which peer of a rule matches; `Some(None)`: the rule has none, any does.
    fn match_peer(&self, rule: &RuleClause, peer: IpAddr, l4: L4) -> Option<Option<usize>> {
        let Some(peers) = &rule.peers else { return Some(None) };
        let matches = |clause: &PeerClause| match clause {
            PeerClause::Pods { namespaces, pods } => {
                let set = PeerSet::Pods { namespaces: namespaces.clone(), pods: pods.clone() };
                self.has_peer(peer_set_id(&set), peer, l4)
            }
            PeerClause::Cidrs(set) => set.contains(peer),
            PeerClause::Nothing => false,
        };
        peers.iter().position(matches).map(Some)
    }

    /// The same for a port that the destination pod names.
    fn match_endpoint(&self, rule: &RuleClause, name: &str, peer: IpAddr, l4: L4) -> Option<Option<usize>> {
        let L4::Port(protocol, _) = l4 else { return None };
        let (namespaces, pods, within) =
            endpoint_peers(rule).into_iter().find(|(namespaces, pods, within)| {
                let set = PeerSet::Endpoints {
                    namespaces: namespaces.clone(),
                    pods: pods.clone(),
                    within: within.clone(),
                    name: name.to_owned(),
                    protocol,
                };
                self.has_peer(peer_set_id(&set), peer, l4)
            })?;
        let Some(peers) = &rule.peers else { return Some(None) };
        let is_it = |clause: &PeerClause| match clause {
            PeerClause::Pods { namespaces: n, pods: p } => within.is_none() && *n == namespaces && *p == pods,
            PeerClause::Cidrs(set) => within.is_some() && set.contains(peer),
            PeerClause::Nothing => false,
        };
        peers.iter().position(is_it).map(Some)
    }
}

/// All indexes of a list; of a list that is not there, `None` once.
fn indexes<T>(list: Option<&[T]>) -> Vec<Option<usize>> {
    match list {
        None => vec![None],
        Some(list) => (0..list.len()).map(Some).collect(),
    }
}
