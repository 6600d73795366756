//! What has to be: Weir's evaluator over the objects that the suite made.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value;
use weir_compiler::flow::{Answer, End, Exempt, Flow};
use weir_compiler::object::{Event, ObjectKey, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Direction, NodeSlice};
use weir_compiler::verdict::Reason;
use weir_compiler::{Compiler, Scope};
use weir_source::Kind;
use weir_source::convert::{self, Outcome};
use weir_source::tree::Tree;

/// The verdict on a new connection, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Whether it has to pass.
    pub allowed: bool,
    /// What both ends say; of a denial only the end that denies.
    pub why: String,
}

struct PodInfo {
    key: ObjectKey,
    node: Option<String>,
    ips: Vec<IpAddr>,
    host_network: bool,
}

/// Objects, compiled.
pub struct Judge {
    pods: HashMap<ObjectKey, PodInfo>,
    slices: HashMap<String, NodeSlice>,
    nowhere: NodeSlice,
}

impl Judge {
    /// Of namespaces, pods and policies in the API's JSON.
    ///
    /// # Errors
    /// An object cannot be read: the suite made it, so that is a defect of the suite.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Result<Judge, String> {
        let mut compiler = Compiler::new(Scope::AllNodes);
        let mut pods = HashMap::new();
        for object in objects {
            let text = object["kind"].as_str().unwrap_or_default();
            let kind = Kind::ALL.into_iter().find(|k| k.as_str() == text);
            let kind = kind.ok_or_else(|| format!("an object of kind {text:?} cannot be judged"))?;
            let event = match convert::object(kind, &Tree::from(object.clone())) {
                Outcome::Good(event, _) | Outcome::Closed(event, _) => event,
                Outcome::Wrong(id, error) => {
                    return Err(format!(
                        "{} cannot be read: {error}",
                        id.map(|i| i.to_string()).unwrap_or_default()
                    ));
                }
            };
            if let Event::Pod(pod) = &event {
                let info = PodInfo {
                    key: pod.key.clone(),
                    node: pod.node.clone(),
                    ips: pod.ips.clone(),
                    host_network: pod.host_network,
                };
                pods.insert(pod.key.clone(), info);
            }
            compiler.apply([event]);
        }
        let slices =
            pods.values().filter_map(|p| p.node.clone()).map(|node| (node.clone(), compiler.slice(&node)));
        Ok(Judge { slices: slices.collect(), pods, nowhere: NodeSlice::default() })
    }

    /// Of a connection between two pods to an address of the second.
    pub fn judge(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Expectation {
        let (Some(source), Some(target)) = (self.pods.get(from), self.pods.get(to)) else {
            return Expectation { allowed: false, why: "one of the pods is not there".into() };
        };
        let Some(source_ip) = source.ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()) else {
            return Expectation { allowed: false, why: "the client has no address of that family".into() };
        };
        let flow =
            Flow::judge(self.end(source), self.end(target), *source_ip, address, L4::Port(protocol, port));
        let egress = self.say(&flow.egress, Direction::Egress, from);
        let ingress = self.say(&flow.ingress, Direction::Ingress, to);
        let why = match (flow.egress.allowed(), flow.ingress.allowed()) {
            (false, true) => egress,
            (true, false) => ingress,
            _ => format!("{egress}; {ingress}"),
        };
        Expectation { allowed: flow.allowed(), why }
    }

    fn end<'a>(&'a self, pod: &'a PodInfo) -> End<'a> {
        let slice = pod.node.as_ref().and_then(|node| self.slices.get(node)).unwrap_or(&self.nowhere);
        End { key: &pod.key, node: pod.node.as_deref(), host_network: pod.host_network, slice }
    }

    fn say(&self, answer: &Answer, direction: Direction, pod: &ObjectKey) -> String {
        let way = direction.as_str();
        match answer {
            Answer::Exempt(Exempt::Itself) => "a pod reaches itself".into(),
            Answer::Exempt(Exempt::HostNetwork) => {
                format!("{way}: {pod} is in its node's network, which no policy selects")
            }
            Answer::Exempt(Exempt::OwnNode) => format!("{way}: {pod}'s own node always reaches it"),
            Answer::Exempt(Exempt::ToOwnNode) => format!("{way}: {pod} reaches its own node"),
            Answer::Policy(verdict) => match &verdict.reason {
                Reason::NoSuchPod | Reason::NotIsolated => format!("{way}: no policy isolates {pod}"),
                Reason::Itself => "a pod reaches itself".into(),
                Reason::Clause(clause) => format!("{way}: {clause} allows it"),
                Reason::NoClause(policies) => {
                    let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
                    format!("{way}: {pod} is isolated by {} and no clause allows it", names.join(", "))
                }
            },
        }
    }
}
