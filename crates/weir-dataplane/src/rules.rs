//! Rules, put together from the kernel's expressions as nft itself would write them.

use std::net::Ipv6Addr;

use smallvec::SmallVec;
use weir_compiler::object::Protocol;

use crate::model::{
    Bytes, CmpOp, CtKey, Expr, Field, LookupDest, MetaKey, PayloadBase, Reg, Rule, SetDecl, Verdict,
};
use crate::planner::DenialLog;

/// IPv4 or IPv6: what a rule on addresses is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    pub(crate) const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`
    const fn nfproto(self) -> u8 {
        match self {
            IpFamily::V4 => 2,
            IpFamily::V6 => 10,
        }
    }

    pub(crate) const fn field(self) -> Field {
        match self {
            IpFamily::V4 => Field::Ipv4,
            IpFamily::V6 => Field::Ipv6,
        }
    }

    /// As it ends the names of sets.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            IpFamily::V4 => "4",
            IpFamily::V6 => "6",
        }
    }
}

/// Source or destination address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// A rule that is being written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Match(Vec<Expr>);

const R0: Reg = Reg(0);

/// Bits of `ct state`.
pub(crate) const INVALID: u32 = 1;
pub(crate) const ESTABLISHED: u32 = 2;
pub(crate) const RELATED: u32 = 4;
pub(crate) const NEW: u32 = 8;
/// Of `ct status`: some packet of the connection got through.
pub(crate) const CONFIRMED: u32 = 8;

const TCP: u8 = 6;
/// FIN, SYN, RST and ACK, and of them what the first packet of a connection has.
const TCP_FLAGS: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

const ICMPV6: u8 = 58;

impl Match {
    /// Hands packets to NFLOG, of which there are not too many.
    pub(crate) fn logged(mut self, log: &DenialLog, prefix: &str) -> Rule {
        self.0.push(Expr::Limit { per_second: log.per_second, burst: log.burst });
        self.0.push(Expr::Log { group: log.group, prefix: prefix.to_owned(), snaplen: log.snaplen });
        Rule { exprs: self.0, comment: None }
    }

    /// No packet of the connection got through so far. Not what has no connection.
    pub(crate) fn first_of_connection(mut self) -> Self {
        let zero = Bytes::from_slice(&[0; 4]);
        self.0.push(Expr::Ct { key: CtKey::Status, dreg: R0 });
        let mask = Bytes::from_slice(&CONFIRMED.to_ne_bytes());
        self.0.push(Expr::Bitwise { sreg: R0, dreg: R0, mask, xor: zero.clone() });
        self.cmp(&zero)
    }

    /// One of so many, by chance.
    pub(crate) fn one_of(mut self, n: u32) -> Self {
        if n <= 1 {
            return self;
        }
        // there are 2^32 values
        let last = u32::MAX / n - u32::from(u32::MAX % n != n - 1);
        self.0.push(Expr::Meta { key: MetaKey::Random, dreg: R0 });
        self.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Lte, value: Bytes::from_slice(&last.to_be_bytes()) });
        self
    }

    pub(crate) fn then(mut self, verdict: Verdict) -> Rule {
        self.0.push(Expr::Verdict(verdict));
        Rule { exprs: self.0, comment: None }
    }

    fn cmp(mut self, value: &[u8]) -> Self {
        self.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Eq, value: value.into() });
        self
    }

    fn range(mut self, first: &[u8], last: &[u8]) -> Self {
        self.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Gte, value: first.into() });
        self.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Lte, value: last.into() });
        self
    }

    /// `ct state` has one of these bits.
    pub(crate) fn ct_state(self, bits: u32) -> Self {
        self.ct_bits(CtKey::State, bits)
    }

    /// The connection's mark has one of these bits.
    pub(crate) fn ct_mark(self, bits: u32) -> Self {
        self.ct_bits(CtKey::Mark, bits)
    }

    /// TCP that is new, and not with SYN alone.
    pub(crate) fn tcp_new_without_syn(self) -> Self {
        let mut this = self.ct_state(NEW).l4proto(TCP);
        this.0.push(Expr::Payload { base: PayloadBase::Transport, offset: 13, len: 1, dreg: R0 });
        this.0.push(Expr::Bitwise {
            sreg: R0,
            dreg: R0,
            mask: Bytes::from_slice(&[TCP_FLAGS]),
            xor: Bytes::from_slice(&[0]),
        });
        this.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Neq, value: Bytes::from_slice(&[TCP_SYN]) });
        this
    }

    fn ct_bits(mut self, key: CtKey, bits: u32) -> Self {
        let zero = Bytes::from_slice(&[0; 4]);
        self.0.push(Expr::Ct { key, dreg: R0 });
        self.0.push(Expr::Bitwise {
            sreg: R0,
            dreg: R0,
            mask: Bytes::from_slice(&bits.to_ne_bytes()),
            xor: zero.clone(),
        });
        self.0.push(Expr::Cmp { sreg: R0, op: CmpOp::Neq, value: zero });
        self
    }

    pub(crate) fn ip_family(mut self, family: IpFamily) -> Self {
        self.0.push(Expr::Meta { key: MetaKey::NfProto, dreg: R0 });
        self.cmp(&[family.nfproto()])
    }

    fn l4proto(mut self, number: u8) -> Self {
        self.0.push(Expr::Meta { key: MetaKey::L4Proto, dreg: R0 });
        self.cmp(&[number])
    }

    /// IPv6, with this hop limit.
    pub(crate) fn hop_limit(self, limit: u8) -> Self {
        let mut this = self.ip_family(IpFamily::V6);
        this.0.push(Expr::Payload { base: PayloadBase::Network, offset: 7, len: 1, dreg: R0 });
        this.cmp(&[limit])
    }

    /// The ICMPv6 type is in a range.
    pub(crate) fn icmpv6_type(self, first: u8, last: u8) -> Self {
        let mut this = self.l4proto(ICMPV6);
        this.0.push(Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: R0 });
        if first == last {
            return this.cmp(&[first]);
        }
        this.range(&[first], &[last])
    }

    /// All ports of a protocol, one, or a range.
    pub(crate) fn ports(self, protocol: Protocol, first: u16, last: u16) -> Self {
        let mut this = self.l4proto(protocol.number());
        if (first, last) == (0, u16::MAX) {
            return this;
        }
        this.load_port(R0);
        let (first, last) = (first.to_be_bytes(), last.to_be_bytes());
        if first == last {
            return this.cmp(&first);
        }
        this.range(&first, &last)
    }

    /// The protocol's destination port is in a set.
    pub(crate) fn port_in(self, protocol: Protocol, set: &str) -> Self {
        let mut this = self.l4proto(protocol.number());
        this.load_port(R0);
        this.lookup(set)
    }

    /// An address is in a set.
    pub(crate) fn address_in(self, family: IpFamily, end: End, set: &str) -> Self {
        let mut this = self.ip_family(family);
        this.load_address(family, end, R0);
        this.lookup(set)
    }

    /// The peer's address, the protocol and the destination port are in a set.
    pub(crate) fn endpoint_in(self, family: IpFamily, end: End, set: &str) -> Self {
        let mut this = self.ip_family(family);
        let words = (family.field().len() / 4) as u8;
        this.load_address(family, end, R0);
        this.0.push(Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(words) });
        this.load_port(Reg(words + 1));
        this.lookup(set)
    }

    /// The input interface and both addresses are in a set.
    pub(crate) fn hairpin_in(self, family: IpFamily, set: &str) -> Self {
        let mut this = self.ip_family(family);
        let words = (family.field().len() / 4) as u8;
        this.0.push(Expr::Meta { key: MetaKey::IifName, dreg: R0 });
        this.load_address(family, End::Source, Reg(4));
        this.load_address(family, End::Destination, Reg(4 + words));
        this.lookup(set)
    }

    /// The interface is in a set.
    pub(crate) fn interface_in(mut self, key: MetaKey, set: &str) -> Self {
        self.0.push(Expr::Meta { key, dreg: R0 });
        self.lookup(set)
    }

    /// The interface is not in a set.
    pub(crate) fn interface_not_in(mut self, key: MetaKey, set: &str) -> Self {
        self.0.push(Expr::Meta { key, dreg: R0 });
        self.0.push(Expr::Lookup { set: set.to_owned(), sreg: R0, dest: None, negate: true });
        self
    }

    /// The input interface and an address are in a set.
    pub(crate) fn interface_address_in(self, family: IpFamily, end: End, set: &str) -> Self {
        let mut this = self.ip_family(family);
        this.0.push(Expr::Meta { key: MetaKey::IifName, dreg: R0 });
        this.load_address(family, end, Reg(4));
        this.lookup(set)
    }

    /// The IPv6 source is in a range.
    pub(crate) fn source_in_range(self, first: Ipv6Addr, last: Ipv6Addr) -> Self {
        let mut this = self.ip_family(IpFamily::V6);
        this.load_address(IpFamily::V6, End::Source, R0);
        if first == last {
            return this.cmp(&first.octets());
        }
        this.range(&first.octets(), &last.octets())
    }

    /// ICMPv6 of any type.
    pub(crate) fn icmpv6(self) -> Self {
        self.l4proto(ICMPV6)
    }

    /// Goes where a verdict map sends the interface's packets.
    pub(crate) fn interface_vmap(mut self, key: MetaKey, map: &str) -> Rule {
        self.0.push(Expr::Meta { key, dreg: R0 });
        self.vmap(map)
    }

    /// Goes where a verdict map sends the address' packets.
    pub(crate) fn address_vmap(self, family: IpFamily, end: End, map: &str) -> Rule {
        let mut this = self.ip_family(family);
        this.load_address(family, end, R0);
        this.vmap(map)
    }

    /// Goes where a verdict map sends the destination port's packets.
    pub(crate) fn port_vmap(self, protocol: Protocol, map: &str) -> Rule {
        let mut this = self.l4proto(protocol.number());
        this.load_port(R0);
        this.vmap(map)
    }

    fn load_port(&mut self, dreg: Reg) {
        // TCP, UDP and SCTP have the destination port in the same place
        self.0.push(Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg });
    }

    fn load_address(&mut self, family: IpFamily, end: End, dreg: Reg) {
        let (offset, len) = match (family, end) {
            (IpFamily::V4, End::Source) => (12, 4),
            (IpFamily::V4, End::Destination) => (16, 4),
            (IpFamily::V6, End::Source) => (8, 16),
            (IpFamily::V6, End::Destination) => (24, 16),
        };
        self.0.push(Expr::Payload { base: PayloadBase::Network, offset, len, dreg });
    }

    fn lookup(mut self, set: &str) -> Self {
        self.0.push(Expr::Lookup { set: set.to_owned(), sreg: R0, dest: None, negate: false });
        self
    }

    fn vmap(mut self, map: &str) -> Rule {
        let dest = Some(LookupDest::Verdict);
        self.0.push(Expr::Lookup { set: map.to_owned(), sreg: R0, dest, negate: false });
        Rule { exprs: self.0, comment: None }
    }
}

/// The type of a set with this key.
pub(crate) fn decl(key: &[Field]) -> SetDecl {
    SetDecl { key: SmallVec::from_slice(key), data: None, interval: false, constant: false }
}
