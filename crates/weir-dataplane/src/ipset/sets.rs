//! Peer sets of the plan as ipsets: names, types and elements.
//!
//! ```text
//!   pods_mzxw6ytboi2dgmjsgm2dknrxha_4  ──>  weir_p4_2lkCB1hhSGs4oj4KY5kD0ua
//!                                            kind, family, identity, version
//! ```
//!
//! A name of an ipset has 31 bytes at most. The identity is written with 62 digits instead of 32, and
//! so keeps all of its 128 bits: whoever writes policies chooses what is hashed, and must not
//! make two sets meet. The last letter tells versions of a set apart, of which there are two while rules
//! are switched from one to the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::{Element, Ipset, IpsetDecl, IpsetKind};
use crate::model::{Bytes, Element as NftElement, Family, Set};
use crate::peers::{Kind, parse_name};
use crate::rules::IpFamily;

/// Digits and lower-case letters are 36 of them.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 62^22 is more than 2^128.
const ID_DIGITS: usize = 22;
const PREFIX: &str = "weir_";
/// `IPSET_MAXNAMELEN` has room for a zero besides.
const NAME_LEN: usize = 31;

/// A peer set of the plan, by its name there: the start of the name of its ipsets, and their type.
pub(crate) fn peer_set(name: &str) -> Option<(String, IpsetDecl)> {
    let (kind, id, family) = parse_name(name)?;
    let (letter, kind) = match kind {
        Kind::Pods => ('p', IpsetKind::Address),
        Kind::Endpoints => ('e', IpsetKind::Endpoint),
        Kind::Cidrs => ('c', IpsetKind::Net),
    };
    let digit = |i: usize| char::from(DIGITS[(id / 62u128.pow(i as u32) % 62) as usize]);
    let id: String = (0..ID_DIGITS).rev().map(digit).collect();
    let decl = IpsetDecl { kind, family: family_of(family) };
    Some((format!("{PREFIX}{letter}{}_{id}", family.suffix()), decl))
}

fn family_of(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ip,
        IpFamily::V6 => Family::Ip6,
    }
}

/// An ipset of this name is Weir's.
pub fn is_ours(name: &str) -> bool {
    split_name(name).is_some()
}

/// What [`peer_set`] gave, and the version.
pub(crate) fn split_name(name: &str) -> Option<(&str, char)> {
    let version = name.chars().next_back()?;
    let start = name.strip_suffix(version)?;
    let parts = start.strip_prefix(PREFIX)?.as_bytes();
    let is_id = |id: &[u8]| id.iter().all(|byte| DIGITS.contains(byte));
    let ours = name.len() == NAME_LEN
        && version.is_ascii_lowercase()
        && matches!(parts, [b'p' | b'e' | b'c', b'4' | b'6', b'_', id @ ..] if is_id(id));
    ours.then_some((start, version))
}

/// An element of a peer set as elements of its ipset.
pub(crate) fn elements(decl: &IpsetDecl, key: &Bytes, element: &NftElement) -> Vec<Element> {
    let address = |bytes: &[u8]| match decl.family {
        Family::Ip6 => IpAddr::V6(Ipv6Addr::from_bits(number(&bytes[..16]))),
        _ => IpAddr::V4(Ipv4Addr::from_bits(number(&bytes[..4]) as u32)),
    };
    match decl.kind {
        IpsetKind::Net => {
            let (bits, prefix): (u32, fn(u128, u8) -> Element) = match decl.family {
                Family::Ip6 => (128, |first, len| Element::Net(IpAddr::V6(Ipv6Addr::from_bits(first)), len)),
                _ => (32, |first, len| Element::Net(IpAddr::V4(Ipv4Addr::from_bits(first as u32)), len)),
            };
            let last = element.last.as_ref().unwrap_or(key);
            prefixes(number(key), number(last), bits).into_iter().map(|(f, len)| prefix(f, len)).collect()
        }
        IpsetKind::Endpoint => {
            let tail = &key[key.len() - 8..];
            vec![Element::Endpoint(address(key), tail[0], u16::from_be_bytes([tail[4], tail[5]]))]
        }
        IpsetKind::Address | IpsetKind::Foreign(_) => vec![Element::Address(address(key))],
    }
}

/// A whole peer set as an ipset.
pub(crate) fn ipset(decl: &IpsetDecl, set: &Set) -> Ipset {
    let elements = set.elements.iter().flat_map(|(key, element)| elements(decl, key, element)).collect();
    Ipset { decl: decl.clone(), elements }
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |n, byte| n << 8 | u128::from(*byte))
}

/// A range as the fewest prefixes. None of them has length 0, which `hash:net` does not take: everything is
/// two halves.
fn prefixes(first: u128, last: u128, bits: u32) -> Vec<(u128, u8)> {
    let mut all = Vec::new();
    let mut from = first;
    loop {
        // the largest block that starts here and does not end later
        let aligned = from.trailing_zeros().min(bits - 1);
        let fits = |size: &u32| last - from >= (1u128 << *size) - 1;
        let size = (0..=aligned).rev().find(fits).unwrap_or(0);
        all.push((from, (bits - size) as u8));
        match from.checked_add(1 << size) {
            Some(next) if next <= last => from = next,
            _ => return all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_fit_and_keep_all_bits() {
        let name = |id: &str| peer_set(&format!("pods_{id}_4")).map(|(start, _)| format!("{start}a"));
        let least = name("aaaaaaaaaaaaaaaaaaaaaaaaaa").unwrap();
        // the highest digit has three bits: 128 is no multiple of five
        let greatest = name("h7777777777777777777777777").unwrap();
        for name in [&least, &greatest] {
            assert_eq!(name.len(), NAME_LEN);
            assert!(is_ours(name), "{name}");
        }
        assert_eq!(least, "weir_p4_0000000000000000000000a");
        assert_eq!(greatest, format!("weir_p4_{}a", "7n42DGM5Tflk9n8mt7Fhc7"));
        for other in ["i7777777777777777777777777", "aaa", "A777777777777777777777777_", ""] {
            assert_eq!(name(other), None, "{other}");
        }
        for other in [
            "pods_4",
            "hairpin_4",
            "ports_aaaaaaaaaaaaaaaaaaaaaaaaaa_tcp",
            "pods_aaaaaaaaaaaaaaaaaaaaaaaaaa_5",
        ] {
            assert_eq!(peer_set(other), None, "{other}");
        }
        for other in [
            "weir_p4_0000000000000000000000",
            "weir_p4_0000000000000000000000A",
            "weir_x4_0000000000000000000000a",
            "weir_p4_00000000000000000000-0a",
            "weird4_0000000000000000000000aa",
            "é",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn everything_is_two_halves() {
        assert_eq!(prefixes(0, u32::MAX.into(), 32), [(0, 1), (1 << 31, 1)]);
        assert_eq!(prefixes(0, u128::MAX, 128), [(0, 1), (1 << 127, 1)]);
        assert_eq!(prefixes(u128::MAX, u128::MAX, 128), [(u128::MAX, 128)]);
    }

    proptest! {
        #[test]
        fn different_identities_have_different_names(a: u128, b: u128) {
            let name = |id: u128| {
                let base32: String = (0..26).rev().map(|i| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(id >> (5 * i)) as usize & 31])).collect();
                peer_set(&format!("cidrs_{base32}_6")).unwrap().0
            };
            prop_assert_eq!(a == b, name(a) == name(b));
            prop_assert_ne!(name(a), name(a ^ 1 << (b % 128)));
        }

        #[test]
        fn prefixes_are_the_range_and_the_fewest(a: u8, b: u8) {
            let (first, last) = (u128::from(a.min(b)), u128::from(a.max(b)));
            let all = prefixes(first, last, 8);
            let mut covered = Vec::new();
            for (from, len) in &all {
                prop_assert!((1..=8).contains(len));
                let size = 1u128 << (8 - len);
                prop_assert_eq!(from % size, 0);
                covered.extend(*from..from + size);
            }
            prop_assert_eq!(covered, (first..=last).collect::<Vec<_>>());
            // no two neighbours make one prefix, but for everything
            for pair in all.windows(2) {
                let ((a, len), (b, other)) = (pair[0], pair[1]);
                prop_assert!(len != other || len == 1 || a % (1 << (9 - len)) != 0 || a + (1 << (8 - len)) != b);
            }
        }
    }
}
