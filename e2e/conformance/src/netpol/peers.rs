//! Which pods a peer means (N20 to N32, N80).

use serde_json::{Value, json};

use super::{phase, policy, stored_policy};
use crate::case::{Action, Case, Needs, Phase, Weight};

const NEEDS: Needs = Needs { sctp: false, dual: false, hosts: false };
const REQUIRED: Weight = Weight::Required;

/// All pods of x, with these peers for ingress.
fn from(peers: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]})
}

/// All pods of x, with these peers for egress.
fn to(peers: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]})
}

/// One phase for each of these peers, for ingress.
fn each(list: Vec<(&'static str, Value)>) -> Vec<Phase> {
    list.into_iter().map(|(about, peers)| phase(about, vec![policy("x", "p", from(peers))])).collect()
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "pod-selector",
        statements: &["N20", "N26"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![
                ("pod=a of x, itself as well", json!([{"podSelector": {"matchLabels": {"pod": "a"}}}])),
                ("all pods of x, and of no other namespace", json!([{"podSelector": {}}])),
            ])
        },
    },
    Case {
        name: "namespace-selector",
        statements: &["N21", "N23", "N29"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            each(vec![
                ("all pods of y", json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}])),
                ("all pods of all namespaces", json!([{"namespaceSelector": {}}])),
                (
                    "the namespace by its name",
                    json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": w.namespace("z")}}}]),
                ),
            ])
        },
    },
    Case {
        name: "namespace-name-label",
        statements: &["N29"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |w| {
            vec![phase(
                "another namespace's label does not name it",
                vec![
                    Action::NamespaceLabels { namespace: "y", labels: json!({"name": w.namespace("z")}) },
                    policy(
                        "x",
                        "p",
                        from(json!([{"namespaceSelector": {"matchExpressions": [
                            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [w.namespace("z")]}]}}])),
                    ),
                ],
            )]
        },
    },
    Case {
        name: "both-selectors",
        statements: &["N22"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let ns = json!({"matchLabels": {"ns": "y"}});
            let pod = json!({"matchLabels": {"pod": "a"}});
            each(vec![
                ("in one peer: both", json!([{"namespaceSelector": ns, "podSelector": pod}])),
                ("in two peers: either", json!([{"namespaceSelector": ns}, {"podSelector": pod}])),
                ("in one peer, an empty pod selector", json!([{"namespaceSelector": ns, "podSelector": {}}])),
                (
                    "in one peer, an empty namespace selector",
                    json!([{"namespaceSelector": {}, "podSelector": pod}]),
                ),
            ])
        },
    },
    Case {
        name: "egress-peers",
        statements: &["N20", "N21", "N22", "N23"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let list = [
                ("to pods of x", json!([{"podSelector": {}}])),
                ("to z", json!([{"namespaceSelector": {"matchLabels": {"ns": "z"}}}])),
                (
                    "to pod=a anywhere",
                    json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}]),
                ),
            ];
            list.into_iter().map(|(about, peers)| phase(about, vec![policy("x", "p", to(peers))])).collect()
        },
    },
    Case {
        name: "selector-operators",
        statements: &["N27"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            let by = |key: &str, operator: &str, values: Value| {
                let mut one = json!({"key": key, "operator": operator});
                if !values.is_null() {
                    one["values"] = values;
                }
                json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [one]}}])
            };
            let mut phases = vec![phase(
                "In",
                vec![
                    Action::PodLabels { pod: "x/b", labels: json!({"tier": "web"}) },
                    Action::PodLabels { pod: "y/a", labels: json!({"tier": "db"}) },
                    Action::PodLabels { pod: "z/a", labels: json!({"tier": ""}) },
                    policy("x", "p", from(by("tier", "In", json!(["web", "db"])))),
                ],
            )];
            phases.extend(each(vec![
                ("NotIn: also where the key is absent", by("tier", "NotIn", json!(["web"]))),
                ("Exists: also with an empty value", by("tier", "Exists", Value::Null)),
                ("DoesNotExist", by("tier", "DoesNotExist", Value::Null)),
                ("In with an empty value", by("tier", "In", json!([""]))),
                (
                    "labels and expressions: all must hold",
                    json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"},
                        "matchExpressions": [{"key": "tier", "operator": "Exists"},
                                             {"key": "tier", "operator": "NotIn", "values": [""]}]}}]),
                ),
            ]));
            phases
        },
    },
    Case {
        name: "negative-namespace-selector",
        statements: &["N25", "N27"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            each(vec![(
                "NotIn of two values: neither",
                json!([{"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x", "y"]}]}}]),
            )])
        },
    },
    Case {
        name: "policy-selector-operators",
        statements: &["N27"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![phase(
                "NotIn in the policy's own selector",
                vec![policy(
                    "x",
                    "p",
                    json!({"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]},
                           "policyTypes": ["Ingress", "Egress"]}),
                )],
            )]
        },
    },
    Case {
        name: "label-values-that-validation-refuses",
        statements: &["N30"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![phase(
                "NotIn of a value that no label can have, and of y",
                vec![stored_policy(
                    "x",
                    "p",
                    from(json!([{"namespaceSelector": {"matchExpressions": [
                        {"key": "ns", "operator": "NotIn", "values": ["not a label value!", "y"]}]}}])),
                )],
            )]
        },
    },
    Case {
        name: "relabelled-pods",
        statements: &["N7", "N31", "N80"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "nobody has the label",
                    vec![policy(
                        "x",
                        "p",
                        from(
                            json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "client"}}}]),
                        ),
                    )],
                ),
                phase(
                    "y/a gets it",
                    vec![Action::PodLabels { pod: "y/a", labels: json!({"role": "client"}) }],
                ),
                phase("and loses it", vec![Action::PodLabels { pod: "y/a", labels: json!({"role": null}) }]),
            ]
        },
    },
    Case {
        name: "relabelled-namespaces",
        statements: &["N80"],
        weight: REQUIRED,
        needs: NEEDS,
        phases: |_| {
            vec![
                phase(
                    "no namespace has the label",
                    vec![policy(
                        "x",
                        "p",
                        from(json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}])),
                    )],
                ),
                phase(
                    "z gets it",
                    vec![Action::NamespaceLabels { namespace: "z", labels: json!({"team": "blue"}) }],
                ),
                phase(
                    "and another value",
                    vec![Action::NamespaceLabels { namespace: "z", labels: json!({"team": "red"}) }],
                ),
            ]
        },
    },
];
