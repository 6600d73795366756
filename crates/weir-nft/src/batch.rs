//! Transactions as one batch of messages, and the way back from a message to what it is about.

use std::collections::HashMap;

use weir_dataplane::model::{Op, SetDecl, Transaction};

use crate::elements::{self, ELEMENT_ROOM, For};
use crate::error::ApplyError;
use crate::ffi::{Chain, Head, Name, Scratch, Set, Table, Unfit};
use crate::rules::Indices;
use crate::wire::{
    BATCH_BEGIN, BATCH_END, BATCH_GENID, F_ACK, F_APPEND, F_CREATE, F_EXCL, HEADERS, Kind, SUBSYS_NFTABLES,
    attrs, begin_message, begin_nest, end_message, end_nest, put,
};
use crate::{decl, kernel, rules, text};

/// `NFTA_SET_ELEM_LIST_*`
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;

/// A list of elements is one attribute, whose length has 16 bits.
const LIST_ROOM: usize = 60_000;

/// A step: which transaction, and which of its operations.
type Step = (usize, usize);

/// A message: which step it does, where it starts, and which of the step's elements it has.
struct Mark {
    step: Step,
    start: usize,
    elements: std::ops::Range<usize>,
}

/// Bytes to send.
pub(crate) struct Batch<'a> {
    transactions: &'a [Transaction],
    ipsets: &'a Indices,
    pub(crate) bytes: Vec<u8>,
    /// Sequence number of `BATCH_BEGIN`; each message has the next one.
    first_seq: u32,
    marks: Vec<Mark>,
}

/// At most so many messages are in the batch of these transactions.
pub(crate) fn most_messages(transactions: &[Transaction]) -> u32 {
    let of = |op: &Op| match op {
        Op::AddElements { elements, .. } | Op::DeleteElements { elements, .. } => elements.len(),
        _ => 1,
    };
    2 + transactions.iter().flat_map(|t| &t.ops).map(of).sum::<usize>() as u32
}

impl<'a> Batch<'a> {
    /// Writes the messages. With a generation, the kernel takes the batch only in that one.
    pub(crate) fn new(
        transactions: &'a [Transaction],
        ipsets: &'a Indices,
        generation: Option<u32>,
        first_seq: u32,
    ) -> Result<Batch<'a>, ApplyError> {
        let mut batch = Batch {
            transactions,
            ipsets,
            bytes: Vec::with_capacity(64 * most_messages(transactions) as usize),
            first_seq,
            marks: Vec::new(),
        };
        let begin = begin_message(&mut batch.bytes, BATCH_BEGIN, 0, first_seq, 0, SUBSYS_NFTABLES);
        if let Some(generation) = generation {
            put(&mut batch.bytes, BATCH_GENID, &generation.to_be_bytes());
        }
        end_message(&mut batch.bytes, begin);

        let mut scratch = Scratch::new();
        for (number, transaction) in transactions.iter().enumerate() {
            let sizes = sizes(transaction);
            for op in 0..transaction.ops.len() {
                let step = (number, op);
                batch.push_op(step, &sizes, &mut scratch).map_err(|unfit| ApplyError::Invalid {
                    object: batch.describe(step),
                    reason: unfit.to_string(),
                })?;
            }
        }

        // One acknowledgement is enough: the kernel sends it once all has been committed, and it reports
        // errors without being asked. One for each message would overflow the receive buffer.
        if let Some(last) = batch.marks.last() {
            let flags = last.start + 6;
            let asked = u16::from_ne_bytes([batch.bytes[flags], batch.bytes[flags + 1]]) | F_ACK;
            batch.bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        }
        let seq = batch.next_seq();
        let end = begin_message(&mut batch.bytes, BATCH_END, 0, seq, 0, SUBSYS_NFTABLES);
        end_message(&mut batch.bytes, end);
        Ok(batch)
    }

    fn next_seq(&self) -> u32 {
        self.first_seq + 1 + self.marks.len() as u32
    }

    /// The sequence numbers of the batch.
    pub(crate) fn seqs(&self) -> std::ops::RangeInclusive<u32> {
        self.first_seq..=self.next_seq()
    }

    /// The sequence number of the message that is acknowledged.
    pub(crate) fn last_seq(&self) -> u32 {
        self.next_seq() - 1
    }

    fn push_op(
        &mut self,
        step: Step,
        sizes: &HashMap<&str, u32>,
        scratch: &mut Scratch,
    ) -> Result<(), Unfit> {
        let transaction = &self.transactions[step.0];
        let family = kernel::family(transaction.family);
        let table = Name::new(&transaction.table)?;
        let head = |kind, flags| Head { kind, family, flags, seq: self.next_seq() };
        let create = F_CREATE | F_EXCL;
        match &transaction.ops[step.1] {
            Op::AddTable => {
                let message = Table::new(&table).message(scratch, head(Kind::NewTable, F_CREATE));
                self.push(step, message);
            }
            Op::DeleteTable => {
                let message = Table::new(&table).message(scratch, head(Kind::DelTable, 0));
                self.push(step, message);
            }
            Op::AddSet { set, decl } => {
                let size = if decl.constant && !decl.interval { sizes.get(set.as_str()) } else { None };
                // unique in the batch
                let id = self.marks.len() as u32 + 1;
                let set = decl::encode(&table, &Name::new(set)?, decl, id, size.copied())?;
                self.push(step, set.message(scratch, head(Kind::NewSet, create)));
            }
            Op::DeleteSet { set } => {
                let set = Set::new(&table, &Name::new(set)?);
                self.push(step, set.message(scratch, head(Kind::DelSet, 0)));
            }
            Op::AddElements { set, decl, elements } => {
                let set = Name::new(set)?;
                self.push_elements(step, family, &table, &set, decl, elements, For::Add)?;
            }
            Op::DeleteElements { set, decl, elements } => {
                let set = Name::new(set)?;
                self.push_elements(step, family, &table, &set, decl, elements, For::Delete)?;
            }
            Op::AddChain { chain, hook } => {
                let mut chain = Chain::new(&table, &Name::new(chain)?);
                if let Some(hook) = hook {
                    chain.hook(kernel::hook(hook.point).ok_or(Unfit::Foreign)?, hook.priority);
                }
                self.push(step, chain.message(scratch, head(Kind::NewChain, create)));
            }
            // The deletion of a chain's rules without saying which.
            Op::FlushChain { chain } => {
                let rules = crate::ffi::Rule::new(&table, &Name::new(chain)?);
                self.push(step, rules.message(scratch, head(Kind::DelRule, 0)));
            }
            Op::DeleteChain { chain } => {
                let chain = Chain::new(&table, &Name::new(chain)?);
                self.push(step, chain.message(scratch, head(Kind::DelChain, 0)));
            }
            Op::AddRule { chain, rule } => {
                let rule = rules::encode(&table, &Name::new(chain)?, rule, self.ipsets)?;
                self.push(step, rule.message(scratch, head(Kind::NewRule, F_CREATE | F_APPEND)));
            }
        }
        Ok(())
    }

    fn push(&mut self, step: Step, message: &[u8]) {
        self.marks.push(Mark { step, start: self.bytes.len(), elements: 0..0 });
        self.bytes.extend_from_slice(message);
    }

    /// As many messages as it takes.
    #[allow(clippy::too_many_arguments, reason = "one caller, which has taken an Op apart")]
    fn push_elements(
        &mut self,
        step: Step,
        family: u8,
        table: &Name,
        set: &Name,
        decl: &SetDecl,
        elements: &[(weir_dataplane::model::Bytes, weir_dataplane::model::Element)],
        purpose: For,
    ) -> Result<(), Unfit> {
        decl::check(decl)?;
        let (kind, flags) = match purpose {
            For::Add => (Kind::NewSetElem, F_CREATE | F_EXCL),
            For::Delete => (Kind::DelSetElem, 0),
        };
        let mut at = 0;
        while at < elements.len() {
            let seq = self.next_seq();
            let start = begin_message(&mut self.bytes, kind.message_type(), flags, seq, family, 0);
            put(&mut self.bytes, LIST_TABLE, table.bytes());
            put(&mut self.bytes, LIST_SET, set.bytes());
            let list = begin_nest(&mut self.bytes, LIST_ELEMENTS);
            let first = at;
            while at < elements.len() && self.bytes.len() - list < LIST_ROOM - ELEMENT_ROOM {
                let (key, element) = &elements[at];
                elements::encode(&mut self.bytes, decl, key, element, purpose)?;
                at += 1;
            }
            end_nest(&mut self.bytes, list);
            end_message(&mut self.bytes, start);
            self.marks.push(Mark { step, start, elements: first..at });
        }
        Ok(())
    }

    /// What the message with this sequence number does; `offset` is where in the message the error is.
    pub(crate) fn object(&self, seq: u32, offset: Option<usize>) -> String {
        let place = seq.checked_sub(self.first_seq + 1).map(|place| place as usize);
        let Some(mark) = place.and_then(|place| self.marks.get(place)) else {
            let steps: usize = self.transactions.iter().map(|t| t.ops.len()).sum();
            let tables: Vec<String> = self.transactions.iter().map(table_name).collect();
            return format!("commit {steps} steps on {}", tables.join(" and "));
        };
        let transaction = &self.transactions[mark.step.0];
        let (verb, preposition, set, decl, elements) = match &transaction.ops[mark.step.1] {
            Op::AddElements { set, decl, elements } => ("add", "to", set, decl, elements),
            Op::DeleteElements { set, decl, elements } => ("delete", "from", set, decl, elements),
            _ => return self.describe(mark.step),
        };
        let key = |key: &[u8]| text::key(decl, key);
        let which = match (self.element_at(mark, offset), &elements[mark.elements.clone()]) {
            (Some(found), _) => format!("element {}", key(found)),
            (None, [one]) => format!("element {}", key(&one.0)),
            (None, [first, .., last]) => format!(
                "one of the {} elements from {} to {}",
                mark.elements.len(),
                key(&first.0),
                key(&last.0)
            ),
            (None, []) => "elements".into(),
        };
        format!("{verb} {which} {preposition} {} in {}", set_name(set, decl), table_name(transaction))
    }

    /// The name of the chain, set or map that the message with this sequence number is about.
    pub(crate) fn name(&self, seq: u32) -> Option<String> {
        let place = seq.checked_sub(self.first_seq + 1)? as usize;
        let (transaction, op) = self.marks.get(place)?.step;
        match &self.transactions[transaction].ops[op] {
            Op::AddTable | Op::DeleteTable => None,
            Op::AddSet { set: name, .. }
            | Op::DeleteSet { set: name }
            | Op::AddElements { set: name, .. }
            | Op::DeleteElements { set: name, .. }
            | Op::AddChain { chain: name, .. }
            | Op::FlushChain { chain: name }
            | Op::DeleteChain { chain: name }
            | Op::AddRule { chain: name, .. } => Some(name.clone()),
        }
    }

    /// A step in words, and the name of what it is about.
    #[cfg(feature = "faults")]
    pub(crate) fn step(&self, transaction: usize, op: usize) -> (String, Option<String>) {
        let place = self.marks.iter().position(|mark| mark.step == (transaction, op));
        let seq = self.first_seq + 1 + place.unwrap_or_default() as u32;
        (self.object(seq, None), self.name(seq))
    }

    /// The key of the element whose attribute is at `offset` in the message.
    fn element_at(&self, mark: &Mark, offset: Option<usize>) -> Option<&[u8]> {
        let message = &self.bytes[mark.start..];
        let len = crate::wire::u32_at(message, 0)? as usize;
        let message = &message[..len];
        // The element's attribute begins four bytes before its value.
        let wanted = message.as_ptr() as usize + offset? + 4;
        let list = attrs(message.get(HEADERS..)?).value_of(LIST_ELEMENTS)?;
        let (_, element) = attrs(list).find(|(_, element)| element.as_ptr() as usize == wanted)?;
        elements::key_of(element)
    }

    /// A step in words, to follow "cannot" or to be followed by what is wrong.
    fn describe(&self, (number, op): Step) -> String {
        let transaction = &self.transactions[number];
        let table = table_name(transaction);
        match &transaction.ops[op] {
            Op::AddTable => format!("add {table}"),
            Op::DeleteTable => format!("delete {table}"),
            Op::AddSet { set, decl } => format!("add {} to {table}", set_name(set, decl)),
            Op::DeleteSet { set } => format!("delete set {set} from {table}"),
            Op::AddElements { set, decl, elements } => {
                format!("add {} elements to {} in {table}", elements.len(), set_name(set, decl))
            }
            Op::DeleteElements { set, decl, elements } => {
                format!("delete {} elements from {} in {table}", elements.len(), set_name(set, decl))
            }
            Op::AddChain { chain, hook: None } => format!("add chain {chain} to {table}"),
            Op::AddChain { chain, hook: Some(hook) } => {
                format!("add chain {chain} at hook {:?} to {table}", hook.point)
            }
            Op::FlushChain { chain } => format!("flush chain {chain} in {table}"),
            Op::DeleteChain { chain } => format!("delete chain {chain} from {table}"),
            Op::AddRule { chain, rule } => {
                let same = |op: &&Op| matches!(op, Op::AddRule { chain: other, .. } if other == chain);
                let number = transaction.ops[..=op].iter().filter(same).count();
                let comment = rule.comment.as_ref().map(|c| format!(" ({c:?})")).unwrap_or_default();
                format!("add rule {number}{comment} to chain {chain} in {table}")
            }
        }
    }
}

fn table_name(transaction: &Transaction) -> String {
    format!("table {} {}", kernel::family_name(transaction.family), transaction.table)
}

fn set_name(set: &str, decl: &SetDecl) -> String {
    format!("{} {set}", if decl.data.is_some() { "map" } else { "set" })
}

/// How many elements the transaction adds to each set.
fn sizes(transaction: &Transaction) -> HashMap<&str, u32> {
    let mut sizes = HashMap::new();
    for op in &transaction.ops {
        if let Op::AddElements { set, elements, .. } = op
            && !elements.is_empty()
        {
            *sizes.entry(set.as_str()).or_default() += elements.len() as u32;
        }
    }
    sizes
}
