//! Rules: the model's expressions to libnftnl's, and the kernel's attributes to the model's.
//!
//! Reading does not go through libnftnl, which refuses a whole rule that has an expression it does
//! not know; a dump must live with any rule that somebody added.

use std::collections::HashMap;

use weir_dataplane::model::{Bytes, CmpOp, Expr, Rule, Verdict};

use crate::ffi::{self, Data, Name, Unfit};
use crate::wire::{Attrs, attrs, be32, string};
use crate::{kernel, userdata};

/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;

/// `NF_LOG_PREFIXLEN`, without the final zero.
const LOG_PREFIX: usize = 127;

/// The kernel's index of an ipset by its name: so rules have them.
pub(crate) type Indices = HashMap<String, u16>;
/// The other way round.
pub(crate) type Ipsets = HashMap<u16, String>;

/// As libnftnl's object, to be appended to a chain.
pub(crate) fn encode(table: &Name, chain: &Name, rule: &Rule, ipsets: &Indices) -> Result<ffi::Rule, Unfit> {
    let mut out = ffi::Rule::new(table, chain);
    out.exprs(rule.exprs.iter().map(|expr| encode_expr(expr, ipsets)).collect::<Result<_, _>>()?)?;
    if let Some(comment) = &rule.comment {
        let mut bytes = Vec::new();
        userdata::put_comment(&mut bytes, comment)?;
        out.userdata(&bytes);
    }
    Ok(out)
}

fn encode_expr(expr: &Expr, ipsets: &Indices) -> Result<ffi::Expr, Unfit> {
    Ok(match expr {
        Expr::Meta { key, dreg } => ffi::Expr::meta(kernel::meta_key(*key), kernel::reg(*dreg)),
        Expr::Payload { base, offset, len, dreg } => {
            ffi::Expr::payload(kernel::payload_base(*base), *offset, *len, kernel::reg(*dreg))
        }
        Expr::Ct { key, dreg } => ffi::Expr::ct(kernel::ct_key(*key), kernel::reg(*dreg)),
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            ffi::Expr::bitwise(kernel::reg(*sreg), kernel::reg(*dreg), Data::new(mask)?, Data::new(xor)?)?
        }
        Expr::Cmp { sreg, op, value } => {
            ffi::Expr::cmp(kernel::reg(*sreg), kernel::cmp_op(*op), Data::new(value)?)
        }
        Expr::Range { sreg, negate, from, to } => {
            ffi::Expr::range(kernel::reg(*sreg), u32::from(*negate), Data::new(from)?, Data::new(to)?)
        }
        Expr::Lookup { set, sreg, dest, negate } => ffi::Expr::lookup(
            &Name::new(set)?,
            kernel::reg(*sreg),
            dest.map(kernel::lookup_dest),
            if *negate { kernel::LOOKUP_INVERTED } else { 0 },
        ),
        Expr::Verdict(verdict) => {
            let (code, chain) = kernel::verdict(verdict);
            ffi::Expr::verdict(code, chain.map(Name::new).transpose()?.as_ref())
        }
        Expr::Ipset { set, key, negate } => {
            let index = *ipsets.get(set).ok_or(Unfit::NoIpset)?;
            kernel::ipset_match(index, *key, *negate)?
        }
        Expr::Limit { per_second, burst } => ffi::Expr::limit(*per_second, *burst),
        Expr::Log { group, prefix, snaplen } => {
            if prefix.len() > LOG_PREFIX {
                return Err(Unfit::Name);
            }
            ffi::Expr::log(*group, &Name::new(prefix)?, *snaplen)
        }
        Expr::Foreign(_) => return Err(Unfit::Foreign),
    })
}

/// The attributes of a rule of the dump: its chain, and the rule.
pub(crate) fn decode(attributes: Attrs<'_>, ipsets: &Ipsets) -> (String, Rule) {
    let mut chain = String::new();
    let mut rule = Rule { exprs: Vec::new(), comment: None };
    for (kind, value) in attributes {
        match kind {
            2 => chain = string(value),
            4 => {
                rule.exprs = attrs(value)
                    .map(|(_, element)| {
                        let name = attrs(element).value_of(1).map(string).unwrap_or_default();
                        let data = attrs(element).value_of(2).unwrap_or_default();
                        decode_one(&name, data, ipsets).unwrap_or(Expr::Foreign(name))
                    })
                    .collect();
            }
            // NFTA_RULE_COMPAT: of a rule that iptables-nft made.
            5 => rule.exprs.push(Expr::Foreign("compat".into())),
            7 => rule.comment = userdata::comment(value),
            _ => {}
        }
    }
    (chain, rule)
}

/// The attributes of an expression by their type, of which no expression here has more than ten.
struct Parts<'a>([Option<&'a [u8]>; 12]);

impl<'a> Parts<'a> {
    fn new(data: &'a [u8]) -> Parts<'a> {
        let mut parts = [None; 12];
        for (kind, value) in attrs(data) {
            // What does not fit is noted in the last place: it makes the expression foreign.
            let place = usize::from(kind).min(parts.len() - 1);
            parts[place] = Some(value);
        }
        Parts(parts)
    }

    fn number(&self, kind: usize) -> Option<u32> {
        be32(self.0[kind]?)
    }

    fn long(&self, kind: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.0[kind]?.try_into().ok()?))
    }

    fn reg(&self, kind: usize) -> Option<weir_dataplane::model::Reg> {
        kernel::reg_of(self.number(kind)?)
    }

    fn value(&self, kind: usize) -> Option<Bytes> {
        Some(Bytes::from_slice(attrs(self.0[kind]?).value_of(DATA_VALUE)?))
    }

    /// There are attributes of these types and of no others.
    fn only(&self, kinds: &[usize]) -> Option<()> {
        self.0.iter().enumerate().all(|(kind, value)| value.is_none() || kinds.contains(&kind)).then_some(())
    }
}

/// An expression by its name and data; `None` if Weir does not write such.
pub(crate) fn decode_one(name: &str, data: &[u8], ipsets: &Ipsets) -> Option<Expr> {
    decode_expr(name, &Parts::new(data), ipsets)
}

/// `None` if Weir does not write such an expression.
fn decode_expr(name: &str, parts: &Parts<'_>, ipsets: &Ipsets) -> Option<Expr> {
    Some(match name {
        "meta" => {
            parts.only(&[1, 2])?;
            Expr::Meta { dreg: parts.reg(1)?, key: kernel::meta_key_of(parts.number(2)?)? }
        }
        "payload" => {
            parts.only(&[1, 2, 3, 4])?;
            Expr::Payload {
                dreg: parts.reg(1)?,
                base: kernel::payload_base_of(parts.number(2)?)?,
                offset: parts.number(3)?,
                len: parts.number(4)?,
            }
        }
        "ct" => {
            parts.only(&[1, 2])?;
            Expr::Ct { dreg: parts.reg(1)?, key: kernel::ct_key_of(parts.number(2)?)? }
        }
        "bitwise" => {
            // 3 is the length, 6 the operation: 0 is mask and xor.
            parts.only(&[1, 2, 3, 4, 5, 6])?;
            if parts.number(6).unwrap_or(0) != 0 {
                return None;
            }
            Expr::Bitwise {
                sreg: parts.reg(1)?,
                dreg: parts.reg(2)?,
                mask: parts.value(4)?,
                xor: parts.value(5)?,
            }
        }
        "cmp" => {
            parts.only(&[1, 2, 3])?;
            let op: CmpOp = kernel::cmp_op_of(parts.number(2)?)?;
            Expr::Cmp { sreg: parts.reg(1)?, op, value: parts.value(3)? }
        }
        "range" => {
            parts.only(&[1, 2, 3, 4])?;
            let negate = match parts.number(2)? {
                0 => false,
                1 => true,
                _ => return None,
            };
            Expr::Range { sreg: parts.reg(1)?, negate, from: parts.value(3)?, to: parts.value(4)? }
        }
        "lookup" => {
            parts.only(&[1, 2, 3, 4, 5])?;
            Expr::Lookup {
                set: string(parts.0[1]?),
                sreg: parts.reg(2)?,
                dest: match parts.number(3) {
                    Some(dreg) => Some(kernel::lookup_dest_of(dreg)?),
                    None => None,
                },
                negate: parts.number(5).unwrap_or(0) & kernel::LOOKUP_INVERTED != 0,
            }
        }
        "match" => {
            parts.only(&[1, 2, 3])?;
            let (index, key, negate) =
                kernel::ipset_match_of(&string(parts.0[1]?), parts.number(2)?, parts.0[3]?)?;
            Expr::Ipset { set: ipsets.get(&index)?.clone(), key, negate }
        }
        "limit" => {
            // 2 is the unit, in seconds; 4: packets and not bytes; 5: not "over"
            parts.only(&[1, 2, 3, 4, 5])?;
            let plain = parts.long(2)? == 1 && parts.number(4)? == 0 && parts.number(5).unwrap_or(0) == 0;
            let per_second = u32::try_from(parts.long(1)?).ok().filter(|_| plain)?;
            Expr::Limit { per_second, burst: parts.number(3)? }
        }
        "log" => {
            parts.only(&[1, 2, 3])?;
            Expr::Log {
                group: u16::from_be_bytes(parts.0[1]?.try_into().ok()?),
                prefix: string(parts.0[2]?),
                snaplen: parts.number(3)?,
            }
        }
        "immediate" => {
            parts.only(&[1, 2])?;
            if parts.number(1)? != 0 {
                return None;
            }
            Expr::Verdict(decode_verdict(parts.0[2]?)?)
        }
        _ => return None,
    })
}

/// The verdict in an attribute of type `NFTA_*_DATA`.
pub(crate) fn decode_verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attrs(data).value_of(DATA_VERDICT)?;
    let code = be32(attrs(verdict).value_of(VERDICT_CODE)?)? as i32;
    kernel::verdict_of(code, attrs(verdict).value_of(VERDICT_CHAIN).map(string))
}
