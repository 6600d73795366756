//! U25: what comes out of a pod's own interface has one of the pod's addresses.

mod common;
#[path = "../../weir-compiler/tests/common/mod.rs"]
mod world;

use std::net::IpAddr;

use common::{Packet, passes};
use proptest::prelude::*;
use weir_compiler::{Compiler, Scope};
use weir_dataplane::{Attachment, Attachments, Planner, Settings};
use world::{NODES, addresses, batches};

/// Each pod by itself, on a bridge, or nowhere yet; of two addresses, each in its own way.
fn attachments(planner: &Planner, seed: u64) -> Attachments {
    let pods = planner.slice().pods.iter().enumerate();
    let addresses = pods.flat_map(|(i, (key, pod))| pod.addresses.iter().map(move |a| (i, key, *a)));
    addresses
        .enumerate()
        .filter_map(|(j, (i, key, address))| {
            let attachment = match seed >> (2 * j % 62) & 3 {
                0 => return None,
                1 => Attachment::Shared("cni0".into()),
                _ => Attachment::Own(format!("veth{i}{}", key.name)),
            };
            Some((address, attachment))
        })
        .collect()
}

fn packet(iif: &str, source: IpAddr) -> Packet {
    let destination = if source.is_ipv4() { "10.9.9.9" } else { "fd09::9" }.parse().unwrap();
    Packet { iif: iif.into(), oif: "eth0".into(), source, destination, protocol: 6, port: 80 }
}

proptest! {
    #![proptest_config(world::cases(100))]

    #[test]
    fn u25_pods_send_with_their_own_addresses_alone(
        batches in batches(6),
        seeds in proptest::collection::vec(any::<u64>(), 6),
    ) {
        let mut compiler = Compiler::new(Scope::Node(NODES[0].into()));
        let mut planner = Planner::new();
        for (batch, seed) in batches.into_iter().zip(seeds) {
            compiler.apply(batch).slices.iter().for_each(|delta| planner.update(&delta.changes));
            let attached = attachments(&planner, seed);
            planner.attach(attached.clone());
            let others = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
            for pod in planner.slice().pods.values() {
                for interface in pod.addresses.iter().filter_map(|a| attached.get(a)) {
                    let own = matches!(interface, Attachment::Own(_));
                    for source in addresses().chain(others) {
                        let packet = packet(interface.interface(), source);
                        let expected = !own || pod.addresses.contains(&source);
                        prop_assert_eq!(passes(planner.table(), "guard", &packet), expected, "{:?}", packet);
                    }
                    // for this link alone
                    let link_local = packet(interface.interface(), "fe80::1".parse().unwrap());
                    prop_assert!(passes(planner.table(), "guard", &link_local));
                }
            }
            prop_assert!(addresses().all(|a| passes(planner.table(), "guard", &packet("eth0", a))));
        }
    }
}

#[test]
fn the_guard_can_be_turned_off() {
    let planner = Planner::with(Settings { source_guard: false, ..Settings::default() });
    assert!(!planner.table().chains.contains_key("guard"));
    assert_ne!(Planner::new().table(), planner.table());
}
