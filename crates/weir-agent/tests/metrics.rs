//! docs/metrics.md has every metric of the agent, and no other.

use std::collections::BTreeSet;

use prometheus_client::encoding::text::encode;
use weir_agent::metrics::Metrics;

/// Names as they are exposed, without the suffixes that their type gives them.
fn exposed(controller: bool) -> BTreeSet<(String, String)> {
    let metrics = Metrics::default();
    let mut text = String::new();
    encode(&mut text, &metrics.registry(controller)).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let name = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            (name, kind.to_owned())
        })
        .collect()
}

#[test]
fn the_table_has_every_metric() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `weir_agent_"));
    let documented: BTreeSet<(String, String)> = rows
        .map(|row| {
            let (name, rest) = row.split_once("` | ").unwrap();
            (format!("weir_agent_{name}"), rest.split_once(" |").unwrap().0.to_owned())
        })
        .collect();
    let all: BTreeSet<_> = exposed(true).union(&exposed(false)).cloned().collect();
    assert_eq!(documented, all);
    assert!(all.iter().all(|(name, _)| name.starts_with("weir_agent_")));
}

#[test]
fn contact_is_counted_from_when_it_was_lost() {
    let metrics = Metrics::default();
    let seconds = || {
        let mut text = String::new();
        encode(&mut text, &metrics.registry(true)).unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("weir_agent_last_contact_seconds ")).unwrap();
        line.parse::<f64>().unwrap()
    };
    assert!(seconds() > 0.0);
    metrics.connected();
    assert_eq!(seconds(), 0.0);
    metrics.disconnected();
    let first = seconds();
    metrics.disconnected();
    assert!(first > 0.0 && seconds() > first, "a failed attempt is no contact");
}
