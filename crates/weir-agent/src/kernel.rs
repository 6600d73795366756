//! The kernel's tables, kept equal to a plan.

use std::time::Duration;

use weir_dataplane::model::{Expr, Family, Hook, HookPoint, Op, Rule, Table, Transaction};
use weir_dataplane::{DenialLog, TABLE, TABLES};
use weir_nft::{ApplyError, DumpError, IpsetError, Nft, OpenError};

use crate::backend::{Backend, DESTROY_PAUSE, SetBackend, destroy_all};
use crate::engines::Traces;
use crate::needs::tried;

/// The kernel did not become equal to the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table could not be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A transaction was refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// An ipset could not be changed.
    #[error(transparent)]
    Ipset(#[from] IpsetError),
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
    /// So many steps, in one batch or as many as [`stages`](weir_dataplane::stages) makes of them, and
    /// those on ipsets.
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
    backend: Box<dyn Backend + Send>,
    /// The kernel's tables are known to be the plan's as of the last batch.
    in_step: bool,
    /// The tables are to be made anew, in one batch.
    anew: bool,
    failures: u32,
}

/// After so many failures in a row the tables are made anew, in one batch.
const REBUILD_AFTER: u32 = 3;

impl Kernel {
    /// Opens the netlink socket; peer sets are named sets of nftables.
    ///
    /// # Errors
    /// There is no permission, or no nf_tables.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Kernel::new(Nft::open()?))
    }

    /// The same over a connection that is open.
    pub fn new(nft: Nft) -> Self {
        Kernel::over(nft, SetBackend::nft())
    }

    /// The same as [`Kernel::open`], with a choice of where peer sets are.
    ///
    /// # Errors
    /// As there, or this program is built without the backend.
    pub fn with(backend: SetBackend) -> anyhow::Result<Self> {
        let backend = backend.make()?;
        Ok(Kernel::over(Nft::open()?, backend))
    }

    fn over(nft: Nft, backend: Box<dyn Backend + Send>) -> Self {
        Kernel { nft, backend, in_step: false, anew: false, failures: 0 }
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

    /// Another plan takes the place of what is there: at once, in one batch, and not in stages.
    pub fn replace(&mut self) {
        (self.in_step, self.anew) = (false, true);
    }

    /// Whether the kernel takes tables of this family, with chains. Tried with one that is gone again
    /// with the end of the batch, unless there is one of Weir's already.
    pub fn takes(&mut self, family: Family) -> bool {
        if let Ok(Some(_)) = self.nft.dump(family, TABLE) {
            return true;
        }
        let hook = Some(Hook { point: HookPoint::Forward, priority: 0 });
        let ops = vec![Op::AddChain { chain: "probe".to_owned(), hook }];
        !matches!(tried(&mut self.nft, family, ops), Err(ApplyError::Refused { .. }))
    }

    /// Whether the kernel takes rules that tell NFLOG of packets, tried in the same way.
    ///
    /// # Errors
    /// It does not.
    pub fn can_log(&mut self, log: DenialLog) -> Result<(), ApplyError> {
        let chain = "probe".to_owned();
        let exprs = vec![
            Expr::Limit { per_second: log.per_second, burst: log.burst },
            Expr::Log { group: log.group, prefix: chain.clone(), snaplen: log.snaplen },
        ];
        let rule = Rule { exprs, comment: None };
        let ops = vec![Op::AddChain { chain: chain.clone(), hook: None }, Op::AddRule { chain, rule }];
        tried(&mut self.nft, Family::Inet, ops)
    }

    /// What other engines have in the kernel.
    pub fn traces(&mut self) -> Traces {
        Traces::read(&mut self.nft)
    }

    /// Makes the kernel equal to `plan`: of [`TABLES`], those that are in it. `pending` is what
    /// changed in the plan since this last succeeded; after an error it is contained in the difference
    /// that is taken next.
    pub fn sync(&mut self, plan: &[&Table], pending: Vec<Transaction>) -> Result<Done, Error> {
        let result = if !self.in_step {
            // the difference has it all; at a start, twice the whole plan would be in memory
            drop(pending);
            let anew = self.anew || self.failures >= REBUILD_AFTER;
            self.backend.compare(&mut self.nft, plan, anew).map(|ops| (ops, true))
        } else if pending.is_empty() {
            self.backend.tidy(&mut self.nft);
            Ok((0, false))
        } else {
            self.backend.change(&mut self.nft, plan, pending).map(|ops| (ops, false))
        };
        let result = result.map(|(ops, compared)| match ops {
            0 => Done::Nothing,
            ops => Done::Applied { ops, compared },
        });
        self.in_step = result.is_ok();
        self.anew &= result.is_err();
        self.failures = if result.is_ok() { 0 } else { self.failures + 1 };
        result
    }

    /// When to try again after an error: 50 ms, doubled with each failure up to 10 s; or when to remove what was
    /// still in use.
    pub fn retry_after(&self) -> Option<Duration> {
        if self.failures == 0 && self.backend.untidy() {
            return Some(DESTROY_PAUSE);
        }
        let doubled = || Duration::from_millis(50) * 2u32.pow((self.failures - 1).min(8));
        (self.failures > 0).then(|| doubled().min(Duration::from_secs(10)))
    }
}

/// Weir's tables as they are in the kernel.
pub(crate) fn installed(nft: &mut Nft) -> Result<Vec<Table>, DumpError> {
    let mut installed = Vec::new();
    for (family, name) in TABLES {
        installed.extend(nft.dump(family, name)?);
    }
    Ok(installed)
}

/// Removes all that Weir made in this network namespace, and nothing else: its tables and ipsets.
///
/// # Errors
/// There is no permission, no nf_tables, or the kernel refused.
pub fn cleanup() -> anyhow::Result<()> {
    // deleting a table that is not there is an error; making it first, in the same batch, is none
    let gone = TABLES.map(|(family, name)| {
        let ops = vec![Op::AddTable, Op::DeleteTable];
        Transaction { family, table: name.to_owned(), ops }
    });
    let mut nft = Nft::open()?;
    nft.apply(&gone)?;
    destroy_all(&mut nft)?;
    Ok(())
}
