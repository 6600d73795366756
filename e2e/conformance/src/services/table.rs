//! The ways to a Service, and what policies see on each: `e2e/cluster/services.txt`, which the tests on the cluster
//! hold against packets (docs/services.md has it as a table).

use std::sync::OnceLock;

/// How a client calls the server. Node 0 is the server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the pod's own address.
    Pod,
    /// By the ClusterIP.
    ClusterIp,
    /// By the ClusterIP of a Service that is for clients of its own node alone.
    Internal,
    /// By a node's port.
    NodePort {
        /// `externalTrafficPolicy: Local`.
        local: bool,
        /// Whose port.
        node: usize,
    },
    /// By a load balancer's address.
    LoadBalancer {
        /// `externalTrafficPolicy: Local`.
        local: bool,
    },
    /// By the host port.
    HostPort,
}

/// A client, a way, and what is seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `server`, `near`, `far`, `node1`, `node2`.
    pub client: String,
    /// How.
    pub way: Way,
    /// The same in words.
    pub name: String,
    /// The destination that egress policy of the client judges; `.`: it judges nothing.
    pub egress: String,
    /// The source that ingress policy of the server judges; `.`: it judges nothing.
    pub ingress: String,
    /// Somebody answers.
    pub open: bool,
}

const TEXT: &str = include_str!("../../../cluster/services.txt");
/// The table's author did not need these.
const MORE: &str = "near internal server near near\nserver internal server server node1\nfar internal . . .";

/// All lines that do not depend on how kube-proxy works and that a pod can send.
pub fn lines() -> &'static [Line] {
    static LINES: OnceLock<Vec<Line>> = OnceLock::new();
    LINES.get_or_init(|| TEXT.lines().chain(MORE.lines()).filter_map(line).collect())
}

fn line(text: &str) -> Option<Line> {
    let words: Vec<&str> = text.split('#').next()?.split_whitespace().collect();
    let [client, way, egress, ingress, server] = words[..] else { return None };
    if client == "outside" {
        return None;
    }
    let parts: Vec<&str> = way.split(':').collect();
    let way_is = match parts[..] {
        ["pod"] => Way::Pod,
        ["clusterip"] => Way::ClusterIp,
        ["internal"] => Way::Internal,
        ["hostport"] => Way::HostPort,
        ["nodeport", policy, node] => {
            Way::NodePort { local: policy == "Local", node: usize::from(node == "node2") }
        }
        ["loadbalancer", policy] => Way::LoadBalancer { local: policy == "Local" },
        _ => return None,
    };
    Some(Line {
        client: client.to_owned(),
        way: way_is,
        name: way.to_owned(),
        egress: egress.to_owned(),
        ingress: ingress.to_owned(),
        open: server != ".",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_pods_and_nodes_are_read() {
        // near, far and server 9 each, less the one that depends on kube-proxy; node1 and node2 9 each; and MORE
        assert_eq!(lines().len(), 9 + 9 + 8 + 9 + 9 + 3);
        let far = lines()
            .iter()
            .find(|l| l.client == "far" && l.name == "nodeport:Cluster:node2")
            .expect("it is there");
        assert_eq!((far.egress.as_str(), far.ingress.as_str(), far.open), ("server", "node2", true));
        assert_eq!(far.way, Way::NodePort { local: false, node: 1 });
        assert!(!lines().iter().any(|l| l.client == "outside"));
    }
}
