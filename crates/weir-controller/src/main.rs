//! `weir-controller`: compiles NetworkPolicies for all nodes, and serves each agent its slice.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weir_compiler::Budgets;
use weir_controller::run::{self, Certificates, Options};
use weir_controller::withdraw;
use weir_health::Log;

/// Compiles NetworkPolicies for all nodes, and serves each agent its slice.
///
/// Any number of controllers may run; agents use any of them. RUST_LOG sets what is logged (default: info).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Before Weir is uninstalled: have all agents remove what they made, wait until each has confirmed, and tell
    /// which nodes were not reached. Helm's hook does this.
    ///
    /// Exit code: 0 all nodes have confirmed, 1 not all have, 2 it could not be tried.
    Withdraw(Withdraw),
}

#[derive(Debug, Args)]
struct Withdraw {
    /// The namespace of Weir.
    #[arg(long, env = "POD_NAMESPACE", default_value = "weir-system")]
    namespace: String,
    /// How long to wait for the agents.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Succeed although nodes were not reached. Their rules stay, until somebody removes them there.
    #[arg(long)]
    ignore_unreached: bool,
    /// The nodes that agents run on, as a label selector.
    #[arg(long, value_name = "SELECTOR", default_value = "kubernetes.io/os=linux")]
    node_selector: String,
    /// The ConfigMap that says the mode.
    #[arg(long, value_name = "NAME", default_value = weir_source::status::MODE_CONFIG_MAP)]
    mode_configmap: String,
    /// The ConfigMap in which controllers tell who has confirmed.
    #[arg(long, value_name = "NAME", default_value = weir_source::status::CONFIG_MAP)]
    status_configmap: String,
    /// The cluster of this file. Without it: the pod's service account, or kubectl's configuration.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one.
    #[arg(long)]
    context: Option<String>,
}

#[derive(Debug, Args)]
struct Serve {
    /// Where agents connect to (gRPC over TLS).
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:9443")]
    listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are (plain HTTP).
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:9440")]
    metrics_listen: SocketAddr,
    /// The namespace of the controllers, their Service, and the agents.
    #[arg(long, env = "POD_NAMESPACE", default_value = "weir-system")]
    namespace: String,
    /// The controllers' Service; agents expect a certificate for SERVICE.NAMESPACE.svc.
    #[arg(long, value_name = "NAME", default_value = "weir-controller")]
    service: String,
    /// The agents' service account.
    #[arg(long, value_name = "NAME", default_value = "weir-agent")]
    agent_service_account: String,
    /// The audience that the agents' tokens must be for.
    #[arg(long, default_value = weir_proto::AUDIENCE)]
    audience: String,
    /// The Secret in which the controllers keep the authority that they make.
    #[arg(long, value_name = "NAME", default_value = "weir-ca")]
    ca_secret: String,
    /// The ConfigMap in which they publish it (ca.crt).
    #[arg(long, value_name = "NAME", default_value = "weir-ca")]
    ca_configmap: String,
    /// The ConfigMap that says whether policies are enforced: its key mode is enforce, audit or off.
    #[arg(long, value_name = "NAME", default_value = weir_source::status::MODE_CONFIG_MAP)]
    mode_configmap: String,
    /// The ConfigMap in which controllers write what they know, for weir status.
    #[arg(long, value_name = "NAME", default_value = weir_source::status::CONFIG_MAP)]
    status_configmap: String,
    /// The name of this controller in it.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "weir-controller")]
    name: String,
    /// What policies may have, as policy-clauses=N,namespace-clauses=N,namespace-peers=N; 0: no limit. What is beyond
    /// isolates its pods and allows nothing.
    #[arg(long, value_name = "NAME=NUMBER,...", default_value_t)]
    budgets: Budgets,
    /// A certificate (PEM) to use instead. Read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with_all = ["ca_secret", "ca_configmap"])]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The cluster of this file. Without it: the pod's service account, or kubectl's configuration.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one.
    #[arg(long)]
    context: Option<String>,
}

fn main() -> ExitCode {
    let log = match Log::to_standard_error("weir-controller") {
        Ok(log) => log,
        Err(error) => {
            eprintln!("weir-controller: cannot write to standard error from a thread: {error}");
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve(cli.serve).map(|()| ExitCode::SUCCESS),
        Some(Command::Withdraw(options)) => withdraw(options),
    };
    log.flush();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-controller: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn serve(cli: Serve) -> anyhow::Result<()> {
    let certificates = match (cli.tls_cert, cli.tls_key) {
        (Some(certificate), Some(key)) => Certificates::Mounted { certificate, key },
        _ => Certificates::Own { secret: cli.ca_secret, config_map: cli.ca_configmap },
    };
    let options = Options {
        listen: cli.listen,
        metrics_listen: cli.metrics_listen,
        namespace: cli.namespace,
        service: cli.service,
        agent_service_account: cli.agent_service_account,
        audience: cli.audience,
        certificates,
        mode_configmap: cli.mode_configmap,
        status_configmap: cli.status_configmap,
        name: cli.name,
        budgets: cli.budgets,
        cluster: weir_source::cluster::Options { kubeconfig: cli.kubeconfig, context: cli.context },
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(options))
}

fn withdraw(cli: Withdraw) -> anyhow::Result<ExitCode> {
    let options = withdraw::Options {
        cluster: weir_source::cluster::Options { kubeconfig: cli.kubeconfig, context: cli.context },
        namespace: cli.namespace,
        mode_configmap: cli.mode_configmap,
        status_configmap: cli.status_configmap,
        nodes: cli.node_selector,
        timeout: Duration::from_secs(cli.timeout),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(withdraw::withdraw(&options))?;
    print!("{}", outcome.report());
    let all = outcome.unreached.is_empty();
    if !all && cli.ignore_unreached {
        println!("Going on all the same (--ignore-unreached).");
    }
    Ok(ExitCode::from(u8::from(!all && !cli.ignore_unreached)))
}
