//! The source guard of pods with an interface of their own: what comes out of it has the pod's
//! addresses as its source, or goes nowhere (U25).
//!
//! ```text
//!   chain guard    hook prerouting, priority raw: before conntrack
//!     iifname != @guarded          accept      not a pod's
//!     iifname . source @own_4, _6  accept      one of the pod's addresses
//!     source fe80::/10             accept      for this link alone: the kernel forwards none of it
//!     source :: ICMPv6             accept      for this link alone: detection of duplicate addresses
//!     drop
//! ```
//!
//! A forged packet never meets a conntrack entry: one that fits somebody else's connection would
//! pass as established, and could end it. What comes from a link-local address reaches the node at
//! most, where `input` judges it by its interface, as all that the pod sends there.
//!
//! Plain elements only: a pod that comes or goes costs no validation of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::SlicePod;

use crate::model::{Bytes, Chain, Element, Field, Hook, HookPoint, MetaKey, Set, Table, Verdict};
use crate::peers::address_key;
use crate::planner::{At, Attachment, Attachments, comment, interface_key};
use crate::rules::{End, IpFamily, Match, decl};

const GUARDED: &str = "guarded";
/// `raw`: before conntrack (-200), after defragmentation (-400).
pub(crate) const RAW: i32 = -300;

fn own(family: IpFamily) -> String {
    format!("own_{}", family.suffix())
}

/// Adds sets and chain, empty of pods.
pub(crate) fn add_to(table: &mut Table) {
    let empty = |key: &[Field]| Set { decl: decl(key), elements: BTreeMap::new() };
    table.sets.insert(GUARDED.to_owned(), empty(&[Field::IfName]));
    let mut rules = vec![Match::default().interface_not_in(MetaKey::IifName, GUARDED).then(Verdict::Accept)];
    for family in IpFamily::BOTH {
        table.sets.insert(own(family), empty(&[Field::IfName, family.field()]));
        let from = Match::default().interface_address_in(family, End::Source, &own(family));
        rules.push(from.then(Verdict::Accept));
    }
    let [first, last] = LINK_LOCAL;
    rules.push(Match::default().source_in_range(first, last).then(Verdict::Accept));
    let none = Ipv6Addr::UNSPECIFIED;
    rules.push(Match::default().source_in_range(none, none).icmpv6().then(Verdict::Accept));
    rules.push(Match::default().then(Verdict::Drop));
    let hook = Some(Hook { point: HookPoint::Prerouting, priority: RAW });
    table.chains.insert("guard".to_owned(), Chain { hook, rules });
}

/// Interfaces that look like pods' own, and are of none that is known; the chain that closes them.
pub(crate) const UNKNOWN: &str = "unknown";

/// What closes unknown pods (U11): nothing is forwarded from or to them, whatever is established.
pub(crate) fn unknown() -> (Set, Chain) {
    let set = Set { decl: decl(&[Field::IfName]), elements: BTreeMap::new() };
    let rules = [MetaKey::IifName, MetaKey::OifName]
        .map(|key| Match::default().interface_in(key, UNKNOWN).then(Verdict::Drop));
    // before `forward`
    let hook = Some(Hook { point: HookPoint::Forward, priority: -1 });
    (set, Chain { hook, rules: rules.into() })
}

/// fe80::/10
const LINK_LOCAL: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), Ipv6Addr::from_bits(0xfebf << 112 | u128::MAX >> 16)];

/// What a pod has in the sets: each interface of its own with all addresses of the pod, whether a
/// route leads to each of them or not.
pub(crate) fn elements(
    key: &ObjectKey,
    pod: &SlicePod,
    attachments: &Attachments,
) -> impl Iterator<Item = (At, Element)> {
    let interfaces: BTreeSet<&str> = pod
        .addresses
        .iter()
        .filter_map(|address| match attachments.get(address) {
            Some(Attachment::Own(interface)) => Some(interface.as_str()),
            Some(Attachment::Shared(_)) | None => None,
        })
        .collect();
    let mut all: Vec<At> = Vec::new();
    for interface in interfaces {
        all.push((GUARDED.to_owned(), interface_key(interface)));
        for address in &pod.addresses {
            let (family, address) = address_key(*address);
            let key: Bytes = interface_key(interface).into_iter().chain(address).collect();
            all.push((own(family), key));
        }
    }
    let comment = Some(comment(&key.to_string()));
    all.into_iter().map(move |at| (at, Element { comment: comment.clone(), ..Element::default() }))
}
