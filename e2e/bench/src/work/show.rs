//! Something to look at: a cluster in which all that the dashboard shows happens, for as long as somebody watches.
//!
//! Pods come and go, connections are denied, now and then somebody deletes a table, an agent starts anew, and a stranger
//! knocks at the controller's door. The first line of output is JSON: the network namespace in which all metrics
//! can be read, and where.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weir_dataplane::TABLE;
use weir_dataplane::model::{Family, Op, Transaction};
use weir_nft::Nft;

use super::api::Kind;
use super::churn::{REAL, World};
use super::flood::{self, Flood};
use super::scene::{AGENT_METRICS_PORT, CONTROLLER_METRICS, Out};

/// Pods replaced in a second.
const RATE: u32 = 20;
/// How long one thing goes on before the next one happens.
const TURN: u32 = 15;

/// Works for so many seconds.
pub(super) fn show(folder: &Path, seconds: u32) -> Result<()> {
    let (mut world, mut scene) = World::start(folder)?;
    for (kind, key, json) in flood::objects(REAL) {
        scene.api.put(kind, &key, &json);
    }
    // one that cannot be enforced as it is written
    let strange = flood::policy(0, 1)
        .replace("11.0.0.1/32", "11.0.0.1/99")
        .replace("\"name\":\"0\"", "\"name\":\"strange\"");
    scene.api.put(Kind::Policy, "flood/strange", &strange);
    let mut pods = None;
    scene.node(REAL, &[], Out::File, |netns| {
        pods = Some(flood::wire(netns, REAL)?);
        Ok(())
    })?;
    let pods = pods.context("the pods' namespace")?;
    let agents: Vec<String> =
        scene.nodes.iter().map(|node| format!("{}:{AGENT_METRICS_PORT}", node.address)).collect();
    println!(
        "{}",
        serde_json::json!({"namespace": scene.centre().path(), "controllers": [CONTROLLER_METRICS], "agents": agents})
    );
    std::io::stdout().flush()?;
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let mut turn = 0;
    while Instant::now() < end {
        let flood = (turn % 2 == 0)
            .then(|| Flood::start(&pods, REAL, if turn % 4 == 0 { 1 } else { 10 }))
            .transpose()?;
        match turn % 4 {
            1 => scene.nodes[1]
                .netns
                .run(|| {
                    let ops = vec![Op::DeleteTable];
                    Ok(Nft::open()?.apply(&[Transaction {
                        family: Family::Inet,
                        table: TABLE.to_owned(),
                        ops,
                    }])?)
                })
                .map(drop)?,
            2 => scene.restart(2)?,
            3 => scene.centre().run(|| {
                for _ in 0..5 {
                    writeln!(TcpStream::connect("127.0.0.1:9443")?, "GET / HTTP/1.0\n")?;
                }
                Ok(())
            })?,
            _ => {}
        }
        world.churn(&scene, RATE, TURN)?;
        flood.map(Flood::stop).transpose()?;
        turn += 1;
    }
    Ok(())
}
