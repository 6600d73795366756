//! A table of iptables-legacy (x_tables, `/proc/net/ip_tables_names`): read, and written back with less in it.
//!
//! ```text
//!   hook_entry[h]                      jump: the place of the first rule
//!      │                                  │
//!      rule rule .. policy │ ... │ ERROR "chain" │ rule rule .. return │ ... │ ERROR "ERROR"
//!                    underflow[h]
//! ```
//!
//! All rules of a table are one blob, and a change is the whole blob at once: what packets meet is the old one or the
//! new one. Everything that is not taken out keeps its bytes and its counters; only places move, and with them
//! what points to places. Nothing tells the kernel which state a blob was made from (but for the number of rules), so
//! whoever writes one holds iptables' lock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use weir_dataplane::model::{Expr, Verdict};

use crate::ffi;
use crate::others::{OtherRule, Term};
use crate::wire::{string, u32_at};

/// Which tables there are. Asked for by name, the kernel would make one that is not there.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// `struct ipt_getinfo`: name, which hooks, where each begins, where its policy is, how many entries, how many bytes.
const INFO: usize = 84;
const NAME: usize = 32;
const HOOKS: usize = 5;
/// `struct ipt_entry`: `struct ipt_ip`, and where in the rest its parts are.
const IP: usize = 84;
const TARGET_OFFSET: usize = 88;
const NEXT_OFFSET: usize = 90;
const ENTRY: usize = 112;
/// `struct xt_entry_match`, `struct xt_entry_target`: length, name, revision, data.
const PART: usize = 32;
/// `IPT_F_GOTO` among the flags of `struct ipt_ip`.
const FLAGS: usize = 82;
const GOTO: u8 = 2;

const BUILT_IN: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
const END: &str = "ERROR";

/// A table as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    name: String,
    valid_hooks: u32,
    hooks: [u32; HOOKS],
    policies: [u32; HOOKS],
    entries: Vec<Entry>,
}

/// A rule, the head of a chain, or the end of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Its place in the blob.
    at: u32,
    bytes: Vec<u8>,
    chain: String,
    /// It is the head of the chain (or the table's end), or the policy at a chain's end.
    fixed: bool,
}

impl Entry {
    fn u16_at(&self, at: usize) -> usize {
        self.bytes.get(at..at + 2).map_or(0, |b| usize::from(u16::from_ne_bytes([b[0], b[1]])))
    }

    fn target(&self) -> &[u8] {
        self.bytes.get(self.u16_at(TARGET_OFFSET)..).unwrap_or_default()
    }

    fn target_name(&self) -> String {
        self.target().get(2..PART - 1).map(string).unwrap_or_default()
    }

    /// The verdict of a rule without a target of its own: a place if it is not negative.
    fn verdict(&self) -> Option<i32> {
        let standard = self.target_name().is_empty();
        standard.then(|| u32_at(self.target(), PART)).flatten().map(|verdict| verdict as i32)
    }

    /// Where it jumps to. A rule that only counts has the place after itself there.
    fn jump(&self) -> Option<u32> {
        let to = u32::try_from(self.verdict()?).ok()?;
        (to != self.at + self.bytes.len() as u32).then_some(to)
    }

    fn matches(&self) -> impl Iterator<Item = Term> {
        let end = self.u16_at(TARGET_OFFSET).min(self.bytes.len());
        let mut rest = self.bytes.get(ENTRY..end).unwrap_or_default();
        std::iter::from_fn(move || {
            let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let part = rest.get(..len).filter(|part| part.len() >= PART)?;
            rest = &rest[len..];
            let name = string(&part[2..PART - 1]);
            Some(Term::Match { name, revision: part[PART - 1].into(), info: part[PART..].to_vec() })
        })
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's table of iptables-legacy has {what}"))
}

impl Legacy {
    /// Reads a table of IPv4. `None`: there is none of that name.
    pub fn read(name: &str) -> io::Result<Option<Legacy>> {
        match std::fs::read_to_string(NAMES) {
            Ok(names) if names.lines().any(|line| line == name) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        // any socket of IPv4 does, and this one needs no CAP_NET_RAW
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..10 {
            let mut info = named(name);
            info.resize(INFO, 0);
            ffi::get_ip_option(socket.as_fd(), GET_INFO, &mut info)?;
            let number = |at| u32_at(&info, at).unwrap_or_default();
            let size = number(80);
            let mut blob = named(name);
            blob.extend_from_slice(&size.to_ne_bytes());
            blob.resize(NAME + 8 + size as usize, 0);
            match ffi::get_ip_option(socket.as_fd(), GET_ENTRIES, &mut blob) {
                Ok(()) => {}
                // it has another size by now
                Err(nix::errno::Errno::EAGAIN) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let hooks = std::array::from_fn(|hook| number(NAME + 4 + 4 * hook));
            let policies = std::array::from_fn(|hook| number(NAME + 4 + 4 * (HOOKS + hook)));
            return Legacy::parse(name, number(NAME), hooks, policies, &blob[NAME + 8..]).map(Some);
        }
        Err(io::Error::other("the table of iptables-legacy changed during each of 10 attempts to read it"))
    }

    fn parse(
        name: &str,
        valid_hooks: u32,
        hooks: [u32; HOOKS],
        policies: [u32; HOOKS],
        blob: &[u8],
    ) -> io::Result<Legacy> {
        let valid = |hook: &usize| valid_hooks & (1 << hook) != 0;
        let mut entries = Vec::new();
        let (mut at, mut chain) = (0, String::new());
        while at < blob.len() {
            let len = blob.get(at + NEXT_OFFSET..at + NEXT_OFFSET + 2).ok_or_else(|| odd("a torn rule"))?;
            let len = usize::from(u16::from_ne_bytes([len[0], len[1]]));
            let bytes =
                blob.get(at..at + len).filter(|_| len >= ENTRY + PART).ok_or_else(|| odd("a torn rule"))?;
            let mut entry =
                Entry { at: at as u32, bytes: bytes.to_vec(), chain: String::new(), fixed: false };
            if let Some(hook) = (0..HOOKS).filter(valid).find(|hook| hooks[*hook] == entry.at) {
                chain = BUILT_IN[hook].to_owned();
            }
            if entry.target_name() == END {
                chain = entry.target().get(PART..PART + 30).map(string).unwrap_or_default();
                entry.fixed = true;
            }
            entry.fixed |= (0..HOOKS).filter(valid).any(|hook| policies[hook] == entry.at);
            entry.chain.clone_from(&chain);
            entries.push(entry);
            at += len;
        }
        // the last of each chain of a user is its return, which is not a rule
        for place in 1..entries.len() {
            let ends = entries[place].target_name() == END && !entries[place - 1].fixed;
            let own = !BUILT_IN.contains(&entries[place - 1].chain.as_str());
            entries[place - 1].fixed |= ends && own;
        }
        if !entries.last().is_some_and(|last| last.target_name() == END && last.chain == END) {
            return Err(odd("no end"));
        }
        Ok(Legacy { name: name.to_owned(), valid_hooks, hooks, policies, entries })
    }

    /// The chains that somebody made, in the table's order; those that hooks call are not among them.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        let heads = self.entries.iter().filter(|entry| entry.fixed && entry.target_name() == END);
        heads.map(|entry| entry.chain.as_str()).filter(|chain| *chain != END)
    }

    /// All rules, without policies. The handle is the rule's place, and holds for this value only.
    pub fn rules(&self) -> impl Iterator<Item = OtherRule> {
        self.entries.iter().filter(|entry| !entry.fixed).map(|entry| {
            let mut terms: Vec<Term> = Vec::new();
            if entry.bytes[..IP].iter().enumerate().any(|(at, b)| *b != 0 && (at, *b) != (FLAGS, GOTO)) {
                terms.push(Term::Other("addresses, interfaces or a protocol".into()));
            }
            terms.extend(entry.matches());
            match entry.jump().and_then(|to| self.chain_at(to)) {
                Some(chain) if entry.bytes[FLAGS] & GOTO != 0 => {
                    terms.push(Term::Known(Expr::Verdict(Verdict::Goto(chain))));
                }
                Some(chain) => terms.push(Term::Known(Expr::Verdict(Verdict::Jump(chain)))),
                None => terms.push(Term::Other(format!("target {}", entry.target_name()))),
            }
            OtherRule { chain: entry.chain.clone(), handle: entry.at.into(), terms }
        })
    }

    fn chain_at(&self, at: u32) -> Option<String> {
        let place = self.entries.binary_search_by_key(&at, |entry| entry.at).ok()?;
        Some(self.entries[place].chain.clone())
    }

    /// The same without these chains, and without these rules by their handles. An error, if something that stays
    /// leads to what goes.
    pub fn without(&self, chains: &BTreeSet<String>, rules: &BTreeSet<u64>) -> io::Result<Less> {
        let goes = |entry: &Entry| {
            chains.contains(&entry.chain) && !BUILT_IN.contains(&entry.chain.as_str())
                || !entry.fixed && rules.contains(&entry.at.into())
        };
        // where what stays will be
        let mut moved = BTreeMap::new();
        let (mut kept, mut at) = (Vec::new(), 0);
        for (number, entry) in self.entries.iter().enumerate().filter(|(_, entry)| !goes(entry)) {
            kept.push(number);
            moved.insert(entry.at, at);
            at += entry.bytes.len() as u32;
        }
        let mut table = self.clone();
        table.entries.retain(|entry| !goes(entry));
        for entry in &mut table.entries {
            let new = moved[&entry.at];
            let verdict = match (entry.verdict(), entry.jump()) {
                (_, Some(to)) => Some(*moved.get(&to).ok_or_else(|| {
                    odd(&format!("a rule in chain {} that leads to what is to go", entry.chain))
                })?),
                (Some(0..), None) => Some(new + entry.bytes.len() as u32),
                _ => None,
            };
            if let Some(verdict) = verdict {
                let place = entry.u16_at(TARGET_OFFSET) + PART;
                entry.bytes[place..place + 4].copy_from_slice(&verdict.to_ne_bytes());
            }
            entry.at = new;
        }
        // what a hook begins with may go: then it begins with the next that stays
        let next = |old: u32| moved.range(old..).next().map_or(u32::MAX, |(_, new)| *new);
        table.hooks = self.hooks.map(next);
        table.policies = self.policies.map(next);
        Ok(Less { table, kept, before: self.entries.len() })
    }
}

/// A table with less in it than was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Less {
    table: Legacy,
    /// The numbers that its entries had before, for their counters.
    kept: Vec<usize>,
    before: usize,
}

impl Less {
    /// Writes it in the place of the one that it was made from. The caller holds iptables' lock since before that was
    /// read.
    pub fn write(&self) -> io::Result<()> {
        let Less { table, kept, before } = self;
        let blob: Vec<u8> = table.entries.iter().flat_map(|entry| entry.bytes.iter().copied()).collect();
        let mut head = named(&table.name);
        let numbers = [table.valid_hooks, table.entries.len() as u32, blob.len() as u32];
        for number in numbers.into_iter().chain(table.hooks).chain(table.policies) {
            head.extend_from_slice(&number.to_ne_bytes());
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let old = ffi::replace_ip_table(socket.as_fd(), head, *before, &blob)?;
        // the kernel counts anew, from what it is given now
        let mut counters = named(&table.name);
        counters.extend_from_slice(&(kept.len() as u32).to_ne_bytes());
        counters.extend_from_slice(&[0; 4]);
        for number in kept {
            let at = number * ffi::COUNTER;
            counters.extend_from_slice(old.get(at..at + ffi::COUNTER).unwrap_or(&[0; ffi::COUNTER]));
        }
        ffi::add_ip_counters(socket.as_fd(), &counters)?;
        Ok(())
    }
}

fn named(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; NAME];
    let len = name.len().min(NAME - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}
