//! `weir diff`: what new manifests change.
//!
//! ```text
//!   --from, or a cluster ──> load      two states: as it is, and with what is new in place
//!   -f NEW ────────────────────┘  v
//!                              reach   classes of pods, rows of who reaches whom, before and after
//!                                v
//!                              flows   the pairs that change, as rectangles
//!                                v
//!                              report  by workload; who becomes isolated; what each node pays (kernel)
//!                                ├─> text, markdown
//!                                └─> json
//! ```
//!
//! Exact: a flow that is not told of has the same verdict before and after.

mod flows;
mod json;
mod load;
mod report;
#[cfg(test)]
mod tests;
mod text;

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;

use self::report::Report;
use crate::input::Input;
use crate::term::{Paint, note};

/// Shows what new manifests change: flows, isolation, and the state of each node
///
/// What is in -f takes the place of the objects of the same name, or is added; with --prune, policies that it does not
/// have are gone. The other state is a cluster's, or that of --from: manifests or a snapshot. Pods of a workload
/// in -f are judged with the labels and ports of its new template.
///
/// All flows between pods of both states, and between these and all other addresses, are compared; those that
/// change are told by workload and port. Pods that are in one state only are counted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir diff -f new/                                 # against the cluster of the kubeconfig
  weir diff -f new/ --from cluster.yaml --prune     # against a snapshot; policies that new/ does not have go
  weir diff -f new/ --from old/ --exit-code -o markdown >> \"$GITHUB_STEP_SUMMARY\"
  weir diff --enforce-audited                       # what would change if audited policies were enforced
  weir diff -f new/ --nft                           # and the nftables transaction of each node

Exit code: 0; with --exit-code 1 if anything changes (flows, isolation, a node's state); 2: no answer.

The schema of -o json is in docs/cli.md.")]
pub(crate) struct Diff {
    /// What is new: NetworkPolicies, Namespaces, Pods, workloads (may be repeated; - is standard input)
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE|DIR|-",
        required_unless_present = "enforce_audited"
    )]
    files: Vec<PathBuf>,
    /// Manifests or a snapshot to compare with, instead of a cluster (may be repeated)
    #[arg(long, value_name = "FILE|DIR|-")]
    from: Vec<PathBuf>,
    /// What -f does not have is gone: NetworkPolicies, and Namespaces and Pods if -f has any
    #[arg(long, requires = "files")]
    prune: bool,
    /// What is audited (annotation weir.dev/audit) is enforced in the new state
    #[arg(long)]
    enforce_audited: bool,
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    context: Option<String>,
    /// The kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    kubeconfig: Option<PathBuf>,
    /// Show the nftables transaction of each node whose state changes
    #[arg(long)]
    nft: bool,
    /// Exit with 1 if anything changes
    #[arg(long)]
    exit_code: bool,
    /// What the nodes' agents were told of pods that call their own node (weir-agent has the same flag)
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    /// What to print
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    Markdown,
}

impl Diff {
    /// Prints what changes.
    ///
    /// # Errors
    /// There is nothing to compare, or nowhere to write.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let old = Input {
            files: self.from.clone(),
            context: self.context.clone(),
            kubeconfig: self.kubeconfig.clone(),
            ..Input::default()
        };
        let states = load::states(&old, &self.files, self.prune, self.enforce_audited)?;
        states.after.tell();
        let report = Report::new(&states, self.pod_to_own_node, self.nft);
        let mut out = BufWriter::new(std::io::stdout().lock());
        match self.output {
            Output::Text => write!(out, "{}", text::text(&report, Paint::for_stdout()))?,
            Output::Markdown => write!(out, "{}", text::markdown(&report))?,
            Output::Json => {
                serde_json::to_writer_pretty(&mut out, &json::report(&report))?;
                writeln!(out)?;
            }
        }
        out.flush()?;
        report.notes.iter().for_each(|n| note("note", n));
        let differs = self.exit_code && report.differs();
        Ok(ExitCode::from(u8::from(differs)))
    }
}
