//! Random objects from a seed: fast enough for a hundred thousand clusters, and with the corners of every field.

use weir_compiler::object::*;

use super::{ADDRESSES, NAMESPACES, NODES};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }

    /// True in `percent` of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn some<T>(&mut self, max: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| one(self)).collect()
    }

    fn unknown(&mut self) -> UnknownFields {
        if self.chance(2) { [("newer".to_owned(), Default::default())].into() } else { UnknownFields::new() }
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for key in ["x", "y"] {
            if self.chance(50) {
                labels.insert(key.into(), self.pick(&["u", "v", ""]).into());
            }
        }
        labels
    }

    fn selector(&mut self, of_namespace: bool) -> LabelSelector {
        let mut match_labels = if self.chance(50) { self.labels() } else { Labels::new() };
        if of_namespace && self.chance(30) {
            match_labels =
                [("kubernetes.io/metadata.name".to_owned(), self.pick(&NAMESPACES).to_owned())].into();
        }
        let count = if self.chance(35) { 2 } else { 0 };
        LabelSelector {
            match_labels,
            match_expressions: self.some(count, Self::requirement),
            unknown: self.unknown(),
        }
    }

    fn requirement(&mut self) -> LabelRequirement {
        let mut operator = self.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
        let mut values = Vec::new();
        // now and then values where there must be none, and none where there must be some
        if operator.ends_with("In") != self.chance(4) {
            values =
                (0..=self.below(2)).map(|_| self.pick(&["u", "v", "w", "", "not valid!"]).into()).collect();
        }
        if self.chance(3) {
            operator = self.pick(&["", "in", "Gt"]);
        }
        let key = if self.chance(2) { "" } else { self.pick(&["x", "y", "z"]) };
        LabelRequirement { key: key.into(), operator: operator.into(), values, unknown: self.unknown() }
    }

    fn ip_block(&mut self) -> IpBlock {
        // a block, and exceptions of it: as they should be, sloppy, too long, elsewhere, unreadable
        let (cidr, excepts): (&str, &[&str]) = self.pick(&[
            (
                "10.0.0.0/8",
                &["10.0.0.0/16", "10.0.0.0/9", "010.000.000.001/32", "11.0.0.0/8", "10.0.0.0/8"][..],
            ),
            ("10.0.0.5/08", &["10.0.0.1/32", "10.0.0.2/31", "::ffff:10.0.0.0/112"]),
            ("010.000.0.0/16", &["10.0.1.0/24", "10.0.0.1/32", "10.0.0.1"]),
            ("0.0.0.0/0", &["10.0.0.0/31", "10.0.0.2/32", "0.0.0.0/1", "128.0.0.0/1", "::/0"]),
            ("::ffff:10.0.0.0/104", &["10.0.0.0/24", "::ffff:a00:1/128", "::ffff:10.1.0.0/112"]),
            ("::ffff:0:0/96", &["10.0.0.0/8", "192.0.2.1/32"]),
            ("::ffff:10.0.0.0/90", &["::ffff:10.0.0.0/104"]),
            ("::/0", &["fd00::/64", "FD00:0::/016", "10.0.0.0/8", "fd00::1/128"]),
            ("fd00::/64", &["fd00::1:0/112", "fd00::0:0:0:2/128", "fd00::/64", "fd00:0:0:0:0:0:0.1.0.0/112"]),
            ("FD00::1/0128", &[]),
            ("10.0.0.2/32", &["10.0.0.2/32"]),
            ("10.0.0.0", &[]),
            ("10.0.0.0/33", &[]),
            ("10.0.0/8", &[]),
            ("10.0.0.0/+8", &[]),
            ("fd00:::/16", &[]),
            ("fd00::1::/16", &[]),
            ("", &[]),
        ]);
        let except =
            if excepts.is_empty() { Vec::new() } else { self.some(3, |r| r.pick(excepts).to_owned()) };
        IpBlock { cidr: cidr.into(), except, unknown: self.unknown() }
    }

    fn peer(&mut self) -> Peer {
        let mut peer = Peer { unknown: self.unknown(), ..Peer::default() };
        match self.below(100) {
            0..30 => peer.pod_selector = Some(self.selector(false)),
            30..50 => peer.namespace_selector = Some(self.selector(true)),
            50..70 => {
                peer.namespace_selector = Some(self.selector(true));
                peer.pod_selector = Some(self.selector(false));
            }
            70..96 => peer.ip_block = Some(self.ip_block()),
            96..98 => {
                // N24: a block and a selector exclude each other
                peer.ip_block = Some(self.ip_block());
                if self.chance(50) {
                    peer.pod_selector = Some(self.selector(false));
                } else {
                    peer.namespace_selector = Some(self.selector(true));
                }
            }
            _ => {} // N24
        }
        peer
    }

    fn port(&mut self) -> PolicyPort {
        let protocol = match self.below(20) {
            0..7 => None,
            7..12 => Some("TCP"),
            12..16 => Some("UDP"),
            16..19 => Some("SCTP"),
            _ => Some(self.pick(&["ICMP", "tcp", ""])),
        };
        let mut port = PolicyPort {
            protocol: protocol.map(Into::into),
            unknown: self.unknown(),
            ..PolicyPort::default()
        };
        match self.below(100) {
            0..20 => {}
            20..50 => port.port = Some(PortRef::Number(78 + self.below(6) as i64)),
            50..70 => {
                let first = 77 + self.below(6) as i64;
                port.port = Some(PortRef::Number(first));
                port.end_port = Some(first + self.below(6) as i64 - 1);
            }
            70..92 => port.port = Some(PortRef::Name(self.pick(&["web", "dns", "80", "none"]).into())),
            92..95 => port.port = Some(PortRef::Number(self.pick(&[0, -1, 65535, 65536, 1, 65616]))),
            95..97 => {
                port.port = Some(PortRef::Number(self.pick(&[0, 1, 80])));
                port.end_port = Some(self.pick(&[65535, 65536, 0, 80, -1]));
            }
            97..98 => port.end_port = Some(80),
            _ => {
                port.port = Some(PortRef::Name("web".into()));
                port.end_port = Some(81);
            }
        }
        port
    }

    pub fn policy(&mut self, namespace: &str, name: &str) -> Policy {
        let types = self.pick(&[
            &[][..],
            &["Ingress"],
            &["Egress"],
            &["Ingress", "Egress"],
            &["Ingress", "Egress"],
            &["Ingress", "Ingress"],
            &["Egress", "Ingress"],
        ]);
        let mut policy_types: Vec<String> = types.iter().map(|t| (*t).to_owned()).collect();
        if self.chance(2) {
            policy_types.push(self.pick(&["Both", "ingress", ""]).to_owned());
        }
        let pod_selector = self.selector(false);
        let rules = 2;
        let ingress = self.some(rules, |r| IngressRule {
            from: r.some(3, Self::peer),
            ports: r.some(2, Self::port),
            unknown: r.unknown(),
        });
        let egress = self.some(rules, |r| EgressRule {
            to: r.some(3, Self::peer),
            ports: r.some(2, Self::port),
            unknown: r.unknown(),
        });
        let audit = match self.below(8) {
            0 | 1 => Some("true"),
            2 => Some("false"),
            3 => Some("True"),
            _ => None,
        };
        Policy {
            namespace: namespace.into(),
            name: name.into(),
            created: self.below(3) as i64,
            audit: audit.map(str::to_owned),
            spec: PolicySpec { pod_selector, policy_types, ingress, egress, unknown: self.unknown() },
        }
    }

    pub fn namespace(&mut self, name: &str) -> Namespace {
        let log_allowed = if self.chance(70) { 0 } else { self.pick(&[1, 2, 100]) };
        Namespace { name: name.into(), labels: self.labels(), terminating: false, log_allowed }
    }

    pub fn pod(&mut self) -> Pod {
        let key = ObjectKey::new(self.pick(&NAMESPACES), self.pick(&["p", "q", "r", "s.t"]));
        let mut ips = self.some(2, |r| r.pick(&ADDRESSES).parse().unwrap());
        ips.dedup();
        let (host_network, finished, terminating) = match self.below(16) {
            0 => (true, false, false),
            1 => (false, true, false),
            2 => (false, false, true),
            3 => (self.chance(50), self.chance(50), true),
            _ => (false, false, false),
        };
        Pod {
            uid: if self.chance(50) { key.to_string() } else { String::new() },
            key,
            labels: self.labels(),
            node: (!self.chance(5)).then(|| self.pick(&NODES).to_owned()),
            ips,
            host_network,
            finished,
            terminating,
            created: self.below(3) as i64,
            ports: self.some(3, |r| NamedPort {
                name: r.pick(&["web", "dns", "80"]).into(),
                protocol: r.pick(&Protocol::ALL),
                port: 79 + r.below(4) as u16,
            }),
        }
    }

    fn event(&mut self) -> Event {
        let namespace = self.pick(&NAMESPACES);
        let policy_name = self.pick(&["p1", "p2", "p.3.with.dots"]);
        match self.below(20) {
            0..7 => Event::Pod(self.pod()),
            7..8 => Event::PodGone(ObjectKey::new(namespace, self.pick(&["p", "q", "r", "s.t"]))),
            8..14 => Event::Policy(self.policy(namespace, policy_name)),
            14..15 => Event::PolicyGone(ObjectKey::new(namespace, policy_name)),
            15..18 => Event::Namespace(self.namespace(namespace)),
            18..19 => Event::Namespace(Namespace { terminating: true, ..self.namespace(namespace) }),
            _ => Event::NamespaceGone(namespace.into()),
        }
    }

    /// Bursts of events; now and then all that came in a burst goes again, or an earlier burst comes back.
    pub fn bursts(&mut self, events: usize) -> Vec<Vec<Event>> {
        let mut bursts: Vec<Vec<Event>> = Vec::new();
        let mut left = events;
        while left > 0 {
            let burst: Vec<Event> = if !bursts.is_empty() && self.chance(15) {
                let earlier = self.below(bursts.len());
                bursts[earlier].clone()
            } else {
                (0..=self.below(left)).map(|_| self.event()).collect()
            };
            left = left.saturating_sub(burst.len());
            bursts.push(burst);
        }
        bursts
    }
}
