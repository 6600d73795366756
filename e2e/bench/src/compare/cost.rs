//! What the limits of `weir_dataplane::Costs` are chosen by: what a rule, a lookup and a jump cost a new
//! connection, what other limits would, and how much memory the members of a set take.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use weir_dataplane::Costs;
use weir_lab::netns::Netns;

use super::bench::{self, Bench};
use super::case::{Case, Random};
use super::layouts::{TRACKING, run, weir_with};
use super::samples::{Spread, differences};
use super::wire::Wired;
use crate::figures::{Figure, Report};

const ROUNDS: usize = 60;
/// So many of a kind in a row: what one costs is its share of the difference.
const REPEATED: usize = 64;
/// Sets so large that everything else in the kernel's memory is small beside them.
const MEMBERS: usize = 500_000;
const CLIENTS: usize = 10_000;

/// Measures all of it.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    super::allow_sockets()?;
    expressions(report)?;
    limits(report)?;
    memory(report)
}

/// What is repeated in a chain, in an inet table. No packet is held back by it.
struct Kind {
    name: &'static str,
    /// Declarations that it needs; `#` is the number of the repetition.
    declared: String,
    /// The rule; `#` likewise.
    rule: &'static str,
}

fn kinds() -> Vec<Kind> {
    let set = |flags: &str, elements: Vec<String>| {
        format!(" set s# {{ type ipv4_addr; {flags} elements = {{ {} }} }}\n", elements.join(", "))
    };
    let map = |elements: Vec<String>, flags: &str| {
        let jumps: Vec<String> = elements.iter().map(|port| format!("{port} : jump c")).collect();
        format!(" map m# {{ type inet_service : verdict; {flags} elements = {{ {} }} }}\n", jumps.join(", "))
    };
    let in_set = "ip saddr @s# drop";
    let all_ports = || super::case::ports().into_iter().map(|port| port.to_string()).collect();
    let around = || super::case::ports().into_iter().map(|port| format!("{port}-{}", port + 1)).collect();
    let kind = |name, declared, rule| Kind { name, declared, rule };
    vec![
        kind("rule of the other address family", String::new(), "ip6 saddr ::1 drop"),
        kind("port compared", String::new(), "tcp dport 1 drop"),
        kind("set of 10 addresses", set("", addresses(10)), in_set),
        kind("set of 1,000 addresses", set("", addresses(1_000)), in_set),
        kind("10 ranges of addresses", set("flags interval;", ranges(10)), in_set),
        kind("1,000 ranges of addresses", set("flags interval;", ranges(1_000)), in_set),
        kind("jump and return", String::new(), "jump c"),
        kind("verdict map of 100 ports, jump, return", map(all_ports(), ""), "tcp dport vmap @m#"),
        kind("the same of ranges", map(around(), "flags interval;"), "tcp dport vmap @m#"),
    ]
}

/// Not the clients'.
fn addresses(count: usize) -> Vec<String> {
    (0..count as u32).map(|i| Ipv4Addr::from_bits(0xac10_0000 + 7 * i).to_string()).collect()
}

/// The clients' are between them.
fn ranges(count: usize) -> Vec<String> {
    let base = |i: u32| if i.is_multiple_of(2) { 0x0900_0000 } else { 0x0c00_0000 };
    let first = |i: u32| base(i) + 64 * i;
    let range = |i| format!("{}-{}", Ipv4Addr::from_bits(first(i)), Ipv4Addr::from_bits(first(i) + 5));
    (0..count as u32).map(range).collect()
}

fn expressions(report: &mut Report) -> Result<()> {
    println!("\nWhat a rule costs a new connection: {REPEATED} in a row that do not match, by one");
    let case = Case::new(1, CLIENTS);
    let kinds = kinds();
    let mut benches = vec![Bench::new("none", false, &case, chain(None)?)?];
    for kind in &kinds {
        benches.push(Bench::new(kind.name, false, &case, chain(Some(kind))?)?);
    }
    bench::measure(&mut benches, ROUNDS, false)?;
    let none = &benches[0].samples.connect;
    for bench in &benches[1..] {
        let spread = differences(&bench.samples.connect, none, REPEATED);
        figure(report, &bench.name, "µs", spread);
    }
    Ok(())
}

fn chain(kind: Option<&Kind>) -> Result<Wired> {
    let mut text = String::from("table inet cost {\n chain c { return; }\n");
    let mut rules = String::new();
    for (kind, i) in kind.into_iter().flat_map(|kind| (0..REPEATED).map(move |i| (kind, i.to_string()))) {
        text += &kind.declared.replace('#', &i);
        writeln!(rules, "  {}", kind.rule.replace('#', &i))?;
    }
    write!(
        text,
        " chain forward {{\n  type filter hook forward priority 0\n  ct state established accept\n{rules} }}\n}}\n"
    )?;
    programmed(|| run("nft", &["-f", "-"], &text))
}

fn programmed(program: impl FnOnce() -> Result<()> + Send) -> Result<Wired> {
    let wired = Wired::new()?;
    wired.node.run(program)?;
    wired.forget_soon()?;
    Ok(wired)
}

/// The same policies with other limits.
fn limits(report: &mut Report) -> Result<()> {
    const ROW: Costs = Costs { in_a_row: usize::MAX, pod_sets: 0, cidr_sets: 0, growth: 0 };
    const BY_CLASS: Costs = Costs { in_a_row: 0, growth: 1_000, ..ROW };
    println!("\nWhat other limits cost a new connection: µs more than connection tracking alone");
    let few = [1, 2, 4, 8, 16].map(|policies| Case::new(policies, CLIENTS));
    let many = [100, 1_000].map(|policies| Case::new(policies, CLIENTS));
    let mut wanted: Vec<(&Case, String, Costs)> = Vec::new();
    for case in &few {
        wanted.push((case, format!("{} policies, in a row", case.policies), ROW));
        wanted.push((case, format!("{} policies, by port", case.policies), BY_CLASS));
    }
    for case in &many {
        for pod_sets in [1, 2, 4, 8, usize::MAX] {
            let most = if pod_sets == usize::MAX { "none".into() } else { format!("above {pod_sets}") };
            let name = format!("{} policies, by port, merged {most}", case.policies);
            wanted.push((case, name, Costs { pod_sets, ..BY_CLASS }));
        }
    }
    let mut benches = Vec::new();
    for case in few.iter().chain(&many) {
        benches.push(Bench::new(TRACKING.name, false, case, TRACKING.node(case)?)?);
    }
    for (case, name, costs) in wanted {
        benches.push(Bench::new(&name, true, case, programmed(|| weir_with(case, costs).map(drop))?)?);
    }
    bench::measure(&mut benches, ROUNDS, false)?;
    let (tracking, weir) = benches.split_at(few.len() + many.len());
    for bench in weir {
        let same = tracking.iter().find(|other| std::ptr::eq(other.case, bench.case));
        let same = same.context("nothing to compare with")?;
        figure(report, &bench.name, "µs", differences(&bench.samples.connect, &same.samples.connect, 1));
    }
    Ok(())
}

/// The kernel's memory for the members of sets; the whole machine's, so that only much of it shows.
fn memory(report: &mut Report) -> Result<()> {
    println!("\nKernel memory: bytes for each member of a set of {MEMBERS}");
    let mut addresses = String::new();
    let mut random = Random::new(7);
    for i in 0..MEMBERS {
        // different in their high bits, at random in the others
        let address = (i as u32) << 12 | random.next() as u32 & 0xfff;
        write!(addresses, "{},", Ipv4Addr::from_bits(address))?;
    }
    for (name, of) in [("of addresses", "ipv4_addr"), ("of ranges", "ipv4_addr\n flags interval")] {
        let text =
            format!("table inet cost {{\n set s {{\n type {of}\n elements = {{ {addresses} }}\n }}\n}}\n");
        let netns = Netns::new()?;
        let mut samples = Vec::new();
        for _ in 0..3 {
            let before = kernel_memory()?;
            netns.run(|| run("nft", &["-f", "-"], &text))?;
            samples.push((kernel_memory()? - before) * 1024.0 / MEMBERS as f64);
            netns.run(|| run("nft", &["-f", "-"], "flush ruleset\n"))?;
            std::thread::sleep(std::time::Duration::from_secs(1)); // freed after a grace period
        }
        figure(report, &format!("a set {name}"), "bytes", Spread::of(&samples));
    }
    Ok(())
}

/// KiB that the kernel has for itself: objects, and large tables.
fn kernel_memory() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number =
            line.and_then(|line| line.split_whitespace().next()).context(format!("no {name} in meminfo"))?;
        Ok(number.parse()?)
    };
    Ok(field("SUnreclaim")? + field("VmallocUsed")?)
}

fn figure(report: &mut Report, name: &str, unit: &'static str, spread: Spread) {
    println!("  {name:<48} {spread} {unit}");
    report.keep(Figure { samples: ROUNDS, ..Figure::one("cost", name, unit, spread.median) });
}
