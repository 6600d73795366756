//! An explanation for people.

use std::fmt::Write;

use super::report::{Enforcement, PeerInfo, Place, PodInfo, PortInfo, Report, RuleInfo, Side, Subject};
use crate::term::{Paint, columns, escape, wrap};

/// How many names are told of a group.
const NAMED: usize = 4;

/// How it is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// With labels, ports and the workloads of peers.
    pub(crate) wide: bool,
    pub(crate) paint: Paint,
}

/// All subjects, one after the other.
pub(crate) fn text(report: &Report, style: Style) -> String {
    let mut out = String::new();
    if report.subjects.len() > 1 {
        let about = escape(&report.about);
        let _ = writeln!(out, "{about}: {} groups of pods that policies tell apart", report.subjects.len());
        out.push('\n');
    }
    for (i, subject) in report.subjects.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        one(&mut out, subject, style);
    }
    out
}

fn one(out: &mut String, subject: &Subject, style: Style) {
    head(out, subject, style);
    if subject.host_network {
        let _ = writeln!(out, "\nin its node's network: policies select nobody there (N70)");
    } else {
        side(out, &subject.ingress, "ingress", "from", style);
        side(out, &subject.egress, "egress", "to", style);
    }
    if !subject.bypasses.is_empty() && !subject.host_network {
        let _ = writeln!(out, "\npast the policies");
        let width =
            subject.bypasses.iter().map(|b| escape(&b.who).chars().count()).max().unwrap_or(0).min(44);
        for bypass in &subject.bypasses {
            let _ =
                writeln!(out, "  {:width$}  {}", escape(&bypass.who), style.paint.dim(&escape(&bypass.why)));
        }
    }
    let _ = writeln!(out, "\nenforcement");
    for enforcement in &subject.enforcement {
        enforced(out, enforcement, style.paint);
    }
    if !subject.warnings.is_empty() {
        let _ = writeln!(out, "\nwarnings");
        for warning in &subject.warnings {
            let _ = writeln!(out, "  {}", wrap(&escape(warning), columns(), 4));
        }
    }
}

fn head(out: &mut String, subject: &Subject, style: Style) {
    let [first, rest @ ..] = &subject.pods[..] else { return };
    let workload = subject.workload.as_ref().map(|w| format!("  {}", escape(w))).unwrap_or_default();
    if rest.is_empty() {
        let _ = writeln!(out, "pod {}{workload}", escape(&first.name));
        details(out, first, style);
        return;
    }
    let mut names: Vec<String> = subject.pods.iter().take(NAMED).map(|p| escape(&p.name)).collect();
    if subject.pods.len() > NAMED {
        names.push(format!("{} more", subject.pods.len() - NAMED));
    }
    let _ = writeln!(out, "{} pods{workload}: {}", subject.pods.len(), names.join(", "));
    if style.wide {
        for pod in &subject.pods {
            let _ = writeln!(out, "  pod {}", escape(&pod.name));
            details(out, pod, style);
        }
    }
}

fn details(out: &mut String, pod: &PodInfo, style: Style) {
    let node = pod.node.as_ref().map_or("no node".to_owned(), |node| format!("node {}", escape(node)));
    let addresses = if pod.addresses.is_empty() { "no address".to_owned() } else { pod.addresses.join(", ") };
    let _ = writeln!(out, "  {addresses} on {node}");
    if style.wide {
        let labels: Vec<String> = pod.labels.iter().map(|(k, v)| escape(&format!("{k}={v}"))).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        let _ = writeln!(out, "  labels  {}", wrap(&labels, columns(), 10));
        let ports: Vec<String> = pod.ports.iter().map(|p| escape(p)).collect();
        let ports = if ports.is_empty() { "none declared".to_owned() } else { ports.join(", ") };
        let _ = writeln!(out, "  ports   {}", wrap(&ports, columns(), 10));
    }
}

fn side(out: &mut String, side: &Side, name: &str, to: &str, style: Style) {
    enforced_side(out, side, name, to, style);
    let Some(audited) = &side.audited else { return };
    let what = match audited.would_isolate {
        true => "would isolate it",
        false => "would allow more",
    };
    let line = format!("audited, not enforced: {} {what}", places(&audited.by));
    let _ = writeln!(out, "  {}", wrap(&line, columns(), 4));
    for rule in &audited.rules {
        let _ = writeln!(out, "  would be allowed at {}", ports(rule));
        for peer in &rule.peers {
            peer_lines(out, peer, to, style);
        }
    }
    if audited.would_isolate {
        let rest = if audited.rules.is_empty() { "everything" } else { "everything else" };
        let _ = writeln!(out, "  {rest} would be denied");
    }
}

fn places(all: &[Place]) -> String {
    let by = all.iter().map(|place| {
        let at = at(&place.file, place.line);
        if at.is_empty() { escape(&place.policy) } else { format!("{} ({at})", escape(&place.policy)) }
    });
    by.collect::<Vec<_>>().join(", ")
}

fn enforced_side(out: &mut String, side: &Side, name: &str, to: &str, style: Style) {
    let paint = style.paint;
    if !side.isolated {
        let open = paint.verdict(true, "open");
        let _ = writeln!(out, "\n{name}: {open}, no policy isolates it");
        return;
    }
    let isolated = paint.verdict(false, "isolated");
    let line = format!("{name}: isolated by {}", places(&side.isolated_by));
    let line = wrap(&line, columns(), 2).replacen("isolated", &isolated, 1);
    let _ = writeln!(out, "\n{line}");
    if side.rules.is_empty() {
        let _ = writeln!(out, "  nothing is allowed");
        return;
    }
    for rule in &side.rules {
        let _ = writeln!(out, "  {} {}", paint.verdict(true, "allowed at"), ports(rule));
        for peer in &rule.peers {
            peer_lines(out, peer, to, style);
        }
    }
    let _ = writeln!(out, "  everything else is denied");
}

/// The ports of a rule.
pub(super) fn ports(rule: &RuleInfo) -> String {
    if rule.all_ports {
        return "all ports".to_owned();
    }
    let one = |p: &PortInfo| {
        let name = p.name.as_ref().map(|name| escape(name));
        match (p.first.zip(p.last), name) {
            (None, name) => format!("{}/{}", name.unwrap_or_default(), p.protocol),
            (Some((0, u16::MAX)), _) => format!("all ports of {}", p.protocol),
            (Some((a, b)), Some(name)) if a == b => format!("{a}/{} ({name})", p.protocol),
            (Some((a, b)), None) if a == b => format!("{a}/{}", p.protocol),
            (Some((a, b)), _) => format!("{a}-{b}/{}", p.protocol),
        }
    };
    rule.ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn peer_lines(out: &mut String, peer: &PeerInfo, to: &str, style: Style) {
    let who = match peer.pods {
        0 => "no pod".to_owned(),
        1 => "1 pod".to_owned(),
        n => format!("{n} pods"),
    };
    let mut makers: Vec<String> = peer
        .workloads
        .iter()
        .map(|(name, n)| if *n > 1 { format!("{} ({n})", escape(name)) } else { escape(name) })
        .collect();
    let all = if style.wide { usize::MAX } else { NAMED };
    let more = makers.len().saturating_sub(all);
    makers.truncate(all);
    if more > 0 {
        makers.push(format!("{more} more"));
    }
    let makers = if makers.is_empty() { String::new() } else { format!(": {}", makers.join(", ")) };
    let text = format!("{to} {}", escape(&peer.text));
    let _ = writeln!(out, "    {}", wrap(&text, columns(), 8));
    let _ = writeln!(out, "      now {}", wrap(&format!("{who}{makers}"), columns(), 10));
    for member in peer.members.iter().flatten() {
        let _ = writeln!(out, "        {}  {}", escape(&member.pod), member.addresses.join(", "));
    }
    for place in &peer.sources {
        let path = place.path.as_deref().unwrap_or_default();
        let ports: Vec<&str> =
            place.port_paths.iter().filter_map(|p| p.rsplit_once('.').map(|(_, port)| port)).collect();
        let ports = if ports.is_empty() { String::new() } else { format!(" {}", ports.join(" ")) };
        let at = at(&place.file, place.line);
        let at = if at.is_empty() { at } else { format!("  {at}") };
        let line = format!("by {}  {path}{ports}{at}", escape(&place.policy));
        let _ = writeln!(out, "      {}", style.paint.dim(&line));
    }
}

fn at(file: &Option<String>, line: Option<u64>) -> String {
    match (file, line) {
        (Some(file), Some(line)) => format!("{}:{line}", escape(file)),
        (Some(file), None) => escape(file),
        (None, _) => String::new(),
    }
}

fn enforced(out: &mut String, enforcement: &Enforcement, paint: Paint) {
    let node = enforcement.node.as_ref().map_or("no node".to_owned(), |n| format!("node {}", escape(n)));
    let says = match enforcement.enforced {
        Some(true) => paint.verdict(true, "enforces"),
        Some(false) => paint.verdict(false, "does NOT enforce"),
        None => "not known".to_owned(),
    };
    let _ = writeln!(out, "  {node}: {says}: {}", escape(&enforcement.why));
}
