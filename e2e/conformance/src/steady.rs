//! Questions asked again and again while something happens: not one may come out wrong.
//!
//! Meanwhile each pod that takes part is asked for its name on its own loopback, where no engine has a say. When that
//! takes long the machine is too busy to judge: silence where an answer ought to come is counted apart then. An
//! answer where silence ought to be is always wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::live::{Check, Shared};
use crate::probe::{Answer, Client};

/// Between two askings of one question that was answered. Silence takes its own time.
const PAUSE: Duration = Duration::from_millis(300);
/// A pod whose own loopback takes so long is not judged by silence.
const BUSY: Duration = Duration::from_millis(1500);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(500);
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
    /// How often nobody answered in time, while pods were too busy to answer themselves.
    pub busy: u64,
}

/// When pods were busy: from, until.
type Busy = Arc<Mutex<Vec<(Instant, Instant)>>>;

fn was_busy(busy: &Busy, from: Instant, until: Instant) -> bool {
    busy.lock().expect("not poisoned").iter().any(|(start, end)| *start <= until && from <= *end)
}

/// Questions under way.
pub struct Steady {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Got>>,
    looks: Vec<JoinHandle<()>>,
}

impl Steady {
    /// Begins to ask; each question by two that take turns, so that silence of one does not leave a gap of seconds.
    pub fn start(shared: &Arc<Shared>, checks: &[Check], pods: Vec<Client>) -> Steady {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = Busy::default();
        let mut looks = Vec::new();
        for pod in pods {
            let (shared, stop, busy) = (shared.clone(), stop.clone(), busy.clone());
            looks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let answer = shared.prober.hostname(&pod).await;
                    if answer.is_err() || asked.elapsed() > BUSY {
                        busy.lock().expect("not poisoned").push((asked, Instant::now()));
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }));
        }
        let mut tasks = Vec::new();
        for check in checks.iter().chain(checks) {
            let (shared, check, stop, busy) = (shared.clone(), check.clone(), stop.clone(), busy.clone());
            tasks.push(tokio::spawn(async move {
                let mut got = Got { check, asked: 0, wrong: 0, answers: Vec::new(), busy: 0 };
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let answer = shared.prober.ask(&got.check.question).await;
                    got.asked += 1;
                    let silent = answer == Answer::Silence;
                    if silent && got.check.expected.allowed && was_busy(&busy, asked, Instant::now()) {
                        got.busy += 1;
                    } else if !got.check.is_right(&answer) {
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
        Steady { stop, tasks, looks }
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
        for look in std::mem::take(&mut self.looks) {
            look.abort();
        }
        all
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_pods_were_busy_is_excused() {
        let busy = Busy::default();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        busy.lock().expect("not poisoned").push((at(10), at(13)));
        assert!(
            was_busy(&busy, at(8), at(11))
                && was_busy(&busy, at(12), at(17))
                && was_busy(&busy, at(9), at(14))
        );
        assert!(!was_busy(&busy, at(4), at(9)) && !was_busy(&busy, at(14), at(19)));
    }
}
