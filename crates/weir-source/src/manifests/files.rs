//! Which files there are.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Place, Problem};

/// Deeper folders are passed over: a link that leads upwards ends here at the latest.
pub(super) const MAX_DEPTH: usize = 32;

/// What is below a path.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Manifests, with what tells two versions of them apart.
    pub(super) files: BTreeMap<PathBuf, Signature>,
    /// Folders in which a change may change the answer, with what tells a new one of the same name apart.
    pub(super) folders: BTreeMap<PathBuf, (u64, u64)>,
    /// Files and folders that could not be looked at: what was known of them before still counts.
    pub(super) unreadable: Vec<PathBuf>,
    /// The same, for people.
    pub(super) problems: Vec<Problem>,
}

impl Found {
    fn add_folder(&mut self, path: &Path) {
        let inode = std::fs::metadata(path).map_or((0, 0), |metadata| inode(&metadata));
        self.folders.insert(path.to_owned(), inode);
    }
}

/// Changes when a file does, for all but two writes of the same length within a tick of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// The file itself, for a link (ConfigMap volumes are made of them).
    pub(super) target: Option<PathBuf>,
    /// Bytes.
    pub(super) len: u64,
    modified: Option<std::time::SystemTime>,
    inode: (u64, u64),
}

impl Signature {
    fn new(target: Option<PathBuf>, metadata: &Metadata) -> Self {
        Signature { target, len: metadata.len(), modified: metadata.modified().ok(), inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

/// Looks for manifests: the path itself if it is a file, else all in the folder.
pub(super) fn walk(root: &Path) -> Found {
    let mut found = Found::default();
    match std::fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => {
            folder(root, 0, &mut HashSet::new(), &mut found);
        }
        Ok(metadata) => {
            file(root.to_owned(), &metadata, &mut found);
        }
        Err(error) => unreadable_in(root, &error, &mut found),
    }
    found
}

fn folder(path: &Path, depth: usize, above: &mut HashSet<PathBuf>, found: &mut Found) {
    // A link to a folder that it is in.
    let Ok(real) = path.canonicalize() else { return };
    if depth > MAX_DEPTH || !above.insert(real.clone()) {
        return;
    }
    found.add_folder(path);
    match std::fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) if entry.file_name().as_encoded_bytes().starts_with(b".") => {}
                    Ok(entry) => entry_of_folder(entry.path(), depth, above, found),
                    Err(error) => unreadable_in(path, &error, found),
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => {}
        Err(error) => unreadable_in(path, &error, found),
    }
    above.remove(&real);
}

fn entry_of_folder(path: PathBuf, depth: usize, above: &mut HashSet<PathBuf>, found: &mut Found) {
    let named_so = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => folder(&path, depth + 1, above, found),
        Ok(metadata) if named_so && metadata.is_file() => file(path, &metadata, found),
        // Sockets, pipes and the like would block.
        Ok(_) => {}
        // Gone since, or a link that leads nowhere: the same as gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => unreadable_in(&path, &error, found),
    }
}

fn file(path: PathBuf, metadata: &Metadata, found: &mut Found) {
    let link = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
    let target = link.then(|| path.canonicalize().ok()).flatten();
    if let Some(folder) = target.as_deref().and_then(Path::parent) {
        found.add_folder(folder);
    }
    found.files.insert(path, Signature::new(target, metadata));
}

fn unreadable_in(path: &Path, error: &io::Error, found: &mut Found) {
    found.unreadable.push(path.to_owned());
    found.problems.push(unreadable(path.to_owned(), error));
}

/// The problem of a path that cannot be read.
pub(super) fn unreadable(path: PathBuf, error: &io::Error) -> Problem {
    Problem::at(Place { file: path.into(), line: 0 }, None, format!("cannot be read: {error}"))
}
