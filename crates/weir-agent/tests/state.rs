//! The slice on disk: what is read is what was written, or nothing.

#[path = "../../weir-compiler/tests/common/mod.rs"]
mod clusters;

use std::fs;

use clusters::{batches, cases, plain_pod};
use proptest::prelude::*;
use weir_agent::metrics::Metrics;
use weir_agent::state::file::{Damaged, Header, decode, encode, seal};
use weir_agent::state::{Found, Store};
use weir_compiler::object::{Event, ObjectKey, Policy};
use weir_compiler::slice::NodeSlice;
use weir_compiler::{Compiler, Scope};
use weir_proto::Mode;

fn header() -> Header {
    Header { node: "n1".into(), boot: "an id".into(), seconds: 1_700_000_000 }
}

fn bytes(slice: &NodeSlice) -> Vec<u8> {
    let mut bytes = encode(&header(), slice, Mode::Enforce);
    seal(&mut bytes);
    bytes
}

/// One pod, isolated, with a peer.
fn small() -> NodeSlice {
    let mut compiler = Compiler::new(Scope::AllNodes);
    let spec = serde_json::json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let spec = serde_json::from_value(spec).unwrap();
    let mut pod = plain_pod(ObjectKey::new("a", "p"), "10.0.0.1");
    pod.node = Some("n1".into());
    compiler.apply([
        Event::Pod(pod),
        Event::Policy(Policy { namespace: "a".into(), name: "x".into(), created: 0, audit: None, spec }),
    ]);
    compiler.slice("n1")
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn what_is_read_is_what_was_written(batches in batches(8)) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        batches.into_iter().for_each(|batch| drop(compiler.apply(batch)));
        let slice = compiler.slice("n1");
        let stored = decode(&bytes(&slice), "n1").unwrap();
        let mut read = NodeSlice::default();
        read.apply(&stored.changes);
        prop_assert_eq!(read, slice);
        prop_assert_eq!(stored.header, header());
    }
}

#[test]
fn cut_off_anywhere_it_is_not_accepted() {
    let whole = bytes(&small());
    assert!(decode(&whole, "n1").is_ok());
    for length in 0..whole.len() {
        assert!(decode(&whole[..length], "n1").is_err(), "cut off at {length} of {}", whole.len());
    }
    assert!(decode(&[&whole[..], &[0]].concat(), "n1").is_err(), "longer than it was");
}

#[test]
fn with_any_bit_turned_it_is_not_accepted() {
    let whole = bytes(&small());
    for bit in 0..whole.len() * 8 {
        let mut turned = whole.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&turned, "n1").is_err(), "bit {bit}");
    }
}

/// A wrong content whose checksum is right: of a version that had a defect, or of somebody who wants to harm.
#[test]
fn sealed_nonsense_is_not_accepted_and_does_not_panic() {
    let whole = encode(&header(), &small(), Mode::Enforce);
    for at in 0..whole.len() {
        for to in [0, 1, 0x7f, 0xff, whole[at] ^ 0x10] {
            let mut wrong = whole.clone();
            wrong[at] = to;
            seal(&mut wrong);
            if let Ok(stored) = decode(&wrong, "n1") {
                // another name or address, perhaps; but whole
                NodeSlice::default().apply(&stored.changes);
                weir_dataplane::Planner::new().update(&stored.changes);
            }
        }
        let mut short = whole[..at].to_vec();
        seal(&mut short);
        let _ = decode(&short, "n1");
    }
    assert_eq!(decode(b"", "n1"), Err(Damaged::NoSlice));
    assert_eq!(decode(&bytes(&small()), "n2"), Err(Damaged::Node("n1".into())));
    let mut newer = bytes(&small());
    newer[11] = 2;
    assert_eq!(decode(&newer, "n1"), Err(Damaged::Format(2)));
}

fn store(folder: &std::path::Path) -> Store {
    Store::new(folder.join("state"), "n1", Metrics::default()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_store_gives_back_the_last_slice_and_sets_aside_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/slice");
    assert!(matches!(store(folder.path()).load(), Found::Nothing));
    runtime().block_on(async {
        let mut store = store(folder.path());
        store.changed();
        let slice = small();
        // the pause, and then the end of the write
        for _ in 0..2 {
            let step = store.next().await;
            store.step(step, &slice, Mode::Off);
        }
        assert!(path.exists() && !path.with_extension("new").exists());
        store.changed();
        store.finish(&NodeSlice::default(), Mode::Off).await;
    });
    match store(folder.path()).load() {
        Found::Slice { changes, rebooted: false, mode: Mode::Off } => {
            assert!(changes.is_empty(), "the last one was empty")
        }
        other => panic!("{other:?}"),
    }
    // of another run of the kernel
    fs::write(&path, bytes(&small())).unwrap();
    match store(folder.path()).load() {
        Found::Slice { changes, rebooted: true, mode: Mode::Enforce } => {
            assert_eq!(changes, small().changes())
        }
        other => panic!("{other:?}"),
    }
    for damage in [&bytes(&small())[1..], b"", b"noise"] {
        fs::write(&path, damage).unwrap();
        assert!(matches!(store(folder.path()).load(), Found::Damaged));
        assert_eq!(fs::read(folder.path().join("state/slice.damaged")).unwrap(), damage);
        assert!(matches!(store(folder.path()).load(), Found::Nothing), "it is out of the way");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_no_end() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let metrics = Metrics::default();
    runtime().block_on(async {
        let mut store = Store::new(folder.path().join("state"), "n1", metrics.clone()).unwrap();
        assert!(matches!(store.load(), Found::Damaged | Found::Nothing));
        store.changed();
        for _ in 0..2 {
            let step = store.next().await;
            store.step(step, &small(), Mode::Enforce);
        }
        assert_eq!((metrics.disk_writes.get(), metrics.disk_errors.get()), (0, 1));
        fs::remove_file(folder.path().join("state")).unwrap();
        store.finish(&small(), Mode::Enforce).await;
        assert_eq!((metrics.disk_writes.get(), metrics.disk_errors.get()), (1, 1));
    });
}

#[test]
fn the_mode_is_kept_and_a_file_from_before_there_were_modes_is_enforced() {
    for mode in Mode::ALL {
        let mut bytes = encode(&header(), &small(), mode);
        seal(&mut bytes);
        let stored = decode(&bytes, "n1").unwrap();
        assert_eq!((stored.mode, stored.changes), (mode, small().changes()));
    }
    // what is written of it is the first change
    let with = encode(&header(), &small(), Mode::Off);
    let start = encode(&header(), &NodeSlice::default(), Mode::Off).len();
    let length = 4 + weir_proto::mode(Mode::Off).len();
    let mut before = [&with[..start - length], &with[start..]].concat();
    seal(&mut before);
    let stored = decode(&before, "n1").unwrap();
    assert_eq!((stored.mode, stored.changes), (Mode::Enforce, small().changes()));
}
