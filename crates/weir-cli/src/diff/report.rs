//! What changes, by workload.

use std::collections::{BTreeMap, BTreeSet};

use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::ObjectKey;
use weir_compiler::slice::Direction;

use super::flows::{Rectangle, rectangles};
use super::load::{Objects, States, joined};
use crate::cluster::Cluster;
use crate::kernel::{self, Cost, NodeChange};
use crate::parties::{Parties, Roll, Workload};
use crate::reach::traffic::Traffic;
use crate::reach::{PodEnd, Reach, State};

/// Flows of one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlowChange {
    pub(super) from: Parties,
    pub(super) to: Parties,
    /// IPv4, IPv6 or both.
    pub(super) families: Vec<&'static str>,
    pub(super) before: Traffic,
    pub(super) after: Traffic,
    pub(super) pairs: u64,
}

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing passes any more.
    Cut,
    /// Less than before.
    Narrowed,
    /// Some of it, and something else.
    Changed,
    /// More than before.
    Widened,
    /// Nothing passed before.
    Opened,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Cut => "cut",
            Kind::Narrowed => "narrowed",
            Kind::Changed => "changed",
            Kind::Widened => "widened",
            Kind::Opened => "opened",
        }
    }
}

impl FlowChange {
    fn of(one: &Rectangle, reach: &Reach, roll: &Roll, v4: bool) -> FlowChange {
        FlowChange {
            from: roll.parties(reach, &one.from),
            to: roll.parties(reach, &one.to),
            families: vec![if v4 { "IPv4" } else { "IPv6" }],
            before: reach.traffic(one.before).clone(),
            after: reach.traffic(one.after).clone(),
            pairs: one.pairs,
        }
    }

    /// The same change of the same workloads, in the other family only.
    fn is_like(&self, other: &FlowChange) -> bool {
        self.families == ["IPv4"]
            && other.families == ["IPv6"]
            && (&self.from.workloads, &self.to.workloads) == (&other.from.workloads, &other.to.workloads)
            && self.from.addresses.is_empty() == other.from.addresses.is_empty()
            && self.to.addresses.is_empty() == other.to.addresses.is_empty()
            && (&self.before, &self.after) == (&other.before, &other.after)
    }

    pub(super) fn kind(&self) -> Kind {
        let (lost, gained) = (self.before.minus(&self.after), self.after.minus(&self.before));
        match (self.before.is_empty(), self.after.is_empty(), lost.is_empty(), gained.is_empty()) {
            (true, ..) => Kind::Opened,
            (_, true, ..) => Kind::Cut,
            (_, _, true, _) => Kind::Widened,
            (_, _, _, true) => Kind::Narrowed,
            _ => Kind::Changed,
        }
    }
}

/// Pods of a workload that become isolated, or stop being so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Isolation {
    pub(super) workload: Workload,
    pub(super) direction: Direction,
    /// After.
    pub(super) isolated: bool,
    /// How many of its pods, and how many it has.
    pub(super) pods: usize,
    pub(super) of: usize,
    /// The policies that isolate them, or did.
    pub(super) by: BTreeSet<ObjectKey>,
}

/// All that changes.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) objects: Objects,
    pub(super) isolation: Vec<Isolation>,
    pub(super) flows: Vec<FlowChange>,
    pub(super) nodes: Vec<NodeChange>,
    pub(super) roll: Roll,
    pub(super) notes: Vec<String>,
}

impl Report {
    pub(super) fn new(states: &States, own_node: PodToOwnNode, nft: bool) -> Report {
        let clusters: [&Cluster; 2] = [&states.before, &states.after];
        let roll = Roll::new(&clusters);
        let both = clusters.map(state);
        let of_family = |v4: bool| {
            let mut reach = Reach::new(&both, v4, own_node);
            let rectangles = rectangles(&mut reach);
            rectangles.iter().map(|one| FlowChange::of(one, &reach, &roll, v4)).collect::<Vec<_>>()
        };
        let settings = kernel::settings(own_node);
        let (mut flows, more, nodes) = std::thread::scope(|scope| {
            let v4 = scope.spawn(|| of_family(true));
            let nodes = scope.spawn(|| kernel::changes(&states.before, &states.after, settings, nft));
            let v6 = of_family(false);
            (joined(v4), v6, joined(nodes))
        });
        for one in more {
            // the other family of the same pods
            match flows.iter_mut().find(|known| known.is_like(&one)) {
                Some(known) => {
                    known.families.extend(one.families);
                    known.pairs += one.pairs;
                    known.from.addresses.v6 = one.from.addresses.v6;
                    known.to.addresses.v6 = one.to.addresses.v6;
                }
                None => flows.push(one),
            }
        }
        flows.sort_by(|a, b| (a.kind(), &a.to, &a.from).cmp(&(b.kind(), &b.to, &b.from)));
        let mut report = Report {
            objects: states.objects(),
            isolation: isolation(states, &roll),
            flows,
            nodes,
            roll,
            notes: Vec::new(),
        };
        report.note(&states.after);
        report
    }

    fn note(&mut self, after: &Cluster) {
        let nowhere = kernel::nowhere(after);
        if nowhere > 0 {
            self.notes
                .push(format!("{nowhere} pods are on no node that is known: nodes are counted without them"));
        }
        self.notes.extend(after.unknowns());
        let Objects { pods_added, pods_removed, .. } = &self.objects;
        for (count, what) in [(pods_added, "new"), (pods_removed, "gone")] {
            if *count > 0 {
                self.notes.push(format!(
                    "{count} pods are {what}: flows are compared between pods that are in both states"
                ));
            }
        }
    }

    /// Whether anything changes.
    pub(super) fn differs(&self) -> bool {
        !self.flows.is_empty() || !self.isolation.is_empty() || !self.nodes.is_empty()
    }

    /// What all nodes together pay.
    pub(super) fn cost(&self) -> Cost {
        self.nodes.iter().fold(Cost::default(), |sum, n| sum.plus(n.after.since(n.before)))
    }
}

/// The pods of which something can be said.
pub(super) fn state(cluster: &Cluster) -> State<'_> {
    let pods = cluster.pods.values().filter(|p| p.out.is_none());
    State {
        pods: pods
            .map(|p| PodEnd {
                key: &p.pod.key,
                addresses: &p.addresses,
                node: p.pod.node.as_deref(),
                host_network: p.pod.host_network,
            })
            .collect(),
        slice: &cluster.slice,
    }
}

fn isolation(states: &States, roll: &Roll) -> Vec<Isolation> {
    let mut all: BTreeMap<(Workload, Direction, bool), (usize, BTreeSet<ObjectKey>)> = BTreeMap::new();
    let profile = |cluster: &'_ Cluster, key: &ObjectKey| {
        let pod = cluster.slice.pods.get(key)?;
        cluster.slice.profiles.get(&pod.profile).cloned()
    };
    for key in states.before.pods.keys() {
        let Some(workload) = roll.workload(key) else { continue };
        let (before, after) = (profile(&states.before, key), profile(&states.after, key));
        if before == after {
            continue;
        }
        for direction in Direction::BOTH {
            let isolated = |p: &Option<weir_compiler::slice::Profile>| {
                p.as_ref().is_some_and(|p| p.ruleset(direction).is_some())
            };
            if isolated(&before) == isolated(&after) {
                continue;
            }
            let now = isolated(&after);
            let (cluster, profile) = if now { (&states.after, &after) } else { (&states.before, &before) };
            let by = profile.iter().flat_map(|p| cluster.slice.isolating(p, direction)).cloned();
            let entry = all.entry((workload.clone(), direction, now)).or_default();
            entry.0 += 1;
            entry.1.extend(by);
        }
    }
    let one = |((workload, direction, isolated), (pods, by)): ((Workload, Direction, bool), _)| {
        let of = roll.sizes.get(&workload).copied().unwrap_or(pods);
        Isolation { workload, direction, isolated, pods, of, by }
    };
    all.into_iter().map(one).collect()
}
