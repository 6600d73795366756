//! A change in as many batches as it takes for every packet to be judged by old or new policies.
//!
//! A batch of nf_tables is one moment for whoever reads the ruleset, but not for a packet that is being
//! judged at that moment: it goes on with the rules of the generation in which it began, while each
//! lookup in a set or map is answered from the generation of its own moment. So a packet can
//! take an element that is new, and jump to a chain that is new, and has no rules in the packet's
//! generation: it falls through. (With 100,000 packets a second, one in ten changes lets one pass.) And it can
//! look a port up in a map that has just lost its elements.
//!
//! ```text
//!   A  new       sets, chains, maps, and dispatch of what had none       pods that were open: now closed
//!   B  switch    dispatch from an old chain to a new one, members        all of it in one moment
//!   C  leave     dispatch that is no more                                pods that were closed: now open
//!   D  gone      chains, maps and sets that nothing leads to
//! ```
//!
//! In each stage, an end of a flow goes from its old verdict to its new one. Those of A were open before, those of
//! C are open after, those of B go together: no flow passes that old and new both deny, and none
//! is dropped that both allow. Where the rules of a chain change in place, ends come to it and leave it in B, too:
//! else they would meet other rules than those of their old or new state. Most changes have one stage: members,
//! pods that come, pods that go.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Bytes, Element, Op, Transaction};
use crate::peers::is_peer_set;
use crate::told;

/// Cuts transactions into batches, to be sent one after the other.
pub fn stages(transactions: Vec<Transaction>) -> Vec<Vec<Transaction>> {
    let mut all: [Vec<Transaction>; 4] = Default::default();
    let (mut to_new_chain, mut comes) = (false, false);
    for transaction in transactions {
        let Transaction { family, table, ops } = transaction;
        let parts = Parts::of(ops);
        to_new_chain |= parts.to_new_chain;
        comes |= parts.comes;
        for (stage, ops) in all.iter_mut().zip(parts.stages) {
            if !ops.is_empty() {
                stage.push(Transaction { family, table: table.clone(), ops });
            }
        }
    }
    let [mut new, mut switch, mut leave, gone] = all;
    if !to_new_chain {
        new.append(&mut switch);
    }
    let last = if switch.is_empty() { &mut new } else { &mut switch };
    if !comes {
        last.append(&mut leave);
    }
    [new, switch, leave, gone].into_iter().filter(|batch| !batch.is_empty()).collect()
}

/// The steps of one transaction by stage.
#[derive(Default)]
struct Parts {
    stages: [Vec<Op>; 4],
    /// An element switches to a chain that is new.
    to_new_chain: bool,
    /// An element has come, in the place of which there was none.
    comes: bool,
}

const NEW: usize = 0;
const SWITCH: usize = 1;
const LEAVE: usize = 2;
const GONE: usize = 3;

impl Parts {
    /// Moves the steps, for there can be 100,000 elements in them.
    fn of(ops: Vec<Op>) -> Parts {
        let mut parts = Parts::default();
        if ops.contains(&Op::DeleteTable) {
            // the new table's hooks are there before the old one's go
            parts.stages[NEW] = ops;
            return parts;
        }
        let mut known = Known::default();
        ops.iter().for_each(|op| known.take(op));
        for op in ops {
            parts.place(op, &known);
        }
        parts
    }

    fn place(&mut self, op: Op, known: &Known) {
        let stage = match op {
            Op::AddTable | Op::AddSet { .. } | Op::AddChain { .. } => NEW,
            Op::DeleteTable | Op::DeleteSet { .. } | Op::DeleteChain { .. } => GONE,
            Op::AddRule { ref chain, .. } if known.new.contains(chain) => NEW,
            Op::FlushChain { ref chain } if known.gone.contains(chain) => GONE,
            Op::AddRule { .. } | Op::FlushChain { .. } => SWITCH,
            Op::AddElements { ref set, .. } if known.new.contains(set) => NEW,
            Op::AddElements { ref set, .. } | Op::DeleteElements { ref set, .. } if is_peer_set(set) => {
                SWITCH
            }
            // what is not about peers says where pods are, and which addresses are theirs
            Op::AddElements { set, decl, elements } => {
                let switches = |(key, element): &(Bytes, Element)| {
                    known.removed(&set, key) || known.leads_to_rewritten(element)
                };
                let (switch, come): (Vec<_>, Vec<_>) = elements.into_iter().partition(switches);
                self.to_new_chain |= switch.iter().any(|(_, element)| known.leads_to_new(element));
                self.comes |= !come.is_empty();
                for (stage, elements) in [(NEW, come), (SWITCH, switch)] {
                    if !elements.is_empty() {
                        let (set, decl) = (set.clone(), decl.clone());
                        self.stages[stage].push(Op::AddElements { set, decl, elements });
                    }
                }
                return;
            }
            Op::DeleteElements { set, decl, elements } => {
                let switches = |(key, element): &(Bytes, Element)| {
                    known.added(&set, key) || known.leads_to_rewritten(element)
                };
                let (switch, leave): (Vec<_>, Vec<_>) = elements.into_iter().partition(switches);
                for (stage, elements) in [(SWITCH, switch), (LEAVE, leave)] {
                    if !elements.is_empty() {
                        let (set, decl) = (set.clone(), decl.clone());
                        self.stages[stage].push(Op::DeleteElements { set, decl, elements });
                    }
                }
                return;
            }
        };
        self.stages[stage].push(op);
    }
}

/// What the steps of a transaction do, to tell what a step among them means.
#[derive(Default)]
struct Known {
    /// Sets and chains.
    new: BTreeSet<String>,
    /// Chains.
    gone: BTreeSet<String>,
    /// Chains, those that go and others.
    emptied: BTreeSet<String>,
    /// Keys by set, of sets that are neither new nor of peers.
    added: BTreeMap<String, BTreeSet<Bytes>>,
    removed: BTreeMap<String, BTreeSet<Bytes>>,
}

impl Known {
    fn take(&mut self, op: &Op) {
        let keys =
            |elements: &[(Bytes, Element)]| elements.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        match op {
            Op::AddSet { set: name, .. } | Op::AddChain { chain: name, .. } => {
                self.new.insert(name.clone());
            }
            Op::DeleteChain { chain } => {
                self.gone.insert(chain.clone());
            }
            Op::FlushChain { chain } => {
                self.emptied.insert(chain.clone());
            }
            // sets come before their elements
            Op::AddElements { set, elements, .. } if !is_peer_set(set) && !self.new.contains(set) => {
                self.added.entry(set.clone()).or_default().extend(keys(elements));
            }
            Op::DeleteElements { set, elements, .. } if !is_peer_set(set) => {
                self.removed.entry(set.clone()).or_default().extend(keys(elements));
            }
            _ => {}
        }
    }

    fn added(&self, set: &str, key: &Bytes) -> bool {
        self.added.get(set).is_some_and(|keys| keys.contains(key))
    }

    fn removed(&self, set: &str, key: &Bytes) -> bool {
        self.removed.get(set).is_some_and(|keys| keys.contains(key))
    }

    fn leads_to_new(&self, element: &Element) -> bool {
        element.target().is_some_and(|chain| self.new.contains(chain))
    }

    /// To a chain that is there before and after, with other rules, its own or those of one of its classes
    /// of ports; also by way of one that tells what that one lets pass.
    fn leads_to_rewritten(&self, element: &Element) -> bool {
        let Some(target) = element.target().map(told::decides) else { return false };
        let emptied = self.emptied.range(target.to_owned()..);
        emptied.take_while(|chain| chain.starts_with(target)).any(|chain| {
            (chain.len() == target.len() || chain[target.len()..].starts_with('_'))
                && !self.gone.contains(chain)
        })
    }
}
