//! When Events are due, and how many: the time is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weir_compiler::Isolated;
use weir_compiler::object::ObjectKey;
use weir_compiler::policy::{Effect, Problem};
use weir_controller::events::{Bucket, Due, Note, Reason};
use weir_proto::Mode;

fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn problem(reason: &str) -> Problem {
    let path = "spec.ingress[0].from[0].ipBlock.cidr".to_owned();
    Problem { path, reason: reason.to_owned(), effect: Effect::ClauseMatchesNothing }
}

fn isolated(policy: &str, changed: bool, ingress: usize, egress: usize, pods: &[&str]) -> Isolated {
    let (policy, some) = (key(policy), pods.iter().take(5).map(|pod| key(pod)).collect());
    Isolated { policy, changed, pods: pods.len(), ingress, egress, some }
}

/// A controller, and a clock.
struct World {
    due: Due,
    start: Instant,
    now: Instant,
}

impl World {
    fn new() -> World {
        let start = Instant::now();
        World { due: Due::new(key("weir-system/weir-mode")), start, now: start }
    }

    fn begun() -> World {
        let mut world = World::new();
        world.due.begin();
        world
    }

    /// What is told in so many seconds, as the hub's thread asks.
    fn pass(&mut self, seconds: u64) -> Vec<Note> {
        let (until, mut notes) = (self.now + Duration::from_secs(seconds), Vec::new());
        while self.now < until {
            self.now = (self.now + Duration::from_secs(5)).min(until);
            notes.extend(self.due.tick(self.now, 64).notes);
        }
        notes
    }

    fn broken(&mut self, policy: &str, problems: &[Problem]) {
        self.due.policy(&key(policy), Some(problems));
    }

    fn selecting(&mut self, policy: &str, any: bool) {
        self.due.selecting(&key(policy), any, self.now);
    }

    fn isolated(&mut self, isolated: &Isolated) {
        self.due.isolated(isolated, self.now);
    }

    fn refused(&mut self, node: &str, policies: &[&str]) {
        let all: Vec<_> = policies.iter().map(|policy| (key(policy), "too large".to_owned())).collect();
        self.due.refused(node, &all, self.now);
    }
}

fn told(notes: &[Note]) -> Vec<(Reason, String)> {
    notes.iter().map(|note| (note.reason, note.about.to_string())).collect()
}

fn one(notes: &[Note], reason: Reason, about: &str) -> String {
    assert_eq!(told(notes), [(reason, about.to_owned())], "{notes:?}");
    notes[0].text.clone()
}

#[test]
fn what_cannot_be_enforced_is_told_once_with_where_why_and_what_is_done_and_so_is_its_end() {
    let mut world = World::begun();
    world.broken("a/p", &[problem("10.0.0.0/99 is no CIDR"), problem("and this neither")]);
    let text = one(&world.pass(60), Reason::CannotBeEnforced, "a/p");
    for part in
        ["spec.ingress[0].from[0].ipBlock.cidr", "10.0.0.0/99 is no CIDR; it matches nothing", "this neither"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    // told again by the source
    world.broken("a/p", &[problem("10.0.0.0/99 is no CIDR"), problem("and this neither")]);
    assert_eq!(told(&world.pass(3600)), []);
    // it lasts, and the API server has forgotten
    one(&world.pass(1200), Reason::CannotBeEnforced, "a/p");
    // another problem is another Event
    world.broken("a/p", &[problem("another")]);
    assert!(one(&world.pass(60), Reason::CannotBeEnforced, "a/p").contains("another"));
    world.broken("a/p", &[]);
    world.broken("a/p", &[]);
    one(&world.pass(7200), Reason::CanBeEnforced, "a/p");
    // the source cannot read it at all
    world.due.unreadable(&key("a/r"), "spec: bad; its previous version stays in force");
    assert!(
        one(&world.pass(7200), Reason::CannotBeEnforced, "a/r")
            .contains("its previous version stays in force")
    );
    // gone, or put right, before anybody has heard of it
    world.broken("a/p", &[problem("short")]);
    world.broken("a/p", &[]);
    world.broken("a/q", &[problem("short")]);
    world.due.policy(&key("a/q"), None);
    assert_eq!(told(&world.pass(7200)), []);
}

#[test]
fn a_policy_without_pods_is_told_when_it_has_been_so_for_a_while() {
    let mut world = World::begun();
    world.selecting("a/p", false);
    assert_eq!(told(&world.pass(25)), [], "its pods may yet start");
    world.selecting("a/p", true);
    assert_eq!(told(&world.pass(60)), []);
    world.selecting("a/p", false);
    one(&world.pass(3 * 3600), Reason::SelectsNoPod, "a/p");
    // pods that come and go for a day
    let mut again = 0;
    for _ in 0..24 * 60 {
        world.selecting("a/p", true);
        again += world.pass(20).len();
        world.selecting("a/p", false);
        again += world.pass(40).len();
    }
    assert_eq!(again, 4, "every six hours");
    // the policy changed, and still selects none
    world.selecting("a/p", false);
    one(&world.pass(60), Reason::SelectsNoPod, "a/p");
    world.selecting("a/q", false);
    world.due.policy(&key("a/q"), None);
    assert_eq!(told(&world.pass(60)), [], "it is gone");
}

#[test]
fn pods_newly_isolated_are_told_on_the_policy_and_few_of_them_also_by_themselves() {
    let mut world = World::begun();
    let many: Vec<String> = (0..37).map(|i| format!("a/pod-{i:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.isolated(&isolated("a/p", true, 37, 0, &many));
    let text = one(&world.pass(60), Reason::IsolatesPods, "a/p");
    let wanted = "It isolates 37 pods for ingress that were not isolated before: a/pod-00, a/pod-01, a/pod-02 and 34 more.";
    assert_eq!(text, wanted);

    world.isolated(&isolated("a/q", true, 2, 1, &["a/x", "a/y"]));
    let notes = world.pass(60);
    let (of_pods, pods) =
        ((Reason::IsolatesPods, "a/q"), [(Reason::Isolated, "a/x"), (Reason::Isolated, "a/y")]);
    let wanted: Vec<_> =
        [of_pods].iter().chain(&pods).map(|(reason, about)| (*reason, (*about).to_owned())).collect();
    assert_eq!(told(&notes), wanted);
    assert!(notes[0].text.contains("2 pods for ingress and 1 pod for egress"), "{notes:?}");
    assert!(notes[1].text.starts_with("NetworkPolicy a/q isolates it for ingress and egress"), "{notes:?}");
    assert_eq!(notes[1].related, Some(key("a/q")));
}

#[test]
fn relabelled_pods_are_told_by_themselves_or_if_they_are_many_on_the_policy() {
    let mut world = World::begun();
    world.isolated(&isolated("a/p", false, 1, 1, &["a/x"]));
    assert!(one(&world.pass(60), Reason::Isolated, "a/x").contains("the pod's labels have changed"));
    for i in 0..9 {
        // one after the other, as kubectl label does it
        world.isolated(&isolated("a/p", false, 1, 0, &[&format!("a/x{i}")]));
        world.now += Duration::from_millis(100);
    }
    let text = one(&world.pass(60), Reason::IsolatesPods, "a/p");
    assert!(text.contains("isolates 9 pods for ingress") && text.contains("labels"), "{text}");
}

#[test]
fn nobody_is_isolated_while_policies_are_not_enforced() {
    let mut world = World::begun();
    world.due.mode(Mode::Enforce, "1");
    world.isolated(&isolated("a/p", true, 1, 0, &["a/x"]));
    world.due.mode(Mode::Off, "2");
    world.isolated(&isolated("a/q", true, 1, 0, &["a/y"]));
    one(&world.pass(60), Reason::PoliciesNotEnforced, "weir-system/weir-mode");
    world.due.mode(Mode::Enforce, "3");
    one(&world.pass(60), Reason::PoliciesEnforced, "weir-system/weir-mode");
}

#[test]
fn the_mode_is_told_when_it_is_switched_and_not_when_a_controller_hears_of_it() {
    let mut world = World::begun();
    world.due.mode(Mode::Off, "1");
    world.due.mode(Mode::Off, "2");
    assert_eq!(told(&world.pass(60)), []);
    world.due.mode(Mode::Enforce, "3");
    world.due.mode(Mode::Off, "4");
    let notes = world.pass(60);
    assert_eq!(notes.len(), 2);
    assert!(
        notes.iter().any(|note| note.reason == Reason::PoliciesEnforced && note.state.contains('3')),
        "{notes:?}"
    );
    assert!(
        notes.iter().any(|note| note.reason == Reason::PoliciesNotEnforced && note.state.contains('4')),
        "{notes:?}"
    );
    world.due.mode(Mode::Withdrawn, "5");
    let text = one(&world.pass(60), Reason::PoliciesNotEnforced, "weir-system/weir-mode");
    assert!(text.contains("withdrawn (it was off)"), "{text}");
}

#[test]
fn what_kernels_refuse_is_told_once_for_all_nodes_and_over_when_they_take_it() {
    let mut world = World::begun();
    world.refused("n2", &["a/p"]);
    world.refused("n1", &["a/p"]);
    let text = one(&world.pass(600), Reason::RefusedByKernel, "a/p");
    assert!(text.contains("on n1, n2:") && text.contains("too large"), "{text}");
    world.refused("n1", &["a/p"]);
    world.refused("n2", &[]);
    assert_eq!(told(&world.pass(600)), [], "one still does");
    world.refused("n1", &[]);
    let text = one(&world.pass(7200), Reason::TakenByKernel, "a/p");
    assert!(text.contains("n1, n2"), "{text}");
    // taken the next time it is tried
    world.refused("n1", &["a/p"]);
    world.refused("n1", &[]);
    assert_eq!(told(&world.pass(600)), []);
}

#[test]
fn an_agent_that_goes_elsewhere_takes_nothing_back() {
    let mut world = World::begun();
    world.refused("n1", &["a/p"]);
    one(&world.pass(60), Reason::RefusedByKernel, "a/p");
    world.due.left("n1");
    assert_eq!(told(&world.pass(7200)), []);
    // and what nobody has heard of is not over
    world.refused("n1", &["a/p"]);
    world.refused("n2", &["a/p"]);
    world.refused("n2", &[]);
    world.due.left("n1");
    assert_eq!(told(&world.pass(7200)), []);
}

#[test]
fn what_is_wrong_waits_for_its_turn_and_what_is_stale_is_counted() {
    let mut world = World::begun();
    for i in 0..300 {
        world.broken(&format!("a/p{i:03}"), &[problem("it is wrong")]);
    }
    assert_eq!(world.due.tick(world.now, 0).notes, [], "there is no room");
    assert_eq!(world.due.tick(world.now, 1000).notes.len(), 50, "the first ones");
    world.isolated(&isolated("a/late", true, 1, 0, &["a/x"]));
    world.due.mode(Mode::Enforce, "1");
    world.due.mode(Mode::Off, "2");
    world.due.mode(Mode::Enforce, "3");
    world.isolated(&isolated("a/late", true, 1, 0, &["a/x"]));
    world.now += Duration::from_secs(1);
    let first = world.due.tick(world.now, 1000).notes;
    assert_eq!(
        told(&first[..1]),
        [(Reason::PoliciesEnforced, "weir-system/weir-mode".to_owned())],
        "it goes first"
    );
    assert_eq!(first.len(), 5);
    // nobody writes
    world.now += Duration::from_secs(120);
    assert_eq!(world.due.tick(world.now, 0).suppressed, 1);
    let rest = world.pass(300);
    assert_eq!(rest.iter().filter(|note| note.reason == Reason::CannotBeEnforced).count(), 300 - 50 - 3);
    assert!(rest.iter().all(|note| note.reason == Reason::CannotBeEnforced), "{rest:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Broken(u8, Option<u8>),
    Gone(u8),
    Selecting(u8, bool),
    Isolated(u8, bool, u8),
    Refused(u8, Vec<u8>),
    Left(u8),
    Mode(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let few = || 0..4u8;
    prop_oneof![
        3 => (0..100u64).prop_map(Step::Pass),
        1 => (few(), proptest::option::of(few())).prop_map(|(p, what)| Step::Broken(p, what)),
        1 => few().prop_map(Step::Gone),
        1 => (few(), any::<bool>()).prop_map(|(p, any)| Step::Selecting(p, any)),
        1 => (few(), any::<bool>(), 1..9u8).prop_map(|(p, changed, pods)| Step::Isolated(p, changed, pods)),
        1 => (few(), proptest::collection::vec(few(), 0..3)).prop_map(|(node, of)| Step::Refused(node, of)),
        1 => few().prop_map(Step::Left),
        1 => any::<bool>().prop_map(Step::Mode),
    ]
}

impl World {
    fn step(&mut self, step: &Step, number: usize) -> Vec<Note> {
        let policy = |p: u8| format!("a/p{p}");
        match step {
            Step::Pass(seconds) => return self.pass(*seconds),
            Step::Broken(p, what) => {
                let problems: Vec<Problem> = what.iter().map(|what| problem(&what.to_string())).collect();
                self.broken(&policy(*p), &problems);
            }
            Step::Gone(p) => self.due.policy(&key(&policy(*p)), None),
            Step::Selecting(p, any) => self.selecting(&policy(*p), *any),
            Step::Isolated(p, changed, pods) => {
                let pods: Vec<String> = (0..*pods).map(|i| format!("a/x{i}")).collect();
                let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
                self.isolated(&isolated(&policy(*p), *changed, pods.len(), 0, &pods));
            }
            Step::Refused(node, of) => {
                let of: Vec<String> = of.iter().map(|p| policy(*p)).collect();
                let of: Vec<&str> = of.iter().map(String::as_str).collect();
                self.refused(&format!("n{node}"), &of);
            }
            Step::Left(node) => self.due.left(&format!("n{node}")),
            Step::Mode(enforce) => {
                let mode = if *enforce { Mode::Enforce } else { Mode::Off };
                self.due.mode(mode, &number.to_string());
            }
        }
        Vec::new()
    }
}

proptest! {
    /// However things flap: so many of one object, and so many of all.
    #[test]
    fn there_are_never_many(steps in proptest::collection::vec(step(), 1..300)) {
        let mut world = World::begun();
        let mut of: HashMap<(&str, ObjectKey), u64> = HashMap::new();
        for (number, step) in steps.iter().enumerate() {
            for note in world.step(step, number) {
                *of.entry((note.reason.kind().as_str(), note.about)).or_default() += 1;
            }
        }
        let passed = (world.now - world.start).as_secs();
        for (object, count) in &of {
            prop_assert!(*count <= 6 + passed / 600 + 1, "{:?}: {} in {} s", object, count, passed);
        }
        prop_assert!(of.values().sum::<u64>() <= 50 + passed * 5);
    }

    /// A controller that comes to know a cluster in which nothing is wrong says nothing, in whatever order it learns of it.
    #[test]
    fn a_start_tells_nothing_but_what_is_wrong(steps in proptest::collection::vec(step(), 1..100), wait in 0..5000u64) {
        let mut world = World::new();
        world.due.mode(Mode::Enforce, "1");
        for (number, step) in steps.iter().enumerate() {
            // it takes a while, and agents are not served yet
            let notes = match step {
                Step::Mode(_) | Step::Refused(..) | Step::Left(_) => continue,
                step => world.step(step, number),
            };
            prop_assert!(notes.iter().all(|note| note.reason.kind().as_str() == "NetworkPolicy"), "{:?}", notes);
            let wrong = |note: &Note| matches!(note.reason, Reason::CannotBeEnforced | Reason::CanBeEnforced);
            prop_assert!(notes.iter().all(wrong), "{:?}", notes);
        }
        world.due.begin();
        for note in world.pass(wait) {
            prop_assert!(matches!(note.reason, Reason::CannotBeEnforced | Reason::CanBeEnforced), "{:?}", note);
        }
    }

    #[test]
    fn a_bucket_gives_no_more_than_it_gets(burst in 1..20u32, every in 1..1000u64, waits in proptest::collection::vec(0..3000u64, 1..200)) {
        let start = Instant::now();
        let every = Duration::from_millis(every);
        let (mut now, mut bucket, mut taken) = (start, Bucket::new(burst, every, start), 0u128);
        for wait in waits {
            now += Duration::from_millis(wait);
            taken += u128::from(bucket.take(now));
            prop_assert!(taken <= u128::from(burst) + (now - start).as_nanos() / every.as_nanos());
            // and gives all that it got
            if wait > u64::try_from(every.as_millis()).unwrap() * u64::from(burst) {
                prop_assert_eq!(bucket.tokens(now), burst - 1);
            }
        }
    }
}

#[test]
fn the_page_has_every_reason() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let documented: Vec<(&str, &str, bool)> = rows
        .map(|(reason, rest)| {
            let mut columns = rest.split(" | ");
            let (severity, on) = (columns.next().expect("a type"), columns.next().expect("an object"));
            let kind =
                Reason::ALL.iter().find(|known| known.as_str() == reason).map(|known| known.kind().as_str());
            (reason, severity, kind.is_some_and(|kind| on.starts_with(kind)))
        })
        .collect();
    let all: Vec<(&str, &str, bool)> = Reason::ALL.iter().map(|r| (r.as_str(), r.severity(), true)).collect();
    assert_eq!(documented, all);
}
