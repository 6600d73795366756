//! What lines on allowed connections have besides.

use serde::Deserialize;

use crate::term::escape;

/// docs/denied-connections.md says what they mean.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Fields {
    #[serde(default)]
    pub(crate) isolated: bool,
    pub(crate) clause: Option<Clause>,
    #[serde(default)]
    pub(crate) connections: u64,
    #[serde(default)]
    pub(crate) sampled: u64,
    #[serde(default)]
    others: bool,
}

/// A place in a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Clause {
    pub(crate) policy: String,
    pub(crate) direction: String,
    pub(crate) rule: usize,
    pub(crate) peer: Option<usize>,
    pub(crate) port: Option<usize>,
}

impl Fields {
    /// How many connections the line stands for; `true`: that is an estimate.
    pub(crate) fn estimate(&self) -> (u64, bool) {
        (self.connections.saturating_mul(self.sampled.max(1)), self.sampled > 1)
    }

    /// Why they passed at the end of `pod`, and how many they were.
    pub(super) fn text(&self, pod: &str) -> String {
        let why = match &self.clause {
            Some(clause) => format!("by {}", clause.text()),
            None if self.isolated => "by one of several clauses".to_owned(),
            None => format!("no policy isolates {pod}"),
        };
        let others = if self.others { ", of several peers" } else { "" };
        let many = match (self.connections, self.sampled) {
            (1, 0 | 1) => String::new(),
            (n, 0 | 1) => format!(", {n} connections"),
            (n, sampled) => {
                let n = n.saturating_mul(sampled);
                format!(", about {n} connections (one of {sampled} is told)")
            }
        };
        format!("{why}{others}{many}")
    }
}

impl Clause {
    fn text(&self) -> String {
        let mut text = format!("{} {}[{}]", escape(&self.policy), escape(&self.direction), self.rule);
        if let Some(peer) = self.peer {
            let list = if self.direction == "egress" { "to" } else { "from" };
            text.push_str(&format!(".{list}[{peer}]"));
        }
        if let Some(port) = self.port {
            text.push_str(&format!(" ports[{port}]"));
        }
        text
    }
}
