//! What is encoded is read back the same; what is not as it must be is an error, and never a panic.

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod common;

use common::batches;
use proptest::prelude::*;
use prost::Message;
use weir_compiler::slice::{Change, Member, PeerSetId};
use weir_compiler::{Compiler, Scope};
use weir_proto::{Key, Malformed, Received, decode, pb};

proptest! {
    #![proptest_config(common::cases(200))]

    #[test]
    fn every_change_comes_back_as_it_was(batches in batches(8)) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        for batch in batches {
            for delta in compiler.apply(batch).slices {
                delta.changes.iter().for_each(check);
            }
        }
    }

    #[test]
    fn noise_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    /// Bytes of real messages with some of them changed get deeper than noise does.
    #[test]
    fn damage_is_no_panic(batches in batches(3), at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        let deltas: Vec<_> = batches.into_iter().flat_map(|batch| compiler.apply(batch).slices).collect();
        for change in deltas.iter().flat_map(|delta| delta.changes.iter()) {
            if let Some((_, true)) = Key::of(change) {
                let mut bytes = weir_proto::change(change).to_vec();
                let at = at.index(bytes.len());
                bytes[at] = to;
                let _ = decode(&bytes);
                let _ = decode(&bytes[..cut.index(bytes.len())]);
            }
        }
    }
}

fn check(change: &Change) {
    match change {
        Change::Members { id, added, removed } => members(*id, false, added, removed),
        Change::PeerSet(id, set, all) => {
            members(*id, true, all, &[]);
            let bare = Change::PeerSet(*id, set.clone(), Vec::new());
            assert_eq!(decode(&weir_proto::change(change)), Ok(Received::Put(bare)));
        }
        other => {
            let (key, there) = Key::of(other).expect("not members");
            let expected = if there { Received::Put(other.clone()) } else { Received::Gone(key.clone()) };
            assert_eq!(decode(&weir_proto::change(other)), Ok(expected));
            assert_eq!(key.clone().gone(), decode(&weir_proto::gone(&key)).map(gone).expect("is read"));
        }
    }
}

fn gone(received: Received) -> Change {
    let Received::Gone(key) = received else { panic!("{received:?} is not that something is gone") };
    key.gone()
}

fn members(set: PeerSetId, wanted_anew: bool, added: &[Member], removed: &[Member]) {
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for (i, bytes) in weir_proto::members(set, wanted_anew, added, removed).iter().enumerate() {
        let Ok(Received::Members { id, anew, added, removed }) = decode(bytes) else { panic!("not members") };
        assert_eq!((id, anew), (set, wanted_anew && i == 0));
        come.extend(added);
        go.extend(removed);
    }
    come.sort_unstable();
    go.sort_unstable();
    let sorted = |list: &[Member]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    assert_eq!((come, go), (sorted(added), sorted(removed)));
}

#[test]
fn many_members_are_cut_up() {
    let all: Vec<Member> =
        (0..10_000u32).map(|i| Member::Address(std::net::Ipv4Addr::from(i).into())).collect();
    let id = PeerSetId::from_bytes([7; 16]);
    assert!(weir_proto::members(id, true, &all, &all).len() > 4);
    members(id, true, &all, &all);
    members(id, true, &[], &[]);
    assert_eq!(weir_proto::members(id, true, &[], &[]).len(), 1, "a set without members is told, too");
}

#[test]
fn what_a_newer_controller_adds_is_left_out_and_never_opens() {
    // a field that this version does not have, number 1000
    let extra = [0xc2, 0x3e, 1, b'x'];
    let id = vec![1; 16];
    let ports = pb::change::What::PortSet(pb::PortSet { id: id.clone(), any: true, ranges: vec![] });
    let mut bytes = pb::Change { what: Some(ports) }.encode_to_vec();
    let without = decode(&bytes);
    bytes.extend(extra);
    assert!(matches!(without, Ok(Received::Put(_))));
    assert_eq!(decode(&bytes), without);
    // an alternative that this version does not have
    assert_eq!(decode(&extra), Ok(Received::Unknown));
    let gone = pb::change::What::Gone(pb::Gone { kind: 99, id: id.clone(), key: None });
    assert_eq!(decode(&pb::Change { what: Some(gone) }.encode_to_vec()), Ok(Received::Unknown));
    // a set of a kind that this version does not have: nobody is in it
    let set = pb::change::What::PeerSet(pb::PeerSet { id: id.clone(), what: None });
    let Ok(Received::Put(Change::PeerSet(_, set, _))) =
        decode(&pb::Change { what: Some(set) }.encode_to_vec())
    else {
        panic!("a peer set")
    };
    assert_eq!(set, weir_compiler::slice::PeerSet::Cidrs(Default::default()));
    // an action that this version does not have
    let rule = pb::Rule { id, action: 77, any_peer: true, peers: vec![], ports: vec![2; 16] };
    let bytes = pb::Change { what: Some(pb::change::What::Rule(rule)) }.encode_to_vec();
    let Ok(Received::Put(Change::Rule(_, rule))) = decode(&bytes) else { panic!("a rule") };
    assert_eq!(rule.action, weir_compiler::slice::Action::Deny);
}

#[test]
fn what_no_controller_sends_is_told() {
    let encode = |what| pb::Change { what: Some(what) }.encode_to_vec();
    let malformed = |what| matches!(decode(&encode(what)), Err(Malformed(_)));
    let members = |v4: Vec<u8>, endpoints_v4: Vec<u8>| {
        let list = pb::MemberList { v4, endpoints_v4, ..Default::default() };
        pb::change::What::Members(pb::Members {
            id: vec![1; 16],
            anew: false,
            added: Some(list),
            removed: None,
        })
    };
    assert!(malformed(members(vec![1, 2, 3], vec![])));
    assert!(malformed(members(vec![], vec![1, 2, 3, 4, 99, 0, 80])), "protocol 99 has no ports");
    assert!(!malformed(members(vec![1, 2, 3, 4], vec![1, 2, 3, 4, 6, 0, 80])));
    let range = |first, last| {
        let ranges = vec![pb::PortRange { protocol: pb::Protocol::Tcp.into(), first, last }];
        pb::change::What::PortSet(pb::PortSet { id: vec![1; 16], any: false, ranges })
    };
    assert!(malformed(range(2, 1)) && malformed(range(1, 65_536)) && !malformed(range(1, 65_535)));
    assert!(malformed(pb::change::What::Gone(pb::Gone {
        kind: pb::Kind::Pod.into(),
        id: vec![],
        key: None
    })));
    assert!(malformed(pb::change::What::Gone(pb::Gone {
        kind: pb::Kind::Rule.into(),
        id: vec![1; 15],
        key: None
    })));
}
