//! docs/metrics.md has every metric of the controller, and no other.

use std::collections::BTreeSet;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use weir_controller::metrics::Metrics;

#[test]
fn the_table_has_every_metric() {
    let mut registry = Registry::default();
    weir_health::build_info(&mut registry, "weir_controller", "1");
    let _metrics = Metrics::new(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).expect("text");
    let mut exposed: BTreeSet<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{suffix}"), kind.to_owned())
        })
        .collect();
    // has no value without agents
    exposed.insert(("weir_controller_node_versions_behind".to_owned(), "gauge".to_owned()));
    exposed.insert(("weir_controller_node_behind_seconds".to_owned(), "gauge".to_owned()));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `weir_controller_")?.split_once("` | "));
    let documented: BTreeSet<(String, String)> = rows
        .map(|(name, rest)| {
            (format!("weir_controller_{name}"), rest.split_once(" |").expect("a column").0.to_owned())
        })
        .collect();
    assert_eq!(documented, exposed);
}
