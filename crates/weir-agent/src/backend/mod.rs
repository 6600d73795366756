//! Where peer sets are: two ways to bring the kernel into step with a plan, behind one trait.
//!
//! | | `nft` | `ipset` |
//! | --- | --- | --- |
//! | peer sets are | named sets of nftables | kernel ipsets |
//! | tables | `inet weir` | `ip weir`, `ip6 weir` |
//! | a change is | [`stages`] | ipsets, [`stages`], ipsets: in an order that is safe (`weir_dataplane::ipset`) |
//!
//! Each removes what the other has left: its tables in the batch that brings its own, its ipsets afterwards.

mod ipset;
mod nft;

use std::collections::BTreeSet;
use std::time::Duration;

use weir_dataplane::ipset::IpsetOp;
use weir_dataplane::model::{Table, Transaction};
use weir_dataplane::stages;
use weir_nft::{ApplyError, IPSETS, Nft};

use crate::kernel::Error;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SetBackend {
    /// Named sets of nftables, which change together with the rules.
    #[default]
    Nft,
    /// Kernel ipsets, to be seen with "ipset list" (only if built with the feature ipset).
    Ipset,
}

impl SetBackend {
    /// Makes the one that is always there.
    pub(crate) fn nft() -> Box<dyn Backend + Send> {
        Box::<nft::Sets>::default()
    }

    /// Makes it.
    ///
    /// # Errors
    /// This program is built without it.
    pub fn make(self) -> anyhow::Result<Box<dyn Backend + Send>> {
        match self {
            SetBackend::Nft => Ok(SetBackend::nft()),
            SetBackend::Ipset if IPSETS => Ok(Box::<ipset::Sets>::default()),
            SetBackend::Ipset => anyhow::bail!(
                "--set-backend=ipset: this weir-agent is built without ipsets, as all that are released \
                 (libipset's licence does not allow it); build it with --features ipset, or use --set-backend=nft"
            ),
        }
    }
}

/// A way to bring the kernel into step with a plan. Both calls give the number of steps that it took.
pub trait Backend {
    /// Reads back what is in the kernel, and changes what differs. With `anew`, whatever is there is replaced,
    /// in one batch.
    ///
    /// # Errors
    /// Something could not be read or was refused. What was in force still is, or what is on the way from it
    /// to the plan.
    fn compare(&mut self, nft: &mut Nft, plan: &[&Table], anew: bool) -> Result<usize, Error>;

    /// Carries out what changed in the plan since the last call.
    ///
    /// # Errors
    /// As of [`Backend::compare`], which is to be called next then.
    fn change(&mut self, nft: &mut Nft, plan: &[&Table], pending: Vec<Transaction>) -> Result<usize, Error>;

    /// Something is left to be removed that was in use: [`Backend::tidy`] is to be called soon.
    fn untidy(&self) -> bool;

    /// Removes it, or tries to.
    fn tidy(&mut self, nft: &mut Nft);
}

/// Ipsets that are to be destroyed. The kernel lets go of rules that looked into one a few milliseconds
/// after the batch that deleted them; and if somebody else's rules do, not at all.
#[derive(Debug, Default)]
struct Doomed {
    names: BTreeSet<String>,
    attempts: u32,
}

/// Then it is somebody else who uses them; the next comparison tries again.
const DESTROY_ATTEMPTS: u32 = 40;

impl Doomed {
    fn add(&mut self, names: impl IntoIterator<Item = String>) {
        let before = self.names.len();
        self.names.extend(names);
        if self.names.len() > before {
            self.attempts = 0;
        }
    }

    fn destroy(&mut self, nft: &mut Nft) {
        self.attempts += 1;
        let last = self.attempts >= DESTROY_ATTEMPTS;
        self.names.retain(|name| match nft.apply_ipset(&IpsetOp::Destroy { name: name.clone() }) {
            Ok(()) => false,
            Err(error) => {
                if last {
                    tracing::warn!("an ipset that Weir does not use any more stays: {error}");
                }
                !last
            }
        });
    }
}

/// Removes Weir's ipsets, which no rule of Weir's looks into any more.
pub(crate) fn destroy_all(nft: &mut Nft) -> Result<(), Error> {
    for attempt in 1.. {
        let mut failed = None;
        for name in nft.ipset_names()? {
            failed = nft.apply_ipset(&IpsetOp::Destroy { name }).err().or(failed);
        }
        match failed {
            None => break,
            Some(error) if attempt == DESTROY_ATTEMPTS => return Err(error.into()),
            Some(_) => std::thread::sleep(DESTROY_PAUSE),
        }
    }
    Ok(())
}

/// Between two attempts to destroy ipsets.
pub(crate) const DESTROY_PAUSE: Duration = Duration::from_millis(50);

/// A dump is old when something else commits before the batch: then it is taken again.
const STALE_ATTEMPTS: u32 = 10;

fn steps(batch: &[Transaction]) -> usize {
    batch.iter().map(|transaction| transaction.ops.len()).sum()
}

/// Sends a change, in its stages. The first is bound to the generation of a dump.
fn send(nft: &mut Nft, change: Vec<Transaction>, generation: Option<u32>) -> Result<(), ApplyError> {
    let mut batches = stages(change).into_iter();
    if let Some(generation) = generation {
        // Whether a batch makes a new generation depends on what it finds; who comes between two
        // of them is announced like everybody.
        nft.apply_at(generation, &batches.next().unwrap_or_default())?;
    }
    batches.try_for_each(|batch| nft.apply(&batch))
}
