//! CIDRs with the meaning that Kubernetes gives them: Go's `ParseCIDRSloppy` (N45).
//!
//! An API server up to 1.35 stores `010.001.0.0/16` (decimal: 10.1.0.0/16), `10.0.0.5/8`
//! (10.0.0.0/8) and `::ffff:10.0.0.0/104` (IPv4's 10.0.0.0/8). Rust's parsers refuse or misread
//! these, and engines that refuse them have let everything pass (T4, U20).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ranges::RangeSet;

/// A range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cidr {
    /// First and last address.
    V4(u32, u32),
    /// First and last address.
    V6(u128, u128),
}

impl Cidr {
    /// Reads a CIDR as Go's `ParseCIDRSloppy` does; `None` where that gives an error.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (addr, len) = text.split_once('/')?;
        let (len, rest) = number(len.as_bytes(), 10)?;
        if !rest.is_empty() {
            return None;
        }
        if let Some(v4) = ipv4(addr.as_bytes()) {
            return Cidr::v4(v4, len);
        }
        let v6 = ipv6(addr.as_bytes())?;
        if len > 128 {
            return None;
        }
        // an IPv4-mapped network is an IPv4 network, if its prefix covers the mapping
        if len >= 96 && v6 >> 32 == 0xffff {
            return Cidr::v4(v6 as u32, len - 96);
        }
        let hosts = u128::MAX.checked_shr(len).unwrap_or(0);
        Some(Cidr::V6(v6 & !hosts, v6 | hosts))
    }

    fn v4(addr: u32, len: u32) -> Option<Cidr> {
        if len > 32 {
            return None;
        }
        let hosts = u32::MAX.checked_shr(len).unwrap_or(0);
        Some(Cidr::V4(addr & !hosts, addr | hosts))
    }
}

/// A set of addresses of both families.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct CidrSet {
    /// IPv4 addresses.
    pub v4: RangeSet<u32>,
    /// IPv6 addresses.
    pub v6: RangeSet<u128>,
}

impl CidrSet {
    /// The union of CIDRs.
    pub fn from_cidrs(cidrs: impl IntoIterator<Item = Cidr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for cidr in cidrs {
            match cidr {
                Cidr::V4(first, last) => v4.push((first, last)),
                Cidr::V6(first, last) => v6.push((first, last)),
            }
        }
        CidrSet { v4: RangeSet::from_ranges(v4), v6: RangeSet::from_ranges(v6) }
    }

    /// The union of sets.
    pub fn union<'a>(sets: impl IntoIterator<Item = &'a CidrSet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for set in sets {
            v4.extend_from_slice(set.v4.ranges());
            v6.extend_from_slice(set.v6.ranges());
        }
        CidrSet { v4: RangeSet::from_ranges(v4), v6: RangeSet::from_ranges(v6) }
    }

    /// What is in `self` and not in `other`.
    pub fn minus(&self, other: &CidrSet) -> Self {
        CidrSet { v4: self.v4.minus(&other.v4), v6: self.v6.minus(&other.v6) }
    }

    /// Whether the address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.contains(a.to_bits()),
            IpAddr::V6(a) => self.v6.contains(a.to_bits()),
        }
    }

    /// Whether all of `other` is in the set.
    pub fn covers(&self, other: &CidrSet) -> bool {
        self.v4.covers(&other.v4) && self.v6.covers(&other.v6)
    }

    /// Whether the set has no addresses.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl std::fmt::Display for CidrSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v4 = self
            .v4
            .ranges()
            .iter()
            .map(|&(a, b)| (IpAddr::from(Ipv4Addr::from_bits(a)), IpAddr::from(Ipv4Addr::from_bits(b))));
        let v6 = self
            .v6
            .ranges()
            .iter()
            .map(|&(a, b)| (IpAddr::from(Ipv6Addr::from_bits(a)), IpAddr::from(Ipv6Addr::from_bits(b))));
        for (i, (first, last)) in v4.chain(v6).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// A number at the start of the text and what follows it. Leading zeros mean nothing.
fn number(text: &[u8], radix: u32) -> Option<(u32, &[u8])> {
    let mut value = 0u32;
    let mut len = 0;
    while let Some(digit) = text.get(len).and_then(|c| char::from(*c).to_digit(radix)) {
        value = value * radix + digit;
        if value >= 0xff_ffff {
            return None; // Go's limit, far above all that is of use
        }
        len += 1;
    }
    (len > 0).then(|| (value, &text[len..]))
}

fn ipv4(mut text: &[u8]) -> Option<u32> {
    let mut addr = 0;
    for i in 0..4 {
        if i > 0 {
            text = text.strip_prefix(b".")?;
        }
        let (octet, rest) = number(text, 10)?;
        if octet > 0xff {
            return None;
        }
        addr = addr << 8 | octet;
        text = rest;
    }
    text.is_empty().then_some(addr)
}

fn ipv6(mut text: &[u8]) -> Option<u128> {
    let mut groups: Vec<u16> = Vec::with_capacity(8);
    let mut ellipsis = None;
    if let Some(rest) = text.strip_prefix(b"::") {
        ellipsis = Some(0);
        text = rest;
        if text.is_empty() {
            return Some(0);
        }
    }
    while groups.len() < 8 {
        let (group, rest) = number(text, 16)?;
        if group > 0xffff {
            return None;
        }
        if rest.first() == Some(&b'.') {
            if (ellipsis.is_none() && groups.len() != 6) || groups.len() > 6 {
                return None;
            }
            let v4 = ipv4(text)?;
            groups.extend([(v4 >> 16) as u16, v4 as u16]);
            text = b"";
            break;
        }
        groups.push(group as u16);
        text = rest;
        if text.is_empty() {
            break;
        }
        text = text.strip_prefix(b":")?;
        match text.first() {
            None => return None,
            Some(b':') => {
                if ellipsis.is_some() {
                    return None;
                }
                ellipsis = Some(groups.len());
                text = &text[1..];
                if text.is_empty() {
                    break;
                }
            }
            Some(_) => {}
        }
    }
    if !text.is_empty() {
        return None;
    }
    match ellipsis {
        // it stands for at least one group
        Some(at) if groups.len() < 8 => {
            let missing = 8 - groups.len();
            groups.splice(at..at, std::iter::repeat_n(0, missing));
        }
        None if groups.len() == 8 => {}
        _ => return None,
    }
    Some(groups.into_iter().fold(0, |addr, group| addr << 16 | u128::from(group)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(text: &str) -> Option<Cidr> {
        let (a, b) = text.split_once('-').unwrap();
        Some(Cidr::V4(a.parse::<Ipv4Addr>().unwrap().to_bits(), b.parse::<Ipv4Addr>().unwrap().to_bits()))
    }

    fn v6(text: &str) -> Option<Cidr> {
        let (a, b) = text.split_once('-').unwrap();
        Some(Cidr::V6(a.parse::<Ipv6Addr>().unwrap().to_bits(), b.parse::<Ipv6Addr>().unwrap().to_bits()))
    }

    #[test]
    fn n45_texts_mean_what_go_makes_of_them() {
        assert_eq!(Cidr::parse("10.0.0.5/8"), v4("10.0.0.0-10.255.255.255"));
        assert_eq!(Cidr::parse("010.001.0.0/16"), v4("10.1.0.0-10.1.255.255"));
        assert_eq!(Cidr::parse("10.0.0.0/08"), v4("10.0.0.0-10.255.255.255"));
        assert_eq!(Cidr::parse("::ffff:10.0.0.0/104"), v4("10.0.0.0-10.255.255.255"));
        assert_eq!(Cidr::parse("::ffff:0:0/96"), v4("0.0.0.0-255.255.255.255"));
        assert_eq!(Cidr::parse("::ffff:10.0.0.0/90"), v6("::ffc0:0:0-::ffff:ffff:ffff"));
        assert_eq!(Cidr::parse("FE80:0::/010"), v6("fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }

    #[test]
    fn n46_the_ends_of_prefix_lengths() {
        assert_eq!(Cidr::parse("0.0.0.0/0"), v4("0.0.0.0-255.255.255.255"));
        assert_eq!(Cidr::parse("1.2.3.4/32"), v4("1.2.3.4-1.2.3.4"));
        assert_eq!(Cidr::parse("::/0"), v6("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert_eq!(Cidr::parse("2001:db8::1/128"), v6("2001:db8::1-2001:db8::1"));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0.0/8",
            "256.0.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "::/129",
            ":::/0",
            "1::2::3/64",
            "1:2:3:4:5:6:7:8:9/64",
            "1:2:3:4:5:6:7/64",
            "1:2:3:4:5:6:7:8::/64",
            "::1%eth0/128",
            "12345::/16",
            "1:/16",
            "::1.2.3/128",
            "1:2:3:4:5:6:7:1.2.3.4/128",
            "10.0.0.0/8/8",
            "x/8",
        ] {
            assert_eq!(Cidr::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_rust_reads_is_read_alike(bits: u128, len in 0u8..=128) {
            let addr = Ipv6Addr::from_bits(bits);
            let hosts = u128::MAX.checked_shr(len.into()).unwrap_or(0);
            if !(len >= 96 && bits >> 32 == 0xffff) {
                prop_assert_eq!(Cidr::parse(&format!("{addr}/{len}")), Some(Cidr::V6(bits & !hosts, bits | hosts)));
            }
        }

        #[test]
        fn no_text_panics(text in "[0-9a-fA-F:./]{0,30}") {
            let _ = Cidr::parse(&text);
        }
    }
}
