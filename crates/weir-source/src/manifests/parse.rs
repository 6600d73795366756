//! From the text of one file to its objects.

use std::collections::HashMap;
use std::path::Path;

use weir_compiler::object::Event;

use super::text;
use crate::convert::{self, Document, Outcome};
use crate::tree::{Error, Tree};
use crate::{Id, Kind, Place, Problem};

/// One file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects, in the order of the text; each is there once.
    pub(super) objects: Vec<Object>,
    /// What is wrong with the file.
    pub(super) problems: Vec<Problem>,
    /// It is no YAML from some line on: what it was before counts more than what is left of it.
    pub(super) broken: bool,
    /// Objects of kinds that do not matter.
    pub(super) ignored: usize,
}

/// One object of a file.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) id: Id,
    pub(super) line: u64,
    pub(super) state: State,
}

/// What can be said of an object.
#[derive(Debug)]
pub(super) enum State {
    Good(Event),
    /// Cannot be read; the event closes what it selects.
    Closed(Event, Problem),
    /// Cannot be read, and there is nothing to take its place.
    Wrong(Problem),
}

/// Parses a file; `path` is for the messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Parsed {
    let text = text::read(bytes);
    let mut reader = Reader { path, parsed: Parsed::default(), seen: HashMap::new() };
    reader.parsed.broken = !text.errors.is_empty();
    for (line, reason) in text.errors {
        reader.problem(line, None, format!("not readable as YAML or JSON: {reason}"));
    }
    for document in &text.documents {
        reader.document(document, None, false);
    }
    reader.parsed
}

struct Reader<'a> {
    path: &'a Path,
    parsed: Parsed,
    seen: HashMap<Id, u64>,
}

impl Reader<'_> {
    fn document(&mut self, tree: &Tree, default: Option<Kind>, in_list: bool) {
        match convert::classify(tree, default) {
            Document::Object(kind) => self.object(kind, tree),
            // Lists in lists are no Kubernetes, and would let a text nest without bound.
            Document::List(items, kind) if !in_list => {
                items.iter().for_each(|item| self.document(item, kind, true));
            }
            Document::List(..) => {
                self.problem(tree.line, None, "a List within a List; it is left out".into())
            }
            Document::Other => {
                tracing::debug!(file = %self.path.display(), line = tree.line, kind = tree.text("kind"), "passed over");
                self.parsed.ignored += 1;
            }
            Document::Unsupported(reason) => self.problem(tree.line, None, reason),
        }
    }

    fn object(&mut self, kind: Kind, tree: &Tree) {
        let (id, state) = match convert::object(kind, tree) {
            Outcome::Good(event, notes) => {
                let id = Id::of(&event);
                for note in notes {
                    self.problem(note.line, Some(id.clone()), note.to_string());
                }
                (id, State::Good(event))
            }
            Outcome::Closed(event, error) => {
                let id = Id::of(&event);
                let problem = self.error(&error, Some(id.clone()));
                (id, State::Closed(event, problem))
            }
            Outcome::Wrong(Some(id), error) => {
                let problem = self.error(&error, Some(id.clone()));
                (id, State::Wrong(problem))
            }
            Outcome::Wrong(None, error) => {
                let problem = self.error(&error, None);
                return self
                    .parsed
                    .problems
                    .push(Problem { reason: format!("{kind}: {}", problem.reason), ..problem });
            }
        };
        if let Some(first) = self.seen.insert(id.clone(), tree.line) {
            self.seen.insert(id.clone(), first);
            let reason =
                format!("is there twice in this file, first in line {first}, which is the one that counts");
            return self.problem(tree.line, Some(id), reason);
        }
        self.parsed.objects.push(Object { id, line: tree.line, state });
    }

    fn error(&self, error: &Error, id: Option<Id>) -> Problem {
        Problem::at(self.place(error.line), id, error.to_string())
    }

    fn problem(&mut self, line: u64, id: Option<Id>, reason: String) {
        self.parsed.problems.push(Problem::at(self.place(line), id, reason));
    }

    fn place(&self, line: u64) -> Place {
        Place { file: self.path.into(), line }
    }
}
