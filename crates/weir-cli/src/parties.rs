//! Who takes part in something, as people call them: workloads, not pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;
use weir_compiler::cidr::CidrSet;
use weir_compiler::object::ObjectKey;

use crate::cluster::{Cluster, PodState};
use crate::reach::{Reach, Who};

/// How many names are told before "and more".
const NAMED: usize = 4;

/// A workload, or a pod that has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl Workload {
    pub(crate) fn of(state: &PodState) -> Workload {
        let (kind, name) = match &state.workload {
            Some(owner) => (owner.kind.clone(), owner.name.clone()),
            None => ("Pod".to_owned(), state.pod.key.name.clone()),
        };
        Workload { namespace: state.pod.key.namespace.clone(), kind, name }
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Some pods of some workloads, and some addresses that are no pods'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Parties {
    /// With how many of their pods.
    pub(crate) workloads: BTreeMap<Workload, usize>,
    pub(crate) addresses: CidrSet,
}

/// The workloads of a cluster, and how many pods each has.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    of_pod: BTreeMap<ObjectKey, Workload>,
    pub(crate) sizes: BTreeMap<Workload, usize>,
}

impl Roll {
    /// Of pods that are in all of these clusters, and of which something can be said.
    pub(crate) fn new(clusters: &[&Cluster]) -> Roll {
        let mut roll = Roll::default();
        let Some((last, others)) = clusters.split_last() else { return roll };
        for (key, state) in last.pods.iter().filter(|(_, state)| state.out.is_none()) {
            let there = |cluster: &&Cluster| cluster.pods.get(key).is_some_and(|s| s.out.is_none());
            if others.iter().all(there) {
                let workload = Workload::of(state);
                *roll.sizes.entry(workload.clone()).or_default() += 1;
                roll.of_pod.insert(key.clone(), workload);
            }
        }
        roll
    }

    /// The workload of a pod.
    pub(crate) fn workload(&self, pod: &ObjectKey) -> Option<&Workload> {
        self.of_pod.get(pod)
    }

    /// Whose points these classes are.
    pub(crate) fn parties(&self, reach: &Reach, classes: &[u32]) -> Parties {
        let mut parties = Parties::default();
        let mut addresses = Vec::new();
        for class in classes {
            match &reach.classes[*class as usize].who {
                Who::Addresses(set) => addresses.push(set),
                Who::Pods(pods) => {
                    for pod in pods {
                        if let Some(workload) = self.workload(&reach.pods[*pod as usize]) {
                            match parties.workloads.get_mut(workload) {
                                Some(count) => *count += 1,
                                None => drop(parties.workloads.insert(workload.clone(), 1)),
                            }
                        }
                    }
                }
            }
        }
        parties.addresses = CidrSet::union(addresses);
        parties
    }

    /// In few words: `every pod but shop/api`, `all of shop, ops/cron (1 of 3 pods) and 2 more workloads`.
    pub(crate) fn words(&self, parties: &Parties) -> String {
        let mut words = Vec::new();
        let is_whole = |w: &&Workload| parties.workloads.get(*w) == self.sizes.get(*w);
        let missing: Vec<&Workload> = self.sizes.keys().filter(|w| !is_whole(w)).collect();
        let many = parties.workloads.len() > NAMED;
        if !parties.workloads.is_empty() && missing.is_empty() && self.sizes.len() > 1 {
            words.push("every pod".to_owned());
        } else if many && missing.len() <= 2 {
            let but: Vec<String> = missing.iter().map(|w| self.rest(w, parties)).collect();
            words.push(format!("every pod but {}", but.join(" and ")));
        } else {
            words.extend(self.list(parties));
        }
        if !parties.addresses.is_empty() {
            words.push(addresses(&parties.addresses));
        }
        words.join(", ")
    }

    fn rest(&self, workload: &Workload, parties: &Parties) -> String {
        let (total, some) = (self.sizes.get(workload), parties.workloads.get(workload));
        match (total, some) {
            (Some(total), Some(some)) => format!("{} of {workload}'s {total}", total - some),
            _ => workload.to_string(),
        }
    }

    fn list(&self, parties: &Parties) -> Vec<String> {
        let mut by_namespace: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (workload, total) in &self.sizes {
            let (all, whole) = by_namespace.entry(&workload.namespace).or_default();
            *all += 1;
            *whole += usize::from(parties.workloads.get(workload) == Some(total));
        }
        let all_of: BTreeSet<&str> = by_namespace
            .iter()
            .filter(|(_, (all, whole))| all == whole && *all > 2)
            .map(|(n, _)| *n)
            .collect();
        let mut words: Vec<String> = all_of.iter().map(|namespace| format!("all of {namespace}")).collect();
        let rest = parties.workloads.iter().filter(|(w, _)| !all_of.contains(w.namespace.as_str()));
        let rest: Vec<(&Workload, &usize)> = rest.collect();
        let room = if rest.len() + words.len() <= NAMED + 1 {
            rest.len()
        } else {
            NAMED.saturating_sub(words.len()).max(1)
        };
        if words.len() > NAMED + 1 {
            let more = words.len() - NAMED;
            words.truncate(NAMED);
            words.push(format!("{more} more namespaces"));
        }
        for (workload, count) in rest.iter().take(room) {
            let total = self.sizes.get(*workload).copied().unwrap_or(**count);
            words.push(if **count == total {
                workload.to_string()
            } else {
                format!("{workload} ({count} of {total} pods)")
            });
        }
        match rest.len() - room.min(rest.len()) {
            0 => {}
            1 => words.push("1 more workload".to_owned()),
            n => words.push(format!("{n} more workloads")),
        }
        words
    }
}

/// A set of addresses in few words.
pub(crate) fn addresses(set: &CidrSet) -> String {
    let cidrs = cidrs(set);
    let is_most = |count: usize, all: bool| all || count > NAMED;
    let (v4, v6) = (set.v4.ranges(), set.v6.ranges());
    // the rest of the world has both of its ends
    let rest_4 = v4.first().is_some_and(|r| r.0 == 0) && v4.last().is_some_and(|r| r.1 == u32::MAX);
    let rest_6 = v6.first().is_some_and(|r| r.0 == 0) && v6.last().is_some_and(|r| r.1 == u128::MAX);
    if (rest_4 || v4.is_empty())
        && (rest_6 || v6.is_empty())
        && is_most(cidrs.len(), set.v4.is_all() || set.v6.is_all())
    {
        return match (v4.is_empty(), v6.is_empty()) {
            (false, false) => "all other addresses".to_owned(),
            (false, true) => "all other IPv4 addresses".to_owned(),
            _ => "all other IPv6 addresses".to_owned(),
        };
    }
    let mut told: Vec<String> = cidrs.iter().take(NAMED).cloned().collect();
    if cidrs.len() > NAMED {
        told.push(format!("{} more ranges", cidrs.len() - NAMED));
    }
    told.join(", ")
}

/// A set of addresses as CIDRs.
pub(crate) fn cidrs(set: &CidrSet) -> Vec<String> {
    let mut all = Vec::new();
    for &(first, last) in set.v4.ranges() {
        for (start, length) in blocks(u128::from(first), u128::from(last), 32) {
            let start = u32::try_from(start).unwrap_or(u32::MAX);
            all.push(format!("{}/{length}", Ipv4Addr::from_bits(start)));
        }
    }
    for &(first, last) in set.v6.ranges() {
        for (start, length) in blocks(first, last, 128) {
            all.push(format!("{}/{length}", Ipv6Addr::from_bits(start)));
        }
    }
    all
}

/// A range as blocks whose size is a power of two, each at a multiple of its size.
fn blocks(mut first: u128, last: u128, bits: u32) -> Vec<(u128, u32)> {
    let mut all = Vec::new();
    loop {
        // the largest that begins here and ends in the range
        let mut size = first.trailing_zeros().min(bits);
        let end = |size: u32| first | u128::MAX.checked_shr(128 - size).unwrap_or(0);
        while size > 0 && end(size) > last {
            size -= 1;
        }
        all.push((first, bits - size));
        let end = end(size);
        if end >= last {
            return all;
        }
        first = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_compiler::cidr::Cidr;
    use weir_compiler::ranges::RangeSet;

    fn set(texts: &[&str]) -> CidrSet {
        CidrSet::from_cidrs(texts.iter().map(|t| Cidr::parse(t).expect("a CIDR")))
    }

    #[test]
    fn addresses_in_few_words() {
        assert_eq!(addresses(&set(&["10.0.0.0/8", "192.0.2.7/32"])), "10.0.0.0/8, 192.0.2.7/32");
        assert_eq!(addresses(&set(&["0.0.0.0/0"])), "all other IPv4 addresses");
        assert_eq!(addresses(&set(&["::/0"]).minus(&set(&["fd00::7/128"]))), "all other IPv6 addresses");
        assert_eq!(
            addresses(&set(&["0.0.0.0/0", "::/0"]).minus(&set(&["10.0.0.0/8"]))),
            "all other addresses"
        );
    }

    proptest! {
        #[test]
        fn cidrs_are_the_set(ranges in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..6)) {
            let ranges = ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b)));
            let set = CidrSet { v4: RangeSet::from_ranges(ranges), ..CidrSet::default() };
            let again = CidrSet::from_cidrs(cidrs(&set).iter().map(|t| Cidr::parse(t).expect("a CIDR")));
            prop_assert_eq!(again, set);
        }

        #[test]
        fn cidrs_are_the_set_of_ipv6(first: u128, last: u128) {
            let range = (first.min(last), first.max(last));
            let set = CidrSet { v6: RangeSet::from_ranges([range]), ..CidrSet::default() };
            let again = CidrSet::from_cidrs(cidrs(&set).iter().map(|t| Cidr::parse(t).expect("a CIDR")));
            prop_assert_eq!(again, set);
        }
    }
}
