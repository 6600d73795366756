//! From an event to the kernel, in process: what each kind of change costs, and where its time goes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use weir_agent::kernel::Done;
use weir_compiler::object::{Event, ObjectKey};
use weir_lab::netns::Netns;

use crate::cluster::{self, Shape};
use crate::figures::{Figure, Report};
use crate::node::{Node, Split};

const GOAL: f64 = 5.0;
/// Of each kind; half of it where adding and removing are two kinds.
const SAMPLES: usize = 400;

/// A change that can be made and unmade, on several objects.
struct Kind {
    /// What the first and the second event of each pair are called; the same if they are alike.
    names: [&'static str; 2],
    pairs: Vec<[Event; 2]>,
}

/// Measures both clusters: with few and with all pods on the node.
pub(crate) fn measure(report: &mut Report, folder: &Path) -> Result<()> {
    for here in [110, 1_000] {
        let shape = Shape::changing(here);
        report.heading(&format!(
            "From an event to the kernel, in process: {} pods ({here} on this node), {} policies",
            shape.pods, shape.policies
        ));
        let folder = folder.join(here.to_string());
        shape.write(&folder, &[])?;
        let netns = Netns::new()?;
        shape.wire(&netns)?;
        netns.run(|| on_node(report, shape, &folder))?;
    }
    Ok(())
}

fn on_node(report: &mut Report, shape: Shape, folder: &Path) -> Result<()> {
    let mut node = Node::new()?;
    node.turn(cluster::events(folder)?)?;
    ensure!(node.pods() == shape.here, "{} pods are on this node, not {}", node.pods(), shape.here);
    for kind in kinds(shape, folder)? {
        let mut splits = [Vec::new(), Vec::new()];
        for sample in 0..SAMPLES {
            let which = sample % 2;
            let event = kind.pairs[sample / 2 % kind.pairs.len()][which].clone();
            let (done, split) = node.turn(vec![event])?;
            ensure!(
                matches!(done, Done::Applied { compared: false, .. }),
                "{}: made no transaction of its own ({done:?})",
                kind.names[which]
            );
            splits[which].push(split);
        }
        let [first, second] = splits;
        if kind.names[0] == kind.names[1] {
            report.add(figure(shape, kind.names[0], &[first, second].concat()));
        } else {
            report.add(figure(shape, kind.names[0], &first));
            report.add(figure(shape, kind.names[1], &second));
        }
    }
    node.check()
}

fn figure(shape: Shape, name: &str, splits: &[Split]) -> Figure {
    let part = if shape.here < shape.pods { "change" } else { "change, all pods here" };
    let totals = splits.iter().map(Split::total).collect();
    Figure::times(part, name, totals).goal(GOAL).split(Split::columns(splits))
}

fn kinds(shape: Shape, folder: &Path) -> Result<Vec<Kind>> {
    let one = |text: String| cluster::event(folder, &text);
    let all = 0..shape.namespaces;
    // application 0 is selected by policies, and 1 as a peer, too
    let relabelled = |rank| -> Result<Vec<[Event; 2]>> {
        all.clone()
            .map(|ns| shape.pod_at(ns, rank))
            .map(|pod| Ok([one(shape.pod(pod, 1))?, one(shape.pod(pod, 0))?]))
            .collect()
    };
    let removed = |rank| -> Result<Vec<[Event; 2]>> {
        all.clone()
            .map(|ns| shape.pod_at(ns, rank))
            .map(|pod| {
                let gone = ObjectKey::new(format!("ns-{}", shape.namespace_of(pod)), format!("pod-{pod}"));
                Ok([Event::PodGone(gone), one(shape.pod(pod, shape.app_of(pod)))?])
            })
            .collect()
    };
    let mut kinds = vec![
        Kind { names: ["label of a pod on this node"; 2], pairs: relabelled(0)? },
        Kind { names: ["pod of this node removed", "pod of this node added"], pairs: removed(1)? },
    ];
    if shape.here < shape.pods {
        kinds.push(Kind { names: ["label of a pod elsewhere"; 2], pairs: relabelled(50)? });
        kinds.push(Kind { names: ["pod elsewhere removed", "pod elsewhere added"], pairs: removed(51)? });
    }
    let policies = 0..shape.policies;
    let edited = policies.clone().map(|p| Ok([one(shape.policy(p, true))?, one(shape.policy(p, false))?]));
    kinds.push(Kind { names: ["policy edited (a port)"; 2], pairs: edited.collect::<Result<_>>()? });
    let removed = policies.map(|p| {
        let event = one(shape.policy(p, false))?;
        let Event::Policy(policy) = &event else { return Ok(None) };
        Ok(Some([Event::PolicyGone(policy.key()), event]))
    });
    let removed: Option<Vec<_>> = removed.collect::<Result<_>>()?;
    let pairs = removed.context("a policy is read as something else")?;
    kinds.push(Kind { names: ["policy removed", "policy added"], pairs });
    let moved = all.map(|n| Ok([one(shape.namespace(n, true))?, one(shape.namespace(n, false))?]));
    kinds.push(Kind { names: ["label of a namespace (100 pods)"; 2], pairs: moved.collect::<Result<_>>()? });
    Ok(kinds)
}
