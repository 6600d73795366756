//! What a transaction on the plan changes, and which peer sets that allows to be changed in place.
//!
//! The reasons are in `steps`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};

use super::model::Element;
use super::sets::{self, peer_set};
use crate::model::{Bytes, Element as NftElement, Field, Op, SetDecl};

/// The chains that look into a set, and whether all of their rules which do so allow.
pub(crate) type Users = HashMap<String, BTreeMap<String, bool>>;

/// Members that come into a set and members that leave it.
#[derive(Debug, Default)]
pub(crate) struct Members {
    pub(crate) added: BTreeSet<Element>,
    pub(crate) removed: BTreeSet<Element>,
}

/// What a transaction does.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) new: Vec<String>,
    pub(crate) gone: Vec<String>,
    pub(crate) members: BTreeMap<String, Members>,
    /// Something else than members changes.
    pub(crate) rules: bool,
    /// Chains whose rules change, or to which other packets are sent than before: as they were, and as they
    /// will be.
    pub(crate) old_chains: BTreeSet<String>,
    pub(crate) new_chains: BTreeSet<String>,
    /// Addresses of which a set that is none of peers says something (no) more.
    pub(crate) set_added: HashSet<IpAddr>,
    pub(crate) set_removed: HashSet<IpAddr>,
}

/// The chain that a step begins to write, or deletes.
pub(crate) fn written(op: &Op) -> Option<&str> {
    match op {
        Op::AddChain { chain, .. } | Op::FlushChain { chain } | Op::DeleteChain { chain } => Some(chain),
        _ => None,
    }
}

/// The addresses in a key.
fn addresses<'a>(decl: &'a SetDecl, key: &'a Bytes) -> impl Iterator<Item = IpAddr> + 'a {
    let mut at = 0;
    decl.key.iter().filter_map(move |field| {
        let bytes = key.get(at..at + field.len())?;
        at += field.len().next_multiple_of(4);
        match field {
            Field::Ipv4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            Field::Ipv6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
            _ => None,
        }
    })
}

impl Delta {
    pub(crate) fn new(ops: &[&Op], rules: bool) -> Delta {
        let mut delta = Delta { rules, ..Delta::default() };
        for op in ops {
            match op {
                Op::AddSet { set, .. } if peer_set(set).is_some() => delta.new.push(set.clone()),
                Op::DeleteSet { set } if peer_set(set).is_some() => delta.gone.push(set.clone()),
                Op::AddElements { set, decl, elements } | Op::DeleteElements { set, decl, elements } => {
                    delta.elements(set, decl, elements, matches!(op, Op::AddElements { .. }));
                    delta.rules |= peer_set(set).is_none();
                }
                _ => {
                    delta.rules = true;
                    if let Some(chain) = written(op) {
                        delta.old_chains.insert(chain.to_owned());
                        delta.new_chains.insert(chain.to_owned());
                    }
                }
            }
        }
        delta.new.iter().for_each(|set| drop(delta.members.remove(set)));
        delta
    }

    fn elements(&mut self, set: &str, decl: &SetDecl, elements: &[(Bytes, NftElement)], add: bool) {
        if let Some((_, decl)) = peer_set(set) {
            let members = self.members.entry(set.to_owned()).or_default();
            let members = if add { &mut members.added } else { &mut members.removed };
            members.extend(elements.iter().flat_map(|(key, element)| sets::elements(&decl, key, element)));
        } else if decl.data.is_some() {
            let chains = if add { &mut self.new_chains } else { &mut self.old_chains };
            chains.extend(elements.iter().filter_map(|(_, element)| element.target()).map(str::to_owned));
        } else {
            let said = if add { &mut self.set_added } else { &mut self.set_removed };
            said.extend(elements.iter().flat_map(|(key, _)| addresses(decl, key)));
        }
    }

    /// Addresses that come into a set and leave another (or the same, with another port).
    pub(crate) fn mixed(&self) -> HashSet<IpAddr> {
        let removed = self.members.values().flat_map(|members| &members.removed).map(Element::address);
        let removed: HashSet<IpAddr> = removed.collect();
        let added = self.members.values().flat_map(|members| &members.added).map(Element::address);
        added.filter(|address| removed.contains(address)).collect()
    }

    /// Sets that cannot be changed in place. `old` and `new` are those that decide on packets for which
    /// rules change.
    pub(crate) fn switched(
        &self,
        users: &Users,
        old: &HashSet<String>,
        new: &HashSet<String>,
    ) -> BTreeSet<String> {
        let elements = self.members.values().map(|m| m.added.len() + m.removed.len()).sum::<usize>();
        let not_allowing =
            |set: &String| users.get(set).is_some_and(|chains| chains.values().any(|allows| !allows));
        if (self.rules || elements > 1) && self.members.keys().any(not_allowing) {
            return self.members.keys().cloned().collect();
        }
        let mixed = self.mixed();
        let alone = |address: &IpAddr| {
            !self.rules && mixed.iter().filter(|other| other.is_ipv4() == address.is_ipv4()).count() == 1
        };
        let concerned = |(set, members): &(&String, &Members)| {
            let mut all = members.added.iter().chain(&members.removed).map(Element::address);
            let is_in = |said: &HashSet<IpAddr>, elements: &BTreeSet<Element>| {
                !said.is_empty() && elements.iter().any(|e| said.contains(&e.address()))
            };
            (!members.removed.is_empty() && old.contains(*set))
                || (!members.added.is_empty() && new.contains(*set))
                || all.any(|address| mixed.contains(&address) && !alone(&address))
                // what another set says of the address now is what this one said before, or the other way
                || is_in(&self.set_added, &members.removed)
                || is_in(&self.set_removed, &members.added)
        };
        self.members.iter().filter(concerned).map(|(set, _)| set.clone()).collect()
    }
}
