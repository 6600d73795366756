//! A packet's way through a table, expression by expression.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own and uses a part")]

pub mod costs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;

use weir_dataplane::ipset::{Element, Ipset};
use weir_dataplane::model::{
    Bytes, CmpOp, CtKey, ElementData, Expr, IpsetKey, LookupDest, MetaKey, PayloadBase, Rule, Set, Table,
    Verdict,
};

/// The first packet of a connection.
#[derive(Debug, Clone)]
pub struct Packet {
    pub iif: String,
    pub oif: String,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// Ipsets by name.
pub type Ipsets = BTreeMap<String, Ipset>;

/// Whether a base chain lets it pass.
pub fn passes(table: &Table, chain: &str, packet: &Packet) -> bool {
    passes_and_is_told(table, chain, packet).0
}

/// The same, where rules look into ipsets.
pub fn passes_with(table: &Table, ipsets: &Ipsets, chain: &str, packet: &Packet) -> bool {
    passes_at(table, table, usize::MAX, ipsets, chain, packet).0
}

/// Whether a base chain lets it pass, and which directions are told of it as denied: `egress`, `audit_ingress`.
pub fn passes_and_is_told(table: &Table, chain: &str, packet: &Packet) -> (bool, Vec<String>) {
    let (ipsets, lookups, told) = Default::default();
    let state = State { before: table, after: table, moment: usize::MAX, ipsets: &ipsets, lookups, told };
    let passes = !matches!(walk(&state, chain, packet, 0), Some(Verdict::Drop));
    let told = state.told.into_inner().into_iter().filter(|prefix| !prefix.starts_with("allowed_"));
    let direction = |prefix: String| prefix.rsplit_once('_').expect("it ends with an id").0.to_owned();
    (passes, told.map(direction).collect())
}

/// Whether a base chain lets it pass while `before` becomes `after`: rules are those of `before`, in which
/// it began, lookups are answered by `after` from the one with this number on. Also how many there were.
pub fn passes_at(
    before: &Table,
    after: &Table,
    moment: usize,
    ipsets: &Ipsets,
    chain: &str,
    packet: &Packet,
) -> (bool, usize) {
    let (lookups, told) = Default::default();
    let state = State { before, after, moment, ipsets, lookups, told };
    // the policy of base chains is accept
    let passes = !matches!(walk(&state, chain, packet, 0), Some(Verdict::Drop));
    (passes, state.lookups.get())
}

/// The prefixes of what is logged on the way, whatever chance and rates say.
#[allow(dead_code, reason = "one of the tests asks for it")]
pub fn told(table: &Table, chain: &str, packet: &Packet) -> Vec<String> {
    let (ipsets, lookups, told) = (&Ipsets::new(), Cell::new(0), RefCell::default());
    let state = State { before: table, after: table, moment: usize::MAX, ipsets, lookups, told };
    walk(&state, chain, packet, 0);
    state.told.into_inner()
}

struct State<'a> {
    before: &'a Table,
    after: &'a Table,
    moment: usize,
    ipsets: &'a Ipsets,
    lookups: Cell<usize>,
    /// What rules would log, if no limit holds them back.
    told: RefCell<Vec<String>>,
}

impl State<'_> {
    /// `None`: a map that has lost its elements.
    fn set(&self, name: &str) -> Option<&Set> {
        let number = self.lookups.replace(self.lookups.get() + 1);
        let now = if number < self.moment { self.before } else { self.after };
        // the kernel keeps what somebody may still look at, but for the elements of maps
        match now.sets.get(name) {
            Some(set) => Some(set),
            None => self.before.sets.get(name).filter(|set| set.decl.data.is_none()),
        }
    }
}

fn walk(state: &State<'_>, chain: &str, packet: &Packet, depth: usize) -> Option<Verdict> {
    assert!(depth < 16, "the kernel allows 16 jumps");
    // a chain that is newer than the packet has no rules for it
    for rule in state.before.chains.get(chain).iter().flat_map(|chain| &chain.rules) {
        match evaluate(state, rule, packet) {
            None => {}
            Some(Verdict::Return) => return None,
            Some(Verdict::Jump(next)) => match walk(state, &next, packet, depth + 1) {
                None => {}
                end => return end,
            },
            Some(Verdict::Goto(next)) => return walk(state, &next, packet, depth + 1),
            end => return end,
        }
    }
    None
}

fn evaluate(state: &State<'_>, rule: &Rule, packet: &Packet) -> Option<Verdict> {
    let mut registers = [0u8; 64];
    let v4 = packet.source.is_ipv4();
    for expr in &rule.exprs {
        match expr {
            Expr::Meta { key, dreg } => {
                let value = match key {
                    MetaKey::IifName => name(&packet.iif),
                    MetaKey::OifName => name(&packet.oif),
                    MetaKey::NfProto => vec![if v4 { 2 } else { 10 }],
                    MetaKey::L4Proto => vec![packet.protocol],
                    MetaKey::Random => vec![0; 4],
                };
                load(&mut registers, dreg.0, &value);
            }
            Expr::Payload { base, offset, len, dreg } => {
                let bytes = |a: IpAddr| match a {
                    IpAddr::V4(a) => a.octets().to_vec(),
                    IpAddr::V6(a) => a.octets().to_vec(),
                };
                let value = match (base, offset, len, v4) {
                    (PayloadBase::Network, 12, 4, true) | (PayloadBase::Network, 8, 16, false) => {
                        bytes(packet.source)
                    }
                    (PayloadBase::Network, 16, 4, true) | (PayloadBase::Network, 24, 16, false) => {
                        bytes(packet.destination)
                    }
                    (PayloadBase::Transport, 2, 2, _) => packet.port.to_be_bytes().to_vec(),
                    (PayloadBase::Transport, 0, 1, _) => vec![128],
                    // flags: SYN
                    (PayloadBase::Transport, 13, 1, _) => vec![2],
                    (PayloadBase::Network, 7, 1, false) => vec![64],
                    other => panic!("reads {other:?} of a packet of the other family"),
                };
                load(&mut registers, dreg.0, &value);
            }
            Expr::Ct { key: CtKey::State, dreg } => load(&mut registers, dreg.0, &8u32.to_ne_bytes()),
            Expr::Ct { key: CtKey::Status | CtKey::Mark, dreg } => load(&mut registers, dreg.0, &[0; 4]),
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let from = usize::from(sreg.0) * 4;
                let masked: Vec<u8> =
                    (0..mask.len()).map(|i| registers[from + i] & mask[i] ^ xor[i]).collect();
                load(&mut registers, dreg.0, &masked);
            }
            Expr::Cmp { sreg, op, value } => {
                let loaded = read(&registers, sreg.0, value.len());
                let holds = match op {
                    CmpOp::Eq => loaded == value.as_slice(),
                    CmpOp::Neq => loaded != value.as_slice(),
                    CmpOp::Lte => loaded <= value.as_slice(),
                    CmpOp::Gte => loaded >= value.as_slice(),
                };
                if !holds {
                    return None;
                }
            }
            Expr::Range { sreg, negate, from, to } => {
                let value = read(&registers, sreg.0, from.len());
                if (from.as_slice() <= value && value <= to.as_slice()) == *negate {
                    return None;
                }
            }
            Expr::Lookup { set, sreg, dest, negate } => {
                let set = state.set(set)?;
                let key = Bytes::from_slice(read(&registers, sreg.0, set.decl.key_len()));
                let found = match set.decl.interval {
                    false => set.elements.get(&key),
                    true => {
                        let before = set.elements.range(..=key.clone()).next_back();
                        before.filter(|(_, e)| e.last.as_ref().unwrap() >= &key).map(|(_, e)| e)
                    }
                };
                match (dest, found) {
                    (None, found) if found.is_some() == *negate => return None,
                    (None, _) => {}
                    (Some(LookupDest::Verdict), Some(element)) => match &element.data {
                        Some(ElementData::Verdict(verdict)) => return Some(verdict.clone()),
                        other => panic!("a verdict map gives {other:?}"),
                    },
                    (Some(_), None) => return None,
                    (Some(LookupDest::Data(_)), _) => panic!("no such maps yet"),
                }
            }
            Expr::Ipset { set, key, negate } => {
                let (address, port) = match key {
                    IpsetKey::Source => (packet.source, false),
                    IpsetKey::SourcePort => (packet.source, true),
                    IpsetKey::Destination => (packet.destination, false),
                    IpsetKey::DestinationPort => (packet.destination, true),
                };
                let found = state.ipsets[set].elements.iter().any(|element| match *element {
                    Element::Address(a) => a == address && !port,
                    Element::Endpoint(a, p, n) => {
                        (a, p, n) == (address, packet.protocol, packet.port) && port
                    }
                    Element::Net(a, len) => within(address, a, len) && !port,
                });
                if found == *negate {
                    return None;
                }
            }
            // what is told changes nothing
            Expr::Limit { .. } => {}
            Expr::Log { prefix, .. } => state.told.borrow_mut().push(prefix.clone()),
            Expr::Verdict(verdict) => return Some(verdict.clone()),
            other => panic!("{other:?} is not written by the planner"),
        }
    }
    None
}

fn within(address: IpAddr, net: IpAddr, len: u8) -> bool {
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (a.to_bits() ^ n.to_bits()).leading_zeros() >= len.into(),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits() ^ n.to_bits()).leading_zeros() >= len.into(),
        _ => false,
    }
}

fn name(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn load(registers: &mut [u8; 64], word: u8, value: &[u8]) {
    let at = usize::from(word) * 4;
    let padded = value.len().next_multiple_of(4);
    registers[at..at + padded].fill(0);
    registers[at..at + value.len()].copy_from_slice(value);
}

fn read(registers: &[u8; 64], word: u8, len: usize) -> &[u8] {
    &registers[usize::from(word) * 4..][..len]
}
