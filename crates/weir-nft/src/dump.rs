//! The kernel's state as a [`Table`], consistent: all of one generation.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_dataplane::model::{Chain, Family, Hook, HookPoint, SetDecl, Table};

use crate::elements::Collector;
use crate::error::DumpError;
use crate::rules::Ipsets;
use crate::socket::{Outcome, Socket};
use crate::wire::{Attrs, F_DUMP, Kind, attrs, be32, begin_message, end_message, put, string};
use crate::{ipset, kernel};
use nix::errno::Errno;

/// A dump takes milliseconds, and the pauses add up to 190 ms; who changes the ruleset all the time
/// has the last word.
pub(crate) const ATTEMPTS: u32 = 20;

/// How long to wait before an attempt (0 is the first): the kernel may be moving elements about.
pub(crate) fn pause(attempt: u32) -> Duration {
    Duration::from_millis(attempt.into())
}

/// `NFT_TABLE_F_DORMANT`: the table's chains are not called.
const DORMANT: u32 = 1;

/// How an attempt can fail.
pub(crate) enum Failure {
    /// Something changed meanwhile.
    Changed,
    /// For good.
    Error(DumpError),
}

impl From<nix::Error> for Failure {
    fn from(errno: nix::Error) -> Failure {
        Failure::Error(DumpError::Io(errno.into()))
    }
}

/// The current generation of the ruleset.
pub(crate) fn generation(socket: &mut Socket) -> nix::Result<u32> {
    // Answers are lost only when the queue is full, and it was emptied just before: three is plenty.
    for _ in 0..3 {
        let mut generation = None;
        let outcome = socket.request(
            |out, seq| {
                let start = begin_message(out, Kind::GetGen.message_type(), 0, seq, 0, 0);
                end_message(out, start);
            },
            |message| {
                if message.is(Kind::NewGen) {
                    generation = message.attrs().value_of(1).and_then(be32);
                }
            },
        )?;
        match (outcome, generation) {
            (Outcome::Refused(errno), _) => return Err(errno),
            (_, Some(generation)) => return Ok(generation),
            _ => {}
        }
    }
    Err(Errno::EPROTO)
}

/// One attempt to read a table; `None` if there is none of that name.
pub(crate) fn table(socket: &mut Socket, family: Family, name: &str) -> Result<Option<Table>, Failure> {
    let read = with_chains(socket, family, name, |reader| {
        let decls = reader.sets()?;
        let mut sets = BTreeMap::new();
        for (set, decl) in decls {
            let elements = reader.elements(&set, decl)?.finish().ok_or(Failure::Changed)?;
            sets.insert(set, elements);
        }
        Ok(sets)
    })?;
    Ok(read.map(|(chains, sets)| Table { family, name: name.into(), sets, chains }))
}

/// The same of its chains with their rules alone.
pub(crate) fn chains(socket: &mut Socket, family: Family, name: &str) -> Result<Option<Chains>, Failure> {
    Ok(with_chains(socket, family, name, |_| Ok(()))?.map(|(chains, ())| chains))
}

/// A table's chains by name.
type Chains = BTreeMap<String, Chain>;

/// Reads chains with their rules, and more, all of one generation.
fn with_chains<T>(
    socket: &mut Socket,
    family: Family,
    name: &str,
    more: impl FnOnce(&mut Reader<'_>) -> Result<T, Failure>,
) -> Result<Option<(Chains, T)>, Failure> {
    let before = generation(socket)?;
    let ipsets = ipsets(socket, family)?;
    let mut reader = Reader { socket, family: kernel::family(family), table: name };
    let Some(flags) = reader.flags()? else { return Ok(None) };
    let mut chains = reader.chains(flags & DORMANT != 0)?;
    reader.rules(&mut chains, &ipsets)?;
    let more = more(&mut reader)?;
    if generation(socket)? != before {
        return Err(Failure::Changed);
    }
    Ok(Some((chains, more)))
}

/// Rules have ipsets by their index; in other families there is no match on them.
fn ipsets(socket: &mut Socket, family: Family) -> Result<Ipsets, Failure> {
    Ok(match family {
        Family::Ip | Family::Ip6 => ipset::indices(socket)?.into_iter().map(|(name, i)| (i, name)).collect(),
        Family::Inet | Family::Bridge => Ipsets::new(),
    })
}

struct Reader<'a> {
    socket: &'a mut Socket,
    family: u8,
    table: &'a str,
}

impl Reader<'_> {
    /// Asks for objects; the table's name is attribute 1 in the requests and answers of every kind.
    fn ask(
        &mut self,
        get: Kind,
        new: Kind,
        flags: u16,
        set: Option<&str>,
        mut object: impl FnMut(Attrs<'_>),
    ) -> nix::Result<Outcome> {
        let (family, table) = (self.family, self.table);
        self.socket.request(
            |out, seq| {
                let start = begin_message(out, get.message_type(), flags, seq, family, 0);
                put_name(out, 1, table);
                if let Some(set) = set {
                    put_name(out, 2, set);
                }
                end_message(out, start);
            },
            |message| {
                // Older kernels give the chains of all tables.
                if message.is(new) && message.attrs().value_of(1).is_some_and(|name| string(name) == table) {
                    object(message.attrs());
                }
            },
        )
    }

    /// A dump of one kind of object.
    fn dump(
        &mut self,
        get: Kind,
        new: Kind,
        set: Option<&str>,
        object: impl FnMut(Attrs<'_>),
    ) -> Result<(), Failure> {
        match self.ask(get, new, F_DUMP, set, object)? {
            Outcome::Done => Ok(()),
            // The table or the set went away between two questions.
            Outcome::Interrupted | Outcome::Refused(Errno::ENOENT) => Err(Failure::Changed),
            Outcome::Refused(errno) => Err(self.refused(set, errno)),
        }
    }

    fn refused(&self, set: Option<&str>, errno: Errno) -> Failure {
        let set = set.map(|set| format!("set {set} in ")).unwrap_or_default();
        let what = format!("{set}table {}", self.table);
        Failure::Error(DumpError::Refused { what, source: errno.into() })
    }

    fn flags(&mut self) -> Result<Option<u32>, Failure> {
        let mut flags = None;
        let outcome = self.ask(Kind::GetTable, Kind::NewTable, 0, None, |attributes| {
            flags = Some(attributes.value_of(2).and_then(be32).unwrap_or(0));
        })?;
        match (outcome, flags) {
            (Outcome::Refused(Errno::ENOENT), _) => Ok(None),
            (Outcome::Refused(errno), _) => Err(self.refused(None, errno)),
            (Outcome::Done, Some(flags)) => Ok(Some(flags)),
            (Outcome::Interrupted, _) | (Outcome::Done, None) => Err(Failure::Changed),
        }
    }

    fn chains(&mut self, dormant: bool) -> Result<BTreeMap<String, Chain>, Failure> {
        let mut chains = BTreeMap::new();
        self.dump(Kind::GetChain, Kind::NewChain, None, |attributes| {
            let (name, hook) = chain(attributes, dormant);
            chains.insert(name, Chain { hook, rules: Vec::new() });
        })?;
        Ok(chains)
    }

    fn rules(&mut self, chains: &mut BTreeMap<String, Chain>, ipsets: &Ipsets) -> Result<(), Failure> {
        let mut lost = false;
        self.dump(Kind::GetRule, Kind::NewRule, None, |attributes| {
            let (chain, rule) = crate::rules::decode(attributes, ipsets);
            match chains.get_mut(&chain) {
                Some(chain) => chain.rules.push(rule),
                None => lost = true,
            }
        })?;
        if lost { Err(Failure::Changed) } else { Ok(()) }
    }

    fn sets(&mut self) -> Result<Vec<(String, SetDecl)>, Failure> {
        let mut sets = Vec::new();
        self.dump(Kind::GetSet, Kind::NewSet, None, |attributes| sets.push(crate::decl::decode(attributes)))?;
        Ok(sets)
    }

    fn elements(&mut self, set: &str, decl: SetDecl) -> Result<Collector, Failure> {
        let mut elements = Collector::new(decl);
        self.dump(Kind::GetSetElem, Kind::NewSetElem, Some(set), |attributes| elements.add(attributes))?;
        Ok(elements)
    }
}

/// The kernel takes names of 255 bytes and answers ENOENT, ERANGE or EINVAL to others.
fn put_name(out: &mut Vec<u8>, kind: u16, name: &str) {
    let mut value = name.as_bytes()[..name.len().min(4096)].to_vec();
    value.push(0);
    put(out, kind, &value);
}

/// The attributes of a chain: its name, and its hook.
fn chain(attributes: Attrs<'_>, dormant: bool) -> (String, Option<Hook>) {
    let mut name = String::new();
    let mut hook = None;
    let mut foreign = dormant;
    for (kind, value) in attributes {
        match kind {
            3 => name = string(value),
            4 => {
                let number = |kind| attrs(value).value_of(kind).and_then(be32).unwrap_or_default();
                hook = Some((number(1), number(2) as i32));
                // The hook of one device or of several.
                foreign |= attrs(value).any(|(kind, _)| kind > 2);
            }
            5 => foreign |= be32(value) != Some(kernel::POLICY_ACCEPT),
            7 => foreign |= string(value) != "filter",
            _ => {}
        }
    }
    let hook = hook.map(|(point, priority)| Hook {
        point: if foreign { HookPoint::Foreign(point) } else { kernel::hook_point(point) },
        priority,
    });
    (name, hook)
}
