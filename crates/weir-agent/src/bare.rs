//! A slice piece by piece, where all of it at once would be in memory twice.

use weir_compiler::slice::{Change, Member, NodeSlice};
use weir_proto::{DigestKey, Items, member_sums};

/// All of a slice as changes of an empty one, in order, but for members: peer sets come without.
pub(crate) fn bare(slice: &NodeSlice) -> impl Iterator<Item = Change> {
    let sets = slice.peer_sets.iter().map(|(id, state)| Change::PeerSet(*id, state.set.clone(), Vec::new()));
    sets.chain(slice.port_sets.iter().map(|(id, ports)| Change::PortSet(*id, ports.clone())))
        .chain(slice.rules.iter().map(|(id, rule)| Change::Rule(*id, rule.clone())))
        .chain(slice.rulesets.iter().map(|(id, ruleset)| Change::Ruleset(*id, ruleset.clone())))
        .chain(slice.policies.iter().map(|(key, policy)| Change::Policy(key.clone(), policy.clone())))
        .chain(slice.profiles.iter().map(|(id, profile)| Change::Profile(*id, profile.clone())))
        .chain(slice.pods.iter().map(|(key, pod)| Change::Pod(key.clone(), pod.clone())))
}

/// What a controller is told of: digests with this key.
pub(crate) fn items(slice: &NodeSlice, key: &DigestKey) -> Items {
    let all: Vec<Change> = bare(slice).collect();
    key.items(&all, |id, _| {
        let members: Vec<Member> = slice.peer_sets[&id].members.iter().copied().collect();
        member_sums(key, id, &members)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_compiler::selector::Selector;
    use weir_compiler::slice::{PeerSet, PeerSetId};

    #[test]
    fn items_are_those_of_the_changes() {
        let set = PeerSet::Pods { namespaces: Selector::default(), pods: Selector::default() };
        let members = (0..100u8).map(|i| Member::Address([10, 0, 0, i].into())).collect();
        let mut slice = NodeSlice::default();
        slice.apply(&[Change::PeerSet(PeerSetId::from_bytes([1; 16]), set, members)]);
        let key = DigestKey::new([2; 32]);
        let whole = key.items(&slice.changes(), |id, members| member_sums(&key, id, members));
        assert!(whole.len() > 50 && whole == items(&slice, &key));
    }
}
