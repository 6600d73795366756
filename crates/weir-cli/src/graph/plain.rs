//! The graph for programs that draw: Graphviz and Mermaid.

use std::collections::BTreeMap;
use std::fmt::Write;

use weir_compiler::slice::Direction;

use super::model::{Graph, Lane, Node};
use crate::term::escape;

/// How many names of a box are written.
const NAMED: usize = 6;

/// The lines of a box.
pub(super) fn lines(node: &Node) -> Vec<String> {
    let mut lines: Vec<String> = node.names.iter().take(NAMED).map(|n| escape(n)).collect();
    if node.names.len() > NAMED {
        lines.push(format!("and {} more", node.names.len() - NAMED));
    }
    lines
}

/// What is said at a box: what it takes from everybody, where it may go.
pub(super) fn marks(node: &Node) -> Vec<String> {
    let mut marks = Vec::new();
    if node.whole {
        return marks;
    }
    let mark =
        |all: &crate::reach::traffic::Traffic, word: &str, who: &str| match (all.is_empty(), all.is_all()) {
            (true, _) => None,
            (_, true) => Some(format!("{word} {who}")),
            _ => Some(format!("{word} {who}: {all}")),
        };
    marks.extend(mark(&node.from_all, "from", "everybody"));
    marks.extend(mark(&node.to_all, "to", "everybody"));
    if !node.among.is_empty() && node.pods > 1 {
        marks.push(format!("among themselves: {}", node.among));
    }
    marks
}

fn by_lane(graph: &Graph) -> BTreeMap<&Lane, Vec<usize>> {
    let mut lanes: BTreeMap<&Lane, Vec<usize>> = BTreeMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        lanes.entry(&node.lane).or_default().push(at);
    }
    lanes
}

/// A string of dot's: quotes and backslashes mean something, `\n` is a line.
fn quoted(lines: &[String]) -> String {
    let escaped = lines.iter().map(|l| l.replace('\\', "\\\\").replace('"', "\\\""));
    format!("\"{}\"", escaped.collect::<Vec<_>>().join("\\n"))
}

pub(super) fn dot(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph policies {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n  \
         edge [fontname=\"sans-serif\", fontsize=9];\n",
    );
    for (number, (lane, nodes)) in by_lane(graph).into_iter().enumerate() {
        let indent = if let Lane::Namespace(name) = lane {
            let label = quoted(&[escape(name)]);
            let _ = writeln!(out, "  subgraph cluster_{number} {{\n    label={label};");
            "    "
        } else {
            "  "
        };
        for at in nodes {
            let node = &graph.nodes[at];
            let mut text = lines(node);
            text.extend(marks(node).into_iter().map(|m| format!("({m})")));
            let style = match (
                node.whole,
                node.is_isolated(Direction::Ingress) || node.is_isolated(Direction::Egress),
            ) {
                (true, _) => ", style=\"rounded,dashed\"",
                (_, true) => ", penwidth=2",
                _ => "",
            };
            let _ = writeln!(out, "{indent}n{at} [label={}{style}];", quoted(&text));
        }
        if matches!(lane, Lane::Namespace(_)) {
            out.push_str("  }\n");
        }
    }
    for edge in &graph.edges {
        let label = quoted(&[edge.traffic.to_string()]);
        let _ = writeln!(out, "  n{} -> n{} [label={label}];", edge.from, edge.to);
    }
    out.push_str("}\n");
    out
}

/// A text of Mermaid's: characters that mean something to it or to HTML by their numbers.
fn entity(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_alphanumeric() || " -./:,()_*".contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "#{};", u32::from(c));
        }
    }
    out
}

pub(super) fn mermaid(graph: &Graph) -> String {
    let mut out = String::from("flowchart LR\n");
    for (number, (lane, nodes)) in by_lane(graph).into_iter().enumerate() {
        let indent = if let Lane::Namespace(name) = lane {
            let _ = writeln!(out, "  subgraph s{number}[\"{}\"]", entity(&escape(name)));
            "    "
        } else {
            "  "
        };
        for at in nodes {
            let node = &graph.nodes[at];
            let text: Vec<String> = lines(node).iter().chain(&marks(node)).map(|l| entity(l)).collect();
            let (open, close) = if node.whole { ("([\"", "\"])") } else { ("[\"", "\"]") };
            let _ = writeln!(out, "{indent}n{at}{open}{}{close}", text.join("<br/>"));
        }
        if matches!(lane, Lane::Namespace(_)) {
            out.push_str("  end\n");
        }
    }
    for edge in &graph.edges {
        let _ = writeln!(out, "  n{} -->|\"{}\"| n{}", edge.from, entity(&edge.traffic.to_string()), edge.to);
    }
    out
}
