//! Changes of ipsets.

use nix::errno::Errno;
use weir_dataplane::ipset::{Element, IpsetDecl, IpsetKind, IpsetOp};

use super::IpsetError;
use super::message::{Command, message, put_element};
use crate::socket::{Outcome, Socket};
use crate::wire::{F_ACK, F_EXCL};

/// Carries one out, element by element.
pub(crate) fn apply(socket: &mut Socket, op: &IpsetOp) -> Result<(), IpsetError> {
    match op {
        IpsetOp::Create { name, set } => {
            libipset::create(name, &set.decl, set.elements.len())?;
            add(socket, name, &set.decl, set.elements.iter().copied())
        }
        IpsetOp::Add { name, decl, elements } => add(socket, name, decl, elements.iter().copied()),
        IpsetOp::Remove { name, decl, elements } => match decl.kind {
            IpsetKind::Endpoint => each(socket, Command::Del, name, elements.iter().copied()),
            _ => libipset::remove(name, decl, elements),
        },
        IpsetOp::Destroy { name } => {
            let ask = |out: &mut Vec<u8>, seq| message(out, Command::Destroy, F_ACK, seq, Some(name), |_| {});
            match socket.request(ask, |_| {}).map_err(std::io::Error::from)? {
                Outcome::Refused(errno) => {
                    let why = match errno {
                        // IPSET_ERR_BUSY, the only one of ipset's own
                        Errno::UnknownErrno => "rules look into it".to_owned(),
                        errno => format!("{} ({errno:?})", errno.desc()),
                    };
                    Err(IpsetError::Refused { what: format!("destroy ipset {name}"), why })
                }
                Outcome::Done | Outcome::Interrupted => Ok(()),
            }
        }
    }
}

fn add(
    socket: &mut Socket,
    name: &str,
    decl: &IpsetDecl,
    elements: impl Iterator<Item = Element>,
) -> Result<(), IpsetError> {
    match decl.kind {
        IpsetKind::Endpoint => each(socket, Command::Add, name, elements),
        _ => libipset::add(name, decl, elements),
    }
}

fn each(
    socket: &mut Socket,
    command: Command,
    name: &str,
    elements: impl Iterator<Item = Element>,
) -> Result<(), IpsetError> {
    for element in elements {
        // without F_EXCL, what is there already is no error
        let ask = |out: &mut Vec<u8>, seq| {
            message(out, command, F_ACK | F_EXCL, seq, Some(name), |out| put_element(out, element));
        };
        let what = || match command {
            Command::Add => format!("add {element} to ipset {name}"),
            _ => format!("remove {element} from ipset {name}"),
        };
        if let Outcome::Refused(errno) = socket.request(ask, |_| {}).map_err(std::io::Error::from)? {
            return Err(refused(what(), errno));
        }
    }
    Ok(())
}

fn refused(what: String, errno: Errno) -> IpsetError {
    match errno {
        // IPSET_ERR_EXIST, which means both: it is there already, and: it is not there. nix knows no
        // numbers of ipset's own, and of those an element of a type that fits can have no other
        Errno::UnknownErrno => IpsetError::Changed { what },
        errno => IpsetError::Refused { what, why: format!("{} ({errno:?})", errno.desc()) },
    }
}

#[cfg(not(feature = "ipset"))]
mod libipset {
    //! Nothing of it.

    use super::{Element, IpsetDecl, IpsetError};

    pub(crate) fn create(name: &str, _: &IpsetDecl, _: usize) -> Result<(), IpsetError> {
        Err(IpsetError::NotBuilt { what: format!("create ipset {name}") })
    }

    pub(crate) fn add(name: &str, _: &IpsetDecl, _: impl Iterator<Item = Element>) -> Result<(), IpsetError> {
        Err(IpsetError::NotBuilt { what: format!("add to ipset {name}") })
    }

    pub(crate) fn remove(name: &str, _: &IpsetDecl, _: &[Element]) -> Result<(), IpsetError> {
        Err(IpsetError::NotBuilt { what: format!("remove from ipset {name}") })
    }
}

#[cfg(feature = "ipset")]
mod libipset {
    //! Through the crate `ipset`.

    use std::net::IpAddr;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use ipset::Session;
    use ipset::types::{Error, HashIp, HashIpPort, HashNet, NetDataType};
    use weir_dataplane::model::Family;

    use super::{Element, IpsetDecl, IpsetError, IpsetKind};

    /// libipset is for one thread at a time, with all of its sessions.
    static LOCK: Mutex<()> = Mutex::new(());

    fn lock() -> MutexGuard<'static, ()> {
        LOCK.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With room for so many elements from the start, and for as many as there will be.
    pub(crate) fn create(name: &str, decl: &IpsetDecl, len: usize) -> Result<(), IpsetError> {
        let _lock = lock();
        let v6 = decl.family == Family::Ip6;
        // The kernel grows the table when a bucket of twelve is full. The limit is none: it costs nothing.
        let size = (len as u32 / 4).next_power_of_two().clamp(64, 1 << 20);
        macro_rules! create {
            ($kind:ty) => {
                Session::<$kind>::new(name.to_owned()).create(|builder| {
                    builder.with_ipv6(v6)?.with_hash_size(size)?.with_max_elem(u32::MAX)?.build()
                })
            };
        }
        let created = match &decl.kind {
            IpsetKind::Address => create!(HashIp),
            IpsetKind::Endpoint => create!(HashIpPort),
            IpsetKind::Net => create!(HashNet),
            IpsetKind::Foreign(kind) => return Err(unfit(format!("create ipset {name}"), kind)),
        };
        done(created, || format!("create ipset {name}"))
    }

    pub(crate) fn add(
        name: &str,
        decl: &IpsetDecl,
        elements: impl Iterator<Item = Element>,
    ) -> Result<(), IpsetError> {
        let _lock = lock();
        let what = |element: Element| move || format!("add {element} to ipset {name}");
        match decl.kind {
            IpsetKind::Net => {
                let mut session = Session::<HashNet>::new(name.to_owned());
                for element in elements {
                    done(session.add(net(element), &[]), what(element))?;
                }
            }
            _ => {
                let mut session = Session::<HashIp>::new(name.to_owned());
                for element in elements {
                    done(session.add(element.address(), &[]), what(element))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn remove(name: &str, decl: &IpsetDecl, elements: &[Element]) -> Result<(), IpsetError> {
        let _lock = lock();
        let what = |element: Element| move || format!("remove {element} from ipset {name}");
        match decl.kind {
            IpsetKind::Net => {
                let mut session = Session::<HashNet>::new(name.to_owned());
                for element in elements {
                    done(session.del(net(*element)), what(*element))?;
                }
            }
            _ => {
                let mut session = Session::<HashIp>::new(name.to_owned());
                for element in elements {
                    done(session.del(element.address()), what(*element))?;
                }
            }
        }
        Ok(())
    }

    fn net(element: Element) -> NetDataType {
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        match element {
            Element::Net(address, prefix) => NetDataType::new(address, prefix),
            Element::Address(address) | Element::Endpoint(address, ..) => {
                NetDataType::new(address, whole(address))
            }
        }
    }

    fn unfit(what: String, kind: &str) -> IpsetError {
        IpsetError::Refused { what, why: format!("Weir makes no sets of type {kind}") }
    }

    fn done(result: Result<bool, Error>, what: impl FnOnce() -> String) -> Result<(), IpsetError> {
        match result {
            Ok(true) => Ok(()),
            Ok(false) => Err(IpsetError::Changed { what: what() }),
            Err(Error::DataSet(why, _) | Error::Cmd(why, _) | Error::TypeGet(why, _)) => {
                Err(IpsetError::Refused { what: what(), why: why.trim().to_owned() })
            }
            Err(error) => Err(IpsetError::Refused { what: what(), why: error.to_string() }),
        }
    }
}
