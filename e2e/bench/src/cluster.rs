//! A made-up cluster, as the manifests that `kubectl get -o yaml` would print, cut down to a pod's
//! fields in use and a few that are not.
//!
//! Pods go round the namespaces; in each there are ten applications of three tiers. Policies go round
//! namespaces and applications, and round four flavours: from an application of the same namespace; from a
//! tier of some namespaces by named port, and to a tier; from a CIDR and a range of ports; to an application
//! and to DNS.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use weir_compiler::object::Event;
use weir_lab::netns::Netns;

/// The node that is measured.
pub(crate) const NODE: &str = "node-0";
const APPS: usize = 10;
const TIERS: [&str; 3] = ["web", "api", "db"];
const TEAMS: usize = 4;
const PODS_PER_NODE: usize = 110;

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Namespaces.
    pub(crate) namespaces: usize,
    /// Pods, on all nodes.
    pub(crate) pods: usize,
    /// Those of them, the first ones, that are on the node that is measured.
    pub(crate) here: usize,
    /// NetworkPolicies.
    pub(crate) policies: usize,
}

impl Shape {
    /// The cluster in which a change is measured.
    pub(crate) const fn changing(here: usize) -> Shape {
        Shape { namespaces: 10, pods: 1_000, here, policies: 100 }
    }

    /// The cluster in which a start is measured.
    pub(crate) const STARTING: Shape = Shape { namespaces: 20, pods: 10_000, here: 110, policies: 200 };

    /// The pod of this rank in this namespace; ranks go round the applications.
    pub(crate) const fn pod_at(&self, namespace: usize, rank: usize) -> usize {
        rank * self.namespaces + namespace
    }

    /// The namespace of a pod or of a policy.
    pub(crate) const fn namespace_of(&self, number: usize) -> usize {
        number % self.namespaces
    }

    /// The application of a pod, and that of a policy.
    pub(crate) const fn app_of(&self, number: usize) -> usize {
        number / self.namespaces % APPS
    }

    /// A namespace; `team` is its own, or another one.
    pub(crate) fn namespace(&self, number: usize, moved: bool) -> String {
        let team = (number + usize::from(moved)) % TEAMS;
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns-{number}\n  labels:\n    \
             kubernetes.io/metadata.name: ns-{number}\n    team: team-{team}\n"
        )
    }

    /// A pod; `app` is its own, or another one.
    pub(crate) fn pod(&self, number: usize, app: usize) -> String {
        let tier = TIERS[self.app_of(number) % TIERS.len()];
        let ns = self.namespace_of(number);
        let node = match number.checked_sub(self.here) {
            None => 0,
            Some(elsewhere) => 1 + elsewhere / PODS_PER_NODE,
        };
        let ip = address(number);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{number}\n  namespace: ns-{ns}\n  \
             uid: 00000000-0000-4000-8000-{number:012}\n  creationTimestamp: \"2026-11-20T08:00:00Z\"\n  \
             resourceVersion: \"{number}\"\n  labels:\n    app: app-{app}\n    tier: {tier}\n    \
             pod-template-hash: 7c5ddbdf54\n  ownerReferences:\n  - apiVersion: apps/v1\n    \
             kind: ReplicaSet\n    name: app-{app}-7c5ddbdf54\n    controller: true\nspec:\n  \
             nodeName: node-{node}\n  containers:\n  - name: main\n    image: example.com/app:1\n    ports:\n    \
             - name: http\n      containerPort: 8080\n      protocol: TCP\nstatus:\n  phase: Running\n  \
             hostIP: 192.0.2.1\n  podIP: {ip}\n  podIPs:\n  - ip: {ip}\n"
        )
    }

    /// A policy, as it is at first or after an edit of a port.
    pub(crate) fn policy(&self, number: usize, edited: bool) -> String {
        let (ns, app) = (self.namespace_of(number), self.app_of(number));
        let (next, team) = ((app + 1) % APPS, ns % TEAMS);
        let port = 8080 + usize::from(edited);
        let rules = match app % 4 {
            0 => format!(
                "  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - podSelector:\n        matchLabels:\n          \
                 app: app-{next}\n    ports:\n    - protocol: TCP\n      port: {port}\n"
            ),
            1 => format!(
                "  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - namespaceSelector:\n        \
                 matchLabels:\n          team: team-{team}\n      podSelector:\n        matchLabels:\n          \
                 tier: web\n    ports:\n    - protocol: TCP\n      port: http\n  egress:\n  - to:\n    \
                 - podSelector:\n        matchLabels:\n          tier: db\n    ports:\n    - protocol: TCP\n      \
                 port: {port}\n"
            ),
            2 => format!(
                "  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - ipBlock:\n        \
                 cidr: 172.16.{ns}.0/24\n        except:\n        - 172.16.{ns}.128/28\n    \
                 - namespaceSelector: {{}}\n    ports:\n    - protocol: TCP\n      port: {port}\n      \
                 endPort: 8090\n"
            ),
            _ => format!(
                "  policyTypes: [Egress]\n  egress:\n  - to:\n    - podSelector:\n        matchLabels:\n          \
                 app: app-{next}\n    ports:\n    - protocol: TCP\n      port: {port}\n  - to:\n    \
                 - namespaceSelector:\n        matchLabels:\n          \
                 kubernetes.io/metadata.name: ns-0\n    ports:\n    - protocol: UDP\n      port: 53\n    \
                 - protocol: TCP\n      port: 53\n"
            ),
        };
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: policy-{number}\n  \
             namespace: ns-{ns}\nspec:\n  podSelector:\n    matchLabels:\n      app: app-{app}\n{rules}"
        )
    }

    /// Writes the cluster: a file for all namespaces, one for the pods of each, one for each policy,
    /// and one for each of the pods that are `single`.
    pub(crate) fn write(&self, folder: &Path, single: &[usize]) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let namespaces: String = (0..self.namespaces).map(|n| self.namespace(n, false) + "---\n").collect();
        std::fs::write(folder.join("namespaces.yaml"), namespaces)?;
        for namespace in 0..self.namespaces {
            let pods = (0..self.pods).filter(|pod| self.namespace_of(*pod) == namespace);
            let mut text = String::new();
            for pod in pods.filter(|pod| !single.contains(pod)) {
                write!(text, "---\n{}", self.pod(pod, self.app_of(pod)))?;
            }
            std::fs::write(folder.join(format!("pods-ns-{namespace}.yaml")), text)?;
        }
        for policy in 0..self.policies {
            std::fs::write(folder.join(format!("policy-{policy}.yaml")), self.policy(policy, false))?;
        }
        for &pod in single {
            std::fs::write(folder.join(format!("pod-{pod}.yaml")), self.pod(pod, self.app_of(pod)))?;
        }
        Ok(())
    }

    /// Gives the node an interface for each of its pods, with a route to it, as the CNI plugin ptp does.
    /// Nobody is at the other end: it is the next pod's.
    pub(crate) fn wire(&self, netns: &Netns) -> Result<()> {
        netns.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
        let mut lines = Vec::new();
        for pair in (0..self.here).step_by(2) {
            lines.push(format!("link add veth{pair} type veth peer name veth{}", pair + 1));
            for end in [pair, pair + 1] {
                lines.push(format!("link set veth{end} up"));
                lines.push(format!("route add {}/32 dev veth{end} scope link", address(end)));
            }
        }
        netns.ip(&lines)
    }
}

/// A pod's address.
fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0100 + u32::try_from(pod).unwrap_or(u32::MAX))
}

/// The objects of a folder or file, as the agent's source reads them.
pub(crate) fn events(path: &Path) -> Result<Vec<Event>> {
    let loaded = weir_source::manifests::read(&[path.to_owned()]);
    if let Some(problem) = loaded.problems.first() {
        bail!("the made-up cluster is wrong: {problem}");
    }
    Ok(loaded.events)
}

/// The one object of this text.
pub(crate) fn event(folder: &Path, text: &str) -> Result<Event> {
    let file = folder.join("one.yaml");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let event = events(&file)?.pop().context("no object in the text")?;
    std::fs::remove_file(&file)?;
    Ok(event)
}
