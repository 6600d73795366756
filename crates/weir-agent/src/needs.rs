//! What Weir needs of the kernel: tried before the first rules, so that what is missing has a name and not a number.
//!
//! Each feature is a transaction that makes a table with something of that sort in it and deletes it again, in one
//! batch: nothing of it ever acts. Where Weir's table is there already, the kernel has shown that it can, and nothing
//! is tried. What only some nodes need is said where it is needed: tables of bridges, br_netfilter, ctnetlink.

use std::fmt;

use weir_dataplane::model::{
    Bytes, CmpOp, CtKey, Element, ElementData, Expr, Family, Field, Hook, HookPoint, LookupDest, MetaKey, Op,
    PayloadBase, Reg, Rule, SetData, SetDecl, Transaction, Verdict,
};
use weir_nft::{ApplyError, Nft, Refusal};

/// The oldest Linux that Weir is made for.
const MINIMUM: (u32, u32) = (5, 15);
const RELEASE: &str = "/proc/sys/kernel/osrelease";
const TABLE: &str = "weir_probe";
const CHAIN: &str = "probe";
const SET: &str = "probe";

/// Something that a kernel may lack.
struct Feature {
    what: &'static str,
    /// What brings it.
    remedy: &'static str,
    ops: fn() -> Vec<Op>,
}

const FEATURES: [Feature; 7] = [
    Feature {
        what: "tables of the family inet, with chains at the hooks forward, input and prerouting",
        remedy: "CONFIG_NF_TABLES_INET (of module nf_tables)",
        ops: hooks,
    },
    Feature {
        what: "the states of connections in rules (ct state)",
        remedy: "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK (modprobe nft_ct)",
        ops: || rule(vec![Expr::Ct { key: CtKey::State, dreg: Reg(0) }, masked(8), not_zero()]),
    },
    Feature {
        what: "the marks of connections in rules (ct mark)",
        remedy: "CONFIG_NF_CONNTRACK_MARK, and CONFIG_NFT_CT (modprobe nft_ct)",
        ops: || rule(vec![Expr::Ct { key: CtKey::Mark, dreg: Reg(0) }, masked(0x1000), not_zero()]),
    },
    Feature {
        what: "sets of addresses",
        remedy: "CONFIG_NF_TABLES (modprobe nf_tables; on kernels that have it, nf_tables_set)",
        ops: || lookup(decl(&[Field::Ipv4], None, false), vec![1, 2, 3, 4], Element::default()),
    },
    Feature {
        what: "sets of ranges of addresses",
        remedy: "CONFIG_NF_TABLES (modprobe nf_tables; on kernels that have it, nf_tables_set)",
        ops: || {
            let last = Some(bytes(&[1, 2, 3, 9]));
            lookup(decl(&[Field::Ipv4], None, true), vec![1, 2, 3, 4], Element { last, ..Element::default() })
        },
    },
    Feature {
        what: "sets of several fields in one (concatenations)",
        remedy: "CONFIG_NF_TABLES (modprobe nf_tables; on kernels that have it, nf_tables_set)",
        ops: || {
            let fields = [Field::Ipv4, Field::Proto, Field::Port];
            lookup(decl(&fields, None, false), vec![1, 2, 3, 4, 6, 0, 0, 0, 0, 80, 0, 0], Element::default())
        },
    },
    Feature {
        what: "verdict maps",
        remedy: "CONFIG_NF_TABLES (modprobe nf_tables; on kernels that have it, nf_tables_set)",
        ops: || {
            let data = Some(ElementData::Verdict(Verdict::Jump("target".into())));
            let mut ops = vec![Op::AddChain { chain: "target".into(), hook: None }];
            let map = decl(&[Field::Ipv4], Some(SetData::Verdict), false);
            ops.extend(lookup(map, vec![1, 2, 3, 4], Element { data, ..Element::default() }));
            ops
        },
    },
];

fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::from_slice(bytes)
}

fn masked(bits: u32) -> Expr {
    let (mask, xor) = (bytes(&bits.to_ne_bytes()), bytes(&[0; 4]));
    Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), mask, xor }
}

fn not_zero() -> Expr {
    Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, value: bytes(&[0; 4]) }
}

fn decl(key: &[Field], data: Option<SetData>, interval: bool) -> SetDecl {
    SetDecl { key: key.iter().copied().collect(), data, interval, constant: false }
}

fn hooks() -> Vec<Op> {
    let points = [(HookPoint::Forward, 0), (HookPoint::Input, 0), (HookPoint::Prerouting, -300)]
        .into_iter()
        .enumerate();
    let chains = points.map(|(number, (point, priority))| Op::AddChain {
        chain: format!("{CHAIN}{number}"),
        hook: Some(Hook { point, priority }),
    });
    chains.collect()
}

/// A chain that nothing calls, with one rule.
fn rule(mut exprs: Vec<Expr>) -> Vec<Op> {
    exprs.push(Expr::Verdict(Verdict::Drop));
    let rule = Rule { exprs, comment: None };
    vec![Op::AddChain { chain: CHAIN.into(), hook: None }, Op::AddRule { chain: CHAIN.into(), rule }]
}

/// A set or map of one element, and a rule that looks into it.
fn lookup(decl: SetDecl, key: Vec<u8>, element: Element) -> Vec<Op> {
    let mut exprs = vec![
        Expr::Meta { key: MetaKey::NfProto, dreg: Reg(0) },
        Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, value: bytes(&[2]) },
        Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, dreg: Reg(0) },
        Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(1) },
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: Reg(2) },
    ];
    let dest = decl.data.map(|_| LookupDest::Verdict);
    exprs.push(Expr::Lookup { set: SET.into(), sreg: Reg(0), dest, negate: false });
    let elements = vec![(Bytes::from_vec(key), element)];
    let mut ops = vec![
        Op::AddSet { set: SET.into(), decl: decl.clone() },
        Op::AddElements { set: SET.into(), decl, elements },
    ];
    if dest.is_some() {
        let rule = Rule { exprs, comment: None };
        ops.push(Op::AddChain { chain: CHAIN.into(), hook: None });
        ops.push(Op::AddRule { chain: CHAIN.into(), rule });
    } else {
        ops.extend(rule(exprs));
    }
    ops
}

/// What the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Missing {
    release: String,
    features: Vec<(&'static str, &'static str, Refusal)>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel ({}) lacks what Weir needs:", self.release)?;
        for (what, remedy, refusal) in &self.features {
            write!(f, "\n  {what}: {remedy}; the kernel said: {refusal}")?;
        }
        let (major, minor) = MINIMUM;
        write!(f, "\nload the modules, or use a kernel that has them; Weir needs Linux {major}.{minor}")
    }
}

/// Tries steps in a table of their own, which is gone again with the end of the batch.
///
/// # Errors
/// The kernel does not take them, or cannot be asked.
pub(crate) fn tried(nft: &mut Nft, family: Family, ops: Vec<Op>) -> Result<(), ApplyError> {
    let ops = [Op::AddTable].into_iter().chain(ops).chain([Op::DeleteTable]).collect();
    nft.apply(&[Transaction { family, table: TABLE.to_owned(), ops }])
}

/// Tries everything.
///
/// # Errors
/// Something is missing ([`Missing`]), or the kernel cannot be asked.
pub fn check(nft: &mut Nft) -> anyhow::Result<()> {
    let mut features = Vec::new();
    for Feature { what, remedy, ops } in &FEATURES {
        match tried(nft, Family::Inet, ops()) {
            Ok(()) => {}
            Err(ApplyError::Refused { first, .. }) => features.push((*what, *remedy, first)),
            Err(error) => return Err(error.into()),
        }
    }
    let release = std::fs::read_to_string(RELEASE).unwrap_or_default().trim().to_owned();
    if !features.is_empty() {
        return Err(Missing { release, features }.into());
    }
    if version(&release).is_some_and(|version| version < MINIMUM) {
        let (major, minor) = MINIMUM;
        tracing::warn!(
            "this kernel ({release}) is older than Linux {major}.{minor}, the oldest that Weir is made for and tried \
             with; it has what was tried now"
        );
    }
    Ok(())
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_its_numbers() {
        assert_eq!(version("5.10.0-46-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert!(version("5.9.1") < Some(MINIMUM) && version("5.15.0-1089-azure") >= Some(MINIMUM));
        assert_eq!(version(""), None);
    }
}
