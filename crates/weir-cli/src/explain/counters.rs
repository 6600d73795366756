//! Which clause let how many connections pass, from what agents have logged.
//!
//! ```text
//!   logs of the pods' nodes ──> lines on these pods ──> sums by clause
//!                                                         v
//!             all clauses of the policies that select them ──> passed so many, last then; or never, and why
//! ```
//!
//! Agents log allowed connections where the pods' namespace asks for it. They name the first clause that matches, in the
//! order of names and places, so a clause can be without connections because one before it has them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use weir_compiler::object::ObjectKey;
use weir_compiler::policy::{PeerClause, PortClause, RuleClause};
use weir_compiler::slice::Direction;
use weir_compiler::verdict::ClauseRef;
use weir_source::annotations::LOG_ALLOWED;
use weir_source::cluster::Options;
use weir_source::logs::{self, Begin};

use super::Output;
use super::report::{Report, Subject, words};
use super::rules::Peer;
use crate::cluster::Cluster;
use crate::input::Input;
use crate::logs::{Line, duration, understood};
use crate::term::{Paint, escape, note};

/// So many clauses of one pod and direction are compared with each other.
const COMPARED: usize = 400;
/// So many of those that never matched are shown in a text.
const NEVER: usize = 40;

#[derive(Debug, Args)]
pub(crate) struct Counters {
    /// Which clause let how many connections pass, and which none: from the logs of Weir's agents, where the pods'
    /// namespace has the annotation weir.dev/log-allowed
    #[arg(long)]
    counters: bool,
    /// Counters: no older than this: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "counters")]
    since: Option<Duration>,
    /// Counters: the namespace of Weir's agents
    #[arg(long, value_name = "NAME", default_value = "weir-system")]
    weir_namespace: String,
}

/// What was counted of pods that no policy tells apart.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counted {
    /// From when on there is a log, by node; of a node without one, nothing is known.
    pub(crate) log_since: BTreeMap<String, Option<String>>,
    /// No older than so many seconds was asked for.
    pub(crate) within_seconds: Option<u64>,
    /// Which new connections the namespace asks for at present: none (0), all (1), one of so many; None: not known.
    pub(crate) log_allowed: Option<u32>,
    pub(crate) ingress: Side,
    pub(crate) egress: Side,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Side {
    /// In the order in which they are asked.
    pub(crate) clauses: Vec<ClauseCount>,
    /// While no policy isolated the pods in this direction.
    pub(crate) not_isolated: Count,
    /// By clauses that are not there any more, or of which there were too many to tell them apart.
    pub(crate) other: Count,
    /// Packets that were denied.
    pub(crate) denied: Count,
    /// Packets that passed, and that audited policies would deny (U29).
    pub(crate) would_deny: Count,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClauseCount {
    pub(crate) policy: String,
    /// `spec.ingress[0].from[1]`
    pub(crate) path: String,
    /// `spec.ingress[0].ports[0]`
    pub(crate) port_path: Option<String>,
    /// In words.
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) count: Count,
    /// The clause that takes all of its connections, for it comes before this one.
    pub(crate) covered_by: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Count {
    pub(crate) connections: u64,
    /// Some of them are what sampled ones stand for.
    pub(crate) estimated: bool,
    pub(crate) last_seen: Option<String>,
}

impl Count {
    fn add(&mut self, (connections, estimated): (u64, bool), time: &str) {
        self.connections = self.connections.saturating_add(connections);
        self.estimated |= estimated;
        if self.last_seen.as_deref().is_none_or(|last| last < time) {
            self.last_seen = Some(time.to_owned());
        }
    }
}

impl Counters {
    pub(crate) fn wanted(&self) -> bool {
        self.counters
    }

    /// # Errors
    /// They are asked of what has none.
    pub(crate) fn check(&self, input: &Input, output: Option<Output>) -> Result<()> {
        if self.counters && !input.files.is_empty() {
            bail!(
                "--counters reads the logs of a cluster's agents: there are none in manifests; leave out -f"
            );
        }
        if self.counters && !matches!(output, None | Some(Output::Wide | Output::Json | Output::Yaml)) {
            bail!("--counters are shown as text, or with -o json or -o yaml");
        }
        Ok(())
    }

    /// Reads the logs and counts, if that was asked for.
    ///
    /// # Errors
    /// There is no log to be read.
    pub(crate) fn add_to(&self, report: &mut Report, cluster: &Cluster, input: &Input) -> Result<()> {
        if !self.counters {
            return Ok(());
        }
        let of =
            |subject: &Subject| subject.pods.iter().filter_map(|pod| pod.node.clone()).collect::<Vec<_>>();
        let nodes: BTreeSet<String> =
            report.subjects.iter().filter(|subject| !subject.host_network).flat_map(of).collect();
        let (lines, begins) = match nodes.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => self.read(nodes, input)?,
        };
        for subject in report.subjects.iter_mut().filter(|subject| !subject.host_network) {
            let mut counted = count(cluster, subject, &lines, &begins);
            counted.within_seconds = self.since.map(|since| since.as_secs());
            subject.counters = Some(counted);
        }
        Ok(())
    }

    fn read(&self, nodes: BTreeSet<String>, input: &Input) -> Result<(Vec<Line>, Vec<Begin>)> {
        let options = || Options { kubeconfig: input.kubeconfig.clone(), context: input.context.clone() };
        let wanted = logs::Wanted {
            namespace: self.weir_namespace.clone(),
            follow: false,
            since: self.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
            tail: None,
            nodes: Some(nodes),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut lines = Vec::new();
        let reading = async {
            let begins = logs::begins(options(), &wanted).await?;
            let each = |text: String| lines.extend(understood(&text));
            logs::read(options(), &wanted, each, |problem| note("warning", &problem)).await?;
            Ok::<_, weir_source::inventory::live::Error>(begins)
        };
        let begins = runtime.block_on(reading).with_context(|| {
            let at = &self.weir_namespace;
            format!("no counters: no logs of Weir's agents (--weir-namespace says where they are; it is {at} here)")
        })?;
        Ok((lines, begins))
    }
}

/// What lines say of the pods of a subject.
fn count(cluster: &Cluster, subject: &Subject, lines: &[Line], begins: &[Begin]) -> Counted {
    let names: BTreeSet<&str> = subject.pods.iter().map(|pod| pod.name.as_str()).collect();
    let namespace =
        names.first().and_then(|name| name.split_once('/')).map_or("", |(namespace, _)| namespace);
    let begin =
        |node: &String| begins.iter().find(|begin| begin.node == *node).map(|begin| begin.time.clone());
    let nodes = subject.pods.iter().filter_map(|pod| pod.node.as_ref());
    let side = |direction: Direction| {
        let key = names.iter().find_map(|name| name.split_once('/'));
        let key = key.map(|(namespace, name)| ObjectKey::new(namespace, name));
        let mut side = Side {
            clauses: key.map(|key| clauses(cluster, &key, direction)).unwrap_or_default(),
            ..Side::default()
        };
        let own = |line: &&Line| {
            let end = if direction == Direction::Egress { &line.from } else { &line.to };
            line.direction == direction.as_str() && end.pod.as_deref().is_some_and(|pod| names.contains(pod))
        };
        for line in lines.iter().filter(own) {
            add(&mut side, line);
        }
        side
    };
    Counted {
        log_since: nodes.map(|node| (node.clone(), begin(node))).collect(),
        within_seconds: None,
        log_allowed: cluster
            .namespace(namespace)
            .map(|_| cluster.log_allowed.get(namespace).copied().unwrap_or_default()),
        ingress: side(Direction::Ingress),
        egress: side(Direction::Egress),
    }
}

fn add(side: &mut Side, line: &Line) {
    let time = line.time.as_str();
    let packets = (line.suppressed.saturating_add(1), false);
    match line.verdict.as_str() {
        "denied" => return side.denied.add(packets, time),
        "would-deny" => return side.would_deny.add(packets, time),
        _ => {}
    }
    let estimate = line.allowed.estimate();
    let count = match &line.allowed.clause {
        None if line.allowed.isolated => &mut side.other,
        None => &mut side.not_isolated,
        Some(told) => {
            let list = if told.direction == "egress" { "to" } else { "from" };
            let rule = format!("spec.{}[{}]", told.direction, told.rule);
            let path = told.peer.map_or(rule.clone(), |peer| format!("{rule}.{list}[{peer}]"));
            let port_path = told.port.map(|port| format!("{rule}.ports[{port}]"));
            let is_it =
                |c: &&mut ClauseCount| c.policy == told.policy && c.path == path && c.port_path == port_path;
            side.clauses.iter_mut().find(is_it).map_or(&mut side.other, |clause| &mut clause.count)
        }
    };
    count.add(estimate, time);
}

/// All clauses that can let connections of a pod pass, in the order in which they are asked.
fn clauses(cluster: &Cluster, pod: &ObjectKey, direction: Direction) -> Vec<ClauseCount> {
    let Some(state) = cluster.slice.pods.get(pod) else { return Vec::new() };
    let mut all: Vec<(ClauseRef, Peer, Option<&PortClause>)> = Vec::new();
    for policy in cluster.slice.isolating(&cluster.slice.profiles[&state.profile], direction) {
        for (rule, clause) in
            cluster.slice.policies[policy].rules(direction).into_iter().flatten().enumerate()
        {
            for (port, written) in ports(clause) {
                for (peer, who) in peers(clause) {
                    all.push((
                        ClauseRef { policy: policy.clone(), direction, rule, peer, port },
                        who,
                        written,
                    ));
                }
            }
        }
    }
    let told = |i: usize| {
        let (clause, peer, port) = &all[i];
        let before = all[..i.min(COMPARED)].iter().find(|(_, other, at)| {
            (*other == Peer::Any || other == peer)
                && at.is_none_or(|at| port.is_some_and(|port| covers(at, port)))
        });
        ClauseCount {
            policy: clause.policy.to_string(),
            path: crate::clauses::path(clause),
            port_path: crate::clauses::port_path(clause),
            text: format!("{}, {}", words(peer), port.map_or("all ports".to_owned(), port_words)),
            count: Count::default(),
            covered_by: before.map(|(clause, ..)| clause.to_string()),
        }
    };
    (0..all.len()).map(told).collect()
}

/// The ports of a rule with their places; of a rule without, all at once.
fn ports(rule: &RuleClause) -> Vec<(Option<usize>, Option<&PortClause>)> {
    match &rule.ports {
        None => vec![(None, None)],
        Some(ports) => {
            let known = ports.iter().enumerate().filter(|(_, port)| !matches!(port, PortClause::Nothing));
            known.map(|(i, port)| (Some(i), Some(port))).collect()
        }
    }
}

/// The peers of a rule with their places; of a rule without, anyone.
fn peers(rule: &RuleClause) -> Vec<(Option<usize>, Peer)> {
    let Some(peers) = &rule.peers else { return vec![(None, Peer::Any)] };
    let known = peers.iter().enumerate().filter_map(|(i, peer)| match peer {
        PeerClause::Pods { namespaces, pods } => {
            Some((Some(i), Peer::Pods { namespaces: namespaces.clone(), pods: pods.clone() }))
        }
        PeerClause::Cidrs(set) => Some((Some(i), Peer::Addresses(set.clone()))),
        PeerClause::Nothing => None,
    });
    known.collect()
}

/// Whether what has the second port has the first.
fn covers(port: &PortClause, other: &PortClause) -> bool {
    match (port, other) {
        (PortClause::Range(p, first, last), PortClause::Range(q, from, to)) => {
            p == q && first <= from && to <= last
        }
        (port, other) => port == other,
    }
}

fn port_words(port: &PortClause) -> String {
    match port {
        PortClause::Range(protocol, 0, u16::MAX) => format!("all ports of {protocol}"),
        PortClause::Range(protocol, first, last) if first == last => format!("{first}/{protocol}"),
        PortClause::Range(protocol, first, last) => format!("{first}-{last}/{protocol}"),
        PortClause::Named(name, protocol) => format!("{name}/{protocol}"),
        PortClause::Nothing => "no port".to_owned(),
    }
}

/// The counters of all subjects, for people.
pub(crate) fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    for (i, subject) in report.subjects.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let names: Vec<String> = subject.pods.iter().map(|pod| escape(&pod.name)).collect();
        let _ = writeln!(out, "{} {}", if names.len() == 1 { "pod" } else { "pods" }, names.join(", "));
        match &subject.counters {
            Some(counted) => one(&mut out, subject, counted, paint),
            None => out.push_str("  in its node's network: policies select nobody there (N70)\n"),
        }
    }
    out
}

fn one(out: &mut String, subject: &Subject, counted: &Counted, paint: Paint) {
    let namespace = subject.pods.first().and_then(|pod| pod.name.split_once('/')).map_or("", |(n, _)| n);
    let namespace = escape(namespace);
    for (node, since) in &counted.log_since {
        let node = escape(node);
        let _ = match since {
            Some(since) => writeln!(out, "  the log of {node} begins at {}", seconds(since)),
            None => {
                writeln!(out, "  {}", paint.verdict(false, &format!("there is no log of an agent on {node}")))
            }
        };
    }
    if let Some(within) = counted.within_seconds {
        let _ = writeln!(out, "  of it, the last {within} seconds");
    }
    let ask = format!("kubectl annotate namespace {namespace} {LOG_ALLOWED}=true");
    let _ = match counted.log_allowed {
        None => writeln!(out, "  whether {namespace} asks for allowed connections to be logged is not seen"),
        Some(0) => writeln!(
            out,
            "  {}: nothing is counted of what is allowed\n    to begin: {}  (or =1/100: one of a hundred)",
            paint.verdict(
                false,
                &format!("namespace {namespace} does not ask for allowed connections to be logged")
            ),
            ask
        ),
        Some(1) => writeln!(out, "  namespace {namespace} asks for each allowed connection"),
        Some(n) => {
            writeln!(out, "  namespace {namespace} asks for one of {n} allowed connections; ~ is an estimate")
        }
    };
    for (side, name) in [(&counted.ingress, "ingress"), (&counted.egress, "egress")] {
        out.push('\n');
        let _ = writeln!(out, "{name}");
        let mut never = 0;
        for clause in &side.clauses {
            if clause.count.connections == 0 {
                never += 1;
                if never > NEVER {
                    continue;
                }
            }
            let port = clause.port_path.as_deref().and_then(|path| path.rsplit_once('.'));
            let port = port.map_or(String::new(), |(_, port)| format!(" {port}"));
            let place = format!("{}  {}{port}", escape(&clause.policy), clause.path);
            row(out, &clause.count, &format!("{place}  {}", paint.dim(&escape(&clause.text))));
            if let (0, Some(before)) = (clause.count.connections, &clause.covered_by) {
                let why = format!("the first match counts, and {} comes before it", escape(before));
                let _ = writeln!(out, "{:35}{}", "", paint.dim(&why));
            }
        }
        if never > NEVER {
            let _ = writeln!(
                out,
                "  {:>9}  {:20}  {} more clauses (-o json names them)",
                "never",
                "",
                never - NEVER
            );
        }
        for (count, what) in [
            (&side.not_isolated, "no policy isolated it"),
            (&side.other, "by clauses that are gone, or too many to tell apart"),
            (&side.denied, "denied (packets)"),
            (&side.would_deny, "passed, and audited policies would deny it (packets)"),
        ] {
            let nothing = side.clauses.is_empty() && *count == side.not_isolated;
            if count.connections > 0 || (nothing && what.starts_with("no policy")) {
                row(out, count, what);
            }
        }
    }
}

fn row(out: &mut String, count: &Count, what: &str) {
    let number = match count {
        Count { connections: 0, .. } => "never".to_owned(),
        Count { connections, estimated: true, .. } => format!("~{connections}"),
        Count { connections, .. } => connections.to_string(),
    };
    let last = count.last_seen.as_deref().map_or(String::new(), seconds);
    let _ = writeln!(out, "  {number:>9}  {last:20}  {what}");
}

/// Without the fraction.
fn seconds(time: &str) -> String {
    escape(&time.split_once('.').map_or(time.to_owned(), |(whole, _)| format!("{whole}Z")))
}
