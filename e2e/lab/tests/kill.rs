//! Agents are killed at random moments while policies change and packets flow.
//!
//! `KILLS` and `PACKETS` set how many of each there are at least (20 and 1,000,000), `KILL_SEED` the moments.

mod common;

use std::process::Command;
use std::time::Duration;

use common::traffic::{LOST_AFTER, Traffic};
use common::{objects, with_agents};
use weir_lab::objects::Objects;

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, labels: {app: other}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {nodeName: n1}}
";

/// Lets `web` in at 80 and nobody else, by as many policies as `edit` says: some of the chains are in a
/// row, some by port class, and all of them change with each edit.
fn policies(edit: u64) -> Objects {
    let policy = |name: u64, from: &str, ports: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{name}}}, spec: {{podSelector: \
             {{matchLabels: {{app: db}}}}, ingress: [{{from: [{from}], ports: [{ports}]}}]}}}}\n---\n"
        )
    };
    let mut all = policy(0, "{podSelector: {matchLabels: {app: web}}}", "{port: 80, protocol: UDP}");
    for i in 1..=(edit * 7 % 40) {
        let from = match i % 3 {
            0 => format!("{{ipBlock: {{cidr: 198.51.{}.0/24}}}}", (edit + i) % 256),
            1 => format!("{{podSelector: {{matchLabels: {{app: none{}}}}}}}", (edit + i) % 50),
            // may use other ports than the watched one
            _ => "{podSelector: {}}".to_owned(),
        };
        let port = if i % 3 == 2 { 1000 + i } else { 80 };
        all += &policy(i, &from, &format!("{{port: {port}, protocol: UDP}}"));
    }
    objects(&all)
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "needs root"]
fn killed_at_any_moment_the_kernel_holds_old_or_new_policies() {
    let (kills, packets) = (number("KILLS", 20), number("PACKETS", 1_000_000));
    let mut seed = number("KILL_SEED", std::process::id().into());
    println!("KILL_SEED={seed}");
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };

    let mut cluster = objects(CLUSTER);
    cluster.overlay(policies(0));
    let mut t = with_agents(cluster);
    let traffic = Traffic::start(&t.lab);
    let (mut killed, mut edit) = (0, 0);
    while killed < kills || traffic.sent() < packets {
        // the moment is anywhere from the first steps of a start to long after it
        for _ in 0..random(4) {
            edit += 1;
            t.lab.apply(policies(edit)).expect("an edit");
            std::thread::sleep(Duration::from_millis(random(40)));
        }
        std::thread::sleep(Duration::from_millis(random(60)));
        if killed < kills || random(4) == 0 {
            let mut agent = t.lab.agents().remove("n1").expect("an agent");
            assert!(agent.is_running(), "it ended by itself:\n{}", agent.log());
            agent.kill().expect("it is ours");
            t.lab.start_agent("n1").expect("another");
            killed += 1;
        }
        assert_eq!(traffic.wrong(), (0, 0), "after {killed} kills, {edit} edits, {} packets", traffic.sent());
    }
    std::thread::sleep(LOST_AFTER + Duration::from_millis(500));
    let (sent, wrong) = (traffic.sent(), traffic.wrong());
    println!(
        "{killed} kills, {edit} edits, {sent} packets: {} allowed lost, {} denied passed",
        wrong.0, wrong.1
    );
    assert_eq!(wrong, (0, 0));

    // the instrument itself: without rules it sees what passes, and a rule too many it sees as well
    t.lab.agents().remove("n1").expect("an agent").kill().expect("it is ours");
    let node = t.lab.netns("n1").expect("the node");
    let nft =
        |text: &str| node.run(|| Ok(Command::new("nft").arg(text).status()?.success())).expect("nft runs");
    assert!(nft("delete table inet weir"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while traffic.wrong().1 == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(traffic.wrong().1 > 0, "a moment without rules would not have been seen");
    assert!(nft("table inet x { chain x { type filter hook forward priority 0; drop; }; }"));
    while traffic.wrong().0 == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(traffic.wrong().0 > 0, "a rule too many would not have been seen");
    traffic.stop();
}
