//! A table of family inet as one of ip and one of ip6, with lookups of peer sets as matches on ipsets.

use super::sets::peer_set;
use crate::model::{
    Chain, CmpOp, Expr, Family, Field, IpsetKey, MetaKey, Op, PayloadBase, Rule, SetDecl, Table,
};

/// What becomes of a table of family inet.
pub(crate) const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The ipset that is a peer set, by the peer set's name.
pub(crate) type Names<'a> = &'a dyn Fn(&str) -> String;

/// Peer sets that a rule looks into, and whether it matches what is not there.
pub(crate) fn lookups(rule: &Rule) -> impl Iterator<Item = (&str, bool)> {
    rule.exprs.iter().filter_map(|expr| match expr {
        Expr::Lookup { set, dest: None, negate, .. } => peer_set(set).map(|_| (set.as_str(), *negate)),
        _ => None,
    })
}

/// The table of one of the families.
pub(crate) fn table(table: &Table, family: Family, names: Names<'_>) -> Table {
    let sets =
        table.sets.iter().filter(|(name, set)| peer_set(name).is_none() && can_be_in(&set.decl, family));
    let chains = table.chains.iter().map(|(name, chain)| {
        let rules = chain.rules.iter().filter_map(|r| rule(r, family, names)).collect();
        (name.clone(), Chain { hook: chain.hook, rules })
    });
    Table {
        family,
        name: table.name.clone(),
        sets: sets.map(|(name, set)| (name.clone(), set.clone())).collect(),
        chains: chains.collect(),
    }
}

/// A step on the table of one of the families; `None`: there is nothing to do there, or it is about an
/// ipset. Of a set that goes, `only` tells in which family alone it is.
pub(crate) fn op(
    op: &Op,
    family: Family,
    names: Names<'_>,
    only: &dyn Fn(&str) -> Option<Family>,
) -> Option<Op> {
    let here = match op {
        Op::AddSet { set, decl }
        | Op::AddElements { set, decl, .. }
        | Op::DeleteElements { set, decl, .. } => peer_set(set).is_none() && can_be_in(decl, family),
        Op::DeleteSet { set } => peer_set(set).is_none() && only(set).is_none_or(|only| only == family),
        Op::AddRule { chain, rule: inet } => {
            return rule(inet, family, names).map(|rule| Op::AddRule { chain: chain.clone(), rule });
        }
        Op::AddTable
        | Op::DeleteTable
        | Op::AddChain { .. }
        | Op::FlushChain { .. }
        | Op::DeleteChain { .. } => true,
    };
    here.then(|| op.clone())
}

/// The family that a set is of; `None`: of both.
pub(crate) fn only_in(decl: &SetDecl) -> Option<Family> {
    FAMILIES.into_iter().find(|family| !FAMILIES.into_iter().any(|f| f != *family && can_be_in(decl, f)))
}

/// A set with addresses of the other family in its keys is of no use.
fn can_be_in(decl: &SetDecl, family: Family) -> bool {
    let other = if family == Family::Ip { Field::Ipv6 } else { Field::Ipv4 };
    !decl.key.contains(&other)
}

/// A rule of one of the families; `None`: its packets are of the other one.
pub(crate) fn rule(rule: &Rule, family: Family, names: Names<'_>) -> Option<Rule> {
    let nfproto = if family == Family::Ip { 2 } else { 10 };
    let mut exprs: Vec<Expr> = Vec::with_capacity(rule.exprs.len());
    for expr in &rule.exprs {
        match expr {
            // all packets here are of one family
            Expr::Cmp { sreg, op: CmpOp::Eq, value }
                if exprs.last() == Some(&Expr::Meta { key: MetaKey::NfProto, dreg: *sreg }) =>
            {
                if value.as_slice() != [nfproto] {
                    return None;
                }
                exprs.pop();
            }
            Expr::Lookup { set, dest: None, negate, .. } if peer_set(set).is_some() => {
                let key = take_key(&mut exprs).expect("a peer set is looked up by what was just loaded");
                exprs.push(Expr::Ipset { set: names(set), key, negate: *negate });
            }
            _ => exprs.push(expr.clone()),
        }
    }
    Some(Rule { exprs, comment: rule.comment.clone() })
}

/// Takes the expressions off that load the key of a peer set: the match loads it by itself.
fn take_key(exprs: &mut Vec<Expr>) -> Option<IpsetKey> {
    let port =
        matches!(exprs.last(), Some(Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, .. }));
    if port {
        exprs.pop();
        exprs.pop().filter(|expr| matches!(expr, Expr::Meta { key: MetaKey::L4Proto, .. }))?;
    }
    match exprs.pop()? {
        Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, .. }
        | Expr::Payload { base: PayloadBase::Network, offset: 8, len: 16, .. } => {
            Some(if port { IpsetKey::SourcePort } else { IpsetKey::Source })
        }
        Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, .. }
        | Expr::Payload { base: PayloadBase::Network, offset: 24, len: 16, .. } => {
            Some(if port { IpsetKey::DestinationPort } else { IpsetKey::Destination })
        }
        _ => None,
    }
}
