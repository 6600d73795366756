//! From plan to kernel, such that what the kernel refuses of one policy does not hold up the others.
//!
//! ```text
//!   plan ──> kernel ──ok──> done
//!     ^        │ refused, and again after a comparison
//!     └────────┘ the rulesets that it is part of: closed
//! ```

use std::collections::BTreeSet;

use weir_compiler::object::ObjectKey;
use weir_dataplane::Planner;

use crate::kernel::{Done, Error, Kernel};

/// Makes the kernel equal to the plan. Rulesets of which the kernel refuses something twice are closed in
/// the plan, as [`Planner::close`] has it, and `closed` is told why and which policies they are of.
///
/// # Errors
/// The kernel did not become equal; what it holds stays in force. Try again after [`Kernel::retry_after`].
pub fn enforce(
    planner: &mut Planner,
    kernel: &mut Kernel,
    mut closed: impl FnMut(&Error, BTreeSet<ObjectKey>),
) -> Result<Done, Error> {
    loop {
        let pending = planner.take();
        let error = match kernel.sync(&planner.tables(), pending) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        // the first time, it may be of what others had done: it is tried again after a comparison
        let policies = match error.refused() {
            Some(name) if kernel.failures() > 1 => planner.close(name),
            _ => BTreeSet::new(),
        };
        if policies.is_empty() {
            return Err(error);
        }
        closed(&error, policies);
    }
}
