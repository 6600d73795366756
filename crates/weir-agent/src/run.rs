//! The agent's loop: what came in since the last turn becomes one transaction.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use weir_compiler::Budgets;
use weir_compiler::flow::PodToOwnNode;
use weir_dataplane::model::Expr;
use weir_dataplane::{Settings, TABLES, drops_mid_stream};
use weir_nft::conntrack::Conntrack;
use weir_nft::{Listener, Nft};

use crate::agent::Agent;
use crate::backend::SetBackend;
use crate::denials::{self, Denials};
use crate::inflow::Inflow;
use crate::kernel::Kernel;
use crate::links::Watcher;
use crate::metrics::Metrics;
use crate::needs;
use crate::ports::Finder;
use crate::revoke::{self, Revoker};
use crate::state::{self, Store};

pub use crate::inflow::Source;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// `spec.nodeName` of the pods that are here.
    pub node: String,
    /// Where the objects come from.
    pub source: Source,
    /// What policies may have; where controllers compile, that is theirs to decide.
    pub budgets: Budgets,
    /// What of the plan is to be chosen. Without a mark for revoked connections, they stay (U9).
    pub settings: Settings,
    /// Where the container runtime keeps what CNI plugins told it; it need not be there.
    pub cni_results: PathBuf,
    /// Where conntrack was not in use before: how long TCP in mid-stream is judged by policies, and
    /// not dropped (U27).
    pub mid_stream_grace: Duration,
    /// Where peer sets are.
    pub sets: SetBackend,
    /// With a controller: where the last slice is kept.
    pub state: PathBuf,
    /// With a controller: for how long pods are isolated after a reboot, if it does not answer. `None`: never.
    pub isolate_after_reboot: Option<Duration>,
    /// Whether and how denied connections are told on standard output.
    pub denials: Option<denials::Options>,
    /// Where to serve metrics and health.
    pub metrics: Option<SocketAddr>,
}

/// How often the kernel's tables are compared with the plan although nothing says that it changed.
const FULL_COMPARISON: Duration = Duration::from_secs(60);
/// If the kernel has rules of an earlier run, which may be newer than the slice on disk: for so long a controller
/// may answer before the latter is put in force.
const CONTROLLER_FIRST: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT; rules stay in force.
///
/// # Errors
/// The source or the kernel cannot be used at all. What fails later is reported and tried again.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut kernel = Kernel::with(options.sets)?;
    let mut listener = listen()?;
    let mut links = Watcher::new().await?;
    let metrics = Metrics::default();
    let from_controller = matches!(options.source, Source::Controller(_));
    let mut inflow = Inflow::start(options.source, &metrics)?;
    let ports = Finder::new(options.cni_results).context("cannot ask the kernel for the ports of pods")?;
    let Before { installed, judge_mid_stream, logs, unused } = before()?;
    let grace = if judge_mid_stream { options.mid_stream_grace } else { Duration::ZERO };
    let mut grace_ends = (!grace.is_zero()).then(|| Instant::now() + grace);
    let revoke = options.settings.revoked_mark.map(|mark| {
        let pod_to_own_node = options.settings.own_node == PodToOwnNode::Allow;
        Revoker::open(&options.node, revoke::Options { mark, pod_to_own_node })
    });
    let mut denials = None;
    if let Some(wanted) = options.denials {
        // a start without change is to commit nothing
        match if logs { Ok(()) } else { kernel.can_log(wanted.kernel) } {
            Ok(()) => {
                denials = Some(Denials::start(&options.node, wanted, metrics.clone(), std::io::stdout())?);
            }
            // no reason not to enforce policies
            Err(error) => tracing::warn!(
                "denied connections are not logged: the kernel does not take rules that log to NFLOG (modules nft_log,                  nfnetlink_log; --log-denied=off says that it is not wanted): {error}"
            ),
        }
    }
    let settings = Settings {
        drop_mid_stream: grace_ends.is_none(),
        log_denials: denials.as_ref().and(options.denials).map(|denials| denials.kernel),
        ..options.settings
    };
    let mut agent =
        Agent::new(options.node.clone(), settings, kernel, ports, revoke.transpose()?, metrics.clone());
    agent.unused = unused;
    agent.budgets = options.budgets;
    if let Some(address) = options.metrics {
        let registry = metrics.registry(from_controller);
        match weir_health::serve_in_thread(address, agent.health.clone(), registry) {
            Ok(at) => tracing::info!("metrics and health at http://{at}/metrics, /healthz and /readyz"),
            // no reason not to enforce policies
            Err(error) => {
                tracing::error!("cannot serve metrics and health at {address}: {error} (--metrics-listen)")
            }
        }
    }
    let mut disk_first = None;
    if from_controller {
        let store = Store::new(options.state, &options.node, metrics).context("cannot read the boot id")?;
        let waits = agent.restore(store, installed, options.isolate_after_reboot);
        disk_first = waits.then(|| Instant::now() + CONTROLLER_FIRST);
        agent.turn(&links);
    }
    let mut comparison = tokio::time::interval(FULL_COMPARISON);
    comparison.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        let (retry, look) = (agent.kernel.retry_after(), agent.ports.retry_after());
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            news = inflow.next() => agent.news(news?),
            changed = links.changed() => {
                changed.context("cannot follow links and routes any more")?;
                agent.attach = true;
                agent.report_bypass(links.table());
            }
            ready = listener.readable_mut() => {
                let mut ready = ready.context("cannot wait for changes of the ruleset")?;
                let changes = ready.get_inner_mut().drain().context("cannot read changes of the ruleset")?;
                ready.clear_ready();
                if !changes.foreign(agent.kernel.port()) {
                    continue;
                }
                agent.report_others(&changes);
                agent.kernel.doubt();
            }
            _ = comparison.tick() => {
                agent.kernel.doubt();
                agent.reopen();
                // nothing tells that a sysctl of the host has changed
                agent.attach = true;
                agent.look_for_bypass(links.table());
            }
            next = told(&mut denials) => {
                if let Some(denials) = &mut denials {
                    denials.tell(next, agent.planner.slice());
                }
                continue;
            }
            step = next(&mut agent.revoker) => agent.revoke(step, &links),
            () = at(grace_ends) => {
                grace_ends = None;
                agent.planner.drop_mid_stream(true);
            }
            () = at(disk_first) => {
                disk_first = None;
                if !agent.synced {
                    tracing::warn!("no controller has answered: what the last slice on disk says is in force now");
                    agent.synced = true;
                }
            }
            () = at(agent.isolation.until()) => agent.end_isolation("no controller has answered in time"),
            step = written(&mut agent.store) => agent.stored(step),
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            () = tokio::time::sleep(look.unwrap_or_default()), if look.is_some() => agent.attach = true,
        }
        if agent.begins() {
            // as at a first start: nobody knows what has used conntrack meanwhile
            agent.unused = before()?.unused;
            agent.planner.drop_mid_stream(options.mid_stream_grace.is_zero());
            grace_ends =
                (!options.mid_stream_grace.is_zero()).then(|| Instant::now() + options.mid_stream_grace);
        }
        agent.turn(&links);
        if let (Inflow::Controller(client), Some(ack)) = (&inflow, agent.ack.take()) {
            client.acknowledge(ack);
        }
    }
    if let Some(store) = agent.store.take() {
        store.finish(agent.planner.slice(), agent.mode).await;
    }
    if agent.mode.installs() {
        tracing::info!("stopping; the rules stay in force (weir-agent cleanup removes them)");
    } else {
        tracing::info!("stopping; there are no rules: the mode is {}", agent.mode);
    }
    Ok(())
}

/// What was there before this start.
struct Before {
    /// Rules of an earlier run.
    installed: bool,
    /// TCP in mid-stream is to be judged for a while (U27): nothing has used conntrack before this first start, and
    /// connections that exist have no entry; or an earlier run has begun to wait, and nobody knows since when.
    judge_mid_stream: bool,
    /// Those rules tell NFLOG of what they deny.
    logs: bool,
    /// Conntrack, if nothing has used it.
    unused: Option<Conntrack>,
}

fn before() -> Result<Before> {
    let mut nft = Nft::open()?;
    let (mut earlier, mut logs) = (None, false);
    for (family, name) in TABLES {
        if let Some(chains) = nft.chains(family, name)? {
            earlier = earlier.or(Some(false)).map(|waits| waits || drops_mid_stream(&chains) == Some(false));
            let mut exprs = chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs);
            logs |= exprs.any(|expr| matches!(expr, Expr::Log { .. }));
        }
    }
    if let Some(judge_mid_stream) = earlier {
        return Ok(Before { installed: true, judge_mid_stream, logs, unused: None });
    }
    // counted first: to try rules on connections makes the kernel begin to track them
    let counted = Conntrack::open().map(|mut conntrack| conntrack.count().map(|count| (conntrack, count)));
    needs::check(&mut nft)?;
    // without ctnetlink nobody can say
    let Ok(counted) = counted else {
        return Ok(Before { installed: false, judge_mid_stream: false, logs, unused: None });
    };
    let (conntrack, count) = counted?;
    let unused = count == 0;
    Ok(Before { installed: false, judge_mid_stream: unused, logs, unused: unused.then_some(conntrack) })
}

/// Waits until a time, if there is one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn told(denials: &mut Option<Denials>) -> denials::Next {
    match denials {
        Some(denials) => denials.next().await,
        None => std::future::pending().await,
    }
}

async fn written(store: &mut Option<Store>) -> state::Step {
    match store {
        Some(store) => store.next().await,
        None => std::future::pending().await,
    }
}

async fn next(revoker: &mut Option<Revoker>) -> revoke::Step {
    match revoker {
        Some(revoker) => revoker.next().await,
        None => std::future::pending().await,
    }
}

#[allow(
    deprecated,
    reason = "the successor is unsafe for types that may close or replace their descriptor; Listener owns one for life"
)]
fn listen() -> Result<AsyncFd<Listener>> {
    AsyncFd::new(Listener::open(&TABLES)?).context("cannot wait for changes of the ruleset")
}
