//! Profile `services`: every way to a Service, under policies.
//!
//! ```text
//!   x/server (first node) <── pod, clusterip, nodeport, loadbalancer, hostport ── x/c  "near", same node
//!                                                                              ── x/b  "far", second node
//!                                                                              ── z/host0, z/host1  the nodes
//! ```
//!
//! [`table`] knows what the ends' policies see on each way, [`policies`] what follows for each policy. Each policy is
//! two cases: what NetworkPolicy requires of every engine, and (`...-elsewhere`) what it leaves to implementations:
//! addresses that are translated before policies see them. Ways on which nobody answers while there is no policy
//! are left out, and named.

pub mod policies;
pub mod table;

use std::net::IpAddr;
use std::time::Instant;

use serde_json::{Value, json};

use crate::api::path;
use crate::case::{Action, Pair, Weight};
use crate::judge::Expectation;
use crate::live::{Check, Live, told};
use crate::probe::Question;
use crate::report::Outcome;
use crate::world::{FIRST, LABEL, PodPlan, Port, text};
use policies::Policy;
use table::Way;
use weir_compiler::object::Protocol;

/// The name of the profile.
pub const NAME: &str = "services";
/// The class of load balancers that no controller serves: the suite writes the status itself.
const CLASS: &str = "conformance.weir.dev/none";
/// What the server's ports are called at its node.
const HOST_PORT: u16 = 38990;
/// TCP's port of the Services; UDP's is the next.
const SERVICE_PORT: u16 = 8000;

/// The names of the cases of the profile, with statements.
pub fn list() -> Vec<(String, &'static [&'static str], Weight)> {
    let mut cases = vec![("open".to_owned(), &["N1"][..], Weight::Required)];
    for policy in policies::ALL {
        cases.push((policy.name.to_owned(), policy.statements, Weight::Required));
        cases.push((format!("{}-elsewhere", policy.name), policy.statements, Weight::Observed));
    }
    cases
}

/// Services as the API has them, for one family.
struct Served {
    v4: bool,
    cluster_ip: [IpAddr; 3],
    node_ports: [[u16; 2]; 2],
    balancer: [Option<IpAddr>; 2],
}

/// The Services: by traffic policy, and one whose internal traffic policy is Local.
const SERVICES: [&str; 3] = ["spread", "stay", "inside"];

/// Tries the profile in a world, calling `ended` with each case.
pub async fn run(
    live: &mut Live,
    wanted: &(dyn Fn(&str) -> bool + Send + Sync),
    ended: &(dyn Fn(Outcome) + Send + Sync),
) {
    let start = Instant::now();
    let blank = || Outcome::new(NAME, "open", &["N1"], true);
    let (served, mut notes) = match set_up(live).await {
        Ok(set_up) => set_up,
        Err(why) => return ended(blank().unable(why)),
    };
    // no policy: the ways that lead anywhere
    let checks = checks(live, &served, None);
    let settled = live.settle("no policy", &checks, Instant::now()).await;
    let closed = |c: &Check| settled.differences.iter().any(|d| is_of(d, c));
    let open: Vec<Check> = checks.iter().filter(|c| !closed(c)).cloned().collect();
    for check in checks.iter().filter(|c| closed(c) && !must_be_open(c)) {
        notes.push(format!(
            "nobody answers without a policy: {} by {} {}, left out",
            check.pair.from, check.pair.to, check.pair.port
        ));
    }
    let mut outcome = blank();
    outcome.checks = settled.checks;
    outcome.settled_ms.extend(settled.after.map(|a| a.as_millis() as u64));
    outcome.differences = checks
        .iter()
        .filter(|c| must_be_open(c))
        .flat_map(|c| settled.differences.iter().filter(|d| is_of(d, c)).cloned())
        .collect();
    outcome.notes = notes;
    outcome.seconds = start.elapsed();
    let strict = live.shared.strict;
    if wanted("open") || !outcome.differences.is_empty() {
        ended(match settled.unasked {
            Some(why) => outcome.unable(why),
            None => outcome.judged(strict),
        });
    }
    for policy in policies::ALL.iter().filter(|p| wanted(p.name)) {
        under(live, policy, &served, &open, ended).await;
    }
    let namespace = live.world.namespace("x");
    for name in SERVICES.iter().flat_map(|s| [format!("{s}-4"), format!("{s}-6")]) {
        // the namespace goes anyway: what is left is only in the way of nobody
        let _ = live.shared.api.delete(&format!("{}/{name}", path::services(&namespace))).await;
    }
    let _ = live.stop("x/server").await;
}

fn is_of(difference: &crate::report::Difference, check: &Check) -> bool {
    difference.from == check.pair.from
        && difference.to == check.pair.to
        && difference.port == check.pair.port.to_string()
        && difference.address == check.question.address.to_string()
}

/// A pod's address and a ClusterIP are what a cluster cannot be without.
fn must_be_open(check: &Check) -> bool {
    matches!(check.pair.to.as_str(), "pod" | "clusterip") && !check.pair.from.starts_with("node")
}

/// Both cases of a policy.
async fn under(
    live: &mut Live,
    policy: &Policy,
    served: &[Served],
    open: &[Check],
    ended: &(dyn Fn(Outcome) + Send + Sync),
) {
    let start = Instant::now();
    let named = |name: &str, required| Outcome::new(NAME, name, policy.statements, required);
    let (mut required, mut left) =
        (named(policy.name, true), named(&format!("{}-elsewhere", policy.name), false));
    if let Some(word) = policy.lacks(&|word| addresses(live, served, word)) {
        let why = format!("{word} has no address that is known here");
        ended(required.skipped(why.clone()));
        return ended(left.skipped(why));
    }
    let spec = policy.spec(&|word| addresses(live, served, word));
    let action = Action::Policy { namespace: "x", name: policy.name.to_owned(), spec, may_be_refused: false };
    let since = Instant::now();
    if let Err(error) = live.act(&action).await {
        return ended(required.unable(error.to_string()));
    }
    let all = checks(live, served, Some(policy));
    let all: Vec<Check> = all
        .into_iter()
        .filter(|c| open.iter().any(|o| o.pair == c.pair && o.question.address == c.question.address))
        .collect();
    // each kind waits for its own: what engines may decide is not waited for by what they must
    let (must, may): (Vec<Check>, Vec<Check>) =
        all.into_iter().partition(|c| policy.requires(&c.pair.from, &c.pair.to));
    let (must, may) =
        tokio::join!(live.settle(policy.about, &must, since), live.settle(policy.about, &may, since));
    let mut unable = None;
    for (settled, outcome) in [(must, &mut required), (may, &mut left)] {
        outcome.checks = settled.checks;
        outcome.settled_ms.extend(settled.after.map(|a| a.as_millis() as u64));
        outcome.differences = settled.differences;
        outcome.seconds = start.elapsed();
        unable = unable.or(settled.unasked);
    }
    if let Err(error) = live.reset().await {
        unable = unable.or(Some(told(error)));
    }
    if let Some(why) = unable {
        return ended(required.unable(why));
    }
    let strict = live.shared.strict;
    ended(required.judged(strict));
    ended(left.judged(strict));
    // open again, before the next one: on the ways that have no translation
    let plain: Vec<Check> = open.iter().filter(|c| c.pair.to == "pod").cloned().collect();
    live.settle("open again", &plain, Instant::now()).await;
}

/// The addresses that a policy's word means.
fn addresses(live: &Live, served: &[Served], word: &str) -> Vec<IpAddr> {
    match word {
        "services" => served
            .iter()
            .flat_map(|s| s.cluster_ip.into_iter().chain(s.balancer.into_iter().flatten()))
            .collect(),
        _ => live.world.addresses(pod(word)),
    }
}

/// The pod that a client's word means.
fn pod(word: &str) -> &'static str {
    match word {
        "server" => "x/server",
        "near" => "x/c",
        "far" => "x/b",
        "node1" => "z/host0",
        _ => "z/host1",
    }
}

/// All lines, over both protocols, that this cluster has the ends for.
fn checks(live: &Live, served: &[Served], policy: Option<&Policy>) -> Vec<Check> {
    let mut found = Vec::new();
    for served in served {
        for line in table::lines().iter().filter(|l| l.open) {
            if live.world.pod(pod(&line.client)).is_none() {
                continue;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let Some((address, number)) = target(live, served, &line.way, protocol) else { continue };
                let allowed = policy.is_none_or(|p| p.allows(line));
                let why = format!(
                    "egress policy sees {}, ingress policy {}{}",
                    seen(&line.egress),
                    seen(&line.ingress),
                    policy.map(|p| format!("; {}", p.about)).unwrap_or_default()
                );
                found.push(Check {
                    pair: Pair {
                        from: line.client.clone(),
                        to: line.name.clone(),
                        port: Port { protocol, number },
                        v4: served.v4,
                    },
                    question: Question {
                        client: live.world.client(pod(&line.client)),
                        address,
                        port: Port { protocol, number },
                        ask: "hostname",
                    },
                    expected: Expectation { allowed, why },
                    hostname: live.hostnames.get("x/server").cloned().unwrap_or_default(),
                });
            }
        }
    }
    found
}

fn seen(word: &str) -> String {
    if word == "." { "nothing".into() } else { word.replace(':', " ") }
}

/// The address and port of a way.
fn target(live: &Live, served: &Served, way: &Way, protocol: Protocol) -> Option<(IpAddr, u16)> {
    let udp = usize::from(protocol == Protocol::Udp);
    let of_pod = |alias: &str| live.world.addresses(alias).into_iter().find(|ip| ip.is_ipv4() == served.v4);
    let node = |n: usize| of_pod(if n == 0 { "z/host0" } else { "z/host1" });
    let service = SERVICE_PORT + udp as u16;
    match *way {
        Way::Pod => Some((of_pod("x/server")?, FIRST)),
        Way::ClusterIp => Some((served.cluster_ip[0], service)),
        Way::Internal => Some((served.cluster_ip[2], service)),
        Way::NodePort { local, node: n } => Some((node(n)?, served.node_ports[usize::from(local)][udp])),
        Way::LoadBalancer { local } => Some((served.balancer[usize::from(local)]?, service)),
        Way::HostPort => Some((node(0)?, HOST_PORT + udp as u16)),
    }
}

/// Makes server and Services.
async fn set_up(live: &mut Live) -> Result<(Vec<Served>, Vec<String>), String> {
    let mut notes = Vec::new();
    if live.world.nodes.len() < 2 {
        notes.push("there is one node: ways from and by another one are left out".to_owned());
    }
    if live.world.pod("z/host0").is_none() {
        notes.push("no pods in their nodes' network: ways from and by nodes are left out".to_owned());
    }
    let plan = PodPlan {
        namespace: "x".into(),
        name: "server".into(),
        node: 0,
        host_network: false,
        labels: [("serves".to_owned(), "yes".to_owned())].into(),
    };
    let mut object = live.world.pod_object(&plan);
    object["spec"]["containers"][0]["ports"] = json!([
        {"containerPort": FIRST, "protocol": "TCP", "hostPort": HOST_PORT},
        {"containerPort": FIRST, "protocol": "UDP", "hostPort": HOST_PORT + 1},
    ]);
    live.start_object("x/server", &object).await?;
    let mut served = Vec::new();
    for v4 in live.world.families.clone() {
        served.push(services(live, v4, &mut notes).await?);
    }
    Ok((served, notes))
}

/// The three Services of a family.
async fn services(live: &Live, v4: bool, notes: &mut Vec<String>) -> Result<Served, String> {
    let api = &live.shared.api;
    let family = if v4 { "4" } else { "6" };
    let namespace = live.world.namespace("x");
    let services = path::services(&namespace);
    let mut made = Vec::new();
    for (index, name) in SERVICES.iter().enumerate() {
        let ports = [("TCP", SERVICE_PORT), ("UDP", SERVICE_PORT + 1)].map(|(protocol, port)| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": port, "targetPort": FIRST})
        });
        let mut spec = json!({
            "ipFamilies": [if v4 { "IPv4" } else { "IPv6" }], "ipFamilyPolicy": "SingleStack",
            "selector": {"serves": "yes", LABEL: live.world.suffix}, "ports": ports,
        });
        if index < 2 {
            spec["type"] = json!("LoadBalancer");
            spec["loadBalancerClass"] = json!(CLASS);
            spec["externalTrafficPolicy"] = json!(if index == 0 { "Cluster" } else { "Local" });
        } else {
            spec["internalTrafficPolicy"] = json!("Local");
        }
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("{name}-{family}")}, "spec": spec});
        made.push(api.put(&services, &format!("{name}-{family}"), &object).await.map_err(told)?);
    }
    let mut balancer = [None, None];
    for (index, slot) in balancer.iter_mut().enumerate() {
        // addresses for documentation: nobody else has them
        let host = 10 + 2 * live.world.index + index;
        let ip = if v4 { format!("192.0.2.{host}") } else { format!("2001:db8:99::{host}") };
        let path = format!("{services}/{}-{family}/status", SERVICES[index]);
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
        match api.merge(&path, &status).await {
            Ok(_) => *slot = ip.parse().ok(),
            Err(error) => notes.push(format!("load balancers' addresses are left out: {error}")),
        }
    }
    let cluster_ip =
        |service: &Value| text(service, "/spec/clusterIP").parse::<IpAddr>().map_err(|e| e.to_string());
    let ports = |service: &Value| {
        [0, 1].map(|i| service["spec"]["ports"][i]["nodePort"].as_u64().unwrap_or_default() as u16)
    };
    Ok(Served {
        v4,
        cluster_ip: [cluster_ip(&made[0])?, cluster_ip(&made[1])?, cluster_ip(&made[2])?],
        node_ports: [ports(&made[0]), ports(&made[1])],
        balancer,
    })
}
