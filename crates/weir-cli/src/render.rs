//! `weir render`: what the agent of a node would have in the kernel, as nft text.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::{Budgets, Compiler, Scope};
use weir_dataplane::{Attachment, Attachments, DenialLog, Planner, Settings};
use weir_source::inventory::live::Wanted;

use crate::cluster::Cluster;
use crate::input::Input;
use crate::kernel;
use crate::term::{escape, note};

/// Shows the nftables text that the agent of a node would load
///
/// By the code of the agent itself. What only the node knows is assumed: which interface each pod is behind.
/// Unless --attachment says otherwise, pods are dispatched by their addresses, as the agent does until it has found a
/// route. The table bridge weir, for pods that share a bridge, is made from the ports that the agent finds, and not
/// shown. The other flags are weir-agent's, with its defaults.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  weir render --node node1 -f cluster.yaml -f policies/
  weir render --node node1                               # from the cluster of the kubeconfig
  weir render --node node1 -f . --attachment 10.244.1.7=own:veth3f2a
  weir render --node node1 -f . | sudo ip netns exec test nft -f -")]
pub(crate) struct Render {
    /// The node, as in spec.nodeName of its pods
    #[arg(long, value_name = "NAME")]
    node: String,
    #[command(flatten)]
    input: Input,
    /// Which interface an address is behind: of the pod's own, or shared with others (may be repeated)
    #[arg(long = "attachment", value_name = "ADDRESS=own:NAME|shared:NAME")]
    attachments: Vec<At>,
    /// Whether pods that the agent does not know are closed
    #[arg(long, value_enum, default_value = "allow")]
    unknown_pods: UnknownPods,
    /// Drop what a pod sends with an address that is not its own
    #[arg(long, value_enum, default_value = "on")]
    source_guard: Switch,
    /// What egress policies of pods mean for the node itself
    #[arg(long, value_name = "enforce|allow", default_value_t)]
    pod_to_own_node: PodToOwnNode,
    /// What becomes of established connections that a change of policies forbids
    #[arg(long, value_enum, default_value = "revoke")]
    existing_connections: Existing,
    /// The bit of connections' marks that says: revoked
    #[arg(long, value_name = "BIT", default_value = "0x1000", value_parser = mark)]
    revoked_mark: NonZeroU32,
    /// Whether denied connections are logged: lines a second of each pod, or off
    #[arg(long, value_name = "PER_SECOND|off", default_value = "10", value_parser = logs)]
    log_denied: LogDenied,
    /// The group of NFLOG by which the kernel tells of them
    #[arg(long, value_name = "GROUP", default_value_t = DenialLog::default().group)]
    log_denied_group: u16,
    /// As within the time in which TCP connections of before the agent's first start are judged
    #[arg(long)]
    mid_stream_grace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnknownPods {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Existing {
    Revoke,
    Keep,
}

/// `10.0.0.1=own:veth0`
#[derive(Debug, Clone, PartialEq, Eq)]
struct At(IpAddr, Attachment);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write ADDRESS=own:INTERFACE or ADDRESS=shared:INTERFACE".to_owned();
        let (address, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (how, name) = rest.split_once(':').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        // as the kernel has it
        let good = !name.is_empty() && name.len() < 16 && !name.contains(['/', ' ', '"', ':']);
        if !good || name.chars().any(char::is_control) {
            return Err(format!(
                "{name:?} is not the name of an interface: at most 15 bytes, without blanks"
            ));
        }
        match how {
            "own" => Ok(At(address, Attachment::Own(name.to_owned()))),
            "shared" => Ok(At(address, Attachment::Shared(name.to_owned()))),
            _ => Err(wrong()),
        }
    }
}

/// Whether they are; how many of them are told is nothing to the kernel.
#[derive(Debug, Clone, Copy)]
struct LogDenied(bool);

fn logs(text: &str) -> Result<LogDenied, String> {
    match text.parse::<u32>() {
        _ if text == "off" => Ok(LogDenied(false)),
        Ok(1..=1000) => Ok(LogDenied(true)),
        _ => Err("a number from 1 to 1000, or off".to_owned()),
    }
}

fn mark(text: &str) -> Result<NonZeroU32, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let bits = number.ok().and_then(NonZeroU32::new).filter(|bits| bits.get().is_power_of_two());
    bits.ok_or_else(|| "one bit of 32, such as 0x1000".to_owned())
}

impl Render {
    /// Prints the text.
    ///
    /// # Errors
    /// There is no such node, or nothing to read.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let cluster = self.input.load(Wanted { workloads: false, services: false, nodes: true })?;
        cluster.tell();
        self.known(&cluster)?;
        let mut compiler = Compiler::with(Scope::Node(self.node.clone()), Budgets::default());
        let (events, nowhere) = (kernel::events(&cluster), kernel::nowhere(&cluster));
        compiler.apply(events);
        let mut planner = Planner::with(self.settings());
        planner.update(&compiler.snapshot(&self.node).changes);
        planner.attach(self.attached(&planner));
        let mut out = BufWriter::new(std::io::stdout().lock());
        // nft takes a line as a comment that begins so
        writeln!(out, "# {}, by weir {}", escape(&self.head(&planner)), env!("CARGO_PKG_VERSION"))?;
        for table in planner.tables() {
            write!(out, "{table}")?;
        }
        out.flush()?;
        self.tell(&cluster, &planner, nowhere);
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self) -> Settings {
        Settings {
            source_guard: self.source_guard == Switch::On,
            close_unknown: self.unknown_pods == UnknownPods::Deny,
            revoked_mark: (self.existing_connections == Existing::Revoke).then_some(self.revoked_mark),
            drop_mid_stream: !self.mid_stream_grace,
            log_denials: self
                .log_denied
                .0
                .then(|| DenialLog { group: self.log_denied_group, ..DenialLog::default() }),
            ..kernel::settings(self.pod_to_own_node)
        }
    }

    fn attached(&self, planner: &Planner) -> Attachments {
        let here: BTreeSet<&IpAddr> = planner.slice().pods.values().flat_map(|p| &p.addresses).collect();
        let mut all = Attachments::new();
        for At(address, attachment) in &self.attachments {
            if here.contains(address) {
                all.insert(*address, attachment.clone());
            } else {
                note("warning", &format!("--attachment {address}: no pod of {} has this address", self.node));
            }
        }
        all
    }

    fn head(&self, planner: &Planner) -> String {
        let slice = planner.slice();
        let isolated = |p: &&weir_compiler::slice::SlicePod| {
            let profile = &slice.profiles[&p.profile];
            profile.ingress.is_some() || profile.egress.is_some()
        };
        let count = slice.pods.values().filter(isolated).count();
        format!("node {}: {} pods, {count} of them isolated", self.node, slice.pods.len())
    }

    fn tell(&self, cluster: &Cluster, planner: &Planner, nowhere: usize) {
        let slice = planner.slice();
        let by_address = slice.pods.values().flat_map(|p| &p.addresses);
        let by_address = by_address.filter(|ip| !self.attachments.iter().any(|a| a.0 == **ip)).count();
        if by_address > 0 {
            note(
                "note",
                &format!(
                    "{by_address} addresses are dispatched by address: the interfaces of pods are known on the node only \
                     (--attachment says which)"
                ),
            );
        }
        if nowhere > 0 {
            note("note", &format!("{nowhere} pods are on no node that is known, and left out"));
        }
        let stand_ins =
            slice.pods.keys().filter(|key| cluster.pods.get(*key).is_some_and(|p| p.stand_in)).count();
        if stand_ins > 0 {
            note(
                "note",
                &format!("{stand_ins} pods of the node have no address in the manifests: others stand in"),
            );
        }
        if cluster.nodes.get(&self.node).is_some_and(|n| n.windows) {
            note("warning", &format!("{} runs Windows: there is no agent that would load this", self.node));
        }
    }

    /// # Errors
    /// Nobody knows the node.
    fn known(&self, cluster: &Cluster) -> Result<()> {
        let of_pods = cluster.pods.values().filter_map(|p| p.pod.node.as_deref());
        let names: BTreeSet<&str> = cluster.nodes.keys().map(String::as_str).chain(of_pods).collect();
        if names.contains(self.node.as_str()) {
            return Ok(());
        }
        if names.is_empty() {
            bail!(
                "no pod says on which node it is (spec.nodeName), and there is no Node: nothing is known of {}",
                self.node
            );
        }
        let near = names.iter().min_by_key(|n| (strsim::osa_distance(n, &self.node), **n));
        let near =
            near.filter(|n| strsim::osa_distance(n, &self.node) <= self.node.chars().count().div_ceil(3));
        match near {
            Some(near) => bail!("no node {}; did you mean {near}?", self.node),
            None => {
                let some: Vec<&str> = names.iter().take(5).copied().collect();
                bail!("no node {}; there are {}: {}, ...", self.node, names.len(), some.join(", "))
            }
        }
    }
}
