//! Declarations of sets and maps: type, flags, userdata.

use smallvec::SmallVec;
use weir_dataplane::model::{Field, SetData, SetDecl};

use crate::ffi::{self, MAX_DATA, Name, SetSpec, Unfit};
use crate::wire::{Attrs, attrs, be32, string};
use crate::{kernel, userdata};

/// Bits of a field in the type of a concatenation.
const TYPE_BITS: u32 = 6;

/// Fails unless this is something that Weir writes.
pub(crate) fn check(decl: &SetDecl) -> Result<(), Unfit> {
    let foreign = |field: &Field| matches!(field, Field::Foreign(_));
    if decl.key.iter().any(foreign) || matches!(decl.data, Some(SetData::Value(Field::Foreign(_)))) {
        return Err(Unfit::Foreign);
    }
    if !(1..=5).contains(&decl.key.len()) || decl.key_len() > MAX_DATA {
        return Err(Unfit::Fields);
    }
    Ok(())
}

/// As libnftnl's object. `size` is for sets whose elements are known and never change.
pub(crate) fn encode(
    table: &Name,
    name: &Name,
    decl: &SetDecl,
    id: u32,
    size: Option<u32>,
) -> Result<ffi::Set, Unfit> {
    check(decl)?;
    let mut flags = 0;
    if decl.constant {
        flags |= kernel::SET_CONSTANT;
    }
    let mut fields = Vec::new();
    if decl.interval {
        flags |= kernel::SET_INTERVAL;
        if decl.key.len() > 1 {
            flags |= kernel::SET_CONCAT;
            fields.extend(decl.key.iter().map(|field| field.len() as u8));
        }
    }
    if decl.data.is_some() {
        flags |= kernel::SET_MAP;
    }
    let mut set = ffi::Set::new(table, name);
    set.declare(&SetSpec {
        flags,
        key_type: decl.key_type_id(),
        key_len: decl.key_len() as u32,
        data: decl.data.map(kernel::data_type),
        id,
        size,
        fields: &fields,
        userdata: &userdata::of_set(decl),
    });
    Ok(set)
}

/// The attributes of a set of the dump: its name, and the declaration.
pub(crate) fn decode(attributes: Attrs<'_>) -> (String, SetDecl) {
    let mut name = String::new();
    let (mut flags, mut key_type, mut key_len) = (0, 0, 0);
    let (mut data_type, mut data_len) = (0, 0);
    let mut size = false;
    let mut foreign = false;
    for (kind, value) in attributes {
        let number = be32(value).unwrap_or_default();
        match kind {
            2 => name = string(value),
            3 => flags = number,
            4 => key_type = number,
            5 => key_len = number as usize,
            6 => data_type = number,
            7 => data_len = number as usize,
            9 => size = attrs(value).value_of(1).is_some(),
            // Timeout, garbage collection, kind of objects, expressions.
            11 | 12 | 15 | 17 | 18 => foreign = true,
            _ => {}
        }
    }
    let known = kernel::SET_CONSTANT | kernel::SET_INTERVAL | kernel::SET_MAP | kernel::SET_CONCAT;
    let interval = flags & kernel::SET_INTERVAL != 0;
    let constant = flags & kernel::SET_CONSTANT != 0;
    let mut decl = SetDecl { key: fields(key_type), data: None, interval, constant };
    if flags & kernel::SET_MAP != 0 {
        decl.data = Some(if data_type == kernel::DATA_VERDICT {
            SetData::Verdict
        } else {
            let field = field(data_type);
            foreign |= field.len() != data_len;
            SetData::Value(field)
        });
    }
    foreign |= flags & !known != 0
        // nft and Weir declare the size of a constant set, which has all its elements from the start.
        || size && !constant
        || interval && decl.key.len() > 1 && flags & kernel::SET_CONCAT == 0
        || decl.key_len() != key_len;
    if foreign {
        decl.key.push(Field::Foreign(0));
    }
    (name, decl)
}

fn fields(key_type: u32) -> SmallVec<[Field; 3]> {
    let mut fields = SmallVec::new();
    let mut shift = 32 / TYPE_BITS * TYPE_BITS;
    loop {
        let id = key_type >> shift & ((1 << TYPE_BITS) - 1);
        if id != 0 || !fields.is_empty() || shift == 0 {
            fields.push(field(id));
        }
        if shift == 0 {
            return fields;
        }
        shift -= TYPE_BITS;
    }
}

fn field(type_id: u32) -> Field {
    [Field::Ipv4, Field::Ipv6, Field::Mac, Field::Proto, Field::Port, Field::Mark, Field::IfName]
        .into_iter()
        .find(|field| field.type_id() == type_id)
        .unwrap_or(Field::Foreign(type_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn a_concatenation_is_taken_apart() {
        let key: SmallVec<[Field; 3]> =
            smallvec![Field::IfName, Field::Ipv4, Field::Ipv6, Field::Proto, Field::Port];
        let decl = SetDecl { key, data: None, interval: false, constant: false };
        assert_eq!(fields(decl.key_type_id()), decl.key);
        assert_eq!(fields(7).as_slice(), [Field::Ipv4]);
        assert_eq!(fields(7 << 6 | 5).as_slice(), [Field::Ipv4, Field::Foreign(5)]);
        assert_eq!(fields(0).as_slice(), [Field::Foreign(0)]);
    }
}
