//! Allowed connections, told to NFLOG where a pod's namespace asks for it.
//!
//! ```text
//!   dispatch of a pod ──jump──> allowed_egress_ID_N ──jump──> egress_ID   drops what it denies
//!                                   │<───────────────return───────┘
//!                                   v first packet of a connection, one of N by chance, not too many a second: log
//!   of one that is not isolated ──> allowed_egress_N                      logs, and that is all
//! ```
//!
//! The prefix of the log is the chain's name, so whoever reads it knows how many connections one stands for. Pods of
//! which nothing is told are dispatched as ever: it costs them nothing.

use std::collections::BTreeMap;

use weir_compiler::slice::Direction;

use crate::change::Edited;
use crate::model::{Chain, Element, Verdict};
use crate::planner::DenialLog;
use crate::rules::Match;

const PREFIX: &str = "allowed_";

/// Where a pod is dispatched to whose ruleset has a chain, or which has none in this direction, if one of `n` of its
/// connections is told of (0: none).
pub(crate) fn way(chain: Option<String>, direction: Direction, n: u32) -> Option<String> {
    match (chain, n) {
        (chain, 0) => chain,
        (Some(chain), n) => Some(format!("{PREFIX}{chain}_{n}")),
        (None, n) => Some(format!("{PREFIX}{}_{n}", direction.as_str())),
    }
}

/// Of a chain's name: the name of the one that it calls first, if it calls one, and of how many connections it
/// tells one. `None`: it is no chain that tells.
pub(crate) fn parts(name: &str) -> Option<(Option<&str>, u32)> {
    let (chain, n) = name.strip_prefix(PREFIX)?.rsplit_once('_')?;
    let n = n.parse().ok().filter(|n| *n > 0)?;
    Some((Some(chain).filter(|chain| chain.contains('_')), n))
}

/// The chain that decides, behind one that tells.
pub(crate) fn decides(name: &str) -> &str {
    match parts(name) {
        Some((Some(chain), _)) => chain,
        Some((None, _)) | None => name,
    }
}

fn chain(name: &str, calls: Option<&str>, n: u32, log: &DenialLog) -> Chain {
    let calls = calls.map(|chain| Match::default().then(Verdict::Jump(chain.to_owned())));
    // further packets of a connection that nobody answers are as new as the first
    let told = Match::default().first_of_connection().one_of(n).logged(log, name);
    Chain { hook: None, rules: calls.into_iter().chain([told]).collect() }
}

/// The chains that tell.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By name: how many elements send to each.
    users: BTreeMap<String, usize>,
    /// The kernel refuses one of them.
    pub(crate) quiet: bool,
}

impl Told {
    /// An element is there.
    pub(crate) fn retain(&mut self, element: &Element, log: Option<&DenialLog>, edited: &mut Edited) {
        let Some((name, (calls, n))) = element.target().and_then(|name| Some((name, parts(name)?))) else {
            return;
        };
        let Some(log) = log else { return };
        let users = self.users.entry(name.to_owned()).or_default();
        *users += 1;
        if *users == 1 {
            edited.put_chain(name, chain(name, calls, n, log));
        }
    }

    /// An element is gone.
    pub(crate) fn release(&mut self, element: &Element, edited: &mut Edited) {
        let Some(name) = element.target() else { return };
        let Some(users) = self.users.get_mut(name) else { return };
        *users -= 1;
        if *users == 0 {
            self.users.remove(name);
            edited.remove_chain(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_calls_and_how_many_it_stands_for() {
        let way = |chain: Option<&str>, n| way(chain.map(str::to_owned), Direction::Egress, n);
        assert_eq!([way(None, 0), way(Some("egress_x"), 0)], [None, Some("egress_x".to_owned())]);
        for (chain, n) in [(Some("egress_abc2"), 1), (Some("ingress_3"), 65_536), (None, 10)] {
            let name = way(chain, n).expect("it is told");
            assert_eq!(parts(&name), Some((chain, n)), "{name}");
            assert_eq!(decides(&name), chain.unwrap_or(&name));
        }
        let others = ["egress_abc", "allowed_egress_abc", "allowed_egress_0", "allowed_1", "allowed_"];
        assert_eq!(others.map(parts), [None; 5]);
        assert_eq!(decides("egress_abc"), "egress_abc");
    }
}
