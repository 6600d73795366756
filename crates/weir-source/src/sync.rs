//! What differs between what a server has told before and what it tells now. Pure.
//!
//! ```text
//!   start(kind) object* end(kind)     a list: what it does not have any more is gone, but only
//!                                     when its end has come; a list that starts again begins anew
//!   object, gone                      changes after it
//!                │
//!                v
//!   pending: one event per object at most, however slow the receiver
//!                │ take()
//!                v
//!   events, synced (all kinds were listed to the end once)
//! ```

use std::collections::{HashMap, VecDeque};

use weir_compiler::object::{Event, ObjectKey};

use crate::convert::Outcome;
use crate::id::Digester;
use crate::{Id, Kind, Problem};

/// See the module.
#[derive(Debug, Default)]
pub struct Differ {
    digester: Digester,
    tables: [Table; Kind::ALL.len()],
    pending: HashMap<Id, Event>,
    /// The order in which the pending ones came.
    order: VecDeque<Id>,
    /// What was complained of last, by object, so that it is told once.
    complaints: HashMap<Id, String>,
    announced: bool,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<ObjectKey, Known>,
    /// Counts lists; an object that the current one has, has its number.
    list: u32,
    listing: bool,
    complete: bool,
}

#[derive(Debug)]
struct Known {
    digest: u64,
    /// It stands for a policy that could not be read.
    closed: bool,
    list: u32,
}

impl Differ {
    /// A list of a kind begins.
    pub fn start(&mut self, kind: Kind) {
        let table = self.table(kind);
        table.list = table.list.wrapping_add(1);
        table.listing = true;
    }

    /// An object as it is now, from a list or as a change. Returns what is to be told about it.
    pub fn object(&mut self, outcome: Outcome) -> Option<Problem> {
        match outcome {
            Outcome::Good(event, notes) => {
                let id = Id::of(&event);
                self.put(&id, event, false);
                let texts: Vec<String> = notes.iter().map(ToString::to_string).collect();
                self.complain(id, texts.join("; "))
            }
            Outcome::Closed(event, error) => {
                let id = Id::of(&event);
                let list = self.table(id.kind).list;
                let consequence = match self.table(id.kind).known.get_mut(&id.key) {
                    Some(known) if !known.closed => {
                        known.list = list;
                        "its previous version stays in force"
                    }
                    _ => {
                        self.put(&id, event, true);
                        "until it is corrected, the pods that it selects (all of its namespace, \
                         if its podSelector cannot be read) are isolated in both directions"
                    }
                };
                self.complain(id, format!("{error}; {consequence}"))
            }
            Outcome::Wrong(Some(id), error) => {
                let list = self.table(id.kind).list;
                if let Some(known) = self.table(id.kind).known.get_mut(&id.key) {
                    known.list = list;
                }
                self.complain(id, format!("{error}; what was known of it before stays in force"))
            }
            Outcome::Wrong(None, error) => Some(Problem::general(error.to_string())),
        }
    }

    /// An object is gone.
    pub fn gone(&mut self, id: Id) {
        if self.table(id.kind).known.remove(&id.key).is_some() {
            self.complaints.remove(&id);
            self.push(id.clone(), id.gone());
        }
    }

    /// The list of a kind is complete.
    pub fn end(&mut self, kind: Kind) {
        let table = self.table(kind);
        if !std::mem::take(&mut table.listing) {
            return;
        }
        table.complete = true;
        let list = table.list;
        let absent: Vec<ObjectKey> =
            table.known.iter().filter(|(_, known)| known.list != list).map(|(key, _)| key.clone()).collect();
        for key in absent {
            self.gone(Id { kind, key });
        }
    }

    /// Whether [`take`](Differ::take) has anything to give.
    pub fn has_news(&self) -> bool {
        !self.order.is_empty() || (self.synced() && !self.announced)
    }

    /// All that is pending, and whether all kinds have been listed to the end once.
    pub fn take(&mut self) -> (Vec<Event>, bool) {
        let synced = self.synced();
        self.announced |= synced;
        let events = self.order.drain(..).filter_map(|id| self.pending.remove(&id)).collect();
        (events, synced)
    }

    fn synced(&self) -> bool {
        self.tables.iter().all(|table| table.complete)
    }

    fn put(&mut self, id: &Id, event: Event, closed: bool) {
        let digest = self.digester.digest(&event);
        let table = self.table(id.kind);
        let known = Known { digest, closed, list: table.list };
        if table.known.insert(id.key.clone(), known).is_none_or(|before| before.digest != digest) {
            self.push(id.clone(), event);
        }
    }

    fn push(&mut self, id: Id, event: Event) {
        if self.pending.insert(id.clone(), event).is_none() {
            self.order.push_back(id);
        }
    }

    fn complain(&mut self, id: Id, text: String) -> Option<Problem> {
        if text.is_empty() {
            self.complaints.remove(&id);
            return None;
        }
        if self.complaints.insert(id.clone(), text.clone()).as_ref() == Some(&text) {
            return None;
        }
        Some(Problem { place: None, object: Some(id), reason: text })
    }

    fn table(&mut self, kind: Kind) -> &mut Table {
        &mut self.tables[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Error;
    use weir_compiler::object::{Namespace, Policy};

    fn namespace(name: &str) -> Event {
        Event::Namespace(Namespace { name: name.into(), ..Namespace::default() })
    }

    fn labelled(name: &str, label: &str) -> Event {
        let labels = [("l".to_owned(), label.to_owned())].into();
        Event::Namespace(Namespace { name: name.into(), labels, ..Namespace::default() })
    }

    fn good(event: Event) -> Outcome {
        Outcome::Good(event, Vec::new())
    }

    fn error() -> Error {
        Error { line: 0, path: "spec".into(), message: "bad".into() }
    }

    fn policy(name: &str) -> Event {
        Event::Policy(Policy { namespace: "n".into(), name: name.into(), ..Policy::default() })
    }

    fn closed(name: &str) -> Event {
        let mut policy = Policy { namespace: "n".into(), name: name.into(), ..Policy::default() };
        policy.spec.policy_types = vec!["Ingress".into(), "Egress".into()];
        Event::Policy(policy)
    }

    fn list(differ: &mut Differ, kind: Kind, events: Vec<Event>) {
        differ.start(kind);
        events.into_iter().for_each(|event| assert_eq!(differ.object(good(event)), None));
        differ.end(kind);
    }

    fn synced(namespaces: Vec<Event>) -> Differ {
        let mut differ = Differ::default();
        list(&mut differ, Kind::Pod, vec![]);
        list(&mut differ, Kind::Policy, vec![]);
        list(&mut differ, Kind::Namespace, namespaces);
        differ.take();
        differ
    }

    #[test]
    fn synced_only_when_all_kinds_are_complete() {
        let mut differ = Differ::default();
        assert!(!differ.has_news());
        list(&mut differ, Kind::Namespace, vec![namespace("a")]);
        assert_eq!(differ.take(), (vec![namespace("a")], false));
        list(&mut differ, Kind::Pod, vec![]);
        assert!(!differ.has_news());
        differ.start(Kind::Policy);
        assert!(!differ.has_news());
        differ.end(Kind::Policy);
        assert!(differ.has_news(), "an empty cluster is synced too");
        assert_eq!(differ.take(), (vec![], true));
        assert!(!differ.has_news());
    }

    #[test]
    fn a_complete_list_takes_away_what_it_lacks() {
        let mut differ = synced(vec![namespace("a"), namespace("b")]);
        list(&mut differ, Kind::Namespace, vec![namespace("b"), namespace("c")]);
        let (mut events, synced) = differ.take();
        events.sort_by_key(Id::of);
        assert_eq!(events, [Event::NamespaceGone("a".into()), namespace("c")]);
        assert!(synced);
    }

    #[test]
    fn a_partial_list_takes_away_nothing() {
        let mut differ = synced(vec![namespace("a"), namespace("b")]);
        differ.start(Kind::Namespace);
        differ.object(good(namespace("a")));
        // It broke off; the next one has both.
        assert!(!differ.has_news());
        list(&mut differ, Kind::Namespace, vec![namespace("b"), namespace("a")]);
        assert_eq!(differ.take(), (vec![], true));
        // And what only the broken one had is gone after a complete one.
        differ.start(Kind::Namespace);
        differ.object(good(namespace("x")));
        list(&mut differ, Kind::Namespace, vec![namespace("b"), namespace("a")]);
        assert_eq!(differ.take().0, [Event::NamespaceGone("x".into())]);
    }

    #[test]
    fn an_end_without_a_start_says_nothing() {
        let mut differ = Differ::default();
        differ.end(Kind::Namespace);
        assert!(!differ.synced());
        let mut differ = synced(vec![namespace("a")]);
        differ.end(Kind::Namespace);
        assert!(!differ.has_news());
    }

    #[test]
    fn equal_versions_are_dropped_and_pending_ones_coalesced() {
        let mut differ = synced(vec![namespace("a")]);
        differ.object(good(namespace("a")));
        assert!(!differ.has_news());
        differ.object(good(labelled("a", "1")));
        differ.object(good(labelled("a", "2")));
        assert_eq!(differ.take(), (vec![labelled("a", "2")], true));
        differ.gone(Id::namespace("a"));
        differ.object(good(labelled("a", "3")));
        assert_eq!(differ.take(), (vec![labelled("a", "3")], true));
        differ.gone(Id::namespace("never heard of"));
        assert!(!differ.has_news());
    }

    #[test]
    fn an_unreadable_policy_keeps_its_previous_version() {
        let mut differ = synced(vec![]);
        differ.object(good(policy("p")));
        differ.take();
        let problem = differ.object(Outcome::Closed(closed("p"), error())).expect("told");
        assert!(
            problem.to_string().contains("NetworkPolicy n/p: spec: bad; its previous version stays"),
            "{problem}"
        );
        assert_eq!(differ.object(Outcome::Closed(closed("p"), error())), None, "told once");
        assert!(!differ.has_news());
        // A list that has it only in its unreadable form does not take it away.
        differ.start(Kind::Policy);
        differ.object(Outcome::Closed(closed("p"), error()));
        differ.end(Kind::Policy);
        assert!(!differ.has_news());
    }

    #[test]
    fn an_unreadable_policy_without_a_previous_version_closes() {
        let mut differ = synced(vec![]);
        let problem = differ.object(Outcome::Closed(closed("p"), error())).expect("told");
        assert!(problem.reason.contains("isolated in both directions"), "{problem}");
        assert_eq!(differ.take().0, [closed("p")]);
        differ.object(good(policy("p")));
        assert_eq!(differ.take().0, [policy("p")]);
        differ.gone(Id::of(&policy("p")));
        assert_eq!(differ.take().0, [Id::of(&policy("p")).gone()]);
    }
}
