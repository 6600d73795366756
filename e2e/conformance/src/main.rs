//! The command `weir-conformance`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weir_conformance::api::Api;
use weir_conformance::case::Weight;
use weir_conformance::probe::Way;
use weir_conformance::report::{Report, json, junit, text};
use weir_conformance::restart::Engine;
use weir_conformance::run::{self, Options, Profile, Sctp};

/// Tries a cluster's policy engine against what NetworkPolicy says, through the Kubernetes API alone.
#[derive(Parser)]
#[command(name = "weir-conformance", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes namespaces and pods, changes policies, and sees with packets that they hold. Exit code: 0 all is right,
    /// 1 something is not, 2 something could not be tried
    Run(Box<RunArgs>),
    /// Lists the cases, with the statements of docs/semantics.md that they try
    List {
        /// Only this profile's; may be given several times
        #[arg(long, value_enum)]
        profile: Vec<Profile>,
    },
    /// Deletes what earlier runs left behind
    Clean(Cluster),
}

#[derive(Args)]
struct Cluster {
    /// Instead of what kubectl would use
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context in it, instead of the current one
    #[arg(long)]
    context: Option<String>,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// What to try; may be given several times. All of it, if none is given
    #[arg(long, value_enum)]
    profile: Vec<Profile>,
    /// Only cases whose name contains this; may be given several times
    #[arg(long, value_name = "PART")]
    case: Vec<String>,
    /// Writes the results for CI
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Writes the results for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// agnhost, as the nodes can get it
    #[arg(long, default_value = "registry.k8s.io/e2e-test-images/agnhost:2.63.0")]
    image: String,
    /// Leaves namespaces and pods as they are at the end
    #[arg(long)]
    keep: bool,
    /// Worlds of six pods in which cases are tried side by side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    parallel: u16,
    /// Seconds after a change within which all must be right
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    settle: u64,
    /// How questions get into pods
    #[arg(long, value_enum, default_value = "forward")]
    probe: Way,
    /// What the API leaves open must be as Weir decides, too
    #[arg(long)]
    strict: bool,
    /// Where random policies begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many sets of random policies are tried
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    random: u64,
    /// Whether SCTP is tried
    #[arg(long, value_enum, default_value = "auto")]
    sctp: Sctp,
    /// A node to use; may be given several times. Up to three that are ready, if none is given
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
    /// The engine's pods, by label, for profile restart
    #[arg(long, value_name = "LABEL=VALUE", default_value = "app.kubernetes.io/name=weir")]
    engine_selector: String,
    /// What restarts an engine that is no pod, for profile restart; run by sh
    #[arg(long, value_name = "COMMAND")]
    restart_command: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unable(&format!("no threads can be started: {error}")),
    };
    match cli.command {
        Command::List { profile } => {
            for of in Profile::ALL.into_iter().filter(|p| profile.is_empty() || profile.contains(p)) {
                for (name, statements, weight) in run::names(of) {
                    let weight = if weight == Weight::Required { "" } else { "  (what is seen is reported)" };
                    println!("{}/{name}  {}{weight}", of.as_str(), statements.join(" "));
                }
            }
            ExitCode::SUCCESS
        }
        Command::Clean(cluster) => runtime.block_on(clean(cluster)),
        Command::Run(args) => runtime.block_on(run_all(*args)),
    }
}

fn unable(why: &str) -> ExitCode {
    eprintln!("weir-conformance: {why}");
    ExitCode::from(2)
}

async fn clean(cluster: Cluster) -> ExitCode {
    let api = match Api::connect(cluster.kubeconfig, cluster.context).await {
        Ok(api) => api,
        Err(error) => return unable(&error.to_string()),
    };
    match run::clean(&api, None).await {
        Err(error) => unable(&error),
        Ok((found, left)) if left.is_empty() => {
            println!("{found} namespaces deleted");
            ExitCode::SUCCESS
        }
        Ok((_, left)) => unable(&format!("still being deleted: {}", left.join(", "))),
    }
}

async fn run_all(args: RunArgs) -> ExitCode {
    let options = Options {
        kubeconfig: args.cluster.kubeconfig.clone(),
        context: args.cluster.context.clone(),
        profiles: args.profile,
        cases: args.case,
        image: args.image,
        keep: args.keep,
        parallel: usize::from(args.parallel),
        settle: Duration::from_secs(args.settle),
        way: args.probe,
        strict: args.strict,
        seed: args.seed,
        random: args.random,
        sctp: args.sctp,
        nodes: args.node,
        engine: Engine { selector: args.engine_selector, command: args.restart_command },
    };
    let suffix = suffix();
    let result = tokio::select! {
        result = run::run(&options, &suffix, |outcome| print!("{}", text::case(outcome))) => Some(result),
        () = asked_to_end() => None,
    };
    let made = !matches!(&result, Some(Err(error)) if !error.made);
    if made && !options.keep {
        tidy(&options, &suffix).await;
    }
    match result {
        None => {
            eprintln!("weir-conformance: interrupted");
            ExitCode::from(130)
        }
        Some(Err(error)) => unable(&error.to_string()),
        Some(Ok(report)) => {
            print!("{}", text::summary(&report));
            if let Err(error) = write(&report, args.junit, args.json) {
                return unable(&error);
            }
            ExitCode::from(report.exit_code())
        }
    }
}

/// Deletes what the run made, and says what is left.
async fn tidy(options: &Options, suffix: &str) {
    let Ok(api) = Api::connect(options.kubeconfig.clone(), options.context.clone()).await else { return };
    match run::clean(&api, Some(suffix)).await {
        Ok((_, left)) if left.is_empty() => {}
        Ok((_, left)) => eprintln!("weir-conformance: still being deleted: {}", left.join(", ")),
        Err(error) => eprintln!("weir-conformance: left behind ({error}): weir-conformance clean"),
    }
}

fn write(report: &Report, to_junit: Option<PathBuf>, to_json: Option<PathBuf>) -> Result<(), String> {
    let put = |path: PathBuf, text: String| {
        std::fs::write(&path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
    };
    if let Some(path) = to_junit {
        put(path, junit::document(report))?;
    }
    if let Some(path) = to_json {
        put(path, format!("{:#}\n", json::document(report)))?;
    }
    Ok(())
}

/// Five letters that no other run has.
fn suffix() -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut n = std::hash::RandomState::new().build_hasher().finish();
    (0..5)
        .map(|_| {
            let letter = b"bcdfghjklmnpqrstvwxz2456789"[(n % 27) as usize] as char;
            n /= 27;
            letter
        })
        .collect()
}

/// Ctrl-C, or SIGTERM.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = match signal(SignalKind::terminate()) {
        Ok(term) => term,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}
