//! A copy of what Azure NPM makes on a node, from iptables and ipset: chains, rules and names as in its sources
//! (github.com/Azure/azure-container-networking, npm/), for policies of these tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use std::io::Write;
use std::process::{Command, Stdio};

/// What `iptables-nft` and `iptables-legacy` end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iptables {
    Nft,
    Legacy,
}

impl Iptables {
    pub fn program(self, what: &str) -> String {
        let variant = match self {
            Iptables::Nft => "nft",
            Iptables::Legacy => "legacy",
        };
        format!("iptables-{variant}{what}")
    }

    /// Newer kernels may come without the old tables.
    pub fn works(self) -> bool {
        let program = self.program("-save");
        self == Iptables::Nft || Command::new(program).output().is_ok_and(|out| out.status.success())
    }

    pub fn restore(self, text: &str) {
        feed(&self.program("-restore"), &["--noflush", "-c"], text);
    }

    pub fn run(self, arguments: &str) {
        let program = self.program("");
        let status = Command::new(&program).args(arguments.split(' ')).status().expect("package iptables");
        assert!(status.success(), "{program} {arguments}");
    }

    /// All rules, with their counters.
    pub fn save(self) -> String {
        let text = output(&self.program("-save"), &["-c"]);
        // comments have the time of day
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }
}

fn feed(program: &str, arguments: &[&str], text: &str) {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().expect("packages iptables, ipset");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} refused:\n{text}");
}

pub fn output(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().expect("a program of the tests");
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub fn ipsets() -> Vec<String> {
    let mut names: Vec<String> = output("ipset", &["list", "-n"]).lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// Who is in NPM's sets: addresses of the pods with app=web and app=friend, and of all of the namespace.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    pub web: &'a [&'a str],
    pub friend: &'a [&'a str],
    pub all: &'a [&'a str],
}

pub const WEB: &str = "azure-npm-2854688459";
pub const FRIEND: &str = "azure-npm-2129276318";
pub const ALL: &str = "azure-npm-3922407721";

fn sets(members: Members<'_>) {
    let mut text = String::new();
    for (name, addresses) in [(WEB, members.web), (FRIEND, members.friend), (ALL, members.all)] {
        text += &format!("create {name} hash:net maxelem 4294967295\n");
        addresses.iter().for_each(|address| text += &format!("add {name} {address}\n"));
    }
    text += &format!("create azure-npm-530439631 list:set\nadd azure-npm-530439631 {ALL}\n");
    text += "create azure-npm-3050895063 hash:ip,port maxelem 4294967295\n";
    text += "add azure-npm-3050895063 10.244.1.2,tcp:80\n";
    feed("ipset", &["restore"], &text);
}

/// NPM v2: only app=friend may send to app=web, at port 80/UDP, and app=friend only to there.
pub fn v2(iptables: Iptables, members: Members<'_>) {
    sets(members);
    iptables.restore(&format!(
        "*filter
:AZURE-NPM - [0:0]
:AZURE-NPM-INGRESS - [0:0]
:AZURE-NPM-INGRESS-ALLOW-MARK - [0:0]
:AZURE-NPM-EGRESS - [0:0]
:AZURE-NPM-ACCEPT - [0:0]
:AZURE-NPM-INGRESS-474303581 - [0:0]
:AZURE-NPM-EGRESS-3618314628 - [0:0]
-I FORWARD 1 -m conntrack --ctstate NEW -j AZURE-NPM
-A AZURE-NPM -j AZURE-NPM-INGRESS
-A AZURE-NPM -j AZURE-NPM-EGRESS
-A AZURE-NPM -j AZURE-NPM-ACCEPT
-A AZURE-NPM-INGRESS -m set --match-set {ALL} dst -m set --match-set {WEB} dst -m comment --comment \
INGRESS-POLICY-a/web-TO-podlabel-app:web-IN-ns-a -j AZURE-NPM-INGRESS-474303581
-A AZURE-NPM-INGRESS -m mark --mark 0x400/0x400 -m comment --comment DROP-ON-INGRESS-DROP-MARK-0x400/0x400 -j DROP
-A AZURE-NPM-INGRESS-474303581 -p udp --dport 80 -m set --match-set {ALL} src -m set --match-set {FRIEND} src \
-m comment --comment ALLOW-FROM-podlabel-app:friend-IN-ns-a-ON-UDP-TO-PORT-80 -j AZURE-NPM-INGRESS-ALLOW-MARK
-A AZURE-NPM-INGRESS-474303581 -m comment --comment DROP-ALL -j MARK --set-mark 0x400/0x400
-A AZURE-NPM-INGRESS-ALLOW-MARK -m comment --comment SET-INGRESS-ALLOW-MARK-0x200/0x200 -j MARK --set-mark 0x200/0x200
-A AZURE-NPM-INGRESS-ALLOW-MARK -j AZURE-NPM-EGRESS
-A AZURE-NPM-EGRESS -m set --match-set {ALL} src -m set --match-set {FRIEND} src -m comment --comment \
EGRESS-POLICY-a/friend-FROM-podlabel-app:friend-IN-ns-a -j AZURE-NPM-EGRESS-3618314628
-A AZURE-NPM-EGRESS -m mark --mark 0x800/0x800 -m comment --comment DROP-ON-EGRESS-DROP-MARK-0x800/0x800 -j DROP
-A AZURE-NPM-EGRESS -m mark --mark 0x200/0x200 -m comment --comment ACCEPT-ON-INGRESS-ALLOW-MARK-0x200/0x200 \
-j AZURE-NPM-ACCEPT
-A AZURE-NPM-EGRESS-3618314628 -p udp --dport 80 -m set --match-set {ALL} dst -m set --match-set {WEB} dst \
-m comment --comment ALLOW-TO-podlabel-app:web-IN-ns-a-ON-UDP-TO-PORT-80 -j AZURE-NPM-ACCEPT
-A AZURE-NPM-EGRESS-3618314628 -m comment --comment DROP-ALL -j MARK --set-mark 0x800/0x800
-A AZURE-NPM-ACCEPT -m comment --comment CLEAR-AZURE-NPM-MARKS -j MARK --set-mark 0x0
-A AZURE-NPM-ACCEPT -j ACCEPT
COMMIT
"
    ));
}

/// NPM v1, with a plain jump, and the marks of then: only app=friend may send to app=web.
pub fn v1(iptables: Iptables, members: Members<'_>) {
    sets(members);
    iptables.restore(&format!(
        "*filter
:AZURE-NPM - [0:0]
:AZURE-NPM-ACCEPT - [0:0]
:AZURE-NPM-INGRESS - [0:0]
:AZURE-NPM-INGRESS-PORT - [0:0]
:AZURE-NPM-INGRESS-FROM - [0:0]
:AZURE-NPM-INGRESS-DROPS - [0:0]
:AZURE-NPM-EGRESS - [0:0]
:AZURE-NPM-EGRESS-PORT - [0:0]
:AZURE-NPM-EGRESS-TO - [0:0]
:AZURE-NPM-EGRESS-DROPS - [0:0]
-A FORWARD -j AZURE-NPM
-A AZURE-NPM -j AZURE-NPM-INGRESS
-A AZURE-NPM -j AZURE-NPM-EGRESS
-A AZURE-NPM -m mark --mark 0x3000 -j AZURE-NPM-ACCEPT
-A AZURE-NPM -m mark --mark 0x2000 -j AZURE-NPM-ACCEPT
-A AZURE-NPM -m mark --mark 0x1000 -j AZURE-NPM-ACCEPT
-A AZURE-NPM -m state --state RELATED,ESTABLISHED -j ACCEPT
-A AZURE-NPM-ACCEPT -j MARK --set-mark 0x0
-A AZURE-NPM-ACCEPT -j ACCEPT
-A AZURE-NPM-INGRESS -j AZURE-NPM-INGRESS-PORT
-A AZURE-NPM-INGRESS -m mark --mark 0x2000 -j RETURN
-A AZURE-NPM-INGRESS -j AZURE-NPM-INGRESS-DROPS
-A AZURE-NPM-INGRESS-PORT -m set --match-set {WEB} dst -j AZURE-NPM-INGRESS-FROM
-A AZURE-NPM-INGRESS-FROM -m set --match-set {FRIEND} src -j MARK --set-mark 0x2000
-A AZURE-NPM-INGRESS-DROPS -m mark ! --mark 0x2000 -m set --match-set {WEB} dst -j DROP
-A AZURE-NPM-EGRESS -j AZURE-NPM-EGRESS-PORT
-A AZURE-NPM-EGRESS -j AZURE-NPM-EGRESS-DROPS
-A AZURE-NPM-EGRESS-PORT -m set --match-set {ALL} src -j MARK --set-mark 0x1000/0x1000
COMMIT
"
    ));
}

/// What others have on such a node, with counters: kube-proxy's, the cloud's, an administrator's; in tables of
/// iptables and of nft, and an ipset.
pub fn neighbours(iptables: Iptables) {
    feed("ipset", &["restore"], "create mine hash:ip\nadd mine 192.0.2.1\ncreate azure-npm-mine hash:ip\n");
    iptables.restore(
        "*nat
:KUBE-SERVICES - [0:0]
[7:420] -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:AZURE-NPM-MINE - [0:0]
[3:180] -A INPUT -s 192.0.2.9/32 -p tcp -m tcp --dport 22 -j ACCEPT
[5:300] -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
[2:120] -A FORWARD -d 168.63.129.16/32 -p tcp -m tcp --dport 80 -j DROP
[1:60] -A FORWARD -m set --match-set mine src -j DROP
[8:480] -A FORWARD -s 192.0.2.5/32
[9:540] -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
[4:240] -A AZURE-NPM-MINE -s 192.0.2.7/32 -j DROP
COMMIT
",
    );
    let table = "table inet others { set s { type ipv4_addr; elements = { 192.0.2.3 }; }
        chain forward { type filter hook forward priority 7; ip saddr @s counter packets 6 bytes 360 drop; }; }";
    feed("nft", &["-f", "-"], table);
}
