//! Clusters of one shape each, as events of the compiler's own types.

use std::net::{IpAddr, Ipv4Addr};

use clap::ValueEnum;
use weir_compiler::object::{
    Event, IngressRule, LabelSelector, Labels, Namespace, ObjectKey, Peer, Pod, Policy, PolicySpec,
};

use crate::compare::Random;

/// The nodes over which pods are spread at random.
const NODES: usize = 1_000;

/// A shape of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// 25,000 namespaces of 4 pods and 3 policies
    SmallNamespaces,
    /// 100 namespaces of 1,000 pods in groups of 10, and a policy for each group
    LargeNamespaces,
    /// 10,000 pods with one label, 10,000 policies that select and allow it
    OneNamespace,
    /// 5,000 pairs of pods, two policies for each pair
    NetpolPerPod,
}

/// A scenario of a size: what objects it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    scenario: Scenario,
    /// Hundredths of the scenario.
    percent: usize,
}

impl Scenario {
    pub(crate) const ALL: [Scenario; 4] = [
        Scenario::SmallNamespaces,
        Scenario::LargeNamespaces,
        Scenario::OneNamespace,
        Scenario::NetpolPerPod,
    ];

    /// As the command line has it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Seconds from the first event to the last slice.
    pub(crate) const fn goal(self) -> f64 {
        match self {
            Scenario::SmallNamespaces => 0.6,
            Scenario::LargeNamespaces => 0.14,
            Scenario::OneNamespace => 0.04,
            Scenario::NetpolPerPod => 0.1,
        }
    }
}

impl Cluster {
    pub(crate) fn new(scenario: Scenario, percent: usize) -> Cluster {
        Cluster { scenario, percent }
    }

    fn sized(&self, whole: usize) -> usize {
        (whole * self.percent / 100).max(1)
    }

    /// How many namespaces there are, and how many pods are in each.
    fn shape(&self) -> (usize, usize) {
        match self.scenario {
            Scenario::SmallNamespaces => (self.sized(25_000), 4),
            Scenario::LargeNamespaces => (self.sized(100), 1_000),
            Scenario::OneNamespace => (1, self.sized(10_000)),
            Scenario::NetpolPerPod => (1, 2 * self.sized(5_000)),
        }
    }

    pub(crate) fn namespaces(&self) -> usize {
        self.shape().0
    }

    pub(crate) fn pods(&self) -> usize {
        let (namespaces, each) = self.shape();
        namespaces * each
    }

    pub(crate) fn policies(&self) -> usize {
        match self.scenario {
            Scenario::SmallNamespaces => 3 * self.namespaces(),
            Scenario::LargeNamespaces => 101 * self.namespaces(),
            Scenario::OneNamespace | Scenario::NetpolPerPod => self.pods(),
        }
    }

    /// All of them, as lists of one kind after the other give them.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.namespaces() + self.pods() + self.policies());
        events.extend((0..self.namespaces()).map(|n| self.namespace(n, false)));
        let pods = (0..self.pods()).zip(self.nodes());
        events.extend(pods.map(|(pod, node)| self.pod(pod, self.group_of(pod), node)));
        events.extend((0..self.policies()).map(|p| self.policy(p)));
        events
    }

    /// Where each pod is, whatever the order of events.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = usize> + use<> {
        let mut random = Random::new(1);
        (0..self.pods()).map(move |_| random.below(NODES))
    }

    /// Pods of a namespace follow each other.
    fn namespace_of(&self, pod: usize) -> usize {
        pod / self.shape().1
    }

    /// Pods of a group have the same label.
    pub(crate) fn group_of(&self, pod: usize) -> usize {
        let place = pod % self.shape().1;
        match self.scenario {
            Scenario::SmallNamespaces => place / 2,
            Scenario::LargeNamespaces => place / 10,
            Scenario::OneNamespace => 0,
            Scenario::NetpolPerPod => place,
        }
    }

    /// Another group than this one that there is.
    pub(crate) fn other_group(&self, group: usize) -> usize {
        match self.scenario {
            Scenario::SmallNamespaces => 1 - group,
            Scenario::LargeNamespaces => (group + 1) % 100,
            Scenario::OneNamespace => 1, // a label that no policy names
            Scenario::NetpolPerPod => group ^ 1,
        }
    }

    fn labels(&self, group: usize) -> Labels {
        let (key, value) = match self.scenario {
            Scenario::SmallNamespaces => (format!("app-{}", group + 1), format!("scale-{}", group + 1)),
            Scenario::LargeNamespaces => ("group".to_owned(), format!("group-{group}")),
            Scenario::OneNamespace => ("app".to_owned(), format!("app-{}", group + 1)),
            Scenario::NetpolPerPod => ("pod".to_owned(), format!("pod-{group}")),
        };
        Labels::from([(key, value)])
    }

    pub(crate) fn namespace(&self, number: usize, labelled: bool) -> Event {
        let name = format!("namespace-{number}");
        let mut labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), name.clone())]);
        if labelled {
            labels.insert("team".to_owned(), "weir".to_owned());
        }
        Event::Namespace(Namespace { name, labels, ..Namespace::default() })
    }

    /// The pod of this number; it may be one more than there are, and is in the first namespace then.
    pub(crate) fn pod(&self, number: usize, group: usize, node: usize) -> Event {
        Event::Pod(Pod {
            key: self.pod_key(number),
            uid: format!("00000000-0000-4000-8000-{number:012}"),
            labels: self.labels(group),
            node: Some(format!("node-{node}")),
            ips: vec![IpAddr::from(Ipv4Addr::from_bits(0x0a00_0001 + number as u32))],
            host_network: false,
            finished: false,
            terminating: false,
            created: 1_790_000_000 + number as i64,
            ports: Vec::new(),
        })
    }

    pub(crate) fn pod_key(&self, number: usize) -> ObjectKey {
        let namespace = self.namespace_of(number) % self.namespaces();
        ObjectKey::new(format!("namespace-{namespace}"), format!("pod-{number}"))
    }

    fn policy(&self, number: usize) -> Event {
        let (namespace, groups) = match self.scenario {
            Scenario::SmallNamespaces => (number / 3, (number % 3).checked_sub(1).map(|g| (g, g))),
            Scenario::LargeNamespaces => (number / 101, (number % 101).checked_sub(1).map(|g| (g, g))),
            Scenario::OneNamespace => (0, Some((0, 0))),
            Scenario::NetpolPerPod => (0, Some((number, number ^ 1))),
        };
        self.ingress(namespace, format!("policy-{number}"), groups)
    }

    /// A policy more: from the first group of a namespace to another one.
    pub(crate) fn another_policy(&self, number: usize) -> Event {
        let pod = number % self.pods();
        let to = self.group_of(pod);
        let from = match self.scenario {
            Scenario::OneNamespace => 0,
            _ => self.other_group(to),
        };
        self.ingress(self.namespace_of(pod), "another".to_owned(), Some((to, from)))
    }

    /// Into a group from another one; or into all pods, from nobody.
    fn ingress(&self, namespace: usize, name: String, groups: Option<(usize, usize)>) -> Event {
        let selector = |group| LabelSelector { match_labels: self.labels(group), ..Default::default() };
        let from = groups.map(|(_, from)| IngressRule {
            from: vec![Peer { pod_selector: Some(selector(from)), ..Default::default() }],
            ..Default::default()
        });
        Event::Policy(Policy {
            namespace: format!("namespace-{namespace}"),
            name,
            created: 0,
            audit: None,
            spec: PolicySpec {
                pod_selector: groups.map_or_else(LabelSelector::default, |(to, _)| selector(to)),
                policy_types: vec!["Ingress".to_owned()],
                ingress: from.into_iter().collect(),
                ..Default::default()
            },
        })
    }
}
