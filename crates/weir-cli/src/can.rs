//! `weir can`: may one pod reach another.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;
use weir_source::inventory::live::Wanted;

use crate::cluster::Cluster;
use crate::input::Input;
use crate::judge::Pair;
use crate::names::{self, Port};
use crate::term::{Paint, error, note};
use crate::{all, json, ports, tree};

/// May a pod open a connection to another
///
/// Says what both ends have to say, and which clause of which policy decides. A denial names the clauses
/// that come nearest to allowing it. Both ends must let a connection pass, in every address family that
/// both pods have.
///
/// TO is a pod, or an address, as that of a DNS cache on the pod's node; in brackets if it is IPv6 and a
/// port follows. PORT is that of the container, behind Services: a number, or the name of a port of the pod
/// TO. PROTOCOL is TCP (the default), UDP or SCTP. Without a port the question is "at any port": the answer lists which
/// ports pass, and it is yes if any does.
///
/// Policies are not asked for a pod in its node's network (hostNetwork), for a node to its own pods, for a
/// pod to itself, and for replies.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir can shop/web-0 shop/db-0:5432 -f manifests/
  weir can web-0 db-0:postgres -n shop -f cluster.yaml -f policies.yaml
  weir can shop/web-0 shop/db-0 -f manifests/           # which ports?
  weir can shop/web-0 169.254.20.10:53/UDP -f manifests/
  weir can --all --port 80/TCP -f manifests/ -o json    # every pair of pods

Exit code: 0 allowed (with --all: answered), 1 denied, 2 no answer: a wrong name, a file that is not there.

-o json of one question: {from, to, port, protocol, allowed, families: {IPv4, IPv6}, egress, ingress, notes};
egress and ingress are {verdict: allowed|denied, reason: clause|noClause|notIsolated|hostNetwork|ownNode|toOwnNode|
noPod|itself, isolatedBy, clause, nearestMisses}; a clause is {policy, rule, peer, port, path, portPath, file, line}, a miss
has peerMatches and portMatches besides. Without a port: {from, to, allowed, ports, notes}; ports is a list of
{protocol, first, last, allowed, families, egress, ingress}. With --all: a list of {from, to, port, protocol,
allowed}, and families where they differ.")]
pub(crate) struct Can {
    /// The pod that opens the connection
    #[arg(value_name = "FROM", required_unless_present = "all")]
    from: Option<String>,
    /// The pod or the address that is called, and its port
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
    /// Answers on standard output.
    ///
    /// # Errors
    /// There is no answer: names or files are wrong.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut cluster = self.input.load(Wanted::default())?;
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
        // both names are looked up before the first is complained about
        let address = names::address(to);
        let to = if address.is_none() { self.pod(&cluster, to).map(Some) } else { Ok(None) };
        let (from, to) = match (self.pod(&cluster, from), to) {
            (Err(one), Err(other)) => {
                error(&format!("{one:#}"));
                return Err(other);
            }
            (from, to) => (from?, to?),
        };
        let at = address.map(|address| cluster.at(address, from));
        let Some(to) = to.or(at.as_ref()) else { unreachable!("it is a pod or an address") };
        let pair = Pair::new(&cluster, from, to)?;
        let allowed = match port {
            Some(port) => {
                let port = names::port(port, to)?;
                let judgement = pair.judge(port);
                if as_json {
                    serde_json::to_writer_pretty(&mut out, &json::one(&pair, port, &judgement))?;
                    writeln!(out)?;
                } else {
                    write!(out, "{}", tree::one(&pair, port, &judgement, Paint::for_stdout()))?;
                }
                judgement.allowed()
            }
            None => {
                let ranges = ports::all_ranges(&pair);
                if as_json {
                    serde_json::to_writer_pretty(&mut out, &json::all(&pair, &ranges))?;
                    writeln!(out)?;
                } else {
                    write!(out, "{}", tree::all(&pair, &ranges, Paint::for_stdout()))?;
                }
                ranges.iter().any(|r| r.judgement.allowed())
            }
        };
        out.flush()?;
        pair.notes(allowed).iter().for_each(|n| note("note", n));
        Ok(ExitCode::from(u8::from(!allowed)))
    }

    fn pod<'a>(&self, cluster: &'a Cluster, text: &str) -> Result<&'a crate::cluster::PodState> {
        names::pod(cluster, text, &cluster.default_namespace)
    }
}
