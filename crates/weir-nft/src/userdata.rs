//! Userdata: bytes that the kernel keeps for nft, in nft's own format (`libnftnl/udata.h`):
//! type u8 | length u8 | value. Without them `nft list ruleset` shows interface names in maps as "".

use weir_dataplane::model::{Field, SetData, SetDecl};

use crate::ffi::Unfit;

/// Longest comment, without the final zero.
const MAX_COMMENT: usize = 127;

/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT`.
const COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_ELEM_FLAGS`
const ELEMENT_FLAGS: u8 = 1;
/// `NFTNL_SET_ELEM_F_INTERVAL_OPEN`: the interval reaches to the last value of the type.
const INTERVAL_OPEN: u32 = 1;

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const DATA_INTERVAL: u8 = 6;

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.extend_from_slice(&[kind, value.len() as u8]);
    out.extend_from_slice(value);
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

/// nft's `enum byteorder`.
fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [one] if one.host_order() => 1,
        [_] => 2,
        _ => 0, // a concatenation: each field has its own
    }
}

/// Of a set or map.
pub(crate) fn of_set(decl: &SetDecl) -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    put_u32(&mut out, KEY_BYTE_ORDER, byte_order(&decl.key));
    match decl.data {
        None => {}
        Some(data) => {
            let order = match data {
                SetData::Verdict => 0,
                SetData::Value(field) => byte_order(&[field]),
            };
            put_u32(&mut out, DATA_BYTE_ORDER, order);
            put_u32(&mut out, DATA_INTERVAL, 0);
        }
    }
    out
}

/// Appends that of a rule or an element.
pub(crate) fn put_comment(out: &mut Vec<u8>, comment: &str) -> Result<(), Unfit> {
    if comment.is_empty() || comment.len() > MAX_COMMENT || comment.contains('\0') {
        return Err(Unfit::Comment);
    }
    out.extend_from_slice(&[COMMENT, comment.len() as u8 + 1]);
    out.extend_from_slice(comment.as_bytes());
    out.push(0);
    Ok(())
}

/// Appends what nft notes of an interval without an end.
pub(crate) fn put_open_interval(out: &mut Vec<u8>) {
    put_u32(out, ELEMENT_FLAGS, INTERVAL_OPEN);
}

/// The comment of a rule or an element.
pub(crate) fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*len))?;
        if *kind == COMMENT {
            return Some(crate::wire::string(value));
        }
        userdata = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_bounded_and_come_back() {
        let mut out = Vec::new();
        put_open_interval(&mut out);
        put_comment(&mut out, "why").unwrap();
        assert_eq!(comment(&out).as_deref(), Some("why"));
        assert_eq!(comment(&out[..out.len() - 1]), None, "cut off");
        assert_eq!(put_comment(&mut out, &"x".repeat(128)), Err(Unfit::Comment));
        assert_eq!(put_comment(&mut out, ""), Err(Unfit::Comment));
        assert!(put_comment(&mut out, &"x".repeat(127)).is_ok());
    }
}
