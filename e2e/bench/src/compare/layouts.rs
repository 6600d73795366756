//! The layouts that are compared: how each puts the same policies into the kernel of a node.
//!
//! | layout | a new connection passes |
//! | --- | --- |
//! | nothing | no rules, not even connection tracking |
//! | tracking | one rule, which needs connection tracking, as kube-proxy has on every node |
//! | weir-nft | what the agent writes: compiler, planner and netlink, the agent's own code |
//! | weir-ipset | the same with peer sets in kernel ipsets |
//! | sets in a row | nftables: for each policy of the pod a lookup of its own set, and its port |
//! | iptables | for each policy of the cluster two ipsets, and a chain with its peers' ipsets and its port |
//!
//! The others are written as lean as their idea allows, so that the idea is compared: hash sets (Calico's are
//! interval sets), one rule for each policy without a chain and marks of its own, and a cluster that has
//! no other policies than those of this one pod.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use weir_agent::backend::SetBackend;
use weir_dataplane::Costs;

use super::case::{Case, SERVER};
use super::wire::{SERVER_LINK, Wired};
use crate::node::Node;

/// A way to enforce policies.
pub(super) struct Layout {
    /// As it is called in figures.
    pub(super) name: &'static str,
    /// Whether it enforces the policies at all.
    pub(super) enforces: bool,
    /// What it takes to program it: programs that may be missing.
    pub(super) needs: &'static [&'static str],
    /// Programs it, in the node's namespace.
    program: fn(&Case) -> Result<()>,
}

/// What all others are compared with.
pub(super) const NOTHING: &str = "no rules";
/// What all others need, too, and any node with kube-proxy has.
pub(super) const TRACKING: Layout =
    Layout { name: "connection tracking alone", enforces: false, needs: &["nft"], program: tracking };

/// All of them; a layout more is a line more. The goals are for those whose names start with "Weir".
pub(super) const ALL: &[Layout] = &[
    Layout { name: NOTHING, enforces: false, needs: &[], program: |_| Ok(()) },
    TRACKING,
    Layout { name: "Weir, nft sets", enforces: true, needs: &[], program: |case| weir(case).map(drop) },
    #[cfg(feature = "ipset")]
    Layout { name: "Weir, ipsets", enforces: true, needs: &[], program: weir_ipsets },
    Layout { name: "sets in a row", enforces: true, needs: &["nft"], program: row },
    Layout {
        name: "iptables, ipsets",
        enforces: true,
        needs: &["iptables-restore", "ipset"],
        program: iptables,
    },
];

impl Layout {
    /// What is there of the programs that it needs, with their versions; `None` if one is missing.
    pub(super) fn programs(&self) -> Option<Vec<String>> {
        let version = |program: &&str| {
            let output = Command::new(program).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Some(text.lines().next().unwrap_or(program).trim().to_owned())
        };
        self.needs.iter().map(version).collect()
    }

    /// A node that enforces the policies of `case` in this way.
    pub(super) fn node(&self, case: &Case) -> Result<Wired> {
        let wired = Wired::new()?;
        wired.node.run(|| (self.program)(case)).with_context(|| format!("cannot program {}", self.name))?;
        wired.forget_soon()?;
        Ok(wired)
    }
}

/// Weir's own way from objects to the kernel; in this thread's namespace.
pub(super) fn weir(case: &Case) -> Result<Node> {
    weir_with(case, Costs::default())
}

/// The same with other limits.
pub(super) fn weir_with(case: &Case, costs: Costs) -> Result<Node> {
    let mut node = Node::with(costs, SetBackend::Nft)?;
    node.turn(case.events())?;
    node.check()?;
    Ok(node)
}

/// The same with peer sets in ipsets; what it passes and drops is checked before it counts, as of all.
#[cfg(feature = "ipset")]
fn weir_ipsets(case: &Case) -> Result<()> {
    Node::with(Costs::default(), SetBackend::Ipset)?.turn(case.events())?;
    Ok(())
}

fn tracking(_: &Case) -> Result<()> {
    run(
        "nft",
        &["-f", "-"],
        "table ip other {\n chain forward {\n  type filter hook forward priority 0\n  ct state established,related accept\n }\n}\n",
    )
}

fn row(case: &Case) -> Result<()> {
    let mut text = String::from("table ip row {\n");
    for policy in 0..case.policies {
        write!(text, " set peers_{policy} {{ type ipv4_addr; elements = {{ ")?;
        case.peers_of(policy).try_for_each(|peer| write!(text, "{peer},"))?;
        text += " } }\n";
    }
    text += " chain server {\n  ct state invalid drop\n";
    for (policy, port) in case.port_of.iter().enumerate() {
        writeln!(text, "  ip saddr @peers_{policy} tcp dport {port} accept")?;
    }
    text += "  drop\n }\n chain forward {\n  type filter hook forward priority 0\n";
    writeln!(text, "  ct state established,related accept\n  oifname {SERVER_LINK} jump server\n }}\n}}")?;
    run("nft", &["-f", "-"], &text)
}

/// Chains by their part: POD, one for each policy, ALLOW and ACCEPT; marks 1 (allowed) and 2 (to be dropped).
fn iptables(case: &Case) -> Result<()> {
    // the cluster's addresses by namespace and by label, of which a policy's selectors are made
    let mut sets = format!(
        "create app hash:net maxelem 1000000\nadd app {SERVER}\ncreate ns hash:net maxelem 1000000\nadd ns {SERVER}\n"
    );
    for peer in &case.peers {
        writeln!(sets, "add ns {peer}")?;
    }
    let mut text =
        String::from("*filter\n:WEIR-BENCH - [0:0]\n:INGRESS - [0:0]\n:EGRESS - [0:0]\n:ALLOW - [0:0]\n");
    (0..case.policies).try_for_each(|policy| writeln!(text, ":POLICY-{policy} - [0:0]"))?;
    text += "-A FORWARD -m conntrack --ctstate NEW -j WEIR-BENCH\n\
             -A WEIR-BENCH -j INGRESS\n-A WEIR-BENCH -j EGRESS\n";
    for (policy, port) in case.port_of.iter().enumerate() {
        writeln!(sets, "create group-{policy} hash:net maxelem 1000000")?;
        case.peers_of(policy).try_for_each(|peer| writeln!(sets, "add group-{policy} {peer}"))?;
        writeln!(
            text,
            "-A INGRESS -m set --match-set app dst -m set --match-set ns dst -j POLICY-{policy}\n\
             -A POLICY-{policy} -p tcp -m tcp --dport {port} -m set --match-set ns src \
             -m set --match-set group-{policy} src -j ALLOW\n\
             -A POLICY-{policy} -j MARK --set-xmark 0x2/0x2"
        )?;
    }
    text += "-A INGRESS -m mark --mark 0x2/0x2 -j DROP\n\
             -A ALLOW -j MARK --set-xmark 0x1/0x3\n-A ALLOW -j EGRESS\n\
             -A EGRESS -m mark --mark 0x1/0x1 -j ACCEPT\nCOMMIT\n";
    run("ipset", &["restore"], &sets)?;
    run("iptables-restore", &[], &text)
}

/// Runs a program with this input.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("a program has no input")?;
    // if it stops early, its own message, on stderr, says more
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}
