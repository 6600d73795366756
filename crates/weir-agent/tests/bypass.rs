//! The agent as a program, in a network namespace of the test's own, beside what takes packets past its rules.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

const METRICS: &str = "127.0.0.1:9441";

fn get(path: &str) -> String {
    let mut stream = TcpStream::connect(METRICS).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn sh(command: &str) {
    assert!(Command::new("sh").args(["-ec", command]).status().unwrap().success(), "{command}");
}

/// Ends with the test.
struct Agent(Child, Receiver<String>);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    /// The lines until one that has this text, that one too.
    fn until(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut lines: Vec<String> = Vec::new();
        while !lines.last().is_some_and(|line| line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            lines.push(self.1.recv_timeout(left).unwrap_or_else(|_| panic!("no {text:?} after {lines:#?}")));
        }
        lines
    }
}

#[test]
#[ignore = "needs root"]
fn what_takes_packets_past_the_rules_is_reported_once() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, and the right to make network namespaces");
    let folder = std::env::temp_dir().join(format!("weir-agent-bypass-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    sh("ip link add cilium_host type veth peer name cilium_net; ip link set lo up");
    sh("nft add table ip filter; nft add chain ip filter AZURE-NPM; nft add table ip calico");
    sh("ipset create azure-npm-3922407721 hash:net");
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
        .args(["--node", "n", "--metrics-listen", METRICS, "--manifests"])
        .arg(&folder)
        .env("NO_COLOR", "1")
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let agent = Agent(child, lines);

    // what is there at the start
    let start = agent.until("Cilium is on this node (there is an interface cilium_host)").join("\n");
    let npm = "Azure NPM enforces policies on this node, too, or has left its rules here (chain AZURE-NPM in table ip \
               filter, ipset azure-npm-3922407721)";
    assert!(start.contains(npm) && start.contains("(table ip calico)"), "{start}");
    // it is no reason not to be ready, and a number for those who watch
    let deadline = Instant::now() + Duration::from_secs(20);
    while !get("/readyz").starts_with("HTTP/1.1 200 OK") {
        assert!(Instant::now() < deadline, "{}", get("/readyz"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let metrics = get("/metrics");
    for (engine, seen) in [("azure-npm", 1), ("calico", 1), ("cilium", 1), ("weave-net", 0), ("ipvs", 0)] {
        let line = format!("weir_agent_neighbour{{engine=\"{engine}\"}} {seen}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    // what comes later: no module of IPVS is needed for an interface of that name
    sh("ip link add kube-ipvs0 type bridge");
    agent.until("IPVS is in use (there is an interface kube-ipvs0)");
    // it comes again, and then something else does: of which there is word, and of the first none
    sh("ip link del kube-ipvs0; ip link add kube-ipvs0 type bridge; ip link del cilium_host");
    sh("ip link add cilium_net type bridge; ip link set lo up");
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: odd, namespace: a}, \
                  spec: {podSelector: {}, policyTypes: [Sideways]}}";
    std::fs::write(folder.join("policy.yaml"), policy).unwrap();
    let meanwhile = agent.until("Sideways");
    assert!(!meanwhile.iter().any(|l| l.contains("IPVS") || l.contains("Cilium")), "{meanwhile:#?}");
    std::fs::remove_dir_all(folder).unwrap();
}
