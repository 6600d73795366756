//! Policies for Services, and what follows from each for a line of the table.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::table::Line;

/// What a rule allows: words of the table as peers (`label:server`, `label:client` for selectors; none: any), and
/// kinds of ports (none: any).
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    peers: &'static [&'static str],
    ports: &'static [Kind],
}

/// Which of the numbers that lead to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Other,
}

/// A policy for every pod of `x`; a direction is `None` (not isolated) or what it allows.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: &'static str,
    /// In words.
    pub about: &'static str,
    /// Statements that it tries.
    pub statements: &'static [&'static str],
    ingress: Option<&'static [Rule]>,
    egress: Option<&'static [Rule]>,
    /// What it says of pods' addresses and of ClusterIPs, the API defines.
    defined: bool,
}

const fn peers(peers: &'static [&'static str]) -> Rule {
    Rule { peers, ports: &[] }
}
const LABELS: &[Rule] = &[peers(&["label:client", "label:server"])];
const PODS: &[Rule] = &[peers(&["server", "near", "far"])];
const NODES: &[Rule] = &[peers(&["node1", "node2"])];
const POD_PORTS: &[Rule] = &[Rule { peers: &[], ports: &[Kind::Pod] }];
const OTHER_PORTS: &[Rule] = &[Rule { peers: &[], ports: &[Kind::Other] }];
const NOTHING: &[Rule] = &[];

const fn policy(
    name: &'static str,
    about: &'static str,
    statements: &'static [&'static str],
    ingress: Option<&'static [Rule]>,
    egress: Option<&'static [Rule]>,
    defined: bool,
) -> Policy {
    Policy { name, about, statements, ingress, egress, defined }
}

/// All of them.
pub const ALL: &[Policy] = &[
    policy(
        "deny-all",
        "all pods: nothing in, nothing out",
        &["N3", "N63", "N71", "N73"],
        Some(NOTHING),
        Some(NOTHING),
        true,
    ),
    policy("by-label", "in and out: pods, by label", &["N20", "N25"], Some(LABELS), Some(LABELS), true),
    policy("by-pod-address", "in and out: pods, by ipBlock", &["N40", "N47"], Some(PODS), Some(PODS), true),
    policy("by-node-address", "in and out: nodes, by ipBlock", &["N40"], Some(NODES), Some(NODES), true),
    policy("deny-ingress", "nothing in", &["N3", "N71"], Some(NOTHING), None, true),
    policy("from-label", "in: clients, by label", &["N20"], Some(&[peers(&["label:client"])]), None, true),
    policy("from-near", "in: near, by ipBlock", &["N40"], Some(&[peers(&["near"])]), None, true),
    policy(
        "from-node2",
        "in: the other node, by ipBlock",
        &["N40", "N71"],
        Some(&[peers(&["node2"])]),
        None,
        true,
    ),
    policy("to-pod-port", "in: to the pod's ports", &["N52", "N63"], Some(POD_PORTS), None, true),
    policy(
        "to-other-ports",
        "in: to the Service's ports, the node's and the host's",
        &["N52", "N63"],
        Some(OTHER_PORTS),
        None,
        true,
    ),
    policy("deny-egress", "nothing out", &["N3"], None, Some(NOTHING), true),
    policy("to-label", "out: the server, by label", &["N20"], None, Some(&[peers(&["label:server"])]), true),
    policy(
        "to-services",
        "out: ClusterIPs and load balancers, by ipBlock",
        &["N40", "N47"],
        None,
        Some(&[peers(&["services"])]),
        false,
    ),
    policy("out-to-pod-port", "out: to the pod's ports", &["N52"], None, Some(POD_PORTS), false),
];

impl Policy {
    /// Whether the client gets an answer: a pod reaches itself (U3), else both ends must let what they see pass.
    pub fn allows(&self, line: &Line) -> bool {
        let itself = line.client == line.egress && line.client == line.ingress;
        line.open && (itself || judges(self.egress, &line.egress) && judges(self.ingress, &line.ingress))
    }

    /// Whether NetworkPolicy's API defines what comes of it. It does where nothing is translated and where a ClusterIP
    /// is, which upstream's tests rely on; where egress is denied altogether it does not matter what policies see.
    /// A pod to itself is certain by its own address only, and a node to its own pods.
    pub fn requires(&self, client: &str, way: &str) -> bool {
        let nothing_out = matches!(self.egress, Some(rules) if rules.is_empty());
        match (client, way) {
            ("server" | "node1", "pod") => true,
            ("server" | "node1" | "node2", _) => false,
            (_, "pod") => true,
            (_, "clusterip") => self.defined,
            _ => nothing_out,
        }
    }

    /// The word of a peer that has no address here: the policy would mean something else without it.
    pub fn lacks(&self, addresses: &dyn Fn(&str) -> Vec<IpAddr>) -> Option<&'static str> {
        let rules = [self.ingress, self.egress].into_iter().flatten().flatten();
        let words = rules.flat_map(|rule| rule.peers.iter().copied());
        words.filter(|word| !word.starts_with("label:")).find(|word| addresses(word).is_empty())
    }

    /// Its `spec`. `addresses` tells those of a word; see [`Policy::lacks`].
    pub fn spec(&self, addresses: &dyn Fn(&str) -> Vec<IpAddr>) -> Value {
        let peer = |word: &str| -> Vec<Value> {
            match word {
                "label:server" => vec![json!({"podSelector": {"matchLabels": {"pod": "server"}}})],
                "label:client" => vec![
                    json!({"podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]}]}}),
                ],
                _ => addresses(word)
                    .into_iter()
                    .map(|ip| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}}))
                    .collect(),
            }
        };
        let rule = |rule: &Rule, list: &str| {
            let mut object = json!({});
            if !rule.peers.is_empty() {
                object[list] = rule.peers.iter().flat_map(|word| peer(word)).collect();
            }
            if !rule.ports.is_empty() {
                object["ports"] = rule.ports.iter().flat_map(|kind| ports(*kind)).collect();
            }
            object
        };
        let mut spec = json!({"podSelector": {}, "policyTypes": []});
        for (rules, kind, section, list) in
            [(self.ingress, "Ingress", "ingress", "from"), (self.egress, "Egress", "egress", "to")]
        {
            let Some(rules) = rules else { continue };
            spec["policyTypes"].as_array_mut().expect("a list").push(json!(kind));
            spec[section] = rules.iter().map(|r| rule(r, list)).collect();
        }
        spec
    }
}

fn ports(kind: Kind) -> Vec<Value> {
    let of =
        |protocol: &str, first: u16, last: u16| json!({"protocol": protocol, "port": first, "endPort": last});
    let (service, host) = (super::SERVICE_PORT, super::HOST_PORT);
    ["TCP", "UDP"]
        .into_iter()
        .flat_map(|protocol| match kind {
            Kind::Pod => vec![json!({"protocol": protocol, "port": crate::world::FIRST})],
            Kind::Other => vec![
                of(protocol, service, service + 1),
                of(protocol, 30000, 32767),
                of(protocol, host, host + 1),
            ],
        })
        .collect()
}

/// Whether rules allow what is seen: a word, with the kind of the port behind a colon where it is not the pod's.
fn judges(rules: Option<&[Rule]>, seen: &str) -> bool {
    let Some(rules) = rules else { return true };
    if seen == "." {
        return true;
    }
    let (word, kind) = match seen.split_once(':') {
        Some((word, _)) => (word, Kind::Other),
        None => (seen, Kind::Pod),
    };
    let label = match word {
        "server" => "label:server",
        "near" | "far" => "label:client",
        _ => "",
    };
    rules.iter().any(|rule| {
        (rule.peers.is_empty() || rule.peers.contains(&word) || rule.peers.contains(&label))
            && (rule.ports.is_empty() || rule.ports.contains(&kind))
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::lines;
    use super::*;

    fn allowed(name: &str) -> Vec<String> {
        let policy = ALL.iter().find(|p| p.name == name).expect("a policy");
        lines().iter().filter(|l| policy.allows(l)).map(|l| format!("{} {}", l.client, l.name)).collect()
    }

    /// The columns of docs/services.md say the same.
    #[test]
    fn what_follows_is_what_the_documentation_says() {
        let text = include_str!("../../../../docs/services.md");
        let head = text.lines().find(|l| l.starts_with("| client | way ")).expect("the table");
        let columns: Vec<&str> = head.split('|').map(str::trim).collect();
        let mut compared = 0;
        for row in text.lines().filter(|l| l.starts_with("| ")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let Some(line) =
                lines().iter().find(|l| l.client == cells[1] && l.name.replace(':', " ") == cells[2])
            else {
                continue;
            };
            for (column, cell) in columns.iter().zip(&cells) {
                if let Some(policy) = ALL.iter().find(|p| p.name == *column) {
                    assert_eq!(
                        policy.allows(line),
                        *cell == "yes",
                        "{} {} under {column}",
                        line.client,
                        line.name
                    );
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 44 * 4, "deny-all, by-label, by-pod-address, by-node-address");
    }

    #[test]
    fn the_evaluators_rules_hold_for_the_others() {
        assert!(allowed("deny-all").iter().all(|l| l.starts_with("server") || l.starts_with("node1")));
        assert!(
            allowed("to-services").iter().all(|l| l.starts_with("server") || l.starts_with("node")),
            "(N47)"
        );
        assert!(allowed("from-near").contains(&"near clusterip".to_owned()));
        assert!(!allowed("from-near").contains(&"far clusterip".to_owned()));
    }

    #[test]
    fn a_policy_whose_peers_have_no_address_is_not_made() {
        let policy = |name: &str| ALL.iter().find(|p| p.name == name).expect("a policy");
        let some =
            |word: &str| if word == "node2" { vec![] } else { vec!["10.0.0.1".parse().expect("an address")] };
        assert_eq!(policy("from-node2").lacks(&some), Some("node2"));
        assert_eq!(policy("by-node-address").lacks(&some), Some("node2"));
        assert_eq!(policy("by-label").lacks(&some), None);
        assert_eq!(policy("from-near").lacks(&some), None);
    }

    #[test]
    fn what_the_api_requires_is_told_apart() {
        let policy = |name: &str| ALL.iter().find(|p| p.name == name).expect("a policy");
        assert!(policy("by-label").requires("near", "clusterip"));
        assert!(!policy("by-label").requires("far", "nodeport:Cluster:node1"));
        assert!(policy("deny-all").requires("far", "nodeport:Cluster:node1"), "nothing may leave");
        assert!(!policy("deny-ingress").requires("near", "hostport"));
        assert!(!policy("to-services").requires("near", "clusterip"));
        assert!(policy("deny-all").requires("node1", "pod") && !policy("deny-all").requires("node2", "pod"));
    }
}
