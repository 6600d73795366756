//! Ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_compiler::cidr::{Cidr, CidrSet};
use weir_compiler::object::{ObjectKey, Protocol};
use weir_compiler::policy::PeerClause;
use weir_compiler::slice::Direction;

use super::{Checked, Finding, World, allows, pods};
use crate::lint::codes::*;
use crate::lint::source::YamlPath;

pub(super) fn check(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    for (rule, path, block) in checked.blocks() {
        text(&checked.key, &path.then("cidr"), &block.cidr, out);
        for (i, except) in block.except.iter().enumerate() {
            text(&checked.key, &path.then("except").then(i), except, out);
        }
        let Some(cidr) = Cidr::parse(&block.cidr) else { continue };
        let whole = CidrSet::from_cidrs([cidr]);
        nowhere(&checked.key, &path, &block.cidr, &whole, out);
        // 53 to one address of a Service: a cache on the node listens there (U6)
        let is_one = matches!(cidr, Cidr::V4(a, b) if a == b) || matches!(cidr, Cidr::V6(a, b) if a == b);
        let dns = is_one && allows(rule.read.ports.as_deref(), Protocol::Udp, 53, |_, _| false);
        if world.services.covers(&whole) && !dns {
            let message = format!(
                "{} is in the range of Services ({}), and policies never see those",
                block.cidr, world.services
            );
            let help = match rule.direction {
                Direction::Egress => {
                    "select the pods behind the Service, or name the addresses that its EndpointSlices have"
                }
                Direction::Ingress => "select the pods that call, or name the addresses of their nodes",
            };
            out.push(
                Finding::new(&WEIR210, &checked.key, path.then("cidr"), message)
                    .why("the address of a Service is translated to that of a backend before policies look at it (U8)")
                    .help(help),
            );
        }
        for (i, except) in block.except.iter().enumerate() {
            let set = CidrSet::from_cidrs(Cidr::parse(except));
            if !set.is_empty() && world.services.covers(&set) && !world.services.covers(&whole) {
                let message = format!(
                    "{except} is in the range of Services ({}): this keeps nobody from calling them",
                    world.services
                );
                out.push(
                    Finding::new(&WEIR210, &checked.key, path.then("except").then(i), message)
                        .why("the address of a Service is translated to that of a backend before policies look at it (U8)")
                        .help("except the range of the pods behind it"),
                );
            }
        }
        let rest = whole.minus(&CidrSet::from_cidrs(block.except.iter().filter_map(|e| Cidr::parse(e))));
        over_pods(world, &checked.key, &path, &rest, &block.cidr, out);
    }
    one_family(world, checked, out);
}

/// N44, N45: texts that new API servers refuse, and that other programs read otherwise.
fn text(policy: &ObjectKey, path: &YamlPath, text: &str, out: &mut Vec<Finding>) {
    let Some(cidr) = Cidr::parse(text) else { return };
    let Some((address, _)) = text.split_once('/') else { return };
    let canonical = canonical(cidr);
    let zeros = |part: &str| part.len() > 1 && part.starts_with('0');
    let is_v6 = address.contains(':');
    let odd = if is_v6 && matches!(cidr, Cidr::V4(..)) {
        Some("it is an IPv4 network in the form of IPv6")
    } else if (!is_v6 && address.split('.').any(zeros)) || text.split_once('/').is_some_and(|(_, n)| zeros(n))
    {
        Some("it has leading zeros, which are decimal here and octal elsewhere")
    } else {
        None
    };
    if let Some(why) = odd {
        let message = format!("{text:?} means {canonical} to Kubernetes");
        let why = format!(
            "{why}: other network plugins read it in another way or let everything pass, and API servers from 1.36 on refuse it"
        );
        out.push(
            Finding::new(&WEIR106, policy, path.clone(), message).why(why).help(format!("write {canonical}")),
        );
        return;
    }
    let hosts = if is_v6 { format!("{address}/128") } else { format!("{address}/32") };
    let start = |c: Cidr| match c {
        Cidr::V4(first, _) => (u128::from(first), true),
        Cidr::V6(first, _) => (first, false),
    };
    if Cidr::parse(&hosts).is_some_and(|own| start(own) != start(cidr)) {
        let single = canonical_of(address);
        out.push(
            Finding::new(
                &WEIR107,
                policy,
                path.clone(),
                format!("{text:?} means {canonical}, not only {address}"),
            )
            .why("bits behind the prefix do not count; API servers from 1.36 on refuse them")
            .help(format!("write {canonical} for the network, {single} for the one address")),
        );
    }
}

fn canonical_of(address: &str) -> String {
    if address.contains(':') { format!("{address}/128") } else { format!("{address}/32") }
}

fn canonical(cidr: Cidr) -> String {
    match cidr {
        Cidr::V4(first, last) => format!("{}/{}", Ipv4Addr::from_bits(first), (first ^ last).leading_zeros()),
        Cidr::V6(first, last) => format!("{}/{}", Ipv6Addr::from_bits(first), (first ^ last).leading_zeros()),
    }
}

/// Ranges that are on no wire.
fn nowhere(policy: &ObjectKey, path: &YamlPath, text: &str, set: &CidrSet, out: &mut Vec<Finding>) {
    let ranges = [
        ("127.0.0.0/8", "loopback addresses never leave a pod, and a pod always reaches itself"),
        ("::1/128", "loopback addresses never leave a pod, and a pod always reaches itself"),
        ("0.0.0.0/8", "no packet has such an address; everything is 0.0.0.0/0"),
        ("::/128", "no packet has this address; everything is ::/0"),
    ];
    for (range, why) in ranges {
        if CidrSet::from_cidrs(Cidr::parse(range)).covers(set) {
            let message = format!("{text} matches nobody");
            out.push(
                Finding::new(&WEIR110, policy, path.then("cidr"), message)
                    .why(why)
                    .help("leave out this peer, or name the range that is meant"),
            );
        }
    }
}

/// Blocks that are not everything and have pods in them.
fn over_pods(
    world: &World<'_>,
    policy: &ObjectKey,
    path: &YamlPath,
    set: &CidrSet,
    text: &str,
    out: &mut Vec<Finding>,
) {
    let everything = CidrSet::from_cidrs(Cidr::parse(text));
    if everything.v4.is_all() || everything.v6.is_all() {
        return;
    }
    let mut found: Vec<(IpAddr, &ObjectKey)> = Vec::new();
    for kind in world.inventory.kinds.iter().filter(|k| !k.host_network) {
        found.extend(kind.addresses.iter().filter(|ip| set.contains(**ip)).map(|ip| (*ip, &kind.example)));
    }
    let Some((address, example)) = found.first() else { return };
    let message =
        format!("{text} has the addresses of {}, such as {address} (like {example})", pods(found.len()));
    out.push(
        Finding::new(&WEIR209, policy, path.then("cidr"), message)
            .why("it lets them pass whatever their labels are, and the next pod gets another address")
            .help("select pods by podSelector and namespaceSelector, and except their range from the block"),
    );
}

/// `0.0.0.0/0` alone, for pods of both families.
fn one_family(world: &World<'_>, checked: &Checked<'_>, out: &mut Vec<Finding>) {
    let both = |at: &usize| {
        let addresses = &world.inventory.kinds[*at].addresses;
        addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6)
    };
    if !checked.selected.iter().any(both) {
        return;
    }
    for rule in checked.rules() {
        let sets: Vec<(usize, &CidrSet)> = rule
            .read
            .peers
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(i, p)| match p {
                PeerClause::Cidrs(set) => Some((i, &**set)),
                _ => None,
            })
            .collect();
        let widest = |i: usize| {
            let cidr = rule.peers[i].ip_block.as_ref().and_then(|b| Cidr::parse(&b.cidr));
            let set = CidrSet::from_cidrs(cidr);
            (set.v4.is_all(), set.v6.is_all())
        };
        let (v4, v6) =
            (sets.iter().any(|(_, s)| !s.v4.is_empty()), sets.iter().any(|(_, s)| !s.v6.is_empty()));
        for (i, _) in &sets {
            let (missing, other) = match (widest(*i), v4, v6) {
                ((true, _), _, false) => ("IPv6", "::/0"),
                ((_, true), false, _) => ("IPv4", "0.0.0.0/0"),
                _ => continue,
            };
            out.push(
                Finding::new(
                    &WEIR214,
                    &checked.key,
                    rule.peers_path().then(*i).then("ipBlock").then("cidr"),
                    format!("this allows nothing over {missing}, and the selected pods have addresses of both families"),
                )
                .why("an ipBlock is about its own family only")
                .help(format!("add a peer with ipBlock {other}")),
            );
        }
    }
}
