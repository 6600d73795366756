//! `weir-agent`: enforces NetworkPolicy on the node that it runs on.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_agent::backend::SetBackend;
use weir_agent::controller::{self, address::Address};
use weir_agent::denials;
use weir_agent::run::{Options, Source};
use weir_agent::{host, kernel, npm, run};
use weir_compiler::Budgets;
use weir_compiler::flow::PodToOwnNode;
use weir_dataplane::{DenialLog, Settings};
use weir_health::Log;
use weir_nft::Nft;

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
    /// Switch on what pods that share a bridge need of this host: net.bridge.bridge-nf-call-iptables and
    /// -ip6tables. The agent itself may not; it is not ready without them where it needs them.
    HostSetup,
    /// List what Azure NPM has left in the kernel of this node: jumps, chains and ipsets. Exit code 0: nothing;
    /// 1: something is (still) there.
    NpmLeftovers {
        /// Remove it: exactly what is listed. Refuses while NPM seems to run, and where Weir does not enforce.
        #[arg(long)]
        remove: bool,
        /// Remove it although NPM seems to run, or pods would be open without it.
        #[arg(long, requires = "remove")]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct Enforce {
    /// The name of this node, as in spec.nodeName of its pods.
    #[arg(long, env = "NODE_NAME", required = true)]
    node: Option<String>,
    /// Follow controllers, which compile for all nodes, instead of a cluster: any of these, or those behind a
    /// Service. With commas between them, or repeated. Needs --controller-ca and --token-file.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "WEIR_CONTROLLER",
        value_delimiter = ',',
        requires_all = ["controller_ca", "token_file"],
        conflicts_with_all = ["manifests", "kubeconfig", "context"]
    )]
    controller: Vec<Address>,
    /// The name that the controllers' certificates are for.
    #[arg(long, value_name = "NAME", default_value = "weir-controller.weir-system.svc")]
    controller_name: String,
    /// The certificates that the controllers' are signed by, in PEM. Read at each attempt to connect.
    #[arg(long, value_name = "FILE")]
    controller_ca: Option<PathBuf>,
    /// The token by which controllers know this node: projected, for the audience weir-controller. Read at each
    /// attempt to connect.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With controllers: where the last slice is kept, for a start without them.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weir")]
    state_dir: PathBuf,
    /// With controllers: after a reboot the slice on disk does not say which pod has which address now. Pods
    /// reach their own node only until a controller answers, for so long at most; 0: they are open, or as
    /// the old slice has it.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    isolate_after_reboot: u64,
    /// Where to serve /metrics, /healthz and /readyz over HTTP; off: nowhere.
    #[arg(long, value_name = "IP:PORT|off", default_value = "127.0.0.1:9441", value_parser = listen)]
    metrics_listen: Listen,
    /// Follow a folder of manifests (as kubectl get -o yaml or -o json prints them) instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<PathBuf>,
    /// Follow the cluster of this file. Without it: the pod's service account, or kubectl's configuration.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than the current one.
    #[arg(long)]
    context: Option<String>,
    /// Drop what a pod sends with an address that is not its own. Off for nodes with pods that forward
    /// what others send, such as routers and VPN gateways.
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    source_guard: Switch,
    /// Whether pods that Weir does not know yet are open, or closed until their address is known. What
    /// looks like a pod: a veth or netkit to another network namespace with host routes, or one that is
    /// a port of a bridge that known pods are behind.
    #[arg(long, value_name = "WHAT", default_value = "allow")]
    unknown_pods: UnknownPods,
    /// What egress policies of pods mean for this node itself: enforce, or allow (a pod then always reaches its
    /// own node: kubelet, host-network pods, a DNS cache on the node).
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    /// Where the container runtime keeps what CNI plugins told it of pods' interfaces. Read if it is there, to
    /// know the ports of bridged pods for sure.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/results")]
    cni_results: PathBuf,
    /// What becomes of established connections that a change of policies forbids.
    #[arg(long, value_enum, default_value_t = Existing::Revoke)]
    existing_connections: Existing,
    /// The bit of connections' marks (connmark) that says: revoked. Nobody else on the node may use it.
    #[arg(long, value_name = "BIT", default_value = "0x1000", value_parser = mark)]
    revoked_mark: NonZeroU32,
    /// Where conntrack was not in use before the first start: for how long TCP connections that exist
    /// already are judged by policies. After that, isolated pods drop TCP that is new without SYN.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    mid_stream_grace: u64,
    /// Tell of denied connections on standard output, as lines of JSON: so many a second of each pod and direction
    /// at most; off: none.
    #[arg(long, value_name = "PER_SECOND|off", default_value = "10", value_parser = per_second)]
    log_denied: PerSecond,
    /// The group of NFLOG by which the kernel tells of them. Nobody else on the node may use it.
    #[arg(long, value_name = "GROUP", default_value_t = DenialLog::default().group)]
    log_denied_group: u16,
    /// What policies may have, as policy-clauses=N,namespace-clauses=N,namespace-peers=N; 0: no limit. What is beyond
    /// isolates its pods and allows nothing. With --controller, controllers decide that.
    #[arg(long, value_name = "NAME=NUMBER,...", default_value_t)]
    budgets: Budgets,
    /// Where the addresses of peers are kept in the kernel.
    #[arg(long, value_enum, default_value_t)]
    set_backend: SetBackend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnknownPods {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Existing {
    /// It ends them.
    Revoke,
    /// They stay until they end by themselves.
    Keep,
}

/// An address, or none.
#[derive(Debug, Clone, Copy)]
struct Listen(Option<SocketAddr>);

fn listen(text: &str) -> Result<Listen, String> {
    match text {
        "off" => Ok(Listen(None)),
        text => text
            .parse()
            .map(|at| Listen(Some(at)))
            .map_err(|_| "an address such as 127.0.0.1:9441, or off".into()),
    }
}

/// So many, or none.
#[derive(Debug, Clone, Copy)]
struct PerSecond(Option<u32>);

fn per_second(text: &str) -> Result<PerSecond, String> {
    match text.parse() {
        _ if text == "off" => Ok(PerSecond(None)),
        Ok(number @ 1..=1000) => Ok(PerSecond(Some(number))),
        _ => Err("a number from 1 to 1000, or off".into()),
    }
}

fn mark(text: &str) -> Result<NonZeroU32, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let bits = number.ok().and_then(NonZeroU32::new).filter(|bits| bits.get().is_power_of_two());
    bits.ok_or_else(|| "one bit of 32, such as 0x1000".to_owned())
}

fn main() -> ExitCode {
    let log = match Log::to_standard_error("weir-agent") {
        Ok(log) => log,
        Err(error) => {
            eprintln!("weir-agent: cannot write to standard error from a thread: {error}");
            return ExitCode::from(2);
        }
    };
    let result = start(Cli::parse());
    log.flush();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Some(Command::Cleanup) => {
            kernel::cleanup()?;
            println!("removed Weir's tables; no policy is enforced on this node now");
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::HostSetup) => {
            host::setup(Path::new(host::BRIDGE))?.iter().for_each(|done| println!("{done}"));
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::NpmLeftovers { remove, force }) => return npm_leftovers(remove, force),
        None => {}
    }
    let Enforce {
        node,
        controller,
        controller_name,
        controller_ca,
        token_file,
        state_dir,
        isolate_after_reboot,
        metrics_listen,
        manifests,
        kubeconfig,
        context,
        source_guard,
        unknown_pods,
        pod_to_own_node,
        cni_results,
        existing_connections,
        revoked_mark,
        mid_stream_grace,
        log_denied,
        log_denied_group,
        budgets,
        set_backend,
    } = cli.enforce;
    let node = node.unwrap_or_default();
    let source = match (manifests, controller_ca, token_file) {
        (None, Some(ca), Some(token)) if !controller.is_empty() => Source::Controller(controller::Options {
            addresses: controller,
            name: controller_name,
            ca,
            token,
            node: node.clone(),
        }),
        (Some(folder), ..) => Source::Manifests(folder),
        (None, ..) => Source::Cluster(weir_source::cluster::Options { kubeconfig, context }),
    };
    let revoked_mark = (existing_connections == Existing::Revoke).then_some(revoked_mark);
    let settings = Settings {
        source_guard: source_guard == Switch::On,
        close_unknown: unknown_pods == UnknownPods::Deny,
        own_node: pod_to_own_node,
        revoked_mark,
        ..Settings::default()
    };
    let mid_stream_grace = Duration::from_secs(mid_stream_grace);
    let options = Options {
        node,
        source,
        settings,
        cni_results,
        mid_stream_grace,
        sets: set_backend,
        budgets,
        denials: log_denied.0.map(|per_second| denials::Options {
            per_second,
            kernel: DenialLog { group: log_denied_group, ..DenialLog::default() },
        }),
        state: state_dir,
        isolate_after_reboot: (isolate_after_reboot > 0).then(|| Duration::from_secs(isolate_after_reboot)),
        metrics: metrics_listen.0,
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(options))?;
    Ok(ExitCode::SUCCESS)
}

/// Lists, or removes; the code says whether something is there after that.
fn npm_leftovers(remove: bool, force: bool) -> Result<ExitCode> {
    let mut nft = Nft::open()?;
    let found = npm::find(&mut nft)?;
    if found.is_empty() {
        println!("Azure NPM has left nothing here");
        found.strange().for_each(|what| println!("  not touched: {what}"));
        return Ok(ExitCode::SUCCESS);
    }
    if !remove {
        print!("of Azure NPM there are {} here:\n{found}", found.summary());
        npm::signs().iter().for_each(|sign| println!("NPM seems to run: {sign}"));
        println!("nothing was changed; weir-agent npm-leftovers --remove removes them");
        return Ok(ExitCode::from(1));
    }
    if !force {
        let signs = npm::signs();
        anyhow::ensure!(
            signs.is_empty(),
            "Azure NPM seems to run here, and would make its chains again: {}; turn it off first, or, if that is \
             not NPM, add --force; nothing was removed",
            signs.join(", and ")
        );
        anyhow::ensure!(
            npm::weir_enforces(&mut nft)?,
            "Weir's rules are not in force on this node, so nothing would enforce policies without NPM's chains: \
             start weir-agent first, or add --force if pods may be open; nothing was removed"
        );
    }
    let removed = npm::remove(&mut nft)?;
    print!("removed {} of Azure NPM:\n{removed}", removed.summary());
    Ok(ExitCode::SUCCESS)
}
