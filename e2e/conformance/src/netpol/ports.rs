//! Ports (N50 to N62).

use serde_json::{Value, json};

use super::{phase, policy};
use crate::case::{Action, Case, Needs, Phase, Weight};

const NEEDS: Needs = Needs { sctp: false, dual: false, hosts: false };
const REQUIRED: Weight = Weight::Required;

fn on(ports: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]})
}
fn out(ports: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": ports}]})
}
fn each(list: Vec<(&'static str, Value)>) -> Vec<Phase> {
    list.into_iter().map(|(about, spec)| phase(about, vec![policy("x", "p", spec)])).collect()
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "numbers",
        statements: &["N50", "N52", "N62"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![
                ("no protocol is TCP", on(json!([{"port": 8080}]))),
                ("UDP", on(json!([{"port": 8080, "protocol": "UDP"}]))),
                ("egress", out(json!([{"port": 8081, "protocol": "TCP"}]))),
            ])
        },
    },
    Case {
        name: "all-ports-of-a-protocol",
        statements: &["N51"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![
                ("an empty entry is all of TCP, and no UDP", on(json!([{}]))),
                ("all of UDP", on(json!([{"protocol": "UDP"}]))),
            ])
        },
    },
    Case {
        name: "undeclared-ports",
        statements: &["N53"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![(
                "a number that no container declares beside one that it serves",
                on(json!([{"port": 9999}, {"port": 8081}])),
            )])
        },
    },
    Case {
        name: "port-ranges",
        statements: &["N61"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![
                ("both ends are in it", on(json!([{"port": 8080, "endPort": 8081}]))),
                ("it ends before", on(json!([{"port": 8000, "endPort": 8080}]))),
                ("it begins after", on(json!([{"port": 8081, "endPort": 65535}]))),
                (
                    "one port, and ranges that overlap",
                    on(json!([{"port": 8081, "endPort": 8081}, {"port": 8081, "endPort": 9000}])),
                ),
                ("egress, UDP", out(json!([{"port": 8080, "endPort": 8090, "protocol": "UDP"}]))),
            ])
        },
    },
    Case {
        name: "named-ports-of-ingress",
        statements: &["N54", "N55", "N57"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "a name is each pod's own number",
                    vec![
                        policy("x", "p", on(json!([{"port": "web"}]))),
                        policy("z", "p", on(json!([{"port": "web"}]))),
                    ],
                ),
                phase(
                    "a name with another protocol, and one that nobody has",
                    vec![
                        policy("x", "p", on(json!([{"port": "web", "protocol": "UDP"}]))),
                        policy("z", "p", on(json!([{"port": "nothing"}]))),
                    ],
                ),
                phase(
                    "UDP by name",
                    vec![
                        policy("x", "p", on(json!([{"port": "dns", "protocol": "UDP"}]))),
                        Action::NoPolicy { namespace: "z", name: "p".into() },
                    ],
                ),
            ]
        },
    },
    Case {
        name: "named-ports-of-egress",
        statements: &["N56", "N57"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "without peers: of whoever is asked",
                    vec![policy("x", "p", out(json!([{"port": "web"}])))],
                ),
                phase(
                    "of pods of z alone",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                            {"to": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}], "ports": [{"port": "web"}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "named-ports-within-blocks",
        statements: &["N58"],
        weight: Weight::Observed,
        needs: NEEDS,
        phases: |w| {
            vec![phase(
                "a name with a block that covers a pod",
                vec![policy(
                    "x",
                    "p",
                    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": w.blocks("z/a"), "ports": [{"port": "web"}]}]}),
                )],
            )]
        },
    },
    Case {
        name: "sctp",
        statements: &["N50", "N62"],
        weight: REQUIRED,
        needs: Needs { sctp: true, ..NEEDS },
        phases: |_| {
            each(vec![
                ("SCTP alone", on(json!([{"port": 8082, "protocol": "SCTP"}]))),
                ("TCP of the same number is not SCTP", on(json!([{"port": 8082, "protocol": "TCP"}]))),
                ("all of SCTP", on(json!([{"protocol": "SCTP"}]))),
            ])
        },
    },
];
