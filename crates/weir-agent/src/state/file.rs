//! A slice as the bytes of a file.
//!
//! ```text
//!   "WEIRSLIC"  format: u32  protocol: u32  node, boot id: u16 + text  time: u64, seconds since 1970
//!   the mode, and encoded changes of an empty slice: u32 + bytes, each
//!   BLAKE3 of all that: 32 bytes
//! ```
//!
//! Numbers are big-endian. The changes are as weir-proto has them. What is read passes the same checks as what a
//! controller sends.

use weir_compiler::slice::{Change, Member, NodeSlice};
use weir_proto::{DigestKey, Mode, PROTOCOL};

use crate::bare::bare;
use crate::controller::receive::{Incoming, Refused};

const MAGIC: &[u8; 8] = b"WEIRSLIC";
/// Of everything but the changes.
const FORMAT: u32 = 1;
const CHECKSUM: usize = 32;

/// Whose slice it is, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The node.
    pub node: String,
    /// Of the kernel's run that the slice was in force in.
    pub boot: String,
    /// When it was written: seconds since 1970.
    pub seconds: u64,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Whose.
    pub header: Header,
    /// All of the slice, as changes of an empty one.
    pub changes: Vec<Change>,
    /// What was to be done with it; agents of before there were modes have written nothing of it.
    pub mode: Mode,
}

/// A file that must not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// It does not begin as it must.
    #[error("it is no slice")]
    NoSlice,
    /// It is of a newer agent.
    #[error("its format {0} is not known to this version")]
    Format(u32),
    /// Its changes are of another protocol than this version would be told now.
    #[error("it is of protocol {0}, which this version does not store")]
    Protocol(u32),
    /// It is not what was written.
    #[error("its checksum is wrong: it was cut off, or changed")]
    Checksum,
    /// It was copied from elsewhere, or the node has another name now.
    #[error("it is of node {0}")]
    Node(String),
    /// What was written was wrong.
    #[error("it does not fit together: {0}")]
    Refused(#[from] Refused),
}

/// The bytes, which want to be [`seal`]ed.
pub fn encode(header: &Header, slice: &NodeSlice, mode: Mode) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(FORMAT.to_be_bytes());
    out.extend(PROTOCOL.to_be_bytes());
    for text in [&header.node, &header.boot] {
        let length = u16::try_from(text.len()).expect("names are short");
        out.extend(length.to_be_bytes());
        out.extend(text.as_bytes());
    }
    out.extend(header.seconds.to_be_bytes());
    let mut put = |encoded: &[u8]| {
        out.extend(u32::try_from(encoded.len()).expect("a change is short").to_be_bytes());
        out.extend(encoded);
    };
    put(&weir_proto::mode(mode));
    for change in bare(slice) {
        put(&weir_proto::change(&change));
        if let Change::PeerSet(id, ..) = change {
            let members: Vec<Member> = slice.peer_sets[&id].members.iter().copied().collect();
            weir_proto::members(id, true, &members, &[]).iter().for_each(|encoded| put(encoded));
        }
    }
    out
}

/// Adds the checksum.
pub fn seal(bytes: &mut Vec<u8>) {
    let checksum = blake3::hash(bytes);
    bytes.extend(checksum.as_bytes());
}

/// Reads what [`encode`] and [`seal`] wrote for this node.
///
/// # Errors
/// It must not be used.
pub fn decode(bytes: &[u8], node: &str) -> Result<Stored, Damaged> {
    let mut header = Reader(bytes);
    if header.take(MAGIC.len()) != Some(MAGIC) {
        return Err(Damaged::NoSlice);
    }
    // of another format, the checksum may be elsewhere
    match header.number().ok_or(Damaged::Checksum)? {
        FORMAT => {}
        other => return Err(Damaged::Format(other)),
    }
    let sealed = bytes.len().checked_sub(CHECKSUM).ok_or(Damaged::Checksum)?;
    let (content, checksum) = bytes.split_at(sealed);
    if blake3::hash(content).as_bytes() != checksum {
        return Err(Damaged::Checksum);
    }
    let mut rest = Reader(content.get(MAGIC.len() + 4..).ok_or(Damaged::Checksum)?);
    match rest.number().ok_or(Damaged::NoSlice)? {
        PROTOCOL => {}
        other => return Err(Damaged::Protocol(other)),
    }
    let header = Header {
        node: rest.text().ok_or(Damaged::NoSlice)?,
        boot: rest.text().ok_or(Damaged::NoSlice)?,
        seconds: u64::from_be_bytes(rest.array().ok_or(Damaged::NoSlice)?),
    };
    if header.node != node {
        return Err(Damaged::Node(header.node));
    }
    // nothing in it is named by digests
    let mut incoming = Incoming::new(DigestKey::new([0; 32]), bytes.len());
    while !rest.0.is_empty() {
        let length = rest.number().ok_or(Damaged::NoSlice)?;
        let encoded = usize::try_from(length).ok().and_then(|length| rest.take(length));
        incoming.take(encoded.ok_or(Damaged::NoSlice)?, None)?;
    }
    let mode = incoming.mode().unwrap_or_default();
    Ok(Stored { header, mode, changes: incoming.changes(&NodeSlice::default())? })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = u16::from_be_bytes(self.array()?);
        String::from_utf8(self.take(length.into())?.to_vec()).ok()
    }
}
