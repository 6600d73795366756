//! `weir snapshot`: what an offline run needs, and nothing else.
//!
//! A manifest: one document for each object, in one line, in the order of their kinds and
//! names, so that two snapshots can be compared by line. What of an object is written is in
//! `weir_source::inventory::keep`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use weir_source::inventory::keep;
use weir_source::inventory::live::Wanted;
use weir_source::tree::Tree;

use crate::input::Input;
use crate::term::{error, escape_json, note};

/// Write a file from which the other commands answer without the cluster
///
/// It has Namespaces, Pods (names, labels, addresses, node, owner, ports, phase), NetworkPolicies, Services with
/// their endpoints, and the addresses of Nodes. It has no Secrets, environment, images or
/// annotations but Weir's own.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir snapshot -o cluster.yaml
  weir can shop/web-0 shop/db-0:5432 -f cluster.yaml
  weir snapshot --context production | ssh bastion weir can --all -f -")]
pub(crate) struct Snapshot {
    #[command(flatten)]
    input: Input,
    /// Where to write it [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Snapshot {
    /// Writes it.
    ///
    /// # Errors
    /// There is nothing to read, or nowhere to write.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let wanted = Wanted { workloads: false, services: true, nodes: true };
        let found = self.input.find(wanted, true)?;
        found.inventory.problems.iter().for_each(|p| note("warning", &p.to_string()));
        found.unseen.iter().for_each(|n| note("note", n));
        if found.inventory.kept.is_empty() {
            error("there is nothing to write: no objects of the kinds that count");
            return Ok(ExitCode::from(2));
        }
        let count = found.inventory.kept.len();
        let text = text(found.inventory.kept);
        match self.output.as_ref().filter(|path| path.as_os_str() != "-") {
            Some(path) => {
                std::fs::write(path, text).with_context(|| path.display().to_string())?;
                note("note", &format!("{count} objects written to {}", path.display()));
            }
            None => std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The snapshot as text.
pub(crate) fn text(objects: Vec<Tree>) -> String {
    let name = |tree: &Tree, key: &str| {
        tree.get("metadata").and_then(|meta| meta.text(key)).unwrap_or_default().to_owned()
    };
    let order = |tree: &Tree| {
        let kind = tree.text("kind").unwrap_or_default().to_owned();
        let rank = ["Namespace", "Node", "NetworkPolicy", "Service"].iter().position(|k| *k == kind);
        (rank.unwrap_or(4), kind, name(tree, "namespace"), name(tree, "name"))
    };
    let mut objects: Vec<_> = objects.into_iter().map(|tree| (order(&tree), tree)).collect();
    objects.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut out =
        format!("# weir snapshot, by weir {}: weir ... -f FILE answers from it\n", env!("CARGO_PKG_VERSION"));
    for (_, tree) in objects {
        let _ = writeln!(out, "--- {}", escape_json(&keep::json(&tree).to_string()));
    }
    out
}
