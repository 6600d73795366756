//! What ipsets there are, and what is in them.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use weir_dataplane::ipset::{Ipset, IpsetDecl, IpsetKind, is_ours};
use weir_dataplane::model::Family;

use super::message::{
    ADT, CADT_FLAGS, Command, DATA, FAMILY, INDEX, NETMASK, SETNAME, TIMEOUT, TYPENAME, element, message,
    put_flags,
};
use crate::error::DumpError;
use crate::rules::Indices;
use crate::socket::{Outcome, Socket};
use crate::wire::{Attrs, F_DUMP, attrs, string};

/// `IPSET_FLAG_LIST_HEADER`: without elements.
const LIST_HEADER: u32 = 1 << 2;
/// Only lost messages make it necessary to ask again, or sets that go meanwhile.
const ATTEMPTS: u32 = 5;

/// The kernel's index of a set; `None`: there is none of that name.
pub(crate) fn index(socket: &mut Socket, set: &str) -> nix::Result<Option<u16>> {
    let mut index = None;
    let outcome = socket.request(
        |out, seq| message(out, Command::GetByName, 0, seq, Some(set), |_| {}),
        |answer| index = index.or(answer.attrs().value_of(INDEX).and_then(be16)),
    )?;
    match outcome {
        Outcome::Refused(Errno::ENOENT) => Ok(None),
        Outcome::Refused(errno) => Err(errno),
        Outcome::Done | Outcome::Interrupted => Ok(index),
    }
}

/// All sets, whoever made them, by name.
pub(crate) fn indices(socket: &mut Socket) -> nix::Result<Indices> {
    headers(socket, |attributes| attributes.value_of(INDEX).and_then(be16))
}

/// The types of all sets, whoever made them, by name.
pub(crate) fn types(socket: &mut Socket) -> nix::Result<BTreeMap<String, String>> {
    headers(socket, |attributes| attributes.value_of(TYPENAME).map(string))
}

/// Something of each set's header, by name.
fn headers<T, All: Default + Extend<(String, T)>>(
    socket: &mut Socket,
    of: impl Fn(Attrs<'_>) -> Option<T>,
) -> nix::Result<All> {
    for _ in 0..ATTEMPTS {
        let mut all = All::default();
        let outcome = list(socket, None, LIST_HEADER, |attributes| {
            let value = of(attributes.clone());
            all.extend(attributes.value_of(SETNAME).map(string).zip(value));
        })?;
        match outcome {
            Outcome::Done => return Ok(all),
            // the kernel has no ipsets, or none of this protocol
            Outcome::Refused(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => return Ok(all),
            Outcome::Refused(errno) => return Err(errno),
            Outcome::Interrupted => {}
        }
    }
    Err(Errno::EAGAIN)
}

/// Weir's sets with what is in them.
pub(crate) fn ours(socket: &mut Socket) -> Result<BTreeMap<String, Ipset>, DumpError> {
    let mut all = BTreeMap::new();
    for name in indices(socket)?.into_keys().filter(|name| is_ours(name)) {
        if let Some(set) = set(socket, &name)? {
            all.insert(name, set);
        }
    }
    Ok(all)
}

/// `None`: it is gone meanwhile.
fn set(socket: &mut Socket, name: &str) -> Result<Option<Ipset>, DumpError> {
    let refused = |errno: Errno| DumpError::Refused { what: format!("ipset {name}"), source: errno.into() };
    for _ in 0..ATTEMPTS {
        let mut found: Option<Ipset> = None;
        let mut foreign = false;
        let outcome = list(socket, Some(name), 0, |attributes| {
            if attributes.clone().value_of(TYPENAME).is_some() {
                found = Some(Ipset { decl: decl(attributes.clone()), elements: Default::default() });
            }
            let Some(set) = &mut found else { return };
            for (_, data) in attrs(attributes.value_of(ADT).unwrap_or_default()) {
                match element(attrs(data)) {
                    Some(element) => drop(set.elements.insert(element)),
                    None => foreign = true,
                }
            }
        })?;
        match outcome {
            Outcome::Done => {
                return Ok(found.map(|mut set| {
                    if foreign {
                        set.decl.kind = IpsetKind::Foreign(set.decl.type_name().to_owned());
                    }
                    set
                }));
            }
            Outcome::Refused(Errno::ENOENT) => return Ok(None),
            Outcome::Refused(errno) => return Err(refused(errno)),
            Outcome::Interrupted => {}
        }
    }
    Err(refused(Errno::EAGAIN))
}

fn list(
    socket: &mut Socket,
    set: Option<&str>,
    flags: u32,
    mut each: impl FnMut(Attrs<'_>),
) -> nix::Result<Outcome> {
    socket.request(
        |out, seq| message(out, Command::List, F_DUMP, seq, set, |out| put_flags(out, flags)),
        |answer| {
            if answer.kind == Command::List.message_type() {
                each(answer.attrs());
            }
        },
    )
}

fn decl(attributes: Attrs<'_>) -> IpsetDecl {
    let name = attributes.clone().value_of(TYPENAME).map(string).unwrap_or_default();
    let family = match attributes.clone().value_of(FAMILY) {
        Some([10, ..]) => Family::Ip6,
        _ => Family::Ip,
    };
    let options = attributes.value_of(DATA).unwrap_or_default();
    let plain = !attrs(options).any(|(kind, _)| [TIMEOUT, CADT_FLAGS, NETMASK].contains(&kind));
    let kind = match name.as_str() {
        "hash:ip" if plain => IpsetKind::Address,
        "hash:ip,port" if plain => IpsetKind::Endpoint,
        "hash:net" if plain => IpsetKind::Net,
        _ => IpsetKind::Foreign(name),
    };
    IpsetDecl { kind, family }
}

fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

impl From<nix::Error> for DumpError {
    fn from(errno: nix::Error) -> DumpError {
        DumpError::Io(io::Error::from(errno))
    }
}
