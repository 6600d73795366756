//! `weir-agent`: enforces NetworkPolicy on the node that it runs on.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weir_agent::backend::SetBackend;
use weir_agent::run::{Options, Source};
use weir_agent::{kernel, run};

/// Enforces NetworkPolicy on the pods of one node.
///
/// Rules stay in force when the agent ends; `weir-agent cleanup` removes them.
/// RUST_LOG sets what is logged (default: info).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    enforce: Enforce,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove all that Weir made in the kernel, and nothing else. Pods are open then.
    Cleanup,
}

#[derive(Debug, Args)]
struct Enforce {
    /// The name of this node, as in spec.nodeName of its pods.
    #[arg(long, env = "NODE_NAME", required = true)]
    node: Option<String>,
    /// Follow a folder of manifests (as kubectl get -o yaml or -o json prints them) instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<PathBuf>,
    /// Follow the cluster of this file. Without it: the pod's service account, or kubectl's configuration.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one.
    #[arg(long)]
    context: Option<String>,
    /// Where the addresses of peers are kept in the kernel.
    #[arg(long, value_enum, default_value_t)]
    set_backend: SetBackend,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> Result<()> {
    if let Some(Command::Cleanup) = cli.command {
        kernel::cleanup()?;
        println!("removed Weir's tables; no policy is enforced on this node now");
        return Ok(());
    }
    let Enforce { node, manifests, kubeconfig, context, set_backend } = cli.enforce;
    let source = match manifests {
        Some(folder) => Source::Manifests(folder),
        None => Source::Cluster(weir_source::cluster::Options { kubeconfig, context }),
    };
    let options = Options { node: node.unwrap_or_default(), source, sets: set_backend };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(options))
}
