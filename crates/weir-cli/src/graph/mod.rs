//! `weir graph`: who may talk to whom.
//!
//! ```text
//!   cluster ──> model     boxes (workloads that policies cannot tell apart) and arrows, merged
//!                 ├─> plain    dot, mermaid: others draw it
//!                 └─> layout ──> svg     lanes of namespaces, columns along the arrows
//! ```

mod layout;
mod model;
mod plain;
mod svg;

use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;
use weir_source::inventory::live::Wanted;

use self::model::Graph;
use crate::input::Input;
use crate::term::note;

/// Draws who may talk to whom, by workload
///
/// Workloads of a namespace that no policy tells apart are one box. What a box takes from everybody, or may send to
/// everybody, is written at it; arrows are drawn where a rule at one end names the other. With -n only what concerns
/// that namespace.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir graph -f manifests/ -o svg > policies.svg         # for a browser, light and dark
  weir graph -n shop -o mermaid                          # for Markdown
  weir graph -A -o dot | dot -Tpdf -o policies.pdf")]
pub(crate) struct Draw {
    #[command(flatten)]
    input: Input,
    /// The address family to look at [default: 4 if any pod has such an address]
    #[arg(long, value_name = "4|6", value_parser = clap::value_parser!(u8).range(4..=6))]
    ip_family: Option<u8>,
    /// What the nodes' agents were told of pods that call their own node (weir-agent has the same flag)
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    /// What to print
    #[arg(short, long, value_enum, default_value = "dot")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Dot,
    Mermaid,
    Svg,
}

impl Draw {
    /// Prints the graph.
    ///
    /// # Errors
    /// There is nothing to draw, or nowhere to write.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let cluster = self.input.load(Wanted { workloads: true, services: false, nodes: false })?;
        cluster.need_pods()?;
        cluster.tell();
        let has_v4 = cluster.pods.values().flat_map(|p| &p.addresses).any(IpAddr::is_ipv4);
        let v4 = self.ip_family.map_or(has_v4, |family| family == 4);
        let only = self.input.namespace.as_deref().filter(|_| !self.input.all_namespaces);
        let graph = Graph::new(&cluster, v4, self.pod_to_own_node, only);
        let mut out = BufWriter::new(std::io::stdout().lock());
        let text = match self.output {
            Output::Dot => plain::dot(&graph),
            Output::Mermaid => plain::mermaid(&graph),
            Output::Svg => svg::svg(&graph),
        };
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if graph.hosts > 0 {
            note(
                "note",
                &format!(
                    "{} pods in their nodes' network are not drawn: policies do not concern them (N70)",
                    graph.hosts
                ),
            );
        }
        if graph.others > 0 {
            let other = if v4 { 6 } else { 4 };
            note(
                "note",
                &format!("{} pods have no address of this family (--ip-family {other})", graph.others),
            );
        }
        if only.is_some_and(|n| !cluster.namespaces.contains_key(n)) {
            note("warning", &format!("there is no namespace {}", only.unwrap_or_default()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
