//! A typed model of nftables state: tables, chains, rules, sets and maps.
//!
//! One type serves the plan (what should be in the kernel) and the dump (what is), so that
//! the two can be compared: rules are lists of the kernel's own expressions, keys are the
//! kernel's own bytes. What the kernel normalises is written here in its normal form (a
//! register by its first 32-bit word, an interval by both of its ends), and reading back
//! what was written gives an equal value.

use std::collections::BTreeMap;

use smallvec::SmallVec;

/// Address family of a table (`NFPROTO_*` in `linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// IPv4 alone.
    Ip,
    /// IPv6 alone.
    Ip6,
    /// Frames on a bridge.
    Bridge,
}

/// A table and all that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name; names are unique within a family.
    pub name: String,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A chain: a list of rules, and where packets enter it unless they are sent by a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Base chains only. It cannot change while the chain exists.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Where a base chain of type `filter` is called from. Its policy is always accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// The point in the packet's way.
    pub point: HookPoint,
    /// Lower is earlier; 0 is `filter`, -300 `raw`.
    pub priority: i32,
}

/// `enum nf_inet_hooks` (the numbers are the same for bridge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// 0: every packet that comes in, before routing.
    Prerouting,
    /// 1: for this host.
    Input,
    /// 2: through this host.
    Forward,
    /// 3: from this host.
    Output,
    /// 4: every packet that leaves.
    Postrouting,
    /// Found in a dump only: a base chain that Weir does not write, by its hook's number (another
    /// type than `filter`, another policy than accept, a hook of a device, or asleep with its
    /// table). It differs from every chain of a plan.
    Foreign(u32),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Evaluated in order; the first that does not match ends the rule.
    pub exprs: Vec<Expr>,
    /// For people who read `nft list ruleset`: at most 127 bytes.
    pub comment: Option<String>,
}

/// A register, by the index of its first 32-bit word, 0 to 15. Words 0, 4, 8 and 12 are
/// `NFT_REG_1` to `NFT_REG_4`, the others `NFT_REG32_00` plus the index: so the kernel dumps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

/// An expression of `nf_tables`, in the subset that Weir writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads packet metadata into a register.
    Meta {
        /// Which.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Loads bytes of the packet into a register.
    Payload {
        /// Which header `offset` counts from.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads from the packet's conntrack entry.
    Ct {
        /// What.
        key: CtKey,
        /// Where to.
        dreg: Reg,
    },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// As long as `xor`.
        mask: Bytes,
        /// As long as `mask`.
        xor: Bytes,
    },
    /// Compares a register with a constant.
    Cmp {
        /// What is compared.
        sreg: Reg,
        /// How.
        op: CmpOp,
        /// In network byte order, interface names and ct state in the host's, as nft writes them.
        value: Bytes,
    },
    /// Compares a register with an inclusive range (of values in network byte order). nft writes it for
    /// `!=` only: for a range that matches, it compares with both ends.
    Range {
        /// What is compared.
        sreg: Reg,
        /// Matches outside of the range instead of inside.
        negate: bool,
        /// First value.
        from: Bytes,
        /// Last value.
        to: Bytes,
    },
    /// Looks a key up in a set or map.
    Lookup {
        /// The set's name.
        set: String,
        /// First register of the key.
        sreg: Reg,
        /// Maps: where the value goes. `None` is a set, or `Some(LookupDest::Verdict)` a verdict map.
        dest: Option<LookupDest>,
        /// Matches if the key is not there.
        negate: bool,
    },
    /// Looks the packet up in a kernel ipset (the `set` match of xtables, by nft_compat). In families
    /// ip and ip6 only.
    Ipset {
        /// The ipset's name; in the kernel, rules have its index.
        set: String,
        /// What of the packet is looked up.
        key: IpsetKey,
        /// Matches if it is not there.
        negate: bool,
    },
    /// Matches up to so many packets a second (`limit rate`), and a number of them at once.
    Limit {
        /// Packets.
        per_second: u32,
        /// Packets; not 0.
        burst: u32,
    },
    /// Hands the head of the packet to whoever listens to a group of NFLOG (`log group`). It always matches.
    Log {
        /// Of NFLOG.
        group: u16,
        /// At most 127 bytes.
        prefix: String,
        /// How many bytes of the packet.
        snaplen: u32,
    },
    /// Ends the rule with a verdict (`immediate` into the verdict register).
    Verdict(Verdict),
    /// An expression that Weir does not write, by its name: found in a dump, it makes the rule
    /// differ from every rule of a plan.
    Foreign(String),
}

/// What of a packet is looked up in an ipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpsetKey {
    /// `src`: the source address.
    Source,
    /// `dst`: the destination address.
    Destination,
    /// `src,dst`: the source address, the protocol and the destination port.
    SourcePort,
    /// `dst,dst`: the destination address, the protocol and the destination port.
    DestinationPort,
}

/// Where a map lookup writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupDest {
    /// The verdict register: `vmap`.
    Verdict,
    /// A data register: `map`.
    Data(Reg),
}

/// `enum nft_meta_keys`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// 6: name of the input interface, 16 bytes, zero-padded.
    IifName,
    /// 7: name of the output interface, 16 bytes, zero-padded.
    OifName,
    /// 15: `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10), one byte.
    NfProto,
    /// 16: transport protocol, one byte.
    L4Proto,
    /// 24: four random bytes, others each time.
    Random,
}

/// `enum nft_payload_bases`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// 0: the Ethernet header.
    LinkLayer,
    /// 1: the IP header.
    Network,
    /// 2: the TCP, UDP, SCTP or ICMP header.
    Transport,
}

/// `enum nft_ct_keys`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// 0: a bit mask: 1 invalid, 2 established, 4 related, 8 new, 64 untracked; 4 bytes, host's byte order.
    State,
    /// 2: what has happened to the entry, a bit mask (8: confirmed); 4 bytes, host's byte order.
    Status,
    /// 3: the mark, 4 bytes, host's byte order.
    Mark,
}

/// `enum nft_cmp_ops`, as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// At most (values in network byte order).
    Lte,
    /// At least (values in network byte order).
    Gte,
}

/// What happens to the packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// This base chain is done with it; later hooks still see it.
    Accept,
    /// It is gone.
    Drop,
    /// Back to the chain that called.
    Return,
    /// On with another chain, and then back.
    Jump(String),
    /// On with another chain, and back to where this one was called from.
    Goto(String),
}

impl Verdict {
    /// The chain that it sends to.
    pub fn target(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        }
    }
}

/// A constant, a key or a value, as the kernel has it.
pub type Bytes = SmallVec<[u8; 24]>;

/// A set or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// What cannot change while it exists.
    pub decl: SetDecl,
    /// By key. For interval sets the key is the first value of an interval.
    pub elements: BTreeMap<Bytes, Element>,
}

/// Type and flags of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDecl {
    /// The fields of the key: one, or a concatenation of up to five.
    pub key: SmallVec<[Field; 3]>,
    /// Maps only.
    pub data: Option<SetData>,
    /// Keys are ranges: `flags interval`. One field: an rbtree; several: a pipapo set.
    pub interval: bool,
    /// Elements never change after the commit: `flags constant`.
    pub constant: bool,
}

/// What a map gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetData {
    /// A verdict map.
    Verdict,
    /// A value.
    Value(Field),
}

/// The type of a field: nft's data types (`enum datatypes`), their length in bytes, and byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ipv4_addr`: type 7, 4 bytes.
    Ipv4,
    /// `ipv6_addr`: type 8, 16 bytes.
    Ipv6,
    /// `ether_addr`: type 9, 6 bytes.
    Mac,
    /// `inet_proto`: type 12, 1 byte.
    Proto,
    /// `inet_service`: type 13, 2 bytes, network byte order.
    Port,
    /// `mark`: type 19, 4 bytes, host's byte order.
    Mark,
    /// `ifname`: type 41, 16 bytes, zero-padded, "host's byte order".
    IfName,
    /// Found in a dump only: a type that Weir does not write, by its number, or (0) something else
    /// in a set that Weir does not write, such as a timeout, a size or a catch-all element. It
    /// differs from every set of a plan.
    Foreign(u32),
}

impl Field {
    /// nft's number for the type.
    pub const fn type_id(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Mac => 9,
            Field::Proto => 12,
            Field::Port => 13,
            Field::Mark => 19,
            Field::IfName => 41,
            Field::Foreign(type_id) => type_id,
        }
    }

    /// Length of a value in bytes; 0 if foreign. In a concatenation each field is padded with zeros to a multiple of four.
    #[allow(clippy::len_without_is_empty, reason = "the length of a value, not of a collection")]
    pub const fn len(self) -> usize {
        match self {
            Field::Proto => 1,
            Field::Port => 2,
            Field::Ipv4 | Field::Mark => 4,
            Field::Mac => 6,
            Field::Ipv6 | Field::IfName => 16,
            Field::Foreign(_) => 0,
        }
    }

    /// nft's name for the type.
    pub const fn type_name(self) -> &'static str {
        match self {
            Field::Ipv4 => "ipv4_addr",
            Field::Ipv6 => "ipv6_addr",
            Field::Mac => "ether_addr",
            Field::Proto => "inet_proto",
            Field::Port => "inet_service",
            Field::Mark => "mark",
            Field::IfName => "ifname",
            Field::Foreign(_) => "foreign",
        }
    }

    /// Values are in the host's byte order (nft notes that in the set's userdata).
    pub const fn host_order(self) -> bool {
        matches!(self, Field::Mark | Field::IfName)
    }
}

impl SetDecl {
    /// Length of a key in bytes, with the padding that a concatenation has.
    pub fn key_len(&self) -> usize {
        match self.key.as_slice() {
            [one] => one.len(),
            many => many.iter().map(|f| f.len().next_multiple_of(4)).sum(),
        }
    }

    /// nft's number for the key's type: six bits a field, the last one lowest.
    pub fn key_type_id(&self) -> u32 {
        self.key.iter().fold(0, |id, f| id << 6 | f.type_id())
    }
}

/// What belongs to a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Interval sets: the last value of the interval, inclusive (also where it equals the first).
    pub last: Option<Bytes>,
    /// Maps: the value.
    pub data: Option<ElementData>,
    /// For people who read `nft list ruleset`: at most 127 bytes.
    pub comment: Option<String>,
}

impl Element {
    /// Of a verdict map: the chain that it sends to.
    pub fn target(&self) -> Option<&str> {
        match &self.data {
            Some(ElementData::Verdict(verdict)) => verdict.target(),
            Some(ElementData::Value(_)) | None => None,
        }
    }
}

/// The value of a map's element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementData {
    /// Of a verdict map.
    Verdict(Verdict),
    /// Of a map to values.
    Value(Bytes),
}

/// One step of a [`Transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates the table if it is not there.
    AddTable,
    /// Deletes the table with all that it holds.
    DeleteTable,
    /// Creates a set or map, empty.
    AddSet {
        /// Its name.
        set: String,
        /// Its type.
        decl: SetDecl,
    },
    /// Deletes a set or map with its elements; nothing may refer to it any more.
    DeleteSet {
        /// Its name.
        set: String,
    },
    /// Adds elements that are not there.
    AddElements {
        /// Where to.
        set: String,
        /// Its type, for the encoding.
        decl: SetDecl,
        /// Keys with what belongs to them.
        elements: Vec<(Bytes, Element)>,
    },
    /// Deletes elements that are there.
    DeleteElements {
        /// Where from.
        set: String,
        /// Its type, for the encoding.
        decl: SetDecl,
        /// The elements as they are (intervals need their end).
        elements: Vec<(Bytes, Element)>,
    },
    /// Creates a chain, empty.
    AddChain {
        /// Its name.
        chain: String,
        /// Base chains only.
        hook: Option<Hook>,
    },
    /// Deletes all rules of a chain.
    FlushChain {
        /// Its name.
        chain: String,
    },
    /// Deletes an empty chain; nothing may refer to it any more.
    DeleteChain {
        /// Its name.
        chain: String,
    },
    /// Appends a rule.
    AddRule {
        /// The chain's name.
        chain: String,
        /// The rule.
        rule: Rule,
    },
}

/// Steps on one table. The kernel takes the transactions of one batch all at once or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: String,
    /// In an order in which each step finds what it refers to.
    pub ops: Vec<Op>,
}
