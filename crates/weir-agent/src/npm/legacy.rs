//! What NPM has left in the filter table of iptables-legacy.
//!
//! A table is written as a whole, so whoever does it holds the lock that all of iptables take: a file of the node.
//! A pod that does not see the node's file has no lock, and leaves the table alone.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weir_nft::legacy::Legacy;

use super::{FILTER, Leftovers, Place};

/// Where iptables has its lock, and the variable that says otherwise.
const LOCK: &str = "/run/xtables.lock";
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn read() -> Result<Option<Legacy>> {
    Legacy::read(FILTER).context("cannot read the filter table of iptables-legacy")
}

/// Held until it is dropped.
pub(super) fn lock() -> Result<File> {
    let path = std::env::var_os(LOCK_VARIABLE).map_or_else(|| LOCK.into(), PathBuf::from);
    let file = File::open(&path).with_context(|| {
        format!(
            "nothing was removed: NPM's chains are in a table of iptables-legacy, which nobody may change without its \
             lock, the node's {}; run this where that file is to be seen, or remove them on the node: iptables-legacy \
             -w -D FORWARD for each jump as iptables-legacy -S FORWARD shows it, then -F and after that -X for each \
             chain",
            path.display()
        )
    })?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    bail!(
        "nothing was removed: another program has held iptables' lock, {}, for 10 s; try again",
        path.display()
    )
}

/// Takes out what was found; whoever calls holds the lock since before it was.
pub(super) fn remove(found: &Leftovers) -> Result<()> {
    let Some(table) = read()? else { return Ok(()) };
    let here = |place: &Place| *place == Place::Legacy;
    let chains: BTreeSet<String> =
        found.chains.iter().filter(|(place, ..)| here(place)).map(|(_, chain, _)| chain.clone()).collect();
    let jumps = found.jumps.iter().filter(|jump| here(&jump.table)).map(|jump| jump.handle).collect();
    table.without(&chains, &jumps)?.write()?;
    Ok(())
}
