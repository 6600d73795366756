//! Objects as the API server sends them, with the fields in use only.
//!
//! A whole `Pod` takes twenty times the memory of this one. Nothing here can fail to be decoded
//! over a policy's content: its spec is decoded on its own, so that one bad policy neither ends a
//! watch nor a list (see [`crate::convert`]).

use k8s_openapi::api::{core, networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use weir_compiler::object::AUDIT;

use crate::annotations;
use crate::convert::{self, Annotations, Meta, Outcome, PodSpec, PodStatus};
use crate::tree::{Tree, Value};
use crate::{Id, Kind};

/// A kind that is watched.
pub(super) trait Lean: Resource<DynamicType = ()> {
    /// Which one.
    const KIND: Kind;
    /// As it is written in RBAC rules.
    const RESOURCE: &'static str;

    /// What becomes of it.
    fn convert(self) -> Outcome;

    /// Which object it is.
    fn id(&self) -> Id {
        let meta = self.meta();
        let key = weir_compiler::object::ObjectKey::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        Id { kind: Self::KIND, key }
    }
}

#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = core::v1::Namespace)]
pub(super) struct Namespace {
    metadata: ObjectMeta,
}

#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = core::v1::Pod)]
pub(super) struct Pod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = networking::v1::NetworkPolicy)]
pub(super) struct Policy {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: serde_json::Value,
}

impl Lean for Namespace {
    const KIND: Kind = Kind::Namespace;
    const RESOURCE: &'static str = "namespaces";

    fn convert(self) -> Outcome {
        let text = self.metadata.annotations.as_ref().and_then(|all| all.get(annotations::LOG_ALLOWED));
        let log_allowed = text.map_or(Ok(0), |text| annotations::log_allowed(text));
        convert::namespace(meta(self.metadata), log_allowed.map_err(|message| annotations::wrong(0, message)))
    }
}

impl Lean for Pod {
    const KIND: Kind = Kind::Pod;
    const RESOURCE: &'static str = "pods";

    fn convert(self) -> Outcome {
        let (event, notes) = convert::pod(meta(self.metadata), self.spec, self.status);
        Outcome::Good(event, notes)
    }
}

impl Lean for Policy {
    const KIND: Kind = Kind::Policy;
    const RESOURCE: &'static str = "networkpolicies.networking.k8s.io";

    fn convert(self) -> Outcome {
        let tree = Tree { line: 0, value: Value::Map(vec![("spec".to_owned(), self.spec.into())]) };
        convert::policy(meta(self.metadata), &tree)
    }
}

fn meta(meta: ObjectMeta) -> Meta {
    Meta {
        name: meta.name.unwrap_or_default(),
        namespace: meta.namespace.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        labels: meta.labels.unwrap_or_default().into(),
        annotations: Annotations { audit: meta.annotations.and_then(|mut all| all.remove(AUDIT)) },
        created: meta.creation_timestamp.map_or(0, |time| time.0.as_second()),
        terminating: meta.deletion_timestamp.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_compiler::object::{Event, ObjectKey, Protocol};

    #[test]
    fn a_pod_of_the_api() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"},
                "creationTimestamp": "2026-11-20T10:00:00Z", "deletionTimestamp": "2026-11-20T10:01:00Z",
                "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"nodeName": "node1", "containers": [
                {"name": "a", "image": "i", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]}],
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always",
                        "ports": [{"containerPort": 53, "name": "dns", "protocol": "UDP"}]},
                    {"name": "i", "ports": [{"containerPort": 1, "name": "never"}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
        }))
        .expect("decodes");
        assert_eq!(pod.id(), Id { kind: Kind::Pod, key: ObjectKey::new("n", "p") });
        let Outcome::Good(Event::Pod(pod), notes) = pod.convert() else { panic!("not good") };
        assert!(notes.is_empty());
        assert_eq!(
            (pod.created, pod.terminating, pod.finished, pod.host_network),
            (1_795_168_800, true, false, false)
        );
        assert_eq!(pod.ips.len(), 2);
        let ports: Vec<_> = pod.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
        assert_eq!(ports, [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
    }

    #[test]
    fn whether_a_policy_is_audited_is_read_and_no_other_annotation() {
        let policy: Policy = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "annotations": {"weir.dev/audit": "true", "a": "b"}},
            "spec": {"podSelector": {}}
        }))
        .expect("decodes");
        let Outcome::Good(Event::Policy(policy), _) = policy.convert() else { panic!("not good") };
        assert_eq!(policy.audit.as_deref(), Some("true"));
    }

    #[test]
    fn of_a_namespaces_annotations_one_is_kept() {
        let namespace = |value: &str| -> Namespace {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n", "annotations": {
                "weir.dev/log-allowed": value, "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}))
            .expect("decodes")
        };
        let Outcome::Good(Event::Namespace(read), notes) = namespace("1/100").convert() else {
            panic!("not good")
        };
        assert_eq!((read.log_allowed, notes.len()), (100, 0));
        let Outcome::Good(Event::Namespace(read), notes) = namespace("1/1").convert() else {
            panic!("not good")
        };
        assert_eq!((read.log_allowed, notes.len()), (0, 1));
        assert_eq!(notes[0].path, "metadata.annotations[weir.dev/log-allowed]");
    }

    #[test]
    fn a_policy_of_a_newer_api_is_decoded_and_closes() {
        let policy: Policy = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"podSelector": {"matchLabels": {"a": "b"}}, "ingress": {"new": "shape"}}
        }))
        .expect("decodes");
        let Outcome::Closed(Event::Policy(policy), error) = policy.convert() else { panic!("not closed") };
        assert_eq!(policy.spec.pod_selector.match_labels.len(), 1);
        assert_eq!(policy.spec.policy_types, ["Ingress", "Egress"]);
        assert_eq!(error.path, "spec.ingress");
    }
}
