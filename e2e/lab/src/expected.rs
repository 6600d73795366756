//! What the policies say, by the evaluator over the compiled graph.

use std::collections::HashMap;
use std::path::Path;

use weir_compiler::slice::{Direction, NodeSlice};
use weir_compiler::{Compiler, Scope};

use crate::cluster::{Cluster, Pod};
use crate::probe::Flow;

/// For each flow whether it passes, and what the source of the objects had to complain about.
///
/// A flow passes if egress from its source and ingress to its destination both allow it (N3). Pods in no
/// slice (host network) are not policed (N70); a node always reaches its own pods (N71).
pub fn expected(manifests: &Path, cluster: &Cluster, flows: &[Flow]) -> (Vec<bool>, Vec<String>) {
    let loaded = weir_source::manifests::read(&[manifests.to_path_buf()]);
    let mut problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply(loaded.events);
    for (policy, found) in compiler.problems() {
        problems.extend(found.iter().map(|problem| format!("policy {policy}: {problem}")));
    }
    let slices: HashMap<&str, NodeSlice> =
        cluster.nodes.iter().map(|n| (n.name.as_str(), compiler.slice(&n.name))).collect();
    let ends = cluster.ends();
    let allows = |pod: &Pod, direction, peer, l4| {
        pod.host_network || slices[pod.node.as_str()].verdict(&pod.key, direction, peer, l4).allowed
    };
    let passes = |flow: &Flow| {
        let (from, to) = (&ends[flow.from], &ends[flow.to]);
        let own_node = from.host_network && from.node == to.node;
        let l4 = flow.port.protocol.l4(flow.destination, flow.port.number);
        allows(from, Direction::Egress, flow.destination, l4)
            && (own_node || allows(to, Direction::Ingress, flow.source, l4))
    };
    (flows.iter().map(passes).collect(), problems)
}
