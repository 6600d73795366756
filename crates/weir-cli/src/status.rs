//! `weir status`: which controllers and agents there are, and whether nodes enforce what policies say.
//!
//! Pods, nodes and policies come from the API with the user's own rights; what controllers know, from the
//! ConfigMap that they write (`weir_source::status`). No port of Weir's is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use weir_compiler::{Budgets, read_within};
use weir_source::cluster::Options;
use weir_source::inventory::live::{self, Wanted};
use weir_source::status::{CONFIG_MAP, MODE_CONFIG_MAP, SILENT, Status as Told};

use crate::cluster::{Cluster, PodState};
use crate::input::Input;
use crate::term::{Paint, escape, escape_json, note};

/// Which controllers and agents there are, nodes that lag behind, and policies that cannot be enforced
///
/// Exit code: 0 all is well, 1 something is not, 2 it cannot be found out.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir status
  weir status -o json | jq .nodes")]
pub(crate) struct Status {
    #[command(flatten)]
    input: Input,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

/// The answer. The JSON of it is stable: docs/cli.md.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    ok: bool,
    /// What agents are told to do: `enforce`, `audit`, `off` or `withdrawn`. Absent: no controller has told.
    mode: Option<String>,
    controllers: Vec<Controller>,
    /// Agents by their versions, as controllers know them.
    agent_versions: BTreeMap<String, usize>,
    nodes: Vec<Node>,
    policies: usize,
    /// Policies that cannot be enforced as they are written, and those that kernels refuse.
    problems: Vec<Problem>,
    to_enforce: Vec<ToEnforce>,
    /// What else is not as it should be, in sentences.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Controller {
    pod: String,
    node: Option<String>,
    ready: bool,
    /// Absent: it has told nothing.
    version: Option<String>,
    agents: Option<usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    /// `enforcing`, `off`, `behind`, `notReady`, `noAgent` or `windows`.
    state: &'static str,
    agent: Option<String>,
    /// Versions of its slice that its kernel does not hold yet.
    behind: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    /// Absent: on all nodes.
    node: Option<String>,
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ToEnforce {
    controller: String,
    count: usize,
    median_seconds: f64,
    p99_seconds: f64,
}

impl Status {
    /// Asks, and prints.
    ///
    /// # Errors
    /// The API server does not answer, or there is no Weir.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if !self.input.files.is_empty() {
            bail!("weir status is about a cluster: leave -f away");
        }
        let wanted = Wanted { nodes: true, ..Wanted::default() };
        let cluster = self.input.load(wanted)?;
        let Some(namespace) = parts(&cluster, "controller").chain(parts(&cluster, "agent")).next() else {
            bail!(
                "no pod of Weir is seen (label app.kubernetes.io/name=weir): it is not installed, or you may not list \
                 pods of its namespace"
            );
        };
        let told = config_map(&self.input, &namespace.pod.key.namespace, CONFIG_MAP)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (told, why) = match told {
            Ok(told) => (told.unwrap_or_default(), None),
            Err(error) => (BTreeMap::new(), Some(format!("what controllers know is not seen: {error}"))),
        };
        let mut report = report(&cluster, &told, now);
        report.warnings.extend(why);
        cluster.notes.iter().for_each(|n| note("note", n));
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Text => write!(out, "{}", text(&report, Paint::for_stdout()))?,
            Output::Json => writeln!(out, "{}", escape_json(&serde_json::to_string_pretty(&report)?))?,
        }
        out.flush()?;
        Ok(ExitCode::from(u8::from(!report.ok)))
    }
}

type Asked = std::result::Result<Option<BTreeMap<String, String>>, live::Error>;

/// What a ConfigMap says, with the rights of who asks.
fn config_map(input: &Input, namespace: &str, name: &str) -> Result<Asked> {
    let options = Options { kubeconfig: input.kubeconfig.clone(), context: input.context.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(live::config_map(options, namespace, name)))
}

/// What agents are told to do with policies; `None`: there is no Weir, or who asks may not know.
pub(crate) fn mode_of(cluster: &Cluster, input: &Input) -> Option<String> {
    let agent = parts(cluster, "agent").next().filter(|_| cluster.live)?;
    let told = config_map(input, &agent.pod.key.namespace, MODE_CONFIG_MAP).ok()?.ok()??;
    told.get("mode").map(|mode| mode.trim().to_owned())
}

/// Weir's pods of a component.
fn parts<'c>(cluster: &'c Cluster, component: &'c str) -> impl Iterator<Item = &'c PodState> {
    let label = |p: &PodState, key: &str, value: &str| p.pod.labels.get(key).is_some_and(|v| v == value);
    cluster.pods.values().filter(move |p| {
        label(p, "app.kubernetes.io/name", "weir") && label(p, "app.kubernetes.io/component", component)
    })
}

fn report(cluster: &Cluster, told: &BTreeMap<String, String>, now: u64) -> Report {
    let told: BTreeMap<&str, Told> = told
        .iter()
        .filter_map(|(name, text)| Some((name.as_str(), serde_json::from_str::<Told>(text).ok()?)))
        .filter(|(_, told)| told.at + SILENT >= now)
        .collect();
    let mut warnings = Vec::new();
    let mut controllers = Vec::new();
    for state in parts(cluster, "controller").filter(|p| p.out.is_none()) {
        let said = told.get(state.pod.key.name.as_str());
        if said.is_none() && state.details.ready {
            warnings.push(format!("{} has told nothing for {SILENT} seconds", state.name()));
        }
        controllers.push(Controller {
            pod: state.name(),
            node: state.pod.node.clone(),
            ready: state.details.ready,
            version: said.map(|told| told.version.clone()),
            agents: said.map(|told| told.agents),
        });
    }
    if !controllers.iter().any(|c| c.ready) {
        warnings.push("no controller is ready: agents enforce what they last knew".to_owned());
    }

    let mut agent_versions: BTreeMap<String, usize> = BTreeMap::new();
    let mut behind: BTreeMap<&str, u64> = BTreeMap::new();
    for one in told.values() {
        for (version, count) in &one.agent_versions {
            *agent_versions.entry(version.clone()).or_default() += count;
        }
        for (node, versions) in &one.behind {
            let most = behind.entry(node).or_default();
            *most = (*most).max(*versions);
        }
    }
    let mode = mode(&told, &mut warnings);
    let other: BTreeMap<&str, &str> = told
        .values()
        .flat_map(|one| &one.other_mode)
        .map(|(node, mode)| (node.as_str(), mode.as_str()))
        .collect();
    for (node, has) in &other {
        warnings
            .push(format!("node {node} has mode {has}, and not {}", mode.as_deref().unwrap_or("enforce")));
    }
    let in_mode = |name: &str| other.get(name).copied().or(mode.as_deref()).unwrap_or("enforce");
    let nodes: Vec<Node> =
        names(cluster).into_iter().map(|name| node(cluster, name, &behind, in_mode(name))).collect();

    let mut problems: Vec<Problem> = Vec::new();
    for read in read_within(cluster.policies.values(), &Budgets::default()) {
        let text = |p| format!("NetworkPolicy {}: {p}", read.key);
        problems.extend(read.problems.iter().map(|p| Problem { node: None, text: text(p) }));
    }
    let refused = told.values().flat_map(|told| &told.refused);
    problems.extend(refused.map(|(node, text)| Problem { node: Some(node.clone()), text: text.clone() }));

    let to_enforce =
        told.iter().filter(|(_, told)| told.to_enforce.count > 0).map(|(name, told)| ToEnforce {
            controller: (*name).to_owned(),
            count: told.to_enforce.count,
            median_seconds: told.to_enforce.median_seconds,
            p99_seconds: told.to_enforce.p99_seconds,
        });
    let to_enforce = to_enforce.collect();
    let ok = warnings.is_empty()
        && problems.is_empty()
        && controllers.iter().all(|c| c.ready)
        && nodes.iter().all(|n| matches!(n.state, "enforcing" | "off" | "windows"));
    let policies = cluster.policies.len();
    Report { ok, mode, controllers, agent_versions, nodes, policies, problems, to_enforce, warnings }
}

/// What controllers tell agents to do. Those that have not heard of a change yet may say another.
fn mode(told: &BTreeMap<&str, Told>, warnings: &mut Vec<String>) -> Option<String> {
    let modes: BTreeSet<&str> = told.values().filter_map(|one| one.mode.as_deref()).collect();
    if modes.len() > 1 {
        let modes: Vec<&str> = modes.iter().copied().collect();
        warnings.push(format!("controllers tell different modes: {}", modes.join(", ")));
    }
    warnings.extend(told.values().filter_map(|one| one.mode_problem.clone()).collect::<BTreeSet<_>>());
    modes.first().map(|mode| (*mode).to_owned())
}

/// All nodes; if they may not be listed, those that pods are on.
fn names(cluster: &Cluster) -> BTreeSet<&str> {
    if !cluster.nodes.is_empty() {
        return cluster.nodes.keys().map(String::as_str).collect();
    }
    cluster.pods.values().filter_map(|p| p.pod.node.as_deref()).collect()
}

fn node(cluster: &Cluster, name: &str, behind: &BTreeMap<&str, u64>, mode: &str) -> Node {
    let mut here: Vec<&PodState> =
        parts(cluster, "agent").filter(|p| p.pod.node.as_deref() == Some(name) && p.out.is_none()).collect();
    here.sort_by_key(|p| !p.details.ready);
    let behind = behind.get(name).copied().unwrap_or(0);
    let windows = cluster.nodes.get(name).is_some_and(|n| n.windows);
    let state = match here.first() {
        _ if windows => "windows",
        None => "noAgent",
        Some(agent) if !agent.details.ready => "notReady",
        Some(_) if behind > 0 => "behind",
        Some(_) if mode == "audit" => "audit",
        Some(_) if mode != "enforce" => "off",
        Some(_) => "enforcing",
    };
    Node { name: name.to_owned(), state, agent: here.first().map(|p| p.name()), behind }
}

fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    let ready = report.controllers.iter().filter(|c| c.ready).count();
    let all = report.controllers.len();
    let _ = writeln!(
        out,
        "controllers  {}",
        paint.verdict(ready == all && all > 0, &format!("{ready} of {all} ready"))
    );
    for c in &report.controllers {
        let state = if c.ready { "ready" } else { "not ready" };
        let version = c.version.as_deref().map(|v| format!("  version {}", escape(v))).unwrap_or_default();
        let agents = c.agents.map(|n| format!("  {n} agents")).unwrap_or_default();
        let on = c.node.as_deref().unwrap_or("no node yet");
        let _ = writeln!(out, "  {}  on {}  {state}{version}{agents}", escape(&c.pod), escape(on));
    }
    if let Some(mode) = report.mode.as_deref().filter(|mode| *mode != "enforce") {
        let _ = writeln!(
            out,
            "mode         {}",
            paint.verdict(false, &format!("{}: no policy is enforced", escape(mode)))
        );
    }
    let enforcing = report.nodes.iter().filter(|n| n.state == "enforcing").count();
    let all = report.nodes.iter().filter(|n| n.state != "windows").count();
    let _ = writeln!(
        out,
        "nodes        {}",
        paint.verdict(enforcing == all, &format!("{enforcing} of {all} enforce"))
    );
    for n in report.nodes.iter().filter(|n| n.state != "enforcing") {
        let what = match n.state {
            "windows" => "Windows: nothing is enforced there".to_owned(),
            "noAgent" => {
                "no weir-agent runs on it: nothing is enforced there, or what one enforced last".to_owned()
            }
            "off" => "off: no policy is enforced there".to_owned(),
            "audit" => "audit: no policy is enforced there, what they would deny is logged".to_owned(),
            "notReady" => "its agent is not ready: what it enforced last stays".to_owned(),
            _ => format!("{} versions behind", n.behind),
        };
        let agent = n.agent.as_deref().map(|a| format!("  ({})", escape(a))).unwrap_or_default();
        let _ = writeln!(out, "  {}  {what}{agent}", escape(&n.name));
    }
    if !report.agent_versions.is_empty() {
        let versions: Vec<String> =
            report.agent_versions.iter().map(|(v, n)| format!("{} ({n})", escape(v))).collect();
        let _ = writeln!(out, "agents       {}", versions.join(", "));
    }
    let problems = report.problems.len();
    let said = if problems == 0 {
        format!("{}, all are enforced as written", report.policies)
    } else {
        format!("{}, {problems} problems", report.policies)
    };
    let _ = writeln!(out, "policies     {}", paint.verdict(problems == 0, &said));
    for p in &report.problems {
        let node = p.node.as_deref().map(|n| format!("on {}: ", escape(n))).unwrap_or_default();
        let _ = writeln!(out, "  {node}{}", escape(&p.text));
    }
    for t in &report.to_enforce {
        let _ = writeln!(
            out,
            "to enforce   half within {}, 99% within {}  {}",
            seconds(t.median_seconds),
            seconds(t.p99_seconds),
            paint.dim(&format!("(the last {} at {})", t.count, escape(&t.controller)))
        );
    }
    for warning in &report.warnings {
        let _ = writeln!(out, "warning      {}", escape(warning));
    }
    out
}

fn seconds(s: f64) -> String {
    if s < 1.0 { format!("{:.1} ms", s * 1000.0) } else { format!("{s:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(yaml: &str) -> crate::input::Answerer {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, yaml).expect("a file");
        let input = Input { files: vec![file], ..Input::default() };
        input.load(Wanted::ALL).expect("objects")
    }

    fn part(name: &str, component: &str, node: &str, ready: bool) -> String {
        let status = if ready { "\"True\"" } else { "\"False\"" };
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: weir-system, labels: \
             {{app.kubernetes.io/name: weir, app.kubernetes.io/component: {component}}}}}, spec: {{nodeName: {node}, \
             hostNetwork: {host}}}, status: {{phase: Running, podIP: 10.0.0.{last}, conditions: [{{type: Ready, status: {status}}}]}}}}\n",
            host = component == "agent",
            last = name.len(),
        )
    }

    fn node_of(name: &str, os: &str) -> String {
        format!(
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{kubernetes.io/os: {os}}}}}}}\n"
        )
    }

    fn told(at: u64) -> BTreeMap<String, String> {
        let one = Told {
            version: "1.2.3".into(),
            at,
            synced: true,
            agents: 2,
            agent_versions: [("1.2.0".to_owned(), 2)].into(),
            behind: [("n2".to_owned(), 3)].into(),
            nodes_behind: 1,
            ..Told::default()
        };
        [("c1".to_owned(), serde_json::to_string(&one).expect("JSON")), ("noise".into(), "{".into())].into()
    }

    #[test]
    fn a_cluster_that_is_off_says_so_and_a_node_that_is_not_is_named() {
        let both = part("c1", "controller", "n1", true)
            + &part("a11", "agent", "n1", true)
            + &part("a111", "agent", "n2", true)
            + &node_of("n1", "linux")
            + &node_of("n2", "linux");
        let off = |other: &[(&str, &str)], problem: Option<&str>| {
            let other = other.iter().map(|(n, m)| ((*n).to_owned(), (*m).to_owned())).collect();
            let (mode, mode_problem) = (Some("off".to_owned()), problem.map(str::to_owned));
            let one =
                Told { at: 1000, synced: true, mode, mode_problem, other_mode: other, ..Told::default() };
            let told = [("c1".to_owned(), serde_json::to_string(&one).expect("JSON"))].into();
            report(&cluster(&both), &told, 1000)
        };
        let all = off(&[], None);
        assert!(all.ok && all.mode.as_deref() == Some("off"), "{all:?}");
        assert!(all.nodes.iter().all(|n| n.state == "off"), "{all:?}");
        let shown = text(&all, Paint(false));
        assert!(shown.contains("mode         off: no policy is enforced"), "{shown}");

        let one = off(&[("n2", "enforce")], None);
        assert!(!one.ok && one.warnings == ["node n2 has mode enforce, and not off"], "{one:?}");
        assert_eq!((one.nodes[0].state, one.nodes[1].state), ("off", "enforcing"));

        let wrong = off(&[], Some("mode \"of\" is none"));
        assert!(!wrong.ok && wrong.warnings == ["mode \"of\" is none"], "{wrong:?}");

        let audit = off(&[("n2", "audit")], None);
        assert_eq!(audit.nodes[1].state, "audit");
        assert!(text(&audit, Paint(false)).contains("what they would deny is logged"));
    }

    const BAD: &str = "---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: a}, spec: {podSelector: {},
 ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}}
";

    #[test]
    fn all_is_well_or_what_is_not_is_named() {
        let good = part("c1", "controller", "n1", true)
            + &part("a11", "agent", "n1", true)
            + &node_of("n1", "linux");
        let fine = report(&cluster(&good), &told(1000), 1000 + SILENT);
        assert!(fine.ok, "{fine:?}");
        assert_eq!(text(&fine, Paint(false)).lines().next(), Some("controllers  1 of 1 ready"));

        let silent = report(&cluster(&good), &told(1000), 1001 + SILENT);
        assert!(!silent.ok && silent.warnings[0].contains("has told nothing"), "{silent:?}");

        let more = [
            part("a1112", "agent", "n2", true),
            part("a1113", "agent", "n3", false),
            node_of("n2", "linux")
                + &node_of("n3", "linux")
                + &node_of("n4", "linux")
                + &node_of("n5", "windows"),
            BAD.to_owned(),
        ];
        let bad = report(&cluster(&(good + &more.concat())), &told(1000), 1000);
        assert!(!bad.ok);
        let states: Vec<_> = bad.nodes.iter().map(|n| (n.name.as_str(), n.state, n.behind)).collect();
        let expected = [
            ("n1", "enforcing", 0),
            ("n2", "behind", 3),
            ("n3", "notReady", 0),
            ("n4", "noAgent", 0),
            ("n5", "windows", 0),
        ];
        assert_eq!(states, expected);
        assert!(bad.problems.len() == 1 && bad.problems[0].text.contains("a/p"), "{:?}", bad.problems);
        let shown = text(&bad, Paint(false));
        for part in ["1 of 4 enforce", "n2  3 versions behind", "n5  Windows", "1.2.0 (2)", "1, 1 problems"] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
    }
}
