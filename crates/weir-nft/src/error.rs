//! What can go wrong, in words that say what, where and what to do.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// Why nftables cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process lacks the capability `CAP_NET_ADMIN`.
    #[error("no permission to change nftables: run as root, or give the process CAP_NET_ADMIN")]
    NoPermission,
    /// The kernel has no `nf_tables`, or may not load it.
    #[error(
        "the kernel has no nf_tables: load it (modprobe nf_tables), or use a kernel that has CONFIG_NF_TABLES"
    )]
    NoNfTables,
    /// The kernel does not list its connections.
    #[error(
        "the kernel has no ctnetlink: load it (modprobe nf_conntrack_netlink), use a kernel that has \
         CONFIG_NF_CT_NETLINK, or run with --existing-connections=keep"
    )]
    NoConntrack,
    /// The kernel has no NFLOG.
    #[error(
        "the kernel has no NFLOG: load it (modprobe nfnetlink_log), or use a kernel that has CONFIG_NETFILTER_NETLINK_LOG"
    )]
    NoNflog,
    /// Another program listens to the group.
    #[error("another program listens to group {group} of NFLOG: end it, or take another group")]
    NflogTaken {
        /// Of NFLOG.
        group: u16,
    },
    /// Anything else.
    #[error("cannot use a netlink socket for nftables")]
    Io(#[from] io::Error),
}

/// Something that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was to be done with which object, such as `add element 10.0.0.1 to set x in table inet weir`.
    pub object: String,
    /// The name of the chain, set or map that this is about; `None`: the table, or the batch as a whole.
    pub name: Option<String>,
    /// The system's error number.
    pub errno: i32,
    /// What the kernel says about it, if it says more.
    pub detail: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = Errno::from_raw(self.errno);
        write!(f, "{}: {} ({errno:?})", self.object, errno.desc())?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

/// Why a transaction was not applied. Unless it says otherwise, nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The ruleset is not the one that the transaction was made for: dump and compare again.
    #[error("the ruleset has changed since it was read (it is not generation {generation} any more)")]
    Stale {
        /// The generation that the transaction was bound to.
        generation: u32,
    },
    /// The kernel refused some of it. The first refusal is the cause; others may follow from it.
    #[error("{first}{}", more(.others))]
    Refused {
        /// In the transaction's order.
        first: Refusal,
        /// At most 15 more.
        others: Vec<Refusal>,
    },
    /// It cannot be written as a message.
    #[error("cannot {object}: {reason}")]
    Invalid {
        /// As in [`Refusal::object`].
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The batch is larger than the kernel lets this process send.
    #[error(
        "a batch of {bytes} bytes is more than this process may send at once: it needs CAP_NET_ADMIN in the \
         initial user namespace, or a larger sysctl net.core.wmem_max"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The kernel's answer was lost, and others changed the ruleset at the same time: it may have been
    /// applied or not. Dump and compare.
    #[error("the kernel's answer was lost, so it is not known whether the transaction was applied")]
    Uncertain,
    /// The socket failed.
    #[error("cannot talk to nftables")]
    Io(#[from] io::Error),
}

fn more(others: &[Refusal]) -> String {
    match others.len() {
        0 => String::new(),
        n => format!(" (and {n} more that may follow from it)"),
    }
}

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It changed in each of several attempts: try later.
    #[error("table {table} changed during each of {attempts} attempts to read it")]
    Unstable {
        /// Family and name.
        table: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The kernel refused to show it.
    #[error("cannot read {what}")]
    Refused {
        /// What was to be read.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The socket failed.
    #[error("cannot talk to nftables")]
    Io(#[from] io::Error),
}
