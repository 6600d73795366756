//! `weir render` says what the agent has in the kernel: its text, loaded by nft, makes the same tables.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::in_netns;
use weir_agent::backend::SetBackend;
use weir_agent::denials;
use weir_agent::run::{Options, Source, run};
use weir_dataplane::model::{Family, Table};
use weir_dataplane::{DenialLog, Settings, TABLE};
use weir_nft::Nft;

const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: n}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: free, namespace: other, labels: {app: "x"}}, spec: {nodeName: n}, status: {podIPs: [{ip: 10.0.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: web}}, spec: {nodeName: m}, status: {podIPs: [{ip: 10.0.1.1}, {ip: "fd00:1::1"}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.64/26]}}], ports: [{port: 5432}, {port: 6000, endPort: 6010}]}], egress: [{ports: [{port: http}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web, namespace: shop}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: http}]}]}}
"#;

fn tables() -> [Option<Table>; 2] {
    let mut nft = Nft::open().expect("nf_tables");
    [Family::Inet, Family::Bridge].map(|family| nft.dump(family, TABLE).expect("a dump"))
}

/// `weir` beside this program, one folder above it: both are built at once.
fn weir() -> PathBuf {
    let own = std::env::current_exe().expect("a program");
    let found = own.ancestors().skip(1).take(2).map(|f| f.join("weir")).find(|p| p.is_file());
    found.expect("weir beside this program: cargo build -p weir-cli")
}

/// What the agent has in the kernel, with `web` behind an interface of its own.
fn by_agent(folder: &Path, settings: Settings, log: bool, grace: Duration) -> [Option<Table>; 2] {
    let denials = log.then(|| denials::Options { per_second: 10, kernel: DenialLog::default() });
    let options = Options {
        node: "n".into(),
        source: Source::Manifests(folder.to_owned()),
        budgets: weir_compiler::Budgets::default(),
        settings,
        cni_results: folder.join("no-results"),
        mid_stream_grace: grace,
        sets: SetBackend::Nft,
        state: folder.join("no-state"),
        isolate_after_reboot: None,
        denials,
        metrics: None,
    };
    in_netns(move || {
        let links = "ip link add v type veth peer name w; ip link set v up; ip link set w up; \
                     ip route add 10.0.0.1/32 dev v; ip -6 route add fd00::1/128 dev v";
        assert!(Command::new("sh").args(["-ec", links]).status().expect("ip").success());
        std::thread::spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run(options)).expect("the agent runs");
        });
        // by interface, and everything in one batch
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = tables();
            let there = now[0].as_ref().and_then(|t| t.sets.get("ingress_by_interface"));
            if there.is_some_and(|map| map.elements.len() == 1) {
                return now;
            }
            assert!(Instant::now() < deadline, "{now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// What nft makes of the text.
fn by_nft(folder: &Path, arguments: &'static [&'static str]) -> [Option<Table>; 2] {
    let text = Command::new(weir())
        .args([
            "render",
            "--node",
            "n",
            "--attachment",
            "10.0.0.1=own:v",
            "--attachment",
            "fd00::1=own:v",
            "-f",
        ])
        .arg(folder)
        .args(arguments)
        .output()
        .expect("weir runs");
    assert!(text.status.success(), "{text:?}");
    in_netns(move || {
        use std::io::Write;
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft (package nftables)");
        child.stdin.take().expect("a pipe").write_all(&text.stdout).expect("it reads");
        assert!(child.wait().expect("it ends").success(), "{}", String::from_utf8_lossy(&text.stdout));
        tables()
    })
}

#[test]
#[ignore = "needs root"]
fn nft_makes_of_the_text_what_the_agent_makes() {
    let folder = std::env::temp_dir().join(format!("weir-render-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("cluster.yaml"), CLUSTER).expect("written");
    let revoked_mark = std::num::NonZeroU32::new(0x1000);
    let as_agent = Settings { revoked_mark, ..Settings::default() };
    let agent = by_agent(&folder, as_agent, true, Duration::ZERO);
    let whole = agent[0].as_ref().expect("a table");
    assert!(whole.chains.len() > 5 && whole.sets.len() > 10, "{whole}");
    assert_eq!(by_nft(&folder, &[]), agent);

    let other = Settings { source_guard: false, close_unknown: true, ..Settings::default() };
    let arguments = &[
        "--source-guard",
        "off",
        "--unknown-pods",
        "deny",
        "--existing-connections",
        "keep",
        "--mid-stream-grace",
        "--log-denied",
        "off",
    ];
    let agent = by_agent(&folder, other, false, Duration::from_secs(300));
    assert_eq!(by_nft(&folder, arguments), agent);
    std::fs::remove_dir_all(folder).expect("gone");
}
