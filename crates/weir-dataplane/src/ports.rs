//! Ports in the kernel: sets of the ports of one rule, and classes of ports for rulesets with many rules.
//!
//! ```text
//!   rules:      80 from A      80-90 from B      443 from C, any peer at all at 53
//!
//!   classes:    53 ──> any     80 ──> A, B     81-90 ──> B     443 ──> C
//! ```
//!
//! A class is the ports that the same peers may use. Classes are disjoint, so that one lookup of the
//! port finds the peers, however many rules there are.

use std::collections::BTreeMap;

use weir_compiler::object::Protocol;
use weir_compiler::ports::PortSet;
use weir_compiler::slice::PortSetId;

use crate::model::{Bytes, Element, ElementData, Field, Set, SetData, SetDecl, Verdict};
use crate::peers::{constant, intervals};
use crate::rules::decl;

/// The name of the set of a rule's ports of one protocol.
pub(crate) fn port_set_name(id: PortSetId, protocol: Protocol) -> String {
    format!("ports_{}_{}", id.name(), protocol.as_str().to_ascii_lowercase())
}

/// The kernel's sets for a port set, by name: of the protocols with more than one range.
pub(crate) fn port_sets(id: PortSetId, ports: &PortSet) -> BTreeMap<String, Set> {
    let PortSet::Ports(by_protocol) = ports else { return BTreeMap::new() };
    let mut sets = BTreeMap::new();
    for (protocol, ranges) in Protocol::ALL.into_iter().zip(by_protocol) {
        if ranges.ranges().len() < 2 {
            continue;
        }
        let single = ranges.ranges().iter().all(|(first, last)| first == last);
        let elements = match single {
            true => ranges.ranges().iter().map(|(port, _)| (key(*port), Element::default())).collect(),
            false => intervals(ranges, key).unwrap_or_default(),
        };
        let set = Set { decl: constant(decl(&[Field::Port]), !single), elements };
        sets.insert(port_set_name(id, protocol), set);
    }
    sets
}

/// Ranges with what is said of each, in order and disjoint.
pub(crate) type Segments<T> = Vec<((u16, u16), T)>;

/// Cuts the ports of a protocol where the answer to "which of these sets have it" changes, and calls
/// `class` for the answer. Neighbours of one class become one segment.
pub(crate) fn segments<T: PartialEq>(
    sets: &[&PortSet],
    protocol: Protocol,
    mut class: impl FnMut(&[usize]) -> T,
) -> Segments<T> {
    let mut edges: BTreeMap<u32, Vec<(usize, bool)>> = BTreeMap::new();
    for (i, set) in sets.iter().enumerate() {
        let PortSet::Ports(by_protocol) = set else { continue };
        for &(first, last) in by_protocol[protocol as usize].ranges() {
            edges.entry(first.into()).or_default().push((i, true));
            edges.entry(u32::from(last) + 1).or_default().push((i, false));
        }
    }
    let mut segments: Segments<T> = Vec::new();
    let mut active: Vec<usize> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((first, changes)) = edges.next() {
        for (i, begins) in changes {
            match active.binary_search(&i) {
                // the ranges of a set do not touch: where one ends, no other of the set begins
                Ok(at) if !begins => drop(active.remove(at)),
                Err(at) if begins => active.insert(at, i),
                _ => {}
            }
        }
        let Some((next, _)) = edges.peek() else { break };
        if active.is_empty() {
            continue;
        }
        let (first, last) = (first as u16, (next - 1) as u16);
        let class = class(&active);
        match segments.last_mut() {
            Some(((_, end), before)) if *before == class && u32::from(*end) + 1 == first.into() => {
                *end = last
            }
            _ => segments.push(((first, last), class)),
        }
    }
    segments
}

/// A verdict map by port.
pub(crate) fn verdict_map(segments: Segments<Verdict>) -> Set {
    let single = segments.iter().all(|((first, last), _)| first == last);
    let elements = segments.into_iter().map(|((first, last), verdict)| {
        let last = (!single).then(|| key(last));
        (key(first), Element { last, data: Some(ElementData::Verdict(verdict)), comment: None })
    });
    let decl = SetDecl { data: Some(SetData::Verdict), ..constant(decl(&[Field::Port]), !single) };
    Set { decl, elements: elements.collect() }
}

fn key(port: u16) -> Bytes {
    Bytes::from_slice(&port.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against each port on its own.
        #[test]
        fn segments_are_the_classes(sets in proptest::collection::vec(
            proptest::collection::vec((prop_oneof![0u16..30, 65_510u16..=65_535], 0u16..12), 0..5), 0..5)
        ) {
            let sets: Vec<PortSet> = sets.into_iter().map(|ranges| PortSet::from_ranges(
                ranges.into_iter().map(|(first, more)| (Protocol::Udp, first, first.saturating_add(more))))).collect();
            let sets: Vec<&PortSet> = sets.iter().collect();
            let segments = segments(&sets, Protocol::Udp, <[usize]>::to_vec);
            for port in (0..50).chain(65_500..=65_535) {
                let naive: Vec<usize> = (0..sets.len()).filter(|i| match sets[*i] {
                    PortSet::Any => unreachable!(),
                    PortSet::Ports(p) => p[Protocol::Udp as usize].contains(port),
                }).collect();
                let found = segments.iter().filter(|((first, last), _)| (*first..=*last).contains(&port));
                let found: Vec<&Vec<usize>> = found.map(|(_, class)| class).collect();
                prop_assert!(found.len() <= 1);
                prop_assert_eq!(found.first().map_or(&[][..], |c| c.as_slice()), naive.as_slice());
            }
            for pair in segments.windows(2) {
                prop_assert!(pair[0].0.1 < pair[1].0.0);
                prop_assert!(pair[0].1 != pair[1].1 || pair[0].0.1 + 1 < pair[1].0.0);
            }
        }
    }
}
