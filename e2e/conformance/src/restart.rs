//! Profile `restart`: the engine's own pods go, and nothing is seen of it.
//!
//! Under questions without a pause its pods are deleted, one after the other, then all at once; or a command is run
//! that restarts an engine that is no pod. When they are back, a change must come into force.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::case::{Action, Ask, Weight, pairs};
use crate::churn::{begin, undisturbed};
use crate::live::{Live, condition, told};
use crate::report::Outcome;
use crate::world::text;

/// The name of the profile.
pub const NAME: &str = "restart";
/// How long the engine's pods may take until they are back.
const BACK: Duration = Duration::from_secs(180);
/// So long the questions go on when they are.
const AFTER: Duration = Duration::from_secs(6);
/// The cases, with their statements.
const CASES: [(&str, &[&str]); 2] = [("undisturbed", &["N104"]), ("change-afterwards", &["N103"])];

/// What is restarted.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The pods of the engine, by label, in any namespace.
    pub selector: String,
    /// A command instead.
    pub command: Option<String>,
}

/// The names of the cases, with statements.
pub fn list() -> Vec<(String, &'static [&'static str], Weight)> {
    CASES.into_iter().map(|(name, statements)| (name.to_owned(), statements, Weight::Required)).collect()
}

/// Tries the profile in a world, calling `ended` with each case.
pub async fn run(live: &mut Live, engine: &Engine, ended: &(dyn Fn(Outcome) + Send + Sync)) {
    let outcome = |index: usize| Outcome::new(NAME, CASES[index].0, CASES[index].1, true);
    let both = |make: &dyn Fn(Outcome) -> Outcome| (0..2).for_each(|i| ended(make(outcome(i))));
    if engine.command.is_none() {
        match pods(&live.shared.api, &engine.selector).await {
            Ok(list) if list.is_empty() => {
                let selector = &engine.selector;
                let why = format!(
                    "no pod has the label {selector}: --engine-selector names others, --restart-command a command"
                );
                return both(&|o| o.skipped(why.clone()));
            }
            Ok(_) => {}
            Err(why) => return both(&|o| o.unable(why.clone())),
        }
    }
    let start = Instant::now();
    match begin(live).await {
        Err(why) => both(&|o| o.unable(why.clone())),
        Ok(steady) => {
            let restarted = restart(live, engine).await;
            let mut first = undisturbed(live, steady, outcome(0), start).await;
            match restarted {
                Err(why) => both(&|o| o.unable(why.clone())),
                Ok(note) => {
                    first.notes.push(note);
                    ended(first);
                    let second = afterwards(live, outcome(1)).await;
                    ended(second);
                }
            }
        }
    }
    let _ = live.reset().await;
}

/// Restarts the engine, in a sentence.
async fn restart(live: &Live, engine: &Engine) -> Result<String, String> {
    let api = &live.shared.api;
    let note = match &engine.command {
        Some(command) => {
            run_command(command).await?;
            format!("{command:?} was run")
        }
        None => {
            let all = pods(api, &engine.selector).await?;
            for pod in &all {
                delete(api, pod).await?;
                back(api, &engine.selector, all.len()).await?;
            }
            for pod in pods(api, &engine.selector).await? {
                delete(api, &pod).await?;
            }
            back(api, &engine.selector, all.len()).await?;
            format!("{} pods with {} were deleted, one by one and all at once", all.len(), engine.selector)
        }
    };
    tokio::time::sleep(AFTER).await;
    Ok(note)
}

async fn run_command(command: &str) -> Result<(), String> {
    // its output goes to ours: a daemon that it starts would hold a pipe open
    let mut child = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let ended = tokio::time::timeout(BACK, child.wait()).await;
    let status = ended.map_err(|_| format!("{command:?} did not end within {} s", BACK.as_secs()))?;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

async fn afterwards(live: &mut Live, mut outcome: Outcome) -> Outcome {
    let start = Instant::now();
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let action = Action::Policy { namespace: "x", name: "afterwards".into(), spec, may_be_refused: false };
    if let Err(error) = live.act(&action).await {
        return outcome.unable(error.to_string());
    }
    let checks = match live.checks(&pairs(&live.world, &Ask::Everything)) {
        Ok(checks) => checks,
        Err(why) => return outcome.unable(why),
    };
    let settled = live.settle("x denied after the restart", &checks, start).await;
    outcome.checks = settled.checks;
    outcome.settled_ms.extend(settled.after.map(|a| a.as_millis() as u64));
    outcome.differences = settled.differences;
    outcome.seconds = start.elapsed();
    match settled.unasked {
        Some(why) => outcome.unable(why),
        None => outcome.judged(live.shared.strict),
    }
}

/// The engine's pods.
async fn pods(api: &Api, selector: &str) -> Result<Vec<Value>, String> {
    let escaped = selector.replace('=', "%3D").replace(',', "%2C").replace('!', "%21").replace(' ', "%20");
    let list = api.get(&format!("/api/v1/pods?labelSelector={escaped}")).await.map_err(told)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn delete(api: &Api, pod: &Value) -> Result<(), String> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(pod, "/metadata/namespace"),
        text(pod, "/metadata/name")
    );
    api.delete(&path).await.map_err(told)
}

/// Waits until so many of them are ready, and none is going.
async fn back(api: &Api, selector: &str, count: usize) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let now = pods(api, selector).await?;
        let going = now.iter().any(|p| p.pointer("/metadata/deletionTimestamp").is_some());
        if !going && now.iter().filter(|p| condition(p, "Ready")).count() >= count {
            return Ok(());
        }
        if start.elapsed() > BACK {
            return Err(format!("the engine's pods ({selector}) are not back after {} s", BACK.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
