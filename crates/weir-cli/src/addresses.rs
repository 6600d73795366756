//! Addresses that stand in for those of pods whose manifests have none.
//!
//! Hand-written pods have no `status.podIPs`, and a pod without an address is nobody's peer (N74). A
//! stand-in is from the ranges for documentation, and outside of every `ipBlock` that is not
//! everything, so that none matches it by accident.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_compiler::cidr::{Cidr, CidrSet};

/// Where stand-ins are taken from, in this order: documentation, reserved, anywhere.
const V4: [&str; 5] = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/5", "0.0.0.0/0"];
const V6: [&str; 3] = ["2001:db8::/32", "3fff::/20", "::/0"];

/// Hands out addresses, each of them once.
#[derive(Debug)]
pub(crate) struct StandIns {
    families: [bool; 2],
    free: [CidrSet; 2],
    next: [usize; 2],
    last: [Option<IpAddr>; 2],
    taken: BTreeSet<IpAddr>,
    areas: [Vec<CidrSet>; 2],
}

impl StandIns {
    /// Of the families (IPv4, IPv6) that are asked for, outside of `blocks`, and none of `taken`.
    pub(crate) fn new<'a>(
        families: [bool; 2],
        blocks: impl IntoIterator<Item = &'a CidrSet>,
        taken: BTreeSet<IpAddr>,
    ) -> StandIns {
        // a block that is everything matches any address: it leaves no choice, and needs none
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for block in blocks {
            if !block.v4.is_all() {
                v4.push(CidrSet { v4: block.v4.clone(), ..CidrSet::default() });
            }
            if !block.v6.is_all() {
                v6.push(CidrSet { v6: block.v6.clone(), ..CidrSet::default() });
            }
        }
        let outside = |texts: &[&str], blocks: &[CidrSet]| -> Vec<CidrSet> {
            let blocked = CidrSet::union(blocks);
            let areas = texts.iter().map(|t| CidrSet::from_cidrs(Cidr::parse(t)));
            // last resort: within blocks, where there is nothing outside of them
            let all: Vec<CidrSet> = areas.collect();
            all.iter().map(|area| area.minus(&blocked)).chain(all.first().cloned()).collect()
        };
        let areas = [outside(&V4, &v4), outside(&V6, &v6)];
        StandIns {
            families,
            free: [CidrSet::default(), CidrSet::default()],
            next: [0, 0],
            last: [None, None],
            taken,
            areas,
        }
    }

    /// One address of each family.
    pub(crate) fn next(&mut self) -> Vec<IpAddr> {
        let families = self.families;
        (0..2).filter(|&f| families[f]).filter_map(|f| self.one(f)).collect()
    }

    fn one(&mut self, family: usize) -> Option<IpAddr> {
        loop {
            let found = match self.last[family] {
                Some(last) => after(&self.free[family], last),
                None => first(&self.free[family]),
            };
            let Some(address) = found else {
                self.free[family] = self.areas[family].get(self.next[family])?.clone();
                self.next[family] += 1;
                self.last[family] = None;
                continue;
            };
            self.last[family] = Some(address);
            // the address of a network looks like a mistake
            let network = match address {
                IpAddr::V4(a) => matches!(a.octets()[3], 0 | 255),
                IpAddr::V6(a) => a.segments()[7] == 0,
            };
            if !network && self.taken.insert(address) {
                return Some(address);
            }
        }
    }
}

fn first(set: &CidrSet) -> Option<IpAddr> {
    let v4 = set.v4.ranges().first().map(|(a, _)| Ipv4Addr::from_bits(*a).into());
    v4.or_else(|| set.v6.ranges().first().map(|(a, _)| Ipv6Addr::from_bits(*a).into()))
}

/// The next address of the set after one of it.
fn after(set: &CidrSet, last: IpAddr) -> Option<IpAddr> {
    match last {
        IpAddr::V4(a) => {
            let a = a.to_bits().checked_add(1)?;
            let range = set.v4.ranges().iter().find(|(_, end)| *end >= a)?;
            Some(Ipv4Addr::from_bits(range.0.max(a)).into())
        }
        IpAddr::V6(a) => {
            let a = a.to_bits().checked_add(1)?;
            let range = set.v6.ranges().iter().find(|(_, end)| *end >= a)?;
            Some(Ipv6Addr::from_bits(range.0.max(a)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> CidrSet {
        CidrSet::from_cidrs(texts.iter().map(|t| Cidr::parse(t).expect("a CIDR")))
    }

    fn take(stand_ins: &mut StandIns, n: usize) -> Vec<String> {
        (0..n).flat_map(|_| stand_ins.next()).map(|a| a.to_string()).collect()
    }

    #[test]
    fn they_are_unique_and_of_the_families_asked_for() {
        let taken = ["192.0.2.2".parse().unwrap()].into();
        let mut both = StandIns::new([true, true], [], taken);
        assert_eq!(take(&mut both, 2), ["192.0.2.1", "2001:db8::1", "192.0.2.3", "2001:db8::2"]);
        let many = take(&mut StandIns::new([true, false], [], BTreeSet::new()), 2000);
        assert_eq!(many.iter().collect::<BTreeSet<_>>().len(), 2000);
        assert!(many[1999].starts_with("240."), "{}", many[1999]);
    }

    #[test]
    fn they_are_outside_of_blocks() {
        let blocks = [set(&["192.0.2.0/25", "198.51.100.0/24"]), set(&["0.0.0.0/0"])];
        assert_eq!(take(&mut StandIns::new([true, false], &blocks, BTreeSet::new()), 1), ["192.0.2.128"]);
        // all but the private ones
        let but = [set(&["0.0.0.0/0"]).minus(&set(&["10.0.0.0/8"]))];
        assert_eq!(take(&mut StandIns::new([true, false], &but, BTreeSet::new()), 1), ["10.0.0.1"]);
        // nothing is outside
        let all = [but[0].clone(), set(&["10.0.0.0/8"])];
        assert_eq!(take(&mut StandIns::new([true, false], &all, BTreeSet::new()), 1), ["192.0.2.1"]);
    }
}
