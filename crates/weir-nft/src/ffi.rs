//! The one place with `unsafe`: libnftnl's objects as owned, typed values, and socket options.
//!
//! libnftnl writes attributes into a buffer without knowing how large it is. So everything that
//! goes into an object has a bound here ([`Name`], [`Data`], [`MAX_EXPRS`], [`MAX_USERDATA`]),
//! and [`Scratch`] has room for the largest message that these bounds allow.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nftnl_sys as sys;
use nftnl_sys::libc;

use crate::wire::Kind;

/// Names in nf_tables (`NFT_NAME_MAXLEN` in `linux/netfilter/nf_tables.h`), without the final zero.
pub(crate) const MAX_NAME: usize = 255;
/// A key, value or constant (`NFT_DATA_VALUE_MAXLEN`).
pub(crate) const MAX_DATA: usize = 64;
/// Userdata of a rule or set (`NFT_USERDATA_MAXLEN`).
pub(crate) const MAX_USERDATA: usize = 256;
/// Expressions in a rule (`NFT_RULE_MAXEXPRS`).
pub(crate) const MAX_EXPRS: usize = 128;

/// What the largest of our expressions takes in a message: a lookup or a jump, with a name of
/// [`MAX_NAME`] bytes, four or five numbers, the name of the expression, and five nested headers.
const EXPR_ROOM: usize = 384;
/// What a message takes without expressions: headers, three names, userdata, numbers.
const FIXED_ROOM: usize = 16 + 4 + 3 * (4 + MAX_NAME + 1) + 4 + MAX_USERDATA + 512;
const _: () = assert!(FIXED_ROOM + MAX_EXPRS * EXPR_ROOM <= Scratch::WORDS * 8);
// The list of expressions is one attribute, whose length has 16 bits.
const _: () = assert!(MAX_EXPRS * EXPR_ROOM < u16::MAX as usize);

/// Why something cannot be told to the kernel at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("the name is empty, longer than {MAX_NAME} bytes, or has a zero byte in it")]
    Name,
    #[error("a constant has to have 1 to {MAX_DATA} bytes")]
    Data,
    #[error("more than {MAX_EXPRS} expressions in one rule")]
    Exprs,
    #[error("a comment has to have 1 to 127 bytes, none of them zero")]
    Comment,
    #[error("the mask and the xor value differ in length")]
    Bitwise,
    #[error("the key has to have {want} bytes and has {have}")]
    Key { want: usize, have: usize },
    #[error("the value has to have {want} bytes and has {have}")]
    Value { want: usize, have: usize },
    #[error("the element has no value, or one that is not of the map's kind")]
    ValueKind,
    #[error("an element of an interval set needs its last value, one of another set has none")]
    Interval,
    #[error("the first value of the interval is greater than its last")]
    Backwards,
    #[error("a key has one to five fields, and together at most {MAX_DATA} bytes")]
    Fields,
    #[error("it is something that was found in a dump and that Weir does not write")]
    Foreign,
    #[error("there is no ipset of the name that the rule looks into")]
    NoIpset,
}

/// A name of bounded length.
#[derive(Debug, Clone)]
pub(crate) struct Name(CString);

impl Name {
    pub(crate) fn new(text: &str) -> Result<Name, Unfit> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(Unfit::Name);
        }
        CString::new(text).map(Name).map_err(|_| Unfit::Name)
    }

    /// With the final zero.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes_with_nul()
    }
}

/// A constant of bounded length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Data<'a>, Unfit> {
        if (1..=MAX_DATA).contains(&bytes.len()) { Ok(Data(bytes)) } else { Err(Unfit::Data) }
    }
}

/// Head of a message to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) family: u8,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
}

/// Where libnftnl writes one message.
pub(crate) struct Scratch(Box<[u64; Scratch::WORDS]>);

impl Scratch {
    const WORDS: usize = 8192;

    pub(crate) fn new() -> Scratch {
        Scratch(Box::new([0; Scratch::WORDS]))
    }

    /// Writes a header, has `payload` write the rest, and gives all that was written.
    ///
    /// # Safety
    /// `payload` writes to the message that it is given by libnftnl's functions only, and not more
    /// than this buffer holds.
    unsafe fn build(&mut self, head: Head, payload: impl FnOnce(*mut libc::nlmsghdr)) -> &[u8] {
        let start = self.0.as_mut_ptr();
        // SAFETY: the buffer is aligned for a header and longer than one.
        let message = unsafe {
            sys::nftnl_nlmsg_build_hdr(
                start.cast::<c_char>(),
                head.kind as u16,
                head.family.into(),
                head.flags,
                head.seq,
            )
        };
        payload(message);
        // SAFETY: build_hdr wrote a header to the start of the buffer and returned its address.
        let len = unsafe { (*message).nlmsg_len } as usize;
        assert!(
            len <= Scratch::WORDS * 8,
            "libnftnl wrote {len} bytes, more than the bounds of ffi.rs allow"
        );
        // SAFETY: the first `len` bytes belong to the buffer, and it was made of initialised words.
        unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) }
    }
}

/// libnftnl's allocators return null when there is no memory, which Rust answers by aborting.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::alloc::handle_alloc_error(std::alloc::Layout::new::<u64>()))
}

/// An owned object of libnftnl that is freed when it goes.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $alloc:ident, $free:ident, $set_str:ident, $set_u32:ident, $build:ident) => {
        $(#[$doc])*
        pub(crate) struct $name(NonNull<sys::$raw>);

        impl $name {
            fn alloc() -> $name {
                // SAFETY: no requirements; the result is checked for null.
                $name(allocated(unsafe { sys::$alloc() }))
            }

            /// `attr` is one that holds a string.
            fn set_str(&mut self, attr: u32, name: &Name) {
                // SAFETY: the object is alive, the string ends with zero and is copied.
                if unsafe { sys::$set_str(self.0.as_ptr(), attr as u16, name.0.as_ptr()) } < 0 {
                    std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; MAX_NAME]>());
                }
            }

            /// `attr` is one that holds a 32-bit number.
            #[allow(dead_code, reason = "rules have none that is ours to set")]
            fn set_u32(&mut self, attr: u32, value: u32) {
                // SAFETY: the object is alive.
                unsafe { sys::$set_u32(self.0.as_ptr(), attr as u16, value) };
            }

            /// Writes the object as a message.
            pub(crate) fn message<'a>(&self, scratch: &'a mut Scratch, head: Head) -> &'a [u8] {
                // SAFETY: the object is alive, and Name, Data and the checks of the setters bound what
                // it writes to what Scratch holds (asserted at compile time above).
                unsafe { scratch.build(head, |message| sys::$build(message, self.0.as_ptr())) }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: allocated by libnftnl, owned by us, not used afterwards.
                unsafe { sys::$free(self.0.as_ptr()) };
            }
        }
    };
}

owned!(
    /// A table.
    Table, nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_set_str, nftnl_table_set_u32,
    nftnl_table_nlmsg_build_payload
);
owned!(
    /// A chain.
    Chain, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_set_str, nftnl_chain_set_u32,
    nftnl_chain_nlmsg_build_payload
);
owned!(
    /// A set or map, without elements.
    Set, nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_set_str, nftnl_set_set_u32,
    nftnl_set_nlmsg_build_payload
);
owned!(
    /// A rule.
    Rule, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_set_str, nftnl_rule_set_u32,
    nftnl_rule_nlmsg_build_payload
);

impl Table {
    /// With `flags` 0: a table that someone had put to sleep (`dormant`) wakes up.
    pub(crate) fn new(name: &Name) -> Table {
        let mut table = Table::alloc();
        table.set_str(sys::NFTNL_TABLE_NAME, name);
        table.set_u32(sys::NFTNL_TABLE_FLAGS, 0);
        table
    }
}

impl Chain {
    pub(crate) fn new(table: &Name, name: &Name) -> Chain {
        let mut chain = Chain::alloc();
        chain.set_str(sys::NFTNL_CHAIN_TABLE, table);
        chain.set_str(sys::NFTNL_CHAIN_NAME, name);
        chain
    }

    /// Makes it a base chain of type `filter` with policy accept.
    pub(crate) fn hook(&mut self, hook: u32, priority: i32) {
        self.set_u32(sys::NFTNL_CHAIN_HOOKNUM, hook);
        // SAFETY: the object is alive, and the attribute holds a signed 32-bit number.
        unsafe { sys::nftnl_chain_set_s32(self.0.as_ptr(), sys::NFTNL_CHAIN_PRIO as u16, priority) };
        self.set_str(sys::NFTNL_CHAIN_TYPE, &Name(c"filter".into()));
        self.set_u32(sys::NFTNL_CHAIN_POLICY, 1); // NF_ACCEPT
    }
}

/// A set's declaration, in the kernel's numbers.
pub(crate) struct SetSpec<'a> {
    pub(crate) flags: u32,
    pub(crate) key_type: u32,
    pub(crate) key_len: u32,
    /// Type and length; maps only.
    pub(crate) data: Option<(u32, u32)>,
    /// Names the set within its batch; the kernel insists on one.
    pub(crate) id: u32,
    /// Elements that it can hold; without it, as many as there are.
    pub(crate) size: Option<u32>,
    /// Length of each field, if the kernel has to know them (a pipapo set).
    pub(crate) fields: &'a [u8],
    /// At most [`MAX_USERDATA`].
    pub(crate) userdata: &'a [u8],
}

impl Set {
    pub(crate) fn new(table: &Name, name: &Name) -> Set {
        let mut set = Set::alloc();
        set.set_str(sys::NFTNL_SET_TABLE, table);
        set.set_str(sys::NFTNL_SET_NAME, name);
        set
    }

    pub(crate) fn declare(&mut self, spec: &SetSpec<'_>) {
        self.set_u32(sys::NFTNL_SET_FLAGS, spec.flags);
        self.set_u32(sys::NFTNL_SET_KEY_TYPE, spec.key_type);
        self.set_u32(sys::NFTNL_SET_KEY_LEN, spec.key_len);
        if let Some((data_type, data_len)) = spec.data {
            self.set_u32(sys::NFTNL_SET_DATA_TYPE, data_type);
            self.set_u32(sys::NFTNL_SET_DATA_LEN, data_len);
        }
        self.set_u32(sys::NFTNL_SET_ID, spec.id);
        if let Some(size) = spec.size {
            self.set_u32(sys::NFTNL_SET_DESC_SIZE, size);
        }
        if !spec.fields.is_empty() {
            // libnftnl copies them to an array of NFT_REG32_COUNT (16) bytes.
            assert!(spec.fields.len() <= 16, "a key has at most 16 fields");
            self.set_data(sys::NFTNL_SET_DESC_CONCAT, spec.fields);
        }
        assert!(spec.userdata.len() <= MAX_USERDATA, "userdata of a set is written by us and short");
        self.set_data(sys::NFTNL_SET_USERDATA, spec.userdata);
    }

    /// `attr` is one that holds bytes, and takes as many.
    fn set_data(&mut self, attr: u32, bytes: &[u8]) {
        // SAFETY: the object is alive; the bytes are copied; declare() has checked how many there are.
        let done = unsafe {
            sys::nftnl_set_set_data(
                self.0.as_ptr(),
                attr as u16,
                bytes.as_ptr().cast::<c_void>(),
                bytes.len() as u32,
            )
        };
        if done < 0 {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; MAX_USERDATA]>());
        }
    }
}

impl Rule {
    pub(crate) fn new(table: &Name, chain: &Name) -> Rule {
        let mut rule = Rule::alloc();
        rule.set_str(sys::NFTNL_RULE_TABLE, table);
        rule.set_str(sys::NFTNL_RULE_CHAIN, chain);
        rule
    }

    /// Adds expressions, in order; to be called once.
    pub(crate) fn exprs(&mut self, exprs: Vec<Expr>) -> Result<(), Unfit> {
        if exprs.len() > MAX_EXPRS {
            return Err(Unfit::Exprs);
        }
        for expr in exprs {
            // SAFETY: both are alive, and the rule takes the expression over: hence `forget`.
            unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), expr.0.as_ptr()) };
            std::mem::forget(expr);
        }
        Ok(())
    }

    pub(crate) fn userdata(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= MAX_USERDATA, "userdata of a rule is a comment of bounded length");
        // SAFETY: the object is alive, and the bytes are copied.
        let done = unsafe {
            sys::nftnl_rule_set_data(
                self.0.as_ptr(),
                sys::NFTNL_RULE_USERDATA as u16,
                bytes.as_ptr().cast::<c_void>(),
                bytes.len() as u32,
            )
        };
        if done < 0 {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; MAX_USERDATA]>());
        }
    }
}

/// An expression. Each constructor knows the types of its kind's attributes, which libnftnl does
/// not check.
pub(crate) struct Expr(NonNull<sys::nftnl_expr>);

impl Drop for Expr {
    fn drop(&mut self) {
        // SAFETY: allocated by libnftnl, owned by us, not used afterwards.
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) };
    }
}

impl Expr {
    fn alloc(kind: &'static CStr) -> Expr {
        // SAFETY: a string that ends with zero; the result is checked for null. (Null would also mean
        // a kind that libnftnl does not know; it has known all of ours since 1.0.7.)
        Expr(allocated(unsafe { sys::nftnl_expr_alloc(kind.as_ptr()) }))
    }

    /// `attr` is a 32-bit number in this kind of expression.
    fn u32(self, attr: u32, value: u32) -> Expr {
        // SAFETY: the object is alive.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attr as u16, value) };
        self
    }

    /// `attr` is a 64-bit number in this kind of expression.
    fn u64(self, attr: u32, value: u64) -> Expr {
        // SAFETY: the object is alive.
        unsafe { sys::nftnl_expr_set_u64(self.0.as_ptr(), attr as u16, value) };
        self
    }

    /// `attr` is a constant in this kind of expression.
    fn data(self, attr: u32, data: Data<'_>) -> Expr {
        // SAFETY: the object is alive, and Data is no longer than the union it is copied to.
        let done = unsafe {
            sys::nftnl_expr_set(
                self.0.as_ptr(),
                attr as u16,
                data.0.as_ptr().cast::<c_void>(),
                data.0.len() as u32,
            )
        };
        assert!(done >= 0, "libnftnl refused a constant of {} bytes", data.0.len());
        self
    }

    /// `attr` is a string in this kind of expression.
    fn name(self, attr: u32, name: &Name) -> Expr {
        // SAFETY: the object is alive, the string ends with zero and is copied.
        if unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attr as u16, name.0.as_ptr()) } < 0 {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; MAX_NAME]>());
        }
        self
    }

    pub(crate) fn meta(key: u32, dreg: u32) -> Expr {
        Expr::alloc(c"meta").u32(sys::NFTNL_EXPR_META_KEY, key).u32(sys::NFTNL_EXPR_META_DREG, dreg)
    }

    pub(crate) fn payload(base: u32, offset: u32, len: u32, dreg: u32) -> Expr {
        Expr::alloc(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, len)
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, dreg)
    }

    pub(crate) fn ct(key: u32, dreg: u32) -> Expr {
        Expr::alloc(c"ct").u32(sys::NFTNL_EXPR_CT_KEY, key).u32(sys::NFTNL_EXPR_CT_DREG, dreg)
    }

    pub(crate) fn bitwise(sreg: u32, dreg: u32, mask: Data<'_>, xor: Data<'_>) -> Result<Expr, Unfit> {
        if mask.0.len() != xor.0.len() {
            return Err(Unfit::Bitwise);
        }
        Ok(Expr::alloc(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, sreg)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, dreg)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.0.len() as u32)
            .data(sys::NFTNL_EXPR_BITWISE_MASK, mask)
            .data(sys::NFTNL_EXPR_BITWISE_XOR, xor))
    }

    pub(crate) fn cmp(sreg: u32, op: u32, value: Data<'_>) -> Expr {
        Expr::alloc(c"cmp")
            .u32(sys::NFTNL_EXPR_CMP_SREG, sreg)
            .u32(sys::NFTNL_EXPR_CMP_OP, op)
            .data(sys::NFTNL_EXPR_CMP_DATA, value)
    }

    pub(crate) fn range(sreg: u32, op: u32, from: Data<'_>, to: Data<'_>) -> Expr {
        Expr::alloc(c"range")
            .u32(sys::NFTNL_EXPR_RANGE_SREG, sreg)
            .u32(sys::NFTNL_EXPR_RANGE_OP, op)
            .data(sys::NFTNL_EXPR_RANGE_FROM_DATA, from)
            .data(sys::NFTNL_EXPR_RANGE_TO_DATA, to)
    }

    pub(crate) fn lookup(set: &Name, sreg: u32, dreg: Option<u32>, flags: u32) -> Expr {
        let mut lookup = Expr::alloc(c"lookup")
            .name(sys::NFTNL_EXPR_LOOKUP_SET, set)
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, sreg);
        if let Some(dreg) = dreg {
            lookup = lookup.u32(sys::NFTNL_EXPR_LOOKUP_DREG, dreg);
        }
        if flags != 0 {
            lookup = lookup.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, flags);
        }
        lookup
    }

    /// A match of xtables, by its name, with the bytes that it expects, without padding.
    pub(crate) fn xt_match(name: &Name, revision: u32, info: &[u8; 4]) -> Expr {
        let expr =
            Expr::alloc(c"match").name(sys::NFTNL_EXPR_MT_NAME, name).u32(sys::NFTNL_EXPR_MT_REV, revision);
        // SAFETY: the size is not zero; the result is checked for null.
        let copy = allocated(unsafe { libc::malloc(info.len()) }.cast::<u8>());
        // SAFETY: both are valid for as many bytes, and the one was just allocated, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(info.as_ptr(), copy.as_ptr(), info.len()) };
        // SAFETY: the object is alive. It takes the bytes over, which were allocated as it frees them.
        let done = unsafe {
            sys::nftnl_expr_set(
                expr.0.as_ptr(),
                sys::NFTNL_EXPR_MT_INFO as u16,
                copy.as_ptr().cast::<c_void>(),
                info.len() as u32,
            )
        };
        assert!(done >= 0, "libnftnl refused the data of a match");
        expr
    }

    pub(crate) fn limit(per_second: u32, burst: u32) -> Expr {
        Expr::alloc(c"limit")
            .u64(sys::NFTNL_EXPR_LIMIT_RATE, per_second.into())
            .u64(sys::NFTNL_EXPR_LIMIT_UNIT, 1)
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, burst)
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, 0) // NFT_LIMIT_PKTS
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, 0)
    }

    pub(crate) fn log(group: u16, prefix: &Name, snaplen: u32) -> Expr {
        let log = Expr::alloc(c"log")
            .name(sys::NFTNL_EXPR_LOG_PREFIX, prefix)
            .u32(sys::NFTNL_EXPR_LOG_SNAPLEN, snaplen);
        // SAFETY: the object is alive, and the attribute is a 16-bit number in this kind of expression.
        unsafe { sys::nftnl_expr_set_u16(log.0.as_ptr(), sys::NFTNL_EXPR_LOG_GROUP as u16, group) };
        log
    }

    pub(crate) fn verdict(code: i32, chain: Option<&Name>) -> Expr {
        let verdict = Expr::alloc(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, 0) // NFT_REG_VERDICT
            .u32(sys::NFTNL_EXPR_IMM_VERDICT, code as u32);
        match chain {
            Some(chain) => verdict.name(sys::NFTNL_EXPR_IMM_CHAIN, chain),
            None => verdict,
        }
    }
}

/// Socket options that hold an `int`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SocketOption {
    SendBuffer,
    SendBufferForce,
    ReceiveBuffer,
    ReceiveBufferForce,
    /// Error messages do not repeat the message that they are about.
    CapAck,
    /// Error messages say what attribute they are about.
    ExtAck,
}

/// Sets a socket option.
pub(crate) fn set_option(socket: BorrowedFd<'_>, option: SocketOption, value: i32) -> nix::Result<()> {
    let (level, name) = match option {
        SocketOption::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
        SocketOption::SendBufferForce => (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
        SocketOption::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
        SocketOption::ReceiveBufferForce => (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
        SocketOption::CapAck => (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK),
        SocketOption::ExtAck => (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
    };
    // SAFETY: the descriptor is open as long as it is borrowed, and the pointer and length describe `value`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(done).map(drop)
}

/// `struct xt_counters`: packets and bytes.
pub(crate) const COUNTER: usize = 16;
/// `IPT_SO_SET_REPLACE`
const REPLACE: i32 = 64;
/// `IPT_SO_SET_ADD_COUNTERS`
const ADD_COUNTERS: i32 = 65;
// the layouts of x_tables' options are those of 64 bits
const _: () = assert!(size_of::<usize>() == 8);

/// Asks an option of IPv4 that is a buffer of exactly this size, of which the kernel reads the beginning.
pub(crate) fn get_ip_option(socket: BorrowedFd<'_>, name: i32, value: &mut [u8]) -> nix::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed; the pointer and `len` describe `value`, which is
    // borrowed for writing, and the kernel writes no more than that.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            value.as_mut_ptr().cast::<c_void>(),
            &raw mut len,
        )
    };
    nix::errno::Errno::result(done).map(drop)
}

/// Adds to the counters of a table of iptables-legacy: `struct xt_counters_info`, in which there are no pointers.
pub(crate) fn add_ip_counters(socket: BorrowedFd<'_>, info: &[u8]) -> nix::Result<()> {
    // SAFETY: this option only reads `info`, and refuses a length that is not that of the counters in it.
    unsafe { set_ip_option(socket, ADD_COUNTERS, info) }
}

/// # Safety
/// Pointers in `value`, if the option has any, point to what the kernel may write to during the call.
unsafe fn set_ip_option(socket: BorrowedFd<'_>, name: i32, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the pointer and length describe `value`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            value.as_ptr().cast::<c_void>(),
            value.len() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(done).map(drop)
}

/// Replaces a table of iptables-legacy, and gives the counters of the entries that it had. `head` is
/// `struct ipt_replace` up to its number of counters, `entries` the number of entries that there are now.
pub(crate) fn replace_ip_table(
    socket: BorrowedFd<'_>,
    mut head: Vec<u8>,
    entries: usize,
    blob: &[u8],
) -> nix::Result<Vec<u8>> {
    let count = u32::try_from(entries).map_err(|_| nix::errno::Errno::E2BIG)?;
    // The kernel refuses another number than that of the entries that it has, before it writes any.
    let mut counters = vec![0; entries * COUNTER];
    head.extend_from_slice(&count.to_ne_bytes());
    head.extend_from_slice(&(counters.as_mut_ptr() as usize).to_ne_bytes());
    head.extend_from_slice(blob);
    // SAFETY: the one pointer in there is to `counters`, which has room for `count` of them and outlives the call.
    unsafe { set_ip_option(socket, REPLACE, &head)? };
    Ok(counters)
}
