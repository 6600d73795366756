//! Peer sets as kernel ipsets.

use weir_dataplane::ipset::{IpsetOp, Ipsets, Steps};
use weir_dataplane::model::{Table, Transaction};
use weir_nft::{ApplyError, Nft};

use super::{Backend, DESTROY_ATTEMPTS, Doomed, STALE_ATTEMPTS, send};
use crate::kernel::{Error, installed};

/// Which ipset is which peer set.
#[derive(Debug, Default)]
pub(super) struct Sets {
    ipsets: Ipsets,
    doomed: Doomed,
}

impl Backend for Sets {
    fn compare(&mut self, nft: &mut Nft, plan: &[&Table], anew: bool) -> Result<usize, Error> {
        let mut attempt = 0;
        let mut done = 0;
        loop {
            let generation = nft.generation()?;
            let (tables, there) = (installed(nft)?, nft.ipsets()?);
            let (mut ipsets, mut steps) = Ipsets::compare(plan, &tables, &there, false);
            if anew && !steps.is_empty() {
                (ipsets, steps) = Ipsets::compare(plan, &tables, &there, true);
            }
            attempt += 1;
            done += steps.len();
            match carry_out(nft, steps, Some(generation)) {
                Ok(()) => {
                    self.ipsets = ipsets;
                    self.finish(nft);
                    return Ok(done);
                }
                Err(Error::Apply(ApplyError::Stale { .. })) if attempt < STALE_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn change(&mut self, nft: &mut Nft, plan: &[&Table], pending: Vec<Transaction>) -> Result<usize, Error> {
        let steps = self.ipsets.change(plan, &pending);
        let done = steps.len();
        carry_out(nft, steps, None)?;
        self.finish(nft);
        Ok(done)
    }

    fn untidy(&self) -> bool {
        !self.doomed.names.is_empty()
    }

    fn tidy(&mut self, nft: &mut Nft) {
        if !self.untidy() {
            return;
        }
        self.doomed.destroy(nft);
        for name in self.ipsets.doomed().clone() {
            if !self.doomed.names.contains(&name) && self.doomed.attempts < DESTROY_ATTEMPTS {
                self.ipsets.destroyed(&name);
            }
        }
    }
}

impl Sets {
    fn finish(&mut self, nft: &mut Nft) {
        self.doomed.add(self.ipsets.doomed().iter().cloned());
        self.tidy(nft);
    }
}

/// One after the other, but for destroying. Between two of them, what is in force is on the way from the old state to the
/// new one; an end there is found by the next comparison.
fn carry_out(nft: &mut Nft, steps: Steps, generation: Option<u32>) -> Result<(), Error> {
    steps.before.iter().try_for_each(|op| nft.apply_ipset(op))?;
    send(nft, steps.batch, generation)?;
    let now = steps.after.iter().filter(|op| !matches!(op, IpsetOp::Destroy { .. }));
    now.into_iter().try_for_each(|op| nft.apply_ipset(op))?;
    Ok(())
}
