//! Ipsets against the real kernel: what is written is what is read.
#![cfg(feature = "ipset")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{fresh_netns, nft};
use weir_dataplane::ipset::{Element, Ipset, IpsetDecl, IpsetKind, IpsetOp};
use weir_dataplane::model::{Expr, Family, Field, IpsetKey, Op, Rule, Transaction, Verdict};
use weir_nft::{ApplyError, IpsetError, Nft};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(kind: char, family: char, version: char) -> String {
    format!("weir_{kind}{family}_0123456789ABCDEFGHxyzw{version}")
}

fn set(kind: IpsetKind, family: Family, elements: impl IntoIterator<Item = Element>) -> Ipset {
    Ipset { decl: IpsetDecl { kind, family }, elements: elements.into_iter().collect() }
}

/// One of every type.
fn sets() -> BTreeMap<String, Ipset> {
    use Element::{Address, Endpoint, Net};
    let (v4, v6) = (Family::Ip, Family::Ip6);
    [
        (
            name('p', '4', 'a'),
            set(IpsetKind::Address, v4, [Address(ip("10.0.0.1")), Address(ip("10.0.0.2"))]),
        ),
        (name('p', '6', 'a'), set(IpsetKind::Address, v6, [Address(ip("fd00::1")), Address(ip("::1"))])),
        (
            name('e', '4', 'b'),
            set(
                IpsetKind::Endpoint,
                v4,
                [(6, 80), (17, 80), (132, 1)].map(|(p, n)| Endpoint(ip("10.0.0.1"), p, n)),
            ),
        ),
        (name('e', '6', 'b'), set(IpsetKind::Endpoint, v6, [Endpoint(ip("fd00::1"), 6, 65_535)])),
        (
            name('c', '4', 'z'),
            set(
                IpsetKind::Net,
                v4,
                [Net(ip("0.0.0.0"), 1), Net(ip("128.0.0.0"), 1), Net(ip("10.0.0.1"), 32)],
            ),
        ),
        (
            name('c', '6', 'z'),
            set(IpsetKind::Net, v6, [Net(ip("::"), 1), Net(ip("fd00::"), 8), Net(ip("::1"), 128)]),
        ),
    ]
    .into()
}

/// Runs `ipset` in this thread's namespace.
fn ipset(arguments: &[&str], stdin: &str) {
    let mut child =
        Command::new("ipset").args(arguments).stdin(Stdio::piped()).spawn().expect("ipset is installed");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ipset {arguments:?} on\n{stdin}");
}

fn create(kernel: &mut Nft, sets: &BTreeMap<String, Ipset>) {
    for (name, set) in sets {
        kernel.apply_ipset(&IpsetOp::Create { name: name.clone(), set: set.clone() }).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn sets_of_all_types_are_read_as_they_were_written() {
    let mut kernel = fresh_netns();
    assert_eq!(kernel.ipsets().unwrap(), BTreeMap::new());
    let mut sets = sets();
    create(&mut kernel, &sets);
    assert_eq!(kernel.ipsets().unwrap(), sets);
    for (name, set) in &mut sets {
        let elements: Vec<Element> = set.elements.iter().take(1).copied().collect();
        let (name, decl) = (name.clone(), set.decl.clone());
        let (add, remove) = (
            IpsetOp::Add { name: name.clone(), decl: decl.clone(), elements: elements.clone() },
            IpsetOp::Remove { name, decl, elements: elements.clone() },
        );
        assert!(matches!(kernel.apply_ipset(&add), Err(IpsetError::Changed { .. })), "it is there");
        kernel.apply_ipset(&remove).unwrap();
        assert!(matches!(kernel.apply_ipset(&remove), Err(IpsetError::Changed { .. })), "it is gone");
        set.elements.remove(&elements[0]);
    }
    assert_eq!(kernel.ipsets().unwrap(), sets);
    // what the program shows can be loaded by it as it is, but for what it adds of its own
    let (first, set) = sets.iter().next().unwrap();
    kernel.apply_ipset(&IpsetOp::Destroy { name: first.clone() }).unwrap();
    let text = IpsetOp::Create { name: first.clone(), set: set.clone() }.to_string();
    ipset(&["restore"], &text);
    // somebody else's is none of ours, and one that is not as we make them is foreign
    ipset(&["create", "theirs", "hash:ip"], "");
    ipset(&["create", &name('p', '4', 'q'), "hash:ip", "timeout", "10"], "");
    let mut read = kernel.ipsets().unwrap();
    let foreign = read.remove(&name('p', '4', 'q')).unwrap();
    assert_eq!(foreign.decl.kind, IpsetKind::Foreign("hash:ip".into()));
    assert_eq!(read, sets);
}

#[test]
#[ignore = "needs root"]
fn rules_on_ipsets_are_read_as_they_were_written() {
    let mut kernel = fresh_netns();
    let sets = sets();
    create(&mut kernel, &sets);
    for (family, letter) in [(Family::Ip, '4'), (Family::Ip6, '6')] {
        let rule = |set: String, key, negate| Rule {
            exprs: vec![Expr::Ipset { set, key, negate }, Expr::Verdict(Verdict::Return)],
            comment: None,
        };
        let rules: Vec<Rule> = [
            (name('p', letter, 'a'), IpsetKey::Source, false),
            (name('c', letter, 'z'), IpsetKey::Destination, true),
            (name('e', letter, 'b'), IpsetKey::SourcePort, true),
            (name('e', letter, 'b'), IpsetKey::DestinationPort, false),
        ]
        .into_iter()
        .map(|(set, key, negate)| rule(set, key, negate))
        .collect();
        let chain = "c".to_owned();
        let mut ops = vec![Op::AddTable, Op::AddChain { chain: chain.clone(), hook: None }];
        ops.extend(rules.iter().map(|rule| Op::AddRule { chain: chain.clone(), rule: rule.clone() }));
        let transaction = Transaction { family, table: "weir".into(), ops };
        kernel.apply(std::slice::from_ref(&transaction)).unwrap();
        let read = kernel.dump(family, "weir").unwrap().unwrap();
        assert_eq!(read.chains["c"].rules, rules);
        let listed = nft(&["list", "table", &family.to_string(), "weir"], "");
        assert!(listed.contains("xt match"), "{listed}");

        // a rule on a set that is not there, and a set that rules look into
        let gone = Op::AddRule { chain, rule: rule(name('p', letter, 'x'), IpsetKey::Source, false) };
        let error = kernel.apply(&[Transaction { ops: vec![gone], ..transaction }]).unwrap_err();
        assert!(
            matches!(&error, ApplyError::Invalid { reason, .. } if reason.contains("no ipset")),
            "{error}"
        );
    }
    for name in sets.keys() {
        let error = kernel.apply_ipset(&IpsetOp::Destroy { name: name.clone() }).unwrap_err();
        assert!(error.to_string().contains("rules look into it"), "{error}");
    }
}

/// Prints what takes how long, in ipsets and in named sets of nftables.
#[test]
#[ignore = "needs root"]
fn a_hundred_thousand_members_are_all_there() {
    const MANY: u32 = 100_000;
    let mut kernel = fresh_netns();
    let timed = |what: &str, times: u32, run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        println!("{what}: {:?} each", start.elapsed() / times);
    };
    let address = |i: u32| Element::Address(Ipv4Addr::from_bits(0x0a00_0000 + i).into());
    let name = name('p', '4', 'a');
    let mut wanted = set(IpsetKind::Address, Family::Ip, (0..MANY).map(address));
    let create = IpsetOp::Create { name: name.clone(), set: wanted.clone() };
    timed("ipset: create", 1, &mut || kernel.apply_ipset(&create).unwrap());
    let (decl, of) = (wanted.decl.clone(), |i| vec![address(i)]);
    timed("ipset: add", 1000, &mut || {
        for i in MANY..MANY + 1000 {
            let op = IpsetOp::Add { name: name.clone(), decl: decl.clone(), elements: of(i) };
            kernel.apply_ipset(&op).unwrap();
        }
    });
    timed("ipset: remove", 500, &mut || {
        for i in MANY..MANY + 500 {
            let op = IpsetOp::Remove { name: name.clone(), decl: decl.clone(), elements: of(i) };
            kernel.apply_ipset(&op).unwrap();
        }
    });
    wanted.elements.extend((MANY + 500..MANY + 1000).map(address));
    let mut read = BTreeMap::new();
    timed("ipset: read", 1, &mut || read = kernel.ipsets().unwrap());
    assert_eq!(read[&name], wanted);
    timed("ipset: destroy", 1, &mut || kernel.apply_ipset(&IpsetOp::Destroy { name: name.clone() }).unwrap());
    assert_eq!(kernel.ipsets().unwrap(), BTreeMap::new());

    let decl = common::decl(&[Field::Ipv4]);
    let key = |i: u32| (common::bytes(&(0x0a00_0000 + i).to_be_bytes()), Default::default());
    let add = |of: std::ops::Range<u32>| Op::AddElements {
        set: "s".into(),
        decl: decl.clone(),
        elements: of.map(key).collect(),
    };
    let transaction = |ops| common::transaction(Family::Inet, ops);
    let create = vec![Op::AddTable, Op::AddSet { set: "s".into(), decl: decl.clone() }, add(0..MANY)];
    timed("nft: create", 1, &mut || kernel.apply(&transaction(create.clone())).unwrap());
    timed("nft: add", 1000, &mut || {
        (MANY..MANY + 1000).for_each(|i| kernel.apply(&transaction(vec![add(i..i + 1)])).unwrap());
    });
    timed("nft: remove", 500, &mut || {
        for i in MANY..MANY + 500 {
            let op = Op::DeleteElements { set: "s".into(), decl: decl.clone(), elements: vec![key(i)] };
            kernel.apply(&transaction(vec![op])).unwrap();
        }
    });
    let mut read = None;
    timed("nft: read", 1, &mut || read = kernel.dump(Family::Inet, common::TABLE).unwrap());
    assert_eq!(read.unwrap().sets["s"].elements.len(), MANY as usize + 500);
}
