//! Texts as CIDRs, one a line: the first is a block, the others are its exceptions.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use weir_compiler::cidr::{Cidr, CidrSet};

/// The first and the last address, and those beside them.
fn edges(cidr: &Cidr) -> Vec<IpAddr> {
    match *cidr {
        Cidr::V4(first, last) => [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
            .map(|a| IpAddr::from(Ipv4Addr::from_bits(a)))
            .to_vec(),
        Cidr::V6(first, last) => [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
            .map(|a| IpAddr::from(Ipv6Addr::from_bits(a)))
            .to_vec(),
    }
}

fn contains(cidr: &Cidr, address: IpAddr) -> bool {
    match (*cidr, address) {
        (Cidr::V4(first, last), IpAddr::V4(a)) => (first..=last).contains(&a.to_bits()),
        (Cidr::V6(first, last), IpAddr::V6(a)) => (first..=last).contains(&a.to_bits()),
        _ => false,
    }
}

fuzz_target!(|text: &str| {
    let cidrs: Vec<Cidr> = text.lines().filter_map(Cidr::parse).collect();
    let Some((block, excepts)) = cidrs.split_first() else { return };
    let rest = CidrSet::from_cidrs([*block]).minus(&CidrSet::from_cidrs(excepts.iter().copied()));
    for address in cidrs.iter().flat_map(edges) {
        let wanted = contains(block, address) && !excepts.iter().any(|e| contains(e, address));
        assert_eq!(rest.contains(address), wanted, "{address} in {text:?}");
    }
    for ranges in rest.v4.ranges().windows(2) {
        assert!(ranges[0].1 + 1 < ranges[1].0, "neither overlapping nor touching");
    }
    for ranges in rest.v6.ranges().windows(2) {
        assert!(ranges[0].1 + 1 < ranges[1].0, "neither overlapping nor touching");
    }
});
