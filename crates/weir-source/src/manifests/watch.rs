//! Following a folder.
//!
//! Events of the file system only say *when* to look; *what* there is, is always found by walking
//! the folder. So a lost event is no more than a delay (of [`BACKSTOP`]), and links that are swapped
//! (ConfigMap volumes) need no special case.
//!
//! When a file counts as written:
//! * its writer has closed it, it was moved to its name, or the link points elsewhere: at once;
//! * it has changed and nobody closed it: when it has been quiet for a while. Emptied files wait
//!   too, because most of them are about to be filled;
//! * it is no longer there: a moment later, because editors move the old file away and then write
//!   a new one of the same name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::SendError;

use super::files::{self, Found, Signature};
use super::parse::{self, Parsed};
use super::store::Store;
use crate::{Problem, Update};

/// A walk that nothing asked for.
const BACKSTOP: Duration = Duration::from_secs(2);
/// The same where the system gives no events.
const POLL: Duration = Duration::from_millis(300);
/// How long a file that is known must be quiet, if its writer has not closed it.
const QUIET: Duration = Duration::from_secs(1);
/// The same for a file that is new (nothing is lost by reading too little of it), for one that
/// was emptied and closed, and where systems do not tell who closes what.
const BRIEFLY: Duration = Duration::from_millis(100);
/// How long a file may be away before it is gone.
const AWAY: Duration = Duration::from_millis(50);

/// Follows the manifests of a folder (or one file) until the receiver is dropped.
///
/// What is there at first comes file by file; the batch that is `synced` completes it. It runs on a
/// thread of its own, since it does nothing but blocking calls.
///
/// # Errors
/// There is no such folder, it cannot be read, or there can be no more threads.
pub fn watch(root: PathBuf, updates: Sender<Update>) -> io::Result<()> {
    if std::fs::metadata(&root)?.is_dir() {
        std::fs::read_dir(&root)?;
    }
    std::thread::Builder::new().name("manifests".into()).spawn(move || {
        let (sender, events) = channel();
        let watcher = notify::recommended_watcher(move |event| {
            // Nobody listens any more: the thread is about to end.
            let _ = sender.send(event);
        });
        let mut follower = Follower::new(root, updates);
        // Ends when the receiver is gone.
        let _ = match watcher {
            Ok(watcher) => follower.watcher(watcher).follow(&events),
            Err(error) => follower
                .send(Update::Problem(Problem::general(format!(
                    "the system gives no notice of changed files ({error}): they are looked at every {POLL:?}"
                ))))
                .and_then(|()| follower.follow(&events)),
        };
    })?;
    Ok(())
}

struct Follower {
    root: PathBuf,
    updates: Sender<Update>,
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, (u64, u64)>,
    store: Store,
    files: HashMap<PathBuf, Seen>,
    /// Files that may be written just now, and until when they must be quiet.
    waiting: HashMap<PathBuf, Instant>,
    away: HashMap<PathBuf, Instant>,
    unread: HashMap<PathBuf, io::ErrorKind>,
    told: Vec<Problem>,
    hasher: RandomState,
    first: bool,
}

/// A file as it was read.
struct Seen {
    signature: Signature,
    hash: u64,
}

/// What the events of a moment say.
#[derive(Default)]
struct Hints {
    /// Files that are complete.
    written: HashSet<PathBuf>,
    /// Files that someone writes to.
    touched: HashSet<PathBuf>,
    look: bool,
}

impl Hints {
    fn add(&mut self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else {
            self.look = true;
            return;
        };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_)) => {
                self.touched.retain(|path| !event.paths.contains(path));
                self.written.extend(event.paths);
            }
            // Our own reading, among others.
            EventKind::Access(_) => return,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => {
                self.written.retain(|path| !event.paths.contains(path));
                self.touched.extend(event.paths);
            }
            _ => {}
        }
        self.look = true;
    }
}

type Alive = Result<(), SendError<Update>>;

impl Follower {
    fn new(root: PathBuf, updates: Sender<Update>) -> Self {
        Follower {
            root,
            updates,
            watcher: None,
            watched: HashMap::new(),
            store: Store::default(),
            files: HashMap::new(),
            waiting: HashMap::new(),
            away: HashMap::new(),
            unread: HashMap::new(),
            told: Vec::new(),
            hasher: RandomState::new(),
            first: true,
        }
    }

    fn watcher(&mut self, watcher: RecommendedWatcher) -> &mut Self {
        self.watcher = Some(watcher);
        self
    }

    fn send(&self, update: Update) -> Alive {
        self.updates.blocking_send(update)
    }

    fn follow(&mut self, events: &Receiver<notify::Result<notify::Event>>) -> Alive {
        let mut next_look = Instant::now();
        while !self.updates.is_closed() {
            let mut hints = Hints::default();
            let now = Instant::now();
            if next_look > now {
                match events.recv_timeout(next_look - now) {
                    Ok(event) => hints.add(event),
                    Err(RecvTimeoutError::Timeout) => hints.look = true,
                    // There is no watcher.
                    Err(RecvTimeoutError::Disconnected) => {
                        std::thread::sleep(next_look - now);
                        hints.look = true;
                    }
                }
            } else {
                hints.look = true;
            }
            events.try_iter().for_each(|event| hints.add(event));
            if hints.look {
                self.look(&hints)?;
            }
            let idle = if self.watcher.is_some() { BACKSTOP } else { POLL };
            let deadlines = self.waiting.values().chain(self.away.values()).copied();
            next_look = deadlines.fold(Instant::now() + idle, Instant::min);
        }
        Ok(())
    }

    /// Walks the folder and sends what differs.
    fn look(&mut self, hints: &Hints) -> Alive {
        let mut found = files::walk(&self.root);
        // What happened in a folder before it was watched is found by walking again.
        for _ in 0..files::MAX_DEPTH {
            if !self.watch_folders(&found.folders, &mut found.problems) {
                break;
            }
            found = files::walk(&self.root);
        }
        let mut problems: Vec<Problem> =
            found.problems.iter().filter(|p| !self.told.contains(p)).cloned().collect();
        self.told = std::mem::take(&mut found.problems);

        let now = Instant::now();
        for (path, signature) in &found.files {
            self.away.remove(path);
            self.store.leaving(path, false);
            if self.is_ready(path, signature, hints, now) {
                match std::fs::read(path) {
                    Ok(bytes) => {
                        self.read(path, signature, &bytes);
                        if self.first {
                            // file by file: never all objects at once in memory
                            let changes = self.store.changes(&mut parse_file);
                            problems.extend(changes.problems);
                            let events: Vec<_> = changes.events.into_iter().map(|(event, _)| event).collect();
                            if !events.is_empty() {
                                self.send(Update::Batch { events, synced: false })?;
                            }
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        self.waiting.insert(path.clone(), now + BACKSTOP);
                        let problem = files::unreadable(path.clone(), &error);
                        if self.unread.insert(path.clone(), error.kind()) != Some(error.kind()) {
                            problems.push(problem);
                        }
                    }
                }
            }
        }
        self.look_for_missing(&found, now);

        let changes = self.store.changes(&mut parse_file);
        problems.extend(changes.problems);
        let events: Vec<_> = changes.events.into_iter().map(|(event, _)| event).collect();
        if self.first || !events.is_empty() {
            self.first = false;
            self.send(Update::Batch { events, synced: true })?;
        }
        problems.into_iter().try_for_each(|problem| self.send(Update::Problem(problem)))
    }

    /// Whether the file is to be read now; if it is to be read later, `waiting` says when.
    fn is_ready(&mut self, path: &Path, signature: &Signature, hints: &Hints, now: Instant) -> bool {
        let real = signature.target.as_deref().unwrap_or(path);
        let written = hints.written.contains(path) || hints.written.contains(real);
        let touched = hints.touched.contains(path) || hints.touched.contains(real);
        let known = self.files.get(path);
        let changed = known.is_none_or(|seen| seen.signature != *signature);
        let relinked =
            signature.target.is_some() && known.is_none_or(|seen| seen.signature.target != signature.target);
        let emptied = signature.len == 0 && self.store.has_objects(path);

        if self.first || relinked || (written && !emptied) {
            return true;
        }
        let tells_of_close = cfg!(target_os = "linux") && self.watcher.is_some();
        let quiet = if known.is_some() && tells_of_close && !written { QUIET } else { BRIEFLY };
        match self.waiting.get_mut(path) {
            Some(until) if touched || written => *until = now + quiet,
            Some(until) => return *until <= now,
            None if touched || written || changed => {
                self.waiting.insert(path.to_owned(), now + quiet);
            }
            None => {}
        }
        false
    }

    fn read(&mut self, path: &Path, signature: &Signature, bytes: &[u8]) {
        self.waiting.remove(path);
        self.unread.remove(path);
        let hash = self.hasher.hash_one(bytes);
        let before = self.files.insert(path.to_owned(), Seen { signature: signature.clone(), hash });
        if before.is_none_or(|seen| seen.hash != hash) {
            self.store.put(path.to_owned(), parse::parse(path, bytes));
        }
    }

    /// Files that were there and are not. What cannot be looked at is not missing.
    fn look_for_missing(&mut self, found: &Found, now: Instant) {
        let Follower { files, store, waiting, away, unread, .. } = self;
        let hidden = |path: &Path| found.unreadable.iter().any(|above| path.starts_with(above));
        files.retain(|path, _| {
            if found.files.contains_key(path) || hidden(path) {
                return true;
            }
            if *away.entry(path.clone()).or_insert(now + AWAY) > now {
                store.leaving(path, true);
                return true;
            }
            away.remove(path);
            store.drop(path);
            false
        });
        waiting.retain(|path, _| found.files.contains_key(path));
        unread.retain(|path, _| found.files.contains_key(path));
    }

    /// Watches folders that are not; true if there were any.
    fn watch_folders(
        &mut self,
        folders: &BTreeMap<PathBuf, (u64, u64)>,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        self.watched.retain(|path, inode| {
            let same = folders.get(path) == Some(inode);
            if !same {
                // The system may have ended it already, with the folder.
                let _ = watcher.unwatch(path);
            }
            same
        });
        let mut new = false;
        for (path, inode) in folders {
            if self.watched.contains_key(path) {
                continue;
            }
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path.clone(), *inode);
                    new = true;
                }
                Err(error) => {
                    let place = crate::Place { file: path.as_path().into(), line: 0 };
                    let reason =
                        format!("cannot be watched ({error}): changes are noticed every {BACKSTOP:?} only");
                    problems.push(Problem::at(place, None, reason));
                }
            }
        }
        new
    }
}

fn parse_file(path: &Path) -> Option<Parsed> {
    std::fs::read(path).ok().map(|bytes| parse::parse(path, &bytes))
}
