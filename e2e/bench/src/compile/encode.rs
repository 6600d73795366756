//! A stand-in for what the controller sends: the fields of a change, with their lengths.

use std::net::IpAddr;

use weir_compiler::cidr::CidrSet;
use weir_compiler::object::{NamedPort, ObjectKey};
use weir_compiler::policy::{PeerClause, PolicyClauses, PortClause};
use weir_compiler::ports::PortSet;
use weir_compiler::selector::{Requirement, Selector};
use weir_compiler::slice::{Change, Direction, Member, PeerSet};

/// Writes one change behind what is there.
pub(crate) fn encode(change: &Change, to: &mut Vec<u8>) {
    let mut out = Out(to);
    match change {
        Change::PeerSet(id, set, members) => {
            out.kind(1).id(id.as_bytes()).peer_set(set).number(members.len());
            members.iter().for_each(|member| out.member(member));
        }
        Change::PortSet(id, set) => out.kind(2).id(id.as_bytes()).ports(set),
        Change::Rule(id, rule) => {
            out.kind(3).id(id.as_bytes()).kind(rule.action as u8).id(rule.ports.as_bytes());
            let peers = rule.peers.as_deref();
            out.number(peers.map_or(0, |peers| 1 + peers.len()));
            peers.into_iter().flatten().for_each(|peer| out.id(peer.as_bytes()).end());
        }
        Change::Ruleset(id, set) => {
            out.kind(4).id(id.as_bytes()).kind(set.direction as u8).kind(set.isolated.into());
            out.number(set.entries.len());
            for entry in &set.entries {
                out.kind(entry.tier as u8).number(entry.priority as usize).id(entry.rule.as_bytes());
            }
        }
        Change::Policy(key, policy) => {
            out.kind(5).key(key).id(policy.subject.as_bytes()).clauses(&policy.clauses)
        }
        Change::Profile(id, profile) => {
            out.kind(6).id(id.as_bytes());
            for ruleset in [profile.ingress, profile.egress] {
                out.kind(ruleset.is_some().into());
                ruleset.iter().for_each(|id| out.id(id.as_bytes()).end());
            }
            out.number(profile.subjects.len());
            profile.subjects.iter().for_each(|id| out.id(id.as_bytes()).end());
        }
        Change::Pod(key, pod) => {
            out.kind(7).key(key).id(pod.profile.as_bytes()).number(pod.addresses.len());
            pod.addresses.iter().for_each(|address| out.address(*address));
            out.number(pod.ports.len());
            for NamedPort { name, protocol, port } in pod.ports.iter() {
                out.text(name).kind(protocol.number()).number((*port).into());
            }
        }
        Change::Members { id, added, removed } => {
            out.kind(8).id(id.as_bytes());
            for list in [added, removed] {
                out.number(list.len());
                list.iter().for_each(|member| out.member(member));
            }
        }
        Change::PodGone(key) => out.kind(9).key(key).end(),
        Change::ProfileGone(id) => out.kind(10).id(id.as_bytes()).end(),
        Change::PolicyGone(key) => out.kind(11).key(key).end(),
        Change::RulesetGone(id) => out.kind(12).id(id.as_bytes()).end(),
        Change::RuleGone(id) => out.kind(13).id(id.as_bytes()).end(),
        Change::PortSetGone(id) => out.kind(14).id(id.as_bytes()).end(),
        Change::PeerSetGone(id) => out.kind(15).id(id.as_bytes()).end(),
    }
}

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn end(&mut self) {}

    fn kind(&mut self, kind: u8) -> &mut Self {
        self.0.push(kind);
        self
    }

    fn number(&mut self, mut number: usize) -> &mut Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn id(&mut self, id: &[u8; 16]) -> &mut Self {
        self.0.extend_from_slice(id);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len()).0.extend_from_slice(text.as_bytes());
        self
    }

    fn key(&mut self, key: &ObjectKey) -> &mut Self {
        self.text(&key.namespace).text(&key.name)
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.kind(4).0.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => self.kind(6).0.extend_from_slice(&address.octets()),
        }
    }

    fn member(&mut self, member: &Member) {
        match member {
            Member::Address(address) => self.address(*address),
            Member::Endpoint(address, protocol, port) => {
                self.kind(protocol.number()).number((*port).into()).address(*address);
            }
        }
    }

    fn selector(&mut self, selector: &Selector) -> &mut Self {
        self.number(selector.requirements().count());
        for requirement in selector.requirements() {
            let (kind, key, values) = match requirement {
                Requirement::In(key, values) => (1, key, Some(values)),
                Requirement::NotIn(key, values) => (2, key, Some(values)),
                Requirement::Exists(key) => (3, key, None),
                Requirement::DoesNotExist(key) => (4, key, None),
            };
            self.kind(kind).text(key).number(values.map_or(0, |values| values.len()));
            values.into_iter().flatten().for_each(|value| self.text(value).end());
        }
        self
    }

    fn cidrs(&mut self, set: &CidrSet) {
        self.number(set.v4.ranges().len());
        for (first, last) in set.v4.ranges() {
            self.0.extend(first.to_be_bytes().iter().chain(&last.to_be_bytes()));
        }
        self.number(set.v6.ranges().len());
        for (first, last) in set.v6.ranges() {
            self.0.extend(first.to_be_bytes().iter().chain(&last.to_be_bytes()));
        }
    }

    fn peer_set(&mut self, set: &PeerSet) -> &mut Self {
        match set {
            PeerSet::Pods { namespaces, pods } => self.kind(1).selector(namespaces).selector(pods).end(),
            PeerSet::Cidrs(set) => self.kind(2).cidrs(set),
            PeerSet::Endpoints { namespaces, pods, within, name, protocol } => {
                self.kind(3).selector(namespaces).selector(pods).text(name).kind(protocol.number());
                self.kind(within.is_some().into());
                within.iter().for_each(|within| self.cidrs(within));
            }
        }
        self
    }

    fn ports(&mut self, set: &PortSet) {
        let PortSet::Ports(sets) = set else { return self.kind(1).end() };
        self.kind(2);
        for set in sets {
            self.number(set.ranges().len());
            for (first, last) in set.ranges() {
                self.number((*first).into()).number((*last).into());
            }
        }
    }

    fn clauses(&mut self, clauses: &PolicyClauses) {
        for direction in Direction::BOTH {
            let Some(rules) = clauses.rules(direction) else {
                self.kind(0);
                continue;
            };
            self.number(1 + rules.len());
            for rule in rules {
                self.number(rule.peers.as_ref().map_or(0, |peers| 1 + peers.len()));
                for peer in rule.peers.iter().flatten() {
                    match peer {
                        PeerClause::Pods { namespaces, pods } => {
                            self.kind(1).selector(namespaces).selector(pods);
                        }
                        PeerClause::Cidrs(set) => self.kind(2).cidrs(set),
                        PeerClause::Nothing => self.kind(0).end(),
                    }
                }
                self.number(rule.ports.as_ref().map_or(0, |ports| 1 + ports.len()));
                for port in rule.ports.iter().flatten() {
                    match port {
                        PortClause::Range(protocol, first, last) => {
                            self.kind(protocol.number()).number((*first).into()).number((*last).into());
                        }
                        PortClause::Named(name, protocol) => {
                            self.kind(1).text(name).kind(protocol.number());
                        }
                        PortClause::Nothing => self.kind(0).end(),
                    }
                }
            }
        }
    }
}
