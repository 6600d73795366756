//! U11: pods that the agent does not know (yet).

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{TestLab, objects, start_with};
use weir_lab::network::PodLinks;
use weir_lab::objects::Family;
use weir_lab::{Options, agent};

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: known}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: late}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.244.2.4}, {ip: 'fd00:0:0:2::4'}]}}
";
const KNOWN: [&str; 2] = ["10.244.1.2", "fd00::2"];
const LATE: [&str; 2] = ["10.244.1.3", "fd00::3"];
const FAR: [&str; 2] = ["10.244.2.4", "fd00:0:0:2::4"];

fn lab(links: PodLinks, unknown: &str) -> TestLab {
    let options = Options {
        links: links.into(),
        family: Some(Family::Dual),
        agent: Some(agent::find().expect("cargo build -p weir-agent")),
        agent_arguments: vec![format!("--unknown-pods={unknown}")],
        ..Options::default()
    };
    start_with(objects(CLUSTER), options)
}

fn bind(t: &TestLab, place: &str, address: &str) -> UdpSocket {
    let at = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 0);
    let socket = t.lab.netns(place).expect("a place").run(|| Ok(UdpSocket::bind(at)?)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(250))).expect("a timeout");
    socket
}

fn passes(from: &UdpSocket, to: &UdpSocket) -> bool {
    let _ = from.send_to(b"hello", to.local_addr().expect("bound"));
    to.recv_from(&mut [0; 16]).is_ok()
}

/// Far longer than the agent takes.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

/// The manifest of the pod that comes late.
fn manifest(t: &TestLab) -> PathBuf {
    let files = std::fs::read_dir(t.lab.manifests()).expect("manifests").flatten().map(|file| file.path());
    let is_it = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.contains("\"late\"") && !text.contains("\"far\"")
    };
    files.into_iter().find(is_it).expect("a manifest of its own")
}

#[test]
#[ignore = "needs root"]
fn u11_unknown_pods_are_closed_until_they_are_known() {
    for links in [PodLinks::Calico, PodLinks::Flannel] {
        let t = lab(links, "deny");
        let file = manifest(&t);
        let text = std::fs::read_to_string(&file).expect("a manifest");
        for family in 0..2 {
            let (known, late) = (bind(&t, "known", KNOWN[family]), bind(&t, "late", LATE[family]));
            let far = bind(&t, "far", FAR[family]);
            soon("the instrument itself", || {
                passes(&known, &late) && passes(&late, &far) && passes(&far, &late)
            });
            std::fs::remove_file(&file).expect("unknown");
            soon("closed", || !passes(&known, &late) && !passes(&late, &known));
            assert!(!passes(&late, &far) && !passes(&far, &late), "by way of the node, {links}");
            soon("others", || passes(&known, &far) && passes(&far, &known));
            std::fs::write(&file, &text).expect("known");
            // from other ports: what an address was an end of when its pod left has ended (U9)
            let (known, late) = (bind(&t, "known", KNOWN[family]), bind(&t, "late", LATE[family]));
            let far = bind(&t, "far", FAR[family]);
            soon("open", || passes(&known, &late) && passes(&late, &known));
            soon("all of it", || passes(&late, &far) && passes(&far, &late));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn u11_unknown_pods_are_open_if_nothing_says_otherwise() {
    for links in [PodLinks::Calico, PodLinks::Flannel] {
        let mut t = lab(links, "allow");
        std::fs::remove_file(manifest(&t)).expect("unknown");
        t.lab.restart_agent("n1").expect("ready");
        let (known, late) = (bind(&t, "known", KNOWN[0]), bind(&t, "late", LATE[0]));
        assert!(passes(&known, &late) && passes(&late, &known), "{links}");
    }
}
