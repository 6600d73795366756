//! Places boxes: a lane for each namespace, columns along the arrows.
//!
//! ```text
//!              column 0      column 1      column 2
//!   everybody  [internet]
//!   ops        [monitor] ─────────────┐
//!   shop                    8080 [web] 9000 [api]
//! ```
//!
//! A box is to the right of those that call it, as far as there are no circles. The ports are at the box that is
//! called, once each, and arrows end there: so labels never lie on each other.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Graph, Lane};
use super::plain::{lines, marks};

/// Of a character, in the fonts of the drawing.
pub(super) const CHAR: f64 = 7.3;
pub(super) const SMALL_CHAR: f64 = 6.2;
pub(super) const LINE: f64 = 17.0;
pub(super) const CHIP: f64 = 17.0;
const PAD: f64 = 9.0;
const GAP_Y: f64 = 14.0;
const GAP_X: f64 = 84.0;
pub(super) const LANE_HEAD: f64 = 38.0;
/// How many arrows side by side can be told apart: the colours that there are.
pub(super) const TRACKS: usize = 8;
/// Below the top of a lane: where arrows pass that go over columns.
const CHANNEL: f64 = 27.0;
const MARGIN: f64 = 16.0;
/// Longer texts are cut; the whole is in the tooltip.
const LONGEST: usize = 30;
const LONGEST_PORTS: usize = 24;
const LONGEST_FROM: usize = 22;
/// A stack of boxes that is higher stands side by side.
const STACK: usize = 9;

/// Ports at which arrows end.
#[derive(Debug)]
pub(super) struct Chip {
    pub(super) text: String,
    pub(super) full: String,
    /// Who calls from other lanes: far away, and told here.
    from: Vec<String>,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
}

impl Chip {
    fn tell_from(&mut self) {
        if let Some(first) = self.from.first() {
            let more = match self.from.len() {
                1 => String::new(),
                n => format!(" +{}", n - 1),
            };
            let first = cut(&crate::term::escape(first), LONGEST_FROM);
            self.text = format!("{first}{more}: {}", self.text);
        }
        self.width = self.text.chars().count() as f64 * SMALL_CHAR + 12.0;
    }
}

/// A box at its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) names: Vec<String>,
    pub(super) marks: Vec<String>,
    pub(super) chips: Vec<Chip>,
    /// Its stack, counted from the left, and its lane.
    stack: usize,
    lane: usize,
}

/// A namespace.
#[derive(Debug)]
pub(super) struct Band {
    pub(super) name: Option<String>,
    pub(super) y: f64,
    pub(super) height: f64,
}

/// Everything at its place.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) boxes: Vec<Placed>,
    pub(super) bands: Vec<Band>,
    /// For each edge, the chip at its end.
    pub(super) ends: Vec<usize>,
    /// For each edge, its way: the `d` of a path.
    pub(super) ways: Vec<String>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A text that fits.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

impl Layout {
    pub(super) fn new(graph: &Graph) -> Layout {
        let columns = columns(graph);
        let mut ends = vec![0; graph.edges.len()];
        let mut boxes: Vec<Placed> = graph
            .nodes
            .iter()
            .map(|node| Placed {
                x: 0.0,
                y: 0.0,
                width: 0.0,
                height: 0.0,
                names: lines(node).iter().map(|l| cut(l, LONGEST)).collect(),
                marks: marks(node).iter().map(|m| cut(m, LONGEST + 6)).collect(),
                chips: Vec::new(),
                stack: 0,
                lane: 0,
            })
            .collect();
        for (at, edge) in graph.edges.iter().enumerate() {
            let chips = &mut boxes[edge.to].chips;
            let full = edge.traffic.to_string();
            let chip = chips.iter().position(|c| c.full == full).unwrap_or_else(|| {
                let text = cut(&full, LONGEST_PORTS);
                chips.push(Chip { text, full, from: Vec::new(), x: 0.0, y: 0.0, width: 0.0 });
                chips.len() - 1
            });
            ends[at] = chip;
            let (from, to) = (&graph.nodes[edge.from], &graph.nodes[edge.to]);
            if from.lane != to.lane {
                let name = from.names.join(", ");
                chips[chip].from.push(match &from.lane {
                    Lane::Namespace(namespace) if from.names.len() > 1 && alone(graph, edge.from) => {
                        format!("all of {namespace}")
                    }
                    Lane::Namespace(namespace) if !from.whole => format!("{namespace}/{name}"),
                    _ => name,
                });
            }
        }
        for chip in boxes.iter_mut().flat_map(|b| &mut b.chips) {
            chip.tell_from();
        }
        for one in &mut boxes {
            let chars = |lines: &[String], size: f64| {
                lines.iter().map(|l| l.chars().count()).max().unwrap_or(0) as f64 * size
            };
            one.width = (chars(&one.names, CHAR).max(chars(&one.marks, SMALL_CHAR)) + 2.0 * PAD).max(70.0);
            let text = (one.names.len() + one.marks.len()) as f64 * LINE;
            one.height = (text + PAD).max(one.chips.len() as f64 * (CHIP + 3.0) + 6.0);
        }
        let lanes: BTreeSet<&Lane> = graph.nodes.iter().map(|n| &n.lane).collect();
        let lanes: Vec<&Lane> = lanes.into_iter().collect();
        let mut cells: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            let lane = lanes.binary_search(&&node.lane).unwrap_or(0);
            cells.entry((lane, columns[at])).or_default().push(at);
        }
        order(graph, &mut cells);
        let (starts, stacks, width) = widths(&cells, &boxes);
        let mut y = MARGIN;
        let mut bands = Vec::new();
        for (number, lane) in lanes.iter().enumerate() {
            let mut bottom: f64 = y + LANE_HEAD + 20.0;
            for ((_, column), cell) in cells.range((number, 0)..(number + 1, 0)) {
                let rows = cell.len().div_ceil(cell.len().div_ceil(STACK));
                for (sub, stack) in cell.chunks(rows).enumerate() {
                    let mut at_y = y + LANE_HEAD;
                    for &at in stack {
                        let (chip_width, x, ordinal) = starts[column][sub];
                        let one = &mut boxes[at];
                        (one.stack, one.lane) = (ordinal, number);
                        one.x = x + chip_width;
                        one.y = at_y;
                        let count = one.chips.len() as f64;
                        let first = one.y + (one.height - count * (CHIP + 3.0) + 3.0) / 2.0;
                        for (i, chip) in one.chips.iter_mut().enumerate() {
                            chip.x = one.x - chip.width;
                            chip.y = first + i as f64 * (CHIP + 3.0);
                        }
                        at_y += one.height + GAP_Y;
                    }
                    bottom = bottom.max(at_y);
                }
            }
            let name = if let Lane::Namespace(name) = lane { Some(name.clone()) } else { None };
            bands.push(Band { name, y, height: bottom - y });
            y = bottom + 10.0;
        }
        let ways = ways(graph, &boxes, &bands, &ends, &stacks);
        Layout { boxes, bands, ends, ways, width: width.max(620.0) + MARGIN, height: y + MARGIN }
    }
}

/// Whether a box has all workloads of its namespace.
fn alone(graph: &Graph, node: usize) -> bool {
    let lane = &graph.nodes[node].lane;
    graph.nodes.iter().enumerate().all(|(at, other)| at == node || other.whole || other.lane != *lane)
}

/// For each stack of each column: the room for its chips, where it begins, and its number from the left.
type Starts = BTreeMap<usize, Vec<(f64, f64, usize)>>;

fn widths(cells: &BTreeMap<(usize, usize), Vec<usize>>, boxes: &[Placed]) -> (Starts, Vec<(f64, f64)>, f64) {
    let mut sizes: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for ((_, column), cell) in cells {
        let of = sizes.entry(*column).or_default();
        let rows = cell.len().div_ceil(cell.len().div_ceil(STACK));
        for (sub, stack) in cell.chunks(rows).enumerate() {
            if of.len() <= sub {
                of.push((0.0, 0.0));
            }
            for &at in stack {
                let chips = boxes[at].chips.iter().map(|c| c.width).fold(0.0, f64::max);
                of[sub] = (of[sub].0.max(chips), of[sub].1.max(boxes[at].width));
            }
        }
    }
    let mut x = MARGIN + 34.0;
    let mut starts = Starts::new();
    // from where to where
    let mut all = Vec::new();
    for (column, stacks) in sizes {
        for (chips, width) in stacks {
            starts.entry(column).or_default().push((chips, x, all.len()));
            all.push((x, x + chips + width));
            x += chips + width + GAP_X;
        }
    }
    (starts, all, x - GAP_X + MARGIN)
}

/// The ways of the arrows: to the next stack in a curve, else around all boxes: between stacks, and above the
/// boxes of the lane where they end.
fn ways(
    graph: &Graph,
    boxes: &[Placed],
    bands: &[Band],
    ends: &[usize],
    stacks: &[(f64, f64)],
) -> Vec<String> {
    let way = |(edge, end): (&super::model::Edge, &usize)| {
        let (from, to) = (&boxes[edge.from], &boxes[edge.to]);
        let chip = &to.chips[*end];
        let (x, y) = (from.x + from.width, from.y + from.height / 2.0);
        let (tx, ty) = (chip.x - 1.0, chip.y + CHIP / 2.0);
        let is_next = to.stack == from.stack + 1;
        if is_next && from.lane == to.lane {
            let bend = ((tx - x) / 2.0).min(120.0);
            return format!("M{x:.1} {y:.1}C{:.1} {y:.1} {:.1} {ty:.1} {tx:.1} {ty:.1}", x + bend, tx - bend);
        }
        // arrows to one box keep together, those to different boxes apart
        let apart = (edge.to % TRACKS) as f64;
        let leave = stacks[from.stack].1 + 8.0 + apart * 7.0;
        if is_next {
            return round(&[(x, y), (leave, y), (leave, ty), (tx, ty)]);
        }
        let gap = if to.stack == 0 { 12.0 } else { stacks[to.stack].0 - 8.0 - apart * 3.0 };
        let over = bands[to.lane].y + CHANNEL + apart;
        round(&[(x, y), (leave, y), (leave, over), (gap, over), (gap, ty), (tx, ty)])
    };
    graph.edges.iter().zip(ends).map(way).collect()
}

/// Straight lines with round corners.
fn round(points: &[(f64, f64)]) -> String {
    let mut path = format!("M{:.1} {:.1}", points[0].0, points[0].1);
    for three in points.windows(3) {
        let [a, b, c] = [three[0], three[1], three[2]];
        let length = |p: (f64, f64), q: (f64, f64)| (p.0 - q.0).abs() + (p.1 - q.1).abs();
        let radius = 7f64.min(length(a, b) / 2.0).min(length(b, c) / 2.0);
        let towards = |p: (f64, f64)| {
            let all = length(b, p).max(0.001);
            (b.0 + (p.0 - b.0) / all * radius, b.1 + (p.1 - b.1) / all * radius)
        };
        let (into, out) = (towards(a), towards(c));
        path.push_str(&format!(
            "L{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}",
            into.0, into.1, b.0, b.1, out.0, out.1
        ));
    }
    let last = points[points.len() - 1];
    path.push_str(&format!("L{:.1} {:.1}", last.0, last.1));
    path
}

/// The column of each node: behind all that call it, but for arrows that close a circle.
fn columns(graph: &Graph) -> Vec<usize> {
    let count = graph.nodes.len();
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    let mut incoming = vec![0; count];
    for edge in &graph.edges {
        next[edge.from].push(edge.to);
        incoming[edge.to] += 1;
    }
    // those that nobody calls first; what is on the way down closes a circle
    let mut starts: Vec<usize> = (0..count).collect();
    starts.sort_by_key(|n| (incoming[*n], !graph.nodes[*n].whole, *n));
    let mut state = vec![0u8; count];
    let mut done: Vec<usize> = Vec::with_capacity(count);
    let mut back: BTreeSet<(usize, usize)> = BTreeSet::new();
    for start in starts {
        if state[start] != 0 {
            continue;
        }
        state[start] = 1;
        let mut path = vec![(start, 0)];
        while let Some((node, i)) = path.last_mut() {
            if let Some(&to) = next[*node].get(*i) {
                *i += 1;
                match state[to] {
                    0 => {
                        state[to] = 1;
                        path.push((to, 0));
                    }
                    1 => drop(back.insert((*node, to))),
                    _ => {}
                }
            } else {
                state[*node] = 2;
                done.push(*node);
                path.pop();
            }
        }
    }
    let mut column = vec![0; count];
    for &node in done.iter().rev() {
        for &to in next[node].iter().filter(|to| !back.contains(&(node, **to))) {
            column[to] = column[to].max(column[node] + 1);
        }
    }
    column
}

/// Boxes of a cell in the order of their neighbours, so that fewer arrows cross.
fn order(graph: &Graph, cells: &mut BTreeMap<(usize, usize), Vec<usize>>) {
    let mut neighbours: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for edge in &graph.edges {
        neighbours[edge.from].push(edge.to);
        neighbours[edge.to].push(edge.from);
    }
    for _ in 0..4 {
        let mut position = vec![0.0; graph.nodes.len()];
        for ((lane, _), cell) in cells.iter() {
            for (i, at) in cell.iter().enumerate() {
                position[*at] = *lane as f64 * 1000.0 + i as f64;
            }
        }
        for cell in cells.values_mut() {
            let mean = |at: &usize| {
                let of = &neighbours[*at];
                if of.is_empty() {
                    return f64::MAX; // those without arrows last
                }
                of.iter().map(|n| position[*n]).sum::<f64>() / of.len() as f64
            };
            cell.sort_by(|a, b| mean(a).total_cmp(&mean(b)).then(a.cmp(b)));
        }
    }
}
