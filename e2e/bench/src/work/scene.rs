//! Who works: the API server, a controller, agents on nodes of their own, and followers on all other nodes.
//!
//! ```text
//!   this process                                 a namespace                      a namespace for each node
//!   api server ──HTTP── weir-controller ──TLS──┬─ followers (this process)
//!                                              └──────── veth ──────────────── weir-agent, nftables, pods' links
//! ```

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use weir_controller::authority::Authorities;
use weir_lab::netns::Netns;

use super::api::ApiServer;
use super::kernel::Watched;
use super::objects::node;
use super::process::{Process, get, metric};
use crate::fanout;

/// Where the controller listens, in its namespace.
const CONTROLLER: u16 = 9443;
/// Where programs serve metrics: the controller, and each agent in its own namespace.
pub(super) const CONTROLLER_METRICS: &str = "127.0.0.1:9440";
pub(super) const AGENT_METRICS_PORT: u16 = 9441;
const READY: Duration = Duration::from_secs(60);
/// Followers that begin at once.
const AT_ONCE: usize = 8;

/// A node with a real agent.
pub(super) struct Node {
    /// Its number.
    pub(super) number: usize,
    /// Its namespace.
    pub(super) netns: Netns,
    /// Its agent.
    pub(super) agent: Process,
    /// What its kernel says.
    pub(super) kernel: Watched,
    /// The agent's standard output, if it goes to a file.
    pub(super) out: PathBuf,
    /// Where it is reached.
    pub(super) address: Ipv4Addr,
    to: Out,
    arguments: Vec<String>,
}

impl Node {
    /// Whether its standard output goes somewhere.
    pub(super) fn is_read(&self) -> bool {
        self.to == Out::File
    }
}

/// Where an agent's standard output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Out {
    /// To a file.
    File,
    /// Into a pipe that nobody reads.
    Unread,
}

/// See the module.
pub(super) struct Scene {
    /// The API server.
    pub(super) api: ApiServer,
    /// The controller.
    pub(super) controller: Process,
    /// Those with agents.
    pub(super) nodes: Vec<Node>,
    commits: Arc<AtomicUsize>,
    centre: Netns,
    folder: PathBuf,
    runtime: Option<Runtime>,
}

impl Scene {
    /// Starts the controller, with an API server that has its objects already.
    pub(super) fn start(folder: &Path, api: ApiServer) -> Result<Scene> {
        std::fs::create_dir_all(folder)?;
        let now = OffsetDateTime::now_utc();
        let authorities = Authorities::new(now)?;
        let leaf = authorities.issue(&[fanout::NAME.to_owned()], now)?;
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path.display().to_string())
        };
        file("ca.crt", &authorities.bundle())?;
        let (certificate, key) = (file("tls.crt", &leaf.certificate)?, file("tls.key", &leaf.key)?);

        let centre = Netns::new()?;
        centre.ip(&["link set lo up".to_owned()])?;
        let listener = centre.run(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let at = listener.local_addr()?;
        // its threads are in that namespace, and so are followers' connections
        let runtime = centre.run(|| {
            let mut threads = tokio::runtime::Builder::new_multi_thread();
            Ok(threads.worker_threads(2).enable_all().build()?)
        })?;
        // it is not to wait for followers
        let (server, alone) =
            (api.clone(), tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        std::thread::Builder::new().name("api".to_owned()).spawn(move || {
            if let Err(error) = alone.block_on(server.serve(listener)) {
                eprintln!("the API server: {error:#}");
            }
        })?;
        let kubeconfig = file(
            "kubeconfig",
            &format!(
                "{{apiVersion: v1, kind: Config, current-context: bench, contexts: [{{name: bench, context: {{cluster: bench, \
             user: bench}}}}], users: [{{name: bench, user: {{}}}}], clusters: [{{name: bench, cluster: {{server: \
             'http://{at}'}}}}]}}\n"
            ),
        )?;
        let arguments = [
            "--kubeconfig",
            &kubeconfig,
            "--listen",
            &format!("0.0.0.0:{CONTROLLER}"),
            "--metrics-listen",
            CONTROLLER_METRICS,
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ]
        .map(str::to_owned);
        let log = folder.join("controller.log");
        let controller = Process::start("weir-controller", &arguments, &centre, Stdio::null(), &log)?;
        let mut scene = Scene {
            api,
            controller,
            nodes: Vec::new(),
            commits: Arc::default(),
            centre,
            folder: folder.to_owned(),
            runtime: Some(runtime),
        };
        scene.ready("the controller", |scene| get(&scene.centre, CONTROLLER_METRICS, "/readyz"))?;
        Ok(scene)
    }

    /// A node with a namespace and nothing in it but the way to the controller. `prepare` adds what is there before the
    /// agent starts.
    pub(super) fn node(
        &mut self,
        number: usize,
        more: &[&str],
        to: Out,
        prepare: impl FnOnce(&Netns) -> Result<()>,
    ) -> Result<()> {
        let netns = Netns::new()?;
        netns.sysctl(&[("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/ip_forward", "1")])?;
        let [here, there] =
            [1, 2].map(|end| Ipv4Addr::new(198, 18, u8::try_from(number).unwrap_or(255), end));
        self.centre.ip(&[
            format!("link add node{number} type veth peer name eth0 netns {}", netns.path()),
            format!("addr add {here}/24 dev node{number}"),
            format!("link set node{number} up"),
        ])?;
        netns.ip(&[
            "link set lo up".to_owned(),
            format!("addr add {there}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {here}"),
        ])?;
        prepare(&netns)?;
        let name = node(number);
        let token = self.folder.join(format!("token-{number}"));
        std::fs::write(&token, &name)?;
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut arguments = vec!["--node".to_owned(), name.clone()];
        for (option, value) in [
            ("--controller", format!("{here}:{CONTROLLER}")),
            ("--controller-ca", path("ca.crt")),
            ("--token-file", token.display().to_string()),
            ("--state-dir", path(&format!("state-{number}"))),
            ("--cni-results", path("no-results")),
            ("--metrics-listen", format!("0.0.0.0:{AGENT_METRICS_PORT}")),
            ("--mid-stream-grace", "0".to_owned()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend(more.iter().map(|&more| more.to_owned()));
        let kernel = Watched::start(&netns)?;
        let out = self.folder.join(format!("{name}.out"));
        let log = self.folder.join(format!("{name}.log"));
        let stdio = match to {
            Out::File => std::fs::File::create(&out)?.into(),
            Out::Unread => Stdio::piped(),
        };
        let agent = Process::start("weir-agent", &arguments, &netns, stdio, &log)?;
        self.nodes.push(Node { number, netns, agent, kernel, out, to, address: there, arguments });
        self.ready(&name, |scene| {
            let node = scene.nodes.last().context("a node")?;
            get(&node.netns, &format!("127.0.0.1:{AGENT_METRICS_PORT}"), "/readyz")
        })
    }

    /// An agent is killed and starts anew.
    pub(super) fn restart(&mut self, number: usize) -> Result<()> {
        let node = &mut self.nodes[number];
        node.agent.kill();
        let out = std::fs::File::options().append(true).open(&node.out)?.into();
        let log = self.folder.join(format!("node-{number}.log"));
        node.agent = Process::start("weir-agent", &node.arguments, &node.netns, out, &log)?;
        Ok(())
    }

    /// Agents that take in what they are told and acknowledge it, on these nodes.
    pub(super) fn followers(&self, nodes: impl IntoIterator<Item = usize>) -> Result<()> {
        let runtime = self.runtime.as_ref().context("a runtime")?;
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let (told, mut heard) = mpsc::unbounded_channel();
        let mut wanted = 0;
        for number in nodes {
            wanted += 1;
            let (turns, told, ca) = (turns.clone(), told.clone(), self.folder.join("ca.crt"));
            runtime.spawn(async move {
                let bytes = AtomicUsize::new(0);
                if let Err(error) = fanout::agent(CONTROLLER, number, &ca, &turns, &told, &bytes).await {
                    // as it is at the end, too
                    eprintln!("follower {number}: {error:#}");
                }
            });
        }
        drop(told);
        let commits = self.commits.clone();
        runtime.spawn(async move {
            while heard.recv().await.is_some() {
                commits.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + READY;
        while self.commits.load(Ordering::Relaxed) < wanted {
            ensure!(
                Instant::now() < deadline,
                "not all followers have their slices: {}",
                self.controller.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Commits that followers have acknowledged so far.
    pub(super) fn followed(&self) -> usize {
        self.commits.load(Ordering::Relaxed)
    }

    /// A metric of the controller, summed up over its labels.
    pub(super) fn of_controller(&self, name: &str) -> Result<f64> {
        let text = get(&self.centre, CONTROLLER_METRICS, "/metrics")?.1;
        Ok(metric(&text, &format!("weir_controller_{name}")))
    }

    /// A metric of an agent.
    pub(super) fn of_agent(&self, node: usize, name: &str) -> Result<f64> {
        let node = &self.nodes[node];
        let text = get(&node.netns, &format!("127.0.0.1:{AGENT_METRICS_PORT}"), "/metrics")?.1;
        Ok(metric(&text, &format!("weir_agent_{name}")))
    }

    /// The namespace of the controller, which reaches all metrics.
    pub(super) fn centre(&self) -> &Netns {
        &self.centre
    }

    /// Waits until every kernel holds all that there is, and nothing more comes.
    pub(super) fn settle(&self) -> Result<()> {
        let (deadline, mut before, mut since) = (Instant::now() + READY, usize::MAX, Instant::now());
        loop {
            let heard = self.nodes.iter().map(|node| node.kernel.len()).sum::<usize>() + self.followed();
            if heard != before {
                (before, since) = (heard, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(1) && self.of_controller("node_versions_behind")? == 0.0
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "kernels do not come to rest: {}", self.controller.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ready(&mut self, who: &str, ask: impl Fn(&Scene) -> Result<(u16, String)>) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let answer = ask(self);
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let said = self.nodes.last().map_or_else(|| self.controller.said(), |node| node.agent.said());
                bail!("{who} is not ready: {answer:?}\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // followers would say that the controller is gone
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
