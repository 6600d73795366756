//! While a change is under way, a packet is judged by old or new policies, at any moment of it.

mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::costs::{costs, log_of};
use common::{Ipsets, Packet, passes, passes_at};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use weir_compiler::object::{Event, ObjectKey, Pod, Policy, PolicySpec};
use weir_compiler::{Compiler, Scope};
use weir_dataplane::model::{Op, Table, Transaction};
use weir_dataplane::{Attachment, Attachments, Costs, Planner, Settings, difference, fake, stages};
use world::{addresses, batches, plain_pod};

/// Where addresses are: some behind an interface of their own, some on a bridge, some nowhere; `seed` says
/// which, and changes with each batch.
fn attachment(address: IpAddr, seed: u64) -> Option<Attachment> {
    let number = addresses().position(|a| a == address).unwrap_or_default() as u64;
    match seed >> (2 * number) & 3 {
        0 => None,
        1 => Some(Attachment::Shared("cni0".into())),
        _ => Some(Attachment::Own(format!("veth{number}"))),
    }
}

/// Whether members of peer sets come or go: a packet looks at several of them, and that is no one moment.
fn changes_members(transaction: &Transaction) -> bool {
    let of_peers = |set: &str| ["pods_", "endpoints_", "cidrs_"].iter().any(|kind| set.starts_with(kind));
    let is_new = |set: &str| {
        transaction.ops.iter().any(|op| matches!(op, Op::AddSet { set: name, .. } if name == set))
    };
    transaction.ops.iter().any(|op| match op {
        Op::AddElements { set, .. } | Op::DeleteElements { set, .. } => of_peers(set) && !is_new(set),
        _ => false,
    })
}

/// A planner with the kernel that follows it.
struct Node {
    compiler: Compiler,
    planner: Planner,
    kernel: Option<Table>,
    /// Where the addresses of pods are.
    seed: u64,
}

impl Node {
    fn new(costs: Costs) -> Node {
        let mut planner =
            Planner::with(Settings { costs, log_denials: log_of(costs), ..Settings::default() });
        planner.take();
        let mut kernel = None;
        fake::apply(&mut kernel, &difference(None, planner.table()).unwrap()).unwrap();
        Node { compiler: Compiler::new(Scope::Node("n1".into())), planner, kernel, seed: 0 }
    }

    fn here(&self) -> BTreeMap<IpAddr, ObjectKey> {
        let pods = self.planner.slice().pods.iter();
        pods.flat_map(|(key, pod)| pod.addresses.iter().map(|a| (*a, key.clone()))).collect()
    }

    /// Objects change; links stay where they are.
    fn events(&mut self, events: Vec<Event>) -> Result<(), TestCaseError> {
        let mut here = self.here();
        for delta in self.compiler.apply(events).slices {
            self.planner.update(&delta.changes);
        }
        self.planner.attach(self.attachments());
        here.extend(self.here());
        self.transition(&here, |_| true)
    }

    /// Links move; objects stay.
    fn links(&mut self, seed: u64) -> Result<(), TestCaseError> {
        let old = std::mem::replace(&mut self.seed, seed);
        self.planner.attach(self.attachments());
        // dispatch by address knows a packet from any link; by interface, from the old one only
        let known = move |address| {
            attachment(address, old) == attachment(address, seed)
                || !matches!(attachment(address, old), Some(Attachment::Own(_)))
        };
        self.transition(&self.here(), known)
    }

    fn attachments(&self) -> Attachments {
        self.here().into_keys().filter_map(|a| Some((a, attachment(a, self.seed)?))).collect()
    }

    /// Carries the change out, and looks at packets before, between and during its batches.
    fn transition(
        &mut self,
        here: &BTreeMap<IpAddr, ObjectKey>,
        known: impl Fn(IpAddr) -> bool,
    ) -> Result<(), TestCaseError> {
        let transactions = self.planner.take();
        let members = transactions.iter().any(changes_members);
        let (old, new, none) = (self.kernel.clone().unwrap(), self.planner.table().clone(), Ipsets::new());
        let packets: Vec<(Packet, bool, bool)> = packets(here, &known, self.seed)
            .map(|(packet, both_here)| {
                let is = passes(&new, "forward", &packet);
                (packet, both_here, is)
            })
            .filter(|(packet, _, is)| passes(&old, "forward", packet) == *is)
            .collect();
        for batch in stages(transactions) {
            let before = self.kernel.clone().unwrap();
            for transaction in &batch {
                fake::apply(&mut self.kernel, transaction).map_err(TestCaseError::fail)?;
            }
            let after = self.kernel.as_ref().unwrap();
            for (packet, both_here, is) in &packets {
                prop_assert_eq!(passes(after, "forward", packet), *is, "between two batches: {:?}", packet);
                // with both ends here, or members on the move, a packet may meet some of both
                if members || *both_here {
                    continue;
                }
                let lookups = passes_at(&before, after, 0, &none, "forward", packet).1.max(20);
                for moment in 0..lookups {
                    let passes = passes_at(&before, after, moment, &none, "forward", packet).0;
                    prop_assert_eq!(passes, *is, "at lookup {}: {:?}\n{}\n{}", moment, packet, before, after);
                }
            }
        }
        prop_assert_eq!(self.kernel.as_ref(), Some(&new));
        Ok(())
    }
}

/// Packets between all addresses, and whether both ends are pods of the node.
fn packets<'a>(
    here: &'a BTreeMap<IpAddr, ObjectKey>,
    known: &'a impl Fn(IpAddr) -> bool,
    seed: u64,
) -> impl Iterator<Item = (Packet, bool)> + 'a {
    let interface = move |address: IpAddr| match attachment(address, seed) {
        Some(attachment) if here.contains_key(&address) => attachment.interface().to_owned(),
        _ => "eth0".to_owned(),
    };
    let pairs = addresses().flat_map(|s| addresses().map(move |d| (s, d)));
    let fit = move |(s, d): &(IpAddr, IpAddr)| {
        let itself = here.get(s).is_some_and(|pod| here.get(d) == Some(pod)); // shows by the interface only
        s.is_ipv4() == d.is_ipv4() && s != d && !itself && known(*s) && known(*d)
    };
    let ports = [(6, 80u16), (17, 80), (132, 81), (17, 83)];
    pairs.filter(fit).flat_map(move |(source, destination)| {
        ports.map(|(protocol, port)| {
            let (iif, oif) = (interface(source), interface(destination));
            let both_here = here.contains_key(&source) && here.contains_key(&destination);
            (Packet { iif, oif, source, destination, protocol, port }, both_here)
        })
    })
}

/// Most pods are of this node, and there.
fn on_the_node(event: Event) -> Event {
    match event {
        Event::Pod(pod) if pod.key.namespace != "ab" => {
            let (node, host_network, finished) = (Some("n1".to_owned()), false, false);
            Event::Pod(Pod { node, host_network, finished, ..pod })
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(world::cases(60))]

    #[test]
    fn at_every_moment_packets_are_judged_by_old_or_new(
        batches in batches(16),
        seeds in proptest::collection::vec(any::<u64>(), 16),
        costs in costs(),
    ) {
        let mut node = Node::new(costs);
        // something to begin with: two pods in both families, closed in both directions
        for (name, addresses) in [("first", ["10.0.0.1", "fd00::1"]), ("second", ["10.0.0.2", "fd00::2"])] {
            let mut pod = plain_pod(ObjectKey::new("ab", name), addresses[0]);
            pod.ips.push(addresses[1].parse().unwrap());
            node.events(vec![Event::Pod(Pod { node: Some("n1".into()), ..pod })])?;
        }
        let spec = PolicySpec { policy_types: vec!["Ingress".into(), "Egress".into()], ..Default::default() };
        node.events(vec![Event::Policy(Policy { namespace: "ab".into(), name: "closed".into(), created: 0, audit: None, spec })])?;
        for (batch, seed) in batches.into_iter().zip(seeds) {
            for event in batch {
                node.events(vec![on_the_node(event)])?;
            }
            node.links(seed)?;
        }
        // all policies at once
        let policies: Vec<Event> = node.planner.slice().policies.keys().cloned().map(Event::PolicyGone).collect();
        node.events(policies)?;
    }
}
