//! Who is isolated, and what rules add up to (N1 to N17, N31, N90, N100, N103).

use serde_json::json;

use super::{phase, policy};
use crate::case::{Action, Case, Needs, Weight};

const NEEDS: Needs = Needs { sctp: false, dual: false, hosts: false };
const REQUIRED: Weight = Weight::Required;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "open-without-policies",
        statements: &["N1", "N73"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| vec![phase("no policy", vec![])],
    },
    Case {
        name: "deny-ingress",
        statements: &["N1", "N2", "N5", "N6", "N11", "N78", "N90"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "ingress to x denied, egress open",
                    vec![policy("x", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))],
                ),
                phase(
                    "an empty list of rules is none",
                    vec![policy(
                        "x",
                        "deny",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "deny-egress",
        statements: &["N2", "N3", "N11", "N73"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![phase(
                "egress of x denied, ingress open",
                vec![policy("x", "deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}))],
            )]
        },
    },
    Case {
        name: "deny-both",
        statements: &["N2", "N11", "N73"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![phase(
                "x and y denied in both directions",
                vec![
                    policy("x", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
                    policy("y", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
                ],
            )]
        },
    },
    Case {
        name: "both-ends-decide",
        statements: &["N3"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "x/a lets y/a in, y/a may not send",
                    vec![
                        policy(
                            "x",
                            "in",
                            json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"],
                                   "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]}),
                        ),
                        policy(
                            "y",
                            "out",
                            json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"]}),
                        ),
                    ],
                ),
                phase(
                    "y/a may send to x, too",
                    vec![policy(
                        "y",
                        "out",
                        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"],
                               "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"ns": "x"}}}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "rules-add-up",
        statements: &["N4", "N15"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let allow = |ns: &str, port: u16| {
                json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"],
                       "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": ns}}}],
                                    "ports": [{"port": port}]}]})
            };
            vec![
                phase("one policy", vec![policy("x", "one", allow("y", 8080))]),
                phase("a second allows more", vec![policy("x", "two", allow("z", 8081))]),
                phase(
                    "a third denies nothing",
                    vec![policy("x", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))],
                ),
                phase(
                    "the same rules in one policy, the other way round",
                    vec![
                        Action::NoPolicy { namespace: "x", name: "one".into() },
                        policy(
                            "x",
                            "two",
                            json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": [
                                {"ports": [{"port": 8081}], "from": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]},
                                {"ports": [{"port": 8080}], "from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]}),
                        ),
                    ],
                ),
            ]
        },
    },
    Case {
        name: "selects-in-its-namespace",
        statements: &["N5", "N6", "N7"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "pod=a of x, not of y and z",
                    vec![policy(
                        "x",
                        "a",
                        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]}),
                    )],
                ),
                phase(
                    "a policy for pods that are not there",
                    vec![
                        Action::NoPolicy { namespace: "x", name: "a".into() },
                        policy(
                            "x",
                            "nobody",
                            json!({"podSelector": {"matchLabels": {"pod": "nobody"}}, "policyTypes": ["Ingress"]}),
                        ),
                    ],
                ),
                phase(
                    "x/b gets the label",
                    vec![Action::PodLabels { pod: "x/b", labels: json!({"pod": "nobody"}) }],
                ),
            ]
        },
    },
    Case {
        name: "policy-types-by-default",
        statements: &["N8"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase("no types: ingress", vec![policy("x", "p", json!({"podSelector": {}}))]),
                phase(
                    "no types and an empty egress: ingress",
                    vec![policy("x", "p", json!({"podSelector": {}, "egress": []}))],
                ),
                phase(
                    "no types and egress rules: both",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "policy-types-decide",
        statements: &["N9", "N10"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "Egress alone: the ingress section means nothing",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}],
                               "ingress": [{"from": [{"podSelector": {}}]}]}),
                    )],
                ),
                phase(
                    "Ingress twice is Ingress; the egress section means nothing",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"],
                               "egress": [{"to": [{"podSelector": {}}]}], "ingress": [{"from": [{"podSelector": {}}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "empty-rule-allows-all",
        statements: &["N12", "N13", "N14"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "ingress: [{}]",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
                    )],
                ),
                phase(
                    "egress: [{}], with an ingress that denies",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}]}),
                    )],
                ),
                phase(
                    "empty from: anybody, on a port",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"],
                               "ingress": [{"from": [], "ports": [{"port": 8080}]}]}),
                    )],
                ),
                phase(
                    "empty ports: all of them, from y",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                            {"ports": [], "from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "peers-and-ports-multiply-in-a-rule-only",
        statements: &["N15"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let y = json!({"namespaceSelector": {"matchLabels": {"ns": "y"}}});
            let z = json!({"namespaceSelector": {"matchLabels": {"ns": "z"}}});
            vec![
                phase(
                    "two rules",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                            {"from": [y], "ports": [{"port": 8080}]}, {"from": [z], "ports": [{"port": 8081}]}]}),
                    )],
                ),
                phase(
                    "one rule",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                            {"from": [y, z], "ports": [{"port": 8080}, {"port": 8080, "protocol": "UDP"}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "isolation-by-selection-alone",
        statements: &["N16", "N31", "N62"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "a rule for SCTP isolates for TCP and UDP",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"],
                               "ingress": [{"ports": [{"port": 8080, "protocol": "SCTP"}]}]}),
                    )],
                ),
                phase(
                    "a peer that matches no pod isolates",
                    vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"],
                               "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "nobody"}}}]}]}),
                    )],
                ),
            ]
        },
    },
    Case {
        name: "edit-and-delete",
        statements: &["N103", "N104"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let all =
                || policy("x", "p", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}));
            let none = || policy("x", "p", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
            vec![
                phase("allows all", vec![all()]),
                phase("edited: allows nothing", vec![none()]),
                phase("deleted", vec![Action::NoPolicy { namespace: "x", name: "p".into() }]),
                phase("made again", vec![none()]),
            ]
        },
    },
    Case {
        name: "long-names-with-dots",
        statements: &["N100"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            // 253 characters, the most that there may be, and but for the last one the same
            let (long, close) = {
                let begin = ["a2345678901234567890"; 12].join(".");
                (format!("{begin}.p"), format!("{begin}.b"))
            };
            vec![phase(
                "two policies whose names begin alike",
                vec![
                    policy(
                        "x",
                        &long,
                        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]}),
                    ),
                    policy(
                        "x",
                        &close,
                        json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Egress"]}),
                    ),
                ],
            )]
        },
    },
];
