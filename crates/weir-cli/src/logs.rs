//! `weir logs`: connections that were denied, or allowed, as agents tell of them, with names.
//!
//! Agents know the pods of their own node. Addresses of others get the names that they have by now, if whoever asks
//! may list pods.

mod allowed;

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use weir_compiler::object::Event;
use weir_source::cluster::Options;
use weir_source::inventory::live::{self, Wanted};
use weir_source::logs;

use crate::term::{Paint, escape, escape_json, note};

/// Shows connections: those denied, with the policies that isolate the pod, and those allowed, with the clause
///
/// Allowed ones are there for namespaces that ask for it with the annotation weir.dev/log-allowed ("true", or "1/100"
/// for one of a hundred). Read from the logs of Weir's agents, with your own rights: `get` on pods/log and `list` on pods in their namespace.
/// Agents write a limited number of lines for each pod; how many more there were is in the next one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir logs                          # of all namespaces, as far as nodes keep logs
  weir logs -n shop --since 10m      # either end is in namespace shop
  weir logs --pod shop/db-0 -f       # as they come
  weir logs --verdict allowed -n shop
  weir logs -o json | jq 'select(.to.port == 5432)'

The fields of -o json are in docs/denied-connections.md.")]
pub(crate) struct Logs {
    /// Only of this namespace: one end is in it [default: all]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only those that were denied, or allowed
    #[arg(long, value_enum, default_value = "all")]
    verdict: Verdict,
    /// Only of this pod: NAME (in the namespace of -n) or NAMESPACE/NAME
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// No older than this: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// So many of the last lines of each agent's log
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,
    /// The namespace of Weir's agents
    #[arg(long, value_name = "NAME", default_value = "weir-system")]
    weir_namespace: String,
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Of which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    All,
    Denied,
    /// It passed; what is audited would deny it
    WouldDeny,
    Allowed,
}

/// A line of an agent; docs/denied-connections.md has the fields.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Line {
    pub(crate) time: String,
    pub(crate) verdict: String,
    node: String,
    pub(crate) direction: String,
    pub(crate) from: End,
    pub(crate) to: End,
    protocol: serde_json::Value,
    #[serde(default)]
    policies: Vec<String>,
    /// The clause of an audited policy.
    would_allow: Option<String>,
    #[serde(default)]
    pub(crate) suppressed: u64,
    /// What follows is of allowed ones.
    #[serde(flatten)]
    pub(crate) allowed: allowed::Fields,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct End {
    pub(crate) pod: Option<String>,
    address: IpAddr,
    port: Option<u16>,
}

/// As kubectl takes it, in one unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number with its unit: 30s, 10m, 2h".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|n| *n <= 1 << 40).map(Duration::from_secs).ok_or_else(wrong)
}

impl Logs {
    /// Prints what agents have written, and with --follow what they write.
    ///
    /// # Errors
    /// The API server does not answer, or there is no agent.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.read())?;
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> Options {
        Options { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }

    async fn read(&self) -> Result<()> {
        let wanted = logs::Wanted {
            namespace: self.weir_namespace.clone(),
            follow: self.follow,
            since: self.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
            tail: self.tail,
            nodes: None,
        };
        let mut names = Names::read(self.options()).await;
        let (lines, mut told) = tokio::sync::mpsc::unbounded_channel();
        let reading = logs::read(
            self.options(),
            &wanted,
            move |text| drop(lines.send(text)),
            |problem| note("warning", &problem),
        );
        let mut all = Vec::new();
        let printing = async {
            while let Some(text) = told.recv().await {
                let Some(line) = understood(&text).filter(|line| self.verdict.is(line)) else { continue };
                if !self.follow {
                    all.push((line, text));
                    continue;
                }
                names.renew(&line, &self.options()).await;
                self.print(&line, &text, &names)?;
            }
            Ok::<(), anyhow::Error>(())
        };
        let reading = async {
            reading.await.with_context(|| {
                format!(
                    "no logs of Weir's agents (--weir-namespace says where they are; it is {} here)",
                    self.weir_namespace
                )
            })
        };
        tokio::try_join!(reading, printing)?;
        all.sort_by(|(a, _), (b, _)| a.time.cmp(&b.time));
        all.iter().try_for_each(|(line, text)| self.print(line, text, &names))
    }

    fn print(&self, line: &Line, text: &str, names: &Names) -> Result<()> {
        let (from, to) = (names.of(&line.from), names.of(&line.to));
        if !self.wants([&from, &to]) {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => writeln!(out, "{}", escape_json(text))?,
            Output::Text => writeln!(out, "{}", line.text([&from, &to], Paint::for_stdout()))?,
        }
        Ok(out.flush()?)
    }

    /// Whether one of the ends is asked for.
    fn wants(&self, ends: [&Option<String>; 2]) -> bool {
        ends.into_iter().any(|end| {
            let (namespace, name) = end.as_deref().and_then(|end| end.split_once('/')).unwrap_or_default();
            let of_namespace = self.namespace.as_deref().is_none_or(|wanted| wanted == namespace);
            let of_pod = self.pod.as_deref().is_none_or(|wanted| match wanted.split_once('/') {
                Some(wanted) => wanted == (namespace, name),
                None => wanted == name,
            });
            of_namespace && of_pod
        })
    }
}

impl Verdict {
    fn is(self, line: &Line) -> bool {
        match self {
            Verdict::All => true,
            Verdict::Denied => line.verdict == "denied",
            Verdict::WouldDeny => line.verdict == "would-deny",
            Verdict::Allowed => line.verdict == "allowed",
        }
    }
}

/// What became of a connection: `would-deny` is one that passed, and audited policies would deny.
const VERDICTS: [&str; 3] = ["denied", "would-deny", "allowed"];

/// A line of JSON that tells of a connection; agents may come to write others.
pub(crate) fn understood(text: &str) -> Option<Line> {
    serde_json::from_str(text).ok().filter(|line: &Line| VERDICTS.contains(&line.verdict.as_str()))
}

impl Line {
    fn text(&self, [from, to]: [&Option<String>; 2], paint: Paint) -> String {
        let name =
            |name: &Option<String>, end: &End| escape(name.as_deref().unwrap_or(&end.address.to_string()));
        let protocol = match &self.protocol {
            serde_json::Value::String(name) => escape(name),
            number => format!("protocol {number}"),
        };
        let (from, to) = (name(from, &self.from), name(to, &self.to));
        let denier = if self.direction == "egress" { &from } else { &to };
        let port = match self.to.port {
            Some(port) => format!("{port}/{protocol}"),
            None => protocol,
        };
        if self.verdict == "allowed" {
            let why = self.allowed.text(denier);
            let (time, node, direction) = (escape(&self.time), escape(&self.node), escape(&self.direction));
            let (verdict, rest) = (paint.verdict(true, "allowed"), paint.dim(&format!("(node {node})")));
            return format!(
                "{time}  {verdict}  {from} -> {to}  {port}  {direction} of {denier}, {why}  {rest}"
            );
        }
        let by: Vec<String> = self.policies.iter().map(|p| escape(p)).collect();
        let by = match by.as_slice() {
            [] => "policies that are gone by now".to_owned(),
            by => by.join(", "),
        };
        let more = match self.suppressed {
            0 => String::new(),
            n => format!(", and {n} before that were not told"),
        };
        let by = match self.verdict.as_str() {
            "denied" => format!("isolated by {by}"),
            _ => format!("would be isolated by {by}"),
        };
        let audited = match &self.would_allow {
            Some(clause) => format!("; audited {} would allow it", escape(clause)),
            None => String::new(),
        };
        let rest = paint.dim(&format!("(node {}{more})", escape(&self.node)));
        format!(
            "{}  {}  {from} -> {to}  {port}  {} of {denier}, {by}{audited}  {rest}",
            escape(&self.time),
            paint.verdict(self.verdict != "denied", &self.verdict),
            escape(&self.direction),
        )
    }
}

/// Who has which address by now.
#[derive(Debug, Default)]
struct Names {
    by_address: HashMap<IpAddr, String>,
    read: Option<Instant>,
}

/// How often they are read again at most.
const NAMES_AGAIN: Duration = Duration::from_secs(10);

impl Names {
    async fn read(options: Options) -> Names {
        let mut names = Names { read: Some(Instant::now()), ..Names::default() };
        // without the right to list pods there are addresses
        let Ok(live) = live::read(options, None, Wanted::default(), false, &|_| {}).await else {
            return names;
        };
        for event in live.inventory.events {
            let Event::Pod(pod) = event else { continue };
            if !pod.host_network && !pod.finished {
                names.by_address.extend(pod.ips.iter().map(|ip| (*ip, pod.key.to_string())));
            }
        }
        names
    }

    /// Reads them again if an end of the line is not known, and the last time is a while ago.
    async fn renew(&mut self, line: &Line, options: &Options) {
        let unknown = [&line.from, &line.to].into_iter().any(|end| self.of(end).is_none());
        if unknown && self.read.is_none_or(|read| read.elapsed() > NAMES_AGAIN) {
            *self = Names::read(options.clone()).await;
        }
    }

    /// What the agent says, or else who has the address.
    fn of(&self, end: &End) -> Option<String> {
        end.pod.clone().or_else(|| self.by_address.get(&end.address).cloned())
    }
}
