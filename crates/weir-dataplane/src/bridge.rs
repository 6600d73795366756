//! The table `bridge weir`: what pods of one bridge can do to each other before any rule on IP
//! packets sees it. Their addresses tell them apart there, so these must be honest; here each frame
//! is known by the port that it comes from or goes to.
//!
//! ```text
//!   chain guard    hook prerouting, priority -300: before br_netfilter, and with it conntrack (U25)
//!     iifname != @ports                        accept      not a known pod's
//!     iifname . ether saddr != @macs           drop
//!     ARP      sender's MAC and address        the pod's own; 0.0.0.0 asks for duplicates
//!     IPv4     source                          the pod's own; 0.0.0.0 for DHCP alone
//!     IPv6     router advertisements, redirects                 drop
//!              target of a neighbour advertisement, or of a search for duplicates: the pod's own
//!              source                          the pod's own; :: for neighbour discovery alone;
//!                                              link-local if the pod's, and for a pod that is isolated
//!                                              for egress, for neighbour discovery and MLD alone
//!     all else                                 drop        also what has a VLAN tag
//!
//!   chain ingress  hook forward, priority -200: from one port to another
//!     oifname != @isolated_ingress             accept
//!     ARP, neighbour discovery, MLD            accept      (N92)
//!     IPv4, IPv6 to an address of the pod      accept      inet weir judges it
//!     DHCP from the world outside              accept
//!     drop                                                 multicast, broadcast, link-local addresses
//!
//!   chains unknown_from, unknown_to, unknown_out           ports of pods that nobody knows (U11)
//! ```
//!
//! What the node itself sends to a pod comes by the hook `output`, and by none of these but the last (N71).
//! The table is small, for it has only pods of this node: it is made anew with each change of them, and
//! compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Direction, NodeSlice, SlicePod};

use crate::guard::RAW;
use crate::model::{
    Bytes, Chain, CmpOp, Element, Expr, Family, Field, Hook, HookPoint, MetaKey, PayloadBase, Reg, Rule, Set,
    Table, Verdict,
};
use crate::peers::address_key;
use crate::planner::{Settings, TABLE, comment, interface_key};
use crate::rules::{IpFamily, decl};

/// What is known of the port of a bridge that a pod is behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The name of the node's interface.
    pub name: String,
    /// The address of the pod's interface.
    pub mac: [u8; 6],
    /// The link-local addresses of the pod's interface.
    pub link_local: BTreeSet<Ipv6Addr>,
}

/// The ports of bridges by the pods that are behind them, and what else is known of ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Of pods that are known.
    pub pods: BTreeMap<ObjectKey, Port>,
    /// Ports that look like those of pods, behind which there is none that is known.
    pub unknown: BTreeSet<String>,
    /// Interfaces that look like pods' own, of which the same is true.
    pub unknown_own: BTreeSet<String>,
}

const PORTS: &str = "ports";
const MACS: &str = "macs";
const OWN_4: &str = "own_4";
const OWN_6: &str = "own_6";
/// The pod's addresses and its link-local ones.
const ON_LINK_6: &str = "on_link_6";
const ISOLATED_EGRESS: &str = "isolated_egress";
const ISOLATED_INGRESS: &str = "isolated_ingress";
const UNKNOWN: &str = "unknown";

/// The table; `None`: there is no port to speak of.
pub(crate) fn table(slice: &NodeSlice, ports: &Ports, settings: Settings) -> Option<Table> {
    let isolated = |pod: &SlicePod, direction| {
        let profile = slice.profiles.get(&pod.profile)?;
        let ruleset = slice.rulesets.get(&profile.ruleset(direction)?)?;
        ruleset.isolated.then_some(())
    };
    let mut sets: BTreeMap<&str, Set> = [
        (PORTS, vec![Field::IfName]),
        (MACS, vec![Field::IfName, Field::Mac]),
        (OWN_4, vec![Field::IfName, Field::Ipv4]),
        (OWN_6, vec![Field::IfName, Field::Ipv6]),
        (ON_LINK_6, vec![Field::IfName, Field::Ipv6]),
        (ISOLATED_EGRESS, vec![Field::IfName]),
        (ISOLATED_INGRESS, vec![Field::IfName]),
        (UNKNOWN, vec![Field::IfName]),
    ]
    .map(|(name, key)| (name, Set { decl: decl(&key), elements: BTreeMap::new() }))
    .into();
    let mut put = |set: &str, comment: Option<&str>, port: &str, rest: &[u8]| {
        let mut key: Bytes = interface_key(port).into_iter().chain(rest.iter().copied()).collect();
        // in a concatenation, fields fill words of four bytes
        key.resize(key.len().next_multiple_of(4), 0);
        let element = Element { comment: comment.map(str::to_owned), ..Element::default() };
        if let Some(set) = sets.get_mut(set) {
            set.elements.insert(key, element);
        }
    };
    let known = slice.pods.iter().filter_map(|(key, pod)| Some((key, pod, ports.pods.get(key)?)));
    let mut any = false;
    for (key, pod, port) in known {
        let comment = comment(&key.to_string());
        let mut put = |set: &str, rest: &[u8]| put(set, Some(&comment), &port.name, rest);
        let egress = isolated(pod, Direction::Egress).is_some();
        let ingress = isolated(pod, Direction::Ingress).is_some();
        // what isolates a pod for egress asks for its addresses, so these are to be its own in any case
        if settings.source_guard || egress {
            put(PORTS, &[]);
        }
        put(MACS, &port.mac);
        for address in &pod.addresses {
            let (family, bytes) = address_key(*address);
            match family {
                IpFamily::V4 => put(OWN_4, &bytes),
                IpFamily::V6 => [OWN_6, ON_LINK_6].iter().for_each(|set| put(set, &bytes)),
            }
        }
        port.link_local.iter().for_each(|address| put(ON_LINK_6, &address.octets()));
        if egress {
            put(ISOLATED_EGRESS, &[]);
        }
        if ingress {
            put(ISOLATED_INGRESS, &[]);
        }
        any |= settings.source_guard || egress || ingress;
    }
    ports.unknown.iter().for_each(|port| put(UNKNOWN, None, port, &[]));
    if !any && ports.unknown.is_empty() {
        return None;
    }
    let sets = sets.into_iter().map(|(name, set)| (name.to_owned(), set)).collect();
    let chain = |(name, point, priority, rules): (&str, _, _, _)| {
        (name.to_owned(), Chain { hook: Some(Hook { point, priority }), rules })
    };
    let chains = [
        ("guard", HookPoint::Prerouting, RAW, guard()),
        ("ingress", HookPoint::Forward, FILTER, ingress()),
        ("unknown_from", HookPoint::Prerouting, RAW - 1, unknown(MetaKey::IifName)),
        ("unknown_to", HookPoint::Forward, FILTER, unknown(MetaKey::OifName)),
        ("unknown_out", HookPoint::Output, FILTER, unknown(MetaKey::OifName)),
    ];
    let chains = chains.into_iter().map(chain).collect();
    Some(Table { family: Family::Bridge, name: TABLE.to_owned(), sets, chains })
}

/// `filter` of the bridge family: before br_netfilter hands frames over to the hooks of IP.
const FILTER: i32 = -200;

fn guard() -> Vec<Rule> {
    use Verdict::{Accept, Drop};
    let arp = || Frame::of(ARP);
    let (v4, v6) = (|| Frame::of(IPV4), || Frame::of(IPV6));
    let mut rules = vec![
        Frame::default().interface(MetaKey::IifName, PORTS, Is::Not).then(Accept),
        Frame::default().part_from(SOURCE_MAC, MACS, Is::Not).then(Drop),
        arp().part_from(ARP_MAC, MACS, Is::Not).then(Drop),
        arp().equals(ARP_ADDRESS, &[0; 4]).then(Accept),
        arp().part_from(ARP_ADDRESS, OWN_4, Is::In).then(Accept),
        v4().part_from(SOURCE_4, OWN_4, Is::In).then(Accept),
        v4().equals(SOURCE_4, &[0; 4]).udp(68, 67).then(Accept),
        // a pod is no router for others
        v6().icmpv6(134, 134).then(Drop),
        v6().icmpv6(137, 137).then(Drop),
        v6().icmpv6(136, 136).part_from(ND_TARGET, ON_LINK_6, Is::Not).then(Drop),
        v6().equals(SOURCE_6, &[0; 16]).icmpv6(135, 135).part_from(ND_TARGET, ON_LINK_6, Is::Not).then(Drop),
        v6().part_from(SOURCE_6, OWN_6, Is::In).then(Accept),
    ];
    rules.extend(neighbours(|| v6().equals(SOURCE_6, &[0; 16])));
    rules.push(v6().part_from(SOURCE_6, ON_LINK_6, Is::Not).then(Drop));
    rules.extend(neighbours(v6));
    rules.push(v6().interface(MetaKey::IifName, ISOLATED_EGRESS, Is::Not).then(Accept));
    rules.push(Frame::default().then(Drop));
    rules
}

fn ingress() -> Vec<Rule> {
    use Verdict::{Accept, Drop};
    let mut rules = vec![
        Frame::default().interface(MetaKey::OifName, ISOLATED_INGRESS, Is::Not).then(Accept),
        Frame::of(ARP).then(Accept),
    ];
    rules.extend(neighbours(|| Frame::of(IPV6)));
    let outside = |ethertype| Frame::of(ethertype).interface(MetaKey::IifName, PORTS, Is::Not);
    rules.extend([
        Frame::of(IPV4).part_to(DESTINATION_4, OWN_4).then(Accept),
        Frame::of(IPV6).part_to(DESTINATION_6, OWN_6).then(Accept),
        outside(IPV4).udp(67, 68).then(Accept),
        outside(IPV6).udp(547, 546).then(Accept),
        Frame::default().then(Drop),
    ]);
    rules
}

/// All that a port of an unknown pod may send or get is what finds neighbours.
fn unknown(interface: MetaKey) -> Vec<Rule> {
    let unknown = || Frame::default().interface(interface, UNKNOWN, Is::In);
    let mut rules = vec![unknown().ethertype(ARP).then(Verdict::Accept)];
    rules.extend(neighbours(|| unknown().ethertype(IPV6)));
    rules.push(unknown().then(Verdict::Drop));
    rules
}

/// N92: neighbour discovery and multicast listeners.
fn neighbours(frame: impl Fn() -> Frame) -> [Rule; 2] {
    [(130, 137), (143, 143)].map(|(first, last)| frame().icmpv6(first, last).then(Verdict::Accept))
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A part of a frame: which header, from where in it, how long.
type Part = (PayloadBase, u32, u32);

const SOURCE_MAC: Part = (PayloadBase::LinkLayer, 6, 6);
/// A tag of a VLAN is put back into the header where this looks.
const ETHERTYPE: Part = (PayloadBase::LinkLayer, 12, 2);
const ARP_MAC: Part = (PayloadBase::Network, 8, 6);
const ARP_ADDRESS: Part = (PayloadBase::Network, 14, 4);
const SOURCE_4: Part = (PayloadBase::Network, 12, 4);
const DESTINATION_4: Part = (PayloadBase::Network, 16, 4);
const SOURCE_6: Part = (PayloadBase::Network, 8, 16);
const DESTINATION_6: Part = (PayloadBase::Network, 24, 16);
const ICMP_TYPE: Part = (PayloadBase::Transport, 0, 1);
const UDP_PORTS: Part = (PayloadBase::Transport, 0, 4);
/// Of a neighbour solicitation and of an advertisement.
const ND_TARGET: Part = (PayloadBase::Transport, 8, 16);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    In,
    Not,
}

/// A rule that is being written, on frames: the family of bridges knows no `meta nfproto`.
#[derive(Default)]
struct Frame(Vec<Expr>);

impl Frame {
    fn of(ethertype: u16) -> Frame {
        Frame::default().ethertype(ethertype)
    }

    fn then(mut self, verdict: Verdict) -> Rule {
        self.0.push(Expr::Verdict(verdict));
        Rule { exprs: self.0, comment: None }
    }

    fn ethertype(self, ethertype: u16) -> Frame {
        self.equals(ETHERTYPE, &ethertype.to_be_bytes())
    }

    fn load(&mut self, (base, offset, len): Part, dreg: Reg) {
        self.0.push(Expr::Payload { base, offset, len, dreg });
    }

    fn compare(&mut self, op: CmpOp, value: &[u8]) {
        self.0.push(Expr::Cmp { sreg: Reg(0), op, value: value.into() });
    }

    fn lookup(mut self, set: &str, is: Is) -> Frame {
        let negate = is == Is::Not;
        self.0.push(Expr::Lookup { set: set.to_owned(), sreg: Reg(0), dest: None, negate });
        self
    }

    fn interface(mut self, key: MetaKey, set: &str, is: Is) -> Frame {
        self.0.push(Expr::Meta { key, dreg: Reg(0) });
        self.lookup(set, is)
    }

    fn part_from(mut self, part: Part, set: &str, is: Is) -> Frame {
        self.0.push(Expr::Meta { key: MetaKey::IifName, dreg: Reg(0) });
        self.load(part, Reg(4));
        self.lookup(set, is)
    }

    fn part_to(mut self, part: Part, set: &str) -> Frame {
        self.0.push(Expr::Meta { key: MetaKey::OifName, dreg: Reg(0) });
        self.load(part, Reg(4));
        self.lookup(set, Is::In)
    }

    fn equals(mut self, part: Part, value: &[u8]) -> Frame {
        self.load(part, Reg(0));
        self.compare(CmpOp::Eq, value);
        self
    }

    fn protocol(mut self, number: u8) -> Frame {
        self.0.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) });
        self.compare(CmpOp::Eq, &[number]);
        self
    }

    fn udp(self, source: u16, destination: u16) -> Frame {
        let ports = u32::from(source) << 16 | u32::from(destination);
        self.protocol(17).equals(UDP_PORTS, &ports.to_be_bytes())
    }

    fn icmpv6(self, first: u8, last: u8) -> Frame {
        let mut this = self.protocol(58);
        if first == last {
            return this.equals(ICMP_TYPE, &[first]);
        }
        this.load(ICMP_TYPE, Reg(0));
        this.compare(CmpOp::Gte, &[first]);
        this.compare(CmpOp::Lte, &[last]);
        this
    }
}
