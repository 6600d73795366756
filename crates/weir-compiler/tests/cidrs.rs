//! Blocks with exceptions, against sets of addresses that are written down one by one.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::oracle;
use proptest::prelude::*;
use weir_compiler::cidr::{Cidr, CidrSet};

/// A world small enough to write down: 32 addresses at each end of each family's space, and the rest is
/// like one of its neighbours.
fn addresses() -> Vec<IpAddr> {
    let v4 = (0..32).chain(u32::MAX - 31..=u32::MAX).map(|a| IpAddr::from(Ipv4Addr::from_bits(a)));
    let v6 = (0..32).chain(u128::MAX - 31..=u128::MAX).map(|a| IpAddr::from(Ipv6Addr::from_bits(a)));
    v4.chain(v6).collect()
}

fn text() -> impl Strategy<Value = String> {
    let length4 = prop_oneof![4 => 27u8..=32, 1 => 0u8..=2];
    let length6 = prop_oneof![4 => 123u8..=128, 1 => 0u8..=2];
    prop_oneof![
        (0u32..64, length4).prop_map(|(a, l)| format!(
            "{}/{l}",
            Ipv4Addr::from_bits(if a < 32 { a } else { u32::MAX - (a - 32) })
        )),
        (0u128..64, length6).prop_map(|(a, l)| {
            format!("{}/{l}", Ipv6Addr::from_bits(if a < 32 { a } else { u128::MAX - (a - 32) }))
        }),
    ]
}

fn written_down(cidrs: &[String]) -> BTreeSet<IpAddr> {
    let bits: Vec<String> = cidrs.iter().map(|c| oracle::cidr(c).expect("a CIDR")).collect();
    let within = |a: &IpAddr| bits.iter().any(|b| oracle::address_bits(*a).starts_with(b.as_str()));
    addresses().into_iter().filter(within).collect()
}

fn compiled(cidrs: &[String]) -> CidrSet {
    CidrSet::from_cidrs(cidrs.iter().map(|c| Cidr::parse(c).expect("a CIDR")))
}

proptest! {
    #![proptest_config(common::cases(2000))]

    #[test]
    fn n41_n46_blocks_without_exceptions_are_right_disjoint_and_minimal(
        peers in proptest::collection::vec(
            (proptest::collection::vec(text(), 0..3), proptest::collection::vec(text(), 0..4)),
            0..4,
        )
    ) {
        let mut wanted = BTreeSet::new();
        let mut sets = Vec::new();
        for (blocks, excepts) in &peers {
            let (without, of_it) = (written_down(excepts), written_down(blocks));
            wanted.extend(of_it.difference(&without).copied());
            sets.push(compiled(blocks).minus(&compiled(excepts)));
            prop_assert_eq!(compiled(blocks).covers(&compiled(excepts)), excepts.iter().all(|e| {
                // every address of it, and not only those that are written down: by halves
                covered(&oracle::cidr(e).expect("a CIDR"), &blocks.iter().map(|b| oracle::cidr(b).expect("a CIDR")).collect::<Vec<_>>())
            }));
        }
        let set = CidrSet::union(&sets);
        let found: BTreeSet<IpAddr> = addresses().into_iter().filter(|a| set.contains(*a)).collect();
        prop_assert_eq!(found, wanted);
        // in order, and with an address between any two: nothing could be merged or left out
        for ranges in set.v4.ranges().windows(2) {
            prop_assert!(ranges[0].1 < ranges[1].0 - 1);
        }
        for ranges in set.v6.ranges().windows(2) {
            prop_assert!(ranges[0].1 < ranges[1].0 - 1);
        }
        prop_assert!(set.v4.ranges().iter().all(|r| r.0 <= r.1) && set.v6.ranges().iter().all(|r| r.0 <= r.1));
    }

    /// Of any text, sloppy or broken, both readers make the same.
    #[test]
    fn n45_any_text_is_read_as_the_oracle_reads_it(text in prop_oneof![
        "[0-9]{1,4}(\\.[0-9]{1,4}){2,4}/[0-9]{1,3}",
        "0{0,3}[0-9]{1,3}(\\.0{0,2}[12]?[0-9]{1,2}){3}/0{0,2}[0-9]{1,2}",
        "(:|::|[0-9a-fA-F]{1,5}:){0,9}([0-9a-f]{1,4})?/[0-9]{1,3}",
        "(0:){0,6}(:|::)?([fF]{4}:)?(0{0,2}[0-9]{1,3}\\.){3}[0-9]{1,3}/1?[0-9]{1,2}",
        "[0-9a-fA-F:./ +-]{0,24}",
    ]) {
        let ours = Cidr::parse(&text);
        let theirs = oracle::cidr(&text);
        prop_assert_eq!(ours.is_some(), theirs.is_some(), "{:?}: {:?}, the oracle {:?}", text, ours, theirs);
        if let (Some(ours), Some(bits)) = (ours, theirs) {
            let (family, bits) = bits.split_at(1);
            let end = |digit: &str, width: usize| {
                let all = format!("{bits}{}", digit.repeat(width - bits.len()));
                u128::from_str_radix(&all, 2).expect("bits")
            };
            let wanted = match family {
                "4" => Cidr::V4(end("0", 32) as u32, end("1", 32) as u32),
                _ => Cidr::V6(end("0", 128), end("1", 128)),
            };
            prop_assert_eq!(ours, wanted, "{:?}", text);
        }
    }
}

/// Whether a network is within the union of others: within one of them, or both of its halves are.
fn covered(network: &str, of: &[String]) -> bool {
    if of.iter().any(|o| network.starts_with(o.as_str())) {
        return true;
    }
    let narrower = of.iter().any(|o| o.starts_with(network) && o.len() > network.len());
    narrower && covered(&format!("{network}0"), of) && covered(&format!("{network}1"), of)
}
