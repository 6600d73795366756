//! What Azure NPM leaves, made with iptables and ipset in namespaces of the tests' own, and `weir-agent npm-leftovers`.

mod common;

#[path = "common/npm.rs"]
mod npm;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use common::in_netns;
use npm::{Iptables, Members, ipsets, output};
use weir_agent::kernel::Kernel;
use weir_dataplane::Planner;
use weir_lab::agent::{Agent, AgentSetup};
use weir_lab::network::PodLinks;
use weir_lab::objects::{Family, Objects};
use weir_lab::ports::Port;
use weir_lab::probe::{Flow, Outcome};
use weir_lab::watch::Watch;
use weir_lab::{Lab, Options};

const PODS: Members<'_> = Members {
    web: &["10.244.1.2"],
    friend: &["10.244.1.3"],
    all: &["10.244.1.2", "10.244.1.3", "10.244.1.4"],
};

/// The program, in this thread's namespace: code, and what it said on both channels.
fn leftovers(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_weir-agent")).arg("npm-leftovers").args(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

fn weir_enforces() {
    let planner = Planner::new();
    Kernel::open().unwrap().sync(&planner.tables(), Vec::new()).unwrap();
}

/// Everything, with counters and handles.
fn state() -> [String; 4] {
    let nft = output("nft", &["-a", "list", "ruleset"]);
    let legacy = if Iptables::Legacy.works() { Iptables::Legacy.save() } else { String::new() };
    [nft, Iptables::Nft.save(), legacy, output("ipset", &["save"])]
}

/// With which of them NPM can be here: newer kernels may come without the old tables.
fn iptables() -> impl Iterator<Item = Iptables> {
    [Iptables::Nft, Iptables::Legacy].into_iter().filter(|iptables| iptables.works())
}

#[test]
#[ignore = "needs root"]
fn exactly_what_npm_made_goes_and_all_else_stays_as_it_was() {
    let copies: [fn(Iptables, Members<'_>); 2] = [npm::v2, npm::v1];
    for (iptables, copy) in iptables().flat_map(|iptables| copies.map(|copy| (iptables, copy))) {
        in_netns(move || {
            npm::neighbours(iptables);
            let place =
                if iptables == Iptables::Nft { "table ip filter" } else { "table filter of iptables-legacy" };
            weir_enforces();
            let before = state();
            let nothing = leftovers(&[]);
            assert!(
                nothing.0 == 0 && nothing.1.starts_with("Azure NPM has left nothing here\n"),
                "{nothing:?}"
            );
            let kept = format!("not touched: chain AZURE-NPM-MINE in {place} ");
            assert!(nothing.1.contains(&kept), "{nothing:?}");
            assert!(nothing.1.contains("not touched: ipset azure-npm-mine"), "{nothing:?}");

            copy(iptables, PODS);
            let with = state();
            assert_ne!(with, before);
            let listed = leftovers(&[]);
            assert_eq!(listed.0, 1, "{listed:?}");
            for part in [
                &format!("jump   {place}, chain FORWARD, rule"),
                &format!("chain  {place}, chain AZURE-NPM-INGRESS, "),
                "ipset  azure-npm-530439631, list:set",
                "ipset  azure-npm-3050895063, hash:ip,port",
                "nothing was changed",
            ] {
                assert!(listed.1.contains(part), "{part} in {}", listed.1);
            }
            assert_eq!(state(), with, "to list changes nothing");

            let removed = leftovers(&["--remove"]);
            assert!(removed.0 == 0 && removed.1.starts_with("removed 1 jump, "), "{removed:?}");
            assert_eq!(state(), before);
            let again = leftovers(&["--remove"]);
            assert!(again.0 == 0 && again.1.starts_with("Azure NPM has left nothing here"), "{again:?}");
            assert_eq!(state(), before);
        });
    }
}

#[test]
#[ignore = "needs root"]
fn it_is_refused_while_npm_runs_or_nothing_else_enforces() {
    in_netns(|| {
        output("ip", &["link", "set", "lo", "up"]);
        npm::v2(Iptables::Nft, PODS);
        let before = state();
        let refused = leftovers(&["--remove"]);
        assert!(refused.0 == 2 && refused.1.contains("Weir's rules are not in force"), "{refused:?}");
        weir_enforces();
        let with_weir = state();
        let npm = TcpListener::bind("0.0.0.0:10091").unwrap();
        let refused = leftovers(&["--remove"]);
        assert!(refused.0 == 2 && refused.1.contains("TCP port 10091"), "{refused:?}");
        assert!(leftovers(&[]).1.contains("NPM seems to run"));
        assert_eq!(state(), with_weir);
        assert_ne!(with_weir, before);
        drop(npm);
        assert_eq!(leftovers(&["--remove"]).0, 0);
        assert_eq!(ipsets(), Vec::<String>::new());
    });
}

#[test]
#[ignore = "needs root"]
fn by_force_it_is_done_in_any_case() {
    in_netns(|| {
        output("ip", &["link", "set", "lo", "up"]);
        npm::v2(Iptables::Nft, PODS);
        let _npm = TcpListener::bind("[::]:10091").unwrap();
        let refused = leftovers(&["--force"]);
        assert_eq!(refused.0, 2, "--force is for --remove: {refused:?}");
        assert_eq!(leftovers(&["--remove", "--force"]).0, 0);
        assert!(!Iptables::Nft.save().contains("AZURE"));
    });
}

#[test]
#[ignore = "needs root"]
fn a_rule_of_others_that_leads_to_npms_chains_stops_it_before_anything_is_changed() {
    for iptables in iptables() {
        in_netns(move || {
            weir_enforces();
            npm::v2(iptables, PODS);
            let rule = "INPUT -s 192.0.2.1 -j AZURE-NPM-INGRESS";
            iptables.run(&format!("-A {rule}"));
            let before = state();
            let refused = leftovers(&["--remove"]);
            let why = " jumps to AZURE-NPM-INGRESS and is not as NPM writes it";
            assert!(refused.0 == 2 && refused.1.contains(why), "{refused:?}");
            assert_eq!(state(), before);
            // what it says to do, done
            if iptables == Iptables::Nft {
                let advice = refused.1.split("nft delete").nth(1).expect("advice").trim();
                let words: Vec<&str> = std::iter::once("delete").chain(advice.split_whitespace()).collect();
                output("nft", &words);
            } else {
                assert!(refused.1.contains("iptables-legacy -S INPUT"), "{refused:?}");
                iptables.run(&format!("-D {rule}"));
            }
            assert_eq!(leftovers(&["--remove"]).0, 0);
        });
    }
}

/// Also where it ended in the middle: chains are gone, ipsets are not.
#[test]
#[ignore = "needs root"]
fn what_could_not_be_done_at_first_is_done_the_next_time() {
    in_netns(|| {
        weir_enforces();
        npm::v2(Iptables::Nft, PODS);
        Iptables::Nft.run(&format!("-A INPUT -m set --match-set {} src -j ACCEPT", npm::ALL));
        let partly = leftovers(&["--remove"]);
        assert_eq!(partly.0, 2, "{partly:?}");
        assert!(partly.1.contains("7 chains are removed; not all ipsets are"), "{partly:?}");
        assert!(partly.1.contains(npm::ALL), "{partly:?}");
        // its members are still there, for the rule
        assert_eq!(ipsets(), [npm::ALL]);
        assert_eq!(output("ipset", &["save"]).lines().count(), 4);
        assert!(Iptables::Nft.save().contains("--match-set"));
        assert_eq!(leftovers(&[]).0, 1);
        Iptables::Nft.run(&format!("-D INPUT -m set --match-set {} src -j ACCEPT", npm::ALL));
        let rest = leftovers(&["--remove"]);
        assert!(rest.0 == 0 && rest.1.starts_with("removed 0 jumps, 0 chains, 1 ipset "), "{rest:?}");
        assert_eq!(leftovers(&[]).0, 0);
    });
}

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: friend, namespace: a, labels: {app: friend}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: a}, spec: {nodeName: n1}, status: {podIP: 10.244.1.4}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: a},
 spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 80, protocol: UDP}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: friend, namespace: a},
 spec: {podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80, protocol: UDP}]}]}}
";

struct Migration {
    lab: Lab,
    flows: Vec<(Flow, bool)>,
    agent: Option<Agent>,
    folder: tempfile::TempDir,
}

impl Migration {
    fn new() -> Migration {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("objects.yaml");
        std::fs::write(&file, CLUSTER).unwrap();
        let options = Options {
            links: PodLinks::Calico.into(),
            family: Some(Family::Ipv4),
            dir: folder.path().join("lab"),
            ..Options::default()
        };
        let mut lab = Lab::start(Objects::read(&[file]).unwrap().0, options).expect("the lab starts");
        let port: Port = "80/UDP".parse().unwrap();
        lab.listen(&[port]).unwrap();
        let pods = lab.cluster().pods.clone();
        let name = |end: usize| pods[end].key.name.as_str();
        let denied = [("stranger", "web"), ("friend", "stranger")];
        let allowed = |flow: &Flow| !denied.contains(&(name(flow.from), name(flow.to)));
        let flows: Vec<(Flow, bool)> = lab
            .flows(&[port])
            .into_iter()
            .map(|flow| {
                let allowed = allowed(&flow);
                (flow, allowed)
            })
            .collect();
        assert_eq!(flows.len(), 6);
        Migration { lab, flows, agent: None, folder }
    }

    fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.lab.netns("n1").unwrap().run(|| Ok(f())).unwrap()
    }

    fn start_weir(&mut self) {
        let setup = AgentSetup {
            program: PathBuf::from(env!("CARGO_BIN_EXE_weir-agent")),
            arguments: ["--mid-stream-grace", "0", "--metrics-listen", "off"].map(str::to_owned).to_vec(),
            manifests: self.lab.manifests(),
            logs: self.folder.path().join("logs"),
        };
        let mut agent = Agent::start("n1", self.lab.netns("n1").unwrap(), &setup).unwrap();
        agent.wait_ready(Duration::from_secs(20)).unwrap();
        self.agent = Some(agent);
    }

    /// Each flow once, from a new socket.
    fn judged(&self, what: &str) {
        let flows: Vec<Flow> = self.flows.iter().map(|(flow, _)| flow.clone()).collect();
        let outcomes = self.lab.probe(&flows, Duration::from_millis(900)).unwrap();
        for ((flow, allowed), outcome) in self.flows.iter().zip(outcomes) {
            let (from, to) = (flow.source, flow.destination);
            assert_eq!(outcome == Outcome::Passed, *allowed, "{what}: {from} -> {to}: {outcome:?}");
        }
    }

    /// Packets of all flows during all of it.
    fn meanwhile(&mut self, change: impl FnOnce(&mut Migration)) {
        let (every, denied, allowed) =
            (Duration::from_millis(4), Duration::from_millis(200), Duration::from_millis(1500));
        let flows = self.flows.clone();
        let watches: Vec<Watch> = flows
            .iter()
            .map(|(flow, passes)| {
                Watch::start(&self.lab, flow, every, if *passes { allowed } else { denied }).unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        change(self);
        std::thread::sleep(Duration::from_millis(200));
        for ((flow, allowed), watch) in flows.iter().zip(watches) {
            let counts = watch.stop().unwrap();
            let (good, bad) = match allowed {
                true => (counts.passed, counts.silent),
                false => (counts.silent, counts.passed),
            };
            assert!(good > 20 && bad == 0 && counts.wrong == 0, "{flow:?}, allowed {allowed}: {counts:?}");
        }
    }
}

/// The way of docs/migrating-from-azure-npm.md: no step opens what policies deny, or closes what they allow.
#[test]
#[ignore = "needs root"]
fn from_npm_to_weir_no_packet_is_judged_wrongly_at_any_step() {
    for iptables in iptables() {
        let mut node = Migration::new();
        node.inside(|| npm::v2(iptables, PODS));
        node.judged("NPM alone");
        node.meanwhile(|node| node.start_weir());
        node.judged("Weir beside NPM");
        // NPM is turned off: its process ends, and its rules stay
        node.meanwhile(|node| {
            let removed = node.inside(|| leftovers(&["--remove"]));
            assert_eq!(removed.0, 0, "{removed:?}");
        });
        node.judged("Weir alone");
        assert!(!node.inside(|| iptables.save()).contains("AZURE"));
    }
}

#[test]
#[ignore = "needs root"]
fn a_legacy_table_is_not_changed_without_the_lock() {
    if !Iptables::Legacy.works() {
        return;
    }
    in_netns(|| {
        weir_enforces();
        npm::v2(Iptables::Legacy, PODS);
        let before = state();
        let with = |lock: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weir-agent"));
            let out =
                command.args(["npm-leftovers", "--remove"]).env("XTABLES_LOCKFILE", lock).output().unwrap();
            (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
        };
        let refused = with("/nowhere/xtables.lock");
        assert!(refused.0 == 2 && refused.1.contains("the node's /nowhere/xtables.lock"), "{refused:?}");
        assert_eq!(state(), before);
        let lock = tempfile::NamedTempFile::new().unwrap();
        let path = lock.path().to_str().unwrap();
        lock.as_file().lock().unwrap();
        let refused = with(path);
        assert!(refused.0 == 2 && refused.1.contains("another program has held"), "{refused:?}");
        assert_eq!(state(), before);
        lock.as_file().unlock().unwrap();
        assert_eq!(with(path).0, 0);
    });
}
