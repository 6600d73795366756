//! The statements of docs/semantics.md that the compiler decides, one by one, by hand.

use std::net::IpAddr;

use serde_json::{Value, json};
use weir_compiler::object::*;
use weir_compiler::policy::Effect;
use weir_compiler::ports::L4;
use weir_compiler::slice::Direction;
use weir_compiler::verdict::{Reason, Verdict};
use weir_compiler::{Compiler, Scope};

/// A cluster of one node in which `pod("a/web app=web", "10.0.0.1")` is all that a pod takes.
struct Cluster(Compiler);

impl Cluster {
    fn new(pods: &[(&str, &str)]) -> Self {
        let mut cluster = Cluster(Compiler::new(Scope::AllNodes));
        for (what, address) in pods {
            cluster.apply(Event::Pod(pod(what, address)));
        }
        cluster
    }

    fn apply(&mut self, event: Event) -> weir_compiler::Deltas {
        self.0.apply([event])
    }

    fn policy(&mut self, key: &str, spec: Value) {
        self.apply(policy(key, spec));
    }

    fn verdict(&self, key: &str, direction: Direction, peer: &str, l4: L4) -> Verdict {
        self.0.slice("n").verdict(&object_key(key), direction, peer.parse().unwrap(), l4)
    }

    fn ingress(&self, key: &str, peer: &str, port: &str) -> bool {
        self.verdict(key, Direction::Ingress, peer, l4(port)).allowed
    }

    fn egress(&self, key: &str, peer: &str, port: &str) -> bool {
        self.verdict(key, Direction::Egress, peer, l4(port)).allowed
    }

    fn problems(&self) -> Vec<(String, Effect)> {
        let all = self.0.problems().into_iter();
        all.flat_map(|(_, problems)| problems).map(|p| (p.path.clone(), p.effect)).collect()
    }
}

fn object_key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn labels(words: impl Iterator<Item = impl AsRef<str>>) -> Labels {
    words.map(|w| w.as_ref().split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

fn pod(what: &str, address: &str) -> Pod {
    let mut words = what.split_whitespace();
    Pod {
        key: object_key(words.next().unwrap()),
        uid: what.to_owned(),
        labels: labels(words),
        node: Some("n".into()),
        ips: address.split_whitespace().map(|a| a.parse().unwrap()).collect(),
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: vec![],
    }
}

fn with_ports(mut pod: Pod, ports: &[(&str, Protocol, u16)]) -> Pod {
    pod.ports = ports
        .iter()
        .map(|(name, protocol, port)| NamedPort { name: (*name).into(), protocol: *protocol, port: *port })
        .collect();
    pod
}

fn policy(key: &str, spec: Value) -> Event {
    let ObjectKey { namespace, name } = object_key(key);
    Event::Policy(Policy {
        namespace,
        name,
        created: 0,
        audit: None,
        spec: serde_json::from_value(spec).unwrap(),
    })
}

fn namespace(what: &str) -> Namespace {
    let mut words = what.split_whitespace();
    Namespace { name: words.next().unwrap().into(), labels: labels(words), ..Namespace::default() }
}

/// `80` is TCP, `53/UDP`, `icmp`.
fn l4(text: &str) -> L4 {
    match text.split_once('/') {
        None if text == "icmp" => L4::Other(1),
        None => L4::Port(Protocol::Tcp, text.parse().unwrap()),
        Some((port, protocol)) => L4::Port(protocol.parse().unwrap(), port.parse().unwrap()),
    }
}

const WEB: (&str, &str) = ("a/web app=web", "10.0.0.1");
const API: (&str, &str) = ("a/api app=api", "10.0.0.2");
const OTHER: (&str, &str) = ("b/web app=web", "10.0.0.3");
const OUTSIDE: &str = "192.0.2.1";

#[test]
fn n1_n2_isolation_is_by_selection_and_direction() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy("a/p", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
    assert!(c.egress("a/web", "10.0.0.2", "80"), "N2: only ingress is isolated");
    assert!(c.ingress("a/api", "10.0.0.1", "80"), "N1: not selected");
    let by = c.verdict("a/web", Direction::Ingress, OUTSIDE, l4("80")).reason;
    assert_eq!(by, Reason::NoClause(vec![object_key("a/p")]));
}

#[test]
fn n5_a_policy_selects_in_its_namespace_only() {
    let mut c = Cluster::new(&[WEB, OTHER]);
    c.policy("a/p", json!({}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
    assert!(c.ingress("b/web", OUTSIDE, "80"));
}

#[test]
fn n6_an_empty_null_or_absent_pod_selector_selects_all() {
    for spec in [json!({}), json!({"podSelector": null}), json!({"podSelector": {}})] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/p", spec);
        assert!(!c.ingress("a/web", OUTSIDE, "80"));
    }
}

#[test]
fn n7_n80_relabelling_moves_a_pod_under_a_policy_and_into_peers() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy(
        "a/p",
        json!({"podSelector": {"matchLabels": {"app": "web"}},
               "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]}),
    );
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
    c.apply(Event::Pod(pod("a/api app=db", "10.0.0.2")));
    assert!(c.ingress("a/web", "10.0.0.2", "80"));
    c.apply(Event::Pod(pod("a/api app=web", "10.0.0.2")));
    assert!(!c.ingress("a/api", "10.0.0.1", "80"), "N7: it is selected now");
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
}

#[test]
fn n8_n9_n10_policy_types() {
    for (spec, ingress, egress) in [
        (json!({}), false, true),
        (json!({"policyTypes": []}), false, true),
        (json!({"policyTypes": null, "egress": []}), false, true),
        (json!({"egress": [{"ports": [{"port": 1}]}]}), false, false),
        (json!({"policyTypes": ["Egress"], "ingress": [{}]}), true, false),
        (json!({"policyTypes": ["Egress"], "ingress": []}), true, false),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), false, true),
        (json!({"policyTypes": ["Ingress", "Ingress"]}), false, true), // T15
    ] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/p", spec.clone());
        assert_eq!(c.ingress("a/web", OUTSIDE, "80"), ingress, "{spec}");
        assert_eq!(c.egress("a/web", OUTSIDE, "80"), egress, "{spec}");
    }
}

#[test]
fn n11_n12_no_rules_allow_nothing_and_an_empty_rule_everything() {
    for (ingress, allowed) in [(json!(null), false), (json!([]), false), (json!([{}]), true)] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/p", json!({"policyTypes": ["Ingress"], "ingress": ingress}));
        for port in ["80", "53/UDP", "icmp"] {
            assert_eq!(c.ingress("a/web", OUTSIDE, port), allowed, "{ingress} {port}");
        }
    }
}

#[test]
fn n13_n14_absent_null_and_empty_lists_in_a_rule_restrict_nothing() {
    for (from, ports) in [(json!(null), json!(null)), (json!([]), json!([]))] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/from", json!({"ingress": [{"from": from, "ports": [{"port": 80}]}]}));
        assert!(c.ingress("a/web", OUTSIDE, "80") && !c.ingress("a/web", OUTSIDE, "81"));
        let mut c = Cluster::new(&[WEB, API]);
        c.policy("a/ports", json!({"ingress": [{"from": [{"podSelector": {}}], "ports": ports}]}));
        assert!(["80", "9/UDP", "7/SCTP", "icmp"].iter().all(|p| c.ingress("a/web", "10.0.0.2", p)));
        assert!(!c.ingress("a/web", OUTSIDE, "80"));
    }
}

#[test]
fn n15_peers_and_ports_multiply_within_a_rule_only() {
    let mut c = Cluster::new(&[WEB, API, OTHER]);
    let pods = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    c.policy(
        "a/p",
        json!({"podSelector": {"matchLabels": {"app": "api"}}, "ingress": [
            {"from": pods("web"), "ports": [{"port": 80}]},
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}], "ports": [{"port": 81}]},
        ]}),
    );
    assert!(c.ingress("a/api", "10.0.0.1", "80") && !c.ingress("a/api", "10.0.0.1", "81"));
    assert!(c.ingress("a/api", "10.0.0.3", "81") && !c.ingress("a/api", "10.0.0.3", "80"));
    let clause = c.verdict("a/api", Direction::Ingress, "10.0.0.3", l4("81")).reason;
    assert!(matches!(clause, Reason::Clause(c) if (c.rule, c.peer, c.port) == (1, Some(0), Some(0))));
}

#[test]
fn n16_rules_that_match_nothing_isolate_all_the_same() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({"ingress": [{"ports": [{"protocol": "SCTP", "port": 80}]}]}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
    assert!(c.ingress("a/web", OUTSIDE, "80/SCTP"));
}

#[test]
fn n17_n43_families_are_apart() {
    let mut c = Cluster::new(&[("a/web app=web", "10.0.0.1 fd00::1")]);
    c.policy(
        "a/p",
        json!({"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}),
    );
    assert!(c.egress("a/web", OUTSIDE, "80"));
    assert!(!c.egress("a/web", "2001:db8::1", "80"), "T9");
}

#[test]
fn n20_to_n23_which_pods_a_peer_means() {
    let app = json!({"matchLabels": {"app": "web"}});
    let team = json!({"matchLabels": {"team": "x"}});
    for (peer, web, api, other) in [
        (json!({"podSelector": {}}), true, true, false), // N20: of the own namespace
        (json!({"podSelector": app}), true, false, false),
        (json!({"namespaceSelector": {}}), true, true, true), // N21: own included
        (json!({"namespaceSelector": team}), false, false, true),
        (
            json!({"namespaceSelector": team, "podSelector": {"matchLabels": {"app": "api"}}}),
            false,
            false,
            false,
        ), // N22
        (json!({"namespaceSelector": {}, "podSelector": app}), true, false, true),
    ] {
        let mut c = Cluster::new(&[WEB, API, OTHER, ("a/target t=1", "10.0.0.9")]);
        c.apply(Event::Namespace(namespace("b team=x")));
        c.policy("a/p", json!({"podSelector": {"matchLabels": {"t": "1"}}, "ingress": [{"from": [peer]}]}));
        let got = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|a| c.ingress("a/target", a, "80"));
        assert_eq!(got, [web, api, other], "{peer}");
        // N25: selectors mean pods, whoever they select
        assert!(!c.ingress("a/target", OUTSIDE, "80"));
    }
}

#[test]
fn n22_two_items_are_alternatives() {
    let mut c = Cluster::new(&[WEB, API, OTHER]);
    c.policy(
        "a/p",
        json!({"ingress": [{"from": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}},
            {"podSelector": {"matchLabels": {"app": "api"}}},
        ]}]}),
    );
    assert!(c.ingress("a/web", "10.0.0.3", "80") && c.ingress("a/web", "10.0.0.2", "80"));
    assert!(!c.ingress("a/api", "10.0.0.1", "80"));
}

#[test]
fn n24_a_peer_without_a_field_matches_nothing() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy("a/p", json!({"ingress": [{"from": [{}]}]}));
    assert!(!c.ingress("a/web", "10.0.0.2", "80") && !c.ingress("a/web", OUTSIDE, "80"));
    assert_eq!(c.problems(), [("spec.ingress[0].from[0]".to_owned(), Effect::ClauseMatchesNothing)]);
    c.policy("a/p", json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
}

#[test]
fn n26_n73_self_is_a_peer_like_any_and_reaches_itself() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({"policyTypes": ["Ingress", "Egress"]}));
    assert_eq!(c.verdict("a/web", Direction::Ingress, "10.0.0.1", l4("80")).reason, Reason::Itself);
}

#[test]
fn n29_a_namespace_carries_its_name_whatever_its_labels_say() {
    let mut c = Cluster::new(&[WEB, OTHER]);
    c.apply(Event::Namespace(namespace("b kubernetes.io/metadata.name=liar")));
    let by_name = |n: &str| json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": n}}}]}]});
    c.policy("a/p", by_name("b"));
    assert!(c.ingress("a/web", "10.0.0.3", "80"));
    c.policy("a/p", by_name("liar"));
    assert!(!c.ingress("a/web", "10.0.0.3", "80"));
}

#[test]
fn n32_n79_a_terminating_namespace_keeps_its_policies_while_it_has_pods() {
    let mut c = Cluster::new(&[WEB, API]);
    c.apply(Event::Namespace(namespace("a team=x")));
    c.policy("a/p", json!({}));
    c.apply(Event::Namespace(Namespace { terminating: true, ..namespace("a team=x") }));
    c.apply(Event::PolicyGone(object_key("a/p")));
    assert!(!c.ingress("a/web", OUTSIDE, "80"), "T17: its pods are still there");
    c.apply(Event::PodGone(object_key("a/api")));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
    let deltas = c.apply(Event::PodGone(object_key("a/web")));
    assert_eq!(deltas.policies, [(object_key("a/p"), None)], "and now it is gone");
    // made anew under the same name, the namespace knows nothing of it
    c.apply(Event::NamespaceGone("a".into()));
    c.apply(Event::Pod(pod(WEB.0, WEB.1)));
    assert!(c.ingress("a/web", OUTSIDE, "80"));
}

#[test]
fn n103_deleting_a_policy_opens_again() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({}));
    c.apply(Event::PolicyGone(object_key("a/p")));
    assert!(c.ingress("a/web", OUTSIDE, "80"));
    c.policy("a/p", json!({}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
}

#[test]
fn n41_t1_an_exception_is_taken_out_of_its_own_peer_only() {
    let mut c = Cluster::new(&[WEB]);
    c.policy(
        "a/p",
        json!({"ingress": [{"from": [
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
            {"ipBlock": {"cidr": "10.1.2.0/24"}},
        ]}]}),
    );
    assert!(c.ingress("a/web", "10.9.9.9", "80"));
    assert!(!c.ingress("a/web", "10.1.0.1", "80"));
    assert!(c.ingress("a/web", "10.1.2.1", "80"));
    let clause = c.verdict("a/web", Direction::Ingress, "10.1.2.1", l4("80")).reason;
    assert!(matches!(clause, Reason::Clause(c) if c.peer == Some(1)));
}

#[test]
fn n42_an_exception_outside_of_its_block_closes_the_peer() {
    let mut c = Cluster::new(&[WEB]);
    c.policy(
        "a/p",
        json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}),
    );
    assert!(!c.ingress("a/web", "10.9.9.9", "80"));
    assert_eq!(c.problems()[0].0, "spec.ingress[0].from[0].ipBlock.except[0]");
}

#[test]
fn n44_n45_t4_legacy_cidr_text_means_what_it_means_to_go() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({"ingress": [{"from": [{"ipBlock": {"cidr": "010.001.0.0/16"}}]}]}));
    assert!(c.ingress("a/web", "10.1.2.3", "80") && !c.ingress("a/web", "8.1.2.3", "80"));
    assert_eq!(c.problems(), []);
}

#[test]
fn u20_a_cidr_that_nobody_can_read_is_closed_and_harms_nothing_else() {
    let mut c = Cluster::new(&[WEB, OTHER]);
    c.policy("a/p", json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}));
    c.policy("b/p", json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}));
    assert!(!c.ingress("a/web", "10.0.0.3", "80"));
    assert!(c.ingress("b/web", "10.0.0.1", "80"));
    assert_eq!(
        c.problems(),
        [("spec.ingress[0].from[0].ipBlock.cidr".to_owned(), Effect::ClauseMatchesNothing)]
    );
}

#[test]
fn n47_n48_u7_an_ip_block_matches_addresses_of_pods() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy("a/p", json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.2/32"}}]}]}));
    assert!(c.ingress("a/web", "10.0.0.2", "80"));
}

#[test]
fn n50_to_n53_n61_n62_ports() {
    for (port, yes, no) in [
        (json!({"port": 80}), &["80"][..], &["81", "80/UDP", "80/SCTP", "icmp"][..]), // N50, N62
        (json!({}), &["1", "65535"], &["1/UDP", "icmp"]),                             // N51, T6
        (json!({"protocol": "UDP"}), &["1/UDP"], &["1"]),
        (json!({"port": 80, "endPort": 82}), &["80", "81", "82"], &["79", "83"]), // N61
        (json!({"port": 80, "endPort": 80}), &["80"], &["81"]),
    ] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/p", json!({"ingress": [{"ports": [port]}]}));
        assert!(yes.iter().all(|p| c.ingress("a/web", OUTSIDE, p)), "{port}");
        assert!(no.iter().all(|p| !c.ingress("a/web", OUTSIDE, p)), "{port}");
    }
}

#[test]
fn n50_n52_n61_ports_that_an_api_server_refuses_match_nothing() {
    for port in [
        json!({"port": 0}),
        json!({"port": 65536}),
        json!({"port": -1}),
        json!({"protocol": "ICMP"}),
        json!({"port": 80, "endPort": 79}),
        json!({"endPort": 80}),
        json!({"port": "http", "endPort": 80}),
        json!({"port": 80, "newField": 1}),
    ] {
        let mut c = Cluster::new(&[WEB]);
        c.policy("a/p", json!({"ingress": [{"ports": [port]}]}));
        assert!(["0", "80", "79", "icmp"].iter().all(|p| !c.ingress("a/web", OUTSIDE, p)), "{port}");
        assert_eq!(c.problems().len(), 1, "{port}");
    }
}

#[test]
fn n55_t7_an_ingress_port_by_name_is_each_pods_own() {
    let mut c = Cluster::new(&[]);
    c.apply(Event::Pod(with_ports(pod("a/one", "10.0.0.1"), &[("http", Protocol::Tcp, 8080)])));
    c.apply(Event::Pod(with_ports(pod("a/two", "10.0.0.2"), &[("http", Protocol::Tcp, 9090)])));
    c.apply(Event::Pod(pod("a/none", "10.0.0.3")));
    c.policy("a/p", json!({"ingress": [{"ports": [{"port": "http"}]}]}));
    assert!(c.ingress("a/one", OUTSIDE, "8080") && !c.ingress("a/one", OUTSIDE, "9090"));
    assert!(c.ingress("a/two", OUTSIDE, "9090") && !c.ingress("a/two", OUTSIDE, "8080"));
    assert!(!c.ingress("a/none", OUTSIDE, "8080"), "it stays isolated");
}

#[test]
fn n56_u16_t8_an_egress_port_by_name_is_the_destinations_anywhere() {
    let mut c = Cluster::new(&[WEB]);
    c.apply(Event::Pod(with_ports(pod("b/dns", "10.0.0.7"), &[("dns", Protocol::Udp, 5353)])));
    c.apply(Event::Pod(with_ports(pod("b/other", "10.0.0.8"), &[("dns", Protocol::Udp, 53)])));
    c.policy(
        "a/p",
        json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": "dns"}]}]}),
    );
    assert!(c.egress("a/web", "10.0.0.7", "5353/UDP") && !c.egress("a/web", "10.0.0.7", "53/UDP"));
    assert!(c.egress("a/web", "10.0.0.8", "53/UDP"));
    assert!(!c.egress("a/web", OUTSIDE, "53/UDP"), "N58: no pod, no name");
    assert!(!c.egress("a/web", "10.0.0.7", "5353"), "N57: nor another protocol");
}

#[test]
fn n58_u17_a_name_within_an_ip_block_is_that_of_the_pods_in_it() {
    let mut c = Cluster::new(&[WEB]);
    c.apply(Event::Pod(with_ports(pod("b/in", "10.0.1.1"), &[("http", Protocol::Tcp, 8080)])));
    c.apply(Event::Pod(with_ports(pod("b/out", "10.0.2.1"), &[("http", Protocol::Tcp, 8080)])));
    c.policy(
        "a/p",
        json!({"policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "10.0.1.0/24"}}], "ports": [{"port": "http"}]}]}),
    );
    assert!(c.egress("a/web", "10.0.1.1", "8080"));
    assert!(!c.egress("a/web", "10.0.2.1", "8080") && !c.egress("a/web", "10.0.1.2", "8080"));
    let clause = c.verdict("a/web", Direction::Egress, "10.0.1.1", l4("8080")).reason;
    assert!(matches!(clause, Reason::Clause(c) if (c.peer, c.port) == (Some(0), Some(0))));
}

#[test]
fn n57_n59_a_name_needs_its_protocol_and_may_have_two_numbers() {
    let mut c = Cluster::new(&[]);
    let ports = [("http", Protocol::Tcp, 80), ("http", Protocol::Tcp, 81), ("dns", Protocol::Udp, 53)];
    c.apply(Event::Pod(with_ports(pod("a/web", "10.0.0.1"), &ports)));
    c.policy("a/p", json!({"ingress": [{"ports": [{"port": "http"}, {"port": "dns"}, {"port": "nobody"}]}]}));
    assert!(c.ingress("a/web", OUTSIDE, "80") && c.ingress("a/web", OUTSIDE, "81"));
    assert!(!c.ingress("a/web", OUTSIDE, "53") && !c.ingress("a/web", OUTSIDE, "53/UDP"));
}

#[test]
fn n70_n75_t10_t11_the_hosts_and_the_finished_are_nobodys_peers() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy(
        "a/p",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"podSelector": {}}]}]}),
    );
    assert!(c.ingress("a/web", "10.0.0.2", "80"));
    c.apply(Event::Pod(Pod { finished: true, ..pod(API.0, API.1) }));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"), "N75");
    c.apply(Event::Pod(Pod { host_network: true, ..pod("a/host", "172.16.0.1") }));
    assert!(!c.ingress("a/web", "172.16.0.1", "80"), "N70: it is the node's address");
    c.policy("a/all", json!({"policyTypes": ["Ingress", "Egress"]}));
    assert!(c.egress("a/host", OUTSIDE, "80"), "nor under policy");
}

#[test]
fn n74_addresses_join_when_they_are_known() {
    let mut c = Cluster::new(&[WEB, ("a/api app=api", "")]);
    c.policy("a/p", json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "api"}}}]}]}));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
    c.apply(Event::Pod(pod("a/api app=api", "10.0.0.2 fd00::2")));
    assert!(c.ingress("a/web", "10.0.0.2", "80") && c.ingress("a/web", "fd00::2", "80"));
}

#[test]
fn n76_a_terminating_pod_stays() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({}));
    c.apply(Event::Pod(Pod { terminating: true, ..pod(WEB.0, WEB.1) }));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
}

#[test]
fn n77_an_address_is_that_of_its_newest_live_owner() {
    let mut c = Cluster::new(&[WEB]);
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    let old = Pod { created: 1, ..pod("a/old app=api", "10.0.0.2") };
    let new = Pod { created: 2, ..pod("a/new app=new", "10.0.0.2") };
    c.policy(
        "a/p",
        json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "api"}}}]}]}),
    );
    c.apply(Event::Pod(old.clone()));
    assert!(c.ingress("a/web", "10.0.0.2", "80"));
    c.apply(Event::Pod(new.clone()));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"), "what the old one was allowed is not the new one's");
    assert!(!c.0.slice("n").pods.contains_key(&old.key));
    assert_eq!(c.0.slice("n").pods[&new.key].addresses, [address]);
    c.apply(Event::Pod(Pod { terminating: true, ..new.clone() }));
    assert!(c.ingress("a/web", "10.0.0.2", "80"), "the one that goes yields to the one that stays");
    c.apply(Event::PodGone(old.key));
    assert!(!c.ingress("a/web", "10.0.0.2", "80"));
}

#[test]
fn u29_an_annotation_that_cannot_be_read_enforces() {
    let audited = |value: &str| {
        let Event::Policy(policy) = policy("a/p", json!({})) else { unreachable!() };
        Event::Policy(Policy { audit: Some(value.to_owned()), ..policy })
    };
    let mut c = Cluster::new(&[("a/web", "10.0.0.1"), ("a/x", "10.0.0.2")]);
    for value in ["false", "True", "1", "", " true", "yes"] {
        c.apply(audited("true"));
        assert!(c.ingress("a/web", "10.0.0.2", "80") && c.problems().is_empty());
        c.apply(audited(value));
        assert!(!c.ingress("a/web", "10.0.0.2", "80"), "{value:?}");
        let problem = ("metadata.annotations[weir.dev/audit]".to_owned(), Effect::PolicyIsEnforced);
        let told = if value == "false" { vec![] } else { vec![problem] };
        assert_eq!(c.problems(), told, "{value:?}");
    }
}

#[test]
fn u30_what_is_beyond_a_budget_is_closed_the_oldest_first_and_nobody_else() {
    let rule = |label: &str| json!({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": label}}}]});
    let of = |key: &str, app: &str, created: i64, rules: Value| {
        let selector = json!({"matchLabels": {"app": app}});
        let Event::Policy(policy) = policy(key, json!({"podSelector": selector, "ingress": rules})) else {
            unreachable!()
        };
        Event::Policy(Policy { created, ..policy })
    };
    let closed = |c: &Cluster| -> Vec<String> {
        let problems = c.0.problems();
        assert!(problems.iter().all(|(_, all)| all.iter().all(|p| p.effect == Effect::BeyondBudget)));
        problems.into_iter().map(|(key, _)| key.to_string()).collect()
    };
    let pods = [("a/web app=web", "10.0.0.1"), ("a/db app=db", "10.0.0.2"), ("b/x app=x", "10.0.0.3")];
    let with = |budgets: &str| {
        let mut c = Cluster(Compiler::with(Scope::AllNodes, budgets.parse().unwrap()));
        pods.iter().for_each(|(what, address)| drop(c.apply(Event::Pod(pod(what, address)))));
        c
    };

    // a policy of its own: it isolates as it says, and what it allows is not even in the slice
    let mut c = with("policy-clauses=5");
    c.apply(of("a/large", "web", 0, json!([rule("x"), rule("y"), rule("z")])));
    c.apply(of("a/small", "db", 0, json!([rule("x")])));
    assert_eq!(closed(&c), ["a/large"]);
    assert!(!c.ingress("a/web", "10.0.0.3", "80") && c.ingress("a/db", "10.0.0.3", "80"));
    assert!(c.egress("a/web", "10.0.0.3", "80"), "it says nothing of egress");
    assert_eq!(c.0.slice("n").rules.len(), 1);

    // of a namespace, the newest; whatever came first here, and nobody in another namespace
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut c = with("namespace-clauses=6");
        let all = [
            of("a/old", "web", 1, json!([rule("x")])),
            of("a/new", "db", 2, json!([rule("x"), rule("y")])),
            of("b/other", "x", 3, json!([rule("web"), rule("db")])),
        ];
        order.iter().for_each(|i| drop(c.apply(all[*i].clone())));
        assert_eq!(closed(&c), ["a/new"], "{order:?}");
        assert!(c.ingress("a/web", "10.0.0.3", "80") && !c.ingress("a/db", "10.0.0.3", "80"));
        // it fits again
        c.apply(Event::PolicyGone(object_key("a/old")));
        assert!(closed(&c).is_empty() && c.ingress("a/db", "10.0.0.3", "80"));
        // and again it does not, read anew or not
        c.apply(all[0].clone());
        c.apply(all[1].clone());
        assert_eq!(closed(&c), ["a/new"]);
        c.apply(of("a/new", "db", 2, json!([rule("x")])));
        assert!(closed(&c).is_empty());
    }

    // peers elsewhere: equal ones are one, those of the own namespace none, and pods do not count
    let mut c = with("namespace-peers=2");
    let own = json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}, {"podSelector": {}}]}]);
    c.apply(of("a/p1", "db", 1, own));
    c.apply(of("a/p2", "web", 2, json!([rule("x"), rule("y")])));
    c.apply(of("a/p3", "db", 3, json!([rule("y"), rule("x")])));
    for i in 4..20u8 {
        c.apply(Event::Pod(pod(&format!("b/x{i} app=x"), &format!("10.0.1.{i}"))));
    }
    assert!(closed(&c).is_empty());
    c.apply(of("a/p4", "db", 4, json!([rule("z")])));
    c.apply(of("a/p5", "db", 5, json!([rule("x")])));
    assert_eq!(closed(&c), ["a/p4"], "what fits beside it is in force");
    let named =
        json!([{"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}, {"ports": [{"port": "web"}]}]);
    c.apply(Event::Policy(Policy {
        namespace: "b".into(),
        name: "p".into(),
        spec: serde_json::from_value(json!({"egress": named})).unwrap(),
        ..Policy::default()
    }));
    assert_eq!(closed(&c), ["a/p4"], "one name in all namespaces is one set");
}

#[test]
fn n101_unknown_fields_close_what_they_may_restrict() {
    for (spec, path, effect) in [
        (json!({"ingress": [{}], "future": 1}), "spec.future", Effect::PolicyAllowsNothing),
        (json!({"ingress": [{"future": 1}]}), "spec.ingress[0].future", Effect::ClauseMatchesNothing),
        (
            json!({"ingress": [{"from": [{"podSelector": {}, "future": {}}]}]}),
            "spec.ingress[0].from[0].future",
            Effect::ClauseMatchesNothing,
        ),
        (
            json!({"ingress": [{"from": [{"future": {}}]}]}),
            "spec.ingress[0].from[0].future",
            Effect::ClauseMatchesNothing,
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "future": {}}}]}]}),
            "spec.ingress[0].from[0].ipBlock.future",
            Effect::ClauseMatchesNothing,
        ),
        (
            json!({"ingress": [{}], "policyTypes": ["Future"]}),
            "spec.policyTypes[0]",
            Effect::PolicyAllowsNothing,
        ),
        (
            json!({"ingress": [{}], "podSelector": {"future": []}}),
            "spec.podSelector.future",
            Effect::PolicyAllowsNothing,
        ),
    ] {
        let mut c = Cluster::new(&[WEB, API]);
        c.policy("a/p", spec.clone());
        assert!(!c.ingress("a/web", "10.0.0.2", "80"), "{spec}");
        assert_eq!(c.egress("a/web", "10.0.0.2", "80"), effect == Effect::ClauseMatchesNothing, "{spec}");
        assert_eq!(c.problems(), [(path.to_owned(), effect)], "{spec}");
    }
}

#[test]
fn a_selector_that_cannot_be_read_selects_more_and_allows_nothing() {
    let mut c = Cluster::new(&[WEB, API]);
    let unreadable = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Like", "values": ["y"]}]});
    c.policy("a/p", json!({"podSelector": unreadable, "ingress": [{}]}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"), "whether it selects this pod nobody knows: closed");
    assert!(c.ingress("a/api", OUTSIDE, "80"), "that it does not select this one is certain");
    let mut c = Cluster::new(&[WEB, API]);
    c.policy("a/p", json!({"ingress": [{"from": [{"podSelector": unreadable}]}]}));
    assert!(!c.ingress("a/api", "10.0.0.1", "80"), "as a peer it matches nobody");
}

#[test]
fn n100_t16_names_may_have_dots_and_be_long() {
    let name = format!("{}.{}", "x".repeat(126), "y".repeat(126));
    let mut c = Cluster::new(&[WEB]);
    c.policy(&format!("a/{name}"), json!({}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
}

#[test]
fn t18_peers_and_ports_are_never_multiplied() {
    let mut c = Cluster::new(&[WEB]);
    let peers: Vec<Value> = (0..60_000u32)
        .map(
            |i| json!({"ipBlock": {"cidr": format!("10.{}.{}.{}/32", i >> 15, i >> 7 & 255, (i & 127) * 2)}}),
        )
        .collect();
    let ports: Vec<Value> = (0..1000).map(|i| json!({"port": 1 + 2 * i})).collect();
    c.policy("a/p", json!({"ingress": [{"from": peers, "ports": ports}]}));
    let slice = c.0.slice("n");
    assert_eq!((slice.rules.len(), slice.peer_sets.len(), slice.port_sets.len()), (1, 1, 1));
    assert!(c.ingress("a/web", "10.0.0.2", "1999") && !c.ingress("a/web", "10.0.0.3", "1999"));
    assert!(!c.ingress("a/web", "10.0.0.2", "1998"));
}

/// Engines that hash the two glued together let such policies share their rules.
#[test]
fn namespaces_and_names_do_not_run_into_each_other() {
    let mut c = Cluster::new(&[("team/x", "10.0.0.1"), ("teama/x", "10.0.0.2")]);
    c.policy("team/aprod", json!({"ingress": [{"ports": [{"port": 1}]}]}));
    c.policy("teama/prod", json!({"ingress": [{"ports": [{"port": 2}]}]}));
    assert!(c.ingress("team/x", OUTSIDE, "1") && !c.ingress("team/x", OUTSIDE, "2"));
    assert!(c.ingress("teama/x", OUTSIDE, "2") && !c.ingress("teama/x", OUTSIDE, "1"));
}

#[test]
fn the_nearest_misses_of_a_denial_say_which_half_matches() {
    let mut c = Cluster::new(&[WEB, API]);
    c.policy("a/p", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 80}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": 81}, {"port": "http"}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 99}]},
    ]}));
    let misses = c.0.slice("n").nearest_misses(
        &object_key("a/web"),
        Direction::Ingress,
        "10.0.0.2".parse().unwrap(),
        l4("80"),
    );
    let halves: Vec<_> =
        misses.iter().map(|m| (m.clause.rule, m.clause.port, m.peer_matches, m.port_matches)).collect();
    assert_eq!(halves, [(0, Some(0), false, true), (1, Some(0), true, false), (1, Some(1), true, false)]);
    assert_eq!(misses[1].clause.to_string(), "a/p spec.ingress[1] from[0] ports[0]");
}

#[test]
fn n32_a_terminating_namespace_still_matches_selectors() {
    let mut c = Cluster::new(&[WEB, ("b/x", "10.0.9.9")]);
    c.apply(Event::Namespace(namespace("b team=x")));
    let peer = json!({"namespaceSelector": {"matchLabels": {"team": "x"}}});
    c.policy("a/p", json!({"ingress": [{"from": [peer]}]}));
    assert!(c.ingress("a/web", "10.0.9.9", "80"));
    c.apply(Event::Namespace(Namespace { terminating: true, ..namespace("b team=x") }));
    assert!(c.ingress("a/web", "10.0.9.9", "80"));
    c.apply(Event::NamespaceGone("b".into()));
    assert!(!c.ingress("a/web", "10.0.9.9", "80"));
}

#[test]
fn n54_the_text_80_is_a_name_and_not_a_number() {
    let mut c = Cluster::new(&[WEB]);
    c.policy("a/p", json!({"ingress": [{"ports": [{"port": "80"}]}]}));
    assert!(!c.ingress("a/web", OUTSIDE, "80"));
    c.policy("a/p", json!({"ingress": [{"ports": [{"port": 80}]}]}));
    assert!(c.ingress("a/web", OUTSIDE, "80"));
}
