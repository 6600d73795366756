//! The comparison as a drawing (SVG), from the JSON that the measurement printed.
//!
//! Two columns, policies and peers; three rows: time to connect, connections per second, throughput. It
//! has a background of its own, and colours for light and dark; lines differ by their marks, too.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Row;
use super::samples::Spread;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 850.0;
/// A panel's drawing area.
const PANEL: (f64, f64) = (330.0, 170.0);
const LEFT: [f64; 2] = [70.0, 500.0];
const TOP: [f64; 3] = [110.0, 356.0, 602.0];

/// What there is of the JSON for a drawing.
#[derive(Deserialize)]
struct Results {
    kernel: String,
    compared: Vec<Row>,
}

/// Draws the results in `from` into `to`.
pub(crate) fn plot(from: &Path, to: &Path) -> Result<()> {
    let text = std::fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    // the output of a run will do: its last line is the JSON
    let json = text.trim_end().lines().last().unwrap_or_default();
    let results: Results = serde_json::from_str(json)
        .with_context(|| format!("{}: the last line is no result", from.display()))?;
    let svg = draw(&results).with_context(|| format!("cannot draw {}", from.display()))?;
    std::fs::write(to, svg).with_context(|| format!("cannot write {}", to.display()))
}

/// What a row of panels shows.
struct Measure {
    title: &'static str,
    ticks: &'static [f64],
    logarithmic: bool,
    of: fn(&Row) -> Spread,
}

const MEASURES: [Measure; 3] = [
    Measure {
        title: "time to connect (no rules = 1; lower is better)",
        ticks: &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        logarithmic: true,
        of: |row| row.connect_ratio,
    },
    Measure {
        title: "connections per second (no rules = 1)",
        ticks: &[0.0, 0.25, 0.5, 0.75, 1.0],
        logarithmic: false,
        of: |row| row.per_second_ratio,
    },
    Measure {
        title: "throughput of one connection (no rules = 1)",
        ticks: &[0.0, 0.25, 0.5, 0.75, 1.0],
        logarithmic: false,
        of: |row| row.throughput_ratio,
    },
];

impl Measure {
    /// Where a value is, from the panel's bottom (0) to its top (1).
    fn at(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        // a little room above the last tick
        let part = match self.logarithmic {
            true => (value / first).log2() / ((last / first).log2() + 0.3),
            false => (value - first) / ((last - first) * 1.08),
        };
        part.clamp(0.0, 1.0)
    }
}

fn draw(results: &Results) -> Result<String> {
    let rows = &results.compared;
    ensure!(!rows.is_empty(), "there is no comparison in it");
    let mut layouts: Vec<&str> = Vec::new();
    rows.iter().for_each(|row| {
        if !layouts.contains(&row.layout.as_str()) {
            layouts.push(&row.layout);
        }
    });
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"What a connection pays, by layout, as ratios to no rules\">\n{STYLE}\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>\n"
    );
    text(
        &mut svg,
        "title",
        LEFT[0] - 40.0,
        30.0,
        "start",
        "What a connection pays, by how policies are laid out",
    )?;
    let mut x = LEFT[0] - 40.0;
    for (i, layout) in layouts.iter().enumerate() {
        writeln!(svg, "<line class=\"l{i} line\" x1=\"{x}\" y1=\"54\" x2=\"{}\" y2=\"54\"/>", x + 26.0)?;
        mark(&mut svg, i, x + 13.0, 54.0)?;
        text(&mut svg, "label", x + 32.0, 58.0, "start", layout)?;
        x += 52.0 + 6.6 * layout.len() as f64;
    }
    for (column, series) in
        [("policies", "policies on the pod"), ("peers", "peers, of 10 policies")].iter().enumerate()
    {
        for (row, measure) in MEASURES.iter().enumerate() {
            let of_series: Vec<&Row> = rows.iter().filter(|r| r.series == series.0).collect();
            if !of_series.is_empty() {
                panel(&mut svg, (LEFT[column], TOP[row]), measure, &of_series, &layouts, *series)?;
            }
        }
    }
    let note = format!(
        "Linux {}; medians of the ratios of many rounds, bars from the first to the third quartile",
        results.kernel
    );
    text(&mut svg, "small", LEFT[0] - 40.0, HEIGHT - 12.0, "start", &note)?;
    svg += "</svg>\n";
    Ok(svg)
}

fn panel(
    svg: &mut String,
    (left, top): (f64, f64),
    measure: &Measure,
    rows: &[&Row],
    layouts: &[&str],
    (series, title): (&str, &str),
) -> Result<()> {
    let (width, height) = PANEL;
    let number = |row: &Row| if series == "policies" { row.policies } else { row.peers };
    let mut numbers: Vec<usize> = rows.iter().map(|row| number(row)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let log = |n: usize| (n as f64).log10();
    let (first, last) = (log(numbers[0]), log(numbers[numbers.len() - 1]));
    let x = |n: usize| left + 14.0 + (width - 28.0) * (log(n) - first) / (last - first).max(1e-9);
    let y = |value: f64| top + height * (1.0 - measure.at(value));

    text(svg, "label", left, top - 10.0, "start", measure.title)?;
    for tick in measure.ticks {
        let at = y(*tick);
        writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/>",
            left + width
        )?;
        text(svg, "small", left - 6.0, at + 4.0, "end", &tick.to_string())?;
    }
    for n in &numbers {
        text(svg, "small", x(*n), top + height + 16.0, "middle", &thousands(*n))?;
    }
    text(svg, "small", left + width / 2.0, top + height + 32.0, "middle", title)?;
    for (i, layout) in layouts.iter().enumerate() {
        let mut points: Vec<(f64, Spread)> = rows
            .iter()
            .filter(|row| row.layout == *layout)
            .map(|row| (x(number(row)), (measure.of)(row)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line: Vec<String> = points.iter().map(|(x, s)| format!("{x:.1},{:.1}", y(s.median))).collect();
        writeln!(svg, "<polyline class=\"l{i} line\" points=\"{}\"/>", line.join(" "))?;
        for (x, spread) in points {
            let (low, high) = (y(spread.low), y(spread.high));
            writeln!(
                svg,
                "<line class=\"l{i} bar\" x1=\"{x:.1}\" y1=\"{low:.1}\" x2=\"{x:.1}\" y2=\"{high:.1}\"/>"
            )?;
            mark(svg, i, x, y(spread.median))?;
        }
    }
    Ok(())
}

/// A layout's mark: a circle, a square, a triangle and so on.
fn mark(svg: &mut String, layout: usize, x: f64, y: f64) -> Result<()> {
    let corners: &[(f64, f64)] = match layout % 6 {
        1 => &[(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)],
        3 => &[(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)],
        4 => &[(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)],
        5 => &[(0.0, 5.0), (5.0, -4.0), (-5.0, -4.0)],
        _ => &[],
    };
    if corners.is_empty() {
        let radius = if layout == 0 { 3.0 } else { 4.5 };
        return Ok(writeln!(
            svg,
            "<circle class=\"l{layout} mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"
        )?);
    }
    let points: Vec<String> = corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
    Ok(writeln!(svg, "<polygon class=\"l{layout} mark\" points=\"{}\"/>", points.join(" "))?)
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) -> Result<()> {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    Ok(writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    )?)
}

fn thousands(n: usize) -> String {
    if n < 1_000 { n.to_string() } else { format!("{},{:03}", n / 1_000, n % 1_000) }
}

/// Colours that people with any colour vision can tell apart.
const STYLE: &str = "<style>
text { font-family: system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 17px; font-weight: 600; }
.label { font-size: 13px; }
.small { font-size: 12px; fill: #57606a; }
.ground { fill: #ffffff; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.bar { stroke-width: 2; opacity: 0.45; }
.l0 { stroke: #6e7781; } .mark.l0 { fill: #6e7781; }
.l1 { stroke: #444c56; } .mark.l1 { fill: #444c56; }
.l2 { stroke: #0072b2; } .mark.l2 { fill: #0072b2; }
.l3 { stroke: #b35900; } .mark.l3 { fill: #b35900; }
.l4 { stroke: #a6337a; } .mark.l4 { fill: #a6337a; }
.l5 { stroke: #00795a; } .mark.l5 { fill: #00795a; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.small { fill: #9da7b1; }
.ground { fill: #0d1117; }
.grid { stroke: #30363d; }
.l0 { stroke: #8b949e; } .mark.l0 { fill: #8b949e; }
.l1 { stroke: #c9d1d9; } .mark.l1 { fill: #c9d1d9; }
.l2 { stroke: #56b4e9; } .mark.l2 { fill: #56b4e9; }
.l3 { stroke: #f0a030; } .mark.l3 { fill: #f0a030; }
.l4 { stroke: #e38fc0; } .mark.l4 { fill: #e38fc0; }
.l5 { stroke: #2fbf94; } .mark.l5 { fill: #2fbf94; }
}
</style>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_where_their_ticks_are() {
        for measure in &MEASURES {
            let at: Vec<f64> = measure.ticks.iter().map(|tick| measure.at(*tick)).collect();
            let step = at[1] - at[0];
            assert!(at.windows(2).all(|pair| (pair[1] - pair[0] - step).abs() < 1e-9), "{}", measure.title);
            assert!(at[0] == 0.0 && at[at.len() - 1] < 1.0, "{}: nothing is cut off", measure.title);
        }
    }

    #[test]
    fn a_line_goes_through_what_was_measured() {
        let spread = |median| Spread { median, low: median, high: median };
        let row = |policies, ratio| Row {
            series: "policies".into(),
            layout: "a < b".into(),
            policies,
            peers: 10,
            connect: [1.0, 2.0],
            connect_ratio: spread(ratio),
            p99_ratio: 1.0,
            per_second: 1.0,
            per_second_ratio: spread(1.0),
            throughput: 1.0,
            throughput_ratio: spread(1.0),
        };
        let results = Results { kernel: "6".into(), compared: vec![row(100, 4.0), row(1, 1.0)] };
        let svg = draw(&results).unwrap();
        // from the panel's left bottom, by the number of policies and not by the order of rows
        let bottom = TOP[0] + PANEL.1;
        let at = format!("points=\"{:.1},{bottom:.1} {:.1},", LEFT[0] + 14.0, LEFT[0] + PANEL.0 - 14.0);
        assert!(svg.contains(&at), "{at}\n{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
        assert!(draw(&Results { kernel: String::new(), compared: Vec::new() }).is_err());
    }
}
