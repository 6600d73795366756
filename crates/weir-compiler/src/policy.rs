//! What a NetworkPolicy says, clause by clause, and what of it cannot be enforced.
//!
//! A clause that cannot be read matches nothing, and a policy of which something on the outside
//! cannot be read allows nothing, in both directions: closed for the pods that it selects, and of
//! no harm to other policies. Each such place is a [`Problem`].

use std::fmt::{self, Display};
use std::sync::Arc;

use crate::budget::Cost;
use crate::cidr::{Cidr, CidrSet};
use crate::object::{
    AUDIT, IpBlock, LabelSelector, Labels, ObjectKey, Peer, Policy, PolicyPort, PortRef, Protocol,
    UnknownFields,
};
use crate::selector::Selector;
use crate::slice::Direction;

/// The label that every namespace carries, with its name as value (N29).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A NetworkPolicy as read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Which pods of its namespace it selects.
    pub subject: Selector,
    /// It is not enforced: what it would change is told (U29).
    pub audit: bool,
    /// What it says.
    pub clauses: Arc<PolicyClauses>,
    /// When it was created: the older ones of a namespace come first where there are too many.
    pub created: i64,
    pub(crate) cost: Cost,
    /// What of it cannot be enforced.
    pub problems: Vec<Problem>,
}

/// The rules of a policy. `None`: the policy says nothing of this direction (N2, N9).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyClauses {
    /// The rules of `spec.ingress`, by index.
    pub ingress: Option<Vec<RuleClause>>,
    /// The rules of `spec.egress`, by index.
    pub egress: Option<Vec<RuleClause>>,
}

impl PolicyClauses {
    /// The rules of a direction.
    pub fn rules(&self, direction: Direction) -> Option<&[RuleClause]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One rule: it matches if some peer and some port do (N15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleClause {
    /// By index of `from` or `to`. `None`: any peer (N13).
    pub peers: Option<Vec<PeerClause>>,
    /// By index of `ports`. `None`: all traffic (N14).
    pub ports: Option<Vec<PortClause>>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerClause {
    /// Pods by labels (N20 to N23).
    Pods {
        /// On the namespace's labels.
        namespaces: Selector,
        /// On the pod's labels.
        pods: Selector,
    },
    /// Addresses, the exceptions taken out (N41).
    Cidrs(Arc<CidrSet>),
    /// Nothing: it cannot be read.
    Nothing,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortClause {
    /// First and last port, inclusive.
    Range(Protocol, u16, u16),
    /// A port by name (N54 to N60).
    Named(String, Protocol),
    /// Nothing: it cannot be read.
    Nothing,
}

/// Something in a policy that cannot be enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the object, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// Why it cannot be enforced.
    pub reason: String,
    /// What is done instead.
    pub effect: Effect,
}

/// How Weir stays closed where a policy cannot be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The clause at the path matches nothing; the rest of the policy holds.
    ClauseMatchesNothing,
    /// The policy isolates the pods that it selects in both directions and allows nothing.
    PolicyAllowsNothing,
    /// The policy isolates the pods that it selects, as it says, and allows nothing.
    BeyondBudget,
    /// The policy is enforced, although it may have been meant to be audited.
    PolicyIsEnforced,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::ClauseMatchesNothing => "it matches nothing",
            Effect::PolicyAllowsNothing => {
                "the policy isolates the pods that it selects in both directions and allows nothing"
            }
            Effect::BeyondBudget => "the policy isolates the pods that it selects and allows nothing",
            Effect::PolicyIsEnforced => "the policy is enforced",
        };
        write!(f, "{}: {}; {effect}", self.path, self.reason)
    }
}

impl ReadPolicy {
    /// Reads a policy; what cannot be read is closed and listed.
    pub fn read(policy: &Policy) -> ReadPolicy {
        let mut reader = Reader { namespace: &policy.namespace, problems: Vec::new() };
        let spec = &policy.spec;
        let audit = policy.is_audited();
        reader.annotation(policy.audit.as_deref());
        let subject = reader.subject(&spec.pod_selector);
        let types = reader.types(&spec.policy_types, !spec.egress.is_empty());
        reader.outer_fields("spec", &spec.unknown);
        let ingress = spec.ingress.iter().map(|r| WrittenRule {
            list: "from",
            peers: &r.from,
            ports: &r.ports,
            unknown: &r.unknown,
        });
        let egress = spec.egress.iter().map(|r| WrittenRule {
            list: "to",
            peers: &r.to,
            ports: &r.ports,
            unknown: &r.unknown,
        });
        let mut clauses = PolicyClauses {
            ingress: types.0.then(|| reader.rules("ingress", ingress)),
            egress: types.1.then(|| reader.rules("egress", egress)),
        };
        if reader.problems.iter().any(|p| p.effect == Effect::PolicyAllowsNothing) {
            clauses = PolicyClauses { ingress: Some(Vec::new()), egress: Some(Vec::new()) };
        }
        let mut read = ReadPolicy {
            key: policy.key(),
            subject,
            audit,
            clauses: Arc::new(clauses),
            created: policy.created,
            cost: Cost::default(),
            problems: reader.problems,
        };
        read.cost = Cost::of(spec, &read);
        read
    }
}

/// A rule as written, of either direction.
struct WrittenRule<'a> {
    /// The name of its list of peers.
    list: &'static str,
    peers: &'a [Peer],
    ports: &'a [PolicyPort],
    unknown: &'a UnknownFields,
}

/// Where something is in the object. It becomes text only if there is a problem.
type Path<'a> = fmt::Arguments<'a>;

struct Reader<'a> {
    namespace: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn clause(&mut self, path: impl Display, reason: impl Into<String>) {
        let effect = Effect::ClauseMatchesNothing;
        self.problems.push(Problem { path: path.to_string(), reason: reason.into(), effect });
    }

    fn policy(&mut self, path: impl Display, reason: impl Into<String>) {
        let effect = Effect::PolicyAllowsNothing;
        self.problems.push(Problem { path: path.to_string(), reason: reason.into(), effect });
    }

    /// U29: whether the policy is audited must be readable.
    fn annotation(&mut self, audit: Option<&str>) {
        let Some(other) = audit.filter(|text| !["true", "false"].contains(text)) else { return };
        self.problems.push(Problem {
            path: format!("metadata.annotations[{AUDIT}]"),
            reason: format!("{other:?} is neither \"true\" nor \"false\""),
            effect: Effect::PolicyIsEnforced,
        });
    }

    /// N101: a field of a newer API may restrict what is around it.
    fn outer_fields(&mut self, path: &str, unknown: &UnknownFields) {
        for field in unknown.keys() {
            self.policy(format_args!("{path}.{field}"), "unknown field");
        }
    }

    fn fields(&mut self, path: Path<'_>, unknown: &UnknownFields) -> bool {
        for field in unknown.keys() {
            self.clause(format_args!("{path}.{field}"), "unknown field");
        }
        unknown.is_empty()
    }

    /// Requirements that cannot be read are left out, so that more pods are selected, not fewer.
    fn subject(&mut self, selector: &LabelSelector) -> Selector {
        let (selector, unreadable) = Selector::read(selector);
        for (path, reason) in unreadable {
            self.policy(format!("spec.podSelector.{path}"), reason);
        }
        selector
    }

    /// N8, N9, N10: whether the policy is of type Ingress, and of type Egress.
    fn types(&mut self, types: &[String], has_egress: bool) -> (bool, bool) {
        if types.is_empty() {
            return (true, has_egress);
        }
        for (i, t) in types.iter().enumerate() {
            if t != "Ingress" && t != "Egress" {
                self.policy(format!("spec.policyTypes[{i}]"), format!("{t:?} is not Ingress or Egress"));
            }
        }
        (types.iter().any(|t| t == "Ingress"), types.iter().any(|t| t == "Egress"))
    }

    fn rules<'w>(&mut self, field: &str, rules: impl Iterator<Item = WrittenRule<'w>>) -> Vec<RuleClause> {
        let mut read = |(i, rule): (usize, WrittenRule<'w>)| {
            let path = format_args!("spec.{field}[{i}]");
            let known = self.fields(path, rule.unknown);
            let peers = rule.peers.iter().enumerate();
            let peers: Vec<PeerClause> =
                peers.map(|(i, p)| self.peer(format_args!("{path}.{}[{i}]", rule.list), p)).collect();
            let ports = rule.ports.iter().enumerate();
            let ports: Vec<PortClause> =
                ports.map(|(i, p)| self.port(format_args!("{path}.ports[{i}]"), p)).collect();
            if !known {
                return RuleClause { peers: Some(vec![PeerClause::Nothing]), ports: None };
            }
            RuleClause {
                peers: (!peers.is_empty()).then_some(peers),
                ports: (!ports.is_empty()).then_some(ports),
            }
        };
        rules.enumerate().map(&mut read).collect()
    }

    fn peer(&mut self, path: Path<'_>, peer: &Peer) -> PeerClause {
        let known = self.fields(path, &peer.unknown);
        let clause = match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => self.ip_block(format_args!("{path}.ipBlock"), block),
            (Some(_), _, _) => {
                self.clause(path, "ipBlock and selectors exclude each other");
                None
            }
            (None, None, None) => {
                if known {
                    self.clause(path, "neither ipBlock nor a selector is set");
                }
                None // N24: never everything
            }
            (None, namespaces, pods) => {
                let namespaces = match namespaces {
                    Some(s) => self.peer_selector(format_args!("{path}.namespaceSelector"), s),
                    None => Some(Selector::label(NAMESPACE_NAME_LABEL, self.namespace)), // N20
                };
                let pods = match pods {
                    Some(s) => self.peer_selector(format_args!("{path}.podSelector"), s),
                    None => Some(Selector::everything()), // N21
                };
                namespaces.zip(pods).map(|(namespaces, pods)| PeerClause::Pods { namespaces, pods })
            }
        };
        clause.filter(|_| known).unwrap_or(PeerClause::Nothing)
    }

    fn peer_selector(&mut self, path: Path<'_>, selector: &LabelSelector) -> Option<Selector> {
        let (selector, unreadable) = Selector::read(selector);
        let readable = unreadable.is_empty();
        for (at, reason) in unreadable {
            self.clause(format_args!("{path}.{at}"), reason);
        }
        readable.then_some(selector)
    }

    fn ip_block(&mut self, path: Path<'_>, block: &IpBlock) -> Option<PeerClause> {
        let known = self.fields(path, &block.unknown);
        let cidr = self.cidr(format_args!("{path}.cidr"), &block.cidr);
        let whole = CidrSet::from_cidrs(cidr);
        let mut excepts = Vec::with_capacity(block.except.len());
        for (i, text) in block.except.iter().enumerate() {
            let path = format_args!("{path}.except[{i}]");
            let except = self.cidr(path, text)?;
            // N42: an API server refuses it; here it shows that something else was meant
            if cidr.is_some() && !whole.covers(&CidrSet::from_cidrs([except])) {
                self.clause(path, format!("{text:?} is not within {:?}", block.cidr));
                return None;
            }
            excepts.push(except);
        }
        let rest = whole.minus(&CidrSet::from_cidrs(excepts));
        (known && cidr.is_some()).then(|| PeerClause::Cidrs(Arc::new(rest)))
    }

    fn cidr(&mut self, path: Path<'_>, text: &str) -> Option<Cidr> {
        let cidr = Cidr::parse(text);
        if cidr.is_none() {
            self.clause(path, format!("{text:?} is not a CIDR such as 10.0.0.0/8 or fd00::/8"));
        }
        cidr
    }

    fn port(&mut self, path: Path<'_>, port: &PolicyPort) -> PortClause {
        self.port_or_why(path, port).unwrap_or_else(|reason| {
            if !reason.is_empty() {
                self.clause(path, reason);
            }
            PortClause::Nothing
        })
    }

    fn port_or_why(&mut self, path: Path<'_>, port: &PolicyPort) -> Result<PortClause, String> {
        if !self.fields(path, &port.unknown) {
            return Err(String::new());
        }
        let protocol = match &port.protocol {
            Some(text) => text.parse::<Protocol>().map_err(|e| e.to_string())?,
            None => Protocol::Tcp, // N50
        };
        let number = |n: i64, what: &str| match u16::try_from(n) {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{what} {n} is not in 1 to 65535")),
        };
        match (&port.port, port.end_port) {
            (None, None) => Ok(PortClause::Range(protocol, 0, u16::MAX)), // N51
            (None, Some(_)) => Err("endPort needs port".to_owned()),
            (Some(PortRef::Name(_)), Some(_)) => Err("endPort needs a port by number".to_owned()), // N61
            (Some(PortRef::Name(name)), None) => Ok(PortClause::Named(name.clone(), protocol)),
            (Some(PortRef::Number(n)), end) => {
                let first = number(*n, "port")?;
                let last = end.map_or(Ok(first), |e| number(e, "endPort"))?;
                if last < first {
                    return Err(format!("endPort {last} is below port {first}"));
                }
                Ok(PortClause::Range(protocol, first, last))
            }
        }
    }
}

/// A namespace's labels as selectors see them: with its name, whatever the user set (N29).
pub fn namespace_labels(name: &str, labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
    labels
}
