//! Which port is whose, and remains so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use weir_compiler::object::ObjectKey;
use weir_dataplane::Port;

use super::{Seen, Told};

/// Where a pod is to be looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The names of the bridges that it is behind.
    pub bridges: BTreeSet<String>,
}

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// The interface's name.
    pub name: String,
    /// The bridge's.
    pub bridge: String,
    /// It leads to another network namespace.
    pub pod_like: bool,
}

/// What is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Pods with their ports.
    pub pods: BTreeMap<ObjectKey, Port>,
    /// Pods whose addresses no port has.
    pub missing: BTreeSet<ObjectKey>,
    /// Pods whose addresses several ports have, with the ports' names.
    pub disputed: BTreeMap<ObjectKey, Vec<String>>,
    /// Ports of pods' bridges that look like those of pods, and are none of these.
    pub unknown: BTreeSet<String>,
}

/// Remembers, by index of the interface, whose a port is: a pod's for as long as the port lives.
#[derive(Debug, Default)]
pub struct Book {
    bound: BTreeMap<u32, Bound>,
}

#[derive(Debug)]
struct Bound {
    name: String,
    pod: ObjectKey,
    /// Of the pod when the port became its own: another pod can have the same name later.
    addresses: Vec<IpAddr>,
    port: Port,
}

impl Bound {
    fn is_of(&self, pod: &ObjectKey, place: &Place) -> bool {
        self.pod == *pod && self.addresses.iter().any(|address| place.addresses.contains(address))
    }
}

impl Book {
    /// Looks for the ports of pods that have none yet: `told` gives what the CNI plugins said, `see` asks the
    /// kernel for what is at a port's other end.
    pub fn update(
        &mut self,
        pods: &BTreeMap<ObjectKey, Place>,
        alive: &BTreeMap<u32, Alive>,
        told: impl FnOnce() -> Vec<Told>,
        mut see: impl FnMut(u32) -> Option<Seen>,
    ) -> Found {
        self.bound.retain(|index, bound| alive.get(index).is_some_and(|alive| alive.name == bound.name));
        let mut found = Found::default();
        let has_port = |(pod, place): &(&ObjectKey, &Place)| self.bound.values().any(|b| b.is_of(pod, place));
        let searched: Vec<_> = pods.iter().filter(|pod| !has_port(pod)).collect();
        if !searched.is_empty() {
            let free = alive.iter().filter(|(index, _)| !self.bound.contains_key(index));
            let seen: BTreeMap<u32, Seen> =
                free.filter_map(|(index, _)| Some((*index, see(*index)?))).collect();
            let searched = self.believe(searched, alive, &seen, &told());
            self.search(searched, alive, &seen, &mut found);
        }
        for (pod, place) in pods {
            if let Some(bound) = self.bound.values().find(|bound| bound.is_of(pod, place)) {
                found.pods.insert(pod.clone(), bound.port.clone());
            }
        }
        let known: BTreeSet<&str> = found.pods.values().map(|port| port.name.as_str()).collect();
        let free = alive.values().filter(|alive| alive.pod_like && !known.contains(alive.name.as_str()));
        found.unknown = free.map(|alive| alive.name.clone()).collect();
        found
    }

    /// Gives pods the ports that they have by what the CNI plugins said; the others are left.
    fn believe<'a>(
        &mut self,
        mut searched: Vec<(&'a ObjectKey, &'a Place)>,
        alive: &BTreeMap<u32, Alive>,
        seen: &BTreeMap<u32, Seen>,
        told: &[Told],
    ) -> Vec<(&'a ObjectKey, &'a Place)> {
        searched.retain(|(pod, place)| {
            let about = told.iter().filter(|told| told.addresses.iter().any(|a| place.addresses.contains(a)));
            // results of pods that are long gone have interfaces that are gone, too
            let mut ports = about.flat_map(|told| {
                let free = alive.iter().filter(|(index, alive)| {
                    place.bridges.contains(&alive.bridge) && !self.bound.contains_key(index)
                });
                let named = free.filter(|(_, alive)| told.interfaces.contains(&alive.name));
                named.map(move |(index, _)| (*index, told.mac))
            });
            let (Some((index, mac)), None) = (ports.next(), ports.next()) else { return true };
            let Some(mac) = mac.or(seen.get(&index).map(|seen| seen.mac)) else { return true };
            drop(ports);
            let addresses = seen.get(&index).map_or(&[][..], |seen| &seen.addresses);
            self.bind(index, alive[&index].name.clone(), pod, place, mac, addresses);
            false
        });
        searched
    }

    /// `seen` are the addresses that the pod's interface has.
    fn bind(
        &mut self,
        index: u32,
        name: String,
        pod: &ObjectKey,
        place: &Place,
        mac: [u8; 6],
        seen: &[IpAddr],
    ) {
        // what an interface makes of its MAC address, and what it has in fact
        let link_local = seen.iter().filter_map(link_local).chain([from_mac(mac)]).collect();
        let port = Port { name: name.clone(), mac, link_local };
        let addresses = place.addresses.clone();
        self.bound.insert(index, Bound { name, pod: pod.clone(), addresses, port });
    }

    /// A pod that only one port can be of has that; what is then no choice for others may leave them
    /// with one. Several for a pod to the end are a dispute, and nobody's.
    fn search(
        &mut self,
        mut searched: Vec<(&ObjectKey, &Place)>,
        alive: &BTreeMap<u32, Alive>,
        seen: &BTreeMap<u32, Seen>,
        found: &mut Found,
    ) {
        loop {
            let before = searched.len();
            searched.retain(|(pod, place)| match self.candidates(place, alive, seen)[..] {
                [index] => {
                    let seen = &seen[&index];
                    self.bind(index, alive[&index].name.clone(), pod, place, seen.mac, &seen.addresses);
                    false
                }
                _ => true,
            });
            if searched.len() == before {
                break;
            }
        }
        for (pod, place) in searched {
            let names =
                self.candidates(place, alive, seen).into_iter().map(|index| alive[&index].name.clone());
            match names.collect::<Vec<_>>() {
                none if none.is_empty() => drop(found.missing.insert(pod.clone())),
                names => drop(found.disputed.insert(pod.clone(), names)),
            }
        }
    }

    fn candidates(
        &self,
        place: &Place,
        alive: &BTreeMap<u32, Alive>,
        seen: &BTreeMap<u32, Seen>,
    ) -> Vec<u32> {
        seen.iter()
            .filter(|(index, _)| !self.bound.contains_key(index))
            .filter(|(index, _)| place.bridges.contains(&alive[index].bridge))
            .filter(|(_, seen)| place.addresses.iter().any(|address| seen.addresses.contains(address)))
            .map(|(index, _)| *index)
            .collect()
    }
}

fn link_local(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(a) if a.is_unicast_link_local() => Some(*a),
        _ => None,
    }
}

/// The link-local address that an interface takes if nothing tells it otherwise.
fn from_mac([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        book: Book,
        pods: BTreeMap<ObjectKey, Place>,
        alive: BTreeMap<u32, Alive>,
        seen: BTreeMap<u32, Seen>,
        told: Vec<Told>,
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(name: &str) -> ObjectKey {
        ObjectKey::new("a", name)
    }

    impl World {
        fn new() -> World {
            let (book, pods) = (Book::default(), BTreeMap::new());
            World { book, pods, alive: BTreeMap::new(), seen: BTreeMap::new(), told: Vec::new() }
        }

        fn pod(&mut self, name: &str, address: &str) {
            let place = Place { addresses: vec![ip(address)], bridges: ["cni0".to_owned()].into() };
            self.pods.insert(pod(name), place);
        }

        fn port(&mut self, index: u32, addresses: &[&str]) {
            let alive = Alive { name: format!("veth{index}"), bridge: "cni0".into(), pod_like: true };
            self.alive.insert(index, alive);
            let mac = [2, 0, 0, 0, 0, index as u8];
            self.seen.insert(index, Seen { mac, addresses: addresses.iter().map(|a| ip(a)).collect() });
        }

        fn gone(&mut self, index: u32) {
            self.alive.remove(&index);
            self.seen.remove(&index);
        }

        /// Pod and port, and what there is besides.
        fn find(&mut self) -> (Vec<(String, String)>, Found) {
            let found = self.book.update(
                &self.pods,
                &self.alive,
                || self.told.clone(),
                |index| self.seen.get(&index).cloned(),
            );
            let pods = found.pods.iter().map(|(pod, port)| (pod.name.to_string(), port.name.clone()));
            (pods.collect(), found)
        }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(pod, port)| ((*pod).to_owned(), (*port).to_owned())).collect()
    }

    #[test]
    fn a_port_stays_with_the_pod_that_had_it_first() {
        let mut w = World::new();
        w.pod("bad", "10.0.0.1");
        w.port(1, &["10.0.0.1", "fe80::77"]);
        let (found, all) = w.find();
        assert_eq!(found, pairs(&[("bad", "veth1")]));
        let port = &all.pods[&pod("bad")];
        assert_eq!(port.mac, [2, 0, 0, 0, 0, 1]);
        let link_local = ["fe80::77", "fe80::ff:fe00:1"].map(|a| a.parse().unwrap());
        assert_eq!(port.link_local, link_local.into());
        // it takes the next pod's address before that has it, and another MAC
        w.port(1, &["10.0.0.2"]);
        w.pod("good", "10.0.0.2");
        let (found, all) = w.find();
        assert_eq!(found, pairs(&[("bad", "veth1")]));
        assert_eq!(all.missing, [pod("good")].into());
        w.port(2, &["10.0.0.2"]);
        assert_eq!(w.find().0, pairs(&[("bad", "veth1"), ("good", "veth2")]));
    }

    #[test]
    fn who_has_an_address_of_its_own_has_no_other() {
        // a first look at everything, with one that has taken what is not its own
        let mut w = World::new();
        w.pod("bad", "10.0.0.1");
        w.pod("good", "10.0.0.2");
        w.port(1, &["10.0.0.1", "10.0.0.2"]);
        w.port(2, &["10.0.0.2"]);
        assert_eq!(w.find().0, pairs(&[("bad", "veth1"), ("good", "veth2")]));
    }

    #[test]
    fn what_several_claim_is_nobodys() {
        let mut w = World::new();
        w.pod("bad", "10.0.0.1");
        w.pod("good", "10.0.0.2");
        w.port(1, &["10.0.0.2"]);
        w.port(2, &["10.0.0.2"]);
        let (found, all) = w.find();
        assert_eq!(found, []);
        assert_eq!(all.missing, [pod("bad")].into());
        assert_eq!(all.disputed, [(pod("good"), vec!["veth1".to_owned(), "veth2".to_owned()])].into());
        assert_eq!(all.unknown.len(), 2);
        // one of them goes
        w.gone(1);
        assert_eq!(w.find().0, pairs(&[("good", "veth2")]));
    }

    #[test]
    fn a_pod_of_the_same_name_gets_its_own_port() {
        let mut w = World::new();
        w.pod("p", "10.0.0.1");
        w.port(1, &["10.0.0.1"]);
        assert_eq!(w.find().0, pairs(&[("p", "veth1")]));
        w.pod("p", "10.0.0.2");
        let (found, all) = w.find();
        assert_eq!((found, all.unknown), (vec![], ["veth1".to_owned()].into()));
        w.port(2, &["10.0.0.2"]);
        assert_eq!(w.find().0, pairs(&[("p", "veth2")]));
        // the name comes back with another interface, which is another port
        w.gone(2);
        w.port(3, &["10.0.0.2"]);
        assert_eq!(w.find().0, pairs(&[("p", "veth3")]));
    }

    #[test]
    fn ports_of_other_bridges_are_none_of_the_pods() {
        let mut w = World::new();
        w.pod("p", "10.0.0.1");
        w.port(1, &["10.0.0.1"]);
        w.alive.get_mut(&1).unwrap().bridge = "other0".into();
        assert_eq!(w.find().1.missing, [pod("p")].into());
    }

    #[test]
    fn what_the_plugins_said_goes_before_what_interfaces_have() {
        let told = |ports: &[&str], address: &str| Told {
            interfaces: ports.iter().map(|port| (*port).to_owned()).collect(),
            mac: Some([2, 2, 2, 2, 2, 2]),
            addresses: vec![ip(address)],
        };
        let mut w = World::new();
        w.pod("bad", "10.0.0.1");
        w.pod("good", "10.0.0.2");
        // both seem to be `good`; one of them has left its own address, and the plugins know which
        w.port(1, &["10.0.0.2"]);
        w.port(2, &["10.0.0.2", "fe80::77"]);
        w.told = vec![told(&["cni0", "veth2"], "10.0.0.2"), told(&["cni0", "veth1"], "10.0.0.1")];
        // of a pod that had the address before
        w.told.push(told(&["cni0", "veth9"], "10.0.0.2"));
        let (found, all) = w.find();
        assert_eq!(found, pairs(&[("bad", "veth1"), ("good", "veth2")]));
        let port = &all.pods[&pod("good")];
        assert_eq!(port.mac, [2, 2, 2, 2, 2, 2]);
        let link_local = ["fe80::77", "fe80::2:2ff:fe02:202"].map(|a| a.parse().unwrap());
        assert_eq!(port.link_local, link_local.into());
    }

    #[test]
    fn a_pod_without_addresses_of_its_own_is_found_by_what_the_plugins_said() {
        let mut w = World::new();
        w.pod("vm", "10.0.0.1");
        w.port(1, &[]);
        assert_eq!(w.find().1.missing, [pod("vm")].into());
        let (interfaces, addresses) = (vec!["veth1".to_owned()], vec![ip("10.0.0.1")]);
        w.told = vec![Told { interfaces, mac: None, addresses }];
        let (found, all) = w.find();
        assert_eq!(found, pairs(&[("vm", "veth1")]));
        assert_eq!(all.pods[&pod("vm")].mac, [2, 0, 0, 0, 0, 1], "the interface's");
    }
}
