//! When an Event is due. Pure: the time is passed in.
//!
//! A state is told once it has lasted for a while, and told again only if it still lasts when the API server will have
//! forgotten the Event, or if it is another state. What is the case when a controller starts is not news: it
//! becomes news when it changes. Only that a policy cannot be enforced is told also then.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use weir_compiler::Isolated;
use weir_compiler::object::ObjectKey;
use weir_compiler::policy::Problem;
use weir_proto::Mode;

use super::limit::Limits;
use super::{Note, Reason};

/// A policy that selects no pod for so long is told: pods of a new policy may yet start.
const NO_POD: Duration = Duration::from_secs(30);
/// And of one policy not more often than this.
const NO_POD_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Until other nodes have said whether their kernels refuse the policy, too.
const OTHER_NODES: Duration = Duration::from_secs(5);
/// Until other pods have been relabelled, too.
const OTHER_PODS: Duration = Duration::from_secs(2);
/// What could not be told for so long is not told any more: pods are isolated, which is no news by then.
const TOO_LATE: Duration = Duration::from_secs(60);
/// What is wrong and lasts is told again: API servers keep an Event for an hour, unless told otherwise.
const AGAIN: Duration = Duration::from_secs(70 * 60);
/// Up to so many pods are told each by itself, too.
const FEW: usize = 5;
/// So many policies that isolate pods, and so many Events, may wait.
const WAITING: usize = 1024;
/// So many nodes and pods are named.
const NAMED: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct Due {
    map: ObjectKey,
    mode: Option<Mode>,
    /// All objects are known.
    began: bool,
    problems: BTreeMap<ObjectKey, Broken>,
    refused: BTreeMap<ObjectKey, Refused>,
    /// Of what `refused` has, by node.
    refusing: HashMap<String, BTreeSet<ObjectKey>>,
    empty: BTreeMap<ObjectKey, Empty>,
    isolating: BTreeMap<(ObjectKey, bool), Isolating>,
    /// Those that are about to be told.
    notes: VecDeque<Note>,
    limits: Limits,
    suppressed: u64,
}

#[derive(Debug)]
struct Broken {
    text: String,
    told: Option<Instant>,
    over: bool,
}

#[derive(Debug)]
struct Refused {
    since: Instant,
    told: Option<Instant>,
    /// What the kernel of each node says.
    nodes: BTreeMap<String, String>,
    /// Nodes whose kernels have taken it since.
    taken: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Empty {
    since: Option<Instant>,
    /// It was so when the controller started.
    known: bool,
    told: Option<Instant>,
}

#[derive(Debug)]
struct Isolating {
    since: Instant,
    pods: usize,
    ingress: usize,
    egress: usize,
    some: BTreeSet<ObjectKey>,
}

/// What is to be told now.
#[derive(Debug, Default)]
pub struct Ticked {
    /// In this order.
    pub notes: Vec<Note>,
    /// So many would have been due, and were too many.
    pub suppressed: u64,
}

impl Due {
    /// Nothing is known. The mode is said by this ConfigMap.
    pub fn new(map: ObjectKey) -> Self {
        Due {
            map,
            mode: None,
            began: false,
            problems: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusing: HashMap::new(),
            empty: BTreeMap::new(),
            isolating: BTreeMap::new(),
            notes: VecDeque::new(),
            limits: Limits::default(),
            suppressed: 0,
        }
    }

    /// A policy came or changed, and has these problems; `None`: it is gone.
    pub fn policy(&mut self, policy: &ObjectKey, problems: Option<&[Problem]>) {
        let Some(problems) = problems else {
            self.problems.remove(policy);
            self.empty.remove(policy);
            self.refused.remove(policy);
            for changed in [false, true] {
                self.isolating.remove(&(policy.clone(), changed));
            }
            return;
        };
        if problems.is_empty() {
            match self.problems.get_mut(policy) {
                Some(broken) if broken.told.is_some() => broken.over = true,
                // nobody has heard of it
                _ => drop(self.problems.remove(policy)),
            }
            return;
        }
        let text = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; and ");
        match self.problems.get_mut(policy) {
            Some(broken) if broken.text == text => broken.over = false,
            _ => drop(self.problems.insert(policy.clone(), Broken { text, told: None, over: false })),
        }
    }

    /// The source cannot read a policy, and says what is done instead. It says so once, and not when it is over.
    pub fn unreadable(&mut self, policy: &ObjectKey, why: &str) {
        if self.notes.len() < WAITING {
            self.say(Reason::CannotBeEnforced, policy, format!("It cannot be read: {why}"), why);
        } else {
            self.suppressed += 1;
        }
    }

    /// A policy that came or changed, or got its first pod or lost its last, selects any pod or none.
    pub fn selecting(&mut self, policy: &ObjectKey, any: bool, now: Instant) {
        if any {
            if let Some(empty) = self.empty.get_mut(policy) {
                (empty.since, empty.known) = (None, false);
                if empty.told.is_none() {
                    self.empty.remove(policy);
                }
            }
            return;
        }
        let empty = self.empty.entry(policy.clone()).or_default();
        if empty.since.is_some() {
            // it selected none before, so that it is the policy that changed
            *empty = Empty::default();
        }
        (empty.since, empty.known) = (Some(now), !self.began);
    }

    /// A policy isolates pods that were not isolated before.
    pub fn isolated(&mut self, isolated: &Isolated, now: Instant) {
        if !self.began || self.mode.is_some_and(|mode| !mode.enforces()) {
            return;
        }
        let waiting = self.isolating.len();
        let key = (isolated.policy.clone(), isolated.changed);
        if waiting >= WAITING && !self.isolating.contains_key(&key) {
            self.suppressed += 1;
            return;
        }
        let new = || Isolating { since: now, pods: 0, ingress: 0, egress: 0, some: BTreeSet::new() };
        let of = self.isolating.entry(key).or_insert_with(new);
        of.pods += isolated.pods;
        of.ingress += isolated.ingress;
        of.egress += isolated.egress;
        of.some.extend(isolated.some.iter().cloned());
        while of.some.len() > FEW {
            of.some.pop_last();
        }
    }

    /// All objects are known: what comes is new.
    pub fn begin(&mut self) {
        self.began = true;
    }

    /// What a node's kernel refuses, of all policies.
    pub fn refused(&mut self, node: &str, policies: &[(ObjectKey, String)], now: Instant) {
        let before = self.refusing.remove(node).unwrap_or_default();
        for policy in before.iter().filter(|policy| policies.iter().all(|(of, _)| of != *policy)) {
            let Some(refused) = self.refused.get_mut(policy) else { continue };
            refused.nodes.remove(node);
            refused.taken.insert(node.to_owned());
            if refused.nodes.is_empty() && refused.told.is_none() {
                self.refused.remove(policy);
            }
        }
        for (policy, why) in policies {
            let new = || Refused { since: now, told: None, nodes: BTreeMap::new(), taken: BTreeSet::new() };
            let refused = self.refused.entry(policy.clone()).or_insert_with(new);
            refused.taken.remove(node);
            refused.nodes.insert(node.to_owned(), why.clone());
        }
        if !policies.is_empty() {
            let policies = policies.iter().map(|(policy, _)| policy.clone());
            self.refusing.insert(node.to_owned(), policies.collect());
        }
    }

    /// No agent of the node is here any more: what its kernel does, another controller may know.
    pub fn left(&mut self, node: &str) {
        for policy in self.refusing.remove(node).unwrap_or_default() {
            let Some(refused) = self.refused.get_mut(&policy) else { continue };
            refused.nodes.remove(node);
            if refused.nodes.is_empty() && (refused.taken.is_empty() || refused.told.is_none()) {
                self.refused.remove(&policy);
            }
        }
    }

    /// The ConfigMap says a mode, in this version of it.
    pub fn mode(&mut self, mode: Mode, version: &str) {
        let Some(before) = self.mode.replace(mode).filter(|before| *before != mode) else { return };
        let (now, was) = (mode.as_str(), before.as_str());
        let (reason, text) = if mode.enforces() {
            let text =
                format!("Policies are enforced again, on all nodes: the mode is {now} (it was {was}).");
            (Reason::PoliciesEnforced, text)
        } else {
            self.isolating.clear();
            let logged = if mode.installs() { " What they would deny is logged: `weir logs`." } else { "" };
            let text = format!(
                "Policies are not enforced on any node: the mode is {now} (it was {was}).{logged} `weir status` tells \
                 which nodes have followed; mode=enforce puts policies in force again."
            );
            (Reason::PoliciesNotEnforced, text)
        };
        let state = format!("{now} {version}");
        if self.notes.len() >= WAITING {
            self.suppressed += 1;
            return;
        }
        self.notes.push_front(Note { reason, about: self.map.clone(), related: None, text, state });
    }

    /// What is due; at most so many.
    pub fn tick(&mut self, now: Instant, most: usize) -> Ticked {
        let room = most.min(self.limits.room(now));
        let steps =
            [Self::over, Self::broken, Self::refusals, Self::isolations, Self::without_pods, Self::again];
        for step in steps {
            if self.notes.len() < room {
                step(self, now, room);
            }
        }
        self.isolating.retain(|_, of| {
            let late = now.saturating_duration_since(of.since) >= TOO_LATE;
            self.suppressed += u64::from(late);
            !late
        });
        let mut ticked = Ticked::default();
        while ticked.notes.len() < room {
            let Some(note) = self.notes.pop_front() else { break };
            match self.limits.take(note.reason.kind(), &note.about, now) {
                true => ticked.notes.push(note),
                false => self.suppressed += 1,
            }
        }
        ticked.suppressed = std::mem::take(&mut self.suppressed);
        ticked
    }

    fn say(&mut self, reason: Reason, about: &ObjectKey, text: String, state: &str) {
        let (about, state) = (about.clone(), state.to_owned());
        self.notes.push_back(Note { reason, about, related: None, text, state });
    }

    /// What was wrong, was told, and is not wrong any more.
    fn over(&mut self, _: Instant, room: usize) {
        let over = self.problems.iter().filter(|(_, broken)| broken.over).map(|(policy, _)| policy.clone());
        for policy in over.take(room - self.notes.len()).collect::<Vec<_>>() {
            self.problems.remove(&policy);
            self.say(Reason::CanBeEnforced, &policy, "It can be enforced as it is written now.".into(), "");
        }
        let taken =
            self.refused.iter().filter(|(_, of)| of.nodes.is_empty()).map(|(policy, _)| policy.clone());
        for policy in taken.take(room.saturating_sub(self.notes.len())).collect::<Vec<_>>() {
            let Some(of) = self.refused.remove(&policy) else { continue };
            let nodes = some_of(of.taken.iter().map(String::as_str), of.taken.len());
            let text = format!("The kernel takes it again, on {nodes}: it is enforced there.");
            self.say(Reason::TakenByKernel, &policy, text, "");
        }
    }

    fn broken(&mut self, now: Instant, room: usize) {
        self.tell_broken(now, room, |told| told.is_none());
    }

    fn tell_broken(&mut self, now: Instant, room: usize, due: impl Fn(Option<Instant>) -> bool) {
        let due = self.problems.iter_mut().filter(|(_, broken)| !broken.over && due(broken.told));
        for (policy, broken) in due.take(room - self.notes.len()) {
            broken.told = Some(now);
            self.notes.push_back(Note {
                reason: Reason::CannotBeEnforced,
                about: policy.clone(),
                related: None,
                text: format!("It cannot be enforced as it is written: {}.", broken.text),
                state: broken.text.clone(),
            });
        }
    }

    fn refusals(&mut self, now: Instant, room: usize) {
        let lasts = |of: &Refused| now.saturating_duration_since(of.since) >= OTHER_NODES;
        self.tell_refused(now, room, |of| of.told.is_none() && lasts(of));
    }

    fn tell_refused(&mut self, now: Instant, room: usize, due: impl Fn(&Refused) -> bool) {
        let due = self.refused.iter_mut().filter(|(_, of)| !of.nodes.is_empty() && due(of));
        for (policy, of) in due.take(room - self.notes.len()) {
            of.told = Some(now);
            let nodes = some_of(of.nodes.keys().map(String::as_str), of.nodes.len());
            let why = of.nodes.values().next().map_or("", String::as_str);
            let text = format!(
                "The kernel refuses something of it, on {nodes}: the pods that it selects there are closed, and it is \
                 tried again each minute. The kernel says: {why}"
            );
            let (about, state) = (policy.clone(), String::new());
            self.notes.push_back(Note { reason: Reason::RefusedByKernel, about, related: None, text, state });
        }
    }

    fn isolations(&mut self, now: Instant, room: usize) {
        let due =
            self.isolating.iter().filter(|(_, of)| now.saturating_duration_since(of.since) >= OTHER_PODS);
        for key in due.map(|(key, _)| key.clone()).take(room - self.notes.len()).collect::<Vec<_>>() {
            let Some(of) = self.isolating.remove(&key) else { continue };
            let (policy, changed) = key;
            let few = of.pods <= FEW && of.pods == of.some.len();
            if changed || !few {
                let why = if changed { "" } else { ", since their labels have changed" };
                let names: Vec<String> = of.some.iter().map(ObjectKey::to_string).collect();
                let pods = some_of(names.iter().map(String::as_str), of.pods);
                let text =
                    format!("It isolates {} that were not isolated before{why}: {pods}.", of.how_many());
                self.say(Reason::IsolatesPods, &policy, text, if changed { "" } else { "labels" });
            }
            for pod in of.some.iter().filter(|_| few) {
                let directions = of.directions();
                let why = if changed { "" } else { ", since the pod's labels have changed" };
                let text = format!(
                    "NetworkPolicy {policy} isolates it for {directions}{why}; it was not isolated before. What is not \
                     allowed is denied from now on."
                );
                self.notes.push_back(Note {
                    reason: Reason::Isolated,
                    about: pod.clone(),
                    related: Some(policy.clone()),
                    text,
                    state: directions.to_owned(),
                });
            }
        }
    }

    fn without_pods(&mut self, now: Instant, room: usize) {
        let passed = |since: Option<Instant>, least| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= least)
        };
        self.empty.retain(|_, of| of.since.is_some() || !passed(of.told, NO_POD_AGAIN));
        let due = self.empty.iter_mut().filter(|(_, of)| {
            !of.known && passed(of.since, NO_POD) && (of.told.is_none() || passed(of.told, NO_POD_AGAIN))
        });
        for (policy, of) in due.take(room - self.notes.len()) {
            (of.told, of.known) = (Some(now), true);
            let text = "It selects no pod, and so has no effect: no pod of its namespace has the labels of its \
                        spec.podSelector, or only such that have finished or are in their node's network.";
            let (about, text, state) = (policy.clone(), text.to_owned(), String::new());
            self.notes.push_back(Note { reason: Reason::SelectsNoPod, about, related: None, text, state });
        }
    }

    fn again(&mut self, now: Instant, room: usize) {
        let long =
            |told: Option<Instant>| told.is_some_and(|told| now.saturating_duration_since(told) >= AGAIN);
        self.tell_broken(now, room, long);
        if self.notes.len() < room {
            self.tell_refused(now, room, |of| long(of.told));
        }
    }
}

impl Isolating {
    fn directions(&self) -> &'static str {
        match (self.ingress, self.egress) {
            (_, 0) => "ingress",
            (0, _) => "egress",
            _ => "ingress and egress",
        }
    }

    fn how_many(&self) -> String {
        let pods = |count: usize| format!("{count} {}", if count == 1 { "pod" } else { "pods" });
        if self.ingress > 0 && self.egress > 0 && (self.ingress, self.egress) != (self.pods, self.pods) {
            return format!("{} for ingress and {} for egress", pods(self.ingress), pods(self.egress));
        }
        format!("{} for {}", pods(self.pods), self.directions())
    }
}

/// Some of so many names.
fn some_of<'a>(names: impl Iterator<Item = &'a str>, all: usize) -> String {
    let named: Vec<&str> = names.take(NAMED).collect();
    let more = all.saturating_sub(named.len());
    let named = named.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}
