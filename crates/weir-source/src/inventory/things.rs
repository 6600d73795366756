//! What is known besides namespaces, pods and policies, cut down to the fields in use.

use std::net::IpAddr;

use weir_compiler::object::{Event, LabelSelector, Labels, ObjectKey, Pod, Protocol};

use crate::convert::{self, Outcome};
use crate::tree::{Tree, Value};
use crate::{Kind, Place};

/// Who made a pod, or a ReplicaSet, or a Job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// As the API spells it: `Deployment`.
    pub kind: String,
    /// In the same namespace.
    pub name: String,
}

/// A port of a container, whether it has a name or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeclaredPort {
    /// Empty: it has none.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// What of a pod is no part of the compiler's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodDetails {
    /// Its controller.
    pub owner: Option<Owner>,
    /// Those of containers that keep running.
    pub ports: Vec<DeclaredPort>,
    /// Its condition `Ready` is true.
    pub ready: bool,
    /// It runs on Windows.
    pub windows: bool,
    /// It has a service account that is not everybody's, and its token.
    pub service_account: bool,
}

/// A Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job or CronJob.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// As the API spells it.
    pub kind: String,
    /// Namespace and name.
    pub key: ObjectKey,
    /// Where it was read.
    pub place: Place,
    /// Its own controller: the Deployment of a ReplicaSet.
    pub owner: Option<Owner>,
    /// `spec.replicas`, or `spec.parallelism`; `None`: it does not say.
    pub replicas: Option<i64>,
    /// `spec.selector`, if it has one.
    pub selector: Option<LabelSelector>,
    /// Its pod template as if it were a pod: `metadata` and `spec`.
    pub template: Tree,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.type`, ClusterIP if absent.
    pub kind: String,
    /// Its own addresses; none: headless, or a name of something outside.
    pub cluster_ips: Vec<IpAddr>,
    /// Which pods it is for; empty: somebody else writes its endpoints.
    pub selector: Labels,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty if there is only one.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Of the Service.
    pub port: u16,
    /// Of its pods.
    pub target: TargetPort,
    /// Of every node, if it has one.
    pub node_port: Option<u16>,
}

/// `targetPort`: as the pods have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A port of the pods by name.
    Name(String),
}

/// A part of the endpoints of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service.
    pub service: ObjectKey,
    /// Name (of the Service's port), protocol and number.
    pub ports: Vec<(String, Protocol, u16)>,
    /// Who answers.
    pub backends: Vec<Backend>,
}

/// One of an [`EndpointSlice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It takes connections.
    pub ready: bool,
    /// The pod that it is.
    pub pod: Option<ObjectKey>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The name.
    pub name: String,
    /// Those of `status.addresses` that are addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, as written.
    pub pod_cidrs: Vec<String>,
    /// It runs Windows.
    pub windows: bool,
}

/// The items of a sequence; of anything else, none.
pub(super) fn items(tree: Option<&Tree>) -> &[Tree] {
    match tree.map(|t| &t.value) {
        Some(Value::Seq(items)) => items,
        _ => &[],
    }
}

/// The value at a path.
pub(super) fn at<'a>(tree: &'a Tree, path: &[&str]) -> Option<&'a Tree> {
    path.iter().try_fold(tree, |tree, key| tree.get(key))
}

fn text(tree: &Tree, key: &str) -> String {
    tree.text(key).unwrap_or_default().to_owned()
}

fn port(tree: &Tree, key: &str) -> Option<u16> {
    match tree.get(key)?.value {
        Value::Int(n) => u16::try_from(n).ok().filter(|n| *n > 0),
        _ => None,
    }
}

fn protocol(tree: &Tree) -> Option<Protocol> {
    tree.text("protocol").map_or(Some(Protocol::Tcp), |text| text.parse().ok())
}

fn addresses<'a>(items: impl Iterator<Item = &'a Tree>) -> Vec<IpAddr> {
    let texts = items.filter_map(|item| match &item.value {
        Value::Text(text) => Some(text),
        _ => None,
    });
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// Name and namespace of an object; `default` where it does not say.
pub(super) fn key(tree: &Tree) -> Option<ObjectKey> {
    let meta = tree.get("metadata")?;
    let name = meta.text("name").filter(|name| !name.is_empty())?;
    let namespace = meta.text("namespace").filter(|n| !n.is_empty()).unwrap_or("default");
    Some(ObjectKey::new(namespace, name))
}

impl Owner {
    /// The controller of an object.
    pub(super) fn of(tree: &Tree) -> Option<Owner> {
        let references = items(at(tree, &["metadata", "ownerReferences"]));
        let controls = |r: &&Tree| matches!(r.get("controller").map(|c| &c.value), Some(Value::Bool(true)));
        let one = references.iter().find(controls).or_else(|| references.first())?;
        // the pod of a file on a node: the node is no workload
        let owner = Owner { kind: text(one, "kind"), name: text(one, "name") };
        (owner.kind != "Node" && !owner.kind.is_empty() && !owner.name.is_empty()).then_some(owner)
    }
}

impl PodDetails {
    /// Of a pod, or of a template.
    pub(super) fn read(tree: &Tree) -> PodDetails {
        let mut ports = Vec::new();
        for (list, all) in [("containers", true), ("initContainers", false)] {
            let containers = items(at(tree, &["spec", list])).iter();
            for container in containers.filter(|c| all || c.text("restartPolicy") == Some("Always")) {
                for declared in items(container.get("ports")) {
                    let Some((protocol, port)) = protocol(declared).zip(port(declared, "containerPort"))
                    else {
                        continue;
                    };
                    ports.push(DeclaredPort { name: text(declared, "name"), protocol, port });
                }
            }
        }
        let ready = |c: &Tree| c.text("type") == Some("Ready") && c.text("status") == Some("True");
        let os = at(tree, &["spec", "os"]).and_then(|os| os.text("name"));
        let selector = at(tree, &["spec", "nodeSelector"]).and_then(|s| s.text(OS_LABEL));
        let account = at(tree, &["spec", "serviceAccountName"]);
        let token = at(tree, &["spec", "automountServiceAccountToken"]);
        let own = account
            .is_some_and(|a| !matches!(&a.value, Value::Text(name) if name.is_empty() || name == "default"));
        PodDetails {
            service_account: own && token.is_none_or(|t| t.value != Value::Bool(false)),
            owner: Owner::of(tree),
            ports,
            ready: items(at(tree, &["status", "conditions"])).iter().any(ready),
            windows: os == Some("windows") || selector == Some("windows"),
        }
    }
}

const OS_LABEL: &str = "kubernetes.io/os";

impl Workload {
    /// Of a document; the kinds are those of [`Extra`](super::keep::Extra).
    pub(super) fn read(kind: &str, tree: &Tree, place: Place) -> Option<Workload> {
        let key = key(tree)?;
        let spec = tree.get("spec")?;
        let inner = match spec.get("jobTemplate") {
            Some(job) => job.get("spec")?,
            None => spec,
        };
        let count = |name| match inner.get(name).map(|n| &n.value) {
            Some(Value::Int(n)) => Some(*n),
            _ => None,
        };
        let selector = match kind {
            // a bare mapping of labels
            "ReplicationController" => spec
                .field::<Labels>("selector")
                .ok()
                .map(|match_labels| LabelSelector { match_labels, ..LabelSelector::default() }),
            _ => spec.get("selector").and_then(|s| s.to().ok()),
        };
        Some(Workload {
            kind: kind.to_owned(),
            key,
            place,
            owner: Owner::of(tree),
            replicas: count("replicas").or_else(|| count("parallelism")),
            selector: selector.filter(|s: &LabelSelector| *s != LabelSelector::default()),
            template: inner.get("template")?.clone(),
        })
    }
}

impl Service {
    pub(super) fn read(tree: &Tree) -> Option<Service> {
        let key = key(tree)?;
        let spec = tree.get("spec")?;
        let ips = items(spec.get("clusterIPs"));
        let cluster_ips = match ips.is_empty() {
            true => addresses(spec.get("clusterIP").into_iter()),
            false => addresses(ips.iter()),
        };
        let ports = items(spec.get("ports")).iter().filter_map(|p| {
            let number = port(p, "port")?;
            let target = match p.get("targetPort").map(|t| &t.value) {
                Some(Value::Text(name)) => match name.parse() {
                    Ok(number) => TargetPort::Number(number),
                    Err(_) => TargetPort::Name(name.clone()),
                },
                _ => TargetPort::Number(port(p, "targetPort").unwrap_or(number)),
            };
            Some(ServicePort {
                name: text(p, "name"),
                protocol: protocol(p)?,
                port: number,
                target,
                node_port: port(p, "nodePort"),
            })
        });
        let kind = spec.text("type").unwrap_or("ClusterIP").to_owned();
        let selector = spec.field("selector").unwrap_or_default();
        Some(Service { key, kind, cluster_ips, selector, ports: ports.collect() })
    }
}

impl EndpointSlice {
    pub(super) fn read(tree: &Tree) -> Option<EndpointSlice> {
        let namespace = key(tree)?.namespace;
        let service = at(tree, &["metadata", "labels"])?.text("kubernetes.io/service-name")?;
        let ports = items(tree.get("ports")).iter();
        let ports = ports.filter_map(|p| Some((text(p, "name"), protocol(p)?, port(p, "port")?)));
        let backends = items(tree.get("endpoints")).iter().map(|endpoint| {
            let ready = at(endpoint, &["conditions", "ready"]).map(|r| &r.value);
            let target = endpoint.get("targetRef").filter(|t| t.text("kind") == Some("Pod"));
            Backend {
                addresses: addresses(items(endpoint.get("addresses")).iter()),
                ready: ready != Some(&Value::Bool(false)),
                pod: target.map(|t| ObjectKey::new(&namespace, text(t, "name"))),
            }
        });
        Some(EndpointSlice {
            ports: ports.collect(),
            backends: backends.collect(),
            service: ObjectKey::new(namespace.clone(), service),
        })
    }
}

impl Node {
    pub(super) fn read(tree: &Tree) -> Option<Node> {
        let all = items(at(tree, &["status", "addresses"])).iter().filter_map(|a| a.get("address"));
        let cidrs = items(at(tree, &["spec", "podCIDRs"])).iter();
        let system = at(tree, &["status", "nodeInfo"]).and_then(|info| info.text("operatingSystem"));
        let label = at(tree, &["metadata", "labels"]).and_then(|labels| labels.text(OS_LABEL));
        Some(Node {
            name: key(tree)?.name,
            addresses: addresses(all),
            pod_cidrs: cidrs
                .filter_map(|c| match &c.value {
                    Value::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            windows: system.or(label) == Some("windows"),
        })
    }
}

/// How many pods stand in for a StatefulSet at most.
const MANY: i64 = 100;

impl Workload {
    /// Its pods as its template describes them, for manifests that have none: those of a StatefulSet by number,
    /// of others two where there are several (they may talk to each other), or one. Of each its name, what the
    /// controller labels it with, and what was left out of it.
    pub fn stand_ins(&self, taken: impl Fn(&str) -> bool) -> Vec<Result<StandIn, crate::tree::Error>> {
        let name = &self.key.name;
        let numbered = self.kind == "StatefulSet";
        let replicas = self.replicas.unwrap_or(if self.kind == "DaemonSet" { 2 } else { 1 }).max(1);
        let names: Vec<String> = match (numbered, replicas) {
            (true, n) => (0..n.min(MANY)).map(|i| format!("{name}-{i}")).collect(),
            (false, 1) => vec![name.clone()],
            (false, _) => vec![format!("{name}-1"), format!("{name}-2")],
        };
        let free = |name: String| {
            let others = (1..).map(|n| format!("{name}-{n}"));
            std::iter::once(name.clone()).chain(others).find(|name| !taken(name)).unwrap_or(name)
        };
        let labels = |i: usize, name: &str| match self.kind.as_str() {
            "StatefulSet" => vec![
                ("statefulset.kubernetes.io/pod-name", name.to_owned()),
                ("apps.kubernetes.io/pod-index", i.to_string()),
            ],
            "Job" => vec![
                ("batch.kubernetes.io/job-name", self.key.name.clone()),
                ("job-name", self.key.name.clone()),
            ],
            _ => Vec::new(),
        };
        let names = names.into_iter().map(free).enumerate();
        names.map(|(i, name)| self.stand_in(&name, labels(i, &name))).collect()
    }

    fn stand_in(&self, name: &str, labels: Vec<(&str, String)>) -> Result<StandIn, crate::tree::Error> {
        let line = self.template.line;
        let text = |text: &str| Tree { line, value: Value::Text(text.to_owned()) };
        let written = at(&self.template, &["metadata", "labels"]).map(|l| &l.value);
        let mut all = match written {
            Some(Value::Map(entries)) => entries.clone(),
            _ => Vec::new(),
        };
        all.retain(|(key, _)| labels.iter().all(|(name, _)| key != name));
        all.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), text(value))));
        let meta = vec![
            ("name".to_owned(), text(name)),
            ("namespace".to_owned(), text(&self.key.namespace)),
            ("labels".to_owned(), Tree { line, value: Value::Map(all) }),
        ];
        let mut pod = vec![("metadata".to_owned(), Tree { line, value: Value::Map(meta) })];
        pod.extend(self.template.get("spec").map(|spec| ("spec".to_owned(), spec.clone())));
        let pod = Tree { line, value: Value::Map(pod) };
        let mut details = PodDetails::read(&pod);
        details.owner = Some(Owner { kind: self.kind.clone(), name: self.key.name.clone() });
        match convert::object(Kind::Pod, &pod) {
            Outcome::Good(Event::Pod(pod), notes) => Ok(StandIn { pod, details, notes }),
            Outcome::Good(..) => unreachable!("a pod is a pod"),
            Outcome::Closed(_, error) | Outcome::Wrong(_, error) => Err(error),
        }
    }
}

/// A pod that is not there yet.
#[derive(Debug)]
pub struct StandIn {
    /// The pod, without node and addresses.
    pub pod: Pod,
    /// The rest.
    pub details: PodDetails,
    /// What was left out of it.
    pub notes: Vec<crate::tree::Error>,
}
