//! Allowed connections are told of where a namespace asks for it, and nothing else changes.

mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

use std::net::IpAddr;

use common::costs::costs;
use common::{Packet, passes, told};
use proptest::prelude::*;
use weir_compiler::object::{
    Event, LabelSelector, Labels, Namespace, ObjectKey, Policy, PolicySpec, Protocol,
};
use weir_compiler::ports::L4;
use weir_compiler::slice::{Direction, RulesetId};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::{Op, Table, Transaction};
use weir_dataplane::{Attachment, DenialLog, Planner, Settings, stages};
use world::{NODES, addresses, batches, plain_pod};

fn planner(compiler: &Compiler, node: &str, settings: Settings, own: bool) -> Planner {
    let mut planner = Planner::with(settings);
    planner.update(&compiler.snapshot(node).changes);
    let here = planner.slice().pods.iter().filter(|_| own);
    let here = here.flat_map(|(key, pod)| pod.addresses.iter().map(move |a| (*a, key)));
    let attachments = here.map(|(a, key)| (a, Attachment::Own(format!("veth{}{}", key.namespace, key.name))));
    let attachments = attachments.collect();
    planner.attach(attachments);
    planner
}

proptest! {
    #![proptest_config(world::cases(100))]

    /// Each end of its own: egress and then, if that allows it, ingress; and what is told is what is allowed.
    #[test]
    fn what_is_allowed_is_told(batches in batches(10), costs in costs(), own: bool) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        batches.into_iter().for_each(|batch| drop(compiler.apply(batch)));
        for node in NODES {
            let log_denials = Some(DenialLog::default());
            let told_of = planner(&compiler, node, Settings { costs, log_denials, ..Settings::default() }, own);
            let slice = told_of.slice();
            let pod = |address: IpAddr| slice.pods.iter().find(|(_, pod)| pod.addresses.contains(&address));
            let interface = |address: IpAddr| match pod(address) {
                Some((key, _)) if own => format!("veth{}{}", key.namespace, key.name),
                _ => "eth0".to_owned(),
            };
            for (source, destination) in addresses().flat_map(|a| addresses().map(move |b| (a, b))) {
                let itself = pod(source).is_some_and(|(_, pod)| pod.addresses.contains(&destination));
                if source == destination || source.is_ipv4() != destination.is_ipv4() || itself {
                    continue;
                }
                let packet = Packet {
                    iif: interface(source), oif: interface(destination), source, destination, protocol: 6, port: 80,
                };
                let mut expected = Vec::new();
                for (direction, subject, peer) in
                    [(Direction::Egress, source, destination), (Direction::Ingress, destination, source)]
                {
                    let Some((key, pod)) = pod(subject) else { continue };
                    let profile = &slice.profiles[&pod.profile];
                    let name = |id: RulesetId| format!("{}_{}", direction.as_str(), id.name());
                    // what is audited counts where nothing else isolates (U29)
                    let audited = || Some(format!("audit_{}", name(profile.audited(direction)?)));
                    let chain = profile.ruleset(direction).map(name).or_else(audited);
                    let l4 = L4::Port(Protocol::Tcp, 80);
                    if !slice.verdict(key, direction, peer, l4).allowed {
                        expected.push(chain.expect("it is isolated"));
                        break;
                    }
                    expected.extend(slice.audited(key, direction, peer, l4).and(chain.clone()));
                    if pod.log_allowed > 0 {
                        let chain = chain.unwrap_or(direction.as_str().to_owned());
                        expected.push(format!("allowed_{chain}_{}", pod.log_allowed));
                    }
                }
                prop_assert_eq!(told(told_of.table(), "forward", &packet), expected, "{:?}", packet);
            }
            // it is dispatch alone that knows of it, and without the log of denials there is none
            let quiet = planner(&compiler, node, Settings { costs, ..Settings::default() }, own);
            prop_assert!(!quiet.table().to_string().contains("allowed_"));
        }
    }
}

fn labels() -> Labels {
    [("app".to_owned(), "web".to_owned())].into()
}

/// A pod that is isolated for ingress, and one that is not, in a namespace that asks for one of so many.
fn world(log_allowed: u32) -> Vec<Event> {
    let namespace = Namespace { name: "a".into(), log_allowed, ..Namespace::default() };
    let deny = Policy {
        created: 0,
        audit: None,
        namespace: "a".into(),
        name: "deny".into(),
        spec: PolicySpec {
            pod_selector: LabelSelector { match_labels: labels(), ..Default::default() },
            ingress: vec![Default::default()],
            ..Default::default()
        },
    };
    let mut web = plain_pod(ObjectKey::new("a", "web"), "10.0.0.1");
    web.labels = labels();
    let other = plain_pod(ObjectKey::new("a", "other"), "10.0.0.2");
    vec![Event::Namespace(namespace), Event::Pod(web), Event::Pod(other), Event::Policy(deny)]
}

fn telling() -> Settings {
    Settings { log_denials: Some(DenialLog::default()), ..Settings::default() }
}

/// The names of chains that tell, with their rules.
fn chains(table: &Table) -> Vec<(String, Vec<String>)> {
    let of = table.chains.iter().filter(|(name, _)| name.starts_with("allowed_"));
    of.map(|(name, chain)| (name.clone(), chain.rules.iter().map(ToString::to_string).collect())).collect()
}

#[test]
fn the_chains_come_and_go_with_the_annotation() {
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let mut planner = Planner::with(telling());
    let mut turn = |events| {
        compiler.apply(events).slices.iter().for_each(|delta| planner.update(&delta.changes));
        chains(planner.table())
    };
    assert_eq!(turn(world(0)), []);
    let log = |name: &str| {
        format!("limit rate 100/second burst 200 packets log prefix \"{name}\" group 29 snaplen 128")
    };
    let all = turn(world(1));
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let [egress, ingress, isolated] = names[..] else { panic!("{names:?}") };
    assert_eq!([egress, ingress], ["allowed_egress_1", "allowed_ingress_1"]);
    let id = isolated
        .strip_prefix("allowed_ingress_")
        .and_then(|name| name.strip_suffix("_1"))
        .expect("of a ruleset");
    assert_eq!(all[0].1, [format!("ct status ! confirmed {}", log(egress))]);
    assert_eq!(all[2].1, [format!("jump ingress_{id}"), format!("ct status ! confirmed {}", log(isolated))]);
    // one of ten: 2^32 / 10 values of 2^32
    let sampled = turn(world(10));
    assert_eq!(sampled.len(), 3);
    let first = format!("ct status ! confirmed meta random <= 429496728 {}", log("allowed_egress_10"));
    assert_eq!(sampled[0], ("allowed_egress_10".to_owned(), vec![first]));
    let half = turn(world(2));
    assert!(half[0].1[0].contains("meta random <= 2147483647 "), "{half:?}");
    assert_eq!(turn(vec![Event::NamespaceGone("a".into())]), []);
}

/// The kernel refuses a chain that tells: policies are in force without it, and it is tried again later.
#[test]
fn what_the_kernel_refuses_to_tell_closes_nobody() {
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply(world(1));
    let mut planner = planner(&compiler, "n", telling(), false);
    let packet = |destination: &str| Packet {
        iif: "eth0".into(),
        oif: "eth1".into(),
        source: "10.9.9.9".parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: 6,
        port: 80,
    };
    let before = planner.table().clone();
    assert_eq!(told(&before, "forward", &packet("10.0.0.1")).len(), 1);
    let name = chains(&before)[0].0.clone();
    assert!(planner.close(&name).is_empty());
    assert_eq!(chains(planner.table()), []);
    assert!(["10.0.0.1", "10.0.0.2"].iter().all(|to| passes(planner.table(), "forward", &packet(to))));
    planner.reopen();
    assert_eq!(*planner.table(), before);
}

/// A pod comes to a ruleset whose chain gets other rules, while another pod gets a ruleset that is new: the first one
/// meets the chain in the batch that rewrites it, also by way of a chain that tells (see `stages`).
#[test]
fn an_end_that_comes_to_a_rewritten_chain_comes_with_its_rules() {
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let mut planner = Planner::with(telling());
    let mut turn = |planner: &mut Planner, events: Vec<Event>| {
        compiler.apply(events).slices.iter().for_each(|delta| planner.update(&delta.changes));
    };
    turn(&mut planner, world(1));
    planner.take();
    let mut comes = plain_pod(ObjectKey::new("a", "comes"), "10.0.0.3");
    comes.labels = labels();
    let all = Policy {
        created: 0,
        audit: None,
        namespace: "a".into(),
        name: "all".into(),
        spec: PolicySpec { policy_types: vec!["Egress".into()], ..Default::default() },
    };
    turn(&mut planner, vec![Event::Pod(comes), Event::Policy(all)]);
    planner.drop_mid_stream(true);
    let batches = stages(planner.take());
    let has = |wanted: &dyn Fn(&Op) -> bool| -> Vec<usize> {
        let of = |batch: &Vec<Transaction>| batch.iter().any(|t| t.ops.iter().any(wanted));
        (0..batches.len()).filter(|i| of(&batches[*i])).collect()
    };
    let rewritten = has(&|op| matches!(op, Op::FlushChain { chain } if chain.starts_with("ingress_")));
    let arrives = has(&|op| matches!(op, Op::AddElements { set, .. } if set == "ingress_by_address_4"));
    assert!(batches.len() > 1 && rewritten.len() == 1, "{batches:?}");
    assert_eq!(arrives, rewritten);
}
