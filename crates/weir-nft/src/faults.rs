//! Faults on demand: what a kernel does rarely, for tests of those who must live with it.

use std::io;

use nix::errno::Errno;
use weir_dataplane::model::Transaction;

use crate::batch::Batch;
use crate::{Answer, ApplyError, Nft, Received, Refusal};

/// What goes wrong with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFault {
    /// It cannot be sent, with this error number.
    Send(i32),
    /// It is refused for one of its steps: which transaction, which step of it, the error number.
    Refuse(usize, usize, i32),
    /// It was made for another generation (ERESTART).
    Stale,
    /// It is carried out, and the receive buffer overflows (ENOBUFS): no answer.
    LoseAnswer,
}

/// Decides what goes wrong.
pub trait Faults: Send {
    /// Asked before each batch.
    fn batch(&mut self, transactions: &[Transaction]) -> Option<BatchFault>;

    /// Asked before each attempt to read a table: is it interrupted (EINTR, NLM_F_DUMP_INTR)?
    fn dump(&mut self) -> bool;
}

impl Nft {
    /// The same connection, with which things go wrong.
    pub fn with_faults(self, faults: Box<dyn Faults>) -> Nft {
        Nft { faults: Some(faults), ..self }
    }

    /// Sends a batch and reads the answer, or does what goes wrong instead.
    pub(crate) fn exchange(
        &mut self,
        transactions: &[Transaction],
        batch: &Batch<'_>,
    ) -> Result<Answer, ApplyError> {
        let Some(fault) = self.faults.as_mut().and_then(|faults| faults.batch(transactions)) else {
            return self.send_and_read(batch);
        };
        let mut answer = Answer::default();
        match fault {
            BatchFault::Send(errno) => {
                return Err(ApplyError::Io(io::Error::from_raw_os_error(errno)));
            }
            BatchFault::Refuse(transaction, op, errno) => {
                let (object, name) = batch.step(transaction, op);
                answer.refusals.push(Refusal { object, name, errno, detail: None });
            }
            BatchFault::Stale => answer.stale = true,
            BatchFault::LoseAnswer => {
                self.socket.send(&batch.bytes).map_err(|errno: Errno| ApplyError::Io(errno.into()))?;
                while !matches!(self.socket.receive().map_err(io::Error::from)?, Received::Nothing) {}
            }
        }
        Ok(answer)
    }
}
