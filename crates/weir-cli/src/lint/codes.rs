//! What lint knows to look for. Codes are stable: one that goes is never given to something else.

use std::str::FromStr;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing; often what is wanted.
    Info,
    /// It hardly does what its author wants.
    Warning,
    /// It cannot be enforced as it is written: an API server refuses it, and Weir closes it.
    Error,
}

impl Severity {
    /// As it is printed.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing to look for; `docs/lint.md` has a section on each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// `WEIR` and three digits.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// In a few words, without a full stop.
    pub(crate) title: &'static str,
}

macro_rules! codes {
    ($($name:ident $severity:ident $title:literal)*) => {
        $(pub(crate) static $name: Code =
            Code { id: stringify!($name), severity: Severity::$severity, title: $title };)*
        /// All of them, sorted.
        pub(crate) static CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    WEIR001 Error "a file or an object cannot be read"
    WEIR002 Warning "an object is there twice"
    WEIR003 Error "a field that NetworkPolicy does not have"
    WEIR004 Error "policyTypes has an unknown value"
    WEIR005 Error "a selector that no label can satisfy, or that cannot be evaluated"
    WEIR006 Error "not a CIDR"
    WEIR007 Error "except is not a part of its cidr"
    WEIR008 Error "a peer that names nobody, or two kinds of peers at once"
    WEIR009 Error "a port or protocol that cannot be"
    WEIR010 Error "a name or label that no object can have"
    WEIR011 Error "an annotation that Weir cannot read"
    WEIR012 Error "more than the budget of a policy or namespace"
    WEIR101 Warning "rules of a direction that policyTypes leaves out"
    WEIR102 Warning "egress: [] without policyTypes denies nothing"
    WEIR103 Info "a rule that allows everything"
    WEIR104 Warning "an empty list allows all, not nothing"
    WEIR105 Warning "two peers where one with both selectors may be meant"
    WEIR106 Warning "a CIDR that programs read in different ways"
    WEIR107 Warning "a CIDR with bits behind its prefix"
    WEIR108 Warning "DNS over TCP only"
    WEIR109 Warning "a label that changes with every rollout"
    WEIR110 Warning "addresses that no packet has"
    WEIR111 Info "a rule that adds nothing"
    WEIR112 Info "a policy that adds nothing"
    WEIR113 Info "a policy that is audited, not enforced"
    WEIR114 Warning "an annotation of Weir's that says nothing"
    WEIR201 Warning "a policy that selects no pod"
    WEIR202 Warning "a peer that no pod matches"
    WEIR203 Warning "a namespaceSelector that no namespace matches"
    WEIR204 Warning "a value that no label has"
    WEIR205 Warning "a port that no container has"
    WEIR206 Warning "a port name that no pod resolves"
    WEIR207 Warning "egress without DNS"
    WEIR208 Warning "DNS without the cache on the node"
    WEIR209 Warning "an ipBlock over addresses of pods"
    WEIR210 Warning "an ipBlock over addresses of Services"
    WEIR211 Warning "a policy that selects pods in the host's network"
    WEIR212 Warning "a peer whose pods are in the host's network"
    WEIR213 Warning "pods on Windows nodes"
    WEIR214 Warning "one address family in a cluster of two"
    WEIR215 Info "egress without the API server"
    WEIR216 Warning "what one end allows, the other denies"
}

impl FromStr for &'static Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.trim().to_ascii_uppercase();
        let found = CODES.iter().copied().find(|code| code.id == wanted);
        found.ok_or_else(|| format!("there is no {text:?}; codes are WEIR001 to WEIR216, see docs/lint.md"))
    }
}
