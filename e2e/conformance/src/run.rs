//! A run from start to end: what the cluster is like, worlds, cases, and that nothing is left behind.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::{Api, path};
use crate::case::{Case, Weight};
use crate::live::{Live, Shared, condition, create_pod, told};
use crate::probe::{Prober, Way};
use crate::report::{Outcome, Report, Run};
use crate::restart::Engine;
use crate::world::{LABEL, PREFIX, SCTP, World, text};
use crate::{churn, kubelet, netpol, restart, services};

/// So many nodes take part at most.
const NODES: usize = 3;
/// How long namespaces may take to go.
const GONE: Duration = Duration::from_secs(120);

/// A group of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// What NetworkPolicy means.
    Netpol,
    /// Services, NodePorts, load balancers' addresses, host ports.
    Services,
    /// Kubelets' probes under deny-all.
    Probes,
    /// Changes, with others watched.
    Churn,
    /// The engine's pods deleted.
    Restart,
}

impl Profile {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Profile; 5] =
        [Profile::Netpol, Profile::Services, Profile::Probes, Profile::Churn, Profile::Restart];

    /// As the command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Netpol => netpol::NAME,
            Profile::Services => services::NAME,
            Profile::Probes => kubelet::NAME,
            Profile::Churn => churn::NAME,
            Profile::Restart => restart::NAME,
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
    /// What profile `restart` restarts.
    pub engine: Engine,
}

/// What a case is, for the queue.
enum Job {
    Netpol(Case),
    Random(u64),
    BothWays,
    /// All cases of another profile: they share what they set up.
    Whole(Profile),
}

impl Job {
    /// Its profile, and what reports call it if it cannot be tried.
    fn name(&self) -> (Profile, String) {
        match self {
            Job::Netpol(case) => (Profile::Netpol, case.name.to_owned()),
            Job::Random(seed) => (Profile::Netpol, format!("random-{seed}")),
            Job::BothWays => (Profile::Netpol, netpol::BOTH_WAYS.0.to_owned()),
            Job::Whole(profile) => (*profile, "all".to_owned()),
        }
    }

    fn hosts(&self) -> bool {
        match self {
            Job::Netpol(case) => case.needs.hosts,
            Job::Random(_) | Job::BothWays => false,
            Job::Whole(profile) => *profile == Profile::Services,
        }
    }
}

/// Why nothing could be tried at all.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unable {
    why: String,
    /// Something was made in the cluster before.
    pub made: bool,
}

impl Unable {
    fn before(why: impl ToString) -> Unable {
        Unable { why: why.to_string(), made: false }
    }

    fn after(why: impl ToString) -> Unable {
        Unable { why: why.to_string(), made: true }
    }
}

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
    let api =
        Api::connect(options.kubeconfig.clone(), options.context.clone()).await.map_err(Unable::before)?;
    let version = api
        .get("/version")
        .await
        .map_err(|error| Unable::before(format!("the API server cannot be asked: {error}")))?;
    let nodes = nodes(&api, &options.nodes).await.map_err(Unable::before)?;
    let sctp = sctp(&api, options, suffix, &nodes).await.map_err(Unable::after)?;
    let shared = Arc::new(Shared {
        prober: Prober::new(&api, options.way),
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
    let keep: Arc<dyn Fn(Outcome) + Send + Sync> = {
        let done = done.clone();
        Arc::new(move |outcome: Outcome| {
            told_of(&outcome);
            done.lock().expect("not poisoned").push(outcome);
        })
    };
    let options = Arc::new(options.clone());
    let queue = Arc::new(Mutex::new(jobs(&options, &profiles)));
    let count = options.parallel.clamp(1, queue.lock().expect("not poisoned").len().max(1));
    let mut workers = JoinSet::new();
    for index in 0..count {
        let (shared, world, queue) = (shared.clone(), blank(index), queue.clone());
        let (keep, options) = (keep.clone(), options.clone());
        workers.spawn(async move {
            let mut live = Live::up(shared, world).await?;
            if index == 0 {
                hosts(&mut live).await;
            }
            let wanted = |name: &str| wanted(&options, name);
            while let Some(job) = take(&queue, index == 0) {
                match job {
                    Job::Netpol(case) => keep(netpol::run(&mut live, &case).await),
                    Job::Random(seed) => {
                        keep(netpol::run_random(&mut live, &format!("random-{seed}"), seed).await)
                    }
                    Job::BothWays => keep(netpol::run_both_ways(&mut live).await),
                    Job::Whole(Profile::Services) => services::run(&mut live, &wanted, &*keep).await,
                    Job::Whole(Profile::Probes) => kubelet::run(&mut live, &wanted, &*keep).await,
                    Job::Whole(Profile::Churn) => churn::run(&mut live, &wanted, &*keep).await,
                    Job::Whole(Profile::Netpol | Profile::Restart) => {}
                }
            }
            Ok::<_, String>((index, live))
        });
    }
    let mut first = None;
    while let Some(ended) = workers.join_next().await {
        match ended.map_err(Unable::after)? {
            Ok((0, live)) => first = Some(live),
            Ok(_) => {}
            // the others do its part, as far as they can
            Err(why) => keep(Outcome::new("setup", "world", &[], true).unable(why)),
        }
    }
    let left: Vec<Job> = queue.lock().expect("not poisoned").drain(..).collect();
    for job in left {
        let (profile, name) = job.name();
        keep(
            Outcome::new(profile.as_str(), &name, &[], true)
                .unable("the world that it needs did not come about"),
        );
    }
    let families = first.as_ref().map(|live| live.world.families.clone()).unwrap_or_default();
    // alone, for it would disturb the others
    if profiles.contains(&Profile::Restart)
        && names(Profile::Restart).iter().any(|(name, ..)| wanted(&options, name))
    {
        match &mut first {
            Some(live) => restart::run(live, &options.engine, &*keep).await,
            None => {
                keep(Outcome::new(restart::NAME, "all", &[], true).unable("there is no world to try it in"))
            }
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

/// What there is to do, the longest first.
fn jobs(options: &Options, profiles: &[Profile]) -> VecDeque<Job> {
    let mut jobs = VecDeque::new();
    let whole =
        [Profile::Services, Profile::Churn, Profile::Probes].into_iter().filter(|p| profiles.contains(p));
    let any = |profile: &Profile| names(*profile).iter().any(|(name, ..)| wanted(options, name));
    jobs.extend(whole.filter(any).map(Job::Whole));
    if profiles.contains(&Profile::Netpol) {
        jobs.extend(netpol::cases().into_iter().filter(|case| wanted(options, case.name)).map(Job::Netpol));
        jobs.extend(wanted(options, netpol::BOTH_WAYS.0).then_some(Job::BothWays));
        let random = (0..options.random).map(|n| options.seed.wrapping_add(n));
        jobs.extend(random.filter(|seed| wanted(options, &format!("random-{seed}"))).map(Job::Random));
    }
    jobs
}

/// Starts the pods in their nodes' network; where they cannot be, what needs them is skipped.
async fn hosts(live: &mut Live) {
    let plans = live.world.host_pods();
    if let Err(error) = live.start(&plans).await {
        for plan in &plans {
            live.world.forget("Pod", &live.world.namespace("z"), &plan.name);
        }
        eprintln!("weir-conformance: no pods in their nodes' network: {error}");
    }
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
        let linux = matches!(
            node.pointer("/metadata/labels/kubernetes.io~1os").and_then(Value::as_str),
            None | Some("linux")
        );
        condition(node, "Ready")
            && !closed
            && linux
            && node.pointer("/spec/unschedulable") != Some(&json!(true))
    };
    let names: Vec<String> =
        items.iter().filter(usable).map(|n| text(n, "/metadata/name").to_owned()).collect();
    if let Some(missing) = wanted.iter().find(|name| !names.contains(name)) {
        return Err(format!(
            "node {missing} is not there, not ready, tainted or not Linux (usable: {})",
            names.join(", ")
        ));
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
        let phases: Vec<&str> =
            list["items"].as_array().into_iter().flatten().map(|p| text(p, "/status/phase")).collect();
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

/// The names of a profile's cases, with statements and whether the API requires them.
pub fn names(profile: Profile) -> Vec<(String, &'static [&'static str], Weight)> {
    match profile {
        Profile::Netpol => {
            let mut all: Vec<_> =
                netpol::cases().into_iter().map(|c| (c.name.to_owned(), c.statements, c.weight)).collect();
            all.push((netpol::BOTH_WAYS.0.to_owned(), netpol::BOTH_WAYS.1, Weight::Required));
            all.push(("random-SEED".to_owned(), netpol::RANDOM, Weight::Required));
            all
        }
        Profile::Services => services::list(),
        Profile::Probes => kubelet::list(),
        Profile::Churn => churn::list(),
        Profile::Restart => restart::list(),
    }
}
