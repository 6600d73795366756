//! One thing that lint has found.

use weir_compiler::object::ObjectKey;

use super::codes::{Code, Severity};
use super::source::{Span, YamlPath};

/// A finding: what, where, why, and what to write instead.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) code: &'static Code,
    /// The policy that it is about.
    pub(crate) policy: Option<ObjectKey>,
    /// Where in the policy; empty: the object as a whole.
    pub(crate) path: YamlPath,
    /// Where in a file, if it came from one.
    pub(crate) span: Option<Span>,
    /// What is the matter, in one sentence.
    pub(crate) message: String,
    /// Why that matters, or what is there instead.
    pub(crate) why: Option<String>,
    /// What to write.
    pub(crate) help: Option<String>,
}

impl Finding {
    /// About a place in a policy.
    pub(crate) fn new(code: &'static Code, policy: &ObjectKey, path: YamlPath, message: String) -> Finding {
        Finding { code, policy: Some(policy.clone()), path, span: None, message, why: None, help: None }
    }

    /// With the reason.
    pub(crate) fn why(self, why: impl Into<String>) -> Finding {
        Finding { why: Some(why.into()), ..self }
    }

    /// With what to do.
    pub(crate) fn help(self, help: impl Into<String>) -> Finding {
        Finding { help: Some(help.into()), ..self }
    }

    pub(crate) fn severity(&self) -> Severity {
        self.code.severity
    }
}
