//! Kernel ipsets: reading, and changing.
//!
//! ```text
//!   read.rs      names and indices, and what is in Weir's own       netlink
//!   write.rs     creating and filling                               crate `ipset` (libipset), feature `ipset`
//!                destroying; elements of hash:ip,port               netlink
//!   message.rs   what both write and read
//! ```
//!
//! Reading and destroying need no libipset, so that an agent which is built without it can still remove
//! what one with it has left. Three things of the crate are gone round: `list` fails above 1 KiB, so
//! sets are read through netlink; elements of `hash:ip,port` have no protocol there, so they are
//! written through netlink; and libipset keeps what it knows of types and sets in variables of the process, so
//! there is one lock around all of it.

mod message;
mod read;
mod write;

use std::collections::BTreeMap;
use std::io;

use weir_dataplane::ipset::{Ipset, IpsetOp};
use weir_dataplane::model::{Expr, Op, Transaction};

use crate::Nft;
use crate::error::{ApplyError, DumpError};
use crate::rules::Indices;
use crate::socket::Socket;

pub(crate) use read::indices;

/// Whether ipsets can be made: whether this is built with the feature `ipset`.
pub const IPSETS: bool = cfg!(feature = "ipset");

/// Why an ipset was not changed. Elements before the one that it is about were.
#[derive(Debug, thiserror::Error)]
pub enum IpsetError {
    /// The kernel or libipset refused it.
    #[error("cannot {what}: {why}")]
    Refused {
        /// What was to be done, such as `add 10.0.0.1 to ipset x`.
        what: String,
        /// Their words.
        why: String,
    },
    /// An element was there already, or one that was to go was not: somebody else changes the ipset. Dump
    /// and compare.
    #[error("cannot {what}: the ipset is not as it was left")]
    Changed {
        /// As in [`IpsetError::Refused`].
        what: String,
    },
    /// Ipsets cannot be made by this program.
    #[error("cannot {what}: built without the feature `ipset`")]
    NotBuilt {
        /// As in [`IpsetError::Refused`].
        what: String,
    },
    /// The socket failed.
    #[error("cannot talk to ipset")]
    Io(#[from] io::Error),
}

impl Nft {
    /// Weir's ipsets. None, where the kernel has no ipsets at all. Not of one moment, if somebody changes them
    /// meanwhile.
    pub fn ipsets(&mut self) -> Result<BTreeMap<String, Ipset>, DumpError> {
        read::ours(&mut self.socket)
    }

    /// The names of Weir's ipsets.
    pub fn ipset_names(&mut self) -> Result<Vec<String>, DumpError> {
        let all = read::indices(&mut self.socket)?.into_keys();
        Ok(all.filter(|name| weir_dataplane::ipset::is_ours(name)).collect())
    }

    /// The names of all ipsets, whosever they are, with their types, such as `hash:net`.
    pub fn other_ipsets(&mut self) -> Result<BTreeMap<String, String>, DumpError> {
        Ok(read::types(&mut self.socket)?)
    }

    /// Carries out a change of an ipset.
    pub fn apply_ipset(&mut self, op: &IpsetOp) -> Result<(), IpsetError> {
        write::apply(&mut self.socket, op)
    }
}

/// The indices of the ipsets that rules of these transactions look into, as far as there are such.
pub(crate) fn indices_of(socket: &mut Socket, transactions: &[Transaction]) -> Result<Indices, ApplyError> {
    let mut indices = Indices::new();
    for op in transactions.iter().flat_map(|transaction| &transaction.ops) {
        let Op::AddRule { rule, .. } = op else { continue };
        for expr in &rule.exprs {
            if let Expr::Ipset { set, .. } = expr
                && !indices.contains_key(set)
                && let Some(index) = read::index(socket, set).map_err(|errno| ApplyError::Io(errno.into()))?
            {
                indices.insert(set.clone(), index);
            }
        }
    }
    Ok(indices)
}
