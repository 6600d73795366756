//! Which object of which file is in force. Pure: no file is touched here.
//!
//! ```text
//!   file -> objects it has (digest each)      put, leaving, drop
//!   object -> files that have it, digest in force
//!                    │ changes(): of the touched objects, first file by path wins
//!                    v
//!                events, problems
//! ```
//!
//! Objects themselves are not kept. Where a file gives way to another that was parsed long ago
//! (the first of two with the same object is deleted), the other one is parsed again.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use weir_compiler::object::Event;

use super::parse::{Object, Parsed, State};
use crate::id::Digester;
use crate::{Id, Place, Problem};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    digester: Digester,
    /// In the order in which they were first put, which only `numbers` refers to.
    files: Vec<File>,
    numbers: HashMap<PathBuf, usize>,
    objects: HashMap<Id, Known>,
    touched: BTreeSet<Id>,
    /// Events of the objects that were put since the last `changes`.
    fresh: HashMap<(usize, Id), Event>,
    problems: Vec<Problem>,
}

#[derive(Debug, Default)]
struct File {
    path: PathBuf,
    objects: HashMap<Id, Entry>,
    /// What was told of it last, so that it is not told again.
    problems: Vec<Problem>,
    leaving: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    line: u64,
    digest: u64,
    /// It stands for a policy that could not be read.
    closed: bool,
}

#[derive(Debug, Default)]
struct Known {
    holders: Vec<usize>,
    force: Option<Force>,
    /// The holders that a duplicate was reported for.
    told: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Force {
    digest: u64,
    closed: bool,
}

/// What differs since the last time.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) events: Vec<(Event, Place)>,
    pub(super) problems: Vec<Problem>,
}

impl Store {
    /// Whether a file of this path has been put.
    pub(super) fn knows(&self, path: &Path) -> bool {
        self.numbers.contains_key(path)
    }

    /// Whether a file has any object.
    pub(super) fn has_objects(&self, path: &Path) -> bool {
        self.numbers.get(path).is_some_and(|&number| !self.files[number].objects.is_empty())
    }

    /// The file has this content now.
    pub(super) fn put(&mut self, path: PathBuf, parsed: Parsed) {
        let number = self.number(path);
        self.files[number].leaving = false;
        let before = std::mem::take(&mut self.files[number].objects);
        let mut problems = parsed.problems;
        let mut after = HashMap::with_capacity(parsed.objects.len());
        if parsed.broken && !before.is_empty() {
            // What is left of a file that is being written, or was written wrongly, says nothing
            // about what is not in it.
            problems
                .iter_mut()
                .for_each(|p| p.reason.push_str("; what this file held before stays in force"));
            after = before.clone();
        } else {
            for object in parsed.objects {
                self.put_object(number, object, &before, &mut after, &mut problems);
            }
        }
        for id in before.keys().filter(|id| !after.contains_key(*id)) {
            if let Some(known) = self.objects.get_mut(id) {
                known.holders.retain(|&holder| holder != number);
            }
        }
        for id in after.keys().filter(|id| !before.contains_key(*id)) {
            self.objects.entry(id.clone()).or_default().holders.push(number);
        }
        self.touched.extend(before.into_keys().chain(after.keys().cloned()));
        let file = &mut self.files[number];
        file.objects = after;
        self.problems.extend(problems.iter().filter(|problem| !file.problems.contains(problem)).cloned());
        file.problems = problems;
    }

    fn put_object(
        &mut self,
        number: usize,
        object: Object,
        before: &HashMap<Id, Entry>,
        after: &mut HashMap<Id, Entry>,
        problems: &mut Vec<Problem>,
    ) {
        let Object { id, line, state } = object;
        // A previous good version: this file's own, or the one that is in force.
        let good = before.get(&id).filter(|entry| !entry.closed).map(|entry| entry.digest).or_else(|| {
            let force = self.objects.get(&id)?.force.as_ref()?;
            (!force.closed).then_some(force.digest)
        });
        let (event, closed) = match (state, good) {
            (State::Good(event), _) => (event, false),
            (State::Closed(_, problem) | State::Wrong(problem), Some(digest)) => {
                problems.push(also(problem, "its previous version stays in force"));
                after.insert(id, Entry { line, digest, closed: false });
                return;
            }
            (State::Closed(event, problem), None) => {
                problems.push(also(
                    problem,
                    "until it is corrected, the pods that it selects (all of its namespace, \
                     if its podSelector cannot be read) are isolated in both directions",
                ));
                (event, true)
            }
            (State::Wrong(problem), None) => {
                problems.push(also(problem, "it is left out"));
                return;
            }
        };
        after.insert(id.clone(), Entry { line, digest: self.digester.digest(&event), closed });
        self.fresh.insert((number, id), event);
    }

    /// The file is no longer there, but may be about to come back under this or another name:
    /// other files go before it.
    pub(super) fn leaving(&mut self, path: &Path, leaving: bool) {
        if let Some(&number) = self.numbers.get(path)
            && self.files[number].leaving != leaving
        {
            self.files[number].leaving = leaving;
            self.touched.extend(self.files[number].objects.keys().cloned());
        }
    }

    /// The file is gone.
    pub(super) fn drop(&mut self, path: &Path) {
        let Some(&number) = self.numbers.get(path) else { return };
        let file = &mut self.files[number];
        file.problems.clear();
        file.leaving = false;
        for id in std::mem::take(&mut file.objects).into_keys() {
            if let Some(known) = self.objects.get_mut(&id) {
                known.holders.retain(|&holder| holder != number);
            }
            self.touched.insert(id);
        }
    }

    /// What differs since the last call. `parse_again` reads a file that has not changed.
    pub(super) fn changes(&mut self, parse_again: &mut dyn FnMut(&Path) -> Option<Parsed>) -> Changes {
        let mut changes = Changes { events: Vec::new(), problems: std::mem::take(&mut self.problems) };
        let mut fresh = std::mem::take(&mut self.fresh);
        let mut parsed_again = BTreeSet::new();
        let mut events = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(known) = self.objects.get_mut(&id) else { continue };
            let files = &self.files;
            known.holders.sort_by_key(|&number| order(files, number));
            let Some(&winner) = known.holders.first() else {
                if known.force.is_some() {
                    events.push((GONE, id.clone().gone(), Place { file: PathBuf::new().into(), line: 0 }));
                }
                self.objects.remove(&id);
                continue;
            };
            changes.problems.extend(duplicate(files, &id, known));
            let entry = &files[winner].objects[&id];
            if known.force.as_ref().is_some_and(|force| force.digest == entry.digest) {
                continue;
            }
            if !fresh.contains_key(&(winner, id.clone())) && parsed_again.insert(winner) {
                for Object { id, state, .. } in parse_again(&files[winner].path).unwrap_or_default().objects {
                    if let State::Good(event) | State::Closed(event, _) = state {
                        fresh.entry((winner, id)).or_insert(event);
                    }
                }
            }
            // Not there: the file has changed meanwhile, and will be put again.
            let Some(event) = fresh.remove(&(winner, id)) else { continue };
            let force = Force { digest: self.digester.digest(&event), closed: entry.closed };
            if known.force.replace(force.clone()).is_some_and(|before| before.digest == force.digest) {
                continue;
            }
            let place = Place { file: files[winner].path.clone().into(), line: entry.line };
            events.push((order(files, winner), event, place));
        }
        // In the order of the files, as a person would read them; what is gone, last.
        events.sort_by(|(a, _, at_a), (b, _, at_b)| a.cmp(b).then(at_a.line.cmp(&at_b.line)));
        changes.events = events.into_iter().map(|(_, event, place)| (event, place)).collect();
        changes
    }

    fn number(&mut self, path: PathBuf) -> usize {
        if let Some(&number) = self.numbers.get(&path) {
            return number;
        }
        let number = self.files.len();
        self.files.push(File { path: path.clone(), ..File::default() });
        self.numbers.insert(path, number);
        number
    }
}

/// Where a file stands among others: leaving ones behind those that stay, then by path.
type Order<'a> = (bool, Option<&'a Path>);

/// What is gone comes behind the files that stay.
const GONE: Order<'static> = (true, None);

fn order(files: &[File], number: usize) -> Order<'_> {
    (files[number].leaving, Some(&files[number].path))
}

/// Two files that stay have the same object, and nobody has been told.
fn duplicate(files: &[File], id: &Id, known: &mut Known) -> Option<Problem> {
    let staying: Vec<usize> =
        known.holders.iter().copied().filter(|&holder| !files[holder].leaving).collect();
    if staying.len() < 2 {
        known.told.clear();
        return None;
    }
    if staying == known.told {
        return None;
    }
    let place = |number: usize| Place {
        file: files[number].path.clone().into(),
        line: files[number].objects[id].line,
    };
    let (first, second) = (place(staying[0]), place(staying[1]));
    known.told = staying;
    let reason = format!("is also in {first}, which is the one that counts: remove one of them");
    Some(Problem::at(second, Some(id.clone()), reason))
}

fn also(mut problem: Problem, consequence: &str) -> Problem {
    problem.reason.push_str("; ");
    problem.reason.push_str(consequence);
    problem
}
