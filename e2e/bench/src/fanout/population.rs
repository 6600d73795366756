//! The cluster: namespaces of a hundred pods, in each a policy that lets the monitoring in, so that every node has
//! the monitoring's addresses.

use weir_compiler::object::{
    Event, IngressRule, LabelSelector, Labels, Namespace, ObjectKey, Peer, Pod, Policy, PolicySpec,
};

const PER_NAMESPACE: usize = 100;

pub(super) fn node(number: usize) -> String {
    format!("node-{number}")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector { match_labels: labels(pairs), ..LabelSelector::default() }
}

fn pod(namespace: String, name: String, number: usize, node: String, labels: Labels) -> Event {
    let [_, b, c, d] = u32::try_from(number).expect("less than 2^24 pods").to_be_bytes();
    Event::Pod(Pod {
        key: ObjectKey::new(namespace, name.clone()),
        uid: name,
        labels,
        node: Some(node),
        ips: vec![[10, b, c, d].into()],
        host_network: false,
        finished: false,
        terminating: false,
        created: 0,
        ports: Vec::new(),
    })
}

fn policy(namespace: String, name: &str, pods: LabelSelector, from: Vec<Peer>) -> Event {
    let ingress = vec![IngressRule { from, ..IngressRule::default() }];
    let spec = PolicySpec { pod_selector: pods, ingress, ..PolicySpec::default() };
    Event::Policy(Policy { namespace, name: name.to_owned(), created: 0, audit: None, spec })
}

/// All of it; node `i` has the pods whose numbers are `i` modulo the number of nodes.
pub(super) fn all(pods: usize, nodes: usize) -> impl Iterator<Item = Event> {
    let namespaces = pods.div_ceil(PER_NAMESPACE);
    let namespace = |name: String| Event::Namespace(Namespace { name, ..Namespace::default() });
    let policies = (0..namespaces).flat_map(move |i| {
        let monitoring = Peer {
            namespace_selector: Some(selector(&[("kubernetes.io/metadata.name", "monitoring")])),
            pod_selector: Some(selector(&[("app", "prometheus")])),
            ..Peer::default()
        };
        let own = Peer { pod_selector: Some(LabelSelector::default()), ..Peer::default() };
        let name = format!("team-{i}");
        let both = vec![monitoring, own];
        [namespace(name.clone()), policy(name, "monitoring-and-own", LabelSelector::default(), both)]
    });
    let pods = (0..pods).map(move |i| {
        let app = format!("app-{}", i % 10);
        let of = format!("team-{}", i / PER_NAMESPACE);
        pod(of, format!("pod-{i}"), i, node(i % nodes), labels(&[("app", &app), ("pod", &format!("p{i}"))]))
    });
    [namespace("monitoring".to_owned()), monitoring(0)].into_iter().chain(policies).chain(pods)
}

/// The monitoring's pod, with its address after so many changes.
pub(super) fn monitoring(changes: usize) -> Event {
    let app = labels(&[("app", "prometheus")]);
    pod("monitoring".into(), "prometheus-0".into(), (1 << 23) + changes, node(0), app)
}

/// Something that concerns one node only: another policy for its first pod, or that policy's end.
pub(super) fn of_one(node: usize, there: bool) -> Event {
    let namespace = format!("team-{}", node / PER_NAMESPACE);
    let name = "one-more";
    if !there {
        return Event::PolicyGone(ObjectKey::new(namespace, name));
    }
    policy(namespace, name, selector(&[("pod", &format!("p{node}"))]), Vec::new())
}
