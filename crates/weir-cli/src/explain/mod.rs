//! `weir explain`: what policies mean for a pod.
//!
//! ```text
//!   TYPE/NAME ──> ends ──> party of pods
//!                            v
//!             report   pods that no policy tells apart, with
//!               ├─ rules   what all their policies allow together, and where each of it comes from
//!               ├─ who is in each peer at present, what bypasses policies, whether the node enforces
//!               ├─ counters   on request: which clause let how many connections pass, from the agents' logs
//!               v
//!             text, JSON, YAML;  draw: dot, mermaid;  nft: the kernel's rules for it
//! ```

mod counters;
mod draw;
mod nft;
mod report;
mod rules;
mod text;
mod yaml;

use std::io::Write;
use std::mem::ManuallyDrop;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;
use weir_source::inventory::live::Wanted;

use crate::ends::{self, Name};
use crate::input::Input;
use crate::status::mode_of;
use crate::term::{Paint, escape_json, note};
use crate::workloads;

/// What do policies mean for a pod
///
/// Says whether it is isolated in each direction and by what, what is allowed by all its policies together and by
/// which clause of which, who is in each peer at present, what bypasses policies, and whether its node enforces
/// them at all.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir explain pod shop/db-0
  weir explain deploy/web -n shop --members
  weir explain sts shop/db -f manifests/ -o json
  weir explain pod/db-0 -n shop -o nft                   # what the kernel is told of it
  weir explain pod shop/db-0 --counters --since 1h       # which clause let how many connections pass
  weir explain pod shop/db-0 -o dot | dot -Tsvg > db.svg

The fields of -o json are in docs/cli.md.")]
pub(crate) struct Explain {
    /// A pod, or the pods of a workload or a namespace: TYPE NAME, TYPE/NAME, or NAMESPACE/NAME of a pod
    #[arg(value_name = "TYPE NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
    #[command(flatten)]
    input: Input,
    /// Name the pods of each peer
    #[arg(long)]
    members: bool,
    /// What the nodes' agents were told of pods that call their own node (weir-agent has the same flag)
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    #[command(flatten)]
    counters: counters::Counters,
    /// What to print [default: text]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text with labels, ports and the workloads of each peer
    Wide,
    /// For programs
    Json,
    /// For programs
    Yaml,
    /// What nft shows of it on its node: its chains, and the sets that they look up
    Nft,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}

impl Explain {
    /// Answers on standard output.
    ///
    /// # Errors
    /// There is no answer: names or files are wrong.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        self.counters.check(&self.input, self.output)?;
        let wanted = Wanted { workloads: false, services: false, nodes: true };
        // nothing is freed before the end: that takes as long as reading
        let mut cluster = ManuallyDrop::new(self.input.load_without_policies(wanted)?);
        cluster.need_pods()?;
        cluster.own_node = self.pod_to_own_node;
        cluster.tell();
        cluster.mode = mode_of(&cluster, &self.input);
        let text = name(&self.what)?;
        let name = match ends::parse(&cluster, &text, &cluster.default_namespace)? {
            name @ (Name::Pod(_) | Name::Workload(..) | Name::Namespace(_)) => name,
            _ => bail!(
                "{text:?} is no pod: policies select pods only; name one, or deploy/NAME, sts/NAME, ns/NAME"
            ),
        };
        let namespaces = ends::resolve(&cluster, &name, None)?.namespaces();
        cluster.enforce(|namespace| namespaces.contains(namespace));
        let party = ends::resolve(&cluster, &name, None)?;
        let mut report = report::report(&cluster, &party, self.members);
        self.counters.add_to(&mut report, &cluster, &self.input)?;
        let out = match self.output {
            None | Some(Output::Wide) if self.counters.wanted() => {
                counters::text(&report, Paint::for_stdout())
            }
            None => text::text(&report, text::Style { wide: false, paint: Paint::for_stdout() }),
            Some(Output::Wide) => text::text(&report, text::Style { wide: true, paint: Paint::for_stdout() }),
            Some(Output::Json) => escape_json(&serde_json::to_string_pretty(&report)?) + "\n",
            Some(Output::Yaml) => escape_json(&yaml::text(&serde_json::to_value(&report)?)),
            Some(Output::Nft) => nft::text(&cluster, &party),
            Some(Output::Dot) => draw::dot(&report),
            Some(Output::Mermaid) => draw::mermaid(&report),
        };
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()?;
        cluster.unknowns().iter().for_each(|n| note("note", n));
        Ok(ExitCode::SUCCESS)
    }
}

/// `pod shop/db` as `shop/pod/db`, in one word; one word stays as it is.
fn name(what: &[String]) -> Result<String> {
    match what {
        [one] => Ok(one.clone()),
        [kind, name] => {
            let known = workloads::kind(kind).is_some() || ends::NAMESPACES.contains(&kind.as_str());
            if !known {
                bail!("{kind:?} is no kind: write pod, deploy, sts, ds, rs, job, cronjob or ns");
            }
            Ok(match name.split_once('/') {
                Some((namespace, name)) => format!("{namespace}/{kind}/{name}"),
                None => format!("{kind}/{name}"),
            })
        }
        _ => bail!("name one pod or workload"),
    }
}
