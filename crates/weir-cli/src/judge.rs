//! A verdict over all address families that two pods have in common.

use std::net::IpAddr;

use anyhow::{Result, bail};
use weir_compiler::flow::{Answer, End, Flow};
use weir_compiler::policy::PeerClause;
use weir_compiler::ports::L4;
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{Reason, Verdict};

use crate::cluster::{Cluster, NODE_LOCAL_DNS, PodState, is_choice};
use crate::names::Port;

/// Two pods, and the addresses by which one reaches the other.
#[derive(Debug, Clone)]
pub(crate) struct Pair<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) from: &'a PodState,
    pub(crate) to: &'a PodState,
    /// (source, destination), one for each family that both have.
    addresses: Vec<(IpAddr, IpAddr)>,
}

/// What is said in one family.
#[derive(Debug, Clone)]
pub(crate) struct InFamily {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) flow: Flow,
    /// Of egress and ingress, what it would be if audited policies were enforced, where that differs (U29).
    audited: [Option<Verdict>; 2],
}

impl InFamily {
    /// As people say it.
    pub(crate) fn name(&self) -> &'static str {
        if self.destination.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// What would be said of a direction if audited policies were enforced; `None`: the same (U29).
    pub(crate) fn audited(&self, direction: Direction) -> Option<&Verdict> {
        let [egress, ingress] = &self.audited;
        match direction {
            Direction::Egress => egress.as_ref(),
            Direction::Ingress => ingress.as_ref(),
        }
    }

    /// The address of the other end, seen from the pod that a direction is about.
    pub(crate) fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Egress => self.destination,
            Direction::Ingress => self.source,
        }
    }
}

/// What is said in all families, IPv4 first; there is one at least.
#[derive(Debug, Clone)]
pub(crate) struct Judgement(pub(crate) Vec<InFamily>);

impl Judgement {
    /// It passes in every family.
    pub(crate) fn allowed(&self) -> bool {
        self.0.iter().all(|f| f.flow.allowed())
    }

    /// The families are not of one mind.
    pub(crate) fn is_mixed(&self) -> bool {
        self.0.iter().any(|f| f.flow.allowed() != self.allowed())
    }

    /// The same verdicts for the same reasons.
    pub(crate) fn same_as(&self, other: &Judgement) -> bool {
        let same = |(a, b): (&InFamily, &InFamily)| (&a.flow, &a.audited) == (&b.flow, &b.audited);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }

    /// The family that decides: the first that denies, or the first.
    pub(crate) fn deciding(&self) -> &InFamily {
        self.0.iter().find(|f| !f.flow.allowed()).unwrap_or(&self.0[0])
    }
}

impl<'a> Pair<'a> {
    /// # Errors
    /// They have no family in common.
    pub(crate) fn new(cluster: &'a Cluster, from: &'a PodState, to: &'a PodState) -> Result<Pair<'a>> {
        let first = |pod: &PodState, v4| pod.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
        let common = |v4| Some((first(from, v4)?, first(to, v4)?));
        let addresses: Vec<_> = [true, false].into_iter().filter_map(common).collect();
        if addresses.is_empty() {
            let family = |pod: &PodState| if pod.addresses[0].is_ipv4() { "IPv4" } else { "IPv6" };
            let (a, b) = (from.name(), to.name());
            bail!("{a} has {} only and {b} {} only: no packet gets there", family(from), family(to));
        }
        Ok(Pair { cluster, from, to, addresses })
    }

    /// Asks both ends in every family.
    pub(crate) fn judge(&self, port: Port) -> Judgement {
        let (mut from, mut to) = (self.cluster.end(self.from), self.cluster.end(self.to));
        if self.to.everywhere {
            to.node = from.node;
        }
        if self.from.everywhere {
            from.node = to.node;
        }
        let l4 = L4::Port(port.protocol, port.number);
        let in_family = |&(source, destination): &(IpAddr, IpAddr)| {
            let flow = Flow::judge_on(self.cluster.own_node, from, to, source, destination, l4);
            let audited = |answer: &Answer, of: End<'_>, direction, peer| match answer {
                Answer::Policy(_) => of.slice.audited(of.key, direction, peer, l4),
                Answer::Exempt(_) => None,
            };
            let egress = audited(&flow.egress, from, Direction::Egress, destination);
            let ingress = audited(&flow.ingress, to, Direction::Ingress, source);
            InFamily { source, destination, flow, audited: [egress, ingress] }
        };
        Judgement(self.addresses.iter().map(in_family).collect())
    }

    /// The pod that policies of a direction select.
    pub(crate) fn subject(&self, direction: Direction) -> &'a PodState {
        match direction {
            Direction::Egress => self.from,
            Direction::Ingress => self.to,
        }
    }

    /// The pod at the other end.
    pub(crate) fn peer(&self, direction: Direction) -> &'a PodState {
        match direction {
            Direction::Egress => self.to,
            Direction::Ingress => self.from,
        }
    }

    /// What the reader should know of this pair besides the answer.
    pub(crate) fn notes(&self, allowed: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if self.to.bare_address && self.to.label.is_none() && !allowed {
            notes.push(self.about_address());
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            let (subject, peer) = (self.subject(direction), self.peer(direction));
            if peer.stand_in && self.has_blocks(subject, direction) {
                let list = direction.as_str();
                notes.push(format!(
                    "{} has no address in the manifests: ipBlock peers in {list} of {} cannot be judged for \
                     it, and are taken not to match unless they are everything",
                    peer.pod.key, subject.pod.key
                ));
            }
        }
        let (from, to) = (&self.from.pod, &self.to.pod);
        let nodes_known = from.node.is_some() && to.node.is_some();
        if self.from.bare_address && from.node.is_none() && self.is_isolated(Direction::Ingress) {
            notes.push(
                "what comes by a NodePort or a load balancer may show the address of a node, and policies see that \
                 one then (U8)"
                    .to_owned(),
            );
        }
        if from.host_network && !self.from.bare_address && !to.host_network && !nodes_known {
            notes.push(format!(
                "{} is in its node's network, and it is not known whether {} runs on that node: if it does, \
                 ingress passes whatever policies say (N71)",
                from.key, to.key
            ));
        }
        notes
    }

    /// What audited policies would change (U29).
    pub(crate) fn audited_notes(&self, said: &Judgement, at: &str) -> Vec<String> {
        let mut notes = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let family = said.0.iter().find_map(|family| family.audited(direction));
            let Some(verdict) = family else { continue };
            let (what, by) = match &verdict.reason {
                Reason::Clause(clause) => ("allowed", clause.to_string()),
                Reason::NoClause(by) => {
                    ("denied", by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                }
                _ => continue,
            };
            notes.push(format!(
                "if what is audited were enforced, {} of {} would be {what}{at}, by {by} (weir.dev/audit, U29)",
                direction.as_str(),
                self.subject(direction).name(),
            ));
        }
        notes
    }

    /// Whether policies isolate the pod that a direction is about.
    fn is_isolated(&self, direction: Direction) -> bool {
        let slice = &self.cluster.slice;
        let pod = slice.pods.get(&self.subject(direction).pod.key);
        pod.is_some_and(|pod| slice.profiles[&pod.profile].ruleset(direction).is_some())
    }

    /// Why rules that seem to allow an address do not.
    fn about_address(&self) -> String {
        let address = self.to.addresses[0];
        let block = if address.is_ipv4() { format!("{address}/32") } else { format!("{address}/128") };
        if address == NODE_LOCAL_DNS {
            return format!(
                "{address} is where a node-local DNS cache listens: a process of the pod's own node, which no selector \
                 matches, that of kube-dns neither, and queries to it are not translated (U6); allow it with \
                 ipBlock {block} beside the selector, and the same for the ClusterIP of kube-dns if the cache listens \
                 there, too; or run the agents with --pod-to-own-node=allow"
            );
        }
        format!(
            "no pod has {address}, and selectors match pods only; behind a Service, policies see the \
             pod's address and not the Service's, so ask for a pod of it (U8); but where a DNS cache on the node \
             listens on the ClusterIP of kube-dns, policies see that: it needs ipBlock {block} (U6)"
        )
    }

    /// Whether policies that select the pod have `ipBlock` peers that not every address is in.
    fn has_blocks(&self, subject: &PodState, direction: Direction) -> bool {
        let slice = &self.cluster.slice;
        let Some(pod) = slice.pods.get(&subject.pod.key) else { return false };
        let policies = slice.policies_of(&slice.profiles[&pod.profile]).into_iter();
        let rules = policies.filter_map(|key| slice.policies[key].rules(direction)).flatten();
        rules.flat_map(|rule| rule.peers.iter().flatten()).any(|peer| match peer {
            PeerClause::Cidrs(set) => self.addresses.iter().any(|(a, _)| is_choice(set, *a)),
            _ => false,
        })
    }
}
