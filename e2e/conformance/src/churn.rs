//! Profile `churn`: things change, all the while pods that it does not concern are watched.
//!
//! ```text
//!   steady   x/b, y/b, z/a asked by others: some allowed, some denied; without a pause, never wrong
//!   changes  policies edited, pods and namespaces relabelled, pods made, deleted, made again
//!              └─> the verdict that changes: right within --settle, and right still; how long it took
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};

use crate::case::{Action, Ask, Pair, Weight, pairs};
use crate::live::{Check, Live, told};
use crate::probe::Answer;
use crate::report::Outcome;
use crate::steady::Steady;
use crate::world::{FIRST, PodPlan, Port};

/// The name of the profile.
pub const NAME: &str = "churn";
/// How often each sort of change is done.
const ROUNDS: usize = 2;
/// Between two questions of one whose verdict changes.
const EVERY: Duration = Duration::from_millis(150);
/// So long they go on when one was right.
const HOLD: Duration = Duration::from_secs(2);
/// Questions of one sort that may be under way.
const UNDER_WAY: usize = 40;

/// The cases, with their statements.
const CASES: [(&str, &[&str]); 5] = [
    ("policies-edited", &["N103", "N104"]),
    ("pods-relabelled", &["N7", "N80"]),
    ("namespaces-relabelled", &["N80"]),
    ("pods-made-and-deleted", &["N74", "N78"]),
    ("others-undisturbed", &["N90", "N104"]),
];

/// The names of the cases, with statements.
pub fn list() -> Vec<(String, &'static [&'static str], Weight)> {
    CASES.into_iter().map(|(name, statements)| (name.to_owned(), statements, Weight::Required)).collect()
}

fn policy(namespace: &'static str, name: &str, spec: Value) -> Action {
    Action::Policy { namespace, name: name.to_owned(), spec, may_be_refused: false }
}

/// What does not change all the while: x/b takes y/a and no other, y/b nobody, z/a everybody.
fn steady_policies() -> Vec<Action> {
    let y_a = json!({"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "a"}}});
    vec![
        policy(
            "x",
            "steady",
            json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [y_a]}]}),
        ),
        policy(
            "y",
            "steady",
            json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]}),
        ),
    ]
}

/// Policies that stay, and questions about them without a pause.
///
/// # Errors
/// The API refuses, or the answers are wrong before anything happens.
pub(crate) async fn begin(live: &mut Live) -> Result<Steady, String> {
    for action in steady_policies() {
        live.act(&action).await.map_err(told)?;
    }
    let ask = vec!["y/a -> x/b", "z/a -> x/b", "y/a -> y/b", "x/b -> y/b", "y/a -> z/a", "x/b -> z/a"];
    let checks = live.checks(&pairs(&live.world, &Ask::Between(ask)))?;
    let settled = live.settle("before", &checks, Instant::now()).await;
    match settled.differences.first() {
        Some(d) => Err(format!(
            "{} -> {} {} is wrong before anything happens: expected {}, observed {}",
            d.from, d.to, d.port, d.expected, d.observed
        )),
        None => {
            let ends = checks.iter().flat_map(|c| [&c.pair.from, &c.pair.to]);
            let pods: BTreeSet<&String> = ends.collect();
            let pods = pods.into_iter().map(|alias| live.world.client(alias)).collect();
            Ok(Steady::start(&live.shared, &checks, pods))
        }
    }
}

/// What the steady questions got.
pub(crate) async fn undisturbed(
    live: &Live,
    steady: Steady,
    mut outcome: Outcome,
    start: Instant,
) -> Outcome {
    let mut unasked = None;
    let mut busy = 0;
    for got in steady.stop().await {
        outcome.checks += got.asked;
        busy += got.busy;
        for answer in &got.answers {
            match answer {
                Answer::Unasked(why) => unasked = Some(why.clone()),
                _ => {
                    let phase = format!("asked all the while, {} of {} answers wrong", got.wrong, got.asked);
                    outcome.differences.push(live.differs(&phase, &got.check, answer));
                }
            }
        }
    }
    if busy > 0 {
        outcome.notes.push(format!(
            "{busy} questions without an answer are not counted: pods' own loopback took seconds, too"
        ));
    }
    outcome.seconds = start.elapsed();
    match unasked {
        Some(why) if outcome.differences.is_empty() => outcome.unable(why),
        _ => outcome.judged(live.shared.strict),
    }
}

/// A change, what it is called, and the pairs that it concerns.
type Change = (Action, &'static str, Vec<(&'static str, &'static str)>);

/// Tries the profile in a world, calling `ended` with each case.
pub async fn run(
    live: &mut Live,
    wanted: &(dyn Fn(&str) -> bool + Send + Sync),
    ended: &(dyn Fn(Outcome) + Send + Sync),
) {
    let start = Instant::now();
    let outcome = |index: usize| Outcome::new(NAME, CASES[index].0, CASES[index].1, true);
    let steady = match begin(live).await {
        Ok(steady) => steady,
        Err(why) => {
            (0..CASES.len()).for_each(|i| ended(outcome(i).unable(why.clone())));
            let _ = live.reset().await;
            return;
        }
    };
    let strict = live.shared.strict;
    for (index, (name, _)) in CASES.iter().enumerate().take(4) {
        if !wanted(name) {
            continue;
        }
        let since = Instant::now();
        let mut outcome = outcome(index);
        let mut times = Times::default();
        let result = match index {
            0 => changes(live, &edits(), &mut outcome, &mut times).await,
            1 => changes(live, &pod_labels(), &mut outcome, &mut times).await,
            2 => changes(live, &namespace_labels(), &mut outcome, &mut times).await,
            _ => pods(live, &mut outcome, &mut times).await,
        };
        outcome.notes.extend(times.told());
        outcome.seconds = since.elapsed();
        ended(match result {
            Ok(()) => outcome.judged(strict),
            Err(why) => outcome.unable(why),
        });
    }
    ended(undisturbed(live, steady, outcome(4), start).await);
    let _ = live.reset().await;
}

/// x/a takes y, z, nobody, everybody.
fn edits() -> Vec<Change> {
    let edited = |ingress: Value| {
        policy(
            "x",
            "edited",
            json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": ingress}),
        )
    };
    let from = |ns: &str| edited(json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": ns}}}]}]));
    let concerned = || vec![("y/a", "x/a"), ("z/a", "x/a")];
    vec![
        (from("y"), "from y", concerned()),
        (from("z"), "from z", concerned()),
        (edited(json!([])), "from nobody", concerned()),
        (Action::NoPolicy { namespace: "x", name: "edited".into() }, "deleted", concerned()),
    ]
}

/// x/a takes clients, and blue namespaces.
fn role() -> Action {
    let client = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "client"}}});
    let blue = json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}});
    policy(
        "x",
        "role",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [client, blue]}]}),
    )
}

fn no_role() -> Action {
    Action::NoPolicy { namespace: "x", name: "role".into() }
}

fn pod_labels() -> Vec<Change> {
    let label = |value: Value| Action::PodLabels { pod: "z/a", labels: json!({"role": value}) };
    let subject = |value: &str| Action::PodLabels { pod: "x/c", labels: json!({"pod": value}) };
    vec![
        (role(), "x/a takes role=client", vec![("y/a", "x/a"), ("z/a", "x/a")]),
        (label(json!("client")), "z/a becomes a client", vec![("z/a", "x/a")]),
        (label(Value::Null), "z/a is one no more", vec![("z/a", "x/a")]),
        (subject("a"), "x/c becomes a subject", vec![("z/a", "x/c")]),
        (subject("c"), "x/c is one no more", vec![("z/a", "x/c")]),
        (no_role(), "policy deleted", vec![("z/a", "x/a")]),
    ]
}

fn namespace_labels() -> Vec<Change> {
    let label = |value: Value| Action::NamespaceLabels { namespace: "z", labels: json!({"team": value}) };
    vec![
        (role(), "x/a takes team=blue", vec![("z/a", "x/a"), ("y/b", "x/a")]),
        (label(json!("blue")), "z becomes blue", vec![("z/a", "x/a"), ("y/b", "x/a")]),
        (label(Value::Null), "z is blue no more", vec![("z/a", "x/a")]),
        (no_role(), "policy deleted", vec![("z/a", "x/a")]),
    ]
}

async fn changes(
    live: &mut Live,
    changes: &[Change],
    outcome: &mut Outcome,
    times: &mut Times,
) -> Result<(), String> {
    for round in 1..=ROUNDS {
        for (action, about, concerned) in changes {
            let since = Instant::now();
            live.act(action).await.map_err(told)?;
            enforced(live, &format!("{about} (round {round})"), concerned, since, outcome, times).await?;
        }
    }
    Ok(())
}

/// Pods made under a policy, deleted, and made again: with the label that is let in, and without.
async fn pods(live: &mut Live, outcome: &mut Outcome, times: &mut Times) -> Result<(), String> {
    live.act(&role()).await.map_err(told)?;
    for round in 0..2 * ROUNDS {
        let client = round % 2 == 0;
        let labels =
            if client { [("role".to_owned(), "client".to_owned())].into() } else { Default::default() };
        let plan = PodPlan {
            namespace: "y".into(),
            name: "made".into(),
            node: round / 2,
            host_network: false,
            labels,
        };
        live.start(&[plan]).await?;
        let about = if client { "a new pod that is let in" } else { "a new pod of that name that is not" };
        let about = format!("{about} (round {})", round / 2 + 1);
        enforced(live, &about, &[("y/made", "x/a"), ("y/made", "z/a")], Instant::now(), outcome, times)
            .await?;
        live.stop("y/made").await?;
    }
    live.act(&no_role()).await.map_err(told)
}

/// Waits until what a change concerns is right, and sees that it is right still.
async fn enforced(
    live: &Live,
    about: &str,
    concerned: &[(&'static str, &'static str)],
    since: Instant,
    outcome: &mut Outcome,
    times: &mut Times,
) -> Result<(), String> {
    let mut all = Vec::new();
    for (from, to) in concerned {
        for v4 in &live.world.families {
            all.push(Pair { from: (*from).into(), to: (*to).into(), port: Port::tcp(FIRST), v4: *v4 });
        }
    }
    let checks = live.checks(&all)?;
    let mut waits = Vec::new();
    for check in &checks {
        waits.push(watched(live, check, since));
    }
    for (check, series) in checks.iter().zip(futures_util::future::join_all(waits).await) {
        outcome.checks += series.len() as u64;
        match judged(&series, |answer| check.is_right(answer)) {
            Verdict::RightAfter(after) => {
                times.add(check.expected.allowed, after);
                outcome.settled_ms.push(after.as_millis() as u64);
            }
            Verdict::WrongAgain(Answer::Unasked(why)) | Verdict::Wrong(Answer::Unasked(why)) => {
                return Err(why);
            }
            Verdict::WrongAgain(answer) => {
                outcome.differences.push(live.differs(
                    &format!("{about}: right, and then wrong again"),
                    check,
                    &answer,
                ));
            }
            Verdict::Wrong(answer) => {
                let mut difference = live.differs(about, check, &answer);
                difference.observed = format!("{answer} after {} s still", live.shared.settle.as_secs());
                outcome.differences.push(difference);
            }
        }
    }
    Ok(())
}

/// One question of a series, its times counted from the change.
struct Asked {
    at: Duration,
    answered: Duration,
    answer: Answer,
}

/// Asks every so often, whether the last question was answered or not, until one was right and for a while more.
async fn watched(live: &Live, check: &Check, since: Instant) -> Vec<Asked> {
    let mut under_way = FuturesUnordered::new();
    let mut series: Vec<Asked> = Vec::new();
    let mut ticks = tokio::time::interval(EVERY);
    let mut right = None;
    let ask = || async move {
        let at = since.elapsed();
        let answer = live.shared.prober.ask(&check.question).await;
        Asked { at, answered: since.elapsed(), answer }
    };
    loop {
        let now = since.elapsed();
        let over = now > live.shared.settle || right.is_some_and(|right| now > right + HOLD);
        if over && under_way.is_empty() {
            return series;
        }
        tokio::select! {
            _ = ticks.tick(), if !over && under_way.len() < UNDER_WAY => under_way.push(ask()),
            Some(asked) = under_way.next(), if !under_way.is_empty() => {
                if right.is_none() && check.is_right(&asked.answer) {
                    right = Some(asked.answered);
                }
                series.push(asked);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// So long after the change, and ever since.
    RightAfter(Duration),
    /// It was right, and a question that was asked after that answer was not.
    WrongAgain(Answer),
    /// It never was.
    Wrong(Answer),
}

/// When a series was right: with an answer when that came, with silence when the question was asked, for a packet of
/// a question that was asked before may have come through later. Wrong again is only what was asked when a right answer
/// was there: of two questions that are under way at once, nobody knows whose packet is the first.
fn judged(series: &[Asked], is_right: impl Fn(&Answer) -> bool) -> Verdict {
    let time = |asked: &Asked| if asked.answer.passed() { asked.answered } else { asked.at };
    let Some(right) = series.iter().filter(|a| is_right(&a.answer)).map(time).min() else {
        return Verdict::Wrong(series.last().map_or(Answer::Silence, |asked| asked.answer.clone()));
    };
    let there = series.iter().filter(|a| is_right(&a.answer)).map(|a| a.answered).min();
    match series.iter().find(|a| there.is_some_and(|there| a.at > there) && !is_right(&a.answer)) {
        Some(wrong) => Verdict::WrongAgain(wrong.answer.clone()),
        None => Verdict::RightAfter(right),
    }
}

/// How long changes took until they were in force.
#[derive(Default)]
struct Times {
    allow: Vec<Duration>,
    deny: Vec<Duration>,
}

impl Times {
    fn add(&mut self, allowed: bool, after: Duration) {
        if allowed { self.allow.push(after) } else { self.deny.push(after) }
    }

    /// In sentences.
    fn told(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for (what, list) in [("allowed", &mut self.allow), ("denied", &mut self.deny)] {
            list.sort_unstable();
            if list.is_empty() {
                continue;
            }
            let at = |percent: usize| list[(list.len() * percent).div_ceil(100) - 1].as_millis();
            lines.push(format!("until {what}: p50 {} ms, p99 {} ms, of {}", at(50), at(99), list.len()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(at: u64, answered: u64, answer: Answer) -> Asked {
        Asked { at: Duration::from_millis(at), answered: Duration::from_millis(answered), answer }
    }

    #[test]
    fn a_change_is_in_force_from_the_first_right_answer_on() {
        let said = || Answer::Said("x-a".into());
        let allowed = |a: &Answer| a.is_right(true, "x-a");
        let denied = |a: &Answer| a.is_right(false, "x-a");
        // the first question was repeated by TCP until it came through
        let series = [asked(200, 210, said()), asked(0, 1000, said())];
        assert_eq!(judged(&series, allowed), Verdict::RightAfter(Duration::from_millis(210)));
        let series = [asked(0, 10, said()), asked(150, 5150, Answer::Silence)];
        assert_eq!(judged(&series, denied), Verdict::RightAfter(Duration::from_millis(150)));
    }

    #[test]
    fn right_and_then_wrong_is_wrong() {
        let said = || Answer::Said("x-a".into());
        let series = [
            asked(150, 5150, Answer::Silence),
            asked(5200, 5210, said()),
            asked(5450, 9450, Answer::Silence),
        ];
        assert_eq!(judged(&series, |a| a.is_right(false, "x-a")), Verdict::WrongAgain(said()));
        // the packet of the first may have left when that of the second had passed already
        let late = [asked(150, 5150, Answer::Silence), asked(300, 310, said())];
        let first = Verdict::RightAfter(Duration::from_millis(150));
        assert_eq!(judged(&late, |a| a.is_right(false, "x-a")), first);
        assert_eq!(judged(&series[1..2], |a| a.is_right(false, "x-a")), Verdict::Wrong(said()));
        assert_eq!(judged(&[], |a| a.is_right(false, "x-a")), Verdict::Wrong(Answer::Silence));
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let mut times = Times::default();
        (1..=200).rev().for_each(|ms| times.add(true, Duration::from_millis(ms)));
        times.add(false, Duration::from_millis(7));
        assert_eq!(
            times.told(),
            ["until allowed: p50 100 ms, p99 198 ms, of 200", "until denied: p50 7 ms, p99 7 ms, of 1"]
        );
    }
}
