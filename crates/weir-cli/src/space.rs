//! Addresses by the range: where policies may tell them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_compiler::cidr::{Cidr, CidrSet};

/// What is not reached over the internet, by the registries of special-purpose addresses.
const NOT_GLOBAL: [&str; 21] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    // all of IPv6 that is not 2000::/3
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
];

/// The addresses of the internet.
pub(crate) fn internet() -> CidrSet {
    let all = CidrSet::from_cidrs(["0.0.0.0/0", "::/0"].iter().filter_map(|t| Cidr::parse(t)));
    all.minus(&CidrSet::from_cidrs(NOT_GLOBAL.iter().filter_map(|t| Cidr::parse(t))))
}

/// The parts of a set of addresses of which each is in a block as a whole or not at all.
pub(crate) fn pieces<'a>(
    of: &CidrSet,
    blocks: impl IntoIterator<Item = &'a CidrSet>,
) -> Vec<(IpAddr, IpAddr)> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for block in blocks {
        for (first, last) in block.v4.ranges() {
            v4.push(*first);
            v4.extend(last.checked_add(1));
        }
        for (first, last) in block.v6.ranges() {
            v6.push(*first);
            v6.extend(last.checked_add(1));
        }
    }
    let mut out = Vec::new();
    for (first, last) in split(of.v4.ranges(), v4, |a| a - 1) {
        out.push((Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into()));
    }
    for (first, last) in split(of.v6.ranges(), v6, |a| a - 1) {
        out.push((Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(last).into()));
    }
    out
}

/// Ranges, cut before each of the points.
fn split<T: Copy + Ord>(ranges: &[(T, T)], mut points: Vec<T>, before: impl Fn(T) -> T) -> Vec<(T, T)> {
    points.sort_unstable();
    points.dedup();
    let mut out = Vec::new();
    for &(first, last) in ranges {
        let mut from = first;
        let start = points.partition_point(|p| *p <= first);
        for &point in points[start..].iter().take_while(|p| **p <= last) {
            out.push((from, before(point)));
            from = point;
        }
        out.push((from, last));
    }
    out
}

/// The first address of a range that is not taken; none, if it is only looked for among so many.
pub(crate) fn free(range: (IpAddr, IpAddr), taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let next = |address: IpAddr| match address {
        IpAddr::V4(a) => a.to_bits().checked_add(1).map(|a| Ipv4Addr::from_bits(a).into()),
        IpAddr::V6(a) => a.to_bits().checked_add(1).map(|a| Ipv6Addr::from_bits(a).into()),
    };
    let mut address = range.0;
    while taken(address) {
        address = next(address).filter(|a| *a <= range.1)?;
    }
    Some(address)
}

/// A range as people write it: as a CIDR if it is one.
pub(crate) fn name((first, last): (IpAddr, IpAddr)) -> String {
    if first == last {
        return first.to_string();
    }
    let bits = |a: u128, b: u128, width: u32| {
        let size = (b - a).checked_add(1)?;
        (size.is_power_of_two() && a.is_multiple_of(size)).then(|| width - size.trailing_zeros())
    };
    let prefix = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => bits(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) if a.to_bits() == 0 && b.to_bits() == u128::MAX => Some(0),
        (IpAddr::V6(a), IpAddr::V6(b)) => bits(a.to_bits(), b.to_bits(), 128),
        _ => None,
    };
    prefix.map_or_else(|| format!("{first}-{last}"), |prefix| format!("{first}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> CidrSet {
        CidrSet::from_cidrs(texts.iter().map(|t| Cidr::parse(t).expect("a CIDR")))
    }

    fn names(of: &[&str], blocks: &[&str]) -> Vec<String> {
        let blocks: Vec<CidrSet> = blocks.iter().map(|b| set(&[b])).collect();
        pieces(&set(of), &blocks).into_iter().map(name).collect()
    }

    #[test]
    fn pieces_are_within_blocks_or_outside() {
        assert_eq!(names(&["10.0.0.0/8"], &[]), ["10.0.0.0/8"]);
        assert_eq!(names(&["10.0.0.0/30"], &["10.0.0.0/31", "0.0.0.0/0"]), ["10.0.0.0/31", "10.0.0.2/31"]);
        assert_eq!(names(&["10.0.0.0/30"], &["10.0.0.1/32"]), ["10.0.0.0", "10.0.0.1", "10.0.0.2/31"]);
        assert_eq!(names(&["::/0"], &["8000::/1"]), ["::/1", "8000::/1"]);
        assert_eq!(names(&["::/0", "0.0.0.0/0"], &[]), ["0.0.0.0/0", "::/0"]);
        assert_eq!(name(("10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap())), "10.0.0.1-10.0.0.3");
    }

    #[test]
    fn the_internet_is_without_private_networks() {
        let internet = internet();
        for (address, is_in) in [
            ("8.8.8.8", true),
            ("10.1.2.3", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2a00::1", true),
            ("fd00::1", false),
            ("2001:db8::1", false),
            ("::1", false),
        ] {
            assert_eq!(internet.contains(address.parse().unwrap()), is_in, "{address}");
        }
    }

    #[test]
    fn an_address_that_nobody_has() {
        let range = ("10.0.0.0".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let taken =
            |n: usize| move |a: IpAddr| ["10.0.0.0", "10.0.0.1"][..n].contains(&a.to_string().as_str());
        assert_eq!(free(range, taken(1)).map(|a| a.to_string()), Some("10.0.0.1".into()));
        assert_eq!(free(range, taken(2)), None);
    }
}
