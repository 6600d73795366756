//! From documents to an [`Inventory`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use weir_compiler::object::{Event, ObjectKey};

use super::Inventory;
use super::keep::{Extra, What, keep};
use super::things::{EndpointSlice, Node, PodDetails, Service, Workload, key};
use crate::convert::{self, Document, Outcome};
use crate::manifests::text;
use crate::tree::{Error, Tree, Value};
use crate::{Id, Kind, Place, Problem};

/// Takes documents one by one. Of an object that is there twice, the first counts.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) inventory: Inventory,
    seen: HashMap<(&'static str, ObjectKey), Place>,
    keep: bool,
}

impl Collector {
    pub(super) fn new(keep: bool) -> Collector {
        Collector { keep, ..Collector::default() }
    }

    pub(super) fn finish(self) -> Inventory {
        self.inventory
    }

    /// The text of a file; `path` is for places.
    pub(super) fn file(&mut self, path: &Path, bytes: &[u8]) {
        let path = Arc::from(path);
        for (line, reason) in text::each(bytes, &mut |tree| self.document(&path, &tree, None, false)) {
            let reason = format!("not readable as YAML or JSON: {reason}");
            self.problem(Place { file: Arc::clone(&path), line }, None, reason);
        }
    }

    fn document(&mut self, path: &Arc<Path>, tree: &Tree, default: Option<What>, in_list: bool) {
        let place = Place { file: Arc::clone(path), line: tree.line };
        if let Some(what) = self.extra(tree, default) {
            return self.object(what, tree, place);
        }
        let kind = tree.text("kind").unwrap_or_default();
        if let (Some(extra), Some(Value::Seq(items)), false) =
            (Extra::in_list(kind), tree.get("items").map(|i| &i.value), in_list)
        {
            return items.iter().for_each(|item| self.document(path, item, Some(What::Extra(extra)), true));
        }
        let default = match default {
            Some(What::Core(kind)) => Some(kind),
            _ => None,
        };
        match convert::classify(tree, default) {
            Document::Object(kind) => self.object(What::Core(kind), tree, place),
            Document::List(items, kind) if !in_list => {
                items.iter().for_each(|item| self.document(path, item, kind.map(What::Core), true));
            }
            Document::List(..) => {
                self.problem(place, None, "a List within a List; it is left out".to_owned());
            }
            Document::Other => self.inventory.ignored += 1,
            Document::Unsupported(reason) => self.problem(place, None, reason),
        }
    }

    fn extra(&self, tree: &Tree, default: Option<What>) -> Option<What> {
        match (tree.text("kind"), default) {
            (None, Some(What::Extra(extra))) => Some(What::Extra(extra)),
            (Some(kind), _) => {
                Extra::named(kind, tree.text("apiVersion").unwrap_or_default()).map(What::Extra)
            }
            _ => None,
        }
    }

    /// One object of a known kind.
    pub(super) fn object(&mut self, what: What, tree: &Tree, place: Place) {
        match what {
            What::Core(kind) => self.core(kind, tree, place),
            What::Extra(extra) => self.thing(extra, tree, place),
        }
    }

    fn core(&mut self, kind: Kind, tree: &Tree, place: Place) {
        let file = Arc::clone(&place.file);
        let at = |line: u64| Place { file: Arc::clone(&file), line };
        let event = match convert::object(kind, tree) {
            Outcome::Good(event, notes) => {
                let id = Id::of(&event);
                for note in notes {
                    self.problem(at(note.line), Some(id.clone()), note.to_string());
                }
                event
            }
            Outcome::Closed(event, error) => {
                let reason = format!(
                    "{error}; an API server refuses it; until it is corrected, the pods that it selects (all of its \
                     namespace, if its podSelector cannot be read) are taken as isolated in both directions"
                );
                self.problem(at(error.line), Some(Id::of(&event)), reason);
                event
            }
            Outcome::Wrong(id, error) => return self.wrong(kind, id, &error, at(error.line)),
        };
        let id = Id::of(&event);
        if self.is_there(kind.as_str(), id.key, &place, Some(kind)) {
            return;
        }
        match &event {
            Event::Pod(pod) => {
                self.inventory.pods.insert(pod.key.clone(), PodDetails::read(tree));
            }
            Event::Policy(policy) => {
                self.inventory.policies.insert(policy.key(), tree.clone());
            }
            _ => {}
        }
        if self.keep {
            self.inventory.kept.push(keep(What::Core(kind), tree));
        }
        self.inventory.events.push(event);
        self.inventory.places.push(place);
    }

    fn wrong(&mut self, kind: Kind, id: Option<Id>, error: &Error, place: Place) {
        let reason = match id {
            Some(_) => format!("{error}; it is left out"),
            None => format!("{kind}: {error}"),
        };
        self.problem(place, id, reason);
    }

    fn thing(&mut self, extra: Extra, tree: &Tree, place: Place) {
        let Some(mut key) = key(tree) else {
            let reason = format!("{}: an object needs a name; it is left out", extra.as_str());
            return self.problem(place, None, reason);
        };
        if extra == Extra::Node {
            key.namespace.clear();
        }
        if self.is_there(extra.as_str(), key.clone(), &place, None) {
            return;
        }
        let inventory = &mut self.inventory;
        let read = match extra {
            Extra::Workload(kind) => {
                Workload::read(kind, tree, place.clone()).map(|w| inventory.workloads.push(w))
            }
            Extra::Service => Service::read(tree).map(|s| drop(inventory.services.insert(s.key.clone(), s))),
            // of something that is no Service's: nobody asks for it
            Extra::EndpointSlice => {
                inventory.endpoint_slices.extend(EndpointSlice::read(tree));
                Some(())
            }
            Extra::Node => Node::read(tree).map(|n| drop(inventory.nodes.insert(n.name.clone(), n))),
        };
        if read.is_none() {
            let what = if matches!(extra, Extra::Workload(_)) { "a pod template" } else { "a spec" };
            let reason = format!("{} {key} has not {what}; it is left out", extra.as_str());
            return self.problem(place, None, reason);
        }
        if self.keep {
            self.inventory.kept.push(keep(What::Extra(extra), tree));
        }
    }

    /// Whether an object was there before, which is told.
    fn is_there(&mut self, kind: &'static str, key: ObjectKey, place: &Place, core: Option<Kind>) -> bool {
        use std::collections::hash_map::Entry;
        let (first, key) = match self.seen.entry((kind, key)) {
            Entry::Vacant(entry) => {
                entry.insert(place.clone());
                return false;
            }
            Entry::Occupied(entry) => (entry.get().clone(), entry.key().1.clone()),
        };
        let what = if core.is_some() { String::new() } else { format!("{kind} {key} ") };
        let id = core.map(|kind| Id { kind, key });
        let reason = if first.file == place.file {
            format!(
                "{what}is there twice in this file, first in line {}, which is the one that counts",
                first.line
            )
        } else {
            format!("{what}is also in {first}, which is the one that counts: remove one of them")
        };
        self.problem(place.clone(), id, reason);
        true
    }

    fn problem(&mut self, place: Place, object: Option<Id>, reason: String) {
        let place = (!place.file.as_os_str().is_empty()).then_some(place);
        self.inventory.problems.push(Problem { place, object, reason });
    }
}
