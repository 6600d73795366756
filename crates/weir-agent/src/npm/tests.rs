use super::*;

#[test]
fn names_are_npms_or_they_are_not() {
    for name in [
        "AZURE-NPM",
        "AZURE-NPM-ACCEPT",
        "AZURE-NPM-INGRESS-ALLOW-MARK",
        "AZURE-NPM-INRGESS-DROPS",
        "AZURE-NPM-EGRESS-3618314628",
        "AZURE-NPM-INGRESS-0",
    ] {
        assert!(is_chain(name), "{name}");
    }
    for name in [
        "AZURE-NPM-",
        "AZURE-NPM-INGRESS-",
        "AZURE-NPM-INGRESS-12x",
        "AZURE-NPM-MINE",
        "AZURE-NPMX",
        "MY-AZURE-NPM",
        "azure-npm",
        "FORWARD",
    ] {
        assert!(!is_chain(name), "{name}");
    }
    assert!(is_ipset("azure-npm-3922407721"));
    for name in ["azure-npm-", "azure-npm-mine", "azure-npm", "AZURE-NPM-1", "my-azure-npm-1"] {
        assert!(!is_ipset(name), "{name}");
    }
}

fn conntrack(flags: u8, inverted: u8, states: u8) -> Term {
    let mut info = vec![0; 164];
    (info[146], info[148], info[150]) = (flags, inverted, states);
    Term::Match { name: "conntrack".into(), revision: 3, info }
}

#[test]
fn only_the_jump_that_npm_writes_is_taken_for_its_own() {
    let to = |chain: &str| Term::Known(Expr::Verdict(Verdict::Jump(chain.into())));
    let counter = || Term::Other("counter".into());
    let rule = |terms: Vec<Term>| OtherRule { chain: "FORWARD".into(), handle: 1, terms };
    assert!(is_jump(&rule(vec![counter(), to("AZURE-NPM")])), "v1");
    assert!(is_jump(&rule(vec![conntrack(1, 0, 8), counter(), to("AZURE-NPM")])), "v2");
    for (why, terms) in [
        ("established", vec![conntrack(1, 0, 2), counter(), to("AZURE-NPM")]),
        ("not new", vec![conntrack(1, 1, 8), counter(), to("AZURE-NPM")]),
        ("something else", vec![conntrack(3, 0, 8), counter(), to("AZURE-NPM")]),
        ("another chain", vec![conntrack(1, 0, 8), counter(), to("AZURE-NPM-INGRESS")]),
        ("no jump", vec![conntrack(1, 0, 8), counter()]),
        ("an address", vec![Term::Other("payload".into()), counter(), to("AZURE-NPM")]),
        (
            "too short",
            vec![Term::Match { name: "conntrack".into(), revision: 3, info: vec![1] }, to("AZURE-NPM")],
        ),
    ] {
        assert!(!is_jump(&rule(terms)), "{why}");
    }
    let mut elsewhere = rule(vec![counter(), to("AZURE-NPM")]);
    elsewhere.chain = "INPUT".into();
    assert!(!is_jump(&elsewhere));
}
