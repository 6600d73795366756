//! Where the objects of a question come from: manifests, an API server, or a snapshot, which is a manifest.

use std::io::{IsTerminal, Read, Write};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use weir_source::cluster::Options;
use weir_source::inventory::live::{self, Wanted};
use weir_source::inventory::{self, Inventory};

use crate::cluster::Cluster;
use crate::excerpt::Sources;

/// The flags that all commands share, named as kubectl's are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where the objects come from")]
pub(crate) struct Input {
    /// Manifests or snapshots instead of a cluster: Namespaces, Pods or workloads, NetworkPolicies (may be
    /// repeated; folders with all below them; - is standard input)
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) files: Vec<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with = "files")]
    pub(crate) context: Option<String>,
    /// The kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The namespace of what is named without one [default: that of the context, or default]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// All namespaces, where an answer would be about one
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

/// A cluster that is there until the program ends: to take a large one apart would only make the answer late.
pub(crate) type Answerer = ManuallyDrop<Cluster>;

/// What was read, before anything is made of it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) inventory: Inventory,
    /// Of what is named without one.
    pub(crate) namespace: String,
    /// It comes from an API server.
    pub(crate) live: bool,
    /// What the user may not see, in sentences.
    pub(crate) unseen: Vec<String>,
    pub(crate) sources: Sources,
}

impl Input {
    /// Reads what a question is about.
    ///
    /// # Errors
    /// A path is not there, or the API server does not answer.
    pub(crate) fn load(&self, wanted: Wanted) -> Result<Answerer> {
        Ok(Answerer::new(Cluster::new(self.find(wanted, false)?)))
    }

    /// Reads, for a question that has to be understood before it is known which policies matter.
    ///
    /// # Errors
    /// See [`Input::load`].
    pub(crate) fn load_without_policies(&self, wanted: Wanted) -> Result<Answerer> {
        Ok(Answerer::new(Cluster::without_policies(self.find(wanted, false)?)))
    }

    /// Reads, and `keep`s what a snapshot needs.
    ///
    /// # Errors
    /// See [`Input::load`].
    pub(crate) fn find(&self, wanted: Wanted, keep: bool) -> Result<Found> {
        if self.files.is_empty() { self.live(wanted, keep) } else { self.offline(keep) }
    }

    fn offline(&self, keep: bool) -> Result<Found> {
        let mut stdin = None;
        for path in &self.files {
            if path.as_os_str() == "-" {
                if stdin.is_none() {
                    let mut text = Vec::new();
                    std::io::stdin().lock().read_to_end(&mut text).context("standard input")?;
                    stdin = Some(text);
                }
            } else if let Err(error) = std::fs::metadata(path) {
                bail!("{}: {error}", path.display());
            }
        }
        Ok(Found {
            inventory: inventory::read(&self.files, stdin.as_deref(), keep),
            namespace: self.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            live: false,
            unseen: Vec::new(),
            sources: Sources::new(stdin.as_deref()),
        })
    }

    fn live(&self, wanted: Wanted, keep: bool) -> Result<Found> {
        let options = Options { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        let progress = Progress::new("objects read");
        let tell = |n| progress.tell(n);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let live = live::read(options, self.namespace.as_deref(), wanted, keep, &tell);
        let live = runtime.block_on(live);
        progress.end();
        let live = live.context("no answer from a cluster (-f FILE answers from manifests)")?;
        Ok(Found {
            inventory: live.inventory,
            namespace: live.namespace,
            live: true,
            unseen: live.unseen,
            sources: Sources::default(),
        })
    }
}

/// Tells on a terminal how far it is, once it has taken a second.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    begin: Instant,
    last: Mutex<Option<Instant>>,
    wanted: bool,
}

impl Progress {
    /// Of things that are called so.
    pub(crate) fn new(what: &'static str) -> Progress {
        let wanted = std::io::stderr().is_terminal();
        Progress { what, begin: Instant::now(), last: Mutex::new(None), wanted }
    }

    /// There are so many by now.
    pub(crate) fn tell(&self, n: usize) {
        if !self.wanted || self.begin.elapsed() < Duration::from_secs(1) {
            return;
        }
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= Duration::from_millis(200)) {
            *last = Some(Instant::now());
            eprint!("\rweir: {n} {} ...", self.what);
            let _ = std::io::stderr().flush();
        }
    }

    /// Makes room for the answer.
    pub(crate) fn end(&self) {
        if self.last.lock().is_ok_and(|last| last.is_some()) {
            eprint!("\r{}\r", " ".repeat(40));
        }
    }
}
