//! Elements of sets and maps, written and read without libnftnl: there can be 100,000 of them,
//! and an object for each is most of what a large batch costs.
//!
//! Three ways in which the kernel has an element:
//!
//! ```text
//! hash set           key
//! several ranges     key, last key                     (pipapo: interval, several fields)
//! one range          key | last + 1 with INTERVAL_END  (rbtree: two elements; no second one if
//!                                                       the interval reaches the last value)
//! ```

use std::collections::BTreeMap;

use weir_dataplane::model::{Bytes, Element, ElementData, Field, Set, SetData, SetDecl};

use crate::ffi::{Name, Unfit};
use crate::rules::{DATA_VALUE, DATA_VERDICT, VERDICT_CHAIN, VERDICT_CODE, decode_verdict};
use crate::wire::{Attrs, attrs, be32, begin_nest, end_nest, put};
use crate::{kernel, userdata};

/// `NFTA_LIST_ELEM`
const LIST_ELEM: u16 = 1;
/// `NFTA_SET_ELEM_*`
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const USERDATA: u16 = 6;
const KEY_END: u16 = 10;

/// More than any element takes: two keys, a value or verdict, a comment.
pub(crate) const ELEMENT_ROOM: usize = 1024;

/// Whether an element is written to be added or to be deleted (then without value and comment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Add,
    Delete,
}

/// Writes one element of the model as one or two of the kernel.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    decl: &SetDecl,
    key: &[u8],
    element: &Element,
    purpose: For,
) -> Result<(), Unfit> {
    let want = decl.key_len();
    check_key(want, key)?;
    if let Some(last) = &element.last {
        check_key(want, last)?;
        // Of several fields each is a range of its own.
        if decl.key.len() == 1 && key > last.as_slice() {
            return Err(Unfit::Backwards);
        }
    }
    let (last, end, open) = match (&element.last, decl.interval, decl.key.len()) {
        (Some(last), true, 1) => {
            let end = next(last);
            let open = end.is_none();
            (None, end, open)
        }
        (Some(last), true, _) => (Some(last), None, false),
        (None, false, _) => (None, None, false),
        _ => return Err(Unfit::Interval),
    };

    let nest = begin_nest(out, LIST_ELEM);
    put_value(out, KEY, key);
    if let Some(last) = last {
        put_value(out, KEY_END, last);
    }
    if purpose == For::Add {
        put_data(out, decl, element)?;
        if element.comment.is_some() || open {
            let mut bytes = Vec::with_capacity(16);
            if let Some(comment) = &element.comment {
                userdata::put_comment(&mut bytes, comment)?;
            }
            if open {
                userdata::put_open_interval(&mut bytes);
            }
            put(out, USERDATA, &bytes);
        }
    }
    end_nest(out, nest);

    if let Some(end) = end {
        let nest = begin_nest(out, LIST_ELEM);
        put(out, FLAGS, &kernel::ELEM_INTERVAL_END.to_be_bytes());
        put_value(out, KEY, &end);
        end_nest(out, nest);
    }
    Ok(())
}

fn check_key(want: usize, key: &[u8]) -> Result<(), Unfit> {
    if key.len() == want { Ok(()) } else { Err(Unfit::Key { want, have: key.len() }) }
}

fn put_value(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let nest = begin_nest(out, kind);
    put(out, DATA_VALUE, value);
    end_nest(out, nest);
}

fn put_data(out: &mut Vec<u8>, decl: &SetDecl, element: &Element) -> Result<(), Unfit> {
    match (decl.data, &element.data) {
        (None, None) => {}
        (Some(SetData::Value(field)), Some(ElementData::Value(value))) => {
            if value.len() != field.len() {
                return Err(Unfit::Value { want: field.len(), have: value.len() });
            }
            put_value(out, DATA, value);
        }
        (Some(SetData::Verdict), Some(ElementData::Verdict(verdict))) => {
            let (code, chain) = kernel::verdict(verdict);
            let data = begin_nest(out, DATA);
            let nest = begin_nest(out, DATA_VERDICT);
            put(out, VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                put(out, VERDICT_CHAIN, Name::new(chain)?.bytes());
            }
            end_nest(out, nest);
            end_nest(out, data);
        }
        _ => return Err(Unfit::ValueKind),
    }
    Ok(())
}

/// The value after this one, in network byte order; `None` after the last.
fn next(value: &[u8]) -> Option<Bytes> {
    let mut next = Bytes::from_slice(value);
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}

/// The value before this one; `None` before the first.
fn previous(value: &[u8]) -> Option<Bytes> {
    let mut previous = Bytes::from_slice(value);
    for byte in previous.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            return Some(previous);
        }
    }
    None
}

/// Key of an element of a message, for naming it in an error.
pub(crate) fn key_of(element: &[u8]) -> Option<&[u8]> {
    attrs(attrs(element).value_of(KEY)?).value_of(DATA_VALUE)
}

/// An element as the kernel has it.
struct Raw {
    key: Bytes,
    key_end: Option<Bytes>,
    interval_end: bool,
    data: Option<ElementData>,
    comment: Option<String>,
}

/// Collects the elements of one set from the messages of a dump.
pub(crate) struct Collector {
    decl: SetDecl,
    raw: Vec<Raw>,
}

impl Collector {
    pub(crate) fn new(decl: SetDecl) -> Collector {
        Collector { decl, raw: Vec::new() }
    }

    /// Takes the elements of one message.
    pub(crate) fn add(&mut self, attributes: Attrs<'_>) {
        let Some(list) = attributes.value_of(3) else { return };
        for (_, element) in attrs(list) {
            self.add_one(element);
        }
    }

    fn add_one(&mut self, element: &[u8]) {
        let mut raw =
            Raw { key: Bytes::new(), key_end: None, interval_end: false, data: None, comment: None };
        let mut known = true;
        for (kind, value) in attrs(element) {
            let bytes = || attrs(value).value_of(DATA_VALUE).map(Bytes::from_slice);
            match kind {
                KEY => raw.key = bytes().unwrap_or_default(),
                KEY_END => raw.key_end = bytes(),
                DATA => {
                    raw.data = match self.decl.data {
                        Some(SetData::Verdict) => Some(match decode_verdict(value) {
                            Some(verdict) => ElementData::Verdict(verdict),
                            // No plan has a value in a verdict map.
                            None => ElementData::Value(Bytes::from_slice(value)),
                        }),
                        _ => bytes().map(ElementData::Value),
                    }
                }
                FLAGS => {
                    let flags = be32(value).unwrap_or_default();
                    raw.interval_end = flags & kernel::ELEM_INTERVAL_END != 0;
                    known &= flags & !kernel::ELEM_INTERVAL_END == 0; // a catch-all element
                }
                USERDATA => raw.comment = userdata::comment(value),
                // An expression or timeout of its own.
                _ => known = false,
            }
        }
        if !known && !self.decl.key.contains(&Field::Foreign(0)) {
            self.decl.key.push(Field::Foreign(0));
        }
        if !raw.key.is_empty() {
            self.raw.push(raw);
        }
    }

    /// The set with all its elements; `None` if it was caught while the kernel moved them.
    ///
    /// A hash table grows and shrinks some time after the commit, and a dump that goes on meanwhile
    /// gives some elements twice and others not at all, without a word of warning. It never gives
    /// fewer than there are, so that where one is missing another is doubled.
    pub(crate) fn finish(self) -> Option<Set> {
        let Collector { decl, raw } = self;
        let one_field = decl.key.iter().filter(|field| **field != Field::Foreign(0)).count() <= 1;
        let elements = match (decl.interval, one_field) {
            (true, true) => pair(raw),
            (interval, _) => {
                let given = raw.len();
                let elements: BTreeMap<_, _> = raw
                    .into_iter()
                    .map(|raw| {
                        let last = interval.then(|| raw.key_end.unwrap_or_else(|| raw.key.clone()));
                        (raw.key, Element { last, data: raw.data, comment: raw.comment })
                    })
                    .collect();
                if elements.len() < given {
                    return None;
                }
                elements
            }
        };
        Some(Set { decl, elements })
    }
}

/// Pairs first values with the ends that follow them.
fn pair(mut raw: Vec<Raw>) -> BTreeMap<Bytes, Element> {
    // The kernel gives the greatest first. Where one interval ends and the next begins, the end comes first.
    raw.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(b.interval_end.cmp(&a.interval_end)));
    let mut elements = Vec::with_capacity(raw.len() / 2 + 1);
    let mut open: Option<Raw> = None;
    for raw in raw {
        if let Some(start) = open.take() {
            // Also ended by the start of the next: `previous` exists, as that is greater than this one's.
            let last = previous(&raw.key).unwrap_or_else(|| start.key.clone());
            elements
                .push((start.key, Element { last: Some(last), data: start.data, comment: start.comment }));
        }
        // An end without a start is how nft marks that a set does not begin at its type's first value.
        if !raw.interval_end {
            open = Some(raw);
        }
    }
    if let Some(start) = open {
        let last = std::iter::repeat_n(0xff, start.key.len()).collect();
        elements.push((start.key, Element { last: Some(last), data: start.data, comment: start.comment }));
    }
    elements.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn next_and_previous_carry_and_end() {
        assert_eq!(next(&[10, 0, 255, 255]).as_deref(), Some(&[10, 1, 0, 0][..]));
        assert_eq!(next(&[255, 255]), None);
        assert_eq!(previous(&[10, 1, 0, 0]).as_deref(), Some(&[10, 0, 255, 255][..]));
        assert_eq!(previous(&[0, 0]), None);
    }

    fn ports(intervals: &[(u16, u16)]) -> BTreeMap<Bytes, Element> {
        intervals
            .iter()
            .map(|(first, last)| {
                let last = Some(Bytes::from_slice(&last.to_be_bytes()));
                (Bytes::from_slice(&first.to_be_bytes()), Element { last, ..Element::default() })
            })
            .collect()
    }

    /// The kernel keeps pairs and singles in descending order; here they come as they were written.
    #[test]
    fn intervals_come_back() {
        let decl = SetDecl { key: smallvec![Field::Port], data: None, interval: true, constant: false };
        for intervals in [
            &[(0, 65535)][..],
            &[(0, 0), (1, 1), (2, 9), (65535, 65535)],
            &[(80, 80), (443, 444), (1024, 65534)],
            &[],
        ] {
            let elements = ports(intervals);
            let mut list = Vec::new();
            for (key, element) in &elements {
                encode(&mut list, &decl, key, element, For::Add).unwrap();
            }
            let mut message = Vec::new();
            put(&mut message, 3, &list);
            let mut collector = Collector::new(decl.clone());
            collector.add(attrs(&message));
            assert_eq!(collector.finish().unwrap().elements, elements, "{intervals:?}");
        }
    }

    #[test]
    fn a_doubled_element_spoils_the_dump() {
        let decl = SetDecl { key: smallvec![Field::Port], data: None, interval: false, constant: false };
        let mut list = Vec::new();
        for port in [80u16, 443, 80] {
            encode(&mut list, &decl, &port.to_be_bytes(), &Element::default(), For::Add).unwrap();
        }
        let mut message = Vec::new();
        put(&mut message, 3, &list);
        let mut collector = Collector::new(decl);
        collector.add(attrs(&message));
        assert_eq!(collector.finish(), None);
    }

    #[test]
    fn what_does_not_fit_the_declaration_is_refused() {
        let set = SetDecl { key: smallvec![Field::Ipv4], data: None, interval: false, constant: false };
        let ranges = SetDecl { interval: true, ..set.clone() };
        let vmap = SetDecl { data: Some(SetData::Verdict), ..set.clone() };
        let one = Element::default();
        let range = |last: [u8; 4]| Element { last: Some(Bytes::from_slice(&last)), ..Element::default() };
        let refused = |decl: &SetDecl, key: &[u8], element: &Element| {
            encode(&mut Vec::new(), decl, key, element, For::Add).unwrap_err()
        };
        assert_eq!(refused(&set, &[1, 2], &one), Unfit::Key { want: 4, have: 2 });
        assert_eq!(refused(&set, &[1; 4], &range([1; 4])), Unfit::Interval);
        assert_eq!(refused(&ranges, &[1; 4], &one), Unfit::Interval);
        assert_eq!(refused(&ranges, &[2; 4], &range([1; 4])), Unfit::Backwards);
        assert_eq!(refused(&vmap, &[1; 4], &one), Unfit::ValueKind);
    }
}
