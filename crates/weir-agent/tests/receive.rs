//! What a controller sends, however it was put together, leads to the slice that it meant.

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod clusters;
#[path = "common/sender.rs"]
mod sender;
#[path = "common/whole.rs"]
mod whole;

use clusters::{batches, cases};
use proptest::prelude::*;
use sender::{Encoded, coalesced, encoded, items, resume};
use weir_agent::controller::receive::{Incoming, Refused};
use weir_compiler::object::ObjectKey;
use weir_compiler::ports::PortSet;
use weir_compiler::selector::Selector;
use weir_compiler::slice::{
    Action, Change, Direction, Effect, Entry, Member, NodeSlice, PeerSet, PeerSetId, PortSetId, Profile,
    ProfileId, Rule, RuleId, Ruleset, RulesetId, SlicePod, SlicePolicy, SubjectId, Tier,
};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::Planner;
use weir_proto::{DigestKey, Items};
use whole::check_each;

const NODE: &str = "n1";
const PLENTY: usize = 1 << 20;

fn key() -> DigestKey {
    DigestKey::new([7; 32])
}

fn receive(slice: &NodeSlice, sent: &Encoded, held: Option<&Items>) -> Result<Vec<Change>, Refused> {
    let mut incoming = Incoming::new(key(), PLENTY);
    for one in sent {
        assert!(incoming.take(one, held)?, "all is known");
    }
    incoming.changes(slice)
}

/// A stream of random numbers.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn what_is_received_is_the_slice(batches in batches(16), seed: u64) {
        let mut dice = Dice(seed);
        let mut compiler = Compiler::new(Scope::AllNodes);
        let mut held = NodeSlice::default();
        // what an agent may still have on its disk, or of another controller
        let mut history = vec![NodeSlice::default()];
        let mut waiting: Vec<Vec<Change>> = Vec::new();
        for batch in batches {
            let deltas = compiler.apply(batch).slices;
            waiting.extend(deltas.into_iter().filter(|d| *d.node == *NODE).map(|d| d.changes.iter().cloned().collect()));
            let slice = compiler.slice(NODE);
            history.push(slice.clone());
            let (sent, known) = match dice.throw(5) {
                0 => continue,
                1 => (waiting.iter().flat_map(|changes| encoded(changes)).collect(), None),
                2 => (coalesced(&waiting), None),
                // the same controller once more, which knows it all already
                3 => {
                    let (again, known) = (coalesced(&waiting), items(&key(), &held));
                    (again.into_iter().chain(resume(&key(), &known, &slice)).collect(), Some(known))
                }
                _ => {
                    held = history[dice.throw(history.len())].clone();
                    let known = items(&key(), &held);
                    (resume(&key(), &known, &slice), Some(known))
                }
            };
            waiting.clear();
            let changes = receive(&held, &sent, known.as_ref()).unwrap();
            check_each(&mut held, &changes);
            prop_assert_eq!(&held, &slice);
            // said again, it says nothing
            let again: Encoded = encoded(&slice.changes());
            prop_assert_eq!(receive(&held, &again, None).unwrap(), vec![]);
        }
    }

    /// A message that got lost, or came twice: refused as a whole, or a slice that is whole.
    #[test]
    fn what_is_wrong_is_refused_or_whole(batches in batches(6), more in batches(6), seed: u64) {
        let mut dice = Dice(seed);
        let mut compiler = Compiler::new(Scope::AllNodes);
        batches.into_iter().for_each(|batch| drop(compiler.apply(batch)));
        let mut held = compiler.slice(NODE);
        let mut planner = Planner::new();
        planner.update(&held.changes());
        more.into_iter().for_each(|batch| drop(compiler.apply(batch)));
        let known = items(&key(), &held);
        let mut sent = resume(&key(), &known, &compiler.slice(NODE));
        for _ in 0..dice.throw(4) {
            if sent.is_empty() {
                break;
            }
            let at = dice.throw(sent.len());
            match dice.throw(3) {
                0 => drop(sent.remove(at)),
                1 => {
                    let other = dice.throw(sent.len());
                    sent.swap(at, other);
                }
                _ => {
                    let byte = dice.throw(sent[at].len());
                    sent[at][byte] ^= 1 << dice.throw(8);
                }
            }
        }
        let mut incoming = Incoming::new(key(), PLENTY);
        let taken = sent.iter().try_for_each(|one| incoming.take(one, Some(&known)).map(drop));
        if let Ok(changes) = taken.and_then(|()| incoming.changes(&held)) {
            check_each(&mut held, &changes);
            planner.update(&changes);
            prop_assert_eq!(planner.slice(), &held);
        }
    }
}

fn set() -> PeerSet {
    PeerSet::Pods { namespaces: Selector::default(), pods: Selector::default() }
}

fn address(last: u8) -> Member {
    Member::Address([10, 0, 0, last].into())
}

/// A pod that one policy isolates, with one rule for one set of peers.
fn small() -> Vec<Change> {
    let id = |byte| [byte; 16];
    let subject = SubjectId::from_bytes(id(6));
    let ports = PortSetId::from_bytes(id(2));
    let rule = Rule { action: Action::Accept, peers: Some(vec![PeerSetId::from_bytes(id(1))]), ports };
    let entry = Entry { tier: Tier::NetworkPolicy, priority: 0, rule: RuleId::from_bytes(id(3)) };
    let ruleset = Ruleset {
        direction: Direction::Ingress,
        isolated: true,
        effect: Effect::Enforce,
        entries: vec![entry],
    };
    let ingress = Some(RulesetId::from_bytes(id(4)));
    let profile = Profile { ingress, subjects: vec![subject], ..Profile::default() };
    let pod = SlicePod {
        addresses: vec![[10, 0, 0, 1].into()],
        profile: ProfileId::from_bytes(id(5)),
        ports: [].into(),
        log_allowed: 0,
    };
    vec![
        Change::PeerSet(PeerSetId::from_bytes(id(1)), set(), vec![address(7)]),
        Change::PortSet(ports, PortSet::Any),
        Change::Rule(RuleId::from_bytes(id(3)), rule),
        Change::Ruleset(RulesetId::from_bytes(id(4)), ruleset),
        Change::Policy(
            ObjectKey::new("a", "x"),
            SlicePolicy { subject, audit: false, clauses: Default::default() },
        ),
        Change::Profile(ProfileId::from_bytes(id(5)), profile),
        Change::Pod(ObjectKey::new("a", "p"), pod),
    ]
}

fn profile_of(changes: &mut [Change]) -> &mut Profile {
    let profiles = changes.iter_mut().filter_map(|change| match change {
        Change::Profile(_, profile) => Some(profile),
        _ => None,
    });
    profiles.last().unwrap()
}

fn held() -> NodeSlice {
    let mut slice = NodeSlice::default();
    slice.apply(&small());
    slice
}

#[test]
fn references_to_what_is_not_there_are_refused() {
    let empty = NodeSlice::default();
    assert_eq!(receive(&empty, &encoded(&small()), None).unwrap().len(), 7);
    // a policy explains, and nothing refers to it
    for without in [0, 1, 2, 3, 5] {
        let mut some = small();
        some.remove(without);
        let refused = receive(&empty, &encoded(&some), None);
        assert!(matches!(refused, Err(Refused::Dangling { .. })), "without {without}: {refused:?}");
        // and that is why each of them cannot go alone
        let (gone, _) = weir_proto::Key::of(&small()[without]).unwrap();
        let refused = receive(&held(), &encoded(&[gone.gone()]), None);
        assert!(matches!(refused, Err(Refused::Dangling { .. })), "{without} gone: {refused:?}");
    }
    let lost =
        Change::Members { id: PeerSetId::from_bytes([9; 16]), added: vec![address(1)], removed: vec![] };
    let refused = receive(&held(), &encoded(&[lost]), None).unwrap_err();
    assert!(refused.to_string().contains("which is not there"), "{refused}");
}

#[test]
fn what_is_gone_needs_no_members() {
    let id = PeerSetId::from_bytes([8; 16]);
    let come_and_gone = [Change::PeerSet(id, set(), vec![address(1)]), Change::PeerSetGone(id)];
    assert_eq!(receive(&held(), &encoded(&come_and_gone), None), Ok(vec![]));
    // gone and there again: as if it had never gone, but for its members
    let id = PeerSetId::from_bytes([1; 16]);
    let again = [Change::PeerSetGone(id), Change::PeerSet(id, set(), vec![address(8)])];
    let differs = Change::Members { id, added: vec![address(8)], removed: vec![address(7)] };
    assert_eq!(receive(&held(), &encoded(&again), None), Ok(vec![differs]));
}

#[test]
fn what_would_confuse_the_plan_is_refused() {
    let endpoint = Member::Endpoint([10, 0, 0, 1].into(), weir_compiler::object::Protocol::Tcp, 80);
    let wrong =
        Change::Members { id: PeerSetId::from_bytes([1; 16]), added: vec![endpoint], removed: vec![] };
    assert!(matches!(receive(&held(), &encoded(&[wrong]), None), Err(Refused::WrongMembers(_))));

    let other = Change::PortSet(PortSetId::from_bytes([2; 16]), PortSet::from_ranges([]));
    assert!(matches!(receive(&held(), &encoded(&[other]), None), Err(Refused::Changed(_))));

    let mut turned = small();
    let Change::Profile(_, profile) = &mut turned[5] else { panic!() };
    profile.egress = profile.ingress.take();
    let refused = receive(&NodeSlice::default(), &encoded(&turned), None);
    assert!(matches!(refused, Err(Refused::WrongPlace { .. })), "{refused:?}");

    // what is only told cannot take the place of what is enforced, nor the other way round (U29)
    let mut told = small();
    let Change::Ruleset(_, ruleset) = &mut told[3] else { panic!() };
    ruleset.effect = Effect::WouldDeny;
    let refused = receive(&NodeSlice::default(), &encoded(&told), None);
    assert!(matches!(refused, Err(Refused::WrongPlace { .. })), "{refused:?}");
    let mut both = small();
    let Change::Profile(_, profile) = &mut both[5] else { panic!() };
    profile.audited[0] = profile.ingress;
    let refused = receive(&NodeSlice::default(), &encoded(&both), None);
    assert!(matches!(refused, Err(Refused::WrongPlace { .. })), "{refused:?}");
    profile_of(&mut told).audited[0] = profile_of(&mut told).ingress.take();
    assert!(receive(&NodeSlice::default(), &encoded(&told), None).is_ok());

    let never = vec![weir_proto::forget(&[5]).to_vec()];
    let known = items(&key(), &held());
    assert_eq!(receive(&held(), &never, Some(&known)), Err(Refused::NeverHeld(5)));
    // and what was told of is forgotten once: later, nobody remembers it
    let first = vec![weir_proto::forget(&[*known.keys().next().unwrap()]).to_vec()];
    assert!(matches!(receive(&held(), &first, None), Err(Refused::NeverHeld(_))));

    assert!(matches!(receive(&held(), &vec![vec![0xff; 3]], None), Err(Refused::Malformed(_))));
}

#[test]
fn there_is_an_end_to_what_waits_for_a_commit() {
    let all = encoded(&small());
    let size: usize = all.iter().map(Vec::len).sum();
    let mut incoming = Incoming::new(key(), size - 1);
    let refused = all.iter().find_map(|one| incoming.take(one, None).err());
    assert_eq!(refused, Some(Refused::TooMuch { limit: size - 1 }));
    let mut incoming = Incoming::new(key(), size);
    assert!(all.iter().all(|one| incoming.take(one, None) == Ok(true)));
    assert_eq!(incoming.bytes(), size);
}
