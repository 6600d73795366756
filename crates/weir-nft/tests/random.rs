//! The law on random tables: what was written is what is read, and what nft lists it loads.
//! Needs root: `cargo test -p weir-nft -- --include-ignored`, or `./dev test`.

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use smallvec::SmallVec;
use weir_dataplane::model::*;

/// Chains that verdicts send to; they are there in every table, and empty.
const TARGETS: [&str; 2] = ["to_a", "to_b"];

fn field() -> impl Strategy<Value = Field> {
    use Field::*;
    prop::sample::select(vec![Ipv4, Ipv6, Proto, Port, Mark, IfName])
}

/// A value of a field, often at the ends of its type.
fn field_value(field: Field) -> BoxedStrategy<Bytes> {
    match field {
        Field::IfName => "[a-z][a-z0-9.]{0,14}".prop_map(|name| ifname(&name)).boxed(),
        field => {
            let random = vec(any::<u8>(), field.len());
            let same = prop::sample::select(vec![0u8, 1, 0xfe, 0xff]).prop_map(move |b| vec![b; field.len()]);
            prop_oneof![3 => random, 1 => same].prop_map(|value| bytes(&value)).boxed()
        }
    }
}

fn key(fields: Vec<Field>) -> BoxedStrategy<Bytes> {
    let many = fields.len() > 1;
    let values: Vec<_> = fields.into_iter().map(field_value).collect();
    values.prop_map(move |values| if many { concat(&values) } else { values[0].clone() }).boxed()
}

fn comment() -> impl Strategy<Value = Option<String>> {
    prop_oneof![3 => Just(None), 1 => "[a-z/ .-]{1,127}".prop_map(Some)]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    let target = || prop::sample::select(TARGETS.to_vec()).prop_map(String::from);
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        target().prop_map(Verdict::Jump),
        target().prop_map(Verdict::Goto),
    ]
}

fn element_data(data: Option<SetData>) -> BoxedStrategy<Option<ElementData>> {
    match data {
        None => Just(None).boxed(),
        Some(SetData::Verdict) => any_verdict().prop_map(|v| Some(ElementData::Verdict(v))).boxed(),
        Some(SetData::Value(field)) => field_value(field).prop_map(|v| Some(ElementData::Value(v))).boxed(),
    }
}

fn set_data() -> impl Strategy<Value = Option<SetData>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(SetData::Verdict)),
        1 => field().prop_map(|field| Some(SetData::Value(field))),
    ]
}

/// A hash set or map.
fn hash_set() -> impl Strategy<Value = Set> {
    (vec(field(), 1..=5), set_data(), any::<bool>())
        .prop_map(|(key, data, constant)| SetDecl {
            key: SmallVec::from_vec(key),
            data,
            interval: false,
            constant,
        })
        .prop_filter("at most 64 bytes", |decl| decl.key_len() <= 64)
        .prop_flat_map(|decl| {
            let element = (element_data(decl.data), comment()).prop_map(|(data, comment)| Element {
                last: None,
                data,
                comment,
            });
            btree_map(key(decl.key.to_vec()), element, 0..20)
                .prop_map(move |elements| Set { decl: decl.clone(), elements })
        })
}

/// An interval set or map of one field: disjoint intervals between an even number of points.
fn one_range_set() -> impl Strategy<Value = Set> {
    let field = prop::sample::select(vec![Field::Ipv4, Field::Ipv6, Field::Port]);
    (field, prop_oneof![Just(None), Just(Some(SetData::Verdict))]).prop_flat_map(|(field, data)| {
        let element = (element_data(data), comment());
        (btree_set(field_value(field), 0..30), vec(element, 15)).prop_map(move |(points, more)| {
            let points: Vec<Bytes> = points.into_iter().collect();
            let elements = points
                .chunks(2)
                .zip(more)
                .map(|(ends, (data, comment))| {
                    let last = Some(ends.last().unwrap().clone());
                    (ends[0].clone(), Element { last, data, comment })
                })
                .collect();
            Set { decl: SetDecl { data, ..intervals(&[field]) }, elements }
        })
    })
}

/// A set of several ranges: disjoint because of a port of its own each.
fn pipapo_set() -> impl Strategy<Value = Set> {
    let entry = (field_value(Field::Ipv4), field_value(Field::Ipv4), comment());
    vec(entry, 0..15).prop_map(|entries| {
        let elements = (1000..).zip(entries).map(|(number, (a, b, comment))| {
            let (first, last) = if a <= b { (a, b) } else { (b, a) };
            let (first, last) = (concat(&[first, port(number)]), concat(&[last, port(number)]));
            (first, Element { last: Some(last), data: None, comment })
        });
        set(intervals(&[Field::Ipv4, Field::Port]), elements)
    })
}

fn expr() -> impl Strategy<Value = Expr> {
    let reg = || (0u8..12).prop_map(Reg);
    let constant = || vec(any::<u8>(), 4).prop_map(|value| bytes(&value));
    let metas = vec![MetaKey::IifName, MetaKey::OifName, MetaKey::NfProto, MetaKey::L4Proto, MetaKey::Random];
    let bases = vec![PayloadBase::Network, PayloadBase::Transport];
    prop_oneof![
        (prop::sample::select(metas), reg()).prop_map(|(key, dreg)| Expr::Meta { key, dreg }),
        (prop::sample::select(bases), 0u32..60, 1u32..=16, reg())
            .prop_map(|(base, offset, len, dreg)| Expr::Payload { base, offset, len, dreg }),
        (prop::sample::select(vec![CtKey::State, CtKey::Status, CtKey::Mark]), reg())
            .prop_map(|(key, dreg)| Expr::Ct { key, dreg }),
        (constant(), constant()).prop_map(|(mask, xor)| Expr::Bitwise {
            sreg: Reg(0),
            dreg: Reg(0),
            mask,
            xor
        }),
        (prop::sample::select(vec![CmpOp::Eq, CmpOp::Neq, CmpOp::Lte, CmpOp::Gte]), vec(any::<u8>(), 1..=16))
            .prop_map(|(op, value)| Expr::Cmp { sreg: Reg(0), op, value: bytes(&value) }),
        (any::<bool>(), constant(), constant()).prop_map(|(negate, a, b)| {
            let (from, to) = if a <= b { (a, b) } else { (b, a) };
            Expr::Range { sreg: Reg(0), negate, from, to }
        }),
        (1u32..=1_000_000, 1u32..=1_000_000)
            .prop_map(|(per_second, burst)| Expr::Limit { per_second, burst }),
        (any::<u16>(), "[ -~]{1,127}", 1u32..=65_535).prop_map(|(group, prefix, snaplen)| Expr::Log {
            group,
            prefix,
            snaplen
        }),
    ]
}

/// Registers 0 to 3 are written first: the kernel refuses to read what nobody wrote.
fn any_rule() -> impl Strategy<Value = Rule> {
    (vec(expr(), 0..8), prop::option::of(any_verdict()), comment()).prop_map(|(middle, verdict, comment)| {
        let mut exprs = vec![meta(MetaKey::IifName)];
        exprs.extend(middle);
        exprs.extend(verdict.map(Expr::Verdict));
        Rule { exprs, comment }
    })
}

fn table() -> impl Strategy<Value = Table> {
    let sets = vec(prop_oneof![2 => hash_set(), 1 => one_range_set(), 1 => pipapo_set()], 0..6);
    let hooks = vec![HookPoint::Prerouting, HookPoint::Input, HookPoint::Forward, HookPoint::Output];
    let hook =
        (prop::sample::select(hooks), -500i32..500).prop_map(|(point, priority)| Hook { point, priority });
    let chains = vec((prop::option::of(hook), vec(any_rule(), 0..6)), 0..5);
    (sets, chains).prop_map(|(sets, chains)| {
        let mut table = empty_table();
        table.sets = (0..).zip(sets).map(|(i, set)| (format!("s{i}"), set)).collect();
        // What a verdict map sends on has to be reachable from where its lookups are; here there are none.
        let chains = (0..).zip(chains).map(|(i, (hook, rules))| (format!("c{i}"), Chain { hook, rules }));
        table.chains = chains.collect::<BTreeMap<_, _>>();
        table.chains.extend(TARGETS.map(|name| (name.to_string(), Chain::default())));
        table
    })
}

#[test]
#[ignore = "needs root"]
fn random_tables_come_back() {
    let kernel = std::cell::RefCell::new(fresh_netns());
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    runner
        .run(&table(), |table| {
            let mut kernel = kernel.borrow_mut();
            kernel.apply(&create(&table)).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let back = kernel.dump(Family::Inet, TABLE).unwrap();
            kernel.apply(&transaction(Family::Inet, vec![Op::DeleteTable])).unwrap();
            prop_assert_eq!(back, Some(table));
            Ok(())
        })
        .unwrap();
}
