//! Budgets: what policies may ask of nodes, so that no author of policies can starve them.
//!
//! ```text
//!   policy ──cost──> more than a policy may have?     closed
//!      └──> the policies of its namespace, the oldest first: what does not fit any more   closed
//! ```
//!
//! Closed is: it isolates the pods that it selects, as it says, and allows nothing. Who is concerned is the
//! namespace of the author alone. What counts is what objects say, and not how many pods there are: no
//! pod of others can push a policy out of its budget.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use crate::compiler::Compiler;
use crate::identity::peer_set_id;
use crate::lower::{endpoint_peers, names};
use crate::object::{Peer, Policy, PolicySpec};
use crate::policy::{Effect, NAMESPACE_NAME_LABEL, PeerClause, PortClause, Problem, ReadPolicy, RuleClause};
use crate::selector::Selector;
use crate::slice::{Direction, PeerSet, PeerSetId};

/// What policies may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Rules, peers, ports and exceptions of one policy.
    pub policy_clauses: u64,
    /// The same of all policies in a namespace.
    pub namespace_clauses: u64,
    /// Different peers of all policies in a namespace that select pods of other namespaces: each is a set that can
    /// have all pods of the cluster in it.
    pub namespace_peers: u64,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets { policy_clauses: 20_000, namespace_clauses: 100_000, namespace_peers: 250 }
    }
}

impl Budgets {
    /// Everything is allowed.
    pub const NONE: Budgets =
        Budgets { policy_clauses: u64::MAX, namespace_clauses: u64::MAX, namespace_peers: u64::MAX };
}

/// `policy-clauses=N,namespace-clauses=N,namespace-peers=N`, any of them; the others are the default, 0 is no limit.
impl FromStr for Budgets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut budgets = Budgets::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, number) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=NUMBER"))?;
            let field = match name.trim() {
                "policy-clauses" => &mut budgets.policy_clauses,
                "namespace-clauses" => &mut budgets.namespace_clauses,
                "namespace-peers" => &mut budgets.namespace_peers,
                other => {
                    return Err(format!(
                        "there is no budget {other:?}; there are policy-clauses, namespace-clauses and namespace-peers"
                    ));
                }
            };
            let number: u64 =
                number.trim().parse().map_err(|_| format!("{part:?}: {number:?} is no number"))?;
            *field = if number == 0 { u64::MAX } else { number };
        }
        Ok(budgets)
    }
}

impl fmt::Display for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |n: u64| if n == u64::MAX { 0 } else { n };
        let [policy, namespace, peers] =
            [self.policy_clauses, self.namespace_clauses, self.namespace_peers].map(shown);
        write!(f, "policy-clauses={policy},namespace-clauses={namespace},namespace-peers={peers}")
    }
}

/// What a policy asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    clauses: u32,
    /// No fewer than it has peers that reach into other namespaces: what is counted without looking closely.
    peers: u32,
}

impl Cost {
    /// Of a policy as it is written, and as it is read.
    pub(crate) fn of(spec: &PolicySpec, read: &ReadPolicy) -> Cost {
        let excepts = |peer: &Peer| peer.ip_block.as_ref().map_or(0, |block| block.except.len());
        let rule =
            |peers: &[Peer], ports: usize| 1 + peers.len() + ports + peers.iter().map(excepts).sum::<usize>();
        let ingress = spec.ingress.iter().map(|r| rule(&r.from, r.ports.len()));
        let egress = spec.egress.iter().map(|r| rule(&r.to, r.ports.len()));
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Cost { clauses: small(1 + ingress.chain(egress).sum::<usize>()), peers: small(far_at_most(read)) }
    }
}

/// No fewer than [`far`] has: for each policy that is read, so that hardly any has to be looked at closely.
fn far_at_most(read: &ReadPolicy) -> usize {
    let own = Selector::label(NAMESPACE_NAME_LABEL, &read.key.namespace);
    let of = |(direction, rule): (Direction, &RuleClause)| {
        let is_far =
            |peer: &&PeerClause| matches!(peer, PeerClause::Pods { namespaces, .. } if *namespaces != own);
        let peers = rule.peers.iter().flatten().filter(is_far).count();
        let is_name = |port: &&PortClause| matches!(port, PortClause::Named(..));
        let names = match direction {
            Direction::Ingress => 0,
            Direction::Egress => rule.ports.iter().flatten().filter(is_name).count(),
        };
        // a name is looked up at each peer, and at all CIDRs, or any peer, together
        peers + names * (peers + 1)
    };
    let rules =
        |direction| read.clauses.rules(direction).into_iter().flatten().map(move |rule| (direction, rule));
    Direction::BOTH.into_iter().flat_map(rules).map(of).sum()
}

/// The peer sets of a policy that have pods of other namespaces in them.
fn far(read: &ReadPolicy) -> impl Iterator<Item = PeerSet> {
    let own = Selector::label(NAMESPACE_NAME_LABEL, &read.key.namespace);
    let is_far = move |namespaces: &Selector| *namespaces != own;
    let mut all = Vec::new();
    for direction in Direction::BOTH {
        for rule in read.clauses.rules(direction).into_iter().flatten() {
            for peer in rule.peers.iter().flatten() {
                if let PeerClause::Pods { namespaces, pods } = peer
                    && is_far(namespaces)
                {
                    all.push(PeerSet::Pods { namespaces: namespaces.clone(), pods: pods.clone() });
                }
            }
            if direction == Direction::Ingress {
                continue; // the pod itself names the port (N55)
            }
            let names = names(rule);
            let at = if names.is_empty() { Vec::new() } else { endpoint_peers(rule) };
            for (namespaces, pods, within) in at.into_iter().filter(|(namespaces, ..)| is_far(namespaces)) {
                all.extend(names.iter().map(|(name, protocol)| PeerSet::Endpoints {
                    namespaces: namespaces.clone(),
                    pods: pods.clone(),
                    within: within.clone(),
                    name: name.clone(),
                    protocol: *protocol,
                }));
            }
        }
    }
    all.into_iter()
}

/// What the policies of a namespace ask for altogether.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    clauses: u64,
    peers: u64,
    /// It was too much when it was last looked at.
    over: bool,
}

impl Spent {
    fn add(&mut self, cost: Cost) {
        self.clauses += u64::from(cost.clauses);
        self.peers += u64::from(cost.peers);
    }

    fn remove(&mut self, cost: Cost) {
        self.clauses -= u64::from(cost.clauses);
        self.peers -= u64::from(cost.peers);
    }
}

impl ReadPolicy {
    /// The policy that is in the place of this one where it is too much.
    fn beyond(&self, reason: String) -> ReadPolicy {
        let mut closed = self.clone();
        let clauses = std::sync::Arc::make_mut(&mut closed.clauses);
        clauses.ingress.iter_mut().chain(&mut clauses.egress).for_each(Vec::clear);
        closed.cost = Cost { clauses: 1, peers: 0 };
        let effect = Effect::BeyondBudget;
        closed.problems.push(Problem { path: "spec".to_owned(), reason, effect });
        closed
    }

    /// The policy, or what is in its place if it is more than a policy may be.
    pub(crate) fn within(self, budgets: &Budgets) -> ReadPolicy {
        let most = budgets.policy_clauses;
        match u64::from(self.cost.clauses) > most {
            true => self.beyond(format!(
                "it has {} rules, peers, ports and exceptions, and a policy may have {most} \
                 (--budgets policy-clauses): make several of it",
                self.cost.clauses
            )),
            false => self,
        }
    }
}

/// Which of the policies of a namespace do not fit into its budgets, the oldest first, and why.
fn beyond<'p>(budgets: &Budgets, policies: impl IntoIterator<Item = &'p ReadPolicy>) -> Vec<Option<String>> {
    let mut used = 0;
    let mut sets: HashSet<PeerSetId> = HashSet::new();
    let mut one = |read: &ReadPolicy| {
        let clauses = u64::from(read.cost.clauses);
        if used + clauses > budgets.namespace_clauses {
            return Some(format!(
                "the older policies of the namespace and this one have more than {} rules, peers, ports and \
                 exceptions, which a namespace may have (--budgets namespace-clauses)",
                budgets.namespace_clauses
            ));
        }
        let mut new: Vec<PeerSetId> = far(read).map(|set| peer_set_id(&set)).collect();
        new.sort_unstable();
        new.dedup();
        new.retain(|id| !sets.contains(id));
        if (sets.len() + new.len()) as u64 > budgets.namespace_peers {
            return Some(format!(
                "the older policies of the namespace and this one have more than {} different peers in other \
                 namespaces, which a namespace may have (--budgets namespace-peers)",
                budgets.namespace_peers
            ));
        }
        used += clauses;
        sets.extend(new);
        None
    };
    policies.into_iter().map(&mut one).collect()
}

/// Reads policies as a compiler with these budgets does: those that do not fit are closed. In the order given.
pub fn read_within<'p>(policies: impl IntoIterator<Item = &'p Policy>, budgets: &Budgets) -> Vec<ReadPolicy> {
    let policies = policies.into_iter();
    let mut all: Vec<ReadPolicy> = policies.map(|policy| ReadPolicy::read(policy).within(budgets)).collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_unstable_by_key(|i| (&all[*i].key.namespace, all[*i].created, &all[*i].key.name));
    let namespaces = order.chunk_by(|a, b| all[*a].key.namespace == all[*b].key.namespace);
    let reasons: Vec<Option<String>> =
        namespaces.flat_map(|of| beyond(budgets, of.iter().map(|i| &all[*i]))).collect();
    for (i, reason) in order.into_iter().zip(reasons) {
        if let Some(reason) = reason {
            all[i] = all[i].beyond(reason);
        }
    }
    all
}

impl Compiler {
    /// A policy comes, goes or reads differently: its namespace may have more or less than it may. Before it does.
    pub(crate) fn spend(&mut self, namespace: &str, old: Option<Cost>, new: Option<Cost>) {
        let mut spent = self.spent.get(namespace).copied().unwrap_or_default();
        old.into_iter().for_each(|cost| spent.remove(cost));
        new.into_iter().for_each(|cost| spent.add(cost));
        let over =
            spent.clauses > self.budgets.namespace_clauses || spent.peers > self.budgets.namespace_peers;
        if over || spent.over {
            spent.over = over;
            self.unsettled.insert(namespace.to_owned());
        }
        match spent.clauses {
            0 => drop(self.spent.remove(namespace)),
            _ => drop(self.spent.insert(namespace.to_owned(), spent)),
        }
    }

    /// Closes what does not fit any more, and opens what fits again.
    pub(crate) fn settle(&mut self) {
        for namespace in std::mem::take(&mut self.unsettled) {
            let of = self.policies.all.iter().filter(|(_, state)| state.read.key.namespace == namespace);
            let mut of: Vec<&ReadPolicy> = of.map(|(_, state)| state.written()).collect();
            of.sort_unstable_by_key(|read| (read.created, &read.key));
            let reasons = beyond(&self.budgets, of.iter().copied());
            let mut turned: Vec<(ReadPolicy, Option<String>)> = Vec::new();
            for (read, reason) in of.into_iter().zip(reasons) {
                let id = self.policies.find(&read.key).expect("it is one of them");
                let closed = self.policies.all[id as usize].closed_for();
                if closed != reason.as_deref() {
                    turned.push((read.clone(), reason));
                }
            }
            for (written, reason) in turned {
                match reason {
                    None => self.set_policy(written),
                    Some(reason) => {
                        let key = written.key.clone();
                        self.set_policy(written.beyond(reason.clone()));
                        let id = self.policies.find(&key).expect("it was set");
                        self.policies.all[id as usize].close(written, reason);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_as_they_are_written() {
        for budgets in [Budgets::default(), Budgets::NONE] {
            assert_eq!(budgets.to_string().parse(), Ok(budgets));
        }
        let one = Budgets { namespace_peers: 7, ..Budgets::default() };
        assert_eq!(" namespace-peers=7, ".parse(), Ok(one));
        for (text, word) in [
            ("peers=7", "no budget \"peers\""),
            ("policy-clauses", "NAME=NUMBER"),
            ("policy-clauses=-1", "no number"),
        ] {
            let error = text.parse::<Budgets>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
