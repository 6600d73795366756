//! Connections as they are read, and bits of their marks. Needs root.

mod common;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::num::NonZeroU32;
use std::process::Command;

use common::{fresh_netns, nft};
use weir_nft::conntrack::{Conntrack, Entry, Key, Layer4, Marking, Tuple};

const BIT: NonZeroU32 = NonZeroU32::new(0x1000).unwrap();
const OTHERS: NonZeroU32 = NonZeroU32::new(0x0081).unwrap();
const SECONDS: u32 = 600;

fn tuple(source: &str, destination: &str, protocol: u8, layer4: Layer4) -> Tuple {
    let address = |text: &str| text.parse().unwrap();
    Tuple { source: address(source), destination: address(destination), protocol, layer4 }
}

fn ports(source: u16, destination: u16) -> Layer4 {
    Layer4::Ports { source, destination }
}

/// An own namespace, and its entries by their original tuple's text.
struct World(Conntrack);

impl World {
    fn new() -> World {
        drop(fresh_netns());
        World(Conntrack::open().unwrap())
    }

    fn entries(&mut self) -> BTreeMap<String, Entry> {
        let mut all = BTreeMap::new();
        self.0.dump(|entry| drop(all.insert(format!("{:?}", entry.orig), entry))).unwrap();
        all
    }

    fn marks(&mut self) -> Vec<u32> {
        self.entries().into_values().map(|entry| entry.mark).collect()
    }
}

fn translated() -> (Tuple, Tuple) {
    // to 10.96.0.1:80, which 10.0.0.2:8080 answers, to the masquerading node
    (tuple("10.0.0.1", "10.96.0.1", 6, ports(4000, 80)), tuple("10.0.0.2", "192.0.2.1", 6, ports(8080, 4000)))
}

fn plain() -> [Tuple; 4] {
    [
        tuple("10.0.0.1", "10.0.0.2", 17, ports(53, 53)),
        tuple("fd00::1", "fd00::2", 6, ports(4000, 443)),
        tuple("10.0.0.1", "10.0.0.2", 1, Layer4::Icmp { id: 7, kind: 8, code: 0 }),
        tuple("fd00::1", "fd00::2", 58, Layer4::Icmp { id: 9, kind: 128, code: 0 }),
    ]
}

fn all() -> Vec<(Tuple, Tuple)> {
    let answered = |tuple: Tuple| {
        let mut reply = tuple.reversed();
        if let Layer4::Icmp { kind, .. } = &mut reply.layer4 {
            *kind = if *kind == 8 { 0 } else { 129 };
        }
        (tuple, reply)
    };
    plain().into_iter().map(answered).chain([translated()]).collect()
}

#[test]
#[ignore = "needs root"]
fn what_is_inserted_is_read() {
    let mut world = World::new();
    assert_eq!(world.0.count().unwrap(), 0);
    world.0.insert(&all(), SECONDS).unwrap();
    assert_eq!(world.0.count().unwrap(), 5);
    let entries = world.entries();
    for (orig, reply) in all() {
        let entry = &entries[&format!("{orig:?}")];
        assert_eq!((entry.orig, entry.reply), (orig, reply));
        assert_eq!(entry.key, Key::from(&orig));
        assert_eq!(entry.tcp_state, (orig.protocol == 6).then_some(3));
        assert_eq!((entry.mark, entry.zone, entry.master), (0, 0, None));
    }
    assert!(world.0.insert(&all(), SECONDS).unwrap_err().to_string().contains("File exists"));
    world.0.flush().unwrap();
    assert_eq!(world.0.count().unwrap(), 0);
}

#[test]
#[ignore = "needs root"]
fn only_the_bits_that_are_asked_for_change() {
    let mut world = World::new();
    world.0.insert(&all(), SECONDS).unwrap();
    let markings = |set| all().iter().map(|(orig, _)| Marking { key: orig.into(), set }).collect::<Vec<_>>();
    world.0.mark(OTHERS, &markings(true)).unwrap();
    world.0.mark(BIT, &markings(true)).unwrap();
    assert_eq!(world.marks(), [0x1081; 5]);
    world.0.mark(OTHERS, &markings(false)[..1]).unwrap();
    world.0.mark(BIT, &markings(false)[..3]).unwrap();
    let entries = world.entries();
    let mark = |i: usize| entries[&format!("{:?}", all()[i].0)].mark;
    assert_eq!([0, 1, 2, 3, 4].map(mark), [0, 0x81, 0x81, 0x1081, 0x1081]);
}

/// In more than one datagram, and some of it is gone meanwhile.
#[test]
#[ignore = "needs root"]
fn entries_that_are_gone_are_no_error() {
    let mut world = World::new();
    let tuple = |port| tuple("10.0.0.1", "10.0.0.2", 17, ports(port, 53));
    let entries: Vec<_> = (1..=5000).map(|port| (tuple(port), tuple(port).reversed())).collect();
    world.0.insert(&entries, SECONDS).unwrap();
    let markings: Vec<_> =
        (1..=20000).map(|port| Marking { key: (&tuple(port)).into(), set: true }).collect();
    world.0.mark(BIT, &markings).unwrap();
    assert_eq!(world.marks(), vec![0x1000; 5000]);
}

/// An entry of another zone has the same tuple, and is another one.
#[test]
#[ignore = "needs root"]
fn zones_are_kept_apart() {
    let mut world = World::new();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for zone in [0, 7] {
        let hook = |hook: &str| {
            format!("chain {hook} {{ type filter hook {hook} priority -300; ct zone set {zone}; }};")
        };
        nft(&["-f", "-"], &format!("table inet z {{ {} {} }}\n", hook("output"), hook("prerouting")));
        // nobody is there, which the second sending would be told
        let _ = socket.send_to(b"hello", "127.0.0.1:9");
        let _ = socket.take_error();
        nft(&["-f", "-"], "delete table inet z\n");
    }
    let mut entries = Vec::new();
    let ours = |entry: &Entry| entry.orig.protocol == 17;
    world.0.dump(|entry| entries.extend(ours(&entry).then_some(entry))).unwrap();
    entries.sort_by_key(|entry| entry.zone);
    assert_eq!(entries.iter().map(|entry| entry.zone).collect::<Vec<_>>(), [0, 7]);
    world.0.mark(BIT, &[Marking { key: entries[1].key.clone(), set: true }]).unwrap();
    let mut marks = Vec::new();
    world.0.dump(|entry| marks.extend(ours(&entry).then_some((entry.zone, entry.mark)))).unwrap();
    marks.sort_unstable();
    assert_eq!(marks, [(0, 0), (7, 0x1000)]);
}
