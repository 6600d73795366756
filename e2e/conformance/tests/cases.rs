//! The cases of profile netpol without a cluster: what Weir's evaluator expects of each, written down.
//!
//! A snapshot is what people can read and compare with docs/semantics.md: who reaches whom in each phase.

use std::fmt::Write;

use serde_json::{Value, json};
use weir_conformance::case::{Action, Case, Pair, pairs};
use weir_conformance::judge::Judge;
use weir_conformance::netpol;
use weir_conformance::world::{NAMESPACES, World};

/// A world as it would be in a cluster of two nodes with both families and SCTP.
fn world() -> World {
    let mut world = World {
        suffix: "test".into(),
        index: 0,
        nodes: vec!["node1".into(), "node2".into()],
        families: vec![true, false],
        sctp: true,
        image: "agnhost".into(),
        objects: Default::default(),
    };
    for alias in NAMESPACES {
        let object = world.namespace_object(alias);
        world.keep(object, "Namespace");
    }
    let plans: Vec<_> = World::pods().into_iter().chain(world.host_pods()).collect();
    for (index, plan) in plans.iter().enumerate() {
        let mut object = world.pod_object(plan);
        let node = world.node(plan.node).to_owned();
        let n = index + 1;
        let ips = if plan.name.starts_with("host") {
            json!([{"ip": format!("172.16.0.{}", plan.node + 1)}, {"ip": format!("fd00:16::{}", plan.node + 1)}])
        } else {
            json!([{"ip": format!("10.0.{}.{n}", plan.node)}, {"ip": format!("fd00:10:{}::{n}", plan.node)}])
        };
        object["spec"]["nodeName"] = json!(node);
        object["status"] = json!({"phase": "Running", "podIPs": ips});
        world.keep(object, "Pod");
    }
    world
}

/// What an API server would make of it.
fn act(world: &mut World, action: &Action) {
    let merge = |world: &mut World, kind: &str, namespace: String, name: String, labels: &Value| {
        let mut object = world.objects[&(kind.to_owned(), namespace, name)].clone();
        for (key, value) in labels.as_object().expect("labels") {
            let now = object["metadata"]["labels"].as_object_mut().expect("labels");
            match value {
                Value::Null => drop(now.remove(key)),
                value => drop(now.insert(key.clone(), value.clone())),
            }
        }
        world.keep(object, kind);
    };
    match action {
        Action::Policy { namespace, name, spec, .. } => {
            let object = world.policy_object(namespace, name, spec);
            world.keep(object, "NetworkPolicy");
        }
        Action::NoPolicy { namespace, name } => {
            let namespace = world.namespace(namespace);
            world.forget("NetworkPolicy", &namespace, name);
        }
        Action::PodLabels { pod, labels } => {
            let key = world.key(pod);
            merge(world, "Pod", key.namespace, key.name, labels);
        }
        Action::NamespaceLabels { namespace, labels } => {
            let name = world.namespace(namespace);
            merge(world, "Namespace", String::new(), name, labels);
        }
    }
}

fn verdicts(world: &World, asked: &[Pair]) -> Vec<bool> {
    let judge = Judge::new(world.objects.values()).expect("the suite's objects can be read");
    let verdict = |pair: &Pair| {
        let (from, to) = pair.keys(world);
        let address =
            world.addresses(&pair.to).into_iter().find(|ip| ip.is_ipv4() == pair.v4).expect("an address");
        judge.judge(&from, &to, address, pair.port.protocol, pair.port.number).allowed
    };
    asked.iter().map(verdict).collect()
}

/// A line for each client, port and family, with those that it reaches; clients that reach the same are one line.
fn table(asked: &[Pair], passes: &[bool]) -> String {
    use std::collections::BTreeMap;
    let mut rows: BTreeMap<(String, String), (Vec<&str>, usize)> = BTreeMap::new();
    for (pair, passes) in asked.iter().zip(passes) {
        let family = if pair.v4 { "IPv4" } else { "IPv6" };
        let row = rows.entry((pair.from.clone(), format!("{} {family}", pair.port))).or_default();
        row.1 += 1;
        if *passes {
            row.0.push(&pair.to);
        }
    }
    let mut by_client: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for ((from, port), (reached, asked)) in rows {
        let reached = match reached.len() {
            0 => "nobody".to_owned(),
            n if n == asked => "all".to_owned(),
            _ => reached.join(" "),
        };
        by_client.entry(from).or_default().entry(reached).or_default().push(port);
    }
    let mut text = String::new();
    for (from, reaches) in by_client {
        for (reached, ports) in &reaches {
            let ports = if reaches.len() == 1 { "every port".to_owned() } else { ports.join(", ") };
            let _ = writeln!(text, "  {from} -> {reached}: {ports}");
        }
    }
    text
}

fn of_case(case: &Case) -> String {
    let mut text = format!("{} ({})\n", case.name, case.statements.join(", "));
    let mut world = world();
    for phase in (case.phases)(&world.clone()) {
        for action in &phase.actions {
            act(&mut world, action);
        }
        let asked = pairs(&world, &phase.ask);
        assert!(!asked.is_empty(), "{}: nothing is asked in {}", case.name, phase.about);
        let _ = write!(text, "{}\n{}", phase.about, table(&asked, &verdicts(&world, &asked)));
    }
    text
}

#[test]
fn what_the_evaluator_expects_of_each_case() {
    let all: Vec<String> = netpol::cases().iter().map(of_case).collect();
    insta::assert_snapshot!(all.join("\n"));
}

/// A case of which no phase denies anything, or that never allows, would prove little.
#[test]
fn cases_can_fail() {
    for case in netpol::cases() {
        let mut world = world();
        let (mut denied, mut allowed) = (0, 0);
        for phase in (case.phases)(&world.clone()) {
            phase.actions.iter().for_each(|action| act(&mut world, action));
            let asked = pairs(&world, &phase.ask);
            let passes = verdicts(&world, &asked).iter().filter(|p| **p).count();
            allowed += passes;
            denied += asked.len() - passes;
        }
        assert!(allowed > 0 || case.name == "pods-to-nodes", "{} allows nothing", case.name);
        let open = ["open-without-policies", "own-node-reaches-its-pods"];
        assert!(denied > 0 || open.contains(&case.name), "{} denies nothing", case.name);
    }
}

#[test]
fn a_seed_makes_the_same_policies_again() {
    let world = world();
    let text = |seed| format!("{:?}", netpol::random_policies(&world, seed));
    assert_eq!(text(7), text(7));
    let different: std::collections::BTreeSet<String> = (0..50).map(text).collect();
    assert!(different.len() > 45, "{}", different.len());
    let mut denying = 0;
    for seed in 0..50 {
        let mut world = world.clone();
        netpol::random_policies(&world.clone(), seed).iter().for_each(|action| act(&mut world, action));
        let asked = pairs(&world, &weir_conformance::case::Ask::Everything);
        denying += usize::from(verdicts(&world, &asked).contains(&false));
    }
    assert!(denying > 35, "{denying} of 50 deny something");
}

/// The names of the API's objects are put back into those of cases.
#[test]
fn reasons_have_short_names() {
    let mut world = world();
    let deny = Action::Policy {
        namespace: "x",
        name: "deny".into(),
        spec: json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        may_be_refused: false,
    };
    act(&mut world, &deny);
    let judge = Judge::new(world.objects.values()).expect("objects");
    let address = world.addresses("x/a")[0];
    let said = judge.judge(
        &world.key("y/a"),
        &world.key("x/a"),
        address,
        weir_compiler::object::Protocol::Tcp,
        8080,
    );
    assert!(!said.allowed);
    assert_eq!(world.shorten(&said.why), "ingress: x/a is isolated by x/deny and no clause allows it");
}
