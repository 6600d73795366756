//! Folders and files of manifests, as `kubectl get -o yaml` or `-o json` prints them, or as people
//! write them.
//!
//! * Files: `*.yaml`, `*.yml`, `*.json`, in a folder and the folders below it; what begins with a
//!   dot is passed over. A file that is named itself may be called anything.
//! * Kinds: Namespace, Pod, NetworkPolicy (`networking.k8s.io/v1`), and Lists of them. Others are
//!   passed over.
//! * An object that is there twice: the first one counts, by path and then by line.
//! * An object without a namespace is in `default`.

mod files;
mod parse;
#[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "what follows a folder asks for more"))]
mod store;
pub(crate) mod text;
#[cfg(feature = "watch")]
mod watch;

use std::path::PathBuf;

use weir_compiler::object::Event;

use crate::{Place, Problem};
#[cfg(feature = "watch")]
pub use watch::watch;

/// What [`read`] has found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The objects.
    pub events: Vec<Event>,
    /// Where the event of the same index was read.
    pub places: Vec<Place>,
    /// What could not be read or used.
    pub problems: Vec<Problem>,
    /// How many objects were of kinds that do not matter to policy.
    pub ignored: usize,
}

/// Reads files and folders once. What can be read of a file that is broken further down is
/// in the result, beside the problem.
pub fn read(paths: &[PathBuf]) -> Loaded {
    let mut loaded = Loaded::default();
    let mut store = store::Store::default();
    for root in paths {
        let found = files::walk(root);
        loaded.problems.extend(found.problems);
        for path in found.files.into_keys() {
            // The same file may be named twice.
            if store.knows(&path) {
                continue;
            }
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let parsed = parse::parse(&path, &bytes);
                    loaded.ignored += parsed.ignored;
                    store.put(path, parsed);
                }
                Err(error) => loaded.problems.push(files::unreadable(path, &error)),
            }
        }
    }
    let changes = store.changes(&mut |_| None);
    loaded.problems.extend(changes.problems);
    (loaded.events, loaded.places) = changes.events.into_iter().unzip();
    loaded
}

/// The files at or below a path that are manifests, and what could not be looked at.
pub(crate) fn find(root: &std::path::Path) -> (Vec<PathBuf>, Vec<Problem>) {
    let found = files::walk(root);
    (found.files.into_keys().collect(), found.problems)
}

#[cfg(test)]
mod tests;
