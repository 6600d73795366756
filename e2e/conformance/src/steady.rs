//! Questions asked again and again while something happens: not one may come out wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::live::{Check, Shared};
use crate::probe::Answer;

/// Between two askings of one question that was answered. Silence takes its own time.
const PAUSE: Duration = Duration::from_millis(300);
/// Wrong answers of one question that are kept.
const KEPT: usize = 3;

/// What one question got.
pub struct Got {
    /// The question.
    pub check: Check,
    /// How often it was asked.
    pub asked: u64,
    /// How often the answer was wrong.
    pub wrong: u64,
    /// The first of those.
    pub answers: Vec<Answer>,
}

/// Questions under way.
pub struct Steady {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Got>>,
}

impl Steady {
    /// Begins to ask; each question by two that take turns, so that silence of one does not leave a gap of seconds.
    pub fn start(shared: &Arc<Shared>, checks: &[Check]) -> Steady {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for check in checks.iter().chain(checks) {
            let (shared, check, stop) = (shared.clone(), check.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut got = Got { check, asked: 0, wrong: 0, answers: Vec::new() };
                while !stop.load(Ordering::Relaxed) {
                    let answer = shared.prober.ask(&got.check.question).await;
                    got.asked += 1;
                    if !got.check.is_right(&answer) {
                        got.wrong += 1;
                        if got.answers.len() < KEPT {
                            got.answers.push(answer);
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                got
            }));
        }
        Steady { stop, tasks }
    }

    /// Ends it; what each question got.
    pub async fn stop(mut self) -> Vec<Got> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in std::mem::take(&mut self.tasks) {
            if let Ok(got) = task.await {
                all.push(got);
            }
        }
        all
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
