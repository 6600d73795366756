//! Netlink's framing: messages in a datagram, attributes in a message. Safe code, no allocation.
//!
//! ```text
//! message    length u32 | type u16 | flags u16 | sequence u32 | port u32 |
//!            family u8 | version u8 | id be16 | attributes
//! attribute  length u16 | type u16 | value, padded with zeros to a multiple of four
//! ```

/// Messages of nf_tables (`enum nf_tables_msg_types`), as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    NewGen = 15,
    GetGen = 16,
}

impl Kind {
    /// As the message's type: `NFNL_SUBSYS_NFTABLES` and the kind.
    pub(crate) const fn message_type(self) -> u16 {
        SUBSYS_NFTABLES << 8 | self as u16
    }
}

pub(crate) const SUBSYS_NFTABLES: u16 = 10;

/// Types of netlink and nfnetlink themselves.
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const BATCH_BEGIN: u16 = 16;
pub(crate) const BATCH_END: u16 = 17;
/// Attribute of `BATCH_BEGIN`.
pub(crate) const BATCH_GENID: u16 = 1;

/// Flags of a message.
pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
pub(crate) const F_DUMP_INTR: u16 = 0x10;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
/// Of an error message: it does not repeat the message that it is about.
pub(crate) const F_CAPPED: u16 = 0x100;
/// Of an error message: attributes follow.
pub(crate) const F_ACK_TLVS: u16 = 0x200;

/// Length of netlink's header.
pub(crate) const HEADER: usize = 16;
/// Length of netlink's and nfnetlink's header.
pub(crate) const HEADERS: usize = HEADER + 4;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    /// All after netlink's header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// It is of nf_tables and of this kind.
    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.kind == kind.message_type()
    }

    /// The address family of a message of nf_tables (`NFPROTO_*`).
    pub(crate) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// Attributes of a message of nf_tables.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        attrs(self.payload.get(HEADERS - HEADER..).unwrap_or_default())
    }
}

/// The messages of a datagram. Ends at the first that is cut off.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let len = u32_at(header, 0)? as usize;
        let message = Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            seq: u32_at(header, 8)?,
            port: u32_at(header, 12)?,
            payload: datagram.get(HEADER..len)?,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// An iterator over attributes: their type and value. Ends at the first that is cut off.
#[derive(Debug, Clone)]
pub(crate) struct Attrs<'a>(&'a [u8]);

/// The attributes in the value of a nested attribute.
pub(crate) fn attrs(bytes: &[u8]) -> Attrs<'_> {
    Attrs(bytes)
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attrs<'a> {
    /// The value of the first attribute of a type.
    pub(crate) fn value_of(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(have, value)| (have == kind).then_some(value))
    }
}

/// A number in the host's byte order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The value of an attribute that holds a number, which nf_tables has in network byte order.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

/// The value of an attribute that holds a string.
pub(crate) fn string(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Begins a message and returns where, for [`end_message`].
pub(crate) fn begin_message(
    out: &mut Vec<u8>,
    message_type: u16,
    flags: u16,
    seq: u32,
    family: u8,
    id: u16,
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&message_type.to_ne_bytes());
    out.extend_from_slice(&(flags | F_REQUEST).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&id.to_be_bytes());
    start
}

/// Writes the length of the message that began at `start`.
pub(crate) fn end_message(out: &mut [u8], start: usize) {
    let len = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// Writes an attribute. Its value is shorter than 64 KiB.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Begins a nested attribute and returns where, for [`end_nest`].
pub(crate) fn begin_nest(out: &mut Vec<u8>, kind: u16) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    start
}

/// Writes the length of the nested attribute that began at `start`; it is shorter than 64 KiB.
pub(crate) fn end_nest(out: &mut [u8], start: usize) {
    let len = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        let message = begin_message(&mut out, Kind::NewSet.message_type(), F_ACK, 7, 1, 0);
        put(&mut out, 1, b"abc\0");
        let nest = begin_nest(&mut out, 2);
        put(&mut out, 3, &[9]);
        end_nest(&mut out, nest);
        end_message(&mut out, message);
        let all: Vec<_> = messages(&out).collect();
        assert_eq!(all.len(), 1);
        assert!(all[0].is(Kind::NewSet));
        assert_eq!((all[0].flags, all[0].seq), (F_ACK | F_REQUEST, 7));
        let attributes: Vec<_> = all[0].attrs().collect();
        assert_eq!(attributes.len(), 2);
        assert_eq!(string(attributes[0].1), "abc");
        assert_eq!(attrs(attributes[1].1).value_of(3), Some(&[9][..]));
    }

    #[test]
    fn cut_off_input_ends_the_iteration() {
        let mut out = Vec::new();
        let message = begin_message(&mut out, BATCH_END, 0, 1, 0, SUBSYS_NFTABLES);
        put(&mut out, 1, b"0123456789");
        end_message(&mut out, message);
        for len in 0..out.len() - 2 {
            assert_eq!(messages(&out[..len]).count(), 0, "{len}");
        }
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0, "an attribute shorter than its header");
        assert_eq!(attrs(&[40, 0, 1, 0]).count(), 0, "an attribute longer than the message");
    }
}
