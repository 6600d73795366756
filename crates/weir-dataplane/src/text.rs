//! The text that `nft -f` reads, of a table or of a transaction.
//!
//! It is written from the kernel's own expressions, as `nft list ruleset` writes it, and loading
//! it makes the same table; but for rules that look up ipsets, which nft can only print.

use std::fmt::{self, Display, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::{
    Bytes, Chain, CmpOp, CtKey, Element, ElementData, Expr, Family, Field, Hook, HookPoint, IpsetKey,
    LookupDest, MetaKey, Op, PayloadBase, Rule, Set, SetData, SetDecl, Table, Transaction, Verdict,
};
use crate::rules::CONFIRMED;

impl Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Bridge => "bridge",
        })
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// As a file for `nft -f` that makes the table.
impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        for (name, set) in &self.sets {
            write_set(f, name, set)?;
        }
        for (name, chain) in &self.chains {
            write_chain(f, name, chain)?;
        }
        writeln!(f, "}}")
    }
}

/// As a file for `nft -f` that does the same.
impl Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{} {}", self.family, self.table);
        for op in &self.ops {
            match op {
                Op::AddTable => writeln!(f, "add table {table}")?,
                Op::DeleteTable => writeln!(f, "delete table {table}")?,
                Op::AddSet { set, decl } => {
                    writeln!(f, "add {} {table} {set} {{ {}}}", kind(decl), decl_text(decl, "; "))?;
                }
                Op::DeleteSet { set } => writeln!(f, "delete set {table} {set}")?,
                Op::AddElements { set, decl, elements } => {
                    writeln!(f, "add element {table} {set} {{ {} }}", join(decl, elements))?;
                }
                Op::DeleteElements { set, decl, elements } => {
                    let keys = elements.iter().map(|(k, e)| key_text(decl, k, e.last.as_ref()));
                    writeln!(
                        f,
                        "delete element {table} {set} {{ {} }}",
                        keys.collect::<Vec<_>>().join(", ")
                    )?;
                }
                Op::AddChain { chain, hook } => match hook {
                    None => writeln!(f, "add chain {table} {chain}")?,
                    Some(hook) => writeln!(f, "add chain {table} {chain} {{ {} }}", hook_text(hook))?,
                },
                Op::FlushChain { chain } => writeln!(f, "flush chain {table} {chain}")?,
                Op::DeleteChain { chain } => writeln!(f, "delete chain {table} {chain}")?,
                Op::AddRule { chain, rule } => writeln!(f, "add rule {table} {chain} {}", rule_text(rule))?,
            }
        }
        Ok(())
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rule_text(self))
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    writeln!(f, "\t{} {name} {{", kind(&set.decl))?;
    writeln!(f, "\t\t{}", decl_text(&set.decl, "\n\t\t").trim_end())?;
    if !set.elements.is_empty() {
        let elements: Vec<String> = set.elements.iter().map(|(k, e)| element_text(&set.decl, k, e)).collect();
        writeln!(f, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
    }
    writeln!(f, "\t}}\n")
}

fn write_chain(f: &mut fmt::Formatter<'_>, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(hook) = &chain.hook {
        writeln!(f, "\t\t{}", hook_text(hook))?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", rule_text(rule))?;
    }
    writeln!(f, "\t}}\n")
}

fn kind(decl: &SetDecl) -> &'static str {
    if decl.data.is_some() { "map" } else { "set" }
}

fn decl_text(decl: &SetDecl, separator: &str) -> String {
    let key: Vec<&str> = decl.key.iter().map(|f| f.type_name()).collect();
    let mut text = format!("type {}", key.join(" . "));
    match decl.data {
        Some(SetData::Verdict) => text.push_str(" : verdict"),
        Some(SetData::Value(field)) => drop(write!(text, " : {}", field.type_name())),
        None => {}
    }
    text.push_str(separator);
    let flags: Vec<&str> = [(decl.constant, "constant"), (decl.interval, "interval")]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
    if !flags.is_empty() {
        let _ = write!(text, "flags {}{separator}", flags.join(","));
    }
    text
}

fn hook_text(hook: &Hook) -> String {
    let point = match hook.point {
        HookPoint::Prerouting => "prerouting",
        HookPoint::Input => "input",
        HookPoint::Forward => "forward",
        HookPoint::Output => "output",
        HookPoint::Postrouting => "postrouting",
        HookPoint::Foreign(number) => return format!("# a base chain of another kind, at hook {number}"),
    };
    format!("type filter hook {point} priority {}; policy accept;", hook.priority)
}

fn join(decl: &SetDecl, elements: &[(Bytes, Element)]) -> String {
    elements.iter().map(|(k, e)| element_text(decl, k, e)).collect::<Vec<_>>().join(", ")
}

fn element_text(decl: &SetDecl, key: &Bytes, element: &Element) -> String {
    let mut text = key_text(decl, key, element.last.as_ref());
    if let Some(comment) = &element.comment {
        let _ = write!(text, " comment {}", quoted(comment));
    }
    match (&element.data, decl.data) {
        (Some(ElementData::Verdict(verdict)), _) => drop(write!(text, " : {verdict}")),
        (Some(ElementData::Value(value)), Some(SetData::Value(field))) => {
            let _ = write!(text, " : {}", field_text(field, value));
        }
        _ => {}
    }
    text
}

fn key_text(decl: &SetDecl, key: &[u8], last: Option<&Bytes>) -> String {
    let mut parts = Vec::with_capacity(decl.key.len());
    let mut at = 0;
    for field in &decl.key {
        let part = |bytes: &[u8]| field_text(*field, &bytes[at..at + field.len()]);
        let first = part(key);
        let last = last.map(|l| part(l)).filter(|l| *l != first);
        parts.push(match last {
            Some(last) => format!("{first}-{last}"),
            None => first,
        });
        at += field.len().next_multiple_of(4);
    }
    parts.join(" . ")
}

fn field_text(field: Field, bytes: &[u8]) -> String {
    let number = || bytes.iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
    match field {
        Field::Ipv4 => Ipv4Addr::from_bits(number() as u32).to_string(),
        Field::Ipv6 => Ipv6Addr::from_bits(number()).to_string(),
        Field::Mac => bytes.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        Field::Proto => protocol_text(number() as u8),
        Field::Port => number().to_string(),
        Field::Mark => bytes.try_into().map_or(0, u32::from_ne_bytes).to_string(),
        Field::IfName => quoted(&name_text(bytes)),
        Field::Foreign(_) => "?".to_owned(),
    }
}

fn protocol_text(number: u8) -> String {
    match number {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn name_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A string of nft's, which knows no escapes: what would end it is replaced.
fn quoted(text: &str) -> String {
    let safe: String = text.chars().map(|c| if c == '"' || c.is_control() { '?' } else { c }).collect();
    format!("\"{safe}\"")
}

/// What a register holds, as nft calls it.
#[derive(Clone)]
enum Loaded {
    Name(&'static str, Option<Field>),
    /// The same, masked.
    Bits(&'static str, Bytes),
}

fn rule_text(rule: &Rule) -> String {
    let mut registers: [Option<Loaded>; 16] = Default::default();
    let mut words: Vec<String> = Vec::new();
    for (i, expr) in rule.exprs.iter().enumerate() {
        match expr {
            // the second half of a range
            Expr::Cmp { op: CmpOp::Lte, .. } if range_from(rule, i).is_some() => {}
            Expr::Meta { key, dreg } => {
                let (name, field) = match key {
                    MetaKey::IifName => ("iifname", Some(Field::IfName)),
                    MetaKey::OifName => ("oifname", Some(Field::IfName)),
                    MetaKey::NfProto => ("meta nfproto", None),
                    MetaKey::L4Proto => ("meta l4proto", Some(Field::Proto)),
                    MetaKey::Random => ("meta random", None),
                };
                registers[usize::from(dreg.0)] = Some(Loaded::Name(name, field));
            }
            Expr::Payload { base, offset, len, dreg } => {
                let (name, field) = match (base, offset, len) {
                    (PayloadBase::Network, 12, 4) => ("ip saddr", Some(Field::Ipv4)),
                    (PayloadBase::Network, 16, 4) => ("ip daddr", Some(Field::Ipv4)),
                    (PayloadBase::Network, 7, 1) => ("ip6 hoplimit", None),
                    (PayloadBase::Network, 8, 16) => ("ip6 saddr", Some(Field::Ipv6)),
                    (PayloadBase::Network, 24, 16) => ("ip6 daddr", Some(Field::Ipv6)),
                    (PayloadBase::LinkLayer, 6, 6) => ("ether saddr", Some(Field::Mac)),
                    (PayloadBase::LinkLayer, 12, 2) => ("ether type", None),
                    (PayloadBase::Network, 8, 6) => ("arp saddr ether", Some(Field::Mac)),
                    (PayloadBase::Network, 14, 4) => ("arp saddr ip", Some(Field::Ipv4)),
                    (PayloadBase::Transport, 8, 16) => ("icmpv6 taddr", Some(Field::Ipv6)),
                    // nft takes two fields that are compared in a row as one
                    (PayloadBase::Transport, 0, 4) => ("@th,0,32", None),
                    (PayloadBase::Transport, 2, 2) => ("th dport", Some(Field::Port)),
                    (PayloadBase::Transport, 0, 1) => ("icmpv6 type", None),
                    (PayloadBase::Transport, 13, 1) => ("tcp flags", None),
                    _ => ("# payload", None),
                };
                registers[usize::from(dreg.0)] = Some(Loaded::Name(name, field));
            }
            Expr::Ct { key, dreg } => {
                let name = match key {
                    CtKey::State => "ct state",
                    CtKey::Status => "ct status",
                    CtKey::Mark => "ct mark",
                };
                registers[usize::from(dreg.0)] = Some(Loaded::Name(name, Some(Field::Mark)));
            }
            Expr::Bitwise { dreg, mask, .. } => {
                let (name, _) = named(registers[usize::from(dreg.0)].as_ref());
                registers[usize::from(dreg.0)] = Some(Loaded::Bits(name, mask.clone()));
            }
            Expr::Cmp { sreg, op: CmpOp::Gte, value } if range_from(rule, i + 1) == Some(value) => {
                let (name, field) = named(registers[usize::from(sreg.0)].as_ref());
                let Some(Expr::Cmp { value: to, .. }) = rule.exprs.get(i + 1) else { continue };
                words.push(format!("{name} {}-{}", value_text(field, value), value_text(field, to)));
            }
            Expr::Cmp { sreg, op, value } => {
                words.push(compared(registers[usize::from(sreg.0)].as_ref(), *op, value));
            }
            Expr::Range { sreg, negate, from, to } => {
                let (name, field) = named(registers[usize::from(sreg.0)].as_ref());
                let op = if *negate { "!= " } else { "" };
                words.push(format!("{name} {op}{}-{}", value_text(field, from), value_text(field, to)));
            }
            Expr::Lookup { set, sreg, dest, negate } => {
                let from = usize::from(sreg.0);
                let fields: Vec<&str> =
                    registers[from..].iter().flatten().map(|l| named(Some(l)).0).collect();
                let op = match (dest, negate) {
                    (Some(LookupDest::Verdict), _) => "vmap ",
                    (Some(LookupDest::Data(_)), _) => "map ",
                    (None, true) => "!= ",
                    (None, false) => "",
                };
                words.push(format!("{} {op}@{set}", fields.join(" . ")));
            }
            // as nft prints it, but for the words behind it; it cannot read it
            Expr::Ipset { set, key, negate } => {
                let key = match key {
                    IpsetKey::Source => "src",
                    IpsetKey::Destination => "dst",
                    IpsetKey::SourcePort => "src,dst",
                    IpsetKey::DestinationPort => "dst,dst",
                };
                let not = if *negate { "! " } else { "" };
                words.push(format!("xt match \"set\" {not}{set} {key}"));
            }
            Expr::Limit { per_second, burst } => {
                words.push(format!("limit rate {per_second}/second burst {burst} packets"));
            }
            Expr::Log { group, prefix, snaplen } => {
                words.push(format!("log prefix {} group {group} snaplen {snaplen}", quoted(prefix)));
            }
            Expr::Verdict(verdict) => words.push(verdict.to_string()),
            Expr::Foreign(name) => words.push(format!("# {name}")),
        }
        // what was loaded for one match is not part of the key of the next
        if matches!(expr, Expr::Cmp { .. } | Expr::Range { .. } | Expr::Lookup { .. }) {
            registers = Default::default();
        }
    }
    if let Some(comment) = &rule.comment {
        words.push(format!("comment {}", quoted(comment)));
    }
    words.join(" ")
}

/// Where a range begins of which the expression at `i` compares with the end.
fn range_from(rule: &Rule, i: usize) -> Option<&Bytes> {
    match (rule.exprs.get(i.checked_sub(1)?)?, rule.exprs.get(i)?) {
        (Expr::Cmp { sreg: a, op: CmpOp::Gte, value }, Expr::Cmp { sreg: b, op: CmpOp::Lte, .. })
            if a == b =>
        {
            Some(value)
        }
        _ => None,
    }
}

fn named(loaded: Option<&Loaded>) -> (&'static str, Option<Field>) {
    match loaded {
        Some(Loaded::Name(name, field)) => (name, *field),
        Some(Loaded::Bits(name, _)) => (name, None),
        None => ("# nothing", None),
    }
}

fn compared(loaded: Option<&Loaded>, op: CmpOp, value: &Bytes) -> String {
    if let Some(Loaded::Bits(name, mask)) = loaded {
        return bits_compared(name, mask, value);
    }
    let (name, field) = named(loaded);
    let op = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lte => "<= ",
        CmpOp::Gte => ">= ",
    };
    if name == "meta nfproto" {
        let family = if value.as_slice() == [2] { "ipv4" } else { "ipv6" };
        return format!("{name} {op}{family}");
    }
    format!("{name} {op}{}", value_text(field, value))
}

/// What Weir writes: that one of the bits is set, that an entry is not confirmed or, of TCP's flags, that not just
/// these are.
fn bits_compared(name: &str, mask: &Bytes, value: &Bytes) -> String {
    if name == "tcp flags" {
        let number = |bytes: &Bytes| bytes.first().copied().unwrap_or_default();
        return format!("{name} & {:#x} != {:#x}", number(mask), number(value));
    }
    let bits = mask.as_slice().try_into().map_or(0, u32::from_ne_bytes);
    // not: what is new, before it is known to get through
    if name == "ct status" && bits == CONFIRMED {
        return format!("{name} ! confirmed");
    }
    if name == "ct mark" {
        return format!("{name} & {bits:#010x} != 0x00000000");
    }
    let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
    let names: Vec<&str> = names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, n)| n).collect();
    format!("{name} {}", names.join(","))
}

fn value_text(field: Option<Field>, value: &[u8]) -> String {
    match field {
        Some(field) => field_text(field, value),
        None => value.iter().fold(0u128, |n, b| n << 8 | u128::from(*b)).to_string(),
    }
}
