//! Which statements of docs/semantics.md are tried, and why others cannot be from outside of the nodes.

/// The N-statements that no case tries, and why.
pub const NOT_TRIED: &[(&str, &str)] = &[
    ("N24", "API servers refuse a peer without any field, and one with `ipBlock` and a selector"),
    ("N28", "a policy has no pointer to a selector that could select nothing"),
    ("N32", "the pods of a Terminating namespace are ended with it: there is no time to ask them"),
    (
        "N59",
        "API servers and kubelets take one name in two containers, but the API does not say what it means",
    ),
    ("N60", "which containers' names count is U15: left to implementations"),
    ("N75", "a finished pod's address cannot be made to be given out again through the API"),
    ("N76", "a pod that is being deleted ends: how long it can be asked is the kubelet's choice"),
    ("N77", "two live pods with one address cannot be made through the API"),
    ("N79", "pods of a Terminating namespace are ended with its policies: the order shows on nodes alone"),
    ("N81", "secondary networks are not in `status.podIPs`: the suite does not know of them"),
    ("N91", "it leaves to implementations what becomes of established connections"),
    ("N92", "agnhost sends TCP, UDP and SCTP; that ARP and neighbour discovery work shows in every case"),
    ("N93", "the suite cannot make a router send ICMP errors"),
    ("N94", "agnhost sends no datagrams that need fragments"),
    ("N101", "API servers drop fields that they do not know"),
    ("N102", "it says what the API lacks"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::run::{Profile, names};

    fn written() -> BTreeSet<String> {
        let text = include_str!("../../../docs/semantics.md");
        let name = |line: &str| line.strip_prefix("- **")?.split_once("**").map(|(name, _)| name.to_owned());
        text.lines().filter_map(name).filter(|n| n.starts_with('N')).collect()
    }

    fn tried() -> BTreeSet<String> {
        let of =
            |profile: Profile| names(profile).into_iter().flat_map(|(_, statements, _)| statements.to_vec());
        Profile::ALL.into_iter().flat_map(of).map(str::to_owned).collect()
    }

    #[test]
    fn every_n_statement_is_tried_or_it_is_said_why_not() {
        let (written, tried) = (written(), tried());
        assert_eq!(written.len(), 75);
        let excused: BTreeSet<String> = NOT_TRIED.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(excused.len(), NOT_TRIED.len(), "one is twice in NOT_TRIED");
        let both: Vec<_> = tried.intersection(&excused).collect();
        assert!(both.is_empty(), "tried, and said not to be: {both:?}");
        let unknown: Vec<_> = tried.union(&excused).filter(|n| !written.contains(*n)).collect();
        assert!(unknown.is_empty(), "docs/semantics.md has no {unknown:?}");
        let missing: Vec<_> =
            written.iter().filter(|n| !tried.contains(*n) && !excused.contains(*n)).collect();
        assert!(missing.is_empty(), "neither tried nor in NOT_TRIED: {missing:?}");
    }

    #[test]
    fn names_of_cases_are_unique() {
        for profile in Profile::ALL {
            let all = names(profile);
            let unique: BTreeSet<_> = all.iter().map(|(name, ..)| name.clone()).collect();
            assert_eq!(unique.len(), all.len(), "{}", profile.as_str());
        }
    }
}
