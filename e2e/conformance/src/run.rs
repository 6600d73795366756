//! A run from start to end: what the cluster is like, worlds, cases, and that nothing is left behind.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::{Api, path};
use crate::case::{Case, Weight};
use crate::live::{Live, Shared, condition, told};
use crate::netpol;
use crate::probe::{Patience, Prober, Way};
use crate::report::{Outcome, Report, Run, text as report_text};
use crate::world::{LABEL, PREFIX, SCTP, World, text};

/// So many nodes take part at most.
const NODES: usize = 3;
/// How long namespaces may take to go.
const GONE: Duration = Duration::from_secs(120);

/// A group of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// What NetworkPolicy means.
    Netpol,
}

impl Profile {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Profile; 1] = [Profile::Netpol];

    /// As the command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Netpol => netpol::NAME,
        }
    }
}

/// Whether SCTP is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sctp {
    /// If the nodes serve it.
    Auto,
    /// It must be served.
    Yes,
    /// It is left out.
    No,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which cluster.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it.
    pub context: Option<String>,
    /// What to try; empty: everything.
    pub profiles: Vec<Profile>,
    /// Only cases whose name contains one of these; empty: all.
    pub cases: Vec<String>,
    /// agnhost.
    pub image: String,
    /// What is made stays.
    pub keep: bool,
    /// Worlds side by side.
    pub parallel: usize,
    /// Within so long after a change all must be right.
    pub settle: Duration,
    /// How long answers are waited for.
    pub patience: Patience,
    /// How questions get into pods.
    pub way: Way,
    /// What the API leaves open must be as Weir decides.
    pub strict: bool,
    /// Of the first random policies.
    pub seed: u64,
    /// How many sets of random policies.
    pub random: u64,
    /// Whether SCTP is tried.
    pub sctp: Sctp,
    /// Nodes to use; empty: up to three that are ready.
    pub nodes: Vec<String>,
}

/// What a case is, for the queue.
enum Job {
    Netpol(Case),
    Random(u64),
}

impl Job {
    fn hosts(&self) -> bool {
        matches!(self, Job::Netpol(case) if case.needs.hosts)
    }
}

/// Why nothing could be tried at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unable(String);

/// Runs everything that was asked for; calls `told_of` with each case as it ends.
///
/// # Errors
/// Nothing could be tried.
pub async fn run(
    options: &Options,
    suffix: &str,
    told_of: impl Fn(&Outcome) + Send + Sync + 'static,
) -> Result<Report, Unable> {
    let start = Instant::now();
    let api = Api::connect(options.kubeconfig.clone(), options.context.clone())
        .await
        .map_err(|error| Unable(error.to_string()))?;
    let version = api.get("/version").await.map_err(|error| Unable(format!("the API server cannot be asked: {error}")))?;
    let nodes = nodes(&api, &options.nodes).await.map_err(Unable)?;
    let sctp = sctp(&api, options, suffix, &nodes).await.map_err(Unable)?;
    let shared = Arc::new(Shared {
        prober: Prober::new(&api, options.way, options.patience),
        api,
        settle: options.settle,
        strict: options.strict,
    });
    let profiles = if options.profiles.is_empty() { Profile::ALL.to_vec() } else { options.profiles.clone() };
    let blank = |index: usize| World {
        suffix: suffix.to_owned(),
        index,
        nodes: nodes.clone(),
        families: vec![true],
        sctp,
        image: options.image.clone(),
        objects: Default::default(),
    };
    let done: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let keep = {
        let done = done.clone();
        Arc::new(move |outcome: Outcome| {
            told_of(&outcome);
            done.lock().expect("not poisoned").push(outcome);
        })
    };
    let mut families = Vec::new();
    if profiles.contains(&Profile::Netpol) {
        let queue = Arc::new(Mutex::new(jobs(options)));
        let count = options.parallel.clamp(1, queue.lock().expect("not poisoned").len().max(1));
        let mut workers = JoinSet::new();
        for index in 0..count {
            let (shared, world, queue, keep) = (shared.clone(), blank(index), queue.clone(), keep.clone());
            workers.spawn(async move {
                let mut live = Live::up(shared, world).await?;
                if index == 0 {
                    let hosts = live.world.host_pods();
                    if let Err(error) = live.start(&hosts).await {
                        for plan in &hosts {
                            live.world.forget("Pod", &live.world.namespace("z"), &plan.name);
                        }
                        eprintln!("pods in their nodes' network: {error}");
                    }
                }
                while let Some(job) = take(&queue, index == 0) {
                    let outcome = match job {
                        Job::Netpol(case) => netpol::run(&mut live, &case).await,
                        Job::Random(seed) => netpol::run_random(&mut live, &format!("random-{seed}"), seed).await,
                    };
                    keep(outcome);
                }
                Ok::<Vec<bool>, String>(live.world.families)
            });
        }
        while let Some(ended) = workers.join_next().await {
            families = ended.map_err(|e| Unable(e.to_string()))?.map_err(Unable)?;
        }
    }
    let cases = std::mem::take(&mut *done.lock().expect("not poisoned"));
    Ok(Report {
        run: Run {
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            kubernetes: text(&version, "/gitVersion").to_owned(),
            nodes,
            families: families.iter().map(|v4| if *v4 { "IPv4" } else { "IPv6" }.to_owned()).collect(),
            sctp,
            profiles: profiles.iter().map(|p| p.as_str().to_owned()).collect(),
            suffix: suffix.to_owned(),
            seed: options.seed,
            seconds: start.elapsed(),
        },
        cases,
    })
}

/// Whether a case was asked for by name.
fn wanted(options: &Options, name: &str) -> bool {
    options.cases.is_empty() || options.cases.iter().any(|part| name.contains(part.as_str()))
}

fn jobs(options: &Options) -> VecDeque<Job> {
    let cases = netpol::cases().into_iter().filter(|case| wanted(options, case.name)).map(Job::Netpol);
    let random = (0..options.random).map(|n| options.seed.wrapping_add(n));
    let random = random.filter(|seed| wanted(options, &format!("random-{seed}"))).map(Job::Random);
    cases.chain(random).collect()
}

/// The next job; those that need pods in the nodes' network are for the world that has them.
fn take(queue: &Mutex<VecDeque<Job>>, hosts: bool) -> Option<Job> {
    let mut queue = queue.lock().expect("not poisoned");
    let index = queue.iter().position(|job| hosts || !job.hosts())?;
    queue.remove(index)
}

/// The nodes to use: Linux, ready, and free for all pods.
async fn nodes(api: &Api, wanted: &[String]) -> Result<Vec<String>, String> {
    let list = api.get(path::NODES).await.map_err(|error| format!("nodes cannot be listed: {error}"))?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let usable = |node: &&Value| {
        let taints = node.pointer("/spec/taints").and_then(Value::as_array);
        let closed = taints.is_some_and(|t| t.iter().any(|t| t["effect"] != "PreferNoSchedule"));
        let linux = matches!(node.pointer("/metadata/labels/kubernetes.io~1os").and_then(Value::as_str), None | Some("linux"));
        condition(node, "Ready") && !closed && linux && node.pointer("/spec/unschedulable") != Some(&json!(true))
    };
    let names: Vec<String> = items.iter().filter(usable).map(|n| text(n, "/metadata/name").to_owned()).collect();
    if let Some(missing) = wanted.iter().find(|name| !names.contains(name)) {
        return Err(format!("node {missing} is not there, not ready, tainted or not Linux (usable: {})", names.join(", ")));
    }
    let chosen: Vec<String> =
        if wanted.is_empty() { names.into_iter().take(NODES).collect() } else { wanted.to_vec() };
    if chosen.is_empty() { Err("no node is ready, untainted and Linux".into()) } else { Ok(chosen) }
}

/// Whether all nodes serve SCTP: agnhost ends where the kernel does not know it.
async fn sctp(api: &Api, options: &Options, suffix: &str, nodes: &[String]) -> Result<bool, String> {
    if options.sctp != Sctp::Auto {
        return Ok(options.sctp == Sctp::Yes);
    }
    let namespace = format!("{PREFIX}{suffix}-sctp");
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {LABEL: suffix}}});
    api.create(path::NAMESPACES, &object).await.map_err(told)?;
    let pods = path::pods(&namespace);
    for (index, node) in nodes.iter().enumerate() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("sctp-{index}")},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "dnsPolicy": "Default",
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
                "containers": [{"name": "one", "image": options.image, "imagePullPolicy": "IfNotPresent",
                    "args": ["netexec", "--http-port=8080", "--udp-port=-1", format!("--sctp-port={SCTP}")]}],
            },
        });
        create_pod(api, &pods, &pod).await?;
    }
    let start = Instant::now();
    let mut running_since = None;
    let answer = loop {
        let list = api.get(&pods).await.map_err(told)?;
        let phases: Vec<&str> = list["items"].as_array().into_iter().flatten().map(|p| text(p, "/status/phase")).collect();
        if phases.contains(&"Failed") {
            break false;
        }
        if phases.iter().all(|phase| *phase == "Running") {
            // it ends at once, if it does
            if running_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(3) {
                break true;
            }
        }
        if start.elapsed() > Duration::from_secs(90) {
            return Err(format!(
                "pods of {} in namespace {namespace} do not start (phases: {}): can the nodes get the image? --image takes another",
                options.image,
                phases.join(", ")
            ));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    api.delete(&path::namespace(&namespace)).await.map_err(told)?;
    Ok(answer)
}

/// Makes a pod; a namespace that is new has no service account yet, and servers refuse pods until it has.
async fn create_pod(api: &Api, path: &str, pod: &Value) -> Result<(), String> {
    let start = Instant::now();
    loop {
        match api.create(path, pod).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(409) => return Ok(()),
            Err(error) if error.code() == Some(403) && start.elapsed() < Duration::from_secs(20) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Deletes what a run made, or all runs (`None`); returns what is left of it after two minutes.
///
/// # Errors
/// The API server cannot be asked.
pub async fn clean(api: &Api, suffix: Option<&str>) -> Result<(usize, Vec<String>), String> {
    let selector = match suffix {
        Some(suffix) => format!("{LABEL}%3D{suffix}"),
        None => LABEL.to_owned(),
    };
    let list = format!("{}?labelSelector={selector}", path::NAMESPACES);
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().into_iter().flatten().map(|n| text(n, "/metadata/name").to_owned()).collect()
    };
    let found = names(&api.get(&list).await.map_err(told)?);
    for name in &found {
        // pods first: they need not wait for the namespace's own order of things
        let pods = format!("{}?gracePeriodSeconds=0", path::pods(name));
        api.delete(&pods).await.map_err(told)?;
        api.delete(&path::namespace(name)).await.map_err(told)?;
    }
    let start = Instant::now();
    loop {
        let left = names(&api.get(&list).await.map_err(told)?);
        if left.is_empty() || start.elapsed() > GONE {
            return Ok((found.len(), left));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The names of all cases, with statements, as `list` prints them.
pub fn list() -> Vec<(Profile, &'static str, Vec<&'static str>, bool)> {
    let case = |c: Case| (Profile::Netpol, c.name, c.statements.to_vec(), c.weight == Weight::Required);
    netpol::cases().into_iter().map(case).collect()
}

/// The line that a case ends with, on a terminal.
pub fn line(outcome: &Outcome) -> String {
    report_text::case(outcome)
}
