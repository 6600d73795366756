//! Profile `probes`: a kubelet's probes of its own pods work under deny-all (N71, T13).
//!
//! One pod for each sort of probe on each node. They are ready before the policy; while it holds they stay ready, and
//! others of their sort that are made under it become ready. Meanwhile pods do not reach each other, so that the
//! policy is known to be in force.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::path;
use crate::case::{Action, Ask, Weight, pairs};
use crate::live::{Live, condition, create_pod, told};
use crate::report::{Difference, Outcome};
use crate::world::{FIRST, LABEL};

/// The name of the profile.
pub const NAME: &str = "probes";
/// The sorts of probes.
const SORTS: [&str; 4] = ["http", "tcp", "exec", "grpc"];
/// So long they are watched under the policy.
const WATCHED: Duration = Duration::from_secs(15);
/// Within so long a new pod must be ready; the first probes of a pod may come late on a busy node.
const READY: Duration = Duration::from_secs(180);
const STATEMENTS: &[&str] = &["N71"];

/// The names of the cases, with statements.
pub fn list() -> Vec<(String, &'static [&'static str], Weight)> {
    SORTS.into_iter().map(|sort| (sort.to_owned(), STATEMENTS, Weight::Required)).collect()
}

/// A pod with one sort of probe, readiness and liveness.
fn pod(live: &Live, sort: &str, name: &str, node: usize) -> Value {
    let probe = match sort {
        "http" => json!({"httpGet": {"path": "/hostname", "port": FIRST}}),
        "tcp" => json!({"tcpSocket": {"port": FIRST}}),
        "exec" => {
            json!({"exec": {"command": ["/agnhost", "connect", format!("localhost:{FIRST}"), "--timeout=5s"]}})
        }
        _ => json!({"grpc": {"port": FIRST}}),
    };
    // exec starts a process each time; the others are cheap
    let (period, timeout) = if sort == "exec" { (5, 15) } else { (1, 5) };
    let with = |failures: u32| {
        let mut probe = probe.clone();
        probe["periodSeconds"] = json!(period);
        probe["timeoutSeconds"] = json!(timeout);
        probe["failureThreshold"] = json!(failures);
        probe
    };
    let args = if sort == "grpc" {
        json!(["grpc-health-checking", format!("--port={FIRST}"), "--http-port=8090"])
    } else {
        json!(["netexec", format!("--http-port={FIRST}"), "--udp-port=-1"])
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"probe": sort, LABEL: live.world.suffix}},
        "spec": {
            "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "automountServiceAccountToken": false,
            "dnsPolicy": "Default", "affinity": live.world.on(node),
            "containers": [{
                "name": "one", "image": live.world.image, "imagePullPolicy": "IfNotPresent", "args": args,
                "readinessProbe": with(2), "livenessProbe": with(3),
            }],
        },
    })
}

/// What was seen of a pod at one time.
struct Seen {
    ready: bool,
    restarts: u64,
}

async fn look(live: &Live, name: &str) -> Result<Seen, String> {
    let path = format!("{}/{name}", path::pods(&live.world.namespace("y")));
    let pod = live.shared.api.get(&path).await.map_err(told)?;
    let restarts =
        pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64).unwrap_or(0);
    Ok(Seen { ready: condition(&pod, "Ready"), restarts })
}

/// Waits until a pod is ready.
async fn become_ready(live: &Live, name: &str) -> Result<bool, String> {
    let start = Instant::now();
    loop {
        if look(live, name).await?.ready {
            return Ok(true);
        }
        if start.elapsed() > READY {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Tries the profile in a world, calling `ended` with each case.
pub async fn run(
    live: &mut Live,
    wanted: &(dyn Fn(&str) -> bool + Send + Sync),
    ended: &(dyn Fn(Outcome) + Send + Sync),
) {
    let sorts: Vec<&str> = SORTS.into_iter().filter(|s| wanted(s)).collect();
    let nodes = live.world.nodes.len().min(2);
    match under_policy(live, &sorts, nodes).await {
        Ok(outcomes) => outcomes.into_iter().for_each(ended),
        Err(why) => {
            let outcome = |sort: &str| Outcome::new(NAME, sort, STATEMENTS, true);
            sorts.iter().for_each(|sort| ended(outcome(sort).unable(why.clone())));
        }
    }
    let pods = path::pods(&live.world.namespace("y"));
    // what is left over goes with its namespace
    let _ = live.shared.api.delete(&format!("{pods}?labelSelector=probe")).await;
    let _ = live.reset().await;
}

async fn under_policy(live: &mut Live, sorts: &[&str], nodes: usize) -> Result<Vec<Outcome>, String> {
    let start = Instant::now();
    let pods = path::pods(&live.world.namespace("y"));
    let of_all = |when: &'static str| -> Vec<(String, String, usize)> {
        let mut all = Vec::new();
        for sort in sorts {
            all.extend((0..nodes).map(|n| ((*sort).to_owned(), format!("{sort}-{when}-{n}"), n)));
        }
        all
    };
    for (sort, name, node) in of_all("before") {
        create_pod(&live.shared.api, &pods, &pod(live, &sort, &name, node)).await?;
    }
    for (_, name, _) in of_all("before") {
        if !become_ready(live, &name).await? {
            return Err(format!("pod {name} is not ready after {} s, without any policy", READY.as_secs()));
        }
    }
    let mut before = Vec::new();
    for (_, name, _) in of_all("before") {
        before.push(look(live, &name).await?.restarts);
    }
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let action = Action::Policy { namespace: "y", name: "deny-all".into(), spec, may_be_refused: false };
    live.act(&action).await.map_err(told)?;
    // in force? y's pods among themselves, and x's to them
    let ask = Ask::Between(vec!["x/a -> y/a", "x/a -> y/b", "y/a -> y/b", "y/b -> z/a"]);
    let denied = live.checks(&pairs(&live.world, &ask))?;
    let settled = live.settle("deny-all is in force", &denied, Instant::now()).await;
    if let Some(why) = settled.unasked {
        return Err(why);
    }
    for (sort, name, node) in of_all("after") {
        create_pod(&live.shared.api, &pods, &pod(live, &sort, &name, node)).await?;
    }
    let mut outcomes: Vec<Outcome> = sorts.iter().map(|s| Outcome::new(NAME, s, STATEMENTS, true)).collect();
    let index = |sort: &str| sorts.iter().position(|s| *s == sort).unwrap_or_default();
    for outcome in &mut outcomes {
        outcome.differences = settled.differences.clone();
        outcome.checks = settled.checks;
    }
    let differs = |name: &str, node: usize, phase: &str, observed: String| Difference {
        phase: phase.to_owned(),
        from: format!("kubelet of {}", live.world.node(node)),
        to: format!("y/{name}"),
        port: format!("{FIRST}/TCP"),
        address: String::new(),
        expected: "pass".into(),
        why: "ingress: a pod's own node always reaches it (N71)".into(),
        observed,
    };
    let watched = Instant::now();
    let all = of_all("before");
    let mut wrong = vec![false; all.len()];
    while watched.elapsed() < WATCHED {
        for (at, (sort, name, node)) in all.iter().enumerate() {
            let seen = look(live, name).await?;
            outcomes[index(sort)].checks += 1;
            if wrong[at] || (seen.ready && seen.restarts == before[at]) {
                continue;
            }
            wrong[at] = true;
            let observed = if seen.ready { "it was restarted" } else { "it is not ready any more" };
            outcomes[index(sort)].differences.push(differs(
                name,
                *node,
                "stays ready under deny-all",
                observed.into(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (sort, name, node) in of_all("after") {
        outcomes[index(&sort)].checks += 1;
        if !become_ready(live, &name).await? {
            let observed = format!("not ready after {} s", READY.as_secs());
            outcomes[index(&sort)].differences.push(differs(
                &name,
                node,
                "becomes ready under deny-all",
                observed,
            ));
        }
    }
    let strict = live.shared.strict;
    let judged = |mut outcome: Outcome| {
        outcome.seconds = start.elapsed();
        outcome.judged(strict)
    };
    Ok(outcomes.into_iter().map(judged).collect())
}
