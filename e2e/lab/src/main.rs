//! `weir-lab`: nodes and pods as network namespaces, and real packets between them.
//!
//! Exit code 0: packets do what policies say; 1: some do not; 2: it could not be tried.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use weir_lab::cluster::Machines;
use weir_lab::holder::{self, Reply, Request};
use weir_lab::network::{Fabric, Links};
use weir_lab::objects::Family;
use weir_lab::ports::Port;
use weir_lab::scenario::{self, Scenario, StepResult};
use weir_lab::{Lab, Options, Report, agent, lab};

/// Nodes and pods as network namespaces, weir-agent in each node, and packets between all pods
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit code 0: packets do what policies say; 1: some do not; 2: it could not be tried."
)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Build a cluster, probe every pair of pods, and take it down
    Run {
        #[command(flatten)]
        build: Build,
        #[command(flatten)]
        show: Show,
    },
    /// Play scenarios: a cluster, what happens to it step by step, and packets after each step
    Scenario {
        /// Files, or folders of them
        #[arg(value_name = "FILE|DIR", required = true)]
        files: Vec<PathBuf>,
        /// How pods are joined to their nodes, whatever the scenarios say
        #[arg(long)]
        links: Option<Links>,
        /// The agent [default: weir-agent beside this program]
        #[arg(long, value_name = "PATH")]
        agent: Option<PathBuf>,
        /// Run no agents: everything passes
        #[arg(long, conflicts_with = "agent")]
        no_agent: bool,
    },
    /// Build a cluster and keep it
    Up {
        #[command(flatten)]
        build: Build,
        #[command(flatten)]
        name: Name,
    },
    /// Probe every pair of pods of a cluster that is up
    Probe {
        #[command(flatten)]
        show: Show,
        #[command(flatten)]
        name: Name,
    },
    /// Add or replace objects in a cluster that is up
    Apply {
        /// Files or folders of manifests
        #[arg(short, long = "filename", value_name = "FILE|DIR", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        name: Name,
    },
    /// Remove the objects that files name from a cluster that is up
    Delete {
        /// Files or folders of manifests
        #[arg(short, long = "filename", value_name = "FILE|DIR", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        name: Name,
    },
    /// A shell, or a command, in the network namespace of a node or pod
    Shell {
        /// A node, or a pod as namespace/name
        #[arg(value_name = "NODE|POD")]
        place: String,
        /// Instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
        #[command(flatten)]
        name: Name,
    },
    /// Take a cluster down
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// What `up` leaves running
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        build: Build,
        #[command(flatten)]
        name: Name,
    },
}

#[derive(Args)]
struct Build {
    /// Files or folders of manifests: Namespaces, Pods, NetworkPolicies
    #[arg(short, long = "filename", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Addresses for pods without any: ipv4, ipv6 or dual [default: as the other pods]
    #[arg(long)]
    family: Option<Family>,
    /// How pods are joined to their nodes: routed or bridged, or as azure, calico, ptp, kubenet, flannel or weave do it; NODE=LINKS for one node alone, after a comma
    #[arg(long, default_value = "routed")]
    links: Links,
    /// How nodes are joined to each other
    #[arg(long, value_enum, default_value = "routed")]
    fabric: Fabric,
    /// Probe from and to the nodes, too
    #[arg(long)]
    nodes: bool,
    /// Probe from and to a machine outside of the cluster, too
    #[arg(long)]
    outside: bool,
    /// The agent [default: weir-agent beside this program]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Run no agents: everything passes
    #[arg(long, conflicts_with = "agent")]
    no_agent: bool,
}

#[derive(Args)]
struct Show {
    /// Probe only this, such as 80/TCP, 53/UDP, 53/UDP:4000 (bytes), 9/SCTP or ICMP (may be repeated)
    #[arg(long = "port", value_name = "PORT/PROTOCOL")]
    ports: Vec<Port>,
    /// What to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args)]
struct Name {
    /// Which lab
    #[arg(long, default_value = "lab")]
    name: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("weir-lab: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn carry_out(command: Sub) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run it with sudo");
    }
    match command {
        Sub::Run { build, show } => {
            let mut notes = Vec::new();
            let objects = lab::read(&build.files, &mut notes)?;
            notes.iter().for_each(|note| eprintln!("weir-lab: {note}"));
            let options = build.options(private_dir()?)?;
            let mut lab = Lab::start(objects, options)?;
            print(&lab.report(&show.ports)?, show.output)
        }
        Sub::Scenario { files, links, agent, no_agent } => {
            play(&scenario::files(&files)?, links.as_ref(), find_agent(agent.as_deref(), no_agent)?)
        }
        Sub::Up { build, name } => up(&build, &name.name),
        Sub::Hold { build, name } => hold(&build, &name.name),
        Sub::Probe { show, name } => match holder::ask(&name.name, &Request::Probe(show.ports))? {
            Reply::Report(report) => print(&report, show.output),
            reply => bail!("unexpected answer {reply:?}"),
        },
        Sub::Apply { files, name } => change(&name.name, &Request::Apply(absolute(&files)?)),
        Sub::Delete { files, name } => change(&name.name, &Request::Delete(absolute(&files)?)),
        Sub::Down { name } => change(&name.name, &Request::Down),
        Sub::Shell { place, command, name } => {
            match holder::ask(&name.name, &Request::Find(place.clone()))? {
                Reply::Found(path) => shell(&path, &place, &command),
                reply => bail!("unexpected answer {reply:?}"),
            }
        }
    }
}

impl Build {
    fn options(&self, dir: PathBuf) -> Result<Options> {
        let agent = find_agent(self.agent.as_deref(), self.no_agent)?;
        let machines = Machines { nodes: self.nodes, outside: self.outside };
        let links = self.links.clone();
        Ok(Options {
            links,
            fabric: self.fabric,
            machines,
            family: self.family,
            agent,
            agent_arguments: Vec::new(),
            dir,
        })
    }
}

fn find_agent(named: Option<&Path>, none: bool) -> Result<Option<PathBuf>> {
    Ok(match (named, none) {
        (_, true) => None,
        (Some(path), _) => {
            Some(path.canonicalize().with_context(|| format!("no agent at {}", path.display()))?)
        }
        (None, _) => Some(agent::find()?),
    })
}

/// Says of each step whether packets did what they should, and shows those that did not.
fn play(files: &[PathBuf], links: Option<&Links>, agent: Option<PathBuf>) -> Result<ExitCode> {
    let dir = private_dir()?;
    let mut good = true;
    for (n, file) in files.iter().enumerate() {
        let scenario = Scenario::read(file)?;
        println!("{}: {}", file.display(), scenario.name);
        let steps = scenario.play(agent.clone(), dir.join(n.to_string()), links, |step| {
            let mark = if step.is_good() { '✔' } else { '✘' };
            let (flows, ms) = (step.report.rows.len(), step.took.as_millis());
            println!("  {mark} {} ({flows} flows, {ms} ms)", step.name);
            step.wrong.iter().for_each(|wrong| println!("    {wrong}"));
            if step.report.differs() {
                step.report.notes.iter().for_each(|note| eprintln!("weir-lab: {note}"));
                print!("{}", step.report.table(false));
            }
        })?;
        good &= steps.len() == scenario.steps.len() && steps.iter().all(StepResult::is_good);
    }
    Ok(ExitCode::from(u8::from(!good)))
}

/// A folder that nobody else sees and that ends with this process and its agents: a mount of its own.
fn private_dir() -> Result<PathBuf> {
    let dir = Path::new("/run/weir-lab");
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (root needed)")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")?;
    mount(Some("weir-lab"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount a tmpfs on {}", dir.display()))?;
    Ok(dir.to_owned())
}

fn print(report: &Report, output: Output) -> Result<ExitCode> {
    report.notes.iter().for_each(|note| eprintln!("weir-lab: {note}"));
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            writeln!(out, "{}", report.json()?)?;
            if report.differs() {
                eprintln!("weir-lab: some flows do not do what the policies say");
            }
        }
        Output::Table => {
            let color = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            write!(out, "{}", report.table(color))?;
        }
    }
    Ok(ExitCode::from(u8::from(report.differs())))
}

fn up(build: &Build, name: &str) -> Result<ExitCode> {
    if holder::ask(name, &Request::Find(String::new())).is_err_and(|e| !e.to_string().starts_with("no lab")) {
        bail!("lab {name} is up already: `weir-lab down --name {name}` ends it");
    }
    let dir = holder::state_dir(name);
    // What a lab that was killed has left.
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let log = dir.join("log");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["hold", "--name", name]);
    for file in absolute(&build.files)? {
        command.arg("-f").arg(file);
    }
    command.arg("--links").arg(build.links.to_string());
    command.arg("--fabric").arg(build.fabric.to_possible_value().context("fabric")?.get_name());
    for (flag, given) in [("--nodes", build.nodes), ("--outside", build.outside)] {
        if given {
            command.arg(flag);
        }
    }
    if let Some(family) = build.family {
        command.arg("--family").arg(format!("{family:?}").to_lowercase());
    }
    if let Some(agent) = &build.agent {
        command.arg("--agent").arg(std::path::absolute(agent)?);
    }
    if build.no_agent {
        command.arg("--no-agent");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log)?).process_group(0);
    let mut child = command.spawn().context("cannot start the holder")?;
    let mut said = String::new();
    child.stdout.take().context("the holder has no output")?.read_to_string(&mut said)?;
    let notes = std::fs::read_to_string(&log).unwrap_or_default();
    eprint!("{notes}");
    if said.trim() != "up" {
        child.wait()?;
        let _ = std::fs::remove_dir_all(&dir);
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

fn hold(build: &Build, name: &str) -> Result<ExitCode> {
    // The terminal's ctrl-C and hang-up are for the command that started this, not for the lab.
    nix::unistd::setsid().ok();
    let dir = holder::state_dir(name);
    let mut notes = Vec::new();
    let objects = lab::read(&build.files, &mut notes)?;
    notes.iter().for_each(|note| eprintln!("weir-lab: {note}"));
    let lab = Lab::start(objects, build.options(dir.clone())?)?;
    holder::hold(lab, &dir, || {
        println!("up");
        // `up` waits for the end of this output: hand it over to the log.
        let log = std::fs::File::options().append(true).open(dir.join("log"))?;
        nix::unistd::dup2_stdout(log).context("cannot redirect the output")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn change(name: &str, request: &Request) -> Result<ExitCode> {
    match holder::ask(name, request)? {
        Reply::Done(notes) => notes.iter().for_each(|note| eprintln!("weir-lab: {note}")),
        reply => bail!("unexpected answer {reply:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn shell(path: &str, place: &str, command: &[String]) -> Result<ExitCode> {
    let namespace = std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    let failed = match command {
        [] => {
            // A shell without start-up files, so that the prompt stays and says where one is.
            Command::new("bash").args(["--norc", "-i"]).env("PS1", format!("[{place}] # ")).exec()
        }
        [program, arguments @ ..] => Command::new(program).args(arguments).exec(),
    };
    Err(failed).context("cannot run the command")
}

fn absolute(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    files
        .iter()
        .map(|f| f.canonicalize().with_context(|| format!("no file or folder {}", f.display())))
        .collect()
}
