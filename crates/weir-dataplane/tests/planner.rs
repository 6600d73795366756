//! What the planner writes is what the policies mean, however it came to it.

mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

use std::net::IpAddr;
use std::num::NonZeroU32;

use common::costs::{costs, log_of};
use common::{Packet, passes, passes_and_is_told};
use proptest::prelude::*;
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::{
    Event, IngressRule, IpBlock, LabelSelector, Labels, ObjectKey, Peer, Pod, Policy, PolicySpec, Protocol,
};
use weir_compiler::slice::Effect;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::{Family, Op, Table};
use weir_dataplane::{
    Attachment, Attachments, Costs, DenialLog, Planner, Settings, difference, differences, fake, rebuilt,
};
use world::{NODES, World, addresses, batches, plain_pod};

/// How the pods of a node are attached: by the parity of each bit of the seed, so that it changes
/// from batch to batch. Pods on a bridge share `cni0`.
fn attachments(planner: &Planner, seed: u64) -> Attachments {
    let mut all = Attachments::new();
    for (i, (key, pod)) in planner.slice().pods.iter().enumerate() {
        for address in &pod.addresses {
            let attachment = match seed >> (2 * i % 62) & 3 {
                0 => continue,
                1 => Attachment::Shared("cni0".into()),
                _ => Attachment::Own(interface(key)),
            };
            all.insert(*address, attachment);
        }
    }
    all
}

fn interface(key: &ObjectKey) -> String {
    format!("veth{}{}", key.namespace, key.name)
}

fn fresh(compiler: &Compiler, node: &str, seed: u64, costs: Costs) -> Planner {
    fresh_with(compiler, node, seed, Settings { costs, log_denials: log_of(costs), ..Settings::default() })
}

fn fresh_with(compiler: &Compiler, node: &str, seed: u64, settings: Settings) -> Planner {
    let mut planner = Planner::with(settings);
    planner.update(&compiler.snapshot(node).changes);
    planner.attach(attachments(&planner, seed));
    planner
}

fn apply(kernel: &mut Option<Table>, planner: &mut Planner) {
    for transaction in planner.take() {
        fake::apply(kernel, &transaction).unwrap_or_else(|why| panic!("{why}\n{transaction}"));
    }
}

proptest! {
    #![proptest_config(world::cases(200))]

    #[test]
    fn changes_and_comparisons_lead_to_the_same_table(
        batches in batches(10),
        seeds in proptest::collection::vec(any::<u64>(), 10),
        costs in costs(),
    ) {
        let node = "n1";
        let mut compiler = Compiler::new(Scope::Node(node.into()));
        let mut planner = Planner::with(Settings { costs, log_denials: log_of(costs), ..Settings::default() });
        let mut kernel: Option<Table> = None;
        let first = difference(None, planner.table()).unwrap();
        fake::apply(&mut kernel, &first).unwrap();
        let mut seen = vec![planner.table().clone()];
        let mut world = World::default();
        for (batch, seed) in batches.into_iter().zip(seeds) {
            batch.iter().for_each(|e| world.apply(e));
            for delta in compiler.apply(batch).slices {
                planner.update(&delta.changes);
            }
            planner.attach(attachments(&planner, seed));
            apply(&mut kernel, &mut planner);
            prop_assert_eq!(kernel.as_ref(), Some(planner.table()), "changes");
            let from_scratch = fresh(&compiler, node, seed, costs);
            prop_assert_eq!(planner.table(), from_scratch.table(), "from scratch");
            prop_assert_eq!(difference(kernel.as_ref(), planner.table()), None);
            // from any state that the kernel was in, and from none
            for earlier in seen.iter().cloned().map(Some).chain([None]) {
                let mut kernel = earlier;
                if let Some(transaction) = difference(kernel.as_ref(), planner.table()) {
                    fake::apply(&mut kernel, &transaction).unwrap_or_else(|why| panic!("{why}\n{transaction}"));
                }
                prop_assert_eq!(kernel.as_ref(), Some(planner.table()), "comparison");
            }
            seen.push(planner.table().clone());
        }
        let gone: Vec<Event> = world.pods.into_keys().map(Event::PodGone).collect();
        for delta in compiler.apply(gone).slices {
            planner.update(&delta.changes);
        }
        apply(&mut kernel, &mut planner);
        let empty = Planner::new();
        prop_assert_eq!(kernel.as_ref(), Some(empty.table()), "nothing is left");
    }

    #[test]
    fn packets_pass_as_the_naive_model_says(batches in batches(10), seed: u64, costs in costs()) {
        let mut compiler = Compiler::new(Scope::AllNodes);
        let mut world = World::default();
        for batch in batches {
            batch.iter().for_each(|e| world.apply(e));
            compiler.apply(batch);
        }
        let enforced = world.with_audited();
        for node in NODES {
            let planner = fresh(&compiler, node, seed, costs);
            let (log, revoked_mark) = (DenialLog::default(), NonZeroU32::new(0x1000));
            let in_audit = Settings {
                costs, log_denials: Some(log), audit: true, close_unknown: true, drop_mid_stream: true, revoked_mark,
                ..Settings::default()
            };
            let in_audit = fresh_with(&compiler, node, seed, in_audit);
            prop_assert!(!in_audit.table().to_string().contains("drop"), "{}", in_audit.table());
            // what would only be allowed is known, and nothing in the kernel (U29)
            let known = planner.slice().rulesets.iter().filter(|(_, ruleset)| ruleset.effect == Effect::WouldAllow);
            for (id, _) in known {
                prop_assert!(!planner.table().to_string().contains(&id.name()), "{}", planner.table());
            }
            let attached = attachments(&planner, seed);
            let here = |address: IpAddr| -> Option<&Pod> {
                world.owner(address).filter(|p| planner.slice().pods.contains_key(&p.key))
            };
            let interface = |address: IpAddr| match (here(address), attached.get(&address)) {
                (None, _) => "eth0".to_owned(),
                (Some(_), Some(attachment)) => attachment.interface().to_owned(),
                (Some(_), None) => "cni1".to_owned(),
            };
            for source in addresses() {
                for destination in addresses().filter(|d| d.is_ipv4() == source.is_ipv4()) {
                    let same = here(source).is_some() && here(source).map(|p| &p.key) == here(destination).map(|p| &p.key);
                    if source == destination || (same && !attached.contains_key(&source)) {
                        continue; // such a packet shows itself by its interface only
                    }
                    for (protocol, port) in [
                        (Protocol::Tcp, 80u16), (Protocol::Udp, 80), (Protocol::Sctp, 81), (Protocol::Tcp, 79),
                        (Protocol::Udp, 83), (Protocol::Tcp, 9),
                    ] {
                        let packet = Packet {
                            iif: interface(source),
                            oif: interface(destination),
                            source,
                            destination,
                            protocol: protocol.number(),
                            port,
                        };
                        let egress = here(source).is_none_or(|p| world.allows(p, false, destination, protocol, port));
                        let ingress = here(destination).is_none_or(|p| world.allows(p, true, source, protocol, port));
                        let (passed, told) = passes_and_is_told(planner.table(), "forward", &packet);
                        prop_assert_eq!(passed, egress && ingress, "{:?}\n{}", packet, planner.table());
                        // U29: what it would be if what is audited were enforced
                        let would_e = here(source).is_none_or(|p| enforced.allows(p, false, destination, protocol, port));
                        let would_i = here(destination).is_none_or(|p| enforced.allows(p, true, source, protocol, port));
                        let logged = |told: &[(bool, &str)]| -> Vec<String> {
                            told.iter().filter(|(it_is, _)| *it_is).map(|(_, what)| (*what).to_owned()).collect()
                        };
                        let wanted = logged(&[
                            (!egress, "egress"), (egress && !would_e, "audit_egress"),
                            (egress && !ingress, "ingress"), (egress && ingress && !would_i, "audit_ingress"),
                        ]);
                        if log_of(costs).is_some() {
                            prop_assert_eq!(told, wanted, "{:?}\n{}", packet, planner.table());
                        } else {
                            prop_assert_eq!(told, Vec::<String>::new());
                        }
                        let wanted = logged(&[
                            (!egress || !would_e, "audit_egress"), (!ingress || !would_i, "audit_ingress"),
                        ]);
                        prop_assert_eq!(
                            passes_and_is_told(in_audit.table(), "forward", &packet), (true, wanted),
                            "{:?}\n{}", packet, in_audit.table()
                        );
                        if !same {
                            prop_assert_eq!(passes(planner.table(), "input", &packet), egress, "to the node: {:?}", packet);
                        }
                    }
                }
            }
        }
    }
}

/// U3: a packet that a Service sent back to its sender.
#[test]
fn u3_a_pod_reaches_itself_through_a_service() {
    let pod = plain_pod(ObjectKey::new("a", "p"), "10.0.0.1");
    let deny = weir_compiler::object::Policy {
        namespace: "a".into(),
        name: "deny".into(),
        created: 0,
        audit: None,
        spec: weir_compiler::object::PolicySpec {
            policy_types: vec!["Ingress".into(), "Egress".into()],
            ..Default::default()
        },
    };
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply([Event::Pod(pod), Event::Policy(deny)]);
    for attachment in [Attachment::Own("veth0".into()), Attachment::Shared("cni0".into())] {
        let mut planner = Planner::new();
        planner.update(&compiler.snapshot("n").changes);
        planner.attach([("10.0.0.1".parse().unwrap(), attachment.clone())].into());
        let packet = |iif: &str, source: &str| Packet {
            iif: iif.into(),
            oif: attachment.interface().into(),
            source: source.parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol: 6,
            port: 80,
        };
        assert!(passes(planner.table(), "forward", &packet(attachment.interface(), "10.0.0.1")));
        // not another pod that borrows the address
        assert!(!passes(planner.table(), "forward", &packet("eth0", "10.0.0.1")));
        assert!(!passes(planner.table(), "forward", &packet(attachment.interface(), "10.0.0.2")));
    }
}

/// U6: with `--pod-to-own-node=allow` the node's own addresses are open to its pods, and nothing else is.
#[test]
fn u6_a_node_may_be_open_to_its_own_pods() {
    let pod = plain_pod(ObjectKey::new("a", "p"), "10.0.0.1");
    let deny = weir_compiler::object::Policy {
        namespace: "a".into(),
        name: "deny".into(),
        created: 0,
        audit: None,
        spec: weir_compiler::object::PolicySpec { policy_types: vec!["Egress".into()], ..Default::default() },
    };
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply([Event::Pod(pod), Event::Policy(deny)]);
    for attachment in [Some(Attachment::Own("veth0".into())), Some(Attachment::Shared("cni0".into())), None] {
        let packet = Packet {
            iif: attachment.as_ref().map_or("eth0", Attachment::interface).into(),
            oif: "eth0".into(),
            source: "10.0.0.1".parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            protocol: 6,
            port: 10250,
        };
        let attachments: Attachments =
            attachment.into_iter().map(|a| ("10.0.0.1".parse().unwrap(), a)).collect();
        let hooks = |own_node| {
            let mut planner = Planner::with(Settings { own_node, ..Settings::default() });
            planner.update(&compiler.snapshot("n").changes);
            planner.attach(attachments.clone());
            ["input", "forward"].map(|hook| passes(planner.table(), hook, &packet))
        };
        assert_eq!(hooks(PodToOwnNode::Enforce), [false, false]);
        assert_eq!(hooks(PodToOwnNode::Allow), [true, false]);
    }
}

/// U27: each ruleset of an isolated pod begins with it.
#[test]
fn u27_what_conntrack_calls_invalid_is_dropped_at_isolated_pods() {
    let pod = plain_pod(ObjectKey::new("a", "p"), "10.0.0.1");
    let deny = weir_compiler::object::Policy {
        namespace: "a".into(),
        name: "deny".into(),
        created: 0,
        audit: None,
        spec: weir_compiler::object::PolicySpec {
            policy_types: vec!["Ingress".into(), "Egress".into()],
            ingress: vec![Default::default()],
            egress: vec![Default::default()],
            ..Default::default()
        },
    };
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply([Event::Pod(pod)]);
    let drops = |compiler: &Compiler| {
        fresh(compiler, "n", 0, Costs::default()).table().to_string().matches("ct state invalid drop").count()
    };
    assert_eq!(drops(&compiler), 0, "nothing is dropped at a pod that no policy isolates");
    compiler.apply([Event::Policy(deny)]);
    assert_eq!(drops(&compiler), 2, "{}", fresh(&compiler, "n", 0, Costs::default()).table());
}

/// An address passed from `p` to `q` while its route still led to `p`; when the route followed,
/// what `q` gave up was taken from `p` as well, and `p` was open.
#[test]
fn what_two_pods_claim_for_a_moment_stays_with_the_one_that_keeps_it() {
    let deny = weir_compiler::object::Policy {
        namespace: "a".into(),
        name: "deny".into(),
        created: 0,
        audit: None,
        spec: weir_compiler::object::PolicySpec { policy_types: vec!["Egress".into()], ..Default::default() },
    };
    let mut pod = plain_pod(ObjectKey::new("a", "p"), "10.0.0.1");
    pod.ips.push("10.0.0.2".parse().unwrap());
    let mut compiler = Compiler::new(Scope::AllNodes);
    let mut planner = Planner::new();
    let mut turn = |events: Vec<Event>, at: &[(&str, &str)]| {
        compiler.apply(events).slices.iter().for_each(|delta| planner.update(&delta.changes));
        let own = |(address, interface): &(&str, &str)| {
            (address.parse().unwrap(), Attachment::Own((*interface).to_owned()))
        };
        planner.attach(at.iter().map(own).collect());
        planner.table().clone()
    };
    let packet = |source: &str| Packet {
        iif: "vethp".into(),
        oif: "eth0".into(),
        source: source.parse().unwrap(),
        destination: "192.0.2.1".parse().unwrap(),
        protocol: 6,
        port: 80,
    };
    turn(vec![Event::Pod(pod), Event::Policy(deny)], &[("10.0.0.1", "vethp"), ("10.0.0.2", "vethp")]);
    let taker = plain_pod(ObjectKey::new("a", "q"), "10.0.0.1");
    let taken = turn(vec![Event::Pod(taker)], &[("10.0.0.1", "vethp"), ("10.0.0.2", "vethp")]);
    assert!(!passes(&taken, "forward", &packet("10.0.0.2")));
    let moved = turn(vec![], &[("10.0.0.1", "vethq"), ("10.0.0.2", "vethp")]);
    assert!(!passes(&moved, "forward", &packet("10.0.0.2")), "{moved}");
}

#[test]
fn several_tables_are_compared_one_by_one() {
    let planner = Planner::new();
    let inet = planner.table();
    let bridge = Table { family: Family::Bridge, ..inet.clone() };
    let stray = Table { family: Family::Ip6, ..inet.clone() };
    assert_eq!(differences(std::slice::from_ref(inet), &[inet]), []);
    // one is missing, one is too many, one is damaged
    let mut damaged = inet.clone();
    damaged.sets.pop_first();
    let mut kernel = vec![stray, damaged];
    let batch = differences(&kernel, &[inet, &bridge]);
    assert_eq!(batch.len(), 3);
    fake::apply_all(&mut kernel, &batch).unwrap();
    assert_eq!(kernel, [inet.clone(), bridge.clone()]);
    assert_eq!(differences(&kernel, &[&bridge, inet]), []);
    // made anew
    let batch = rebuilt(&kernel, &[&bridge]);
    assert!(batch.iter().any(|t| t.family == Family::Inet && t.ops == [Op::DeleteTable]));
    fake::apply_all(&mut kernel, &batch).unwrap();
    assert_eq!(kernel, [bridge]);
}

/// Two policies let a pod in by two of its labels, and their peers are merged into one set.
#[test]
fn a_member_of_two_merged_sets_stays_until_it_has_left_both() {
    let labels =
        |labels: &[&str]| -> Labels { labels.iter().map(|l| ((*l).to_owned(), "x".to_owned())).collect() };
    let allow = |name: &str, label: &str| {
        let selector = |label| LabelSelector { match_labels: labels(&[label]), ..Default::default() };
        let from = vec![Peer { pod_selector: Some(selector(label)), ..Default::default() }];
        let ingress = vec![IngressRule { from, ..Default::default() }];
        let spec = PolicySpec { pod_selector: selector("db"), ingress, ..Default::default() };
        Event::Policy(Policy { namespace: "a".into(), name: name.into(), created: 0, audit: None, spec })
    };
    let pod = |name: &str, address: &str, of: &[&str]| {
        Event::Pod(Pod { labels: labels(of), ..plain_pod(ObjectKey::new("a", name), address) })
    };
    let costs = Costs { in_a_row: 0, pod_sets: 1, ..Costs::default() };
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let mut planner = Planner::with(Settings { costs, log_denials: log_of(costs), ..Settings::default() });
    let packet = Packet {
        iif: "eth0".into(),
        oif: "eth1".into(),
        source: "10.0.0.2".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        protocol: 6,
        port: 80,
    };
    let mut passes_after = |events: Vec<Event>| {
        compiler.apply(events).slices.iter().for_each(|delta| planner.update(&delta.changes));
        assert_eq!(planner.table(), fresh(&compiler, "n", 0, costs).table());
        passes(planner.table(), "forward", &packet)
    };
    let begin = vec![pod("db", "10.0.0.1", &["db"]), allow("p", "one"), allow("q", "other")];
    assert!(!passes_after(begin));
    assert!(passes_after(vec![pod("x", "10.0.0.2", &["one", "other"])]));
    assert!(passes_after(vec![pod("x", "10.0.0.2", &["other"])]), "it is in one of them");
    assert!(passes_after(vec![pod("x", "10.0.0.2", &["one"])]));
    assert!(!passes_after(vec![pod("x", "10.0.0.2", &[])]));
}

/// Another version of Weir, or somebody else, put other elements into a set that is constant while a rule
/// looks it up.
#[test]
fn a_constant_set_with_other_elements_is_no_obstacle() {
    let block = |cidr: &str| IpBlock { cidr: cidr.into(), ..Default::default() };
    let from = vec![Peer { ip_block: Some(block("192.0.2.0/24")), ..Default::default() }];
    let spec = PolicySpec { ingress: vec![IngressRule { from, ..Default::default() }], ..Default::default() };
    let policy =
        Event::Policy(Policy { namespace: "a".into(), name: "p".into(), created: 0, audit: None, spec });
    let mut compiler = Compiler::new(Scope::AllNodes);
    compiler.apply([Event::Pod(plain_pod(ObjectKey::new("a", "p"), "10.0.0.1")), policy]);
    let planner = fresh(&compiler, "n", 0, Costs::default());
    let mut installed = planner.table().clone();
    let set = installed.sets.values_mut().find(|set| set.decl.constant && !set.elements.is_empty()).unwrap();
    set.elements.clear();
    let transaction = difference(Some(&installed), planner.table()).unwrap();
    let mut kernel = Some(installed);
    fake::apply(&mut kernel, &transaction).unwrap();
    assert_eq!(kernel.as_ref(), Some(planner.table()));
}
