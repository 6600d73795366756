//! What changes, for programs. `docs/cli.md` has the schema.

use serde::Serialize;
use weir_compiler::object::Protocol;

use super::report::{FlowChange, Isolation, Report};
use super::text::nft;
use crate::kernel::{Cost, NodeChange};
use crate::parties::{Parties, Roll, Workload, cidrs};
use crate::reach::traffic::Traffic;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Json<'a> {
    differs: bool,
    policies: Policies<'a>,
    pods: Pods,
    isolation: Vec<OneIsolation<'a>>,
    flows: Vec<Flow<'a>>,
    cost: Cost,
    nodes: Vec<Node<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct Policies<'a> {
    added: &'a [String],
    changed: &'a [String],
    removed: &'a [String],
}

#[derive(Debug, Serialize)]
struct Pods {
    added: usize,
    removed: usize,
}

#[derive(Debug, Serialize)]
struct OneIsolation<'a> {
    workload: &'a Workload,
    pods: usize,
    of: usize,
    direction: &'static str,
    isolated: bool,
    by: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Flow<'a> {
    change: &'static str,
    from: Ends<'a>,
    to: Ends<'a>,
    families: &'a [&'static str],
    before: Ports,
    after: Ports,
    lost: Ports,
    gained: Ports,
    pairs: u64,
}

/// Who is at an end of a flow.
#[derive(Debug, Serialize)]
pub(crate) struct Ends<'a> {
    workloads: Vec<End<'a>>,
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct End<'a> {
    #[serde(flatten)]
    workload: &'a Workload,
    pods: usize,
    of: usize,
}

/// A set of traffic.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ports {
    /// Everything.
    all: bool,
    ports: Vec<Range>,
    /// Protocols without ports, such as ICMP.
    other_protocols: bool,
}

#[derive(Debug, Serialize)]
struct Range {
    protocol: Protocol,
    first: u16,
    last: u16,
}

#[derive(Debug, Serialize)]
struct Node<'a> {
    node: &'a str,
    before: Cost,
    after: Cost,
    #[serde(skip_serializing_if = "Option::is_none")]
    nft: Option<String>,
}

/// Who is at an end.
pub(crate) fn ends<'a>(roll: &Roll, parties: &'a Parties) -> Ends<'a> {
    let end = |(workload, pods): (&'a Workload, &usize)| End {
        workload,
        pods: *pods,
        of: roll.sizes.get(workload).copied().unwrap_or(*pods),
    };
    Ends { workloads: parties.workloads.iter().map(end).collect(), addresses: cidrs(&parties.addresses) }
}

/// A set of traffic.
pub(crate) fn ports(traffic: &Traffic) -> Ports {
    let range = |(protocol, first, last): (Protocol, u16, u16)| Range { protocol, first: first.max(1), last };
    Ports {
        all: traffic.is_all(),
        ports: traffic.ranges().map(range).collect(),
        other_protocols: traffic.other,
    }
}

pub(super) fn report(report: &Report) -> Json<'_> {
    let objects = &report.objects;
    Json {
        differs: report.differs(),
        policies: Policies { added: &objects.added, changed: &objects.changed, removed: &objects.removed },
        pods: Pods { added: objects.pods_added, removed: objects.pods_removed },
        isolation: report.isolation.iter().map(isolation).collect(),
        flows: report.flows.iter().map(|f| flow(&report.roll, f)).collect(),
        cost: report.cost(),
        nodes: report.nodes.iter().map(node).collect(),
        notes: &report.notes,
    }
}

fn isolation(one: &Isolation) -> OneIsolation<'_> {
    OneIsolation {
        workload: &one.workload,
        pods: one.pods,
        of: one.of,
        direction: one.direction.as_str(),
        isolated: one.isolated,
        by: one.by.iter().map(ToString::to_string).collect(),
    }
}

fn flow<'a>(roll: &Roll, flow: &'a FlowChange) -> Flow<'a> {
    Flow {
        change: flow.kind().as_str(),
        from: ends(roll, &flow.from),
        to: ends(roll, &flow.to),
        families: &flow.families,
        before: ports(&flow.before),
        after: ports(&flow.after),
        lost: ports(&flow.before.minus(&flow.after)),
        gained: ports(&flow.after.minus(&flow.before)),
        pairs: flow.pairs,
    }
}

fn node(node: &NodeChange) -> Node<'_> {
    let nft = (!node.transactions.is_empty()).then(|| nft(node));
    Node { node: &node.node, before: node.before, after: node.after, nft }
}
