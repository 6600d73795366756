//! Random clusters in which members of peer sets change more than anything else.
#![allow(unreachable_pub, reason = "each test binary is a crate of its own")]

use proptest::prelude::*;
use weir_compiler::object::*;

use crate::world::{ADDRESSES, plain_pod};

/// A small cluster with all policies in place in which pods change their labels, come and go, several at a
/// time: most of the ways in which members change.
pub fn busy() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let label = || prop_oneof![Just(("x", "u")), Just(("x", "v")), Just(("y", "u")), Just(("y", "v"))];
    let labels = |labels: Vec<(&str, &str)>| -> Labels {
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let selector = move |max| {
        let selector = proptest::collection::vec(label(), 0..=max);
        selector.prop_map(move |of| LabelSelector { match_labels: labels(of), ..Default::default() })
    };
    let pod = (
        0usize..7,
        proptest::collection::vec(label(), 0..3),
        prop::option::weighted(0.1, 0usize..8),
        any::<bool>(),
    );
    let pod = pod.prop_map(move |(i, of, other, named)| {
        let mut pod = plain_pod(ObjectKey::new("a", format!("p{i}")), ADDRESSES[other.unwrap_or(i)]);
        pod.node = Some("n1".into());
        pod.labels = labels(of);
        pod.created = i as i64;
        if named {
            pod.ports = vec![NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 80 }];
        }
        pod
    });
    let peers = move || {
        let peer = selector(1).prop_map(|s| Peer { pod_selector: Some(s), ..Default::default() });
        let named = prop::bool::weighted(0.3);
        (proptest::collection::vec(peer, 1..4), named).prop_map(|(peers, named)| {
            let port = PolicyPort { port: Some(PortRef::Name("web".into())), ..Default::default() };
            (peers, if named { vec![port] } else { vec![] })
        })
    };
    let policy = ("q[1-4]", selector(1), proptest::option::of(peers()), proptest::option::of(peers()));
    let policy = policy.prop_map(|(name, pod_selector, from, to)| {
        let ingress = from.map(|(from, ports)| IngressRule { from, ports, ..Default::default() });
        let egress = to.map(|(to, ports)| EgressRule { to, ports, ..Default::default() });
        let types = [ingress.as_ref().map(|_| "Ingress"), egress.as_ref().map(|_| "Egress")];
        let policy_types = types.into_iter().flatten().map(str::to_owned).collect();
        let (ingress, egress) = (ingress.into_iter().collect(), egress.into_iter().collect());
        let spec = PolicySpec { pod_selector, policy_types, ingress, egress, ..Default::default() };
        Policy { namespace: "a".into(), name, created: 0, audit: None, spec }
    });
    let event = prop_oneof![
        20 => pod.clone().prop_map(Event::Pod),
        2 => (0usize..7).prop_map(|i| Event::PodGone(ObjectKey::new("a", format!("p{i}")))),
        2 => policy.clone().prop_map(Event::Policy),
        1 => "q[1-4]".prop_map(|name| Event::PolicyGone(ObjectKey::new("a", name))),
    ];
    let first = (proptest::collection::vec(policy, 1..5), proptest::collection::vec(pod, 4..9));
    let first = first.prop_map(|(policies, pods)| {
        policies.into_iter().map(Event::Policy).chain(pods.into_iter().map(Event::Pod)).collect::<Vec<_>>()
    });
    (first, proptest::collection::vec(proptest::collection::vec(event, 1..5), 1..8)).prop_map(
        |(first, mut rest)| {
            rest.insert(0, first);
            rest
        },
    )
}
