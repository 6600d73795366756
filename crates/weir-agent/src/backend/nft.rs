//! Peer sets as named sets of nftables.

use weir_dataplane::model::{Table, Transaction};
use weir_dataplane::{differences, rebuilt};
use weir_nft::{ApplyError, Nft};

use super::{Backend, Doomed, STALE_ATTEMPTS, send, steps};
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
            let done = steps(&batch);
            match send(nft, batch, Some(generation)) {
                Ok(()) => {
                    // no policy depends on them
                    match nft.ipset_names() {
                        Ok(names) => self.left.add(names),
                        Err(error) => tracing::warn!("cannot see whether ipsets of Weir's are left: {error}"),
                    }
                    let left = self.left.names.len();
                    self.tidy(nft);
                    return Ok(done + left);
                }
                Err(ApplyError::Stale { .. }) if attempt < STALE_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn change(&mut self, nft: &mut Nft, _: &[&Table], pending: Vec<Transaction>) -> Result<usize, Error> {
        let done = steps(&pending);
        send(nft, pending, None)?;
        Ok(done)
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
