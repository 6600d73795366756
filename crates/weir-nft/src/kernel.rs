//! The kernel's numbers for the model's words, both ways (`linux/netfilter/nf_tables.h`).

use weir_dataplane::model::{
    CmpOp, CtKey, Family, HookPoint, IpsetKey, LookupDest, MetaKey, PayloadBase, Reg, SetData, Verdict,
};

use crate::ffi;

/// `NFT_DATA_VERDICT`: the data type of verdict maps.
pub(crate) const DATA_VERDICT: u32 = 0xffff_ff00;
/// `NF_ACCEPT`, the only policy of Weir's base chains.
pub(crate) const POLICY_ACCEPT: u32 = 1;

/// Flags of a set.
pub(crate) const SET_CONSTANT: u32 = 0x2;
pub(crate) const SET_INTERVAL: u32 = 0x4;
pub(crate) const SET_MAP: u32 = 0x8;
pub(crate) const SET_CONCAT: u32 = 0x80;

/// Flag of an element: it is the first value after an interval.
pub(crate) const ELEM_INTERVAL_END: u32 = 0x1;

/// `NFT_LOOKUP_F_INV`
pub(crate) const LOOKUP_INVERTED: u32 = 1;

/// `NFPROTO_*`
pub(crate) fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
        Family::Bridge => 7,
    }
}

/// As `nft` writes it.
pub(crate) fn family_name(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Ip => "ip",
        Family::Ip6 => "ip6",
        Family::Bridge => "bridge",
    }
}

pub(crate) fn hook(point: HookPoint) -> Option<u32> {
    match point {
        HookPoint::Prerouting => Some(0),
        HookPoint::Input => Some(1),
        HookPoint::Forward => Some(2),
        HookPoint::Output => Some(3),
        HookPoint::Postrouting => Some(4),
        HookPoint::Foreign(_) => None,
    }
}

pub(crate) fn hook_point(number: u32) -> HookPoint {
    match number {
        0 => HookPoint::Prerouting,
        1 => HookPoint::Input,
        2 => HookPoint::Forward,
        3 => HookPoint::Output,
        4 => HookPoint::Postrouting,
        other => HookPoint::Foreign(other),
    }
}

/// Words 0, 4, 8 and 12 are `NFT_REG_1` to `NFT_REG_4` (1 to 4), the others `NFT_REG32_00` (8) and so on.
pub(crate) fn reg(reg: Reg) -> u32 {
    let word = u32::from(reg.0);
    if word.is_multiple_of(4) { word / 4 + 1 } else { word + 8 }
}

pub(crate) fn reg_of(number: u32) -> Option<Reg> {
    match number {
        1..=4 => Some(Reg((number as u8 - 1) * 4)),
        8..=23 => Some(Reg(number as u8 - 8)),
        _ => None,
    }
}

pub(crate) fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::NfProto => 15,
        MetaKey::L4Proto => 16,
        MetaKey::Random => 24,
    }
}

pub(crate) fn meta_key_of(number: u32) -> Option<MetaKey> {
    [MetaKey::IifName, MetaKey::OifName, MetaKey::NfProto, MetaKey::L4Proto, MetaKey::Random]
        .into_iter()
        .find(|&key| meta_key(key) == number)
}

pub(crate) fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::LinkLayer => 0,
        PayloadBase::Network => 1,
        PayloadBase::Transport => 2,
    }
}

pub(crate) fn payload_base_of(number: u32) -> Option<PayloadBase> {
    [PayloadBase::LinkLayer, PayloadBase::Network, PayloadBase::Transport]
        .into_iter()
        .find(|&base| payload_base(base) == number)
}

pub(crate) fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Status => 2,
        CtKey::Mark => 3,
    }
}

pub(crate) fn ct_key_of(number: u32) -> Option<CtKey> {
    [CtKey::State, CtKey::Status, CtKey::Mark].into_iter().find(|&key| ct_key(key) == number)
}

pub(crate) fn cmp_op(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Neq => 1,
        CmpOp::Lte => 3,
        CmpOp::Gte => 5,
    }
}

pub(crate) fn cmp_op_of(number: u32) -> Option<CmpOp> {
    [CmpOp::Eq, CmpOp::Neq, CmpOp::Lte, CmpOp::Gte].into_iter().find(|&op| cmp_op(op) == number)
}

pub(crate) fn lookup_dest(dest: LookupDest) -> u32 {
    match dest {
        LookupDest::Verdict => 0,
        LookupDest::Data(dreg) => reg(dreg),
    }
}

pub(crate) fn lookup_dest_of(number: u32) -> Option<LookupDest> {
    if number == 0 { Some(LookupDest::Verdict) } else { reg_of(number).map(LookupDest::Data) }
}

/// `xt_set`'s match: its name, the revision that every kernel has which Weir runs on, and its data
/// (`struct xt_set_info_match_v1`: index of the ipset, dimensions, flags).
const SET_MATCH: &str = "set";
const SET_MATCH_REVISION: u32 = 1;
/// `IPSET_INV_MATCH`
const SET_MATCH_INVERTED: u8 = 1;
/// `IPSET_DIM_ONE_SRC`: the address is the source's. Without it, the destination's; so is the port.
const SET_MATCH_SOURCE: u8 = 2;

pub(crate) fn ipset_match(index: u16, key: IpsetKey, negate: bool) -> Result<ffi::Expr, ffi::Unfit> {
    let (dimensions, source) = match key {
        IpsetKey::Source => (1, SET_MATCH_SOURCE),
        IpsetKey::Destination => (1, 0),
        IpsetKey::SourcePort => (2, SET_MATCH_SOURCE),
        IpsetKey::DestinationPort => (2, 0),
    };
    let [low, high] = index.to_ne_bytes();
    let flags = source | if negate { SET_MATCH_INVERTED } else { 0 };
    Ok(ffi::Expr::xt_match(&ffi::Name::new(SET_MATCH)?, SET_MATCH_REVISION, &[low, high, dimensions, flags]))
}

/// The index of the ipset, and what is looked up.
pub(crate) fn ipset_match_of(name: &str, revision: u32, info: &[u8]) -> Option<(u16, IpsetKey, bool)> {
    let [low, high, dimensions, flags, padding @ ..] = info else { return None };
    if (name, revision) != (SET_MATCH, SET_MATCH_REVISION) || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    let key = match (dimensions, flags & !SET_MATCH_INVERTED) {
        (1, SET_MATCH_SOURCE) => IpsetKey::Source,
        (1, 0) => IpsetKey::Destination,
        (2, SET_MATCH_SOURCE) => IpsetKey::SourcePort,
        (2, 0) => IpsetKey::DestinationPort,
        _ => return None,
    };
    Some((u16::from_ne_bytes([*low, *high]), key, flags & SET_MATCH_INVERTED != 0))
}

/// The verdict's number, and the chain that it sends to.
pub(crate) fn verdict(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    }
}

pub(crate) fn verdict_of(code: i32, chain: Option<String>) -> Option<Verdict> {
    match (code, chain) {
        (0, None) => Some(Verdict::Drop),
        (1, None) => Some(Verdict::Accept),
        (-3, Some(chain)) => Some(Verdict::Jump(chain)),
        (-4, Some(chain)) => Some(Verdict::Goto(chain)),
        (-5, None) => Some(Verdict::Return),
        _ => None,
    }
}

/// Type and length of a map's values.
pub(crate) fn data_type(data: SetData) -> (u32, u32) {
    match data {
        SetData::Verdict => (DATA_VERDICT, 0),
        SetData::Value(field) => (field.type_id(), field.len() as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_as_the_kernel_dumps_them() {
        for word in 0..16 {
            let number = reg(Reg(word));
            assert_eq!(reg_of(number), Some(Reg(word)));
        }
        assert_eq!([reg(Reg(0)), reg(Reg(1)), reg(Reg(4)), reg(Reg(15))], [1, 9, 2, 23]);
        assert_eq!(reg_of(0), None, "the verdict's");
    }
}
