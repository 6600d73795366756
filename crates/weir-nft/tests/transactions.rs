//! What a batch does: all or nothing, of any size, in order; and what an error says.
//! Needs root: `cargo test -p weir-nft -- --include-ignored`, or `./dev test`.

mod common;

use common::*;
use weir_dataplane::model::*;
use weir_nft::{ApplyError, Listener, Nft, OpenError};

fn add(set: &str, decl: &SetDecl, elements: Vec<(Bytes, Element)>) -> Op {
    Op::AddElements { set: set.into(), decl: decl.clone(), elements }
}

fn delete(set: &str, decl: &SetDecl, elements: Vec<(Bytes, Element)>) -> Op {
    Op::DeleteElements { set: set.into(), decl: decl.clone(), elements }
}

fn inet(ops: Vec<Op>) -> [Transaction; 1] {
    transaction(Family::Inet, ops)
}

fn refused(kernel: &mut Nft, ops: Vec<Op>) -> (String, i32) {
    match kernel.apply(&inet(ops)).unwrap_err() {
        error @ ApplyError::Refused { .. } => {
            let text = error.to_string();
            let ApplyError::Refused { first, .. } = error else { unreachable!() };
            (text, first.errno)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_refused_batch_names_the_object_and_leaves_nothing() {
    let mut kernel = fresh_netns();
    let v4 = decl(&[Field::Ipv4]);
    kernel
        .apply(&inet(vec![
            Op::AddTable,
            Op::AddSet { set: "x".into(), decl: v4.clone() },
            add("x", &v4, vec![member(ip("10.0.0.7"))]),
        ]))
        .unwrap();
    let before = kernel.dump(Family::Inet, TABLE).unwrap();
    let generation = kernel.generation().unwrap();

    let (text, errno) = refused(
        &mut kernel,
        vec![Op::AddChain { chain: "new".into(), hook: None }, add("x", &v4, addresses(5000))],
    );
    assert_eq!(errno, nix::libc::EEXIST);
    assert!(text.starts_with("add element 10.0.0.7 to set x in table inet weir: "), "{text}");
    assert!(text.contains("File exists (EEXIST)"), "{text}");

    let (text, errno) = refused(&mut kernel, vec![delete("x", &v4, vec![member(ip("10.0.0.8"))])]);
    assert_eq!(errno, nix::libc::ENOENT);
    assert!(text.starts_with("delete element 10.0.0.8 from set x in table inet weir: "), "{text}");

    let (text, _) = refused(&mut kernel, vec![Op::AddSet { set: "x".into(), decl: v4.clone() }]);
    assert!(text.starts_with("add set x to table inet weir: File exists"), "{text}");

    let (text, _) = refused(&mut kernel, vec![Op::DeleteChain { chain: "gone".into() }]);
    assert!(text.starts_with("delete chain gone from table inet weir: No such file"), "{text}");

    let good = rule([Expr::Verdict(Verdict::Accept)]);
    let bad = Rule { comment: Some("policy a/b".into()), ..rule([lookup("nowhere")]) };
    let chain = || "new".to_string();
    let (text, _) = refused(
        &mut kernel,
        vec![
            Op::AddChain { chain: chain(), hook: None },
            Op::AddRule { chain: chain(), rule: good },
            Op::AddRule { chain: chain(), rule: bad },
        ],
    );
    assert!(
        text.starts_with("add rule 2 (\"policy a/b\") to chain new in table inet weir: No such"),
        "{text}"
    );

    let (text, _) = refused(&mut kernel, vec![Op::DeleteTable, Op::DeleteTable]);
    assert!(text.starts_with("delete table inet weir: "), "{text}");

    assert_eq!(kernel.generation().unwrap(), generation, "no commit");
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap(), before);
}

/// Thousands of refusals, each with an answer: the first is the one that is told.
#[test]
#[ignore = "needs root"]
fn many_refusals_are_survived() {
    let mut kernel = fresh_netns();
    let ops = (0..20_000).map(|i| Op::FlushChain { chain: format!("c{i}") }).collect();
    let (text, errno) = refused(&mut kernel, ops);
    assert_eq!(errno, nix::libc::ENOENT);
    assert!(text.starts_with("flush chain c0 in table inet weir: "), "{text}");
    assert!(text.ends_with("(and 15 more that may follow from it)"), "{text}");
    // And the next one is answered for itself.
    kernel.apply(&inet(vec![Op::AddTable])).unwrap();
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_written_is_named() {
    let mut kernel = fresh_netns();
    let v4 = decl(&[Field::Ipv4]);
    let mut invalid = |op: Op| match kernel.apply(&inet(vec![Op::AddTable, op])).unwrap_err() {
        error @ ApplyError::Invalid { .. } => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        invalid(add("x", &v4, vec![member(ip("::1"))])),
        "cannot add 1 elements to set x in table inet weir: the key has to have 4 bytes and has 16"
    );
    let long = "n".repeat(256);
    assert!(invalid(Op::AddChain { chain: long, hook: None }).contains("longer than 255 bytes"));
    assert!(invalid(Op::AddChain { chain: "a\0b".into(), hook: None }).contains("zero byte"));
    let many = rule((0..129).map(|_| meta(MetaKey::L4Proto)));
    assert!(invalid(Op::AddRule { chain: "c".into(), rule: many }).contains("128 expressions"));
    let wide = rule([cmp(&[0; 65])]);
    assert!(invalid(Op::AddRule { chain: "c".into(), rule: wide }).contains("64 bytes"));
    let foreign = rule([Expr::Foreign("counter".into())]);
    assert!(invalid(Op::AddRule { chain: "c".into(), rule: foreign }).contains("does not write"));
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap(), None);
}

/// The largest that the bounds of ffi.rs allow is written (the kernel has a limit of its own, 4 KiB in
/// its own form), and a smaller one with the longest names is taken.
#[test]
#[ignore = "needs root"]
fn the_largest_rule_is_written() {
    let mut kernel = fresh_netns();
    let name = |c: &str| c.repeat(255);
    let v4 = decl(&[Field::Ipv4]);
    let rule = |lookups| {
        let mut exprs = vec![network(12, 4)];
        exprs.extend((0..lookups).map(|_| lookup(&name("s"))));
        exprs.push(Expr::Verdict(Verdict::Jump(name("t"))));
        Rule { exprs, comment: Some("c".repeat(127)) }
    };
    let ops = |rule| {
        vec![
            Op::AddTable,
            Op::AddSet { set: name("s"), decl: v4.clone() },
            Op::AddChain { chain: name("t"), hook: None },
            Op::AddChain { chain: name("c"), hook: None },
            Op::AddRule { chain: name("c"), rule },
        ]
    };
    let (_, errno) = refused(&mut kernel, ops(rule(126)));
    assert_eq!(errno, nix::libc::EFBIG);
    kernel.apply(&inet(ops(rule(50)))).unwrap();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap().unwrap().chains[&name("c")].rules, [rule(50)]);
}

#[test]
#[ignore = "needs root"]
fn two_hundred_thousand_elements_in_one_batch() {
    let mut kernel = fresh_netns();
    let v4 = decl(&[Field::Ipv4]);
    let elements = addresses(200_000);
    let before = kernel.generation().unwrap();
    kernel
        .apply(&inet(vec![
            Op::AddTable,
            Op::AddSet { set: "x".into(), decl: v4.clone() },
            add("x", &v4, elements.clone()),
        ]))
        .unwrap();
    assert_eq!(kernel.generation().unwrap(), before + 1, "one commit");
    let dumped = kernel.dump(Family::Inet, TABLE).unwrap().unwrap();
    assert_eq!(dumped.sets["x"].elements.len(), 200_000);
    assert!(dumped.sets["x"].elements.iter().eq(elements.iter().map(|(key, element)| (key, element))));
    kernel.apply(&inet(vec![delete("x", &v4, elements[..100_000].to_vec())])).unwrap();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap().unwrap().sets["x"].elements.len(), 100_000);
}

#[test]
#[ignore = "needs root"]
fn a_batch_for_another_generation_is_refused() {
    let mut kernel = fresh_netns();
    let generation = kernel.generation().unwrap();
    kernel.apply_at(generation, &inet(vec![Op::AddTable])).unwrap();
    let chain = inet(vec![Op::AddChain { chain: "x".into(), hook: None }]);
    match kernel.apply_at(generation, &chain).unwrap_err() {
        ApplyError::Stale { generation: stale } => assert_eq!(stale, generation),
        other => panic!("{other:?}"),
    }
    let generation = kernel.generation().unwrap();
    kernel.apply_at(generation, &chain).unwrap();
}

#[test]
#[ignore = "needs root"]
fn a_chain_is_replaced_in_place() {
    let mut kernel = fresh_netns();
    let table = everything();
    kernel.apply(&create(&table)).unwrap();
    let handle = || {
        let text = nft(&["-a", "list", "chain", "inet", TABLE, "x"], "");
        text.lines().find(|line| line.contains("chain x")).expect("the chain").to_string()
    };
    let before = handle();
    let drop = rule([Expr::Verdict(Verdict::Drop)]);
    kernel
        .apply(&inet(vec![
            Op::FlushChain { chain: "x".into() },
            Op::AddRule { chain: "x".into(), rule: drop.clone() },
        ]))
        .unwrap();
    assert_eq!(handle(), before, "the chain itself stayed");
    let mut want = table;
    want.chains.get_mut("x").unwrap().rules = vec![drop];
    assert_same(&kernel.dump(Family::Inet, TABLE).unwrap().unwrap(), &want);
}

#[test]
#[ignore = "needs root"]
fn everything_is_deleted_piece_by_piece() {
    let mut kernel = fresh_netns();
    let table = everything();
    kernel.apply(&create(&table)).unwrap();
    let some = |set: &str| {
        let set = &table.sets[set];
        set.elements.iter().map(|(key, element)| (key.clone(), element.clone())).collect::<Vec<_>>()
    };
    // Elements of all kinds go one by one, one of two neighbours first.
    let mut want = table.clone();
    for (name, keep) in
        [("cidr4", 2), ("range_vmap", 1), ("pipapo", 1), ("flows", 1), ("ports", 1), ("all6", 0)]
    {
        let gone = some(name).split_off(keep);
        let set = want.sets.get_mut(name).unwrap();
        for (key, _) in &gone {
            set.elements.remove(key);
        }
        let decl = set.decl.clone();
        kernel.apply(&inet(vec![delete(name, &decl, gone)])).unwrap();
        assert_same(&kernel.dump(Family::Inet, TABLE).unwrap().unwrap(), &want);
    }
    // Then all the rest in one batch: rules, what refers to chains, chains, sets.
    let mut ops: Vec<Op> = table.chains.keys().map(|chain| Op::FlushChain { chain: chain.clone() }).collect();
    ops.extend(table.sets.keys().map(|set| Op::DeleteSet { set: set.clone() }));
    ops.extend(table.chains.keys().map(|chain| Op::DeleteChain { chain: chain.clone() }));
    kernel.apply(&inet(ops)).unwrap();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap(), Some(empty_table()));
    kernel.apply(&inet(vec![Op::DeleteTable])).unwrap();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap(), None);
}

/// A set is replaced under its name by one of another type, within one batch.
#[test]
#[ignore = "needs root"]
fn a_set_is_replaced_under_its_name() {
    let mut kernel = fresh_netns();
    let (old, new) = (decl(&[Field::Ipv4]), intervals(&[Field::Ipv6]));
    kernel
        .apply(&inet(vec![
            Op::AddTable,
            Op::AddSet { set: "x".into(), decl: old.clone() },
            add("x", &old, addresses(3)),
        ]))
        .unwrap();
    let elements = vec![range(ip("fd00::"), ip("fd00::ff"))];
    kernel
        .apply(&inet(vec![
            Op::DeleteSet { set: "x".into() },
            Op::AddSet { set: "x".into(), decl: new.clone() },
            add("x", &new, elements.clone()),
        ]))
        .unwrap();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap().unwrap().sets["x"], set(new, elements));
}

/// A dump shows one generation: what one batch adds and the next one deletes is there as a whole or not at all.
#[test]
#[ignore = "needs root"]
fn a_dump_is_never_of_two_generations() {
    let mut kernel = fresh_netns();
    let v4 = decl(&[Field::Ipv4]);
    // Chains are read first, and sets in the order of their making: all the others lie between.
    let names: Vec<String> = (0..20).map(|i| format!("s{i:02}")).collect();
    let last = names.last().unwrap();
    let on = vec![Op::AddChain { chain: "c".into(), hook: None }, add(last, &v4, addresses(30))];
    let off = vec![Op::DeleteChain { chain: "c".into() }, delete(last, &v4, addresses(30))];
    let mut all = vec![Op::AddTable];
    all.extend(names.iter().map(|name| Op::AddSet { set: name.clone(), decl: v4.clone() }));
    kernel.apply(&inet(all)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            // The thread is in the namespace of the one that started it.
            let mut kernel = Nft::open().unwrap();
            for _ in 0..100 {
                kernel.apply(&inet(on.clone())).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
                kernel.apply(&inet(off.clone())).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let mut seen = [0, 0];
        for _ in 0..100_000 {
            if writer.is_finished() {
                break;
            }
            // Unstable is an answer too: never a mixture.
            let Ok(table) = kernel.dump(Family::Inet, TABLE) else { continue };
            let table = table.unwrap();
            let there = table.chains.contains_key("c");
            assert_eq!(table.sets[last].elements.len(), if there { 30 } else { 0 });
            seen[usize::from(there)] += 1;
        }
        writer.join().unwrap();
        assert!(seen[0] + seen[1] > 0, "{seen:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn transactions_of_several_tables_are_one_batch() {
    let mut kernel = fresh_netns();
    let families = [Family::Ip, Family::Bridge, Family::Ip6, Family::Inet];
    // a set that has the same name and another type in each table, filled and used at once
    let field = |family| if family == Family::Ip6 { Field::Ipv6 } else { Field::Ipv4 };
    let plain = |family| decl(&[field(family)]);
    let key = |family| Bytes::from_elem(7, field(family).len());
    let of = |family| {
        let [mut transaction] = transaction(family, vec![Op::AddTable]);
        transaction.ops.push(Op::AddSet { set: "s".into(), decl: plain(family) });
        transaction.ops.push(add("s", &plain(family), vec![(key(family), Element::default())]));
        transaction
    };
    let before = kernel.generation().unwrap();
    let batch = families.map(of);
    kernel.apply(&batch).unwrap();
    assert_eq!(kernel.generation().unwrap(), before + 1, "one commit");
    for family in families {
        let table = kernel.dump(family, TABLE).unwrap().unwrap();
        assert_eq!((table.family, table.sets["s"].decl.clone()), (family, plain(family)));
        assert_eq!(table.sets["s"].elements.keys().collect::<Vec<_>>(), [&key(family)]);
    }

    // what one table refuses, none takes
    let mut broken = families.map(|family| {
        let [transaction] =
            transaction(family, vec![delete("s", &plain(family), vec![(key(family), Element::default())])]);
        transaction
    });
    broken[2].ops.push(Op::DeleteSet { set: "nothing".into() });
    match kernel.apply(&broken).unwrap_err() {
        ApplyError::Refused { first, .. } => {
            assert_eq!(first.object, format!("delete set nothing from table ip6 {TABLE}"));
        }
        other => panic!("{other}"),
    }
    for family in families {
        assert_eq!(kernel.dump(family, TABLE).unwrap().unwrap().sets["s"].elements.len(), 1);
    }
}

#[test]
#[ignore = "needs root"]
fn a_listener_tells_own_from_foreign_commits() {
    let mut kernel = fresh_netns();
    let mut listener = Listener::open(&[(Family::Inet, TABLE), (Family::Bridge, TABLE)]).unwrap();
    assert_eq!(listener.drain().unwrap(), Default::default());
    kernel.apply(&inet(vec![Op::AddTable])).unwrap();
    let changes = listener.drain().unwrap();
    assert_eq!(changes.commits.len(), 1, "{changes:?}");
    assert_eq!(changes.commits[0].generation, kernel.generation().unwrap());
    assert_eq!(changes.commits[0].thread, Some(nix::unistd::gettid().as_raw() as u32));
    assert!(!changes.foreign(kernel.port()), "{changes:?}");

    nft(&["add", "chain", "inet", TABLE, "theirs"], "");
    let changes = listener.drain().unwrap();
    assert_eq!(changes.commits.len(), 1, "{changes:?}");
    assert_eq!(changes.commits[0].name.as_deref(), Some("nft"));
    assert!(changes.foreign(kernel.port()), "{changes:?}");

    // any of the tables that are listened to
    nft(&["add", "table", "bridge", TABLE], "");
    assert!(listener.drain().unwrap().foreign(kernel.port()));

    // what others do to tables of theirs is no concern, also not in another family under the same name
    nft(&["add", "table", "inet", "other"], "");
    nft(&["add", "table", "ip", TABLE], "");
    let changes = listener.drain().unwrap();
    assert_eq!(changes.commits.len(), 2, "{changes:?}");
    assert!(!changes.foreign(kernel.port()), "{changes:?}");
    nft(&["flush", "ruleset"], "");
    assert!(listener.drain().unwrap().foreign(kernel.port()));
}

/// A thread of its own, in a user namespace that owns no network namespace.
#[test]
#[ignore = "needs root"]
fn without_the_capability_it_says_so() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    // A user namespace needs a process of one thread: this test again, in a child, without capabilities.
    let out = std::process::Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "unprivileged_child", "--ignored", "--nocapture"])
        .env("WEIR_UNPRIVILEGED", "1")
        .output()
        .expect("setpriv is installed (util-linux)");
    assert!(out.status.success(), "{out:?}");
}

#[test]
#[ignore = "the child of without_the_capability_it_says_so"]
fn unprivileged_child() {
    if std::env::var_os("WEIR_UNPRIVILEGED").is_none() {
        return;
    }
    let Err(error) = Nft::open() else { panic!("it should not have the capability") };
    assert!(matches!(error, OpenError::NoPermission), "{error:?}");
    assert_eq!(
        error.to_string(),
        "no permission to change nftables: run as root, or give the process CAP_NET_ADMIN"
    );
}
