//! The graph as SVG: one file without scripts or fonts of its own, light and dark as the reader's system is.

use std::fmt::Write;

use weir_compiler::slice::Direction;

use super::layout::{CHIP, LINE, Layout, TRACKS};
use super::model::Graph;
use crate::term::escape;

/// Colours of arrows, by the box that they lead to: light and dark.
const COLOURS: [(&str, &str); TRACKS] = [
    ("#2b6cb0", "#63b3ed"),
    ("#2f855a", "#68d391"),
    ("#b7791f", "#f6c560"),
    ("#9b2c8a", "#e39bd8"),
    ("#c05621", "#f6ad55"),
    ("#2c7a7b", "#5fd1d3"),
    ("#6b46c1", "#b794f4"),
    ("#a02c3c", "#fc8b9b"),
];

/// Text of XML: what means something to it, and what it does not allow.
fn xml(text: &str) -> String {
    let mut out = String::new();
    for c in escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (i, (on_light, on_dark)) in COLOURS.iter().enumerate() {
        let _ = write!(light, "--c{i}:{on_light};");
        let _ = write!(dark, "--c{i}:{on_dark};");
    }
    let mut css = format!(
        "svg{{--bg:#ffffff;--lane:#f4f6f8;--line:#cbd2d9;--box:#ffffff;--ink:#1f2933;--dim:#5a6773;--chip:#e4e9ee;\
         --open:#8a5200;{light}}}\
         @media(prefers-color-scheme:dark){{svg{{--bg:#14181d;--lane:#1b2128;--line:#3a444f;--box:#252d36;--ink:#e6ebf0;\
         --dim:#a3afbb;--chip:#36414d;--open:#f0b95c;{dark}}}}}\
         .bg{{fill:var(--bg)}}.lane{{fill:var(--lane);stroke:var(--line)}}\
         text{{fill:var(--ink);font:12px ui-sans-serif,system-ui,'DejaVu Sans',sans-serif}}\
         .h{{font-weight:600;font-size:13px;fill:var(--dim)}}.n{{font-weight:600}}.m,.p{{font-size:10.5px;fill:var(--dim)}}\
         .p{{fill:var(--ink)}}.o{{fill:var(--open)}}\
         .box{{fill:var(--box);stroke:var(--line);stroke-width:1}}.iso{{stroke:var(--ink);stroke-width:1.8}}\
         .all{{stroke-dasharray:4 3}}.chip{{fill:var(--chip)}}\
         .e{{fill:none;stroke-width:1.5;opacity:.75}}.far{{opacity:.4;stroke-width:1.2}}.e:hover{{stroke-width:4;opacity:1}}"
    );
    for i in 0..COLOURS.len() {
        let _ = write!(css, ".c{i}{{stroke:var(--c{i})}}.a{i}{{fill:var(--c{i})}}");
    }
    css
}

pub(super) fn svg(graph: &Graph) -> String {
    let layout = Layout::new(graph);
    let (width, height) = (layout.width.ceil(), layout.height.ceil() + 40.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\">\n<title>Who may talk to whom</title>\n<style>{}</style>\n<rect class=\"bg\" width=\"100%\" \
         height=\"100%\"/>\n",
        style()
    );
    let _ = write!(out, "<defs>");
    for i in 0..COLOURS.len() {
        let _ = write!(
            out,
            "<marker id=\"a{i}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
             markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"a{i}\" d=\"M0 0L8 4L0 8z\"/></marker>"
        );
    }
    out.push_str("</defs>\n");
    for band in &layout.bands {
        if let Some(name) = &band.name {
            let _ = writeln!(
                out,
                "<rect class=\"lane\" x=\"8\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"6\"/><text class=\"h\" x=\"16\" \
                 y=\"{:.0}\">{}</text>",
                band.y,
                layout.width - 16.0,
                band.height,
                band.y + 18.0,
                xml(name)
            );
        }
    }
    edges(&mut out, graph, &layout);
    for (at, one) in layout.boxes.iter().enumerate() {
        let node = &graph.nodes[at];
        let isolated = Direction::BOTH.iter().any(|d| node.is_isolated(*d));
        let class = match (node.whole, isolated) {
            (true, _) => "box all",
            (_, true) => "box iso",
            _ => "box",
        };
        let pods = if node.pods == 0 { String::new() } else { format!(" ({} pods)", node.pods) };
        let _ = write!(
            out,
            "<g><title>{}{pods}</title><rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             rx=\"5\"/>",
            xml(&node.names.join(", ")),
            one.x,
            one.y,
            one.width,
            one.height
        );
        let rows = (one.names.len() + one.marks.len()) as f64;
        let mut y = one.y + (one.height - rows * LINE) / 2.0 + 12.5;
        for (i, line) in one.names.iter().chain(&one.marks).enumerate() {
            let class = match i < one.names.len() {
                true => "n",
                false if line.ends_with("everybody") => "m o",
                false => "m",
            };
            let _ = write!(
                out,
                "<text class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                one.x + 9.0,
                xml(line)
            );
            y += LINE;
        }
        for chip in &one.chips {
            let _ = write!(
                out,
                "<g><title>{}</title><rect class=\"chip\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{CHIP}\" rx=\"3\"/>\
                 <text class=\"p\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                xml(&chip.full),
                chip.x,
                chip.y,
                chip.width,
                chip.x + 6.0,
                chip.y + 12.3,
                xml(&chip.text)
            );
        }
        out.push_str("</g>\n");
    }
    let _ = writeln!(
        out,
        "<text class=\"m\" x=\"16\" y=\"{:.0}\">Arrows: what a rule allows, with ports at their ends. Thick: policies isolate \
         it. “everybody”: every</text><text class=\"m\" x=\"16\" y=\"{:.0}\">pod that may send anywhere, and all other \
         addresses. No arrow and no “everybody”: denied. Point at a box for all its names.</text>",
        layout.height + 6.0,
        layout.height + 22.0
    );
    out.push_str("</svg>\n");
    out
}

fn edges(out: &mut String, graph: &Graph, layout: &Layout) {
    for ((edge, chip), way) in graph.edges.iter().zip(&layout.ends).zip(&layout.ways) {
        let chip = &layout.boxes[edge.to].chips[*chip];
        let colour = edge.to % COLOURS.len();
        let name = |n: usize| graph.nodes[n].names.join(", ");
        let far = if graph.nodes[edge.from].lane == graph.nodes[edge.to].lane { "" } else { " far" };
        let _ = writeln!(
            out,
            "<path class=\"e c{colour}{far}\" marker-end=\"url(#a{colour})\" d=\"{way}\"><title>{} to {}: {}</title></path>",
            xml(&name(edge.from)),
            xml(&name(edge.to)),
            xml(&chip.full)
        );
    }
}
