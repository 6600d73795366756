//! The figures: a line each for people, and all of them in one line of JSON for programs.

use std::time::Duration;

use serde::Serialize;

use crate::compare::Row;
use crate::compile::Compiled;

/// What was measured once or many times.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// Which measurement.
    pub(crate) part: &'static str,
    /// What exactly.
    pub(crate) name: String,
    /// Of `value`, `p99`, `goal` and `split`.
    pub(crate) unit: &'static str,
    /// The median where there is more than one sample.
    pub(crate) value: f64,
    /// The 99th percentile, by nearest rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    /// Samples.
    pub(crate) samples: usize,
    /// To stay under, `p99` included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<f64>,
    /// Where the time goes: medians.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) split: Vec<(&'static str, f64)>,
}

impl Figure {
    /// A figure that was taken once.
    pub(crate) fn one(part: &'static str, name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Figure { part, name: name.into(), unit, value, p99: None, samples: 1, goal: None, split: Vec::new() }
    }

    /// Milliseconds, taken many times.
    pub(crate) fn times(part: &'static str, name: impl Into<String>, samples: Vec<Duration>) -> Self {
        let samples = sorted(samples.into_iter().map(millis).collect());
        let p99 = (samples.len() >= 100).then(|| rank(&samples, 99));
        Figure { p99, samples: samples.len(), ..Figure::one(part, name, "ms", rank(&samples, 50)) }
    }

    /// How many samples it is the median of.
    pub(crate) fn runs(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// The 99th percentile of so many samples, for which there is no goal.
    pub(crate) fn p99(self, p99: f64, samples: usize) -> Self {
        Figure { p99: Some(p99), samples, ..self }
    }

    /// The goal that it should stay under.
    pub(crate) fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Where the time of `value` goes.
    pub(crate) fn split(mut self, split: impl IntoIterator<Item = (&'static str, Vec<Duration>)>) -> Self {
        self.split = split.into_iter().map(|(name, samples)| (name, median(samples))).collect();
        self
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| self.value.max(self.p99.unwrap_or(0.0)) < goal)
    }

    fn line(&self) -> String {
        let number = |value: f64| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let p99 = self.p99.map(number).unwrap_or_default();
        let goal = self.goal.map(|goal| format!("< {goal}")).unwrap_or_default();
        let verdict = self.met().map_or("", |met| if met { "ok" } else { "over" });
        let split: Vec<String> =
            self.split.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        let line = format!(
            "  {:<48} {:>8} {p99:>8} {:<6} {goal:<7} {verdict:<5} {}",
            self.name,
            number(self.value),
            self.unit,
            split.join(", ")
        );
        line.trim_end().to_owned()
    }
}

/// All figures of a run, printed as they come.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    compared: Vec<Row>,
    compiled: Vec<Compiled>,
}

impl Report {
    /// Begins a group of figures.
    pub(crate) fn heading(&mut self, text: &str) {
        println!("\n{text}");
        let [value, p99] = ["median", "p99"];
        println!("  {:<48} {value:>8} {p99:>8} {:<6} {:<7}", "", "unit", "goal");
    }

    /// Takes a figure and prints it.
    pub(crate) fn add(&mut self, figure: Figure) {
        println!("{}", figure.line());
        self.figures.push(figure);
    }

    /// Takes a figure that has been printed.
    pub(crate) fn keep(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Takes a series of layouts and prints it.
    pub(crate) fn compared(&mut self, rows: Vec<Row>) {
        println!(
            "  {:<26} {:>8} {:>7} {:>17} {:>22} {:>22} {:>22}",
            "layout",
            "policies",
            "peers",
            "connect, p99 (µs)",
            "/ no rules, p99",
            "conn/s / no rules",
            "Gbit/s / no rules"
        );
        for row in &rows {
            println!("{row}");
        }
        self.compared.extend(rows);
    }

    /// Takes a scenario whose figures have been printed.
    pub(crate) fn add_compiled(&mut self, compiled: Compiled) {
        self.compiled.push(compiled);
    }

    /// The scenarios so far.
    pub(crate) fn compiled(&self) -> &[Compiled] {
        &self.compiled
    }

    /// Everything in one line.
    pub(crate) fn json(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let figures: Vec<serde_json::Value> = self
            .figures
            .iter()
            .map(|figure| {
                let mut figure = figure.clone();
                let numbers = figure.split.iter_mut().map(|(_, value)| value).chain(&mut figure.p99);
                numbers.chain([&mut figure.value]).for_each(|number| *number = (*number * 1e4).round() / 1e4);
                let mut value = serde_json::json!(figure);
                if let Some(met) = figure.met() {
                    value["ok"] = met.into();
                }
                value
            })
            .collect();
        serde_json::json!({
            "weir": env!("CARGO_PKG_VERSION"),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "load": read("/proc/loadavg"),
            "figures": figures,
            "compared": self.compared,
            "compiled": self.compiled,
        })
        .to_string()
    }
}

/// In milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The median, in milliseconds.
pub(crate) fn median(samples: Vec<Duration>) -> f64 {
    rank(&sorted(samples.into_iter().map(millis).collect()), 50)
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// The smallest sample that at least so many of a hundred do not exceed; 0 if there is none.
pub(crate) fn rank(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((rank(&samples, 50), rank(&samples, 99)), (100.0, 198.0));
        assert_eq!((rank(&[7.0], 50), rank(&[7.0], 99), rank(&[], 99)), (7.0, 7.0, 0.0));
    }

    #[test]
    fn a_median_below_its_goal_does_not_hide_a_p99_above_it() {
        let slow = (0..100).map(|i| Duration::from_millis(if i < 98 { 1 } else { 9 })).collect();
        let figure = Figure::times("x", "y", slow).goal(5.0);
        assert_eq!((figure.value, figure.p99, figure.met()), (1.0, Some(9.0), Some(false)));
    }
}
