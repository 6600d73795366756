//! Questions about many at once: workloads, namespaces, Services, nodes and ranges of addresses.
//! Answers are in `snapshots/`.

mod common;

use std::path::Path;

use common::{Run, weir};

/// The cluster of `shop/`.
fn can(args: &[&str]) -> Run {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shop");
    weir(&dir, &[&["can"], args, &["-f", "cluster.yaml", "-f", "policies.yaml"]].concat())
}

/// What is printed, with the exit code.
fn said(args: &[&str]) -> String {
    let run = can(args);
    let notes = if run.err.is_empty() { String::new() } else { format!("--- standard error\n{}", run.err) };
    format!("$ weir can {}\n{}{notes}--- exit code {}\n", args.join(" "), run.out, run.code.expect("an exit"))
}

#[test]
fn text() {
    for (name, args) in [
        ("workloads", &["shop/deploy/web", "sts/db:5432", "-n", "shop"][..]),
        ("workload_to_itself", &["deploy/web", "deploy/web:http", "-n", "shop"]),
        ("cronjob", &["ops/cronjob/backup", "shop/db-0:sql"]),
        ("namespaces", &["ns/ops", "ns/shop:5432"]),
        ("namespaces_all_ports", &["ns/ops", "ns/shop"]),
        ("service_port", &["shop/web-7d9f-a", "svc/db:5432", "-n", "shop"]),
        ("service_by_name", &["shop/web-7d9f-a", "shop/svc/db:metrics"]),
        ("service_all_ports", &["ops/backup-29660400-x", "shop/svc/db"]),
        ("internet_out", &["shop/deploy/web", "internet:443"]),
        ("internet_out_denied", &["shop/deploy/web", "internet:80/TCP"]),
        ("internet_in", &["internet", "shop/sts/db:5432"]),
        ("cidr_in", &["10.0.0.0/8", "shop/db-0:5432"]),
        ("cidr_v6", &["fd00::/8", "shop/db-0:5432"]),
        ("node_own", &["node/n1", "shop/db-0:1"]),
        ("node_other", &["node/w1", "shop/db-0:1"]),
        ("to_node", &["shop/deploy/web", "node/n1:10250"]),
        ("address_in", &["8.8.8.8", "shop/db-0:5432"]),
    ] {
        insta::assert_snapshot!(name, said(args));
    }
}

#[test]
fn errors() {
    let questions = [
        &["deploy/wep", "db-0:1", "-n", "shop"][..],
        &["ns/shop", "ns/opps:1"],
        &["node/n2", "shop/db-0:1"],
        &["shop/db-0", "svc/dp:5432", "-n", "shop"],
        &["shop/db-0", "shop/svc/db:80"],
        &["shop/svc/db", "shop/db-0:80"],
        &["shop/web", "shop/db-0:80"],
        &["internet", "8.8.8.8:80"],
        &["internet", "10.0.0.0/8:80"],
        &["shop/fleet/x", "shop/db-0"],
        &["shop//db-0", "shop/db-0"],
    ];
    let all: Vec<String> = questions.iter().map(|args| said(args)).collect();
    insta::assert_snapshot!("errors", all.concat());
}

#[test]
fn json() {
    for (name, args) in [
        ("json_workloads", &["shop/deploy/web", "shop/sts/db:5432"][..]),
        ("json_cidr", &["10.0.0.0/8", "shop/db-0:1"]),
        ("json_all_ports", &["ops/backup-29660400-x", "shop/db-0"]),
    ] {
        insta::assert_snapshot!(name, can(&[args, &["-o", "json"]].concat()).out);
    }
}
