//! What a program says of itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether a program is alive and ready. All clones are the same.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Why it is not ready.
    reasons: BTreeMap<&'static str, String>,
    /// What whoever asks should know although it is ready.
    notes: BTreeMap<&'static str, String>,
    beat: Instant,
    /// Without a beat for so long, it hangs.
    patience: Duration,
}

impl Health {
    /// Ready, and alive as long as there is a [`beat`](Health::beat) at least this often.
    pub fn new(patience: Duration) -> Self {
        let (reasons, notes) = (BTreeMap::new(), BTreeMap::new());
        Health(Arc::new(Mutex::new(State { reasons, notes, beat: Instant::now(), patience })))
    }

    /// The program's loop turns.
    pub fn beat(&self) {
        self.state().beat = Instant::now();
    }

    /// It is not ready, for a reason that holds until [`ready`](Health::ready) with the same key.
    pub fn not_ready(&self, key: &'static str, reason: impl Into<String>) {
        let reason = reason.into();
        let mut state = self.state();
        if state.reasons.get(key) != Some(&reason) {
            state.reasons.insert(key, reason);
        }
    }

    /// This reason is gone.
    pub fn ready(&self, key: &'static str) {
        self.state().reasons.remove(key);
    }

    /// Something that whoever asks should know although it is ready; `None`: no longer.
    pub fn note(&self, key: &'static str, note: Option<String>) {
        let mut state = self.state();
        match note {
            Some(note) => drop(state.notes.insert(key, note)),
            None => drop(state.notes.remove(key)),
        }
    }

    /// What whoever asks should know, in the order of keys.
    pub fn notes(&self) -> Vec<String> {
        self.state().notes.iter().map(|(key, note)| format!("{key}: {note}")).collect()
    }

    /// Whether there is no reason against it.
    pub fn is_ready(&self) -> bool {
        self.state().reasons.is_empty()
    }

    /// Why it is not ready, in the order of keys.
    pub fn reasons(&self) -> Vec<String> {
        self.state().reasons.iter().map(|(key, reason)| format!("{key}: {reason}")).collect()
    }

    /// For how long its loop has not turned, if that is too long.
    pub fn hangs(&self) -> Option<Duration> {
        let state = self.state();
        let since = state.beat.elapsed();
        (since > state.patience).then_some(since)
    }

    /// What a thread that panicked has left is whole: every change is one step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
