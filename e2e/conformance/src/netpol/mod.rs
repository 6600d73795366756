//! Profile `netpol`: what NetworkPolicy means, case by case, as matrices of pods, pods and ports.

mod blocks;
mod isolation;
mod nodes;
mod peers;
mod ports;
mod random;

use std::time::Instant;

use serde_json::{Value, json};
use weir_compiler::object::Protocol;

use crate::case::{Action, Ask, Case, Needs, Phase, Weight, pairs};
use crate::live::{Live, told};
use crate::probe::Answer;
use crate::report::Outcome;
use crate::world::World;

pub use random::policies as random_policies;

/// The name of the profile.
pub const NAME: &str = "netpol";

/// What random policies try.
pub const RANDOM: &[&str] = &["N3", "N4", "N40"];

/// All cases, in the order in which they are tried.
pub fn cases() -> Vec<Case> {
    [nodes::CASES, isolation::CASES, peers::CASES, blocks::CASES, ports::CASES].concat()
}

/// A policy.
fn policy(namespace: &'static str, name: &str, spec: Value) -> Action {
    Action::Policy { namespace, name: name.to_owned(), spec, may_be_refused: false }
}

/// One that API servers of some versions refuse.
fn stored_policy(namespace: &'static str, name: &str, spec: Value) -> Action {
    Action::Policy { namespace, name: name.to_owned(), spec, may_be_refused: true }
}

/// After each case (N103): what is seen in the next one is its own.
const OPENED: Phase = Phase { about: "all policies deleted", actions: Vec::new(), ask: Ask::Open };

/// Changes, and everything asked then.
fn phase(about: &'static str, actions: Vec<Action>) -> Phase {
    Phase { about, actions, ask: Ask::Everything }
}

/// Why a case cannot be tried in this world.
pub fn lacks(world: &World, needs: Needs) -> Option<&'static str> {
    if needs.sctp && !world.sctp {
        return Some("the nodes do not serve SCTP");
    }
    if needs.dual && world.families.len() < 2 {
        return Some("pods have addresses of one family only");
    }
    if needs.hosts && world.pod("z/host0").is_none() {
        return Some("pods in their nodes' network could not be started");
    }
    None
}

/// Tries a case.
pub async fn run(live: &mut Live, case: &Case) -> Outcome {
    let mut outcome = Outcome::new(NAME, case.name, case.statements, case.weight == Weight::Required);
    if let Some(why) = lacks(&live.world, case.needs) {
        return outcome.skipped(why);
    }
    let start = Instant::now();
    let phases = (case.phases)(&live.world);
    let mut ended = None;
    for phase in &phases {
        ended = step(live, phase, &mut outcome).await;
        if ended.is_some() {
            break;
        }
    }
    // and open again (N103): what is seen in the next case is not of this one
    let opened = match live.reset().await {
        Ok(()) => step(live, &OPENED, &mut outcome).await,
        Err(error) => Some(Err(told(error))),
    };
    outcome.seconds = start.elapsed();
    match ended.or(opened) {
        None => outcome.judged(live.shared.strict),
        Some(Ok(skipped)) => outcome.skipped(skipped),
        Some(Err(unable)) => outcome.unable(unable),
    }
}

/// One phase; what ends the case, if something does: a reason to skip it, or one why it cannot go on.
async fn step(live: &mut Live, phase: &Phase, outcome: &mut Outcome) -> Option<Result<String, String>> {
    let since = Instant::now();
    for action in &phase.actions {
        if let Err(error) = live.act(action).await {
            let may_be = matches!(action, Action::Policy { may_be_refused: true, .. });
            return Some(match error.code() {
                Some(400 | 422) if may_be => Ok(format!("this API server refuses it: {error}")),
                _ => Err(error.to_string()),
            });
        }
    }
    let checks = match live.checks(&pairs(&live.world, &phase.ask)) {
        Ok(checks) => checks,
        Err(error) => return Some(Err(error)),
    };
    let settled = live.settle(phase.about, &checks, since).await;
    outcome.checks += settled.checks;
    outcome.settled_ms.extend(settled.after.map(|after| after.as_millis() as u64));
    let unasked = settled.unasked.clone();
    outcome.differences.extend(settled.differences);
    unasked.map(|why| Err(format!("{}: {why}", phase.about)))
}

/// Tries random policies of a seed.
pub async fn run_random(live: &mut Live, name: &str, seed: u64) -> Outcome {
    let mut outcome = Outcome::new(NAME, name, RANDOM, true);
    let start = Instant::now();
    let about = "random policies";
    let actions = random::policies(&live.world, seed);
    outcome.notes.push(format!("--seed {seed} --random 1 makes the same policies again"));
    let ended =
        step(live, &Phase { about, actions: actions.clone(), ask: Ask::Everything }, &mut outcome).await;
    if !outcome.differences.is_empty() {
        for action in &actions {
            if let Action::Policy { namespace, name, spec, .. } = action {
                outcome.notes.push(format!("{namespace}/{name}: {spec}"));
            }
        }
    }
    let opened = match live.reset().await {
        Ok(()) => step(live, &OPENED, &mut outcome).await,
        Err(error) => Some(Err(told(error))),
    };
    outcome.seconds = start.elapsed();
    match ended.or(opened) {
        Some(Err(unable)) => outcome.unable(unable),
        _ => outcome.judged(live.shared.strict),
    }
}

/// The name and the statements of the case that asks in both ways.
pub const BOTH_WAYS: (&str, &[&str]) = ("asked-in-both-ways", &["N1", "N3"]);

/// Asks the same by forwarded port and by exec: the one must say what the other does.
pub async fn run_both_ways(live: &mut Live) -> Outcome {
    let mut outcome = Outcome::new(NAME, BOTH_WAYS.0, BOTH_WAYS.1, true);
    let start = Instant::now();
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let few = Phase {
        about: "ingress to x denied",
        actions: vec![policy("x", "deny", deny)],
        ask: Ask::Between(vec!["x/a -> y/a", "y/a -> x/a", "y/a -> x/b", "x/b -> z/a"]),
    };
    let mut ended = step(live, &few, &mut outcome).await;
    if ended.is_none() && outcome.differences.is_empty() {
        ended = otherwise(live, &few, &mut outcome).await.err().map(Err);
    }
    if let Err(error) = live.reset().await {
        ended = Some(Err(told(error)));
    }
    outcome.seconds = start.elapsed();
    match ended {
        Some(Err(unable)) => outcome.unable(unable),
        _ => outcome.judged(live.shared.strict),
    }
}

async fn otherwise(live: &Live, phase: &Phase, outcome: &mut Outcome) -> Result<(), String> {
    for check in live
        .checks(&pairs(&live.world, &phase.ask))?
        .iter()
        .filter(|c| c.pair.port.protocol != Protocol::Sctp)
    {
        let answer = live.shared.prober.ask_otherwise(&check.question).await;
        outcome.checks += 1;
        if let Answer::Unasked(why) = answer {
            return Err(why);
        }
        if !check.is_right(&answer) {
            outcome.differences.push(live.differs("asked in the other way", check, &answer));
        }
    }
    Ok(())
}
