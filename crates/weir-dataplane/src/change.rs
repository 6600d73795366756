//! From one state of a table to another, in one transaction.
//!
//! ```text
//!   installed ──┐
//!               ├─> difference ──> ops, ordered so that each finds what it refers to ──> Transaction
//!   desired ────┘
//! ```
//!
//! Only what differs is touched: two equal tables give no transaction. A chain that differs is
//! emptied and filled again, which packets never see, for the transaction is one. What is planned
//! can be several tables: their transactions go into one batch.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Bytes, Chain, Element, Family, Op, Set, SetData, Table, Transaction};

/// The transaction that makes `installed` equal to `desired`; `None`: it already is.
///
/// What cannot be changed in place (the type of a set, the elements of a constant one, the hook of
/// a chain) makes the table be deleted and made again, within the same transaction.
pub fn difference(installed: Option<&Table>, desired: &Table) -> Option<Transaction> {
    let Some(installed) = installed else {
        return Some(create(desired, Vec::new()));
    };
    let fits = |set: &Set, wanted: &Set| {
        wanted.decl == set.decl && (!set.decl.constant || wanted.elements == set.elements)
    };
    let sets_fit = installed
        .sets
        .iter()
        .all(|(name, set)| desired.sets.get(name).is_none_or(|wanted| fits(set, wanted)));
    let chains_fit = installed
        .chains
        .iter()
        .all(|(name, chain)| desired.chains.get(name).is_none_or(|wanted| wanted.hook == chain.hook));
    if !sets_fit || !chains_fit {
        return Some(create(desired, vec![Op::DeleteTable]));
    }

    let mut difference = Difference::default();
    let names: BTreeSet<&String> = installed.sets.keys().chain(desired.sets.keys()).collect();
    for name in names {
        difference.set(name, installed.sets.get(name), desired.sets.get(name));
    }
    let names: BTreeSet<&String> = installed.chains.keys().chain(desired.chains.keys()).collect();
    for name in names {
        difference.chain(name, installed.chains.get(name), desired.chains.get(name));
    }
    let mut transaction = difference.transaction(desired.family, &desired.name, Vec::new())?;
    // on a table that is there, this wakes one that somebody has set to dormant
    transaction.ops.insert(0, Op::AddTable);
    Some(transaction)
}

/// The transactions, at most one a table, that leave of the tables in `installed` those in `desired`
/// and make them equal to those; empty: they are.
pub fn differences(installed: &[Table], desired: &[&Table]) -> Vec<Transaction> {
    let same = |a: &Table, b: &Table| (a.family, &a.name) == (b.family, &b.name);
    let gone = installed.iter().filter(|table| !desired.iter().any(|wanted| same(table, wanted)));
    let gone = gone.map(delete);
    let of = |wanted: &Table| installed.iter().find(|table| same(table, wanted));
    gone.chain(desired.iter().filter_map(|wanted| difference(of(wanted), wanted))).collect()
}

/// The transactions that put `desired` in the place of what is `installed`, whatever that is.
pub fn rebuilt(installed: &[Table], desired: &[&Table]) -> Vec<Transaction> {
    installed.iter().map(delete).chain(desired.iter().map(|table| create(table, Vec::new()))).collect()
}

fn delete(table: &Table) -> Transaction {
    Transaction { family: table.family, table: table.name.clone(), ops: vec![Op::DeleteTable] }
}

fn create(desired: &Table, mut ops: Vec<Op>) -> Transaction {
    ops.push(Op::AddTable);
    let mut all = Difference::default();
    desired.sets.iter().for_each(|(name, set)| all.set(name, None, Some(set)));
    desired.chains.iter().for_each(|(name, chain)| all.chain(name, None, Some(chain)));
    all.transaction(desired.family, &desired.name, ops).expect("it adds the table at least")
}

/// The steps of a transaction by kind.
#[derive(Debug, Default)]
struct Difference {
    new_sets: Vec<Op>,
    new_chains: Vec<Op>,
    /// Of sets, of maps whose values are no verdicts, and of constant maps, whose chains are new.
    values: Vec<Op>,
    rules: Vec<Op>,
    /// Of verdict maps: their values refer to chains, and are last to come and first to go.
    verdicts: Vec<Op>,
    emptied: Vec<Op>,
    gone_sets: Vec<Op>,
    gone_chains: Vec<Op>,
}

impl Difference {
    fn set(&mut self, name: &str, before: Option<&Set>, after: Option<&Set>) {
        let Some(after) = after else {
            if before.is_some() {
                self.gone_sets.push(Op::DeleteSet { set: name.to_owned() });
            }
            return;
        };
        if before.is_none() {
            self.new_sets.push(Op::AddSet { set: name.to_owned(), decl: after.decl.clone() });
        }
        let none = BTreeMap::new();
        let old = before.map_or(&none, |set| &set.elements);
        let differs =
            |of: &BTreeMap<Bytes, Element>, key: &Bytes, element: &Element| of.get(key) != Some(element);
        let removed = old.iter().filter(|(k, e)| differs(&after.elements, k, e));
        let added = after.elements.iter().filter(|(k, e)| differs(old, k, e));
        let pairs = |(k, e): (&Bytes, &Element)| (k.clone(), e.clone());
        self.elements(name, after, removed.map(pairs).collect(), added.map(pairs).collect());
    }

    fn elements(
        &mut self,
        name: &str,
        set: &Set,
        removed: Vec<(Bytes, Element)>,
        added: Vec<(Bytes, Element)>,
    ) {
        let list = match set.decl.data {
            Some(SetData::Verdict) if !set.decl.constant => &mut self.verdicts,
            // a constant one takes no elements once a rule looks it up
            _ => &mut self.values,
        };
        let (set, decl) = (name.to_owned(), set.decl.clone());
        if !removed.is_empty() {
            list.push(Op::DeleteElements { set: set.clone(), decl: decl.clone(), elements: removed });
        }
        if !added.is_empty() {
            list.push(Op::AddElements { set, decl, elements: added });
        }
    }

    fn chain(&mut self, name: &str, before: Option<&Chain>, after: Option<&Chain>) {
        let chain = || name.to_owned();
        let Some(after) = after else {
            if before.is_some() {
                self.emptied.push(Op::FlushChain { chain: chain() });
                self.gone_chains.push(Op::DeleteChain { chain: chain() });
            }
            return;
        };
        match before {
            None => self.new_chains.push(Op::AddChain { chain: chain(), hook: after.hook }),
            Some(before) if before.rules == after.rules => return,
            Some(_) => self.rules.push(Op::FlushChain { chain: chain() }),
        }
        self.rules.extend(after.rules.iter().map(|rule| Op::AddRule { chain: chain(), rule: rule.clone() }));
    }

    fn transaction(self, family: Family, table: &str, mut ops: Vec<Op>) -> Option<Transaction> {
        ops.extend(
            [
                self.new_sets,
                self.new_chains,
                self.values,
                self.rules,
                self.verdicts,
                self.emptied,
                self.gone_sets, // a map's verdicts refer to chains: before these
                self.gone_chains,
            ]
            .into_iter()
            .flatten(),
        );
        (!ops.is_empty()).then(|| Transaction { family, table: table.to_owned(), ops })
    }
}

/// A table together with what has been changed in it since the last transaction.
#[derive(Debug)]
pub(crate) struct Edited {
    table: Table,
    /// Touched elements by set, as they were.
    elements: BTreeMap<String, BTreeMap<Bytes, Option<Element>>>,
    /// Sets that are new, and sets that are gone.
    sets: BTreeMap<String, Option<Set>>,
    /// Touched chains, as they were.
    chains: BTreeMap<String, Option<Chain>>,
}

impl Edited {
    pub(crate) fn new(table: Table) -> Self {
        Edited { table, elements: BTreeMap::new(), sets: BTreeMap::new(), chains: BTreeMap::new() }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn put_set(&mut self, name: &str, set: Set) {
        let before = self.table.sets.insert(name.to_owned(), set);
        self.remember_set(name, before);
    }

    pub(crate) fn remove_set(&mut self, name: &str) {
        if let Some(before) = self.table.sets.remove(name) {
            self.remember_set(name, Some(before));
        }
    }

    fn remember_set(&mut self, name: &str, mut before: Option<Set>) {
        if self.sets.contains_key(name) {
            return;
        }
        // elements that were touched before the set was: as they were
        if let (Some(touched), Some(set)) = (self.elements.remove(name), &mut before) {
            for (key, element) in touched {
                match element {
                    Some(element) => drop(set.elements.insert(key, element)),
                    None => drop(set.elements.remove(&key)),
                }
            }
        }
        self.sets.insert(name.to_owned(), before);
    }

    pub(crate) fn put_chain(&mut self, name: &str, chain: Chain) {
        let before = self.table.chains.insert(name.to_owned(), chain);
        self.chains.entry(name.to_owned()).or_insert(before);
    }

    pub(crate) fn remove_chain(&mut self, name: &str) {
        if let Some(before) = self.table.chains.remove(name) {
            self.chains.entry(name.to_owned()).or_insert(Some(before));
        }
    }

    pub(crate) fn put_element(&mut self, set: &str, key: Bytes, element: Element) {
        self.touch(set, key, Some(element));
    }

    pub(crate) fn remove_element(&mut self, set: &str, key: Bytes) {
        self.touch(set, key, None);
    }

    fn touch(&mut self, name: &str, key: Bytes, element: Option<Element>) {
        let set = self.table.sets.get_mut(name).expect("elements are of sets that are there");
        let before = match element {
            Some(element) => set.elements.insert(key.clone(), element),
            None => set.elements.remove(&key),
        };
        // of a set that is new or replaced in this transaction, all elements are looked at anyway
        if !self.sets.contains_key(name) {
            match self.elements.get_mut(name) {
                Some(touched) => drop(touched.entry(key).or_insert(before)),
                None => drop(self.elements.insert(name.to_owned(), [(key, before)].into())),
            }
        }
    }

    /// What the changes amount to; `None`: nothing.
    pub(crate) fn take(&mut self) -> Option<Transaction> {
        let mut difference = Difference::default();
        let sets = std::mem::take(&mut self.sets);
        for (name, before) in &sets {
            difference.set(name, before.as_ref(), self.table.sets.get(name));
        }
        for (name, touched) in std::mem::take(&mut self.elements) {
            let set = &self.table.sets[&name];
            let (mut removed, mut added) = (Vec::new(), Vec::new());
            for (key, before) in touched {
                let after = set.elements.get(&key);
                if before.as_ref() == after {
                    continue;
                }
                added.extend(after.map(|e| (key.clone(), e.clone())));
                removed.extend(before.map(|e| (key, e)));
            }
            difference.elements(&name, set, removed, added);
        }
        for (name, before) in std::mem::take(&mut self.chains) {
            difference.chain(&name, before.as_ref(), self.table.chains.get(&name));
        }
        difference.transaction(self.table.family, &self.table.name, Vec::new())
    }
}
