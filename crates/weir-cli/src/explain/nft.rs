//! What the kernel is told of a pod: the table of a node that has no other pods.

use std::collections::BTreeSet;
use std::fmt::Write;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Change, NodeSlice};
use weir_dataplane::{Planner, Settings};

use crate::cluster::Cluster;
use crate::ends::Party;
use crate::term::escape;

/// The table `inet weir` with these pods alone, as `nft -f` reads it.
pub(crate) fn text(cluster: &Cluster, party: &Party<'_>) -> String {
    let keys: BTreeSet<&ObjectKey> = party.members.iter().map(|m| &m.state.pod.key).collect();
    let mut out = String::new();
    let _ = writeln!(out, "# {}, as on a node that has no other pods", escape(&party.title));
    let _ =
        writeln!(out, "# dispatched by address: which interfaces the pods have is known on their nodes only");
    let stand_in = party.members.iter().any(|m| m.state.stand_in);
    if stand_in {
        let _ = writeln!(out, "# addresses stand in for those that are not known");
    }
    let mut planner = Planner::with(Settings { own_node: cluster.own_node, ..Settings::default() });
    planner.update(&changes(&cluster.slice, &keys));
    let table = planner.table().to_string();
    // names are in its comments
    for line in table.lines() {
        let indent = line.len() - line.trim_start_matches('\t').len();
        let _ = writeln!(out, "{}{}", &line[..indent], escape(&line[indent..]));
    }
    out
}

/// The part of a slice that these pods reach.
fn changes(slice: &NodeSlice, keys: &BTreeSet<&ObjectKey>) -> Vec<Change> {
    let pods: Vec<_> = slice.pods.iter().filter(|(key, _)| keys.contains(key)).collect();
    let profiles: BTreeSet<_> = pods.iter().map(|(_, pod)| pod.profile).collect();
    let profiles: Vec<_> = profiles.into_iter().map(|id| (id, &slice.profiles[&id])).collect();
    let rulesets: BTreeSet<_> = profiles
        .iter()
        .flat_map(|(_, p)| [p.ingress, p.egress].into_iter().chain(p.audited))
        .flatten()
        .collect();
    let rulesets: Vec<_> = rulesets.into_iter().map(|id| (id, &slice.rulesets[&id])).collect();
    let rules: BTreeSet<_> = rulesets.iter().flat_map(|(_, r)| r.entries.iter().map(|e| e.rule)).collect();
    let rules: Vec<_> = rules.into_iter().map(|id| (id, &slice.rules[&id])).collect();
    let policies: BTreeSet<_> = profiles.iter().flat_map(|(_, p)| slice.policies_of(p)).collect();
    let peers: BTreeSet<_> = rules.iter().flat_map(|(_, r)| r.peers.iter().flatten().copied()).collect();
    let ports: BTreeSet<_> = rules.iter().map(|(_, r)| r.ports).collect();
    // what is referred to comes first
    let mut changes = Vec::new();
    for id in peers {
        if let Some(state) = slice.peer_sets.get(&id) {
            changes.push(Change::PeerSet(id, state.set.clone(), state.members.iter().copied().collect()));
        }
    }
    changes.extend(ports.into_iter().map(|id| Change::PortSet(id, slice.port_sets[&id].clone())));
    changes.extend(rules.iter().map(|(id, rule)| Change::Rule(*id, (*rule).clone())));
    changes.extend(rulesets.iter().map(|(id, ruleset)| Change::Ruleset(*id, (*ruleset).clone())));
    changes.extend(policies.into_iter().map(|key| Change::Policy(key.clone(), slice.policies[key].clone())));
    changes.extend(profiles.iter().map(|(id, profile)| Change::Profile(*id, (*profile).clone())));
    changes.extend(pods.into_iter().map(|(key, pod)| Change::Pod(key.clone(), pod.clone())));
    changes
}
