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
//! is dropped that both allow. Where the rules of a chain change in place, ends come to it and leave it in B, too: else
//! they would meet the other rules than those of their old or new state. Most changes have one stage: members, pods that come, pods that go.

use std::collections::BTreeSet;

use crate::model::{Bytes, Element, Op, Transaction};
use crate::peers::is_peer_set;

/// Cuts transactions into batches, to be sent one after the other.
pub fn stages(transactions: Vec<Transaction>) -> Vec<Vec<Transaction>> {
    let mut all: [Vec<Transaction>; 4] = Default::default();
    let (mut to_new_chain, mut comes) = (false, false);
    for transaction in transactions {
        let parts = Parts::of(&transaction);
        to_new_chain |= parts.to_new_chain;
        comes |= parts.comes;
        for (stage, ops) in all.iter_mut().zip(parts.stages) {
            if !ops.is_empty() {
                stage.push(Transaction { family: transaction.family, table: transaction.table.clone(), ops });
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
    fn of(transaction: &Transaction) -> Parts {
        let mut parts = Parts::default();
        if transaction.ops.contains(&Op::DeleteTable) {
            // the new table's hooks are there before the old one's go
            parts.stages[NEW] = transaction.ops.clone();
            return parts;
        }
        let (mut new, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let (mut added, mut removed, mut emptied) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for op in &transaction.ops {
            match op {
                Op::AddSet { set: name, .. } | Op::AddChain { chain: name, .. } => {
                    new.insert(name.as_str());
                }
                Op::DeleteChain { chain } => {
                    gone.insert(chain.as_str());
                }
                Op::FlushChain { chain } => {
                    emptied.insert(chain.as_str());
                }
                Op::AddElements { set, elements, .. } => {
                    added.extend(elements.iter().map(|(key, _)| (set.as_str(), key)));
                }
                Op::DeleteElements { set, elements, .. } => {
                    removed.extend(elements.iter().map(|(key, _)| (set.as_str(), key)));
                }
                _ => {}
            }
        }
        let rewritten = |(_, element): &(Bytes, Element)| {
            element.target().is_some_and(|chain| emptied.contains(chain) && !gone.contains(chain))
        };
        for op in &transaction.ops {
            match op {
                Op::AddTable | Op::AddSet { .. } | Op::AddChain { .. } => parts.stages[NEW].push(op.clone()),
                Op::DeleteTable | Op::DeleteSet { .. } | Op::DeleteChain { .. } => {
                    parts.stages[GONE].push(op.clone());
                }
                Op::AddRule { chain, .. } => {
                    let stage = if new.contains(chain.as_str()) { NEW } else { SWITCH };
                    parts.stages[stage].push(op.clone());
                }
                Op::FlushChain { chain } => {
                    let stage = if gone.contains(chain.as_str()) { GONE } else { SWITCH };
                    parts.stages[stage].push(op.clone());
                }
                Op::AddElements { set, .. } if new.contains(set.as_str()) => {
                    parts.stages[NEW].push(op.clone())
                }
                Op::AddElements { set, .. } | Op::DeleteElements { set, .. } if is_peer_set(set) => {
                    parts.stages[SWITCH].push(op.clone());
                }
                // what is not about peers says where pods are, and which addresses are theirs
                Op::AddElements { set, decl, elements } => {
                    let switches =
                        |e: &&(Bytes, Element)| removed.contains(&(set.as_str(), &e.0)) || rewritten(e);
                    let (switch, come): (Vec<_>, Vec<_>) = elements.iter().partition(switches);
                    let leads_to_new = |(_, element): &&(Bytes, Element)| {
                        element.target().is_some_and(|chain| new.contains(chain))
                    };
                    parts.to_new_chain |= switch.iter().any(leads_to_new);
                    parts.comes |= !come.is_empty();
                    for (stage, elements) in [(NEW, come), (SWITCH, switch)] {
                        let op =
                            |elements| Op::AddElements { set: set.clone(), decl: decl.clone(), elements };
                        parts.push(stage, elements, op);
                    }
                }
                Op::DeleteElements { set, decl, elements } => {
                    let switches =
                        |e: &&(Bytes, Element)| added.contains(&(set.as_str(), &e.0)) || rewritten(e);
                    let (switch, leave): (Vec<_>, Vec<_>) = elements.iter().partition(switches);
                    for (stage, elements) in [(SWITCH, switch), (LEAVE, leave)] {
                        let op =
                            |elements| Op::DeleteElements { set: set.clone(), decl: decl.clone(), elements };
                        parts.push(stage, elements, op);
                    }
                }
            }
        }
        parts
    }

    fn push(
        &mut self,
        stage: usize,
        elements: Vec<&(Bytes, Element)>,
        op: impl Fn(Vec<(Bytes, Element)>) -> Op,
    ) {
        if !elements.is_empty() {
            self.stages[stage].push(op(elements.into_iter().cloned().collect()));
        }
    }
}
