//! A world that is there: changes by the API, questions by packets, and what the evaluator says of both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::api::{Api, Error, path};
use crate::case::{Action, Pair};
use crate::judge::{Expectation, Judge};
use crate::probe::{Answer, Prober, Question};
use crate::report::Difference;
use crate::world::{NAMESPACES, PodPlan, World, text};

/// Questions under way at one time, in one world.
const AT_ONCE: usize = 160;
/// What is wrong is asked again so often at least: the first time takes long where a machine is busy.
const ASKED: u32 = 2;
/// How long pods may take until they are ready.
const READY: Duration = Duration::from_secs(180);

/// And then until they answer on their loopback.
const LISTENS: Duration = Duration::from_secs(60);

/// What is the same for all worlds of a run.
pub struct Shared {
    /// The API server.
    pub api: Api,
    /// Who asks.
    pub prober: Prober,
    /// Within so long after a change all must be right.
    pub settle: Duration,
    /// What the API leaves open must be as Weir decides, too.
    pub strict: bool,
}

/// A world in a cluster.
pub struct Live {
    /// What the run has in common.
    pub shared: Arc<Shared>,
    /// What it consists of.
    pub world: World,
    /// What each pod's servers call themselves.
    pub hostnames: HashMap<String, String>,
}

/// A question with what has to come of it.
#[derive(Debug, Clone)]
pub struct Check {
    /// Who asks whom.
    pub pair: Pair,
    /// How.
    pub question: Question,
    /// What has to come.
    pub expected: Expectation,
    /// Who has to answer.
    pub hostname: String,
}

impl Check {
    /// Whether this is what has to come.
    pub fn is_right(&self, answer: &Answer) -> bool {
        answer.is_right(self.expected.allowed, &self.hostname)
    }
}

/// What came of many questions after a change.
#[derive(Debug, Default)]
pub struct Settled {
    /// How many were compared.
    pub checks: u64,
    /// How long until all was right.
    pub after: Option<Duration>,
    /// What is wrong still, or again.
    pub differences: Vec<Difference>,
    /// Something could not be asked.
    pub unasked: Option<String>,
}

impl Live {
    /// Makes the world's namespaces and pods, and waits until all of them serve.
    ///
    /// # Errors
    /// The API refuses, or a pod does not become ready.
    pub async fn up(shared: Arc<Shared>, mut world: World) -> Result<Live, String> {
        for alias in NAMESPACES {
            let object = world.namespace_object(alias);
            let made = match shared.api.create(path::NAMESPACES, &object).await {
                Err(error) if error.code() == Some(409) => {
                    shared.api.get(&path::namespace(&world.namespace(alias))).await
                }
                other => other,
            };
            world.keep(made.map_err(told)?, "Namespace");
        }
        let mut live = Live { shared, world, hostnames: HashMap::new() };
        live.start(&World::pods()).await?;
        live.families()?;
        Ok(live)
    }

    /// Starts pods and waits until they serve.
    ///
    /// # Errors
    /// The API refuses, or a pod does not become ready.
    pub async fn start(&mut self, pods: &[PodPlan]) -> Result<(), String> {
        for plan in pods {
            create_pod(
                &self.shared.api,
                &path::pods(&self.world.namespace(&plan.namespace)),
                &self.world.pod_object(plan),
            )
            .await?;
        }
        for plan in pods {
            self.serves(&format!("{}/{}", plan.namespace, plan.name)).await?;
        }
        Ok(())
    }

    /// Starts a pod of this manifest and waits until it serves.
    ///
    /// # Errors
    /// As [`Live::start`].
    pub async fn start_object(&mut self, alias: &str, object: &Value) -> Result<(), String> {
        create_pod(&self.shared.api, &path::pods(&self.world.key(alias).namespace), object).await?;
        self.serves(alias).await
    }

    /// Takes in a pod as soon as it serves.
    async fn serves(&mut self, alias: &str) -> Result<(), String> {
        let pod = self.ready(alias).await?;
        self.world.keep(pod, "Pod");
        let client = self.world.client(alias);
        self.shared.prober.forget(&client);
        let start = Instant::now();
        let name = loop {
            // a pod without a readiness probe is ready before it listens
            match self.shared.prober.hostname(&client).await {
                Ok(name) => break name,
                Err(_) if start.elapsed() < LISTENS => tokio::time::sleep(Duration::from_millis(300)).await,
                Err(error) => return Err(format!("pod {alias} cannot be asked: {error}")),
            }
        };
        self.hostnames.insert(alias.to_owned(), name);
        Ok(())
    }

    /// Waits until a pod is ready.
    async fn ready(&self, alias: &str) -> Result<Value, String> {
        let key = self.world.key(alias);
        let path = format!("{}/{}", path::pods(&key.namespace), key.name);
        let start = Instant::now();
        loop {
            let pod = self.shared.api.get(&path).await.map_err(told)?;
            if condition(&pod, "Ready") && !text(&pod, "/status/podIP").is_empty() {
                return Ok(pod);
            }
            if start.elapsed() > READY {
                return Err(format!(
                    "pod {key} is not ready after {} s: {}",
                    READY.as_secs(),
                    why_not_ready(&pod)
                ));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    /// The API refuses, or it does not go.
    pub async fn stop(&mut self, alias: &str) -> Result<(), String> {
        let key = self.world.key(alias);
        let path = format!("{}/{}", path::pods(&key.namespace), key.name);
        self.shared.api.delete(&path).await.map_err(told)?;
        let start = Instant::now();
        while self.shared.api.find(&path).await.map_err(told)?.is_some() {
            if start.elapsed() > Duration::from_secs(60) {
                return Err(format!("pod {key} is not gone after 60 s"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.world.forget("Pod", &key.namespace, &key.name);
        self.shared.prober.forget(&self.world.client(alias));
        self.hostnames.remove(alias);
        Ok(())
    }

    /// Which families the pods have addresses of.
    fn families(&mut self) -> Result<(), String> {
        let names = self.world.pod_names();
        let has =
            |v4: bool| names.iter().all(|pod| self.world.addresses(pod).iter().any(|ip| ip.is_ipv4() == v4));
        let families: Vec<bool> = [true, false].into_iter().filter(|v4| has(*v4)).collect();
        if families.is_empty() {
            return Err("the pods have no family of addresses in common".into());
        }
        self.world.families = families;
        Ok(())
    }

    /// Does a change.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn act(&mut self, action: &Action) -> Result<(), Error> {
        let api = &self.shared.api;
        match action {
            Action::Policy { namespace, name, spec, .. } => {
                let object = self.world.policy_object(namespace, name, spec);
                let made = api.put(&path::policies(&self.world.namespace(namespace)), name, &object).await?;
                self.world.keep(made, "NetworkPolicy");
            }
            Action::NoPolicy { namespace, name } => {
                let namespace = self.world.namespace(namespace);
                api.delete(&format!("{}/{name}", path::policies(&namespace))).await?;
                self.world.forget("NetworkPolicy", &namespace, name);
            }
            Action::PodLabels { pod, labels } => {
                let key = self.world.key(pod);
                let path = format!("{}/{}", path::pods(&key.namespace), key.name);
                let pod = api.merge(&path, &json!({"metadata": {"labels": labels}})).await?;
                self.world.keep(pod, "Pod");
            }
            Action::NamespaceLabels { namespace, labels } => {
                let path = path::namespace(&self.world.namespace(namespace));
                let made = api.merge(&path, &json!({"metadata": {"labels": labels}})).await?;
                self.world.keep(made, "Namespace");
            }
        }
        Ok(())
    }

    /// Puts labels back and takes policies away.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn reset(&mut self) -> Result<(), Error> {
        let namespaces = NAMESPACES.map(|alias| self.world.namespace(alias));
        let policies: Vec<(String, String)> = self
            .world
            .objects
            .keys()
            .filter(|(kind, ..)| kind == "NetworkPolicy")
            .map(|(_, namespace, name)| (namespace.clone(), name.clone()))
            .collect();
        for (namespace, name) in policies {
            self.shared.api.delete(&format!("{}/{name}", path::policies(&namespace))).await?;
            self.world.forget("NetworkPolicy", &namespace, &name);
        }
        for (alias, name) in NAMESPACES.into_iter().zip(namespaces) {
            let wanted = self.world.namespace_object(alias)["metadata"]["labels"].clone();
            let now = &self.world.objects[&("Namespace".to_owned(), String::new(), name.clone())]["metadata"]
                ["labels"];
            if let Some(patch) = difference(now, &wanted, &["kubernetes.io/metadata.name"]) {
                let patch = json!({"metadata": {"labels": patch}});
                let made = self.shared.api.merge(&path::namespace(&name), &patch).await?;
                self.world.keep(made, "Namespace");
            }
        }
        let plans = World::pods().into_iter().chain(self.world.host_pods());
        for plan in plans.collect::<Vec<_>>() {
            let alias = format!("{}/{}", plan.namespace, plan.name);
            let Some(pod) = self.world.pod(&alias) else { continue };
            let wanted = self.world.pod_object(&plan)["metadata"]["labels"].clone();
            if let Some(patch) = difference(&pod["metadata"]["labels"], &wanted, &[]) {
                let key = self.world.key(&alias);
                let path = format!("{}/{}", path::pods(&key.namespace), key.name);
                let made = self.shared.api.merge(&path, &json!({"metadata": {"labels": patch}})).await?;
                self.world.keep(made, "Pod");
            }
        }
        Ok(())
    }

    /// The questions of pairs, with what has to come of each.
    ///
    /// # Errors
    /// An object cannot be judged.
    pub fn checks(&self, pairs: &[Pair]) -> Result<Vec<Check>, String> {
        let judge = Judge::new(self.world.objects.values())?;
        let check = |pair: &Pair| {
            let (from, to) = pair.keys(&self.world);
            let address = self.world.addresses(&pair.to).into_iter().find(|ip| ip.is_ipv4() == pair.v4)?;
            let mut expected = judge.judge(&from, &to, address, pair.port.protocol, pair.port.number);
            expected.why = self.world.shorten(&expected.why);
            Some(Check {
                question: Question {
                    client: self.world.client(&pair.from),
                    address,
                    port: pair.port,
                    ask: "hostname",
                },
                hostname: self.hostnames.get(&pair.to).cloned().unwrap_or_default(),
                pair: pair.clone(),
                expected,
            })
        };
        Ok(pairs.iter().filter_map(check).collect())
    }

    /// Asks all, at once; with each answer comes when it was known: of silence, when it was asked.
    pub async fn ask(&self, checks: &[&Check]) -> Vec<(Answer, Instant)> {
        let prober = &self.shared.prober;
        // a list of futures and no closure: the compiler cannot tell otherwise that they may move between threads
        let mut asked = Vec::with_capacity(checks.len());
        for check in checks {
            asked.push(timed(prober, &check.question));
        }
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    /// Those of which the answer is wrong; `last` becomes the time of the latest right one.
    async fn ask_for_wrong<'a>(&self, checks: &[&'a Check], last: &mut Instant) -> Vec<(&'a Check, Answer)> {
        let answers = self.ask(checks).await;
        let mut wrong = Vec::new();
        for (check, (answer, at)) in checks.iter().copied().zip(answers) {
            if check.is_right(&answer) {
                *last = at.max(*last);
            } else {
                wrong.push((check, answer));
            }
        }
        wrong
    }

    /// Asks all; what differs is asked again until the time to settle is over, and what had to be waited for must
    /// then be right once more.
    pub async fn settle(&self, phase: &str, checks: &[Check], since: Instant) -> Settled {
        let mut settled = Settled { checks: checks.len() as u64, ..Settled::default() };
        let all: Vec<&Check> = checks.iter().collect();
        let (mut pending, mut waited) = (all.clone(), false);
        let mut wrong;
        let (mut last, mut asked) = (since, 0);
        loop {
            // the last questions are those that are asked when the time is over, however long others took
            let over = since.elapsed() > self.shared.settle && asked >= ASKED;
            asked += 1;
            wrong = self.ask_for_wrong(&pending, &mut last).await;
            if wrong.is_empty() {
                if waited {
                    // right at last: all of them once more, or it was not for long
                    wrong = self.ask_for_wrong(&all, &mut Instant::now()).await;
                }
                break;
            }
            if over {
                break;
            }
            waited = true;
            pending = wrong.iter().map(|(check, _)| *check).collect();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        settled.after = wrong.is_empty().then(|| last.duration_since(since));
        settled.unasked = wrong.iter().find_map(|(_, answer)| match answer {
            Answer::Unasked(why) => Some(why.clone()),
            _ => None,
        });
        settled.differences =
            wrong.into_iter().map(|(check, answer)| self.differs(phase, check, &answer)).collect();
        settled
    }

    /// How a difference is reported.
    pub fn differs(&self, phase: &str, check: &Check, answer: &Answer) -> Difference {
        Difference {
            phase: phase.to_owned(),
            from: check.pair.from.clone(),
            to: check.pair.to.clone(),
            port: check.pair.port.to_string(),
            address: check.question.address.to_string(),
            expected: if check.expected.allowed { "pass" } else { "drop" }.to_owned(),
            why: check.expected.why.clone(),
            observed: answer.to_string(),
        }
    }
}

async fn timed(prober: &Prober, question: &Question) -> (Answer, Instant) {
    let asked = Instant::now();
    let answer = prober.ask(question).await;
    let at = if answer.passed() { Instant::now() } else { asked };
    (answer, at)
}

/// Makes a pod; a namespace that is new has no service account yet, and servers refuse pods until it has.
///
/// # Errors
/// The API refuses.
pub async fn create_pod(api: &Api, path: &str, pod: &Value) -> Result<(), String> {
    let start = Instant::now();
    loop {
        match api.create(path, pod).await {
            Ok(_) => return Ok(()),
            // made by an attempt whose answer got lost
            Err(error) if error.code() == Some(409) => return Ok(()),
            Err(error) if error.code() == Some(403) && start.elapsed() < Duration::from_secs(20) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// An API error as text.
pub fn told(error: Error) -> String {
    error.to_string()
}

/// Whether a condition of an object is true.
pub fn condition(object: &Value, name: &str) -> bool {
    let list = object.pointer("/status/conditions").and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|c| c["type"] == name && c["status"] == "True"))
}

/// The patch that makes labels out of others; `None`: they are equal.
fn difference(now: &Value, wanted: &Value, kept: &[&str]) -> Option<Value> {
    let mut patch = json!({});
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if now.get(key) != Some(value) {
            patch[key] = value.clone();
        }
    }
    for (key, _) in now.as_object().into_iter().flatten() {
        if wanted.get(key).is_none() && !kept.contains(&key.as_str()) {
            patch[key] = Value::Null;
        }
    }
    (patch != json!({})).then_some(patch)
}

/// What a pod's status says of why it is not ready.
fn why_not_ready(pod: &Value) -> String {
    let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    for status in statuses.into_iter().flatten() {
        for state in ["waiting", "terminated"] {
            if let Some(found) = status.pointer(&format!("/state/{state}")) {
                return format!(
                    "container {} is {state}: {} {}",
                    text(status, "/name"),
                    text(found, "/reason"),
                    text(found, "/message")
                );
            }
        }
    }
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let unmet = conditions.into_iter().flatten().find(|c| c["status"] == "False" && c["message"].is_string());
    unmet.map_or_else(
        || format!("its phase is {}", text(pod, "/status/phase")),
        |c| text(c, "/message").to_owned(),
    )
}
