//! The kernel's tables, kept equal to a plan.

use std::time::Duration;

use weir_dataplane::model::{Family, Hook, HookPoint, Op, Table, Transaction};
use weir_dataplane::{TABLE, TABLES, differences, rebuilt, stages};
use weir_nft::{ApplyError, DumpError, Nft, OpenError};

/// The kernel did not become equal to the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table could not be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A transaction was refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The generation could not be read.
    #[error("cannot ask the kernel for the generation of its ruleset")]
    Generation(#[from] std::io::Error),
}

impl Error {
    /// The chain, set or map that the kernel refused.
    pub fn refused(&self) -> Option<&str> {
        match self {
            Error::Apply(ApplyError::Refused { first, .. }) => first.name.as_deref(),
            _ => None,
        }
    }
}

/// What was done to make the kernel equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Nothing: it was.
    Nothing,
    /// So many steps, in one batch or as many as [`stages`] makes of them.
    Applied {
        /// The steps.
        ops: usize,
        /// The tables had been read back and compared first.
        compared: bool,
    },
}

/// See the module.
pub struct Kernel {
    nft: Nft,
    /// The kernel's tables are known to be the plan's as of the last batch.
    in_step: bool,
    failures: u32,
}

/// A dump is old when something else commits before the batch: then it is taken again.
const STALE_ATTEMPTS: u32 = 10;
/// After so many failures in a row the tables are made anew, in one batch.
const REBUILD_AFTER: u32 = 3;

impl Kernel {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// There is no permission, or no nf_tables.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Kernel::new(Nft::open()?))
    }

    /// The same over a connection that is open.
    pub fn new(nft: Nft) -> Self {
        Kernel { nft, in_step: false, failures: 0 }
    }

    /// How many times in a row it failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The address that this agent's own commits come from.
    pub fn port(&self) -> u32 {
        self.nft.port()
    }

    /// A table may have been changed by somebody else.
    pub fn doubt(&mut self) {
        self.in_step = false;
    }

    /// Whether the kernel takes tables of this family, with chains. Tried with one that is gone again
    /// with the end of the batch, unless there is one of Weir's already.
    pub fn takes(&mut self, family: Family) -> bool {
        if let Ok(Some(_)) = self.nft.dump(family, TABLE) {
            return true;
        }
        let chain = "probe".to_owned();
        let hook = Some(Hook { point: HookPoint::Forward, priority: 0 });
        let ops = vec![Op::AddTable, Op::AddChain { chain, hook }, Op::DeleteTable];
        let probe = Transaction { family, table: "weir_probe".to_owned(), ops };
        !matches!(self.nft.apply(&[probe]), Err(ApplyError::Refused { .. }))
    }

    /// Makes the kernel equal to `plan`: of [`TABLES`], those that are in it. `pending` is what
    /// changed in the plan since this last succeeded; after an error it is contained in the difference
    /// that is taken next.
    pub fn sync(&mut self, plan: &[&Table], pending: Vec<Transaction>) -> Result<Done, Error> {
        let result = if !self.in_step {
            // the difference has it all; at a start, twice the whole plan would be in memory
            drop(pending);
            self.compare(plan)
        } else if pending.is_empty() {
            Ok(Done::Nothing)
        } else {
            let done = Done::Applied { ops: steps(&pending), compared: false };
            let mut batches = stages(pending).into_iter();
            batches.try_for_each(|batch| self.nft.apply(&batch)).map(|()| done).map_err(Error::from)
        };
        self.in_step = result.is_ok();
        self.failures = if result.is_ok() { 0 } else { self.failures + 1 };
        result
    }

    /// When to try again after an error: 50 ms, doubled with each failure up to 10 s.
    pub fn retry_after(&self) -> Option<Duration> {
        let doubled = || Duration::from_millis(50) * 2u32.pow((self.failures - 1).min(8));
        (self.failures > 0).then(|| doubled().min(Duration::from_secs(10)))
    }

    fn compare(&mut self, plan: &[&Table]) -> Result<Done, Error> {
        let mut attempt = 0;
        loop {
            let generation = self.nft.generation()?;
            let mut installed = Vec::new();
            for (family, name) in TABLES {
                installed.extend(self.nft.dump(family, name)?);
            }
            let mut batch = differences(&installed, plan);
            if batch.is_empty() {
                return Ok(Done::Nothing);
            }
            if self.failures >= REBUILD_AFTER {
                batch = rebuilt(&installed, plan);
            }
            attempt += 1;
            let done = Done::Applied { ops: steps(&batch), compared: true };
            // Whether a batch makes a new generation depends on what it finds; who comes between two
            // of them is announced like everybody.
            let mut batches = stages(batch).into_iter();
            let first = batches.next().unwrap_or_default();
            let result = self.nft.apply_at(generation, &first);
            match result.and_then(|()| batches.try_for_each(|batch| self.nft.apply(&batch))) {
                Ok(()) => return Ok(done),
                Err(ApplyError::Stale { .. }) if attempt < STALE_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn steps(batch: &[Transaction]) -> usize {
    batch.iter().map(|transaction| transaction.ops.len()).sum()
}

/// Removes all that Weir made in this network namespace, and nothing else: its tables.
///
/// # Errors
/// There is no permission, no nf_tables, or the kernel refused.
pub fn cleanup() -> anyhow::Result<()> {
    // deleting a table that is not there is an error; making it first, in the same batch, is none
    let gone = TABLES.map(|(family, name)| {
        let ops = vec![Op::AddTable, Op::DeleteTable];
        Transaction { family, table: name.to_owned(), ops }
    });
    Nft::open()?.apply(&gone)?;
    Ok(())
}
