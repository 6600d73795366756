//! What Azure NPM leaves on a node, found and taken out: `weir-agent npm-leftovers`.
//!
//! ```text
//!   table ip filter (iptables-nft)                       ipsets
//!     FORWARD ── ctstate NEW ──> AZURE-NPM ──┐             azure-npm-NUMBER   list:set, of others of them
//!                                 │  AZURE-NPM-INGRESS ──> azure-npm-NUMBER   hash:net, hash:ip,port
//!                                 │  AZURE-NPM-EGRESS, -ACCEPT, ...
//!     other rules and chains      └─ AZURE-NPM-INGRESS-NUMBER: one per policy
//! ```
//!
//! NPM removes nothing when it is turned off: its chains go on dropping what its policies denied, and its ipsets,
//! which nobody keeps up to date, deny more with every pod that comes.
//!
//! Where NPM has used iptables-legacy the same is in the old filter table.
//!
//! Jumps, rules and chains go in one batch (of iptables-legacy: with one new blob for the whole table,
//! `legacy.rs`), bound to the generation in which they were seen: so there is no moment
//! in which half of them act, and nothing of others is lost. The ipsets, which nothing looks into any more, go
//! after that, one by one; who is interrupted there does the rest the next time. What is named like NPM's but is not
//! as NPM writes it stays, and is named ([`Leftovers::strange`]).
//!
//! Names and forms are those of NPM's sources, v1 and v2 (github.com/Azure/azure-container-networking, npm/, read in
//! November 2026): chains are `AZURE-NPM`, a few fixed names after that, and one for each policy and direction.

mod legacy;
mod running;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weir_dataplane::TABLES;
use weir_dataplane::ipset::IpsetOp;
use weir_dataplane::model::{CmpOp, CtKey, Expr, Verdict};
use weir_nft::others::{OtherRule, OtherTable, Removal, Term};
use weir_nft::{ApplyError, Nft};

pub use running::signs;

/// Where rules of pods' traffic come to NPM's chains.
const ROOT: &str = "AZURE-NPM";
/// After `AZURE-NPM-`: the fixed chains of v2, of v1, and of what was before v1.2.7.
const CHAINS: [&str; 17] = [
    "ACCEPT",
    "INGRESS",
    "INGRESS-ALLOW-MARK",
    "EGRESS",
    "KUBE-SYSTEM",
    "INGRESS-PORT",
    "INGRESS-FROM",
    "INGRESS-DROPS",
    "EGRESS-PORT",
    "EGRESS-TO",
    "EGRESS-DROPS",
    "TARGET-SETS",
    "INRGESS-DROPS",
    "INGRESS-FROM-NS",
    "INGRESS-FROM-POD",
    "EGRESS-TO-NS",
    "EGRESS-TO-POD",
];
/// With a number after it.
const POLICY_CHAINS: [&str; 2] = ["AZURE-NPM-INGRESS-", "AZURE-NPM-EGRESS-"];
const IPSETS: &str = "azure-npm-";
/// iptables-nft keeps its filter table in these families (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
const FAMILIES: [u8; 2] = [2, 10];
const FILTER: &str = "filter";

/// Whether NPM has chains of this name.
pub fn is_chain(name: &str) -> bool {
    let fixed = name.strip_prefix(ROOT).and_then(|rest| rest.strip_prefix('-'));
    let of_policy = POLICY_CHAINS.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_number));
    name == ROOT || of_policy || fixed.is_some_and(|rest| CHAINS.contains(&rest))
}

/// Whether NPM has ipsets of this name.
pub fn is_ipset(name: &str) -> bool {
    name.strip_prefix(IPSETS).is_some_and(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a rule is the jump from FORWARD as NPM writes it: for new connections (v2), or for all packets (v1).
fn is_jump(rule: &OtherRule) -> bool {
    /// `IP_CT_NEW` in masks of states, xt_conntrack's and nftables' alike.
    const NEW: u8 = 8;
    rule.chain == "FORWARD"
        && rule.terms.iter().all(|term| match term {
            Term::Other(name) => name == "counter",
            Term::Known(Expr::Verdict(Verdict::Jump(chain))) => chain == ROOT,
            // newer iptables-nft: ct state new, in terms of nftables
            Term::Known(Expr::Ct { key: CtKey::State, .. }) => true,
            Term::Known(Expr::Bitwise { mask, xor, .. }) => {
                mask[..] == u32::from(NEW).to_ne_bytes() && xor.iter().all(|b| *b == 0)
            }
            Term::Known(Expr::Cmp { op: CmpOp::Neq, value, .. }) => value.iter().all(|b| *b == 0),
            // struct xt_conntrack_mtinfo1 to 3: which fields are compared, which of them negated, and the states
            Term::Match { name, revision: 1..=3, info } if name == "conntrack" => {
                info.get(146..151) == Some(&[1, 0, 0, 0, NEW])
            }
            Term::Known(_) | Term::Match { .. } => false,
        })
        && rule.target() == Some(ROOT)
}

/// What is there of NPM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The ruleset's, when it was looked at.
    generation: u32,
    /// Rules outside of NPM's chains that lead there.
    jumps: Vec<Jump>,
    /// NPM's chains, with how many rules they have.
    chains: Vec<(Place, String, usize)>,
    /// NPM's ipsets and their types.
    ipsets: Vec<(String, String)>,
    /// What looks like NPM's and is not as NPM writes it.
    strange: Vec<Strange>,
}

/// Where a chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A table of nf_tables, which iptables-nft uses.
    Nft(OtherTable),
    /// The filter table of iptables-legacy.
    Legacy,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Nft(table) => write!(f, "table {table}"),
            Place::Legacy => f.write_str("table filter of iptables-legacy"),
        }
    }
}

/// A rule that leads to NPM's chains.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Jump {
    table: Place,
    chain: String,
    handle: u64,
    target: String,
}

/// What Weir leaves alone, for it cannot know whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Strange {
    /// It leads to NPM's chains, which cannot go as long as it is there.
    Rule(Jump),
    Chain(Place, String),
    Ipset(String),
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Jump { table, chain, handle, target } = self;
        write!(f, "{table}, chain {chain}, rule {handle}, which jumps to {target}")
    }
}

impl fmt::Display for Strange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strange::Rule(Jump { table, chain, handle, target }) => {
                write!(
                    f,
                    "rule {handle} of chain {chain} in {table} jumps to {target} and is not as NPM writes it; "
                )?;
                match table {
                    Place::Nft(table) => {
                        write!(f, "if nobody needs it: nft delete rule {table} {chain} handle {handle}")
                    }
                    Place::Legacy => write!(f, "iptables-legacy -S {chain} shows it"),
                }
            }
            Strange::Chain(table, chain) => {
                write!(f, "chain {chain} in {table} has a name that NPM does not use")
            }
            Strange::Ipset(name) => write!(f, "ipset {name} has a name that NPM does not use"),
        }
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for jump in &self.jumps {
            writeln!(f, "  jump   {jump}")?;
        }
        for (table, chain, rules) in &self.chains {
            writeln!(f, "  chain  {table}, chain {chain}, {}", counted(*rules, "rule"))?;
        }
        for (name, kind) in &self.ipsets {
            writeln!(f, "  ipset  {name}, {kind}")?;
        }
        for strange in &self.strange {
            writeln!(f, "  not touched: {strange}")?;
        }
        Ok(())
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Leftovers {
    /// Nothing that NPM made is there.
    pub fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.chains.is_empty() && self.ipsets.is_empty()
    }

    /// How many jumps, chains and ipsets, in words.
    pub fn summary(&self) -> String {
        let jumps = counted(self.jumps.len(), "jump");
        let chains = counted(self.chains.len(), "chain");
        format!("{jumps}, {chains}, {}", counted(self.ipsets.len(), "ipset"))
    }

    /// What looks like NPM's and stays, one sentence each.
    pub fn strange(&self) -> impl Iterator<Item = String> {
        self.strange.iter().map(Strange::to_string)
    }

    /// The batch that takes out jumps and chains of nf_tables: first what leads there, then the rules, then the
    /// chains.
    fn removals(&self) -> Vec<Removal> {
        let jumps = self.jumps.iter().filter_map(|Jump { table, chain, handle, .. }| match table {
            Place::Nft(table) => {
                Some(Removal::Rule { table: table.clone(), chain: chain.clone(), handle: *handle })
            }
            Place::Legacy => None,
        });
        let chains = self.chains.iter().filter_map(|(table, chain, rules)| match table {
            Place::Nft(table) => Some((table.clone(), chain.clone(), *rules)),
            Place::Legacy => None,
        });
        let rules = chains.clone().filter(|(.., rules)| *rules > 0);
        let rules = rules.map(|(table, chain, _)| Removal::Rules { table, chain });
        jumps.chain(rules).chain(chains.map(|(table, chain, _)| Removal::Chain { table, chain })).collect()
    }

    /// Something is in the table of iptables-legacy.
    fn in_legacy(&self) -> bool {
        let of_chains = self.chains.iter().map(|(table, ..)| table);
        of_chains.chain(self.jumps.iter().map(|jump| &jump.table)).any(|table| *table == Place::Legacy)
    }

    /// Adds what is NPM's of a table, and what seems to be.
    fn add(&mut self, table: &Place, chains: &[&str], rules: &[OtherRule]) {
        let like = chains.iter().copied().filter(|name| name.starts_with(ROOT));
        let (ours, strange): (Vec<&str>, Vec<&str>) = like.partition(|name| is_chain(name));
        self.strange.extend(strange.iter().map(|name| Strange::Chain(table.clone(), (*name).to_owned())));
        for rule in rules.iter().filter(|rule| !is_chain(&rule.chain)) {
            let Some(target) = rule.target().filter(|target| is_chain(target)) else { continue };
            let (chain, target) = (rule.chain.clone(), target.to_owned());
            let jump = Jump { table: table.clone(), chain, handle: rule.handle, target };
            match is_jump(rule) {
                true => self.jumps.push(jump),
                false => self.strange.push(Strange::Rule(jump)),
            }
        }
        for name in ours {
            let count = rules.iter().filter(|rule| rule.chain == name).count();
            self.chains.push((table.clone(), name.to_owned(), count));
        }
    }
}

/// A dump is old when somebody commits meanwhile: then it is taken again, so often.
const ATTEMPTS: u32 = 10;
/// The kernel lets go of ipsets a few milliseconds after the rules that looked into them.
const PAUSE: Duration = Duration::from_millis(50);
const DESTROY_ATTEMPTS: u32 = 40;

/// Looks.
///
/// # Errors
/// The kernel cannot be asked.
pub fn find(nft: &mut Nft) -> Result<Leftovers> {
    for _ in 0..ATTEMPTS {
        let generation = nft.generation()?;
        let found = look(nft, generation)?;
        if nft.generation()? == generation {
            return Ok(found);
        }
    }
    bail!("the ruleset changed during each of {ATTEMPTS} attempts to read it; try again when less happens")
}

fn look(nft: &mut Nft, generation: u32) -> Result<Leftovers> {
    let mut found = Leftovers { generation, ..Leftovers::default() };
    let chains = nft.other_chains()?;
    for family in FAMILIES {
        let table = OtherTable { family, name: FILTER.to_owned() };
        let names: Vec<&str> = chains.iter().filter(|c| c.table == table).map(|c| c.name.as_str()).collect();
        if names.iter().any(|name| name.starts_with(ROOT)) {
            let rules = nft.other_rules(&table)?;
            found.add(&Place::Nft(table), &names, &rules);
        }
    }
    if let Some(table) = legacy::read()? {
        let rules: Vec<OtherRule> = table.rules().collect();
        found.add(&Place::Legacy, &table.chains().collect::<Vec<_>>(), &rules);
    }
    for (name, kind) in nft.other_ipsets()? {
        match is_ipset(&name) {
            true => found.ipsets.push((name, kind)),
            false if name.starts_with(IPSETS) => found.strange.push(Strange::Ipset(name)),
            false => {}
        }
    }
    Ok(found)
}

/// Takes out what [`find`] finds, and returns what it was.
///
/// # Errors
/// A rule that is not NPM's leads to its chains: then nothing was changed. Or the kernel refused: what was taken out
/// before stays out, and another call does the rest.
pub fn remove(nft: &mut Nft) -> Result<Leftovers> {
    let mut attempt = 0;
    let mut lock = None;
    let found = loop {
        let found = find(nft)?;
        if found.in_legacy() && lock.is_none() {
            // what was read without it may be old
            lock = Some(legacy::lock()?);
            continue;
        }
        if let Some(rule) = found.strange.iter().find(|strange| matches!(strange, Strange::Rule(_))) {
            bail!("nothing was removed: {rule}");
        }
        attempt += 1;
        match nft.take_out(found.generation, &found.removals()) {
            Ok(()) => break found,
            Err(ApplyError::Stale { .. }) if attempt < ATTEMPTS => {}
            Err(error) => return Err(error).context("cannot remove NPM's chains; nothing was removed"),
        }
    };
    if found.in_legacy() {
        legacy::remove(&found)
            .context("cannot remove NPM's chains of iptables-legacy; its others are removed")?;
    }
    drop(lock);
    destroy(nft, &found.ipsets).with_context(|| {
        format!("{} are removed; not all ipsets are", counted(found.chains.len(), "chain"))
    })?;
    Ok(found)
}

/// Lists of sets first: they hold the others.
fn destroy(nft: &mut Nft, ipsets: &[(String, String)]) -> Result<()> {
    let mut left: Vec<_> = ipsets.iter().collect();
    left.sort_by_key(|(_, kind)| kind != "list:set");
    for attempt in 1.. {
        let mut failed = None;
        left.retain(|(name, _)| {
            let gone = nft.apply_ipset(&IpsetOp::Destroy { name: name.clone() });
            let refused = gone.is_err();
            failed = gone.err().or(failed.take());
            refused
        });
        match failed {
            None => break,
            Some(error) if attempt == DESTROY_ATTEMPTS => {
                let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
                return Err(error).with_context(|| {
                    format!("rules or ipsets of others use {}; nothing of them was changed", names.join(", "))
                });
            }
            Some(_) => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

/// Whether Weir enforces here, so that pods are not open without NPM's rules.
///
/// # Errors
/// The kernel cannot be asked.
pub fn weir_enforces(nft: &mut Nft) -> Result<bool> {
    for (family, name) in TABLES {
        if nft.chains(family, name)?.is_some_and(|chains| chains.contains_key("forward")) {
            return Ok(true);
        }
    }
    Ok(false)
}
