//! What was written is what is read, and what nft reads and writes.
//! Needs root: `cargo test -p weir-nft -- --include-ignored`, or `./dev test`.

mod common;

use common::*;
use weir_dataplane::model::*;

#[test]
#[ignore = "needs root"]
fn everything_comes_back() {
    let mut kernel = fresh_netns();
    assert_eq!(kernel.dump(Family::Inet, TABLE).unwrap(), None);
    let table = everything();
    kernel.apply(&create(&table)).unwrap();
    assert_same(&kernel.dump(Family::Inet, TABLE).unwrap().unwrap(), &table);
    assert_eq!(kernel.dump(Family::Bridge, TABLE).unwrap(), None, "another family, another table");
}

#[test]
#[ignore = "needs root"]
fn a_bridge_table_comes_back() {
    let mut kernel = fresh_netns();
    let mut table = Table { family: Family::Bridge, ..empty_table() };
    let source = Expr::Payload { base: PayloadBase::LinkLayer, offset: 6, len: 6, dreg: Reg(0) };
    table.chains.insert(
        "guard".into(),
        Chain {
            hook: Some(Hook { point: HookPoint::Prerouting, priority: -200 }),
            rules: vec![rule([
                meta(MetaKey::IifName),
                cmp(&ifname("veth0")),
                source,
                Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, value: bytes(&[2, 0, 0, 0, 0, 1]) },
                Expr::Verdict(Verdict::Drop),
            ])],
        },
    );
    kernel.apply(&create(&table)).unwrap();
    assert_same(&kernel.dump(Family::Bridge, TABLE).unwrap().unwrap(), &table);
}

/// Pins every encoding: the kernel cannot tell whether nft or Weir made the table.
#[test]
#[ignore = "needs root"]
fn nft_makes_the_same_table() {
    let mut kernel = fresh_netns();
    nft(&["-f", "-"], TEXT);
    let by_nft = kernel.dump(Family::Inet, TABLE).unwrap().unwrap();
    assert_same(&by_nft, &everything());
}

#[test]
#[ignore = "needs root"]
fn nft_shows_what_weir_made_and_loads_what_it_shows() {
    let mut kernel = fresh_netns();
    let table = everything();
    kernel.apply(&create(&table)).unwrap();
    let text = nft(&["list", "ruleset"], "");
    for shown in [
        "\"eth0\" : jump x",
        "\"caliabcdefghijk\" : drop",
        "10.0.0.3 comment \"shop/cart\" : accept",
        "10.0.0.1 : 0x00000005",
        "10.0.0.1 . udp . 53 comment \"dns\"",
        "\"eth0\" . 10.0.0.1 . 10.0.0.1",
        "2001:db8::1",
        "flags constant",
        "10.0.0.0/8 comment \"ten\"",
        "11.0.0.6-11.0.0.9",
        "255.255.255.0/24",
        "0.0.0.0/0",
        "ff00::/8",
        "1024-2048",
        "10.0.0.0/8 . tcp . 80-90",
        "ip saddr @cidr4 accept comment \"from ten\"",
        "tcp dport != 80-90 drop",
        "ct state established,related accept",
        "type filter hook prerouting priority raw; policy accept;",
        "oifname \"eth1\" jump x",
    ] {
        assert!(text.contains(shown), "{shown:?} is not in\n{text}");
    }
    nft(&["-f", "-"], &format!("flush ruleset\n{text}"));
    assert_same(&kernel.dump(Family::Inet, TABLE).unwrap().unwrap(), &table);
}

#[test]
#[ignore = "needs root"]
fn what_others_add_is_foreign_and_fails_no_dump() {
    let mut kernel = fresh_netns();
    nft(
        &["-f", "-"],
        r#"table inet weir {
            set timeouts { type ipv4_addr; flags timeout; timeout 1h; elements = { 10.0.0.1 }
            }
            set sized { type ipv4_addr; size 10; }
            set kinds { type icmp_type; elements = { echo-request }
            }
            set mixed { type ipv4_addr . icmp_type; flags interval; elements = { 10.0.0.0/8 . echo-request }
            }
            map classes { type ipv4_addr : classid; elements = { 10.0.0.1 : 1:2 }
            }
            map any { type ipv4_addr : verdict; elements = { * : drop }
            }
            set tallied { type ipv4_addr; counter; elements = { 10.0.0.1 }
            }
            chain strict { type filter hook forward priority 5; policy drop; }
            chain nat { type nat hook postrouting priority 100; }
            chain x {
                counter accept
                limit rate 3/minute drop
                limit rate over 3/second drop
                limit rate 3 kbytes/second drop
                meta mark set 1
                ip saddr { 10.0.0.1, 10.0.0.2 } accept
                tcp dport > 1024 drop
                log prefix "hm"
                ct direction original accept
                reject
            }
        }"#,
    );
    let table = kernel.dump(Family::Inet, TABLE).unwrap().unwrap();
    for name in ["timeouts", "sized", "kinds", "mixed", "any", "tallied"] {
        let key = &table.sets[name].decl.key;
        assert!(key.iter().any(|field| matches!(field, Field::Foreign(_))), "{name}: {key:?}");
    }
    assert!(matches!(table.sets["classes"].decl.data, Some(SetData::Value(Field::Foreign(_)))));
    for name in ["strict", "nat"] {
        let hook = table.chains[name].hook.unwrap();
        assert!(matches!(hook.point, HookPoint::Foreign(_)), "{name}: {hook:?}");
    }
    let anonymous = table.sets.keys().find(|name| name.starts_with("__set")).expect("the one in a rule");
    assert!(table.sets[anonymous].decl.key.contains(&Field::Foreign(0)));
    let foreign: Vec<&str> = table.chains["x"]
        .rules
        .iter()
        .flat_map(|rule| &rule.exprs)
        .filter_map(|expr| if let Expr::Foreign(name) = expr { Some(name.as_str()) } else { None })
        .collect();
    assert_eq!(
        foreign,
        ["counter", "limit", "limit", "limit", "immediate", "meta", "cmp", "log", "ct", "reject"]
    );
}

/// Asleep, a table enforces nothing: the dump says so, and adding the table again wakes it.
#[test]
#[ignore = "needs root"]
fn a_dormant_table_is_seen_and_woken() {
    let mut kernel = fresh_netns();
    kernel.apply(&create(&everything())).unwrap();
    nft(&["add", "table", "inet", TABLE, "{ flags dormant; }"], "");
    let hook = kernel.dump(Family::Inet, TABLE).unwrap().unwrap().chains["forward"].hook.unwrap();
    assert_eq!(hook.point, HookPoint::Foreign(2));
    kernel.apply(&transaction(Family::Inet, vec![Op::AddTable])).unwrap();
    assert_same(&kernel.dump(Family::Inet, TABLE).unwrap().unwrap(), &everything());
}
