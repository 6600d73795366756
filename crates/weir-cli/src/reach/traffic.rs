//! Sets of traffic: ports of the three protocols that have some, and everything else.

use std::collections::HashMap;

use weir_compiler::object::Protocol;
#[cfg(test)]
use weir_compiler::ports::L4;
use weir_compiler::ports::PortSet;
use weir_compiler::ranges::RangeSet;

/// A set of traffic. Protocols without ports are all in it or none of them is (U1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Traffic {
    /// In the order of [`Protocol::ALL`].
    pub(crate) ports: [RangeSet<u16>; 3],
    pub(crate) other: bool,
}

impl Traffic {
    pub(crate) fn all() -> Traffic {
        Traffic { ports: std::array::from_fn(|_| RangeSet::all()), other: true }
    }

    pub(crate) fn of(ports: &PortSet) -> Traffic {
        match ports {
            PortSet::Any => Traffic::all(),
            PortSet::Ports(ports) => Traffic { ports: ports.clone(), other: false },
        }
    }

    /// Single ports.
    pub(crate) fn of_ports(ports: impl IntoIterator<Item = (Protocol, u16)>) -> Traffic {
        Traffic::of(&PortSet::from_ranges(ports.into_iter().map(|(protocol, port)| (protocol, port, port))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.other && self.ports.iter().all(RangeSet::is_empty)
    }

    pub(crate) fn is_all(&self) -> bool {
        self.other && self.ports.iter().all(RangeSet::is_all)
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, l4: L4) -> bool {
        match l4 {
            L4::Port(protocol, port) => self.ports[protocol as usize].contains(port),
            L4::Other(_) => self.other,
        }
    }

    pub(crate) fn and(&self, with: &Traffic) -> Traffic {
        let ports = std::array::from_fn(|i| self.ports[i].minus(&self.ports[i].minus(&with.ports[i])));
        Traffic { ports, other: self.other && with.other }
    }

    pub(crate) fn or(&self, with: &Traffic) -> Traffic {
        let ports = std::array::from_fn(|i| {
            RangeSet::from_ranges(self.ports[i].ranges().iter().chain(with.ports[i].ranges()).copied())
        });
        Traffic { ports, other: self.other || with.other }
    }

    pub(crate) fn minus(&self, other: &Traffic) -> Traffic {
        let ports = std::array::from_fn(|i| self.ports[i].minus(&other.ports[i]));
        Traffic { ports, other: self.other && !other.other }
    }

    /// (protocol, first, last), and whether other protocols are in it.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        Protocol::ALL.into_iter().zip(&self.ports).flat_map(|(protocol, set)| {
            set.ranges().iter().map(move |(first, last)| (protocol, *first, *last))
        })
    }
}

/// As people write it: `5432/TCP, 53/UDP`, `all ports`.
impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let mut parts = Vec::new();
        if self.ports.iter().all(RangeSet::is_all) {
            parts.push(if self.other { "all ports" } else { "all ports, without ICMP" }.to_owned());
        } else {
            for (protocol, first, last) in self.ranges() {
                parts.push(match (first, last) {
                    (0 | 1, u16::MAX) => format!("all ports of {protocol}"),
                    _ if first == last => format!("{first}/{protocol}"),
                    _ => format!("{first}-{last}/{protocol}"),
                });
            }
            if self.other {
                parts.push("protocols without ports".to_owned());
            }
        }
        f.write_str(&parts.join(", "))
    }
}

/// A number for each set of traffic, so that comparing two costs nothing.
#[derive(Debug)]
pub(crate) struct Interner {
    sets: Vec<Traffic>,
    numbers: HashMap<Traffic, u32>,
    ands: HashMap<(u32, u32), u32>,
}

/// Everything.
pub(crate) const ALL: u32 = 0;
/// Nothing.
pub(crate) const NONE: u32 = 1;

impl Interner {
    pub(crate) fn new() -> Interner {
        let mut interner = Interner { sets: Vec::new(), numbers: HashMap::new(), ands: HashMap::new() };
        interner.number(Traffic::all());
        interner.number(Traffic::default());
        interner
    }

    pub(crate) fn number(&mut self, traffic: Traffic) -> u32 {
        if let Some(&number) = self.numbers.get(&traffic) {
            return number;
        }
        let number = u32::try_from(self.sets.len()).expect("fewer sets of traffic than pairs of rulesets");
        self.sets.push(traffic.clone());
        self.numbers.insert(traffic, number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> &Traffic {
        &self.sets[number as usize]
    }

    pub(crate) fn and(&mut self, a: u32, b: u32) -> u32 {
        match (a, b) {
            (ALL, x) | (x, ALL) => x,
            (NONE, _) | (_, NONE) => NONE,
            _ if a == b => a,
            _ => {
                let key = (a.min(b), a.max(b));
                if let Some(&known) = self.ands.get(&key) {
                    return known;
                }
                let number = self.number(self.get(a).and(self.get(b)));
                self.ands.insert(key, number);
                number
            }
        }
    }
}
