//! A denial as people and programs read it; docs/denied-connections.md has the fields.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weir_compiler::object::ObjectKey;
use weir_compiler::slice::{Direction, NodeSlice, SlicePod};
use weir_compiler::verdict::Reason;

use super::packet::Flow;
use super::{Denial, Verdict, other, pod};

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    verdict: &'static str,
    node: &'a str,
    direction: &'static str,
    from: End,
    to: End,
    protocol: Protocol,
    policies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_allow: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed: u64,
}

#[derive(Serialize)]
pub(super) struct End {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<String>,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Protocol {
    Name(&'static str),
    Number(u8),
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// With its newline, and whether audited policies would allow it.
pub(super) fn line(node: &str, denial: &Denial, slice: &NodeSlice) -> (String, bool) {
    let Denial { at, verdict, direction, flow, suppressed } = denial;
    let denying = pods(slice, pod(*direction, flow)).next();
    let policies = denying.map(|(_, pod)| denying_policies(slice, pod, *direction)).unwrap_or_default();
    let would_allow = denying.and_then(|(key, _)| would_allow(slice, key, *direction, flow));
    let allowed = would_allow.is_some();
    let line = Line {
        time: time(*at),
        verdict: match verdict {
            Verdict::Denied => "denied",
            Verdict::WouldDeny => "would-deny",
        },
        node,
        direction: direction.as_str(),
        from: end(slice, flow.source, flow.ports.map(|(source, _)| source)),
        to: end(slice, flow.destination, flow.ports.map(|(_, destination)| destination)),
        protocol: protocol(flow.protocol),
        policies,
        would_allow,
        suppressed: *suppressed,
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    (text, allowed)
}

/// UTC, milliseconds.
pub(super) fn time(at: SystemTime) -> String {
    let time = OffsetDateTime::from(at);
    let time = time.replace_millisecond(time.millisecond()).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}

pub(super) fn end(slice: &NodeSlice, address: IpAddr, port: Option<u16>) -> End {
    let pod = pods(slice, address).next().map(|(key, _)| key.to_string());
    End { pod, address, port }
}

pub(super) fn protocol(number: u8) -> Protocol {
    match number {
        1 => Protocol::Name("ICMP"),
        6 => Protocol::Name("TCP"),
        17 => Protocol::Name("UDP"),
        58 => Protocol::Name("ICMPv6"),
        132 => Protocol::Name("SCTP"),
        number => Protocol::Number(number),
    }
}

/// The pods of this node that have an address.
pub(super) fn pods(slice: &NodeSlice, address: IpAddr) -> impl Iterator<Item = (&ObjectKey, &SlicePod)> {
    slice.pods.iter().filter(move |(_, pod)| pod.addresses.contains(&address))
}

/// The policies that isolate a pod, and hence deny what none of them allows; where there are none, those that would.
fn denying_policies(slice: &NodeSlice, pod: &SlicePod, direction: Direction) -> Vec<String> {
    let Some(profile) = slice.profiles.get(&pod.profile) else { return Vec::new() };
    match profile.ruleset(direction) {
        Some(_) => slice.isolating(profile, direction).map(ObjectKey::to_string).collect(),
        None => slice.auditing(profile, direction).map(ObjectKey::to_string).collect(),
    }
}

/// The clause of an audited policy that would allow what others deny (U29).
fn would_allow(slice: &NodeSlice, pod: &ObjectKey, direction: Direction, flow: &Flow) -> Option<String> {
    match slice.audited(pod, direction, other(direction, flow), flow.l4())?.reason {
        Reason::Clause(clause) => Some(clause.to_string()),
        _ => None,
    }
}
