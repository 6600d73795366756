//! A kernel for tests: takes transactions as nf_tables does, all or nothing, and refuses what it refuses.

use std::collections::BTreeMap;

use crate::ipset::{Ipset, IpsetKind, IpsetOp};
use crate::model::{Chain, ElementData, Expr, Op, Set, Table, Transaction, Verdict};

/// Carries a batch of transactions out on all tables there are.
///
/// # Errors
/// What the kernel would refuse, in words; `tables` are then as they were.
pub fn apply_all(tables: &mut Vec<Table>, transactions: &[Transaction]) -> Result<(), String> {
    let mut next = tables.clone();
    for transaction in transactions {
        let its = |t: &Table| (t.family, &t.name) == (transaction.family, &transaction.table);
        let place = next.iter().position(its);
        let mut table = place.map(|place| next.remove(place));
        apply(&mut table, transaction)?;
        next.extend(table);
    }
    *tables = next;
    Ok(())
}

/// Carries a change of ipsets out; `tables` are those whose rules may look into them. Unlike a batch, it is
/// not undone when an element is refused.
///
/// # Errors
/// What the kernel would refuse, in words.
pub fn apply_ipset(
    ipsets: &mut BTreeMap<String, Ipset>,
    tables: &[Table],
    op: &IpsetOp,
) -> Result<(), String> {
    let is_net = |kind: &IpsetKind| *kind == IpsetKind::Net;
    match op {
        IpsetOp::Create { name, set } => {
            if name.len() > 31 {
                return Err(format!("{name} is longer than 31 bytes"));
            }
            if is_net(&set.decl.kind) && set.elements.iter().any(|e| e.to_string().ends_with("/0")) {
                return Err(format!("{name} has a prefix of length 0"));
            }
            match ipsets.insert(name.clone(), set.clone()) {
                Some(_) => Err(format!("{name} exists")),
                None => Ok(()),
            }
        }
        IpsetOp::Add { name, elements, .. } => {
            let set = ipsets.get_mut(name).ok_or_else(|| format!("no {name}"))?;
            match elements.iter().find(|element| !set.elements.insert(**element)) {
                Some(element) => Err(format!("{element} is in {name}")),
                None => Ok(()),
            }
        }
        IpsetOp::Remove { name, elements, .. } => {
            let set = ipsets.get_mut(name).ok_or_else(|| format!("no {name}"))?;
            match elements.iter().find(|element| !set.elements.remove(*element)) {
                Some(element) => Err(format!("{element} is not in {name}")),
                None => Ok(()),
            }
        }
        IpsetOp::Destroy { name } => {
            if tables.iter().flat_map(ipsets_of).any(|used| used == name) {
                return Err(format!("{name} is in use"));
            }
            ipsets.remove(name).map(drop).ok_or_else(|| format!("no {name}"))
        }
    }
}

/// The ipsets that a table's rules look into. The kernel refuses a rule on one that is not there.
pub fn ipsets_of(table: &Table) -> impl Iterator<Item = &String> {
    table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.exprs).filter_map(|e| match e {
        Expr::Ipset { set, .. } => Some(set),
        _ => None,
    })
}

/// Carries a transaction out on a table.
///
/// # Errors
/// What the kernel would refuse, in words; `table` is then as it was.
pub fn apply(table: &mut Option<Table>, transaction: &Transaction) -> Result<(), String> {
    let mut next = table.clone();
    for op in &transaction.ops {
        step(&mut next, transaction, op).map_err(|why| format!("{op:?}: {why}"))?;
    }
    if let Some(next) = &next {
        check_references(next)?;
    }
    *table = next;
    Ok(())
}

fn step(state: &mut Option<Table>, transaction: &Transaction, op: &Op) -> Result<(), String> {
    match op {
        Op::AddTable => {
            state.get_or_insert_with(|| Table {
                family: transaction.family,
                name: transaction.table.clone(),
                sets: BTreeMap::new(),
                chains: BTreeMap::new(),
            });
            return Ok(());
        }
        Op::DeleteTable => return state.take().map(drop).ok_or("no such table".into()),
        _ => {}
    }
    let table = state.as_mut().ok_or("no such table")?;
    match op {
        Op::AddTable | Op::DeleteTable => {}
        Op::AddSet { set, decl } => {
            let new = Set { decl: decl.clone(), elements: BTreeMap::new() };
            if table.sets.insert(set.clone(), new).is_some() {
                return Err("set exists".into());
            }
        }
        Op::DeleteSet { set } => {
            table.sets.remove(set).ok_or("no such set")?;
            if lookups(table).any(|s| s == set) {
                return Err("set is in use".into());
            }
        }
        Op::AddElements { set, elements, .. } => {
            refuse_constant(table, set)?;
            let set = table.sets.get_mut(set).ok_or("no such set")?;
            for (key, element) in elements {
                if set.elements.insert(key.clone(), element.clone()).is_some() {
                    return Err(format!("element {key:?} exists"));
                }
            }
            check_references(table)?;
        }
        Op::DeleteElements { set, elements, .. } => {
            refuse_constant(table, set)?;
            let set = table.sets.get_mut(set).ok_or("no such set")?;
            for (key, element) in elements {
                if set.elements.remove(key).as_ref() != Some(element) {
                    return Err(format!("no such element {key:?}"));
                }
            }
        }
        Op::AddChain { chain, hook } => {
            let new = Chain { hook: *hook, rules: Vec::new() };
            if table.chains.insert(chain.clone(), new).is_some() {
                return Err("chain exists".into());
            }
        }
        Op::FlushChain { chain } => table.chains.get_mut(chain).ok_or("no such chain")?.rules.clear(),
        Op::DeleteChain { chain } => {
            table.chains.remove(chain).ok_or("no such chain")?;
            check_references(table)?;
        }
        Op::AddRule { chain, rule } => {
            table.chains.get_mut(chain).ok_or("no such chain")?.rules.push(rule.clone());
            check_references(table)?;
        }
    }
    Ok(())
}

/// The elements of a constant set are fixed once a rule looks it up.
fn refuse_constant(table: &Table, set: &str) -> Result<(), String> {
    let constant = table.sets.get(set).is_some_and(|s| s.decl.constant);
    match constant && lookups(table).any(|s| s == set) {
        true => Err("the set is constant and in use".into()),
        false => Ok(()),
    }
}

fn lookups(table: &Table) -> impl Iterator<Item = &String> {
    table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.exprs).filter_map(|e| match e {
        Expr::Lookup { set, .. } => Some(set),
        _ => None,
    })
}

fn check_references(table: &Table) -> Result<(), String> {
    if let Some(set) = lookups(table).find(|set| !table.sets.contains_key(*set)) {
        return Err(format!("no set {set}"));
    }
    let in_rules =
        table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.exprs).filter_map(|e| match e {
            Expr::Verdict(verdict) => Some(verdict),
            _ => None,
        });
    let in_maps = table.sets.values().flat_map(|s| s.elements.values()).filter_map(|e| match &e.data {
        Some(ElementData::Verdict(verdict)) => Some(verdict),
        _ => None,
    });
    for verdict in in_rules.chain(in_maps) {
        if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict
            && !table.chains.contains_key(chain)
        {
            return Err(format!("no chain {chain}"));
        }
    }
    Ok(())
}
