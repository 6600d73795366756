//! Nodes and pods in their network (N13, N25, N70 to N72).

use serde_json::json;

use super::policy;
use crate::case::{Ask, Case, Needs, Phase, Weight};

const HOSTS: Needs = Needs { sctp: false, dual: false, hosts: true };

pub(super) const CASES: &[Case] = &[
    Case {
        name: "own-node-reaches-its-pods",
        statements: &["N71"],
        weight: Weight::Required,
        needs: HOSTS,
        phases: |_| {
            let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
            vec![Phase {
                about: "from its own node, under deny-all",
                actions: vec![policy("x", "deny", deny.clone()), policy("y", "deny", deny)],
                ask: Ask::OwnNode,
            }]
        },
    },
    Case {
        name: "host-network-is-no-peer",
        statements: &["N13", "N25", "N70"],
        weight: Weight::Observed,
        needs: HOSTS,
        phases: |_| {
            vec![
                Phase {
                    about: "all namespaces allowed: other nodes are not pods",
                    actions: vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
                    )],
                    ask: Ask::Between(vec!["hosts -> x/a", "hosts -> x/b"]),
                },
                Phase {
                    about: "no peers: nodes as well",
                    actions: vec![policy(
                        "x",
                        "p",
                        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8080}]}]}),
                    )],
                    ask: Ask::Between(vec!["hosts -> x/a", "hosts -> x/b"]),
                },
                Phase {
                    about: "a policy for all pods of z does not select those in its nodes' network",
                    actions: vec![policy(
                        "z",
                        "deny",
                        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
                    )],
                    ask: Ask::Between(vec!["hosts -> y/a", "hosts -> y/b", "y/a -> hosts", "y/b -> hosts"]),
                },
            ]
        },
    },
    Case {
        name: "pods-to-nodes",
        statements: &["N72"],
        weight: Weight::Observed,
        needs: HOSTS,
        phases: |_| {
            vec![Phase {
                about: "egress denied: to nodes, its own and others",
                actions: vec![policy("x", "deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}))],
                ask: Ask::Between(vec!["x/a -> hosts", "x/b -> hosts", "y/a -> hosts"]),
            }]
        },
    },
];
