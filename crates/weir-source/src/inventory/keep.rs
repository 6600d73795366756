//! What of an object is in use; of a snapshot it is all that there is.

use crate::Kind;
use crate::tree::{OWN_ANNOTATIONS, Tree, Value};

/// The kinds beside those of [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Something with a pod template.
    Workload(&'static str),
    /// `v1` Service
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice
    EndpointSlice,
    /// `v1` Node
    Node,
}

/// A kind that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// One that the compiler knows.
    Core(Kind),
    /// Another.
    Extra(Extra),
}

/// kind, group, version, plural
const EXTRAS: [(&str, &str, &str, &str); 10] = [
    ("Deployment", "apps", "v1", "deployments"),
    ("StatefulSet", "apps", "v1", "statefulsets"),
    ("DaemonSet", "apps", "v1", "daemonsets"),
    ("ReplicaSet", "apps", "v1", "replicasets"),
    ("ReplicationController", "", "v1", "replicationcontrollers"),
    ("Job", "batch", "v1", "jobs"),
    ("CronJob", "batch", "v1", "cronjobs"),
    ("Service", "", "v1", "services"),
    ("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices"),
    ("Node", "", "v1", "nodes"),
];

impl Extra {
    /// By the kind's name and the group of its `apiVersion`.
    pub fn named(kind: &str, api_version: &str) -> Option<Extra> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let (name, ..) = EXTRAS.into_iter().find(|(name, g, ..)| *name == kind && *g == group)?;
        Some(Extra::of(name))
    }

    /// By the kind's name alone, as a list's items have it.
    pub fn in_list(list: &str) -> Option<Extra> {
        let kind = list.strip_suffix("List")?;
        EXTRAS.into_iter().find(|(name, ..)| *name == kind).map(|(name, ..)| Extra::of(name))
    }

    fn of(name: &'static str) -> Extra {
        match name {
            "Service" => Extra::Service,
            "EndpointSlice" => Extra::EndpointSlice,
            "Node" => Extra::Node,
            name => Extra::Workload(name),
        }
    }

    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Extra::Workload(name) => name,
            Extra::Service => "Service",
            Extra::EndpointSlice => "EndpointSlice",
            Extra::Node => "Node",
        }
    }
}

impl What {
    /// `apiVersion`, kind and the name of the resource.
    pub fn api(self) -> (String, &'static str, &'static str) {
        match self {
            What::Core(kind) => {
                let plural = match kind {
                    Kind::Namespace => "namespaces",
                    Kind::Pod => "pods",
                    Kind::Policy => "networkpolicies",
                };
                (kind.api_version().to_owned(), kind.as_str(), plural)
            }
            What::Extra(extra) => {
                let found = EXTRAS.into_iter().find(|(name, ..)| *name == extra.as_str());
                let (name, group, version, plural) = found.expect("all of them are in the table");
                let version =
                    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
                (version, name, plural)
            }
        }
    }

    /// Whether it is in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, What::Core(Kind::Namespace) | What::Extra(Extra::Node))
    }
}

/// What stays of a value.
enum Keep {
    /// All of it.
    All,
    /// These keys of a mapping.
    Fields(&'static [(&'static str, Keep)]),
    /// Each item of a sequence.
    Each(&'static Keep),
    /// Of annotations, those that say something to Weir.
    Own,
    /// Of a sequence of conditions, the one that is called so.
    Condition(&'static str),
}
use Keep::{All, Condition, Each, Fields, Own};

const META: Keep = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("labels", All),
    ("annotations", Own),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    (
        "ownerReferences",
        Each(&Fields(&[("apiVersion", All), ("kind", All), ("name", All), ("controller", All)])),
    ),
]);
const PORTS: Keep = Each(&Fields(&[("name", All), ("containerPort", All), ("protocol", All)]));
const POD_SPEC: Keep = Fields(&[
    ("nodeName", All),
    ("hostNetwork", All),
    ("serviceAccountName", All),
    ("automountServiceAccountToken", All),
    ("os", Fields(&[("name", All)])),
    ("nodeSelector", Fields(&[("kubernetes.io/os", All)])),
    ("containers", Each(&Fields(&[("ports", PORTS)]))),
    ("initContainers", Each(&Fields(&[("restartPolicy", All), ("ports", PORTS)]))),
]);
const TEMPLATE: Keep = Fields(&[("metadata", Fields(&[("labels", All)])), ("spec", POD_SPEC)]);
const NAMESPACE: Keep = Fields(&[("metadata", META)]);
const POLICY: Keep = Fields(&[("metadata", META), ("spec", All)]);
const POD: Keep = Fields(&[
    ("metadata", META),
    ("spec", POD_SPEC),
    (
        "status",
        Fields(&[("phase", All), ("podIP", All), ("podIPs", All), ("conditions", Condition("Ready"))]),
    ),
]);
const WORKLOAD_SPEC: &[(&str, Keep)] = &[
    ("replicas", All),
    ("parallelism", All),
    ("selector", All),
    ("template", TEMPLATE),
    ("jobTemplate", Fields(&[("spec", Fields(&[("parallelism", All), ("template", TEMPLATE)]))])),
];
const WORKLOAD: Keep = Fields(&[("metadata", META), ("spec", Fields(WORKLOAD_SPEC))]);
const SERVICE: Keep = Fields(&[
    ("metadata", META),
    (
        "spec",
        Fields(&[("type", All), ("clusterIP", All), ("clusterIPs", All), ("selector", All), ("ports", All)]),
    ),
]);
const ENDPOINT_SLICE: Keep = Fields(&[
    ("metadata", META),
    ("addressType", All),
    ("ports", All),
    (
        "endpoints",
        Each(&Fields(&[("addresses", All), ("conditions", All), ("nodeName", All), ("targetRef", All)])),
    ),
]);
const NODE: Keep = Fields(&[
    ("metadata", Fields(&[("name", All), ("labels", Fields(&[("kubernetes.io/os", All)]))])),
    ("spec", Fields(&[("podCIDRs", All)])),
    ("status", Fields(&[("addresses", All), ("nodeInfo", Fields(&[("operatingSystem", All)]))])),
]);

/// The object with nothing but what is in use, `apiVersion` and `kind` in front.
pub fn keep(what: What, tree: &Tree) -> Tree {
    let fields = match what {
        What::Core(Kind::Namespace) => NAMESPACE,
        What::Core(Kind::Pod) => POD,
        What::Core(Kind::Policy) => POLICY,
        What::Extra(Extra::Workload(_)) => WORKLOAD,
        What::Extra(Extra::Service) => SERVICE,
        What::Extra(Extra::EndpointSlice) => ENDPOINT_SLICE,
        What::Extra(Extra::Node) => NODE,
    };
    let mut kept = cut(&fields, tree);
    if let Value::Map(entries) = &mut kept.value {
        let (version, kind, _) = what.api();
        let text = |text: &str| Tree { line: tree.line, value: Value::Text(text.to_owned()) };
        let head = [("apiVersion".to_owned(), text(&version)), ("kind".to_owned(), text(kind))];
        entries.splice(0..0, head);
    }
    kept
}

fn cut(keep: &Keep, tree: &Tree) -> Tree {
    let value = match (keep, &tree.value) {
        (Fields(fields), Value::Map(entries)) => Value::Map(
            entries
                .iter()
                .filter_map(|(key, value)| {
                    let (_, keep) = fields.iter().find(|(name, _)| name == key)?;
                    let value = cut(keep, value);
                    let nothing = matches!((keep, &value.value), (Own, Value::Map(own)) if own.is_empty());
                    (!nothing).then(|| (key.clone(), value))
                })
                .collect(),
        ),
        (Own, Value::Map(entries)) => {
            Value::Map(entries.iter().filter(|(key, _)| key.starts_with(OWN_ANNOTATIONS)).cloned().collect())
        }
        (Each(keep), Value::Seq(items)) => Value::Seq(items.iter().map(|item| cut(keep, item)).collect()),
        (Condition(name), Value::Seq(items)) => {
            const CONDITION: Keep = Fields(&[("type", All), ("status", All)]);
            let it = items.iter().filter(|item| item.text("type") == Some(name));
            Value::Seq(it.map(|item| cut(&CONDITION, item)).collect())
        }
        // what is not of the form that it should have is told of by whoever reads it, and not written
        (Fields(_) | Each(_) | Condition(_), Value::Map(_) | Value::Seq(_) | Value::Text(_)) => Value::Null,
        (_, value) => value.clone(),
    };
    Tree { line: tree.line, value }
}

/// A value as JSON in one line.
pub fn json(tree: &Tree) -> serde_json::Value {
    match &tree.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(n) => (*n).into(),
        Value::Float(n) => (*n).into(),
        Value::Text(text) => text.clone().into(),
        Value::Seq(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            serde_json::Value::Object(entries.iter().map(|(key, value)| (key.clone(), json(value))).collect())
        }
    }
}
