//! What must be done to ipsets and tables, and in which order.
//!
//! ```text
//!   before   new ipsets with all that is in them; in ipsets that are in use: members that go
//!   batch    tables, in stages: rules look into the new ipsets instead of the old ones
//!   after    in ipsets that are in use: members that come; old ipsets are destroyed
//! ```
//!
//! A flow passes if its egress side and its ingress side both say so. Old rules look into sets that have
//! lost members and gained none, new rules into sets that lack members and have none too many: so a side
//! with its old rules allows nothing that the old state does not, one with its new rules nothing that the new
//! state does not. The batch is sent in [stages](crate::stages()), each of which takes sides from old rules to
//! new ones: first those that were open, then those that switch, at last those that are open afterwards.
//! Up to the switch the sides that have new rules were open before, so nothing passes that the old state denies;
//! from it on those that have old rules are open afterwards, so nothing passes that the new state denies.
//!
//! What is left to show is that nothing is dropped that both allow, for each side by itself: its rules change in
//! one of the stages, after what comes before and before what comes after. A side that allows a peer in both
//! states keeps allowing it on the way
//!
//! - if the side's rules do not change, and the peer only comes into sets or only leaves sets: some set that
//!   it was in, or will be in, has it all along. A peer that leaves one set and comes into another could be in
//!   neither for a moment;
//! - if the side's rules change and look, before or after, into no set that changes: else a peer could
//!   have left the old set before the new rules allow it otherwise.
//!
//! Where neither holds, the ipset is not changed: another version of it is created, with all that shall be in
//! it, and the batch switches its rules over. This costs as much as the set is large, and happens where a batch
//! has changes of policies and of members that are concerned by them, or several pods that change
//! their labels together. One address alone may leave sets and come into others in place: it comes first and
//! leaves then, which only adds up the old and the new state of its flows.
//!
//! All this holds for rules that allow. A set that a rule looks into which does something else than to
//! allow (another tier's) is always switched, unless a single element is all that changes.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};

use super::delta::{Delta, Members, Users, written};
use super::model::{Element, Ipset, IpsetOp};
use super::sets::{self, is_ours, peer_set, split_name};
use super::split::{self, FAMILIES};
use crate::change::{differences, rebuilt};
use crate::model::{Expr, Family, LookupDest, Op, Rule, Table, Transaction, Verdict};

/// What is to be done, in three parts, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// First, in this order.
    pub before: Vec<IpsetOp>,
    /// Then, in [stages](crate::stages()).
    pub batch: Vec<Transaction>,
    /// At last, in this order.
    pub after: Vec<IpsetOp>,
}

impl Steps {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.batch.is_empty() && self.after.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let ops = self.batch.iter().map(|transaction| transaction.ops.len()).sum::<usize>();
        self.before.len() + ops + self.after.len()
    }
}

/// Which ipset is which peer set of the plan, as of the last steps.
#[derive(Debug, Default)]
pub struct Ipsets {
    /// The last letter of the name of each peer set's ipset.
    versions: BTreeMap<String, char>,
    /// The peer sets that a chain looks into, and the other way round.
    of_chain: HashMap<String, Vec<String>>,
    users: Users,
    /// Sets of the plan that are in the table of one family only.
    only: HashMap<String, Family>,
    /// Ipsets that are to be destroyed and may be there still.
    doomed: BTreeSet<String>,
}

/// The table in which peer sets are.
fn inet<'a>(plan: &[&'a Table]) -> Option<&'a Table> {
    plan.iter().find(|table| table.family == Family::Inet).copied()
}

impl Ipsets {
    /// The tables that are in the kernel for a plan.
    pub fn tables(&self, plan: &[&Table]) -> Vec<Table> {
        let names = |set: &str| self.name(set);
        let of = |table: &&Table| match table.family {
            Family::Inet => FAMILIES.iter().map(|family| split::table(table, *family, &names)).collect(),
            _ => vec![(*table).clone()],
        };
        plan.iter().flat_map(of).collect()
    }

    /// The ipsets that are in the kernel for a plan.
    pub fn ipsets(&self, plan: &[&Table]) -> BTreeMap<String, Ipset> {
        let sets = inet(plan).into_iter().flat_map(|table| &table.sets);
        let of = |(name, set): (&String, &crate::model::Set)| {
            let (_, decl) = peer_set(name)?;
            Some((self.name(name), sets::ipset(&decl, set)))
        };
        sets.filter_map(of).collect()
    }

    /// Ipsets that are to be destroyed and may be there still. The kernel lets go of the rules that looked into
    /// one some time after the batch.
    pub fn doomed(&self) -> &BTreeSet<String> {
        &self.doomed
    }

    /// It is destroyed.
    pub fn destroyed(&mut self, name: &str) {
        self.doomed.remove(name);
    }

    /// The steps for what changed in the plan, which is as it shall be after them.
    pub fn change(&mut self, plan: &[&Table], pending: &[Transaction]) -> Steps {
        let Some(table) = inet(plan) else { return Steps { batch: pending.to_vec(), ..Steps::default() } };
        let ops: Vec<&Op> =
            pending.iter().filter(|t| t.family == Family::Inet).flat_map(|t| &t.ops).collect();
        let delta = Delta::new(&ops, pending.iter().any(|t| t.family != Family::Inet));
        let old: HashSet<String> = self.concerned(&delta.old_chains, table);
        self.learn(&ops);
        let new: HashSet<String> = self.concerned(&delta.new_chains, table);
        let switched = delta.switched(&self.users, &old, &new);

        let mut steps = Steps::default();
        for set in delta.gone.iter().chain(&switched) {
            let name = self.name(set);
            steps.after.push(IpsetOp::Destroy { name: name.clone() });
            self.doomed.insert(name);
        }
        for set in &delta.gone {
            self.versions.remove(set);
        }
        for set in delta.new.iter().chain(&switched) {
            let (start, _) = peer_set(set).expect("only peer sets are ipsets");
            let version = free_version(&start, |name| self.doomed.contains(name));
            self.versions.insert(set.clone(), version);
        }
        for set in delta.new.iter().chain(&switched) {
            steps.before.push(self.create(set, table));
        }
        let destroy = std::mem::take(&mut steps.after);
        self.in_place(&delta, &switched, &mut steps);
        steps.after.extend(destroy);
        steps.batch = self.batch(table, pending, &ops, &switched);
        for op in &ops {
            if let Op::DeleteSet { set } = op {
                self.only.remove(set);
            }
        }
        steps
    }

    /// The steps from what is in the kernel, tables and ipsets of Weir's, to a plan. With `anew`, whatever is
    /// there is replaced.
    pub fn compare(
        plan: &[&Table],
        tables: &[Table],
        ipsets: &BTreeMap<String, Ipset>,
        anew: bool,
    ) -> (Ipsets, Steps) {
        let mut this = Ipsets::default();
        let mut delta = Delta::default();
        let in_use: HashSet<&str> = tables.iter().flat_map(ipsets_of).collect();
        for (set, wanted) in inet(plan).into_iter().flat_map(|table| &table.sets) {
            let Some((start, decl)) = peer_set(set) else {
                this.only.extend(split::only_in(&wanted.decl).map(|family| (set.clone(), family)));
                continue;
            };
            let wanted = sets::ipset(&decl, wanted);
            let there = ipsets.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
            let fits = there.filter(|(_, ipset)| ipset.decl == decl);
            let best = fits.max_by_key(|(name, ipset)| (in_use.contains(name.as_str()), **ipset == wanted));
            let Some((name, ipset)) = best else {
                this.versions.insert(set.clone(), free_version(&start, |name| ipsets.contains_key(name)));
                delta.new.push(set.clone());
                continue;
            };
            this.versions.insert(set.clone(), split_name(name).map_or('a', |(_, version)| version));
            if *ipset != wanted || anew {
                let added = wanted.elements.difference(&ipset.elements).copied().collect();
                let removed = ipset.elements.difference(&wanted.elements).copied().collect();
                delta.members.insert(set.clone(), Members { added, removed });
            }
        }
        if let Some(table) = inet(plan) {
            table.chains.iter().for_each(|(chain, content)| this.chain(chain, &content.rules));
        }
        let batch = |this: &Ipsets| {
            let wanted = this.tables(plan);
            let wanted: Vec<&Table> = wanted.iter().collect();
            if anew { rebuilt(tables, &wanted) } else { differences(tables, &wanted) }
        };
        let mut steps = Steps { batch: batch(&this), ..Steps::default() };
        delta.rules = !steps.batch.is_empty();
        let switched = match inet(plan) {
            // what the rules were and what they are is not looked at closely here
            Some(_) if delta.rules => delta.members.keys().cloned().collect(),
            Some(_) => delta.switched(&this.users, &HashSet::new(), &HashSet::new()),
            None => BTreeSet::new(),
        };
        for set in &switched {
            let (start, _) = peer_set(set).expect("only peer sets are switched");
            this.versions.insert(set.clone(), free_version(&start, |name| ipsets.contains_key(name)));
        }
        if !switched.is_empty() {
            steps.batch = batch(&this);
        }
        if let Some(table) = inet(plan) {
            steps.before.extend(delta.new.iter().chain(&switched).map(|set| this.create(set, table)));
        }
        this.in_place(&delta, &switched, &mut steps);
        let kept: HashSet<String> = this.versions.keys().map(|set| this.name(set)).collect();
        this.doomed = ipsets.keys().filter(|name| is_ours(name) && !kept.contains(*name)).cloned().collect();
        steps.after.extend(this.doomed.iter().map(|name| IpsetOp::Destroy { name: name.clone() }));
        (this, steps)
    }

    /// The name of a peer set's ipset.
    fn name(&self, set: &str) -> String {
        let (start, _) = peer_set(set).expect("only peer sets are ipsets");
        format!("{start}{}", self.versions.get(set).copied().unwrap_or('a'))
    }

    fn create(&self, set: &str, table: &Table) -> IpsetOp {
        let (_, decl) = peer_set(set).expect("only peer sets are ipsets");
        IpsetOp::Create { name: self.name(set), set: sets::ipset(&decl, &table.sets[set]) }
    }

    /// Which chains look into which sets, after these steps.
    fn learn(&mut self, ops: &[&Op]) {
        let mut rules: BTreeMap<&String, Vec<&Rule>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::AddChain { chain, .. } | Op::FlushChain { chain } | Op::DeleteChain { chain } => {
                    rules.insert(chain, Vec::new());
                }
                Op::AddRule { chain, rule } => rules.entry(chain).or_default().push(rule),
                Op::AddSet { set, decl } => {
                    self.only.extend(split::only_in(decl).map(|family| (set.clone(), family)));
                }
                _ => {}
            }
        }
        rules.into_iter().for_each(|(chain, rules)| self.chain(chain, rules));
    }

    /// These are the rules of a chain now.
    fn chain<'a>(&mut self, chain: &str, rules: impl IntoIterator<Item = &'a Rule>) {
        for set in self.of_chain.remove(chain).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&set) {
                users.remove(chain);
                if users.is_empty() {
                    self.users.remove(&set);
                }
            }
        }
        for rule in rules {
            let allows = rule.exprs.last() == Some(&Expr::Verdict(Verdict::Return));
            for (set, negate) in split::lookups(rule) {
                let chains = self.users.entry(set.to_owned()).or_default();
                if let Some(all_allow) = chains.get_mut(chain) {
                    *all_allow &= allows && !negate;
                    continue;
                }
                chains.insert(chain.to_owned(), allows && !negate);
                self.of_chain.entry(chain.to_owned()).or_default().push(set.to_owned());
            }
        }
    }

    /// The peer sets that decide on packets that come to these chains.
    fn concerned(&self, chains: &BTreeSet<String>, table: &Table) -> HashSet<String> {
        let mut sets = HashSet::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = chains.iter().map(String::as_str).collect();
        while let Some(chain) = next.pop() {
            if !seen.insert(chain) {
                continue;
            }
            sets.extend(self.of_chain.get(chain).into_iter().flatten().cloned());
            let rules = table.chains.get(chain).into_iter().flat_map(|chain| &chain.rules);
            for expr in rules.flat_map(|rule| &rule.exprs) {
                match expr {
                    Expr::Verdict(verdict) => next.extend(verdict.target()),
                    Expr::Lookup { set, dest: Some(LookupDest::Verdict), .. } => {
                        let elements = table.sets.get(set).into_iter().flat_map(|map| map.elements.values());
                        next.extend(elements.filter_map(|element| element.target()));
                    }
                    _ => {}
                }
            }
        }
        sets
    }

    /// Members of sets that are not switched: what goes, before; what comes, after. Where an address leaves
    /// sets and comes into others in place, it is alone in that, and comes first.
    fn in_place(&self, delta: &Delta, switched: &BTreeSet<String>, steps: &mut Steps) {
        let mixed = delta.mixed();
        let part = |add: bool, of_mixed: bool| {
            let mut ops = Vec::new();
            for (set, members) in delta.members.iter().filter(|(set, _)| !switched.contains(*set)) {
                let elements = if add { &members.added } else { &members.removed };
                let elements = elements.iter().filter(|e| mixed.contains(&e.address()) == of_mixed);
                let elements: Vec<Element> = elements.copied().collect();
                if elements.is_empty() {
                    continue;
                }
                let (_, decl) = peer_set(set).expect("only peer sets are ipsets");
                let name = self.name(set);
                ops.push(match add {
                    true => IpsetOp::Add { name, decl, elements },
                    false => IpsetOp::Remove { name, decl, elements },
                });
            }
            ops
        };
        steps.before.extend([part(false, false), part(true, true), part(false, true)].into_iter().flatten());
        steps.after.extend(part(true, false));
    }

    /// What changes in the tables, and in rules that look into sets which are switched.
    fn batch(
        &self,
        table: &Table,
        pending: &[Transaction],
        ops: &[&Op],
        switched: &BTreeSet<String>,
    ) -> Vec<Transaction> {
        let names = |set: &str| self.name(set);
        let only = |set: &str| self.only.get(set).copied();
        let written: HashSet<&str> = ops.iter().filter_map(|op| written(op)).collect();
        let mut batch: Vec<Transaction> =
            pending.iter().filter(|t| t.family != Family::Inet).cloned().collect();
        for family in FAMILIES {
            let sets =
                switched.iter().filter(|set| peer_set(set).is_some_and(|(_, decl)| decl.family == family));
            let users: BTreeSet<&String> =
                sets.filter_map(|set| self.users.get(set)).flat_map(BTreeMap::keys).collect();
            let mut all = Vec::new();
            for chain in users.into_iter().filter(|chain| !written.contains(chain.as_str())) {
                all.push(Op::FlushChain { chain: chain.clone() });
                let rules =
                    table.chains[chain].rules.iter().filter_map(|rule| split::rule(rule, family, &names));
                all.extend(rules.map(|rule| Op::AddRule { chain: chain.clone(), rule }));
            }
            all.extend(ops.iter().filter_map(|op| split::op(op, family, &names, &only)));
            if !all.is_empty() {
                batch.push(Transaction { family, table: table.name.clone(), ops: all });
            }
        }
        batch
    }
}

/// A version that no ipset has.
fn free_version(start: &str, is_there: impl Fn(&String) -> bool) -> char {
    ('a'..='z').find(|version| !is_there(&format!("{start}{version}"))).unwrap_or('a')
}

/// The ipsets that a table's rules look into.
fn ipsets_of(table: &Table) -> impl Iterator<Item = &str> {
    let rules = table.chains.values().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.exprs).filter_map(|expr| match expr {
        Expr::Ipset { set, .. } => Some(set.as_str()),
        _ => None,
    })
}
