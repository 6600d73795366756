//! The Kubernetes objects that the compiler reads, cut down to the fields in use.
//!
//! The policy types have the shape of `networking.k8s.io/v1` (semantics N20 to N62) and
//! deserialise from its JSON or YAML; absent, `null` and empty lists are equal wherever the
//! API makes them equal (N6, N11, N13, N14). Nothing is defaulted or judged here: values
//! stay as they were written, and fields that this version does not know are kept by name,
//! so that the compiler can fail closed on them (N101).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

/// What a source tells the compiler: an object as it is now, or that it is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A namespace was added or changed.
    Namespace(Namespace),
    /// The namespace of this name is gone.
    NamespaceGone(String),
    /// A pod was added or changed.
    Pod(Pod),
    /// The pod of this name is gone.
    PodGone(ObjectKey),
    /// A NetworkPolicy was added or changed.
    Policy(Policy),
    /// The NetworkPolicy of this name is gone.
    PolicyGone(ObjectKey),
}

/// Namespace and name of a namespaced object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

pub use crate::labels::Labels;

/// A namespace. Its label `kubernetes.io/metadata.name` is forced by the compiler (N29).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Namespace {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`
    pub labels: Labels,
    /// `metadata.deletionTimestamp` is set (N32, N79).
    pub terminating: bool,
    /// The annotation `weir.dev/log-allowed`: which new connections of its pods that policies allow are told of.
    /// 0: none, 1: all, N: one of N.
    pub log_allowed: u32,
}

/// A pod, as far as policy is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty in hand-written manifests.
    pub uid: String,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// `status.podIPs` (N74).
    pub ips: Vec<IpAddr>,
    /// `spec.hostNetwork` (N70).
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed (N75).
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set (N76).
    pub terminating: bool,
    /// `metadata.creationTimestamp`, seconds since 1970: the newest owner of an address wins (N77).
    pub created: i64,
    /// The named ports of containers and restartable init containers (N60, U15).
    pub ports: Vec<NamedPort>,
}

/// A port that a container declares by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// `ports[].name`
    pub name: String,
    /// `ports[].protocol`, TCP if absent.
    pub protocol: Protocol,
    /// `ports[].containerPort`
    pub port: u16,
}

/// The protocols that have ports (N50).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// All of them, in the order in which they are printed.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// As the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no protocol that NetworkPolicy knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol {0:?} is not TCP, UDP or SCTP")]
pub struct UnknownProtocol(pub String);

impl std::str::FromStr for Protocol {
    type Err = UnknownProtocol;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Protocol::ALL.into_iter().find(|p| p.as_str() == s).ok_or_else(|| UnknownProtocol(s.to_owned()))
    }
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: i64,
    /// The annotation [`AUDIT`], as written (U29).
    pub audit: Option<String>,
    /// `spec`
    pub spec: PolicySpec,
}

/// The annotation of policies that are not enforced but audited (U29): what they would change is told.
pub const AUDIT: &str = "weir.dev/audit";

impl Policy {
    /// Its annotation says so (U29). What is not plainly meant to be audited is enforced.
    pub fn is_audited(&self) -> bool {
        self.audit.as_deref() == Some("true")
    }

    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }
}

/// Fields that this version does not know, by name.
pub type UnknownFields = BTreeMap<String, serde::de::IgnoredAny>;

/// `NetworkPolicySpec`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Which pods of the policy's namespace it selects; absent, null and empty: all (N6).
    #[serde(default, deserialize_with = "null_is_default")]
    pub pod_selector: LabelSelector,
    /// As written; defaulted by the compiler (N8).
    #[serde(default, deserialize_with = "null_is_default")]
    pub policy_types: Vec<String>,
    /// Ingress rules.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ingress: Vec<IngressRule>,
    /// Egress rules.
    #[serde(default, deserialize_with = "null_is_default")]
    pub egress: Vec<EgressRule>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `NetworkPolicyIngressRule`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct IngressRule {
    /// Empty: any peer (N13).
    #[serde(default, deserialize_with = "null_is_default")]
    pub from: Vec<Peer>,
    /// Empty: all ports of all protocols (N14).
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `NetworkPolicyEgressRule`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct EgressRule {
    /// Empty: any peer (N13).
    #[serde(default, deserialize_with = "null_is_default")]
    pub to: Vec<Peer>,
    /// Empty: all ports of all protocols (N14).
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<PolicyPort>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `NetworkPolicyPeer`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Absent is not empty (N23).
    #[serde(default)]
    pub pod_selector: Option<LabelSelector>,
    /// Absent is not empty (N23).
    #[serde(default)]
    pub namespace_selector: Option<LabelSelector>,
    /// Excludes the other two (N24).
    #[serde(default)]
    pub ip_block: Option<IpBlock>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `IPBlock`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct IpBlock {
    /// As written (N44, N45).
    #[serde(default, deserialize_with = "null_is_default")]
    pub cidr: String,
    /// Taken out of `cidr`, and of nothing else (N41).
    #[serde(default, deserialize_with = "null_is_default")]
    pub except: Vec<String>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `NetworkPolicyPort`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyPort {
    /// Absent: TCP (N50).
    #[serde(default)]
    pub protocol: Option<String>,
    /// Absent: all ports of the protocol (N51).
    #[serde(default)]
    pub port: Option<PortRef>,
    /// Inclusive (N61).
    #[serde(default)]
    pub end_port: Option<i64>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `IntOrString`: a port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a port is a number or a name")]
pub enum PortRef {
    /// A number.
    Number(i64),
    /// The name of a container port (N54 to N60).
    Name(String),
}

/// `metav1.LabelSelector`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Each of them must be there with this value.
    #[serde(default, deserialize_with = "null_is_default")]
    pub match_labels: Labels,
    /// Each of them must hold.
    #[serde(default, deserialize_with = "null_is_default")]
    pub match_expressions: Vec<LabelRequirement>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// `metav1.LabelSelectorRequirement`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct LabelRequirement {
    /// The label's key.
    #[serde(default)]
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist` (N27).
    #[serde(default)]
    pub operator: String,
    /// For `In` and `NotIn`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub values: Vec<String>,
    /// Fields of a newer API.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
