//! What a large batch and a large dump cost, against `nft -f` and `nft list` of the same table.
//! Needs root, and `--release` for the promise to be checked:
//! `cargo test --release -p weir-nft --test speed -- --include-ignored --nocapture`.

mod common;

use std::fmt::Write;
use std::time::{Duration, Instant};

use common::*;
use weir_dataplane::model::*;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    println!("{what}: {:.1} ms", took.as_secs_f64() * 1e3);
    (took, result)
}

#[test]
#[ignore = "needs root"]
fn a_hundred_thousand_elements_in_less_than_nft_takes() {
    const ELEMENTS: u32 = 100_000;
    let mut kernel = fresh_netns();
    let set = set(decl(&[Field::Ipv4]), addresses(ELEMENTS));
    let table = Table { sets: [("x".to_string(), set)].into(), ..empty_table() };
    let mut text = String::from("table inet weir {\n set x { type ipv4_addr; elements = { ");
    for i in 0..ELEMENTS {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + i);
        write!(text, "{}{address}", if i == 0 { "" } else { ", " }).unwrap();
    }
    text.push_str(" }\n }\n}\n");
    let clear = transaction(Family::Inet, vec![Op::DeleteTable]);
    let mut best = [Duration::MAX; 3];
    for _ in 0..3 {
        let transaction = create(&table);
        let ours = timed("apply 100,000 elements", || kernel.apply(&transaction).unwrap()).0;
        let (dump, back) = timed("dump 100,000 elements", || kernel.dump(Family::Inet, TABLE).unwrap());
        assert_eq!(back.as_ref(), Some(&table));
        kernel.apply(&clear).unwrap();
        let theirs = timed("nft -f of the same", || nft(&["-f", "-"], &text)).0;
        kernel.apply(&clear).unwrap();
        for (best, took) in best.iter_mut().zip([ours, dump, theirs]) {
            *best = took.min(*best);
        }
    }
    let [ours, dump, theirs] = best;
    println!("best: apply {ours:?}, dump {dump:?}, nft -f {theirs:?}");
    if !cfg!(debug_assertions) {
        assert!(ours.as_secs_f64() <= 0.6 * theirs.as_secs_f64(), "{ours:?} against nft's {theirs:?}");
    }
}
