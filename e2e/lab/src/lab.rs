//! A cluster that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::agent::{Agent, AgentSetup};
use crate::cluster::{Cluster, Machines, Pod};
use crate::expected::expected;
use crate::netns::Netns;
use crate::network::{Fabric, Links, Network};
use crate::objects::{Family, Objects};
use crate::ports::{self, Port};
use crate::probe::{Flow, Outcome, Prober};
use crate::report::{Answer, Report, Row};

/// How long an agent may take until the kernel holds its slice.
const READY: Duration = Duration::from_secs(10);
/// How long packets may still follow the old policies after a change.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a probe waits for an answer: at first, and when silence was not expected.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(350), Duration::from_millis(700), Duration::from_secs(2)];

/// How to build a lab.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How pods are joined to their nodes.
    pub links: Links,
    /// How nodes are joined to each other.
    pub fabric: Fabric,
    /// What takes part in probes besides pods.
    pub machines: Machines,
    /// Addresses for pods without any; `None`: the families of the others.
    pub family: Option<Family>,
    /// The agent's program; `None`: no agents, everything passes.
    pub agent: Option<PathBuf>,
    /// What it is told besides the node and the manifests.
    pub agent_arguments: Vec<String>,
    /// A folder of the lab's own, for manifests and logs.
    pub dir: PathBuf,
}

/// A cluster that runs: dropped, it is gone without a trace (but for its folder).
#[derive(Debug)]
pub struct Lab {
    agents: BTreeMap<String, Agent>,
    prober: Prober,
    network: Network,
    cluster: Cluster,
    objects: Objects,
    options: Options,
    changed: Option<Instant>,
}

impl Lab {
    /// Builds the cluster of these objects, and waits until all agents are ready.
    pub fn start(objects: Objects, options: Options) -> Result<Lab> {
        let mut lab = Lab {
            agents: BTreeMap::new(),
            prober: Prober::new()?,
            network: Network::new(options.links.clone(), options.fabric)?,
            cluster: Cluster::default(),
            objects: Objects::default(),
            options,
            changed: None,
        };
        lab.set(objects)?;
        lab.changed = None;
        Ok(lab)
    }

    /// Makes these the objects of the cluster. Pods come, go and move; agents see the change in their folder.
    pub fn set(&mut self, mut objects: Objects) -> Result<()> {
        objects.complete(self.options.family);
        let cluster = Cluster::new(&objects, &self.cluster).with(self.options.machines);
        for rebuilt in self.network.update(&cluster)? {
            // Its agent, if any, is in a namespace that is of no use now.
            self.agents.remove(&rebuilt);
        }
        objects.write(&self.manifests())?;
        self.cluster = cluster;
        self.objects = objects;
        self.changed = Some(Instant::now());

        let nodes: BTreeSet<String> =
            self.cluster.nodes.iter().filter(|n| !n.outside).map(|n| n.name.clone()).collect();
        self.agents.retain(|node, _| nodes.contains(node));
        let new: Vec<String> = nodes.into_iter().filter(|n| !self.agents.contains_key(n)).collect();
        new.iter().try_for_each(|node| self.start_agent(node))?;
        for node in &new {
            if let Some(agent) = self.agents.get_mut(node) {
                agent.wait_ready(READY)?;
            }
        }
        Ok(())
    }

    /// Lays objects over the present ones.
    pub fn apply(&mut self, other: Objects) -> Result<()> {
        let mut objects = self.objects.clone();
        objects.overlay(other);
        self.set(objects)
    }

    /// Takes objects out.
    pub fn delete(&mut self, other: &Objects) -> Result<()> {
        let mut objects = self.objects.clone();
        objects.remove(other);
        self.set(objects)
    }

    /// Takes a pod's interface away, and lets it come back with the same name, addresses and routes.
    pub fn replug(&mut self, pod: &str) -> Result<()> {
        let pod = self.pod(pod)?;
        self.changed = Some(Instant::now());
        self.network.replug(&pod)
    }

    /// Makes packets through a pod's link no larger than this.
    pub fn set_mtu(&mut self, pod: &str, mtu: u16) -> Result<()> {
        self.network.set_mtu(&self.pod(pod)?, mtu)
    }

    fn pod(&self, name: &str) -> Result<Pod> {
        self.cluster.pod(name).cloned().with_context(|| format!("no pod {name}, or several"))
    }

    /// Starts the agent of a node that has none, and does not wait for it.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        let Some(program) = self.options.agent.clone() else { return Ok(()) };
        let netns = self.network.node(node).with_context(|| format!("no node {node}"))?;
        let arguments = self.options.agent_arguments.clone();
        let setup = AgentSetup { program, arguments, manifests: self.manifests(), logs: self.logs() };
        self.agents.insert(node.to_owned(), Agent::start(node, netns, &setup)?);
        Ok(())
    }

    /// Kills the agent of a node the way a crash does, starts another, and waits until that is ready.
    pub fn restart_agent(&mut self, node: &str) -> Result<()> {
        if let Some(mut agent) = self.agents.remove(node) {
            agent.kill()?;
        }
        self.start_agent(node)?;
        match self.agents.get_mut(node) {
            Some(agent) => agent.wait_ready(READY),
            None => Ok(()),
        }
    }

    /// The agents, by node.
    pub fn agents(&mut self) -> &mut BTreeMap<String, Agent> {
        &mut self.agents
    }

    /// Nodes and pods.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// All objects, with nodes and addresses filled in.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The folder that the agents watch.
    pub fn manifests(&self) -> PathBuf {
        self.options.dir.join("manifests")
    }

    /// Where the agents' logs are.
    pub fn logs(&self) -> PathBuf {
        self.options.dir.join("logs")
    }

    /// The namespace of a node, or of a pod by `namespace/name` or by a name that only one has.
    pub fn netns(&self, name: &str) -> Option<&Netns> {
        self.network.node(name).or_else(|| self.network.pod(self.cluster.pod(name)?))
    }

    /// Every pair of pods (and of pods and machines) at every port, in every family that both have; no pod to
    /// itself.
    pub fn flows(&self, ports: &[Port]) -> Vec<Flow> {
        let mut flows = Vec::new();
        let ends = self.cluster.ends();
        let is_machine = |end: usize| end >= self.cluster.pods.len();
        for &port in ports {
            for (from, a) in ends.iter().enumerate() {
                for (to, b) in ends.iter().enumerate().filter(|(to, _)| *to != from) {
                    if is_machine(from) && is_machine(to) {
                        continue;
                    }
                    for (source, destination) in a.common_addresses(b) {
                        flows.push(Flow { from, to, source, destination, port });
                    }
                }
            }
        }
        flows
    }

    /// Makes every pod listen on these ports.
    pub fn listen(&mut self, ports: &[Port]) -> Result<()> {
        self.prober.listen(&self.network, &self.cluster.ends(), ports)
    }

    /// Sends packets once; pods must listen already.
    pub fn probe(&self, flows: &[Flow], patience: Duration) -> Result<Vec<Outcome>> {
        self.prober.probe(&self.network, &self.cluster.ends(), flows, patience)
    }

    pub(crate) fn prober(&self) -> &Prober {
        &self.prober
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Probes every pair of pods; without `ports`, on those that matter.
    pub fn report(&mut self, ports: &[Port]) -> Result<Report> {
        let mut notes = Vec::new();
        let ports = if ports.is_empty() {
            let (ports, cut) = ports::that_matter(&self.objects, &self.cluster);
            notes.extend(cut);
            ports
        } else {
            ports.to_vec()
        };
        notes
            .extend(self.cluster.left_out.iter().map(|(pod, why)| format!("pod {pod} is not probed: {why}")));
        self.listen(&ports)?;
        let flows = self.flows(&ports);
        let (expected, problems) = expected(&self.manifests(), &self.cluster, &flows);
        notes.extend(problems);
        let observed = self.observe(&flows, &expected, &mut notes)?;
        for (node, agent) in &mut self.agents {
            if !agent.is_running() {
                notes.push(format!("the agent of {node} has ended; its log:\n{}", agent.log()));
            }
        }
        Ok(Report { rows: self.rows(&flows, &expected, &observed), notes })
    }

    /// Sends packets, and again for those flows whose silence may be a lost packet and not a policy. A forbidden
    /// flow that passed has passed, however often it fails afterwards, unless policies have just changed.
    fn observe(&self, flows: &[Flow], expected: &[bool], notes: &mut Vec<String>) -> Result<Vec<bool>> {
        let mut outcomes = self.probe(flows, PATIENCE[0])?;
        let settling = |at: Instant| at.elapsed() < SETTLE && !self.agents.is_empty();
        for round in 1.. {
            let settling = self.changed.is_some_and(settling);
            let doubtful: Vec<usize> = (0..flows.len())
                .filter(|&i| (outcomes[i] == Outcome::Passed) != expected[i])
                .filter(|&i| settling || expected[i])
                .collect();
            let Some(patience) = PATIENCE.get(if settling { 1 } else { round }) else { break };
            if doubtful.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            let again: Vec<Flow> = doubtful.iter().map(|&i| flows[i].clone()).collect();
            for (i, outcome) in doubtful.into_iter().zip(self.probe(&again, *patience)?) {
                outcomes[i] = outcome;
            }
        }
        let ends = self.cluster.ends();
        let wrong = flows.iter().zip(&outcomes).filter_map(|(flow, outcome)| match outcome {
            Outcome::Wrong(why) => Some(format!(
                "{} -> {} {} ({}): {why}",
                ends[flow.from].key, ends[flow.to].key, flow.port, flow.destination
            )),
            _ => None,
        });
        notes.extend(wrong.take(20));
        Ok(outcomes.into_iter().map(|o| o == Outcome::Passed).collect())
    }

    fn rows(&self, flows: &[Flow], expected: &[bool], observed: &[bool]) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let ends = self.cluster.ends();
        for ((flow, &expected), &observed) in flows.iter().zip(expected).zip(observed) {
            let family = if flow.destination.is_ipv4() { "IPv4" } else { "IPv6" };
            let answer = Answer { expected, observed };
            let (from, to) = (&ends[flow.from].key, &ends[flow.to].key);
            // The families of one pair follow each other.
            match rows.last_mut() {
                Some(row) if row.from == *from && row.to == *to && row.port == flow.port => {
                    row.families.insert(family.into(), answer);
                }
                _ => rows.push(Row {
                    from: from.clone(),
                    to: to.clone(),
                    port: flow.port,
                    families: BTreeMap::from([(family.into(), answer)]),
                }),
            }
        }
        rows
    }
}

/// Reads manifests for a lab; complaints go to `notes`.
pub fn read(paths: &[PathBuf], notes: &mut Vec<String>) -> Result<Objects> {
    let (objects, said) = Objects::read(paths)?;
    notes.extend(said);
    anyhow::ensure!(
        objects.of_kind("Pod").next().is_some(),
        "no Pod in {}: a cluster without pods has nobody to ask{}",
        paths.iter().map(|p: &PathBuf| Path::display(p).to_string()).collect::<Vec<_>>().join(", "),
        notes.iter().map(|note| format!("\n  {note}")).collect::<String>()
    );
    Ok(objects)
}
