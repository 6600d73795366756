//! A world: three namespaces with pods in them, in which cases follow one another.
//!
//! ```text
//!   x  ┌ a  node 1     each pod listens on 8080 and 8081 (TCP, UDP on both);
//!      ├ b  node 2     labels: pod=a, ns of its namespace: ns=x
//!      └ c  node 1
//!   y  ┌ a  node 2
//!      └ b  node 1
//!   z  ─ a  node 2
//! ```
//!
//! Cases write `x/a`; what is made is called `conformance-SUFFIX-0-x/a`, so that runs and worlds do not meet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use weir_compiler::object::{ObjectKey, Protocol};

use crate::probe::Client;

/// The label on each namespace that the suite made, with the run's suffix.
pub const LABEL: &str = "conformance.weir.dev/run";
/// Begins the name of each of them.
pub const PREFIX: &str = "conformance-";

/// A port that pods of a world serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// What it is called in reports: `8080/TCP`.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

impl Port {
    /// A TCP port.
    pub const fn tcp(number: u16) -> Port {
        Port { protocol: Protocol::Tcp, number }
    }
    /// A UDP port.
    pub const fn udp(number: u16) -> Port {
        Port { protocol: Protocol::Udp, number }
    }
    /// An SCTP port.
    pub const fn sctp(number: u16) -> Port {
        Port { protocol: Protocol::Sctp, number }
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// The first of a pod's two servers.
pub const FIRST: u16 = 8080;
/// The second.
pub const SECOND: u16 = 8081;
/// Where pods in their nodes' network listen: this and the ports after it.
pub const HOST: u16 = 38080;
/// Where SCTP is served, if the nodes know it.
pub const SCTP: u16 = 8082;

/// A pod of a world, in the words of cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// `x`
    pub namespace: String,
    /// `a`
    pub name: String,
    /// Which of the nodes, from 0 on.
    pub node: usize,
    /// It lives in its node's network.
    pub host_network: bool,
    /// Labels besides `pod`.
    pub labels: BTreeMap<String, String>,
}

/// Where things of a world are.
#[derive(Debug, Clone)]
pub struct World {
    /// The run's.
    pub suffix: String,
    /// Which one of the run's.
    pub index: usize,
    /// The nodes in use.
    pub nodes: Vec<String>,
    /// Families that pods have addresses of: true is IPv4.
    pub families: Vec<bool>,
    /// SCTP is served.
    pub sctp: bool,
    /// agnhost.
    pub image: String,
    /// All objects as the API server has them, by kind, namespace and name.
    pub objects: BTreeMap<(String, String, String), Value>,
}

/// The pods that every world begins with.
pub const PODS: [(&str, &str, usize); 6] =
    [("x", "a", 0), ("x", "b", 1), ("x", "c", 0), ("y", "a", 1), ("y", "b", 0), ("z", "a", 1)];
/// The namespaces.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];

impl World {
    /// The name that the API knows a namespace by.
    pub fn namespace(&self, alias: &str) -> String {
        format!("{PREFIX}{}-{}-{alias}", self.suffix, self.index)
    }

    /// The key of a pod that is called `x/a` here.
    pub fn key(&self, alias: &str) -> ObjectKey {
        let (namespace, name) = alias.split_once('/').unwrap_or((alias, ""));
        ObjectKey::new(self.namespace(namespace), name)
    }

    /// Puts the short names back where the API's are.
    pub fn shorten(&self, text: &str) -> String {
        text.replace(&format!("{PREFIX}{}-{}-", self.suffix, self.index), "")
    }

    /// A namespace's manifest.
    pub fn namespace_object(&self, alias: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": self.namespace(alias),
                "labels": {
                    "ns": alias, LABEL: self.suffix,
                    "pod-security.kubernetes.io/enforce": "privileged",
                },
            },
        })
    }

    /// The pods that a world begins with.
    pub fn pods() -> Vec<PodPlan> {
        let plan = |(namespace, name, node): (&str, &str, usize)| PodPlan {
            namespace: namespace.into(),
            name: name.into(),
            node,
            host_network: false,
            labels: BTreeMap::new(),
        };
        PODS.into_iter().map(plan).collect()
    }

    /// The name of the node that a pod goes to.
    pub fn node(&self, index: usize) -> &str {
        &self.nodes[index % self.nodes.len()]
    }

    /// A pod's manifest.
    pub fn pod_object(&self, pod: &PodPlan) -> Value {
        let mut labels = json!({"pod": pod.name, LABEL: self.suffix});
        for (key, value) in &pod.labels {
            labels[key] = json!(value);
        }
        let serve = |name: &str, port: u16, names: (&str, &str), sctp: bool| {
            let mut args =
                vec!["netexec".to_owned(), format!("--http-port={port}"), format!("--udp-port={port}")];
            let mut ports = vec![
                json!({"containerPort": port, "name": names.0, "protocol": "TCP"}),
                json!({"containerPort": port, "name": names.1, "protocol": "UDP"}),
            ];
            if sctp {
                args.push(format!("--sctp-port={SCTP}"));
                ports.push(json!({"containerPort": SCTP, "name": "sctp", "protocol": "SCTP"}));
            }
            json!({
                "name": name, "image": self.image, "imagePullPolicy": "IfNotPresent", "args": args, "ports": ports,
                "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 2, "failureThreshold": 5, "timeoutSeconds": 5},
                "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}},
            })
        };
        if let Some(port) = self.host_port(&format!("{}/{}", pod.namespace, pod.name)) {
            return self.host_pod_object(pod, port, &labels);
        }
        // z's pods call their ports the other way round (N55, N56)
        let (web, alt) = if pod.namespace == "z" { ("alt", "web") } else { ("web", "alt") };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.namespace(&pod.namespace), "name": pod.name, "labels": labels},
            "spec": {
                "hostname": format!("{}-{}", pod.namespace, pod.name),
                "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "automountServiceAccountToken": false,
                "dnsPolicy": "Default",
                "affinity": self.on(pod.node),
                "containers": [
                    serve("one", FIRST, (web, "dns"), self.sctp), serve("two", SECOND, (alt, "dns-alt"), false),
                ],
            },
        })
    }

    fn host_pod_object(&self, pod: &PodPlan, port: u16, labels: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.namespace(&pod.namespace), "name": pod.name, "labels": labels},
            "spec": {
                "hostNetwork": true, "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
                "automountServiceAccountToken": false, "dnsPolicy": "Default",
                "affinity": self.on(pod.node),
                "containers": [{
                    "name": "one", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "args": ["netexec", format!("--http-port={port}"), "--udp-port=-1"],
                }],
            },
        })
    }

    /// The affinity of a pod to a node.
    pub fn on(&self, node: usize) -> Value {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [self.node(node)]}]},
        ]}}})
    }

    /// A policy's manifest; `namespace` is `x`, `y` or `z`.
    pub fn policy_object(&self, namespace: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": self.namespace(namespace), "name": name},
            "spec": spec,
        })
    }

    /// Takes in an object as the API server has it now.
    pub fn keep(&mut self, mut object: Value, kind: &str) {
        object["kind"] = json!(kind); // which items of lists lack
        self.objects.insert(key_of(&object), object);
    }

    /// Forgets an object.
    pub fn forget(&mut self, kind: &str, namespace: &str, name: &str) {
        self.objects.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    /// Names of the pods that are there, as cases write them, in order.
    pub fn pod_names(&self) -> Vec<String> {
        let pods = self.objects.values().filter(|o| o["kind"] == "Pod");
        pods.map(|o| {
            self.shorten(&format!("{}/{}", text(o, "/metadata/namespace"), text(o, "/metadata/name")))
        })
        .collect()
    }

    /// The object of a pod.
    pub fn pod(&self, alias: &str) -> Option<&Value> {
        let key = self.key(alias);
        self.objects.get(&("Pod".to_owned(), key.namespace, key.name))
    }

    /// A pod's addresses.
    pub fn addresses(&self, alias: &str) -> Vec<IpAddr> {
        let Some(pod) = self.pod(alias) else { return Vec::new() };
        let ips = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
        ips.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect()
    }

    /// The name of the node of a pod.
    pub fn node_of(&self, alias: &str) -> Option<&str> {
        self.pod(alias)?.pointer("/spec/nodeName")?.as_str()
    }

    /// `ipBlock` peers of a pod's addresses, one for each family.
    pub fn blocks(&self, alias: &str) -> Vec<Value> {
        let block = |ip: IpAddr| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}});
        self.addresses(alias).into_iter().map(block).collect()
    }

    /// `ipBlock` peers that are everything but these pods, one for each family.
    pub fn all_but(&self, aliases: &[&str]) -> Vec<Value> {
        let except = |v4: bool| -> Vec<String> {
            let ips = aliases.iter().flat_map(|a| self.addresses(a)).filter(|ip| ip.is_ipv4() == v4);
            ips.map(|ip| format!("{ip}/{}", if v4 { 32 } else { 128 })).collect()
        };
        let block = |v4: &bool| json!({"ipBlock": {"cidr": if *v4 { "0.0.0.0/0" } else { "::/0" }, "except": except(*v4)}});
        self.families.iter().map(block).collect()
    }

    /// The ports that a pod is asked on.
    pub fn ports_of(&self, alias: &str) -> Vec<Port> {
        if let Some(port) = self.host_port(alias) {
            return vec![Port::tcp(port)];
        }
        let mut ports = vec![Port::tcp(FIRST), Port::tcp(SECOND), Port::udp(FIRST)];
        if self.sctp {
            ports.push(Port::sctp(SCTP));
        }
        ports
    }

    /// Where agnhost is asked to ask.
    pub fn client(&self, alias: &str) -> Client {
        let key = self.key(alias);
        Client { namespace: key.namespace, pod: key.name, port: self.host_port(alias).unwrap_or(FIRST) }
    }

    /// The pods in their nodes' network, one on each of the first two nodes.
    pub fn host_pods(&self) -> Vec<PodPlan> {
        let plan = |node: usize| PodPlan {
            namespace: "z".into(),
            name: format!("host{node}"),
            node,
            host_network: true,
            labels: BTreeMap::new(),
        };
        (0..self.nodes.len().min(2)).map(plan).collect()
    }

    /// The one port of a pod in its node's network; each has its own, for nodes are shared.
    fn host_port(&self, alias: &str) -> Option<u16> {
        let number: u16 = alias.strip_prefix("z/host")?.parse().ok()?;
        Some(HOST + 2 * self.index as u16 + number)
    }
}

/// Kind, namespace and name.
fn key_of(object: &Value) -> (String, String, String) {
    let namespace = text(object, "/metadata/namespace");
    (text(object, "/kind").to_owned(), namespace.to_owned(), text(object, "/metadata/name").to_owned())
}

/// The text at a JSON pointer, or none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
