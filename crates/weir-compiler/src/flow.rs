//! Both ends of a flow: what each says of it, and where nobody asks.
//!
//! ```text
//!   pod ──> its egress side ──> its ingress side ──> pod
//!           Answer              Answer                    it passes if both let it (N3)
//! ```
//!
//! A [`NodeSlice`] knows policies. Here is what takes precedence over them and is known from the pods:
//! a pod to itself, the host's network, and a node to its own pods. Always about a new connection:
//! replies and related ICMP errors pass anyway (N90, N93).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::object::ObjectKey;
use crate::ports::L4;
use crate::slice::{Direction, NodeSlice};
use crate::verdict::Verdict;

/// A pod at one end of a flow.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The pod.
    pub key: &'a ObjectKey,
    /// Its node; `None`: not known, and then taken to be that of nobody else.
    pub node: Option<&'a str>,
    /// It lives in its node's network (N70). What is true of it is true of the node itself.
    pub host_network: bool,
    /// A slice that has the pod, if policies concern it.
    pub slice: &'a NodeSlice,
}

/// What egress policies of a pod mean for the pod's own node: its kubelet, its host-network pods, a DNS
/// cache that listens on it (U6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodToOwnNode {
    /// The same as for everything else.
    #[default]
    Enforce,
    /// Nothing: a pod always reaches its own node.
    Allow,
}

impl FromStr for PodToOwnNode {
    type Err = String;

    /// `enforce` or `allow`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "enforce" => Ok(PodToOwnNode::Enforce),
            "allow" => Ok(PodToOwnNode::Allow),
            _ => Err("it is enforce or allow".to_owned()),
        }
    }
}

impl fmt::Display for PodToOwnNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PodToOwnNode::Enforce => "enforce",
            PodToOwnNode::Allow => "allow",
        })
    }
}

/// Why no policy is asked at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// A pod always reaches itself (N73, U2).
    Itself,
    /// This pod is in its node's network: policies select only pods with a network of their own (N70, U4).
    HostNetwork,
    /// The other end is this pod's own node, which always reaches it (N71, U5).
    OwnNode,
    /// The other end is this pod's own node, and pods may reach theirs ([`PodToOwnNode::Allow`], U6).
    ToOwnNode,
}

/// What one end says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it passes here.
    Exempt(Exempt),
    /// What policies say.
    Policy(Verdict),
}

impl Answer {
    /// Whether the flow passes at this end.
    pub fn allowed(&self) -> bool {
        match self {
            Answer::Exempt(_) => true,
            Answer::Policy(verdict) => verdict.allowed,
        }
    }
}

/// What both ends say of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The end that opens it.
    pub egress: Answer,
    /// The end that answers.
    pub ingress: Answer,
}

impl Flow {
    /// Asks both ends about a connection from `source`, an address of `from`, to `destination`, an
    /// address of `to`. `l4` has the destination's port (N52).
    pub fn judge(from: End<'_>, to: End<'_>, source: IpAddr, destination: IpAddr, l4: L4) -> Flow {
        Flow::judge_on(PodToOwnNode::Enforce, from, to, source, destination, l4)
    }

    /// [`Flow::judge`] on nodes whose agents were told what to make of a pod to its own node.
    pub fn judge_on(
        own_node: PodToOwnNode,
        from: End<'_>,
        to: End<'_>,
        source: IpAddr,
        destination: IpAddr,
        l4: L4,
    ) -> Flow {
        if from.key == to.key {
            return Flow { egress: Answer::Exempt(Exempt::Itself), ingress: Answer::Exempt(Exempt::Itself) };
        }
        let one_node = from.node.is_some() && from.node == to.node;
        let egress = if from.host_network {
            Answer::Exempt(Exempt::HostNetwork)
        } else if own_node == PodToOwnNode::Allow && to.host_network && one_node {
            Answer::Exempt(Exempt::ToOwnNode)
        } else {
            // also to its own node (U6)
            Answer::Policy(from.slice.verdict(from.key, Direction::Egress, destination, l4))
        };
        let ingress = if to.host_network {
            Answer::Exempt(Exempt::HostNetwork)
        } else if from.host_network && one_node {
            Answer::Exempt(Exempt::OwnNode)
        } else {
            Answer::Policy(to.slice.verdict(to.key, Direction::Ingress, source, l4))
        };
        Flow { egress, ingress }
    }

    /// What the end of a direction says.
    pub fn answer(&self, direction: Direction) -> &Answer {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Whether both ends let it pass (N3).
    pub fn allowed(&self) -> bool {
        self.egress.allowed() && self.ingress.allowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Event, Pod, Policy, PolicySpec, Protocol};
    use crate::{Compiler, Scope};

    const PORT: L4 = L4::Port(Protocol::Tcp, 80);

    /// Pods a and h (host network) on node 1, b and i (host network) on node 2; a and b may neither
    /// send nor receive.
    struct World(Vec<Pod>, Vec<NodeSlice>);

    impl World {
        fn new() -> World {
            let pod = |name: &str, node: &str, address: &str, host_network: bool| Pod {
                key: ObjectKey::new("x", name),
                uid: String::new(),
                labels: [("isolated".to_owned(), (!host_network).to_string())].into(),
                node: Some(node.to_owned()),
                ips: vec![address.parse().expect("an address")],
                host_network,
                finished: false,
                terminating: false,
                created: 0,
                ports: Vec::new(),
            };
            let mut pods = vec![
                pod("a", "1", "10.0.0.1", false),
                pod("h", "1", "172.16.0.1", true),
                pod("b", "2", "10.0.0.2", false),
                pod("i", "2", "172.16.0.2", true),
                pod("open", "2", "10.0.0.3", false),
            ];
            let mut spec =
                PolicySpec { policy_types: vec!["Ingress".into(), "Egress".into()], ..PolicySpec::default() };
            spec.pod_selector.match_labels = [("isolated".to_owned(), "true".to_owned())].into();
            pods[4].labels = crate::object::Labels::new();
            let mut compiler = Compiler::new(Scope::AllNodes);
            compiler.apply(pods.iter().cloned().map(Event::Pod));
            compiler.apply([Event::Policy(Policy {
                namespace: "x".into(),
                name: "deny".into(),
                created: 0,
                audit: None,
                spec,
            })]);
            World(pods, vec![compiler.slice("1"), compiler.slice("2")])
        }

        fn ask(&self, from: usize, to: usize) -> (bool, bool) {
            self.ask_on(PodToOwnNode::Enforce, from, to)
        }

        fn ask_on(&self, own_node: PodToOwnNode, from: usize, to: usize) -> (bool, bool) {
            let end = |i: usize| {
                let pod = &self.0[i];
                let node = pod.node.as_deref();
                let slice = &self.1[usize::from(node == Some("2"))];
                End { key: &pod.key, node, host_network: pod.host_network, slice }
            };
            let (source, destination) = (self.0[from].ips[0], self.0[to].ips[0]);
            let flow = Flow::judge_on(own_node, end(from), end(to), source, destination, PORT);
            if own_node == PodToOwnNode::default() {
                assert_eq!(flow, Flow::judge(end(from), end(to), source, destination, PORT));
            }
            assert_eq!(flow.allowed(), flow.egress.allowed() && flow.ingress.allowed());
            (flow.egress.allowed(), flow.ingress.allowed())
        }
    }

    const A: usize = 0;
    const H: usize = 1;
    const B: usize = 2;
    const I: usize = 3;
    const OPEN: usize = 4;

    #[test]
    fn n3_both_ends_are_asked() {
        let world = World::new();
        assert_eq!(world.ask(A, B), (false, false));
        assert_eq!(world.ask(A, OPEN), (false, true));
        assert_eq!(world.ask(OPEN, B), (true, false));
    }

    #[test]
    fn n73_a_pod_reaches_itself() {
        assert_eq!(World::new().ask(A, A), (true, true));
    }

    #[test]
    fn n70_no_policy_is_asked_in_the_hosts_network() {
        let world = World::new();
        assert_eq!(world.ask(H, I), (true, true));
        assert_eq!(world.ask(H, OPEN), (true, true));
    }

    #[test]
    fn n71_u6_a_node_reaches_its_own_pods_and_not_the_other_way_round() {
        let world = World::new();
        assert_eq!(world.ask(H, A), (true, true));
        assert_eq!(world.ask(A, H), (false, true));
        assert_eq!(world.ask(H, B), (true, false), "other nodes are not exempt");
    }

    #[test]
    fn u6_a_pod_may_be_let_to_its_own_node_and_to_nothing_else() {
        let world = World::new();
        assert_eq!(world.ask_on(PodToOwnNode::Allow, A, H), (true, true));
        for (from, to) in [(A, I), (A, B), (A, OPEN), (H, B), (B, H)] {
            assert_eq!(world.ask_on(PodToOwnNode::Allow, from, to), world.ask(from, to), "{from} to {to}");
        }
        assert!(!world.ask(A, I).0 && !world.ask(B, H).0, "other nodes are closed either way");
    }

    #[test]
    fn n71_an_unknown_node_is_nobodys() {
        let world = World::new();
        let end = |i: usize| End {
            key: &world.0[i].key,
            node: None,
            host_network: world.0[i].host_network,
            slice: &world.1[0],
        };
        let flow = Flow::judge(end(H), end(A), world.0[H].ips[0], world.0[A].ips[0], PORT);
        assert!(!flow.ingress.allowed());
    }
}
