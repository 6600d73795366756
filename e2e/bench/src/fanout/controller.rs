//! The child: a controller with objects from memory.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::async_trait;
use weir_compiler::object::ObjectKey;
use weir_controller::accept::accept;
use weir_controller::authority::Authorities;
use weir_controller::drive::Driver;
use weir_controller::events::{QUEUE, Reporter};
use weir_controller::hub::Hub;
use weir_controller::identity::{Identify, Refused};
use weir_controller::metrics::Metrics;
use weir_controller::mode::Told;
use weir_controller::serve::Server;
use weir_controller::tls::Presented;
use weir_health::Health;
use weir_proto::{DigestKey, Mode};
use weir_source::Update;

use super::{Fanout, enough_descriptors, population};

/// The name in the certificate.
pub(crate) const NAME: &str = "weir-controller.weir-system.svc";

/// Tokens are the names of nodes.
struct ByName;

#[async_trait]
impl Identify for ByName {
    async fn node(&self, token: &str) -> Result<String, Refused> {
        Ok(token.to_owned())
    }
}

/// Since 1970, in nanoseconds: both processes have one clock.
pub(super) fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// Serves until its standard input ends. Prints its port and its authority, then answers each line of input.
pub(crate) fn serve(fanout: Fanout) -> Result<()> {
    enough_descriptors()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (updates, stamped) = mpsc::channel(1024);
    let (port, synced) = runtime.block_on(start(stamped))?;
    let events = population::all(fanout.pods, fanout.agents).collect();
    runtime.block_on(updates.send((Instant::now(), Update::Batch { events, synced: true })))?;
    while !synced.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("port {port}");
    let mut all = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let event = match line.split_once(' ') {
            _ if line == "all" => {
                all += 1;
                population::monitoring(all)
            }
            _ if line == "cost" => {
                println!("cost {}", cost()?);
                continue;
            }
            Some(("add", node)) => population::of_one(node.parse()?, true),
            Some(("remove", node)) => population::of_one(node.parse()?, false),
            _ => anyhow::bail!("{line:?}: all, cost, add NODE or remove NODE"),
        };
        println!("at {}", now());
        runtime
            .block_on(updates.send((Instant::now(), Update::Batch { events: vec![event], synced: true })))?;
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

async fn start(updates: mpsc::Receiver<(Instant, Update)>) -> Result<(u16, Arc<AtomicBool>)> {
    let now = OffsetDateTime::now_utc();
    let authorities = Authorities::new(now)?;
    let leaf = authorities.issue(&[NAME.to_owned()], now)?;
    let presented = Presented::new(leaf.certificate.as_bytes(), leaf.key.as_bytes())?;
    println!("{}", serde_json::json!({ "ca": authorities.bundle() }));
    let key = DigestKey::new([7; 32]);
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let synced = Arc::new(AtomicBool::new(false));
    let (calls, heard) = mpsc::channel(1024);
    let mode = Told { asked: true, mode: Some(Mode::Enforce), ..Told::default() };
    // Events are due here as in a cluster, and go nowhere
    let (note, mut notes) = mpsc::channel(QUEUE);
    tokio::spawn(async move { while notes.recv().await.is_some() {} });
    let driver = Driver {
        hub: Hub::new(key),
        updates,
        calls: heard,
        mode: tokio::sync::watch::channel(mode).1,
        synced: synced.clone(),
        metrics: metrics.clone(),
        namespace: "weir-system".to_owned(),
        health: Health::new(Duration::from_secs(60)),
        status: tokio::sync::watch::channel(Default::default()).0,
        events: Reporter::new(ObjectKey::new("weir-system", "weir-mode"), note, metrics.clone()),
    };
    let hub = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("hub".to_owned()).spawn(move || hub.block_on(driver.run()))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let server = Server { identify: Arc::new(ByName), calls, synced: synced.clone(), key, metrics };
    tokio::spawn(accept(listener, presented.acceptor()?, server));
    Ok((port, synced))
}

/// Resident memory in KiB, its peak, and processor time in milliseconds.
fn cost() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .context("a field of /proc/self/status")?;
        anyhow::Ok(line.trim().trim_end_matches(" kB").to_owned())
    };
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let milliseconds = |time: nix::sys::time::TimeVal| time.tv_sec() * 1000 + time.tv_usec() / 1000;
    let processor = milliseconds(usage.user_time()) + milliseconds(usage.system_time());
    Ok(format!("{} {} {processor}", field("VmRSS:")?, field("VmHWM:")?))
}
