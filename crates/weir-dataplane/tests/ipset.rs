//! Peer sets as ipsets: what is in force after every single step, against the state before and the one after.

#[path = "common/busy.rs"]
mod busy;
mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;

use busy::busy;
use common::costs::{costs, log_of};
use common::{Ipsets as Sets, Packet, passes, passes_with};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use weir_compiler::flow::PodToOwnNode;
use weir_compiler::object::*;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::ipset::{Ipset, IpsetOp, Ipsets, Steps};
use weir_dataplane::model::{Family, Table, Transaction};
use weir_dataplane::{
    Attachment, Attachments, Costs, DenialLog, Planner, Port, Ports, Settings, fake, stages,
};
use world::{ADDRESSES, addresses, batches, plain_pod};

/// A kernel with tables and ipsets.
#[derive(Debug, Clone, Default, PartialEq)]
struct Kernel {
    tables: Vec<Table>,
    ipsets: Sets,
}

/// A step that packets see as a whole.
#[derive(Debug, Clone)]
enum Single {
    Ipset(IpsetOp),
    Batch(Vec<Transaction>),
}

/// In their order, and each element by itself.
fn singles(steps: &Steps) -> Vec<Single> {
    let of = |op: &IpsetOp| match op.clone() {
        IpsetOp::Create { name, set } => {
            let Ipset { decl, elements } = set;
            let empty = Ipset { decl: decl.clone(), elements: BTreeSet::new() };
            let add = |e| IpsetOp::Add { name: name.clone(), decl: decl.clone(), elements: vec![e] };
            let adds: Vec<IpsetOp> = elements.into_iter().map(add).collect();
            [IpsetOp::Create { name: name.clone(), set: empty }].into_iter().chain(adds).collect()
        }
        IpsetOp::Add { name, decl, elements } => {
            let add = |e| IpsetOp::Add { name: name.clone(), decl: decl.clone(), elements: vec![e] };
            elements.into_iter().map(add).collect()
        }
        IpsetOp::Remove { name, decl, elements } => {
            let remove = |e| IpsetOp::Remove { name: name.clone(), decl: decl.clone(), elements: vec![e] };
            elements.into_iter().map(remove).collect()
        }
        destroy @ IpsetOp::Destroy { .. } => vec![destroy],
    };
    let before = steps.before.iter().flat_map(of).map(Single::Ipset);
    let batches = stages(steps.batch.clone()).into_iter().map(Single::Batch);
    before.chain(batches).chain(steps.after.iter().flat_map(of).map(Single::Ipset)).collect()
}

impl Kernel {
    fn apply(&mut self, step: &Single) -> Result<(), TestCaseError> {
        let result = match step {
            Single::Ipset(op) => fake::apply_ipset(&mut self.ipsets, &self.tables, op),
            Single::Batch(batch) => fake::apply_all(&mut self.tables, batch),
        };
        result.map_err(|why| TestCaseError::fail(format!("{why}\n{step:?}")))?;
        self.tables.sort_by(|a, b| (a.family, &a.name).cmp(&(b.family, &b.name)));
        for used in self.tables.iter().flat_map(fake::ipsets_of) {
            prop_assert!(self.ipsets.contains_key(used), "{} is looked into and not there", used);
        }
        Ok(())
    }

    fn passes(&self, chain: &str, packet: &Packet) -> bool {
        let family = if packet.source.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let table = self.tables.iter().find(|table| table.family == family);
        table.is_none_or(|table| passes_with(table, &self.ipsets, chain, packet))
    }

    fn verdicts(&self, packets: &[Packet]) -> Vec<bool> {
        packets.iter().map(|packet| self.passes("forward", packet)).collect()
    }
}

fn attachments(planner: &Planner, seed: u64) -> Attachments {
    let mut all = Attachments::new();
    for (i, (key, pod)) in planner.slice().pods.iter().enumerate() {
        for address in &pod.addresses {
            let attachment = match seed >> (2 * i % 62) & 3 {
                0 => continue,
                1 => Attachment::Shared("cni0".into()),
                _ => Attachment::Own(format!("veth{}{}", key.namespace, key.name)),
            };
            all.insert(*address, attachment);
        }
    }
    all
}

/// What is known of ports: with any of them there is a table of bridges.
fn ports(planner: &Planner, seed: u64) -> Ports {
    let mut all = Ports::default();
    if seed & 3 > 0 {
        return all;
    }
    for (i, key) in planner.slice().pods.keys().enumerate() {
        match seed >> (2 * i % 62) & 3 {
            0 => drop(all.unknown_own.insert(format!("veth{}{}", key.namespace, key.name))),
            1 => {
                let port = Port { name: format!("port{i}"), mac: [2; 6], link_local: BTreeSet::new() };
                all.pods.insert(key.clone(), port);
            }
            _ => {}
        }
    }
    all
}

/// Between all addresses, with the interfaces that they are behind in one of the states.
fn packets(attached: &[&Attachments]) -> Vec<Packet> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for attached in attached {
        let interface = |a: IpAddr| attached.get(&a).map_or("eth0", Attachment::interface).to_owned();
        for source in addresses() {
            for destination in addresses().filter(|d| d.is_ipv4() == source.is_ipv4()) {
                let (iif, oif) = (interface(source), interface(destination));
                if !seen.insert((source, destination, iif.clone(), oif.clone())) {
                    continue;
                }
                for (protocol, port) in [(6, 80), (17, 80), (132, 81), (6, 9)] {
                    let (iif, oif) = (iif.clone(), oif.clone());
                    all.push(Packet { iif, oif, source, destination, protocol, port });
                }
            }
        }
    }
    all
}

/// Carries out steps, up to the given one, and looks at all packets after each: no state on the way passes
/// what both ends drop, or drops what both pass.
fn carry_out(
    kernel: &mut Kernel,
    steps: &Steps,
    until: usize,
    packets: &[Packet],
    old: &[bool],
    new: &[bool],
) -> Result<bool, TestCaseError> {
    for (i, step) in singles(steps).iter().enumerate() {
        if i == until {
            return Ok(false);
        }
        kernel.apply(step)?;
        for ((packet, old), new) in packets.iter().zip(old).zip(new).filter(|((_, old), new)| old == new) {
            prop_assert_eq!(
                kernel.passes("forward", packet),
                *old,
                "old and new: {} and {}; after step {} of {:#?}\n{:?}",
                old,
                new,
                i,
                singles(steps),
                packet
            );
        }
    }
    Ok(true)
}

/// Batches one after the other, with links as the seeds say; the agent is killed after so many steps of each.
fn follow(
    batches: Vec<Vec<Event>>,
    seeds: Vec<u64>,
    ends: Vec<usize>,
    settings: Settings,
) -> Result<(), TestCaseError> {
    let mut compiler = Compiler::new(Scope::Node("n1".into()));
    let mut planner = Planner::with(settings);
    let mut kernel = Kernel::default();
    let (mut ipsets, first) = Ipsets::compare(&planner.tables(), &[], &Sets::new(), false);
    for step in singles(&first) {
        kernel.apply(&step)?;
    }
    let mut before = Attachments::new();
    for ((batch, seed), end) in batches.into_iter().zip(seeds).zip(ends) {
        let old_plan = planner.table().clone();
        for delta in compiler.apply(batch).slices {
            planner.update(&delta.changes);
        }
        let attached = attachments(&planner, seed);
        planner.attach(attached.clone());
        planner.ports(ports(&planner, seed));
        if seed % 16 == 5 {
            planner.drop_mid_stream(true); // from then on
        }
        let packets = packets(&[&before, &attached]);
        let pending = planner.take();
        let plan = planner.tables();
        let of = |table: &Table| packets.iter().map(|p| passes(table, "forward", p)).collect::<Vec<_>>();
        let (old, new) = (of(&old_plan), of(planner.table()));
        prop_assert_eq!(&kernel.verdicts(&packets), &old, "what the table inet weir says");
        let steps = ipsets.change(&plan, &pending);
        let done = carry_out(&mut kernel, &steps, end, &packets, &old, &new)?;
        if !done {
            // killed: another one finds what is there
            let old = kernel.verdicts(&packets);
            let (found, steps) = Ipsets::compare(&plan, &kernel.tables, &kernel.ipsets, false);
            ipsets = found;
            carry_out(&mut kernel, &steps, usize::MAX, &packets, &old, &new)?;
        }
        for name in ipsets.doomed().clone() {
            ipsets.destroyed(&name);
        }
        prop_assert_eq!(&kernel.tables, &ipsets.tables(&plan));
        prop_assert_eq!(&kernel.ipsets, &ipsets.ipsets(&plan));
        prop_assert_eq!(&kernel.verdicts(&packets), &new);
        for chain in planner.table().chains.iter().filter(|(_, c)| c.hook.is_some()).map(|(name, _)| name) {
            for packet in &packets {
                let expected = passes(planner.table(), chain, packet);
                prop_assert_eq!(kernel.passes(chain, packet), expected, "{}: {:?}", chain, packet);
            }
        }
        let (_, nothing) = Ipsets::compare(&plan, &kernel.tables, &kernel.ipsets, false);
        prop_assert_eq!(nothing, Steps::default(), "it is the plan already");
        before = attached;
    }
    Ok(())
}

fn settings() -> impl Strategy<Value = Settings> {
    let mark = proptest::option::of(Just(NonZeroU32::new(0x1000).unwrap()));
    let own_node = prop_oneof![Just(PodToOwnNode::Enforce), Just(PodToOwnNode::Allow)];
    let all = (costs(), any::<[bool; 5]>(), own_node, mark);
    all.prop_map(
        |(costs, [source_guard, close_unknown, drop_mid_stream, log, audit], own_node, revoked_mark)| {
            Settings {
                costs,
                source_guard,
                close_unknown,
                own_node,
                revoked_mark,
                drop_mid_stream,
                log_denials: log.then(DenialLog::default),
                audit,
            }
        },
    )
}

proptest! {
    #![proptest_config(world::cases(100))]

    #[test]
    fn no_state_on_the_way_is_worse_than_both_ends(
        batches in prop_oneof![1 => batches(8), 4 => busy()],
        seeds in proptest::collection::vec(prop_oneof![3 => Just(0xaaaa_aaaa_aaaa_aaaa), 1 => any::<u64>()], 8),
        // where the agent is killed
        ends in proptest::collection::vec(prop_oneof![2 => Just(usize::MAX), 1 => 0usize..12], 8),
        settings in settings(),
    ) {
        follow(batches, seeds, ends, settings)?;
    }
}

/// Two pods change their labels in one batch: what each may do changes, what they may do to each other does not.
/// Neither all that comes first, nor all that goes, would do.
#[test]
fn two_pods_that_change_together_do_not_meet_halfway() {
    let label = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    let selector = |key, value| LabelSelector { match_labels: label(key, value), ..Default::default() };
    let peers = |key, value| vec![Peer { pod_selector: Some(selector(key, value)), ..Default::default() }];
    let policy = |name: &str, of: LabelSelector, from: Vec<Peer>, to: Vec<Peer>| {
        let spec = PolicySpec {
            pod_selector: of,
            policy_types: vec!["Ingress".into(), "Egress".into()],
            ingress: vec![IngressRule { from, ..Default::default() }],
            egress: vec![EgressRule { to, ..Default::default() }],
            ..Default::default()
        };
        Event::Policy(Policy { namespace: "a".into(), name: name.into(), created: 0, audit: None, spec })
    };
    let pod = |i: usize, key, value| {
        let mut pod = plain_pod(ObjectKey::new("a", format!("p{i}")), ADDRESSES[i]);
        pod.node = Some("n1".into());
        pod.labels = label(key, value);
        Event::Pod(pod)
    };
    let first = vec![
        policy("all", LabelSelector::default(), peers("x", "u"), peers("y", "u")),
        // with this one, the sets that pods come into and go from are there
        policy("other", selector("z", "z"), peers("x", "v"), peers("y", "v")),
        pod(0, "x", "v"),
        pod(1, "y", "u"),
        pod(2, "z", "z"),
    ];
    // before, 1 lets nothing in from 0; afterwards, 0 lets nothing out to 1
    let second = vec![pod(0, "x", "u"), pod(1, "y", "v")];
    follow(vec![first, second], vec![0xaaaa_aaaa_aaaa_aaaa; 2], vec![usize::MAX; 2], Settings::default())
        .unwrap_or_else(|why| panic!("{why}"));
}

/// A pod's address passes to another pod while a peer leaves the set that both look into: the first pod's end leaves
/// its chain, the second one's comes to it, and the set that the chain of the port's class looks into is switched.
#[test]
fn ends_that_come_and_leave_meet_the_rules_of_one_of_the_states() {
    let pod = |i: usize, address: &str, of: &[(&str, &str)], named: bool| {
        let mut pod = plain_pod(ObjectKey::new("a", format!("p{i}")), address);
        pod.node = Some("n1".into());
        pod.created = i as i64;
        pod.labels = of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        if named {
            pod.ports = vec![NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 80 }];
        }
        Event::Pod(pod)
    };
    let from =
        LabelSelector { match_labels: [("x".to_owned(), "u".to_owned())].into(), ..Default::default() };
    let from = vec![Peer { pod_selector: Some(from), ..Default::default() }];
    let ports = vec![PolicyPort { port: Some(PortRef::Name("web".into())), ..Default::default() }];
    let spec = PolicySpec {
        policy_types: vec!["Ingress".into()],
        ingress: vec![IngressRule { from, ports, ..Default::default() }],
        ..Default::default()
    };
    let policy =
        Event::Policy(Policy { namespace: "a".into(), name: "q".into(), created: 0, audit: None, spec });
    let first = vec![policy, pod(3, "10.1.0.1", &[], false), pod(0, "10.0.1.1", &[], true)];
    let second = vec![pod(1, "10.0.0.2", &[("x", "u")], false)];
    let third = vec![pod(2, "10.0.1.1", &[], true), pod(1, "10.0.0.2", &[], false)];
    for in_a_row in [0, 16] {
        let costs = Costs { in_a_row, ..Costs::default() };
        let settings = Settings { costs, log_denials: log_of(costs), ..Settings::default() };
        let batches = vec![first.clone(), second.clone(), third.clone()];
        follow(batches, vec![0xaaaa_aaaa_aaaa_aaaa; 3], vec![usize::MAX; 3], settings)
            .unwrap_or_else(|why| panic!("{why}"));
    }
}

fn steps_of(
    ipsets: &mut Ipsets,
    compiler: &mut Compiler,
    planner: &mut Planner,
    events: Vec<Event>,
) -> Steps {
    for delta in compiler.apply(events).slices {
        planner.update(&delta.changes);
    }
    let pending = planner.take();
    ipsets.change(&planner.tables(), &pending)
}

/// What a pod elsewhere costs does not depend on how many there are: one element; and a name is not used again
/// as long as its ipset may be there.
#[test]
fn one_pod_elsewhere_is_one_element() {
    let mut compiler = Compiler::new(Scope::Node("n".into()));
    let mut planner = Planner::new();
    let (mut ipsets, _) = Ipsets::compare(&planner.tables(), &[], &Sets::new(), false);
    let pod = |i: u32, label: &str| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + i).to_string();
        let mut pod = plain_pod(ObjectKey::new("a", format!("p{i}")), &address);
        pod.node = Some(if i == 0 { "n" } else { "elsewhere" }.into());
        pod.labels = [("x".to_owned(), label.to_owned())].into();
        Event::Pod(pod)
    };
    let peer = |label: &str| Peer {
        pod_selector: Some(LabelSelector {
            match_labels: [("x".to_owned(), label.to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let spec = PolicySpec {
        policy_types: vec!["Ingress".into()],
        ingress: vec![IngressRule { from: vec![peer("u"), peer("v")], ..Default::default() }],
        ..Default::default()
    };
    let policy =
        Event::Policy(Policy { namespace: "a".into(), name: "p".into(), created: 0, audit: None, spec });
    let mut events = vec![policy];
    events.extend((0..5_000).map(|i| pod(i, "u")));
    let mut steps = |events| steps_of(&mut ipsets, &mut compiler, &mut planner, events);
    steps(events);
    let elements = |ops: &[IpsetOp]| -> Vec<(bool, usize)> {
        let of = |op: &IpsetOp| match op {
            IpsetOp::Add { elements, .. } => (true, elements.len()),
            IpsetOp::Remove { elements, .. } => (false, elements.len()),
            other => panic!("{other}"),
        };
        ops.iter().map(of).collect()
    };

    let one_more = steps(vec![pod(5_000, "u")]);
    assert_eq!((elements(&one_more.before), elements(&one_more.after)), (vec![], vec![(true, 1)]));
    assert_eq!(one_more.batch, []);
    let one_less = steps(vec![Event::PodGone(ObjectKey::new("a", "p5000"))]);
    assert_eq!((elements(&one_less.before), elements(&one_less.after)), (vec![(false, 1)], vec![]));
    assert_eq!(one_less.batch, []);
    // from one set to another: into the new one first
    let moved = steps(vec![pod(1, "v")]);
    assert_eq!((elements(&moved.before), elements(&moved.after)), (vec![(true, 1), (false, 1)], vec![]));
    assert_eq!(moved.batch, []);

    // two of them in one batch: both sets are replaced, each time under a name that is free
    let created = |steps: &Steps| -> Vec<String> {
        let names = steps.before.iter().filter_map(|op| match op {
            IpsetOp::Create { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.collect()
    };
    let mut seen = BTreeSet::new();
    for label in ["v", "u", "v"] {
        let names = created(&steps(vec![pod(2, label), pod(3, label)]));
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.into_iter().all(|name| seen.insert(name)), "none is confirmed to be gone");
    }
}
