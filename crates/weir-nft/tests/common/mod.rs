//! What the tests share: a network namespace of their own, `nft` to compare with, and a table
//! that has everything.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use smallvec::SmallVec;
use weir_dataplane::model::*;
use weir_nft::Nft;

/// The name of the table in all tests.
pub(crate) const TABLE: &str = "weir";

/// Moves this test's thread, and what it starts, to a fresh network namespace, which goes with it.
pub(crate) fn fresh_netns() -> Nft {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own: this test needs root");
    Nft::open().expect("nf_tables")
}

/// Runs `nft` in this thread's namespace and gives what it prints.
pub(crate) fn nft(arguments: &[&str], stdin: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "nft {arguments:?} on\n{stdin}\nsaid {}\n{errors}", out.status);
    text.into_owned()
}

pub(crate) fn transaction(family: Family, ops: Vec<Op>) -> [Transaction; 1] {
    [Transaction { family, table: TABLE.into(), ops }]
}

/// Everything that makes this table from nothing: sets, chains, then what refers to them.
pub(crate) fn create(table: &Table) -> [Transaction; 1] {
    let mut ops = vec![Op::AddTable];
    ops.extend(table.sets.iter().map(|(set, it)| Op::AddSet { set: set.clone(), decl: it.decl.clone() }));
    ops.extend(table.chains.iter().map(|(chain, it)| Op::AddChain { chain: chain.clone(), hook: it.hook }));
    for (set, it) in &table.sets {
        let elements = it.elements.iter().map(|(key, element)| (key.clone(), element.clone())).collect();
        ops.push(Op::AddElements { set: set.clone(), decl: it.decl.clone(), elements });
    }
    for (chain, it) in &table.chains {
        ops.extend(it.rules.iter().map(|rule| Op::AddRule { chain: chain.clone(), rule: rule.clone() }));
    }
    [Transaction { family: table.family, table: table.name.clone(), ops }]
}

pub(crate) fn empty_table() -> Table {
    Table { family: Family::Inet, name: TABLE.into(), sets: Default::default(), chains: Default::default() }
}

pub(crate) fn decl(key: &[Field]) -> SetDecl {
    SetDecl { key: SmallVec::from_slice(key), data: None, interval: false, constant: false }
}

pub(crate) fn intervals(key: &[Field]) -> SetDecl {
    SetDecl { interval: true, ..decl(key) }
}

pub(crate) fn map(key: &[Field], data: SetData) -> SetDecl {
    SetDecl { data: Some(data), ..decl(key) }
}

pub(crate) fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::from_slice(bytes)
}

pub(crate) fn ip(text: &str) -> Bytes {
    match text.parse().expect("an address") {
        std::net::IpAddr::V4(address) => bytes(&address.octets()),
        std::net::IpAddr::V6(address) => bytes(&address.octets()),
    }
}

pub(crate) fn ifname(name: &str) -> Bytes {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    bytes(&padded)
}

pub(crate) fn port(port: u16) -> Bytes {
    bytes(&port.to_be_bytes())
}

/// A key of several fields.
pub(crate) fn concat(fields: &[Bytes]) -> Bytes {
    let mut out = Bytes::new();
    for field in fields {
        out.extend_from_slice(field);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub(crate) fn member(key: Bytes) -> (Bytes, Element) {
    (key, Element::default())
}

pub(crate) fn range(first: Bytes, last: Bytes) -> (Bytes, Element) {
    (first, Element { last: Some(last), ..Element::default() })
}

pub(crate) fn verdict(key: Bytes, verdict: Verdict) -> (Bytes, Element) {
    (key, Element { data: Some(ElementData::Verdict(verdict)), ..Element::default() })
}

pub(crate) fn value(key: Bytes, value: Bytes) -> (Bytes, Element) {
    (key, Element { data: Some(ElementData::Value(value)), ..Element::default() })
}

pub(crate) fn commented((key, element): (Bytes, Element), comment: &str) -> (Bytes, Element) {
    (key, Element { comment: Some(comment.into()), ..element })
}

pub(crate) fn set(decl: SetDecl, elements: impl IntoIterator<Item = (Bytes, Element)>) -> Set {
    Set { decl, elements: elements.into_iter().collect() }
}

pub(crate) fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: None }
}

pub(crate) fn chain(rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { hook: None, rules: rules.into_iter().collect() }
}

pub(crate) fn meta(key: MetaKey) -> Expr {
    Expr::Meta { key, dreg: Reg(0) }
}

pub(crate) fn cmp(value: &[u8]) -> Expr {
    Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, value: bytes(value) }
}

pub(crate) fn lookup(set: &str) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(0), dest: None, negate: false }
}

pub(crate) fn vmap(set: &str) -> Expr {
    Expr::Lookup { set: set.into(), sreg: Reg(0), dest: Some(LookupDest::Verdict), negate: false }
}

pub(crate) fn network(offset: u32, len: u32) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset, len, dreg: Reg(0) }
}

pub(crate) fn ipv4_only() -> [Expr; 2] {
    [meta(MetaKey::NfProto), cmp(&[2])]
}

/// The same table as [`TEXT`], by hand.
pub(crate) fn everything() -> Table {
    use Field::*;
    let jump = |to: &str| Verdict::Jump(to.into());
    let goto = |to: &str| Verdict::Goto(to.into());
    let mut table = empty_table();
    table.sets = [
        (
            "by_if",
            set(
                map(&[IfName], SetData::Verdict),
                [verdict(ifname("eth0"), jump("x")), verdict(ifname("caliabcdefghijk"), Verdict::Drop)],
            ),
        ),
        (
            "by_addr",
            set(
                map(&[Ipv4], SetData::Verdict),
                [
                    verdict(ip("10.0.0.1"), goto("x")),
                    verdict(ip("10.0.0.2"), Verdict::Return),
                    commented(verdict(ip("10.0.0.3"), Verdict::Accept), "shop/cart"),
                ],
            ),
        ),
        (
            "roles",
            set(map(&[Ipv4], SetData::Value(Mark)), [value(ip("10.0.0.1"), bytes(&5u32.to_ne_bytes()))]),
        ),
        (
            "flows",
            set(
                decl(&[Ipv4, Proto, Port]),
                [
                    member(concat(&[ip("10.0.0.1"), bytes(&[6]), port(80)])),
                    commented(member(concat(&[ip("10.0.0.1"), bytes(&[17]), port(53)])), "dns"),
                ],
            ),
        ),
        (
            "hairpin",
            set(
                decl(&[IfName, Ipv4, Ipv4]),
                [member(concat(&[ifname("eth0"), ip("10.0.0.1"), ip("10.0.0.1")]))],
            ),
        ),
        ("six", set(decl(&[Ipv6]), [member(ip("2001:db8::1")), member(ip("::"))])),
        (
            "fixed",
            set(
                SetDecl { constant: true, ..decl(&[Ipv4]) },
                [member(ip("10.9.9.9")), member(ip("10.9.9.8"))],
            ),
        ),
        ("nobody", set(decl(&[Ipv4]), [])),
        (
            "cidr4",
            set(
                intervals(&[Ipv4]),
                [
                    commented(range(ip("10.0.0.0"), ip("10.255.255.255")), "ten"),
                    range(ip("11.0.0.0"), ip("11.0.0.5")),
                    range(ip("11.0.0.6"), ip("11.0.0.9")),
                    range(ip("12.0.0.1"), ip("12.0.0.1")),
                    range(ip("255.255.255.0"), ip("255.255.255.255")),
                ],
            ),
        ),
        ("all4", set(intervals(&[Ipv4]), [range(ip("0.0.0.0"), ip("255.255.255.255"))])),
        ("low4", set(intervals(&[Ipv4]), [range(ip("0.0.0.0"), ip("0.0.0.255"))])),
        ("none4", set(intervals(&[Ipv4]), [])),
        (
            "cidr6",
            set(
                intervals(&[Ipv6]),
                [
                    range(ip("2001:db8::"), ip("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")),
                    range(ip("ff00::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
                ],
            ),
        ),
        ("all6", set(intervals(&[Ipv6]), [range(ip("::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))])),
        ("ports", set(decl(&[Port]), [member(port(0)), member(port(80)), member(port(65535))])),
        (
            "port_ranges",
            set(
                intervals(&[Port]),
                [range(port(80), port(80)), range(port(1024), port(2048)), range(port(65535), port(65535))],
            ),
        ),
        ("all_ports", set(intervals(&[Port]), [range(port(0), port(65535))])),
        (
            "range_vmap",
            set(
                SetDecl { interval: true, ..map(&[Ipv4], SetData::Verdict) },
                [
                    (
                        ip("10.0.0.0"),
                        Element {
                            last: Some(ip("10.0.0.255")),
                            data: Some(ElementData::Verdict(jump("x"))),
                            comment: None,
                        },
                    ),
                    (
                        ip("10.0.1.0"),
                        Element {
                            last: Some(ip("10.0.1.255")),
                            data: Some(ElementData::Verdict(Verdict::Drop)),
                            comment: Some("next".into()),
                        },
                    ),
                ],
            ),
        ),
        (
            "pipapo",
            set(
                intervals(&[Ipv4, Proto, Port]),
                [
                    range(
                        concat(&[ip("10.0.0.0"), bytes(&[6]), port(80)]),
                        concat(&[ip("10.255.255.255"), bytes(&[6]), port(90)]),
                    ),
                    commented(
                        range(
                            concat(&[ip("11.0.0.1"), bytes(&[17]), port(53)]),
                            concat(&[ip("11.0.0.1"), bytes(&[17]), port(53)]),
                        ),
                        "one",
                    ),
                    range(
                        concat(&[ip("0.0.0.0"), bytes(&[132]), port(0)]),
                        concat(&[ip("255.255.255.255"), bytes(&[132]), port(65535)]),
                    ),
                ],
            ),
        ),
    ]
    .into_iter()
    .map(|(name, set)| (name.to_string(), set))
    .collect();

    let base = |point, priority, rules: Vec<Rule>| Chain { hook: Some(Hook { point, priority }), rules };
    let states = |mask: u32| Expr::Bitwise {
        sreg: Reg(0),
        dreg: Reg(0),
        mask: bytes(&mask.to_ne_bytes()),
        xor: bytes(&[0; 4]),
    };
    let nonzero = Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, value: bytes(&[0; 4]) };
    let [v4, is_v4] = ipv4_only();
    let [tcp, is_tcp] = [meta(MetaKey::L4Proto), cmp(&[6])];
    let dport = |dreg| Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: Reg(dreg) };
    let payload =
        |offset, len, dreg| Expr::Payload { base: PayloadBase::Network, offset, len, dreg: Reg(dreg) };
    let accept = || Expr::Verdict(Verdict::Accept);
    table.chains = [
        (
            "x",
            chain([
                Rule {
                    exprs: vec![v4.clone(), is_v4.clone(), network(12, 4), lookup("cidr4"), accept()],
                    comment: Some("from ten".into()),
                },
                rule([
                    tcp.clone(),
                    is_tcp.clone(),
                    dport(0),
                    Expr::Range { sreg: Reg(0), negate: true, from: port(80), to: port(90) },
                    Expr::Verdict(Verdict::Drop),
                ]),
                rule([
                    v4.clone(),
                    is_v4.clone(),
                    payload(12, 4, 0),
                    Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(1) },
                    dport(2),
                    lookup("flows"),
                    accept(),
                ]),
                rule([
                    v4.clone(),
                    is_v4.clone(),
                    network(16, 4),
                    Expr::Lookup { set: "fixed".into(), sreg: Reg(0), dest: None, negate: true },
                    Expr::Verdict(Verdict::Return),
                ]),
                rule([
                    Expr::Limit { per_second: 100, burst: 200 },
                    Expr::Log { group: 29, prefix: "egress_x".into(), snaplen: 128 },
                ]),
                rule([
                    Expr::Ct { key: CtKey::Status, dreg: Reg(0) },
                    states(8),
                    Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, value: bytes(&[0; 4]) },
                    meta(MetaKey::Random),
                    Expr::Cmp { sreg: Reg(0), op: CmpOp::Lte, value: bytes(&42_949_671u32.to_be_bytes()) },
                    Expr::Log { group: 29, prefix: "allowed_egress_x_100".into(), snaplen: 128 },
                ]),
                rule([Expr::Verdict(goto("y"))]),
            ]),
        ),
        ("y", chain([])),
        (
            "forward",
            base(
                HookPoint::Forward,
                0,
                vec![
                    rule([
                        Expr::Ct { key: CtKey::State, dreg: Reg(0) },
                        states(2 | 4),
                        nonzero.clone(),
                        accept(),
                    ]),
                    rule([
                        Expr::Ct { key: CtKey::Mark, dreg: Reg(0) },
                        states(0x100),
                        nonzero.clone(),
                        Expr::Verdict(Verdict::Drop),
                    ]),
                    rule([meta(MetaKey::IifName), vmap("by_if")]),
                    rule([meta(MetaKey::OifName), cmp(&ifname("eth1")), Expr::Verdict(jump("x"))]),
                    rule([v4.clone(), is_v4.clone(), network(12, 4), vmap("by_addr")]),
                ],
            ),
        ),
        ("raw", base(HookPoint::Prerouting, -300, vec![])),
        ("input", base(HookPoint::Input, 10, vec![])),
        ("output", base(HookPoint::Output, 0, vec![])),
        ("postrouting", base(HookPoint::Postrouting, 0, vec![])),
    ]
    .into_iter()
    .map(|(name, chain)| (name.to_string(), chain))
    .collect();
    table
}

/// The same table as [`everything`], as a person would write it for nft.
pub(crate) const TEXT: &str = r#"
table inet weir {
    map by_if { type ifname : verdict; elements = { "eth0" : jump x, "caliabcdefghijk" : drop }
    }
    map by_addr {
        type ipv4_addr : verdict
        elements = { 10.0.0.1 : goto x, 10.0.0.2 : return, 10.0.0.3 comment "shop/cart" : accept }
    }
    map roles { type ipv4_addr : mark; elements = { 10.0.0.1 : 5 }
    }
    set flows {
        type ipv4_addr . inet_proto . inet_service
        elements = { 10.0.0.1 . tcp . 80, 10.0.0.1 . udp . 53 comment "dns" }
    }
    set hairpin { type ifname . ipv4_addr . ipv4_addr; elements = { "eth0" . 10.0.0.1 . 10.0.0.1 }
    }
    set six { type ipv6_addr; elements = { 2001:db8::1, :: }
    }
    set fixed { type ipv4_addr; flags constant; elements = { 10.9.9.9, 10.9.9.8 }
    }
    set nobody { type ipv4_addr; }
    set cidr4 {
        type ipv4_addr; flags interval
        elements = { 10.0.0.0/8 comment "ten", 11.0.0.0-11.0.0.5, 11.0.0.6-11.0.0.9, 12.0.0.1, 255.255.255.0/24 }
    }
    set all4 { type ipv4_addr; flags interval; elements = { 0.0.0.0/0 }
    }
    set low4 { type ipv4_addr; flags interval; elements = { 0.0.0.0/24 }
    }
    set none4 { type ipv4_addr; flags interval; }
    set cidr6 { type ipv6_addr; flags interval; elements = { 2001:db8::/32, ff00::/8 }
    }
    set all6 { type ipv6_addr; flags interval; elements = { ::/0 }
    }
    set ports { type inet_service; elements = { 0, 80, 65535 }
    }
    set port_ranges { type inet_service; flags interval; elements = { 80, 1024-2048, 65535 }
    }
    set all_ports { type inet_service; flags interval; elements = { 0-65535 }
    }
    map range_vmap {
        type ipv4_addr : verdict; flags interval
        elements = { 10.0.0.0/24 : jump x, 10.0.1.0/24 comment "next" : drop }
    }
    set pipapo {
        type ipv4_addr . inet_proto . inet_service; flags interval
        elements = { 10.0.0.0/8 . tcp . 80-90, 11.0.0.1 . udp . 53 comment "one", 0.0.0.0/0 . sctp . 0-65535 }
    }
    chain y { }
    chain x {
        ip saddr @cidr4 accept comment "from ten"
        tcp dport != 80-90 drop
        ip saddr . meta l4proto . th dport @flows accept
        ip daddr != @fixed return
        limit rate 100/second burst 200 packets log prefix "egress_x" group 29 snaplen 128
        ct status & confirmed == 0 meta random <= 42949671 log prefix "allowed_egress_x_100" group 29 snaplen 128
        goto y
    }
    chain forward {
        type filter hook forward priority 0; policy accept
        ct state established,related accept
        ct mark and 0x100 != 0 drop
        iifname vmap @by_if
        oifname "eth1" jump x
        ip saddr vmap @by_addr
    }
    chain raw { type filter hook prerouting priority -300; }
    chain input { type filter hook input priority 10; }
    chain output { type filter hook output priority 0; }
    chain postrouting { type filter hook postrouting priority 0; }
}
"#;

/// Compares piece by piece, so that a failure shows the piece.
pub(crate) fn assert_same(have: &Table, want: &Table) {
    assert_eq!((have.family, &have.name), (want.family, &want.name));
    let names = |table: &Table| {
        (table.sets.keys().cloned().collect::<Vec<_>>(), table.chains.keys().cloned().collect::<Vec<_>>())
    };
    assert_eq!(names(have), names(want));
    for (name, set) in &want.sets {
        assert_eq!(&have.sets[name], set, "set {name}");
    }
    for (name, chain) in &want.chains {
        let chain_here = &have.chains[name];
        assert_eq!(chain_here.hook, chain.hook, "chain {name}");
        assert_eq!(chain_here.rules.len(), chain.rules.len(), "chain {name}");
        for (number, rule) in chain.rules.iter().enumerate() {
            assert_eq!(&chain_here.rules[number], rule, "rule {number} of chain {name}");
        }
    }
    assert_eq!(have, want);
}

/// `n` different addresses from 10.0.0.0 on.
pub(crate) fn addresses(n: u32) -> Vec<(Bytes, Element)> {
    (0..n).map(|i| member(bytes(&(0x0a00_0000 + i).to_be_bytes()))).collect()
}
