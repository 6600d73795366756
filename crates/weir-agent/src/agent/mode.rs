//! The mode that controllers tell: whether anything of Weir's is in the kernel.
//!
//! ```text
//!   enforce ──> plan ──────────────────────> kernel
//!   audit ────> plan that drops nothing ───> kernel: what it would drop is told
//!   off, withdrawn ──> nothing ────────────> kernel: its tables go in one batch
//! ```
//!
//! In all of them the slice is kept up to date, so that a change of the mode needs nothing from anybody. After
//! a change, the whole plan is compared with the kernel, and what differs goes out in one batch.

use weir_dataplane::{Planner, Settings};
use weir_proto::Mode;

use super::{Agent, BRIDGE};
use crate::kernel::Done;

impl Agent {
    /// What is to be done with the slice from now on.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        let before = std::mem::replace(&mut self.mode, mode);
        if before == mode {
            return;
        }
        tracing::info!(%before, "the mode is {mode} now");
        if mode == Mode::Audit && self.settings.log_denials.is_none() {
            tracing::warn!(
                "nobody is told what policies would deny: denied connections are not logged (--log-denied)"
            );
        }
        self.unsaved = true;
        let kind = |mode: Mode| (mode.enforces(), mode.installs());
        if kind(before) == kind(mode) {
            return;
        }
        // whatever way it goes, what is in the kernel is not what was planned last
        self.kernel.replace();
        self.begins = mode.enforces();
        self.attach = true;
        if (before == Mode::Audit) != (mode == Mode::Audit) {
            self.plan_anew(mode == Mode::Audit);
        }
        if !mode.enforces() {
            self.end_isolation("nothing is enforced");
            self.health.ready(BRIDGE);
        }
    }

    /// The same slice, with rules that drop, or that only tell.
    fn plan_anew(&mut self, audit: bool) {
        let mut planner = Planner::with(Settings { audit, ..self.settings });
        planner.update(&self.planner.slice().changes());
        self.planner = planner;
        self.closed.clear();
    }

    /// Policies are to be enforced again: once for each time that they were not.
    pub(crate) fn begins(&mut self) -> bool {
        std::mem::take(&mut self.begins)
    }

    /// For whoever asks whether the agent is ready.
    pub(super) fn mode_note(&self) -> Option<String> {
        let audit = match self.mode {
            Mode::Audit => ", what policies would deny is logged",
            _ => "",
        };
        (!self.mode.enforces()).then(|| format!("{}: no policy is enforced on this node{audit}", self.mode))
    }

    /// Sees that nothing of Weir's is in the kernel.
    pub(super) fn withdraw(&mut self) {
        // found by the comparison when it is to be enforced
        drop(self.planner.take());
        match self.kernel.sync(&[], Vec::new()) {
            Ok(done) => {
                if let Done::Applied { .. } = done {
                    tracing::info!("nothing of Weir's is in the kernel: the mode is {}", self.mode);
                }
                if !self.ready && self.complete {
                    self.ready = true;
                    tracing::info!(
                        "ready: the mode is {}, no policy is enforced on node {}",
                        self.mode,
                        self.node
                    );
                }
                self.in_step();
            }
            Err(error) => self.failed(error),
        }
    }
}
