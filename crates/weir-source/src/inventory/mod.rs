//! Everything that a question may be about, read once: for `weir` and its like, which do not follow.
//!
//! ```text
//!   files, stdin ──> documents ──┐                       ┌─> events: namespaces, pods, policies
//!                                ├──> keep ──> collect ──┤     and where they stand
//!   API server ────> lists ──────┘   only the fields     ├─> owners of pods, their declared ports
//!   (live)                           in use              ├─> workloads, Services, nodes
//!                                        │               └─> documents of the policies, with lines
//!                                        v
//!                                    a snapshot: the same objects as a manifest
//! ```
//!
//! [`keep`] says what of an object is in use. What it does not name is neither looked at nor written: no
//! environment, no images, no annotations but Weir's own.

mod collect;
pub mod keep;
#[cfg(feature = "cluster")]
pub mod live;
mod things;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use weir_compiler::object::{Event, ObjectKey};

use crate::manifests;
use crate::tree::Tree;
use crate::{Place, Problem};
use collect::Collector;
pub use things::{
    Backend, DeclaredPort, EndpointSlice, Node, Owner, PodDetails, Service, ServicePort, StandIn, TargetPort,
    Workload,
};

/// What standard input is called in places.
pub const STDIN: &str = "<stdin>";

/// All that was found.
#[derive(Debug, Default, Clone)]
pub struct Inventory {
    /// Namespaces, pods and policies.
    pub events: Vec<Event>,
    /// Where the event of the same index was read; line 0 and no file: from an API server.
    pub places: Vec<Place>,
    /// What could not be read or used.
    pub problems: Vec<Problem>,
    /// How many objects were of kinds that are of no use here.
    pub ignored: usize,
    /// What of pods is no part of [`Event::Pod`].
    pub pods: BTreeMap<ObjectKey, PodDetails>,
    /// Deployments and the like.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: BTreeMap<ObjectKey, Service>,
    /// Their endpoints.
    pub endpoint_slices: Vec<EndpointSlice>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// The policies as written, with their lines.
    pub policies: BTreeMap<ObjectKey, Tree>,
    /// Each object in the form of a snapshot, if that was asked for.
    pub kept: Vec<Tree>,
}

/// Reads files, folders, and standard input, which is given by its text and called `-` among the paths.
/// `keep`: whether [`Inventory::kept`] is wanted.
pub fn read(paths: &[PathBuf], stdin: Option<&[u8]>, keep: bool) -> Inventory {
    let mut collector = Collector::new(keep);
    let mut files = BTreeMap::new();
    for root in paths {
        if root.as_os_str() == "-" {
            files.insert(PathBuf::from(STDIN), ());
            continue;
        }
        let (found, problems) = manifests::find(root);
        collector.inventory.problems.extend(problems);
        files.extend(found.into_iter().map(|path| (path, ())));
    }
    for path in files.into_keys() {
        match (path == Path::new(STDIN), stdin) {
            (true, Some(text)) => collector.file(&path, text),
            _ => match std::fs::read(&path) {
                Ok(text) => collector.file(&path, &text),
                Err(error) => {
                    let place = Place { file: path.into(), line: 0 };
                    let problem = Problem::at(place, None, format!("cannot be read: {error}"));
                    collector.inventory.problems.push(problem);
                }
            },
        }
    }
    collector.finish()
}

#[cfg(test)]
mod tests;
