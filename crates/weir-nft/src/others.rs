//! What others made: their chains and rules, seen as far as they can be understood, and taken out one by one.
//!
//! ```text
//!   other_tables(), other_chains(), has_chain()     names, of all families
//!   other_rules(table)  where a table's rules jump to, and their handles
//!   take_out(gen, ..)   rules, and whole chains, in one batch: all or nothing, in that generation only
//! ```
//!
//! Nothing is decided here: whose a chain is, and whether it may go, is the caller's to know. What is not named in
//! [`take_out`](Nft::take_out) is not touched, not even its counters.

use std::fmt;
use std::io;

use nix::errno::Errno;
use weir_dataplane::model::{Expr, Verdict};

use crate::error::{ApplyError, DumpError, Refusal};
use crate::socket::{self, Outcome, Received, Socket};
use crate::wire::{
    BATCH_BEGIN, BATCH_END, BATCH_GENID, F_ACK, F_DUMP, Kind, NLMSG_ERROR, SUBSYS_NFTABLES, attrs, be32,
    begin_message, end_message, messages, put, string,
};
use crate::{Nft, REFUSALS, dump, rules};

/// A table of whatever family, by whomever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherTable {
    /// `NFPROTO_*`: 1 inet, 2 ip, 3 arp, 5 netdev, 7 bridge, 10 ip6.
    pub family: u8,
    /// Its name.
    pub name: String,
}

impl fmt::Display for OtherTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            other => return write!(f, "family {other} {}", self.name),
        };
        write!(f, "{family} {}", self.name)
    }
}

/// A chain of such a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherChain {
    /// The table that it is in.
    pub table: OtherTable,
    /// Its name.
    pub name: String,
    /// Packets come to it by a hook, and not only by jumps.
    pub hooked: bool,
}

/// A rule of such a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherRule {
    /// The chain that it is in.
    pub chain: String,
    /// The kernel's number for it, unique in its table.
    pub handle: u64,
    /// What it asks and does, in its order.
    pub terms: Vec<Term>,
}

impl OtherRule {
    /// The chain that it jumps or goes to, if it does so for every packet that it is about.
    pub fn target(&self) -> Option<&str> {
        self.terms.iter().find_map(|term| match term {
            Term::Known(Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain.as_str()),
            _ => None,
        })
    }
}

/// A part of such a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// One that Weir could have written.
    Known(Expr),
    /// An extension of iptables that matches (`-m name`), with its own data.
    Match {
        /// Such as `conntrack`.
        name: String,
        /// Which layout the data has.
        revision: u32,
        /// As the extension has it.
        info: Vec<u8>,
    },
    /// Anything else, by the name that the kernel has for it, such as `counter`.
    Other(String),
}

/// Something of others that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// One rule.
    Rule {
        /// The table.
        table: OtherTable,
        /// The chain.
        chain: String,
        /// The rule.
        handle: u64,
    },
    /// All rules of a chain.
    Rules {
        /// The table.
        table: OtherTable,
        /// The chain.
        chain: String,
    },
    /// A chain that has no rules any more, and to which none jumps.
    Chain {
        /// The table.
        table: OtherTable,
        /// The chain.
        chain: String,
    },
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Rule { table, chain, handle } => {
                write!(f, "delete rule {handle} of chain {chain} in table {table}")
            }
            Removal::Rules { table, chain } => write!(f, "flush chain {chain} in table {table}"),
            Removal::Chain { table, chain } => write!(f, "delete chain {chain} from table {table}"),
        }
    }
}

impl Nft {
    /// The names of all tables, whosever they are.
    pub fn other_tables(&mut self) -> Result<Vec<OtherTable>, DumpError> {
        let mut tables = Vec::new();
        self.list("tables", Kind::GetTable, Kind::NewTable, None, &mut tables, |family, attributes, all| {
            all.push(OtherTable { family, name: attributes.value_of(1).map(string).unwrap_or_default() });
        })?;
        Ok(tables)
    }

    /// Whether a table has a chain of this name. The cost does not depend on how many it has.
    pub fn has_chain(&mut self, table: &OtherTable, chain: &str) -> Result<bool, DumpError> {
        let outcome = self.socket.request(
            |out, seq| {
                let start = begin_message(out, Kind::GetChain.message_type(), 0, seq, table.family, 0);
                put_text(out, 1, &table.name);
                put_text(out, 3, chain);
                end_message(out, start);
            },
            |_| {},
        )?;
        match outcome {
            Outcome::Done => Ok(true),
            Outcome::Refused(Errno::ENOENT) | Outcome::Interrupted => Ok(false),
            Outcome::Refused(errno) => {
                let what = format!("chain {chain} in table {table}");
                Err(DumpError::Refused { what, source: errno.into() })
            }
        }
    }

    /// The names of all chains, whosever they are: the cost is that of their headers, tens of milliseconds where
    /// there are thousands.
    pub fn other_chains(&mut self) -> Result<Vec<OtherChain>, DumpError> {
        let mut chains = Vec::new();
        self.list("chains", Kind::GetChain, Kind::NewChain, None, &mut chains, |family, attributes, all| {
            let text = |kind| attributes.clone().value_of(kind).map(string).unwrap_or_default();
            let table = OtherTable { family, name: text(1) };
            all.push(OtherChain { table, name: text(3), hooked: attributes.clone().value_of(4).is_some() });
        })?;
        Ok(chains)
    }

    /// The rules of a table, in their order within each chain. None, if there is no such table.
    pub fn other_rules(&mut self, table: &OtherTable) -> Result<Vec<OtherRule>, DumpError> {
        let mut all = Vec::new();
        let none = rules::Ipsets::new();
        self.list(
            &format!("the rules of table {table}"),
            Kind::GetRule,
            Kind::NewRule,
            Some(table),
            &mut all,
            |family, attributes, all| {
                let value = |kind| attributes.clone().value_of(kind);
                // some kernels give more than was asked for
                if family != table.family || value(1).map(string).as_deref() != Some(&table.name) {
                    return;
                }
                let terms = attrs(value(4).unwrap_or_default()).map(|(_, element)| {
                    let name = attrs(element).value_of(1).map(string).unwrap_or_default();
                    let data = attrs(element).value_of(2).unwrap_or_default();
                    match (rules::decode_one(&name, data, &none), name.as_str()) {
                        (Some(expr), _) => Term::Known(expr),
                        (None, "match") => Term::Match {
                            name: attrs(data).value_of(1).map(string).unwrap_or_default(),
                            revision: attrs(data).value_of(2).and_then(be32).unwrap_or_default(),
                            info: attrs(data).value_of(3).unwrap_or_default().to_vec(),
                        },
                        (None, _) => Term::Other(name),
                    }
                });
                // of a protocol, where an extension of iptables wants to know it
                let compat = value(5).map(|_| Term::Other("compat".into()));
                all.push(OtherRule {
                    chain: value(2).map(string).unwrap_or_default(),
                    handle: value(3).and_then(be64).unwrap_or_default(),
                    terms: terms.chain(compat).collect(),
                });
            },
        )?;
        Ok(all)
    }

    /// Takes things out, all in one batch or none, if the ruleset is still of the generation in which they were seen.
    pub fn take_out(&mut self, generation: u32, removals: &[Removal]) -> Result<(), ApplyError> {
        if removals.is_empty() {
            return Ok(());
        }
        let socket = &mut self.socket;
        let first = socket.take_seqs(removals.len() as u32 + 2);
        let bytes = batch(generation, first, removals);
        socket.send(&bytes).map_err(|errno| ApplyError::Io(errno.into()))?;
        let (mut acknowledged, mut refusals) = (false, Vec::new());
        loop {
            let datagram = match socket.receive().map_err(io::Error::from)? {
                Received::Nothing => break,
                Received::Lost => continue,
                Received::Datagram(datagram) => datagram,
            };
            let ours = first..first + removals.len() as u32 + 2;
            for message in messages(datagram) {
                if message.kind != NLMSG_ERROR || !ours.contains(&message.seq) {
                    continue;
                }
                match socket::error_of(&message) {
                    None => acknowledged |= message.seq == first + removals.len() as u32,
                    Some(Errno::ERESTART) => return Err(ApplyError::Stale { generation }),
                    Some(errno) if refusals.len() < REFUSALS => {
                        let about = removals.get((message.seq - first).wrapping_sub(1) as usize);
                        refusals.push(Refusal {
                            object: about.map_or_else(|| "commit".to_owned(), Removal::to_string),
                            name: None,
                            errno: errno as i32,
                            detail: socket::extended(&message).text,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        let mut refusals = refusals.into_iter();
        match refusals.next() {
            Some(first) => Err(ApplyError::Refused { first, others: refusals.collect() }),
            None if acknowledged => Ok(()),
            None => Err(ApplyError::Uncertain),
        }
    }

    /// A dump of one kind of object, of all tables or of one; again, if something changed meanwhile.
    fn list<T>(
        &mut self,
        what: &str,
        get: Kind,
        new: Kind,
        table: Option<&OtherTable>,
        all: &mut Vec<T>,
        each: impl Fn(u8, crate::wire::Attrs<'_>, &mut Vec<T>),
    ) -> Result<(), DumpError> {
        for attempt in 0..dump::ATTEMPTS {
            std::thread::sleep(dump::pause(attempt));
            all.clear();
            match ask(&mut self.socket, get, new, table, |family, attributes| each(family, attributes, all))?
            {
                Outcome::Done | Outcome::Refused(Errno::ENOENT) => return Ok(()),
                Outcome::Interrupted => {}
                Outcome::Refused(errno) => {
                    return Err(DumpError::Refused { what: what.to_owned(), source: errno.into() });
                }
            }
        }
        Err(DumpError::Unstable { table: what.to_owned(), attempts: dump::ATTEMPTS })
    }
}

fn ask(
    socket: &mut Socket,
    get: Kind,
    new: Kind,
    table: Option<&OtherTable>,
    mut each: impl FnMut(u8, crate::wire::Attrs<'_>),
) -> nix::Result<Outcome> {
    socket.request(
        |out, seq| {
            // family 0: of all
            let family = table.map_or(0, |table| table.family);
            let start = begin_message(out, get.message_type(), F_DUMP, seq, family, 0);
            if let Some(table) = table {
                put_text(out, 1, &table.name);
            }
            end_message(out, start);
        },
        |message| {
            if message.is(new) {
                each(message.family().unwrap_or_default(), message.attrs());
            }
        },
    )
}

fn batch(generation: u32, first: u32, removals: &[Removal]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * (removals.len() + 2));
    let begin = begin_message(&mut out, BATCH_BEGIN, 0, first, 0, SUBSYS_NFTABLES);
    put(&mut out, BATCH_GENID, &generation.to_be_bytes());
    end_message(&mut out, begin);
    for (seq, removal) in (first + 1..).zip(removals) {
        let (kind, table, chain) = match removal {
            Removal::Rule { table, chain, .. } | Removal::Rules { table, chain } => {
                (Kind::DelRule, table, chain)
            }
            Removal::Chain { table, chain } => (Kind::DelChain, table, chain),
        };
        // one acknowledgement, of the last
        let flags = if seq == first + removals.len() as u32 { F_ACK } else { 0 };
        let start = begin_message(&mut out, kind.message_type(), flags, seq, table.family, 0);
        put_text(&mut out, 1, &table.name);
        // of rules the chain is attribute 2, a chain's own name is 3
        put_text(&mut out, if kind == Kind::DelRule { 2 } else { 3 }, chain);
        if let Removal::Rule { handle, .. } = removal {
            put(&mut out, 3, &handle.to_be_bytes());
        }
        end_message(&mut out, start);
    }
    let last = first + removals.len() as u32 + 1;
    let end = begin_message(&mut out, BATCH_END, 0, last, 0, SUBSYS_NFTABLES);
    end_message(&mut out, end);
    out
}

fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    put(out, kind, &value);
}

fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
}
