//! Which pairs of classes change, as rectangles: all of these to all of those.

use std::collections::{BTreeMap, HashMap, HashSet};

use weir_compiler::slice::Direction;

use crate::reach::Reach;

/// All pairs of `from` and `to` (classes of one [`Reach`]) change alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rectangle {
    pub(super) from: Vec<u32>,
    pub(super) to: Vec<u32>,
    /// Sets of traffic, by number.
    pub(super) before: u32,
    pub(super) after: u32,
    /// How many pairs of pods (or of a pod and a range of addresses) it is.
    pub(super) pairs: u64,
}

/// What one class sees: for a change, the classes at the other end.
type Seen = BTreeMap<Verdicts, Vec<u32>>;

/// Every pair that changes is in one rectangle. Of a pair that changes, one end has changed itself, or is in
/// other peer sets that the other end looks at.
pub(super) fn rectangles(reach: &mut Reach) -> Vec<Rectangle> {
    let mut found = Found::default();
    let (changed, same): (Vec<usize>, Vec<usize>) =
        (0..reach.classes.len()).partition(|c| reach.classes[*c].changed);
    for class in changed {
        for direction in Direction::BOTH {
            let row = reach.row(class, direction);
            for (other, (&before, &after)) in row.traffic[0].iter().zip(&row.traffic[1]).enumerate() {
                // of two that changed, the row from the source has told
                if before != after && !(direction == Direction::Ingress && reach.classes[other].changed) {
                    found.pair(reach, ends(direction, class, other), (before, after));
                }
            }
        }
    }
    let mut told: HashSet<(usize, usize)> = HashSet::new();
    for class in same {
        for direction in Direction::BOTH {
            for other in reach.onlookers(class, direction) {
                let pair = ends(direction, class, other as usize);
                // each of the two may be an onlooker of the other
                if reach.classes[other as usize].changed || !told.insert(pair) {
                    continue;
                }
                let [before, after] = reach.between(pair.0, pair.1);
                if before != after {
                    found.pair(reach, pair, (before, after));
                }
            }
        }
    }
    let Found { by_source, by_destination } = found;
    // whichever says it in fewer words
    let (sources, destinations) = (merge(by_source), merge(by_destination));
    let mut all: Vec<Rectangle> = if sources.len() < destinations.len() {
        sources.into_iter().map(|(change, to, from)| rectangle(change, from, to)).collect()
    } else {
        destinations.into_iter().map(|(change, from, to)| rectangle(change, from, to)).collect()
    };
    for one in &mut all {
        let pairs = one.from.iter().flat_map(|a| one.to.iter().map(move |b| (*a as usize, *b as usize)));
        one.pairs = pairs.map(|(a, b)| reach.pairs(a, b)).sum();
    }
    all
}

/// The pairs that change, seen from either end.
#[derive(Default)]
struct Found {
    by_source: BTreeMap<u32, Seen>,
    by_destination: BTreeMap<u32, Seen>,
}

impl Found {
    fn pair(&mut self, reach: &Reach, (from, to): (usize, usize), change: Verdicts) {
        if reach.pairs(from, to) == 0 {
            return;
        }
        let (from, to) = (number(from), number(to));
        self.by_source.entry(from).or_default().entry(change).or_default().push(to);
        self.by_destination.entry(to).or_default().entry(change).or_default().push(from);
    }
}

fn ends(direction: Direction, class: usize, other: usize) -> (usize, usize) {
    match direction {
        Direction::Egress => (class, other),
        Direction::Ingress => (other, class),
    }
}

fn rectangle((before, after): (u32, u32), from: Vec<u32>, to: Vec<u32>) -> Rectangle {
    Rectangle { from, to, before, after, pairs: 0 }
}

/// Of a flow, before and after.
type Verdicts = (u32, u32);
type Classes = Vec<u32>;
/// A change, the others at which it is seen, and those that see it.
type Alike = (Verdicts, Classes, Classes);

/// Those that see the same change at the same others, together: change, others, those.
fn merge(seen: BTreeMap<u32, Seen>) -> Vec<Alike> {
    let mut together: HashMap<(Verdicts, Classes), Classes> = HashMap::new();
    for (class, seen) in seen {
        for (change, mut others) in seen {
            others.sort_unstable();
            together.entry((change, others)).or_default().push(class);
        }
    }
    let mut all: Vec<_> =
        together.into_iter().map(|((change, others), those)| (change, others, those)).collect();
    all.sort_unstable();
    all
}

fn number(class: usize) -> u32 {
    u32::try_from(class).expect("fewer classes than points")
}
