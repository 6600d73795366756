//! A program's own log, on standard error, which nobody has to read.
//!
//! ```text
//!   whoever logs ──> at most QUEUE lines wait ──> write   a thread: standard error, however slow its reader is
//! ```
//!
//! A reader that has stopped, such as a container runtime that hangs, must not hold up enforcement: what does not fit
//! is dropped, and the next line says how many lines that were.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How many lines wait.
const QUEUE: usize = 1024;
/// How long the end of the program waits for them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes lines, and waits for nobody.
#[derive(Debug, Clone)]
pub struct Log {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// To be answered when all before it is written.
    Flush(SyncSender<()>),
}

impl Log {
    /// From now on, this program of this name logs to standard error, what `RUST_LOG` says, or else from info on; in
    /// colours on a terminal, unless there is `NO_COLOR`.
    ///
    /// # Errors
    /// There can be no thread, or no descriptor.
    pub fn to_standard_error(program: &'static str) -> io::Result<Log> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        // a descriptor of its own: who is held up while it writes does not hold the lock of standard error
        let own = io::stderr().as_fd().try_clone_to_owned().map(File::from)?;
        let log = Log::start(program, own)?;
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
        subscriber.with_writer(log.clone()).init();
        Ok(log)
    }

    /// Starts the thread that writes to `out` what the program of this name logs.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(program: &'static str, out: impl Write + Send + 'static) -> io::Result<Log> {
        let (items, to_write) = sync_channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(program, &to_write, &counted, out))?;
        Ok(Log { items, dropped })
    }

    /// Waits until what was logged is written, but not for long.
    pub fn flush(&self) {
        let deadline = Instant::now() + PATIENCE;
        let (done, wait) = sync_channel(1);
        while let Err(TrySendError::Full(_)) = self.items.try_send(Item::Flush(done.clone())) {
            if Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // if nobody reads, that is that
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Write for &Log {
    /// One line, with its end.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_owned())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> &'a Log {
        self
    }
}

/// Until nobody logs any more, or nothing can be written.
fn write(program: &str, items: &Receiver<Item>, dropped: &AtomicU64, mut out: impl Write) {
    while let Ok(item) = items.recv() {
        let written = match item {
            Item::Line(line) => out.write_all(&line),
            Item::Flush(done) => {
                let flushed = out.flush();
                // whoever waited may have gone on
                let _ = done.try_send(());
                flushed
            }
        };
        let dropped = dropped.swap(0, Ordering::Relaxed);
        let told = match dropped {
            0 => Ok(()),
            lines => {
                let line =
                    format!("{program}: {lines} lines of this log are missing: nobody read them in time\n");
                out.write_all(line.as_bytes())
            }
        };
        if written.and(told).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Takes a line when it is let.
    struct Let(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Let {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // all is let when nobody is there any more
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Log, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (go, wait) = channel();
        let text = Arc::<Mutex<Vec<u8>>>::default();
        (Log::start("weir", Let(wait, Arc::clone(&text))).unwrap(), go, text)
    }

    #[test]
    fn a_reader_that_is_stuck_makes_nobody_wait_and_later_hears_what_is_missing() {
        let (log, go, text) = start();
        let most = 3 * QUEUE;
        for line in 0..most {
            log.make_writer().write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        drop(go);
        log.flush();
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        let missing = text.lines().find_map(|line| line.strip_prefix("weir: ")?.split(' ').next());
        let missing: usize = missing.expect("it says so").parse().unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("line ")).collect();
        assert_eq!(lines.len() + missing, most);
        assert!(lines.len() >= QUEUE && lines.starts_with(&["line 0", "line 1"]), "{}", lines.len());
    }

    #[test]
    fn what_was_logged_is_written_at_the_end() {
        let (log, go, text) = start();
        drop(go);
        (0..100).for_each(|line| log.make_writer().write_all(format!("{line}\n").as_bytes()).unwrap());
        log.flush();
        assert_eq!(text.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 100);
    }
}
