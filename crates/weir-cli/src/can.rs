//! `weir can`: may one pod reach another.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;
use weir_source::inventory::live::Wanted;

use crate::ends::{self, Name};
use crate::input::Input;
use crate::names::{self, Port};
use crate::term::{Paint, error, note};
use crate::{all, ask, json, tree};

/// May one end open a connection to another
///
/// Says what both ends have to say, and which clause of which policy decides. A denial names the clauses
/// that come nearest to allowing it. Both ends must let a connection pass, in every address family that
/// both have.
///
/// FROM and TO are a pod (NAME, NAMESPACE/NAME), the pods of a workload (deploy/NAME, sts, ds, job, cronjob, also
/// NAMESPACE/deploy/NAME) or a namespace (ns/NAME), a node (node/NAME), an address, a CIDR, or "internet": all
/// addresses that are not private. TO may be a Service (svc/NAME): then PORT is the Service's, and each backend is asked.
/// Otherwise PORT is that of the container, behind Services: a number, or the name of a port of the pod TO. An IPv6
/// address or CIDR with a port goes in brackets. PROTOCOL is TCP (the default), UDP or SCTP. Without a port the
/// question is "at any port": the answer lists which ports pass, and it is yes if any does.
///
/// Of groups every pair is asked, without pods to themselves; the answer is yes if all pass, and pairs with
/// different verdicts or reasons are told apart.
///
/// Policies are not asked for a pod in its node's network (hostNetwork), for a node to its own pods, for a
/// pod to itself, and for replies.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir can shop/web-0 shop/db-0:5432                    # in the cluster of the kubeconfig
  weir can shop/web-0 shop/db-0:5432 -f manifests/      # as manifests have it
  weir can deploy/web svc/db:5432 -n shop               # all pods of one to all backends of the other
  weir can ns/shop internet:443
  weir can 10.0.0.0/8 shop/db-0:5432
  weir can shop/web-0 shop/db-0 -f manifests/           # which ports?
  weir can shop/web-0 169.254.20.10:53/UDP
  weir can --all --port 80/TCP -f manifests/ -o json    # every pair of pods

Exit code: 0 allowed (with --all: answered), 1 denied, 2 no answer: a wrong name, a file that is not there.

The fields of -o json are in docs/cli.md.")]
pub(crate) struct Can {
    /// Who opens the connection
    #[arg(value_name = "FROM", required_unless_present = "all")]
    from: Option<String>,
    /// Who is called, and the port
    #[arg(value_name = "TO[:PORT[/PROTOCOL]]", required_unless_present = "all")]
    to: Option<String>,
    #[command(flatten)]
    input: Input,
    /// Ask about every pair of pods, without pods to themselves
    #[arg(long, conflicts_with_all = ["from", "to"])]
    all: bool,
    /// With --all: only this port (may be repeated) [default: those that policies and pods name, and one other]
    #[arg(long = "port", value_name = "PORT[/PROTOCOL]", requires = "all")]
    ports: Vec<Port>,
    /// What the nodes' agents were told of pods that call their own node (weir-agent has the same flag)
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    /// What to print
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Can {
    /// What has to be known for the question.
    fn wanted(&self) -> Wanted {
        let names = [self.from.as_deref(), self.to.as_deref()];
        let says = |part: &str| names.iter().flatten().any(|name| name.contains(part));
        let addresses = || names.iter().flatten().any(|name| ends::may_be_address(name));
        Wanted {
            workloads: false,
            services: says("svc/") || says("service/") || says("services/"),
            nodes: says("no/") || says("node/") || says("nodes/") || addresses(),
        }
    }

    /// Answers on standard output.
    ///
    /// # Errors
    /// There is no answer: names or files are wrong.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut cluster = self.input.load(self.wanted())?;
        cluster.need_pods()?;
        cluster.own_node = self.pod_to_own_node;
        cluster.tell();
        let as_json = self.output == Output::Json;
        let mut out = BufWriter::new(std::io::stdout().lock());
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            let notes = all::write(&cluster, &self.ports, as_json, &mut out)?;
            out.flush()?;
            notes.iter().for_each(|n| note("note", n));
            return Ok(ExitCode::SUCCESS);
        };
        let (to, port) = names::split(to);
        let namespace = &cluster.default_namespace;
        // both names are looked up before the first is complained about
        let from_name = ends::parse(&cluster, from, namespace);
        let to_name = ends::parse(&cluster, to, namespace);
        let from = from_name.and_then(|name| match name {
            Name::Service(key) => {
                bail!("Service {key} opens no connections: ask for its pods, as in deploy/NAME or ns/NAME")
            }
            name => ends::resolve(&cluster, &name, None),
        });
        let is_service = matches!(to_name, Ok(Name::Service(_)));
        let to = to_name.and_then(|name| ends::resolve(&cluster, &name, port));
        let (mut from, mut to) = match (from, to) {
            (Err(one), Err(other)) => {
                error(&format!("{one:#}"));
                return Err(other);
            }
            (from, to) => (from?, to?),
        };
        ask::meet(&cluster, &mut from, &mut to)?;
        let answer = ask::ask(&cluster, &from, &to, port.filter(|_| !is_service))?;
        if as_json {
            serde_json::to_writer_pretty(&mut out, &json::answer(&from, &to, &answer))?;
            writeln!(out)?;
        } else {
            write!(out, "{}", tree::answer(&from, &to, &answer, Paint::for_stdout()))?;
        }
        out.flush()?;
        answer.notes.iter().for_each(|n| note("note", n));
        Ok(ExitCode::from(u8::from(!answer.allowed())))
    }
}
