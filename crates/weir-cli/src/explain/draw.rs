//! An explanation as a picture: peers on both sides of the pods, ports on the arrows.

use std::fmt::Write;

use super::report::{PeerInfo, Report, Side, Subject};
use super::text::ports;
use crate::term::escape;

/// What is drawn: a box for each peer, an arrow for each rule that has it.
struct Arrow {
    peer: String,
    ports: String,
    inward: bool,
}

fn arrows(subject: &Subject) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    let mut side = |side: &Side, inward: bool| {
        if !side.isolated {
            arrows.push(Arrow { peer: "anyone".into(), ports: "all ports: not isolated".into(), inward });
            return;
        }
        for rule in &side.rules {
            for peer in &rule.peers {
                arrows.push(Arrow { peer: named(peer), ports: ports(rule), inward });
            }
        }
    };
    side(&subject.ingress, true);
    side(&subject.egress, false);
    arrows
}

fn named(peer: &PeerInfo) -> String {
    let pods = match peer.pods {
        0 => "no pod now".to_owned(),
        1 => "1 pod now".to_owned(),
        n => format!("{n} pods now"),
    };
    format!("{}\n{pods}", escape(&peer.text))
}

fn title(subject: &Subject) -> String {
    match &subject.pods[..] {
        [one] => escape(&one.name),
        pods => {
            let first = pods.first().map(|p| escape(&p.name)).unwrap_or_default();
            format!("{first}\nand {} more pods", pods.len().saturating_sub(1))
        }
    }
}

/// For Graphviz.
pub(crate) fn dot(report: &Report) -> String {
    let quoted = |text: &str| {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("\"{text}\"")
    };
    let mut out =
        String::from("digraph weir {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    out.push_str("  edge [fontname=\"sans-serif\", fontsize=10];\n");
    for (i, subject) in report.subjects.iter().enumerate() {
        let _ = writeln!(out, "  pod{i} [label={}, style=bold];", quoted(&title(subject)));
        for (j, arrow) in arrows(subject).iter().enumerate() {
            let _ = writeln!(out, "  peer{i}_{j} [label={}];", quoted(&arrow.peer));
            let (from, to) = ends(i, j, arrow.inward);
            let _ = writeln!(out, "  {from} -> {to} [label={}];", quoted(&arrow.ports));
        }
    }
    out.push_str("}\n");
    out
}

/// For Markdown.
pub(crate) fn mermaid(report: &Report) -> String {
    // in quotes, with everything that Markdown, HTML or mermaid might read in another way written as a number
    let quoted = |text: &str| {
        let mut out = String::from("\"");
        for c in text.chars() {
            match c {
                '\n' => out.push_str("<br/>"),
                c if c.is_alphanumeric() || " -_./,:()=+!".contains(c) => out.push(c),
                c => {
                    let _ = write!(out, "#{};", u32::from(c));
                }
            }
        }
        out.push('"');
        out
    };
    let mut out = String::from("flowchart LR\n");
    for (i, subject) in report.subjects.iter().enumerate() {
        let _ = writeln!(out, "  pod{i}[{}]", quoted(&title(subject)));
        for (j, arrow) in arrows(subject).iter().enumerate() {
            let _ = writeln!(out, "  peer{i}_{j}([{}])", quoted(&arrow.peer));
            let (from, to) = ends(i, j, arrow.inward);
            let _ = writeln!(out, "  {from} -- {} --> {to}", quoted(&arrow.ports));
        }
    }
    out
}

fn ends(i: usize, j: usize, inward: bool) -> (String, String) {
    let (pod, peer) = (format!("pod{i}"), format!("peer{i}_{j}"));
    if inward { (peer, pod) } else { (pod, peer) }
}
