//! Keys and objects in words, for error messages.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use weir_dataplane::model::{Field, SetDecl};

/// A key as `nft` shows it: `10.0.0.1 . tcp . 80`.
pub(crate) fn key(decl: &SetDecl, bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    for field in &decl.key {
        let padded = if decl.key.len() == 1 { field.len() } else { field.len().next_multiple_of(4) };
        let Some((value, after)) = rest.split_at_checked(padded) else {
            return hex(bytes);
        };
        rest = after;
        if !out.is_empty() {
            out.push_str(" . ");
        }
        out.push_str(&one(*field, &value[..field.len()]));
    }
    out
}

fn one(field: Field, value: &[u8]) -> String {
    let text = match field {
        Field::Ipv4 => <[u8; 4]>::try_from(value).ok().map(|v| Ipv4Addr::from(v).to_string()),
        Field::Mac => (value.len() >= 6)
            .then(|| value[..6].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")),
        Field::Ipv6 => <[u8; 16]>::try_from(value).ok().map(|v| Ipv6Addr::from(v).to_string()),
        Field::Proto => value.first().map(|number| match number {
            6 => "tcp".into(),
            17 => "udp".into(),
            132 => "sctp".into(),
            other => other.to_string(),
        }),
        Field::Port => <[u8; 2]>::try_from(value).ok().map(|v| u16::from_be_bytes(v).to_string()),
        Field::Mark => <[u8; 4]>::try_from(value).ok().map(|v| format!("{:#010x}", u32::from_ne_bytes(v))),
        Field::IfName => Some(format!("{:?}", crate::wire::string(value))),
        Field::Foreign(_) => None,
    };
    text.unwrap_or_else(|| hex(value))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".into(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn keys_read_as_in_nft() {
        let decl = |key| SetDecl { key, data: None, interval: false, constant: false };
        let flow = decl(smallvec![Field::Ipv4, Field::Proto, Field::Port]);
        assert_eq!(key(&flow, &[10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]), "10.0.0.1 . tcp . 80");
        assert_eq!(key(&flow, &[10, 0]), "0x0a00", "not of the set's length");
        assert_eq!(key(&decl(smallvec![Field::IfName]), b"eth0\0\0\0\0\0\0\0\0\0\0\0\0"), "\"eth0\"");
        assert_eq!(key(&decl(smallvec![Field::Proto]), &[1]), "1");
    }
}
