//! The cluster that works: namespaces of ten applications, their policies, and pods that are replaced.
//!
//! Each object is there twice: as the API server sends it (pods of about 4 KiB, as kubelets leave them), and as the
//! compiler has it, to say what kernels should hold.

use std::net::Ipv4Addr;

use weir_compiler::object::{
    Event, IngressRule, LabelSelector, Labels, Namespace, ObjectKey, Peer, Pod, Policy, PolicyPort,
    PolicySpec, PortRef, Protocol,
};

use super::api::VERSION;

/// Applications in each namespace.
pub(super) const APPS: usize = 10;

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Nodes.
    pub(super) nodes: usize,
    /// Namespaces; each has [`APPS`] policies.
    pub(super) namespaces: usize,
    /// Places for pods: in each there is one, or for a moment its successor, too.
    pub(super) places: usize,
}

/// A pod: who is in a place, counted over the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tenant {
    /// The place.
    pub(super) place: usize,
    /// Its number, which no other pod ever has.
    pub(super) number: u32,
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It is to be.
    Pending,
    /// It has a node.
    Bound,
    /// It has an address.
    Running,
    /// It is to end.
    Terminating,
}

impl Tenant {
    /// Of the cluster's pods when it begins, and of all that come later, the address.
    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0100 + self.number)
    }
}

pub(super) fn node(number: usize) -> String {
    format!("node-{number}")
}

impl Shape {
    fn namespace_of(self, place: usize) -> usize {
        place % self.namespaces
    }

    fn app_of(self, place: usize) -> usize {
        place / self.namespaces % APPS
    }

    /// The node of a place; those of one application are spread over half of all nodes.
    pub(super) fn on(self, place: usize) -> usize {
        (place * 7 + place / (self.namespaces * APPS) * 3) % self.nodes
    }

    /// Key, JSON and event of a namespace.
    pub(super) fn namespace(self, number: usize) -> (String, String, Event) {
        let name = format!("team-{number}");
        let json = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"{name}\",\"uid\":\"{name}\",\
             \"resourceVersion\":\"{VERSION}\",\"labels\":{{\"kubernetes.io/metadata.name\":\"{name}\"}}}},\
             \"spec\":{{}},\"status\":{{\"phase\":\"Active\"}}}}"
        );
        let labels = labels(&[("kubernetes.io/metadata.name", &name)]);
        (name.clone(), json, Event::Namespace(Namespace { name, labels, ..Namespace::default() }))
    }

    /// The policy of an application: its callers, of the same namespace or, for some, of all.
    pub(super) fn policy(self, number: usize) -> (String, String, Event) {
        let (namespace, app) = (format!("team-{}", number / APPS), number % APPS);
        let (name, caller) = (format!("app-{app}"), format!("app-{}", (app + 1) % APPS));
        let all = app % 5 == 0;
        let everywhere = if all { "\"namespaceSelector\":{}," } else { "" };
        let json = format!(
            "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{{\"name\":\"{name}\",\
             \"namespace\":\"{namespace}\",\"uid\":\"{namespace}-{name}\",\"resourceVersion\":\"{VERSION}\"}},\
             \"spec\":{{\"podSelector\":{{\"matchLabels\":{{\"app\":\"{name}\"}}}},\"policyTypes\":[\"Ingress\"],\
             \"ingress\":[{{\"from\":[{{{everywhere}\"podSelector\":{{\"matchLabels\":{{\"app\":\"{caller}\"}}}}}}],\
             \"ports\":[{{\"protocol\":\"TCP\",\"port\":8080}}]}}]}}}}"
        );
        let selector =
            |app: &str| LabelSelector { match_labels: labels(&[("app", app)]), ..LabelSelector::default() };
        let peer = Peer {
            namespace_selector: all.then(LabelSelector::default),
            pod_selector: Some(selector(&caller)),
            ..Peer::default()
        };
        let port = PolicyPort {
            protocol: Some("TCP".to_owned()),
            port: Some(PortRef::Number(8080)),
            ..PolicyPort::default()
        };
        let spec = PolicySpec {
            pod_selector: selector(&name),
            policy_types: vec!["Ingress".to_owned()],
            ingress: vec![IngressRule { from: vec![peer], ports: vec![port], ..IngressRule::default() }],
            ..PolicySpec::default()
        };
        (
            format!("{namespace}/{name}"),
            json,
            Event::Policy(Policy { namespace, name, spec, ..Policy::default() }),
        )
    }

    /// Key, JSON and event of a pod.
    pub(super) fn pod(self, tenant: Tenant, life: Life) -> (String, String, Event) {
        let app = format!("app-{}", self.app_of(tenant.place));
        let namespace = format!("team-{}", self.namespace_of(tenant.place));
        let name = format!("{app}-7c5ddbdf54-{:x}", tenant.number);
        let key = ObjectKey::new(namespace.clone(), name.clone());
        let here = node(self.on(tenant.place));
        let (address, running) = (tenant.address(), matches!(life, Life::Running | Life::Terminating));
        let spec_node =
            if life == Life::Pending { String::new() } else { format!("\"nodeName\":\"{here}\",") };
        let ending = if life == Life::Terminating {
            "\"deletionTimestamp\":\"2026-11-20T08:00:30Z\",\"deletionGracePeriodSeconds\":30,"
        } else {
            ""
        };
        let phase = if running { "Running" } else { "Pending" };
        let address_of = if running {
            format!("\"hostIP\":\"192.0.2.1\",\"podIP\":\"{address}\",\"podIPs\":[{{\"ip\":\"{address}\"}}],")
        } else {
            String::new()
        };
        let json = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\
             \"generateName\":\"{app}-7c5ddbdf54-\",\"namespace\":\"{namespace}\",\"uid\":\"{name}\",\
             \"resourceVersion\":\"{VERSION}\",\"creationTimestamp\":\"2026-11-20T08:00:00Z\",{ending}\
             \"labels\":{{\"app\":\"{app}\",\"pod-template-hash\":\"7c5ddbdf54\"}},{OWNERS}}},\
             \"spec\":{{{spec_node}{SPEC}}},\"status\":{{\"phase\":\"{phase}\",{address_of}{STATUS}}}}}"
        );
        let event = Event::Pod(Pod {
            key: key.clone(),
            uid: name,
            labels: labels(&[("app", &app), ("pod-template-hash", "7c5ddbdf54")]),
            node: (life != Life::Pending).then_some(here),
            ips: if running { vec![address.into()] } else { Vec::new() },
            host_network: false,
            finished: false,
            terminating: life == Life::Terminating,
            created: 0,
            ports: vec![weir_compiler::object::NamedPort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
        });
        (key.to_string(), json, event)
    }
}

/// Key and JSON of a pod on a node, with a label for its place.
pub(super) fn simple_pod(
    namespace: &str,
    name: &str,
    place: usize,
    on: usize,
    address: Ipv4Addr,
) -> (String, String) {
    let json = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"{namespace}\",\
         \"uid\":\"{name}\",\"resourceVersion\":\"{VERSION}\",\"labels\":{{\"place\":\"{place}\"}}}},\"spec\":\
         {{\"nodeName\":\"{}\",\"containers\":[]}},\"status\":{{\"phase\":\"Running\",\"podIP\":\"{address}\",\
         \"podIPs\":[{{\"ip\":\"{address}\"}}]}}}}",
        node(on)
    );
    (format!("{namespace}/{name}"), json)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

// What a controller reads over: as large as in a cluster, since reading it is what a controller mostly does.

const OWNERS: &str = r#""annotations":{"checksum/config":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","prometheus.io/scrape":"true"},"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"app-7c5ddbdf54","uid":"3f1c5a52-1f5e-4a3c-9d1e-000000000001","controller":true,"blockOwnerDeletion":true}],"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"2026-11-20T08:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:checksum/config":{},"f:prometheus.io/scrape":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"3f1c5a52-1f5e-4a3c-9d1e-000000000001\"}":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"main\"}":{".":{},"f:env":{".":{},"k:{\"name\":\"HOST\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:imagePullPolicy":{},"f:livenessProbe":{},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":8080,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:name":{},"f:protocol":{}}},"f:readinessProbe":{},"f:resources":{},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:terminationGracePeriodSeconds":{}}}},{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-11-20T08:00:05Z","fieldsType":"FieldsV1","subresource":"status","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Initialized\"}":{".":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:status":{},"f:type":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{},"f:startTime":{}}}}]"#;
const SPEC: &str = r#""containers":[{"name":"main","image":"example.com/shop/app:1.2.3","imagePullPolicy":"IfNotPresent","env":[{"name":"HOST","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"status.hostIP"}}},{"name":"LOG_LEVEL","value":"info"}],"ports":[{"name":"http","containerPort":8080,"protocol":"TCP"}],"livenessProbe":{"httpGet":{"path":"/healthz","port":"http","scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"readinessProbe":{"httpGet":{"path":"/readyz","port":"http","scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"resources":{"limits":{"memory":"256Mi"},"requests":{"cpu":"100m","memory":"128Mi"}},"volumeMounts":[{"name":"kube-api-access","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}],"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"volumes":[{"name":"kube-api-access","projected":{"defaultMode":420,"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}}]}}],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default","securityContext":{},"schedulerName":"default-scheduler","tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}],"priority":0,"enableServiceLinks":true,"preemptionPolicy":"PreemptLowerPriority""#;
const STATUS: &str = r#""conditions":[{"type":"PodReadyToStartContainers","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T08:00:02Z"},{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T08:00:00Z"},{"type":"Ready","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T08:00:05Z"},{"type":"ContainersReady","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T08:00:05Z"}],"startTime":"2026-11-20T08:00:00Z","containerStatuses":[{"name":"main","state":{"running":{"startedAt":"2026-11-20T08:00:04Z"}},"lastState":{},"ready":true,"restartCount":0,"image":"example.com/shop/app:1.2.3","imageID":"example.com/shop/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","started":true}],"qosClass":"Burstable""#;
