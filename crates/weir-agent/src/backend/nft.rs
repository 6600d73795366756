//! Peer sets as named sets of nftables.

use weir_dataplane::model::{Table, Transaction};
use weir_dataplane::{differences, rebuilt};
use weir_nft::{ApplyError, Nft};

use super::{Backend, Doomed, STALE_ATTEMPTS, steps};
use crate::kernel::{Error, installed};

/// The plan is what is in the kernel.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Of the other backend, whose rules are gone.
    left: Doomed,
}

impl Backend for Sets {
    fn compare(&mut self, nft: &mut Nft, plan: &[&Table], anew: bool) -> Result<usize, Error> {
        let mut attempt = 0;
        loop {
            let generation = nft.generation()?;
            let installed = installed(nft)?;
            let mut batch = differences(&installed, plan);
            if anew && !batch.is_empty() {
                batch = rebuilt(&installed, plan);
            }
            attempt += 1;
            match nft.apply_at(generation, &batch) {
                Ok(()) => {
                    self.left.add(nft.ipset_names()?);
                    let left = self.left.names.len();
                    self.tidy(nft);
                    return Ok(steps(&batch) + left);
                }
                Err(ApplyError::Stale { .. }) if attempt < STALE_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn change(&mut self, nft: &mut Nft, _: &[&Table], pending: Vec<Transaction>) -> Result<usize, Error> {
        nft.apply(&pending)?;
        Ok(steps(&pending))
    }

    fn untidy(&self) -> bool {
        !self.left.names.is_empty()
    }

    fn tidy(&mut self, nft: &mut Nft) {
        if self.untidy() {
            self.left.destroy(nft);
        }
    }
}
