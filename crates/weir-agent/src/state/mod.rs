//! The last slice that the kernel held, on disk: for a start without a controller.
//!
//! ```text
//!   commit, held by the kernel ──> dirty ──1 s of quiet, 10 s at most──> bytes ──a thread──> slice.new
//!                                                                                             │ rename
//!   start <── checked: format, checksum, node, what refers to what ─────────────────────── slice
//!               └─ wrong: said, and renamed to slice.damaged
//! ```
//!
//! The loop makes the bytes; writing them and waiting for the disk is for a thread.

pub mod file;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;
use weir_compiler::slice::{Change, NodeSlice};
use weir_proto::Mode;

use crate::metrics::Metrics;
use file::Header;

/// The slice is written after so long without another change,
const QUIET: Duration = Duration::from_secs(1);
/// and so long after the first at the latest.
const LATEST: Duration = Duration::from_secs(10);
/// After an error.
const RETRY: Duration = Duration::from_secs(30);
/// No slice is longer, in bytes.
const LONGEST: u64 = 1 << 30;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a start finds.
#[derive(Debug)]
pub enum Found {
    /// The first start on this node.
    Nothing,
    /// A slice.
    Slice {
        /// All of it.
        changes: Vec<Change>,
        /// What was done with it.
        mode: Mode,
        /// The node has been booted since it was in force.
        rebooted: bool,
    },
    /// Something that must not be used, and has been set aside.
    Damaged,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    node: String,
    boot: String,
    /// Since when the disk is behind, and the last change.
    dirty: Option<(Instant, Instant)>,
    not_before: Instant,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Nothing is to be there.
    removed: bool,
    failing: bool,
    metrics: Metrics,
}

impl Store {
    /// Of this node, in a folder that need not be there.
    ///
    /// # Errors
    /// The kernel does not tell its boot id.
    pub fn new(folder: PathBuf, node: &str, metrics: Metrics) -> io::Result<Store> {
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let now = Instant::now();
        let node = node.to_owned();
        let (dirty, writing) = (None, None);
        Ok(Store {
            folder,
            node,
            boot,
            dirty,
            not_before: now,
            writing,
            removed: false,
            failing: false,
            metrics,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join("slice")
    }

    /// Reads what is there. What is wrong with it is logged.
    pub fn load(&self) -> Found {
        let path = self.path();
        let read = match fs::metadata(&path) {
            Ok(found) if found.len() > LONGEST => Err(format!("it has {} bytes", found.len())),
            Ok(_) => fs::read(&path).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => Err(error.to_string()),
        };
        let stored =
            read.and_then(|bytes| file::decode(&bytes, &self.node).map_err(|error| error.to_string()));
        match stored {
            Ok(stored) => {
                let rebooted = stored.header.boot != self.boot;
                tracing::info!(
                    written = stored.header.seconds,
                    rebooted,
                    mode = stored.mode.as_str(),
                    "there is a slice of an earlier run in {}",
                    path.display()
                );
                Found::Slice { changes: stored.changes, mode: stored.mode, rebooted }
            }
            Err(error) => {
                let aside = self.folder.join("slice.damaged");
                let moved = fs::rename(&path, &aside);
                let path = path.display();
                tracing::error!("the slice of an earlier run in {path} cannot be used: {error}");
                match moved {
                    Ok(()) => tracing::error!("it has been renamed to {}", aside.display()),
                    Err(error) => tracing::error!("it cannot be renamed to {}: {error}", aside.display()),
                }
                Found::Damaged
            }
        }
    }

    /// The kernel holds a slice that the disk does not have.
    pub fn changed(&mut self) {
        self.removed = false;
        let now = Instant::now();
        self.dirty = Some((self.dirty.map_or(now, |(since, _)| since), now));
    }

    /// Nothing is to be left on disk, until something changes again.
    pub fn remove(&mut self) {
        self.dirty = None;
        if !std::mem::replace(&mut self.removed, true) && self.writing.is_none() {
            self.delete();
        }
    }

    fn delete(&self) {
        for name in ["slice", "slice.new", "slice.damaged"] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("{} cannot be removed: {error}", path.display());
                }
                _ => {}
            }
        }
    }

    /// Waits for something to do. Cancel-safe.
    pub async fn next(&mut self) -> Step {
        if let Some(writing) = &mut self.writing {
            let result = writing.await;
            self.writing = None;
            return Step(Some(result.unwrap_or_else(|error| Err(io::Error::other(error)))));
        }
        let Some((since, last)) = self.dirty else { return std::future::pending().await };
        tokio::time::sleep_until((last + QUIET).min(since + LATEST).max(self.not_before)).await;
        Step(None)
    }

    /// Does what [`next`](Store::next) waited for.
    pub fn step(&mut self, step: Step, slice: &NodeSlice, mode: Mode) {
        match step.0 {
            None => {
                let (folder, bytes) = (self.folder.clone(), self.bytes(slice, mode));
                self.writing = Some(tokio::task::spawn_blocking(move || write(&folder, bytes)));
            }
            Some(result) => self.written(result),
        }
    }

    /// Writes at once what is not on disk yet. For the end.
    pub async fn finish(mut self, slice: &NodeSlice, mode: Mode) {
        if let Some(writing) = self.writing.take() {
            let result = writing.await;
            self.written(result.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
        if self.dirty.is_some() {
            let bytes = self.bytes(slice, mode);
            let result = write(&self.folder, bytes);
            self.written(result);
        }
    }

    fn bytes(&mut self, slice: &NodeSlice, mode: Mode) -> Vec<u8> {
        self.dirty = None;
        let seconds =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let header = Header { node: self.node.clone(), boot: self.boot.clone(), seconds };
        file::encode(&header, slice, mode)
    }

    fn written(&mut self, result: io::Result<()>) {
        if self.removed {
            return self.delete();
        }
        match result {
            Ok(()) => {
                self.metrics.disk_writes.inc();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the slice is on disk again");
                }
            }
            Err(error) => {
                self.metrics.disk_errors.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        "the slice cannot be written to {}: {error}; a start without a controller would find an \
                         older one, or none (--state-dir)",
                        self.folder.display()
                    );
                }
                self.changed();
                self.not_before = Instant::now() + RETRY;
            }
        }
    }
}

/// Something for [`Store::step`].
#[derive(Debug)]
pub struct Step(Option<io::Result<()>>);

/// Either the old file is there afterwards or the new one, also after a power cut.
fn write(folder: &Path, mut bytes: Vec<u8>) -> io::Result<()> {
    file::seal(&mut bytes);
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (new, path) = (folder.join("slice.new"), folder.join("slice"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(folder)?.sync_all()
}
