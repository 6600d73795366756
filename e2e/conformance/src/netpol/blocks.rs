//! Address blocks (N17, N40 to N48).

use serde_json::{Value, json};

use super::{phase, policy, stored_policy};
use crate::case::{Case, Needs, Weight};
use crate::world::World;

const NEEDS: Needs = Needs { sctp: false, dual: false, hosts: false };
const REQUIRED: Weight = Weight::Required;

fn from(peers: impl Into<Value>) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers.into()}]})
}
fn to(peers: impl Into<Value>) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers.into()}]})
}

/// A block of everything, for each family.
fn everything(world: &World) -> Vec<Value> {
    world.all_but(&[]).into_iter().map(|peer| json!({"ipBlock": {"cidr": peer["ipBlock"]["cidr"]}})).collect()
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "block-ingress",
        statements: &["N40", "N47", "N48"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            vec![
                phase("x from y/a's address", vec![policy("x", "p", from(w.blocks("y/a")))]),
                phase(
                    "a selector beside it: either",
                    vec![policy("x", "p", {
                        let mut peers = w.blocks("y/a");
                        peers.push(json!({"namespaceSelector": {"matchLabels": {"ns": "z"}}}));
                        from(peers)
                    })],
                ),
            ]
        },
    },
    Case {
        name: "block-egress",
        statements: &["N40", "N47"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| vec![phase("x to y/b's address", vec![policy("x", "p", to(w.blocks("y/b")))])],
    },
    Case {
        name: "block-of-everything",
        statements: &["N46"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            vec![
                phase("prefix length 0: everybody", vec![policy("x", "p", from(everything(w)))]),
                phase(
                    "prefix lengths 32 and 128",
                    vec![policy("x", "p", from([w.blocks("y/a"), w.blocks("z/a")].concat()))],
                ),
            ]
        },
    },
    Case {
        name: "block-except",
        statements: &["N41", "N42"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            vec![
                phase("everybody but y/a", vec![policy("x", "p", from(w.all_but(&["y/a"])))]),
                phase(
                    "egress to everybody but y/a and y/b",
                    vec![policy("x", "p", to(w.all_but(&["y/a", "y/b"])))],
                ),
                phase("the same exception twice", vec![policy("x", "p", from(w.all_but(&["y/a", "y/a"])))]),
            ]
        },
    },
    Case {
        name: "except-is-its-own-peers",
        statements: &["N41", "N46"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            vec![
                phase(
                    "another peer of the rule allows the exception",
                    vec![policy("x", "p", from([w.all_but(&["y/a"]), w.blocks("y/a")].concat()))],
                ),
                phase(
                    "two blocks of everything with different exceptions: nobody is out",
                    vec![policy("x", "p", from([w.all_but(&["y/a"]), w.all_but(&["z/a"])].concat()))],
                ),
                phase(
                    "another policy allows the exception",
                    vec![
                        policy("x", "p", from(w.all_but(&["y/a", "y/b"]))),
                        policy("x", "q", from(w.blocks("y/b"))),
                    ],
                ),
            ]
        },
    },
    Case {
        name: "families-are-apart",
        statements: &["N17", "N43"],
        weight: REQUIRED,
        needs: Needs { dual: true, ..NEEDS },
        phases: |_| {
            vec![
                phase(
                    "egress to all of IPv4: no IPv6",
                    vec![policy("x", "p", to(json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}])))],
                ),
                phase(
                    "ingress from all of IPv6: no IPv4",
                    vec![policy("x", "p", from(json!([{"ipBlock": {"cidr": "::/0"}}])))],
                ),
            ]
        },
    },
    Case {
        name: "legacy-cidr-texts",
        statements: &["N44", "N45"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            // one that a strict parser refuses, of y/a's address
            let texts: Vec<Value> = w
                .addresses("y/a")
                .into_iter()
                .map(|ip| match ip {
                    std::net::IpAddr::V4(v4) => {
                        let o = v4.octets();
                        json!({"ipBlock": {"cidr": format!("{:03}.{:03}.{:03}.{:03}/32", o[0], o[1], o[2], o[3])}})
                    }
                    std::net::IpAddr::V6(v6) => json!({"ipBlock": {"cidr": format!("{v6}/0128")}}),
                })
                .collect();
            vec![phase("leading zeros are decimal", vec![stored_policy("x", "p", from(texts))])]
        },
    },
];
