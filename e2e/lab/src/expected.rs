//! What the policies say, by the evaluator over the compiled graph.

use std::collections::HashMap;
use std::path::Path;

use weir_compiler::flow::{self, End};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};

use crate::cluster::{Cluster, Pod};
use crate::probe::Flow;

/// For each flow whether it passes, and what the source of the objects had to complain about.
///
/// What takes precedence over policies is in [`weir_compiler::flow`].
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
    let end = |index: usize| {
        let Pod { key, node, host_network, .. } = &ends[index];
        End { key, node: Some(node), host_network: *host_network, slice: &slices[node.as_str()] }
    };
    let passes = |flow: &Flow| {
        let l4 = flow.port.protocol.l4(flow.destination, flow.port.number);
        flow::Flow::judge(end(flow.from), end(flow.to), flow.source, flow.destination, l4).allowed()
    };
    (flows.iter().map(passes).collect(), problems)
}
