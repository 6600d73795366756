//! Who answers for a Service, and at which port.
//!
//! Policies see what a packet shows once it has been translated (U8): the pod and its port. A Service is as
//! open as its backends are.

use std::borrow::Cow;

use anyhow::{Result, bail};
use weir_compiler::object::{NamedPort, ObjectKey, Protocol};
use weir_source::inventory::{Service, ServicePort, TargetPort};

use crate::cluster::{Cluster, PodState};
use crate::ends::{self, Member};
use crate::names::Port;

/// Each backend with each port that is meant, and what the reader should know.
///
/// # Errors
/// There is no such Service or port, or nobody answers.
pub(crate) fn backends<'a>(
    cluster: &'a Cluster,
    key: &ObjectKey,
    port: Option<&str>,
) -> Result<(Vec<Member<'a>>, Vec<String>)> {
    let Some(service) = cluster.services.get(key) else {
        let known = cluster.services.keys().map(ToString::to_string);
        let near = ends::did_you_mean(&key.to_string(), known);
        let hint = if cluster.services.is_empty() { ": there are no Services at all" } else { "" };
        bail!("no Service {key} {}{near}{hint}", cluster.whence());
    };
    if service.kind == "ExternalName" {
        bail!("Service {key} is a name of something outside: ask for its address");
    }
    let ports = meant(service, port)?;
    let mut notes = Vec::new();
    let slices: Vec<_> = cluster.endpoint_slices.iter().filter(|s| s.service == *key).collect();
    let mut members: Vec<Member<'a>> = Vec::new();
    let mut unready = 0;
    for wanted in ports {
        if slices.is_empty() {
            selected(cluster, service, wanted, &mut members, &mut notes);
            continue;
        }
        for slice in &slices {
            let of_port = slice
                .ports
                .iter()
                .find(|(name, protocol, _)| *name == wanted.name && *protocol == wanted.protocol);
            let Some((_, protocol, number)) = of_port else { continue };
            let port = Some(Port { number: *number, protocol: *protocol });
            for backend in &slice.backends {
                if !backend.ready {
                    unready += 1;
                    continue;
                }
                let named = backend.pod.as_ref().and_then(|key| cluster.pods.get(key));
                let state = match (named, backend.addresses.first()) {
                    (Some(state), _) if state.out.is_some() => continue,
                    (Some(state), _) => Cow::Borrowed(state),
                    (None, Some(address)) => Cow::Owned(cluster.at(*address)),
                    (None, None) => continue,
                };
                let is_there = |m: &Member<'_>| {
                    m.port == port && m.state.pod.key == state.pod.key && !state.bare_address
                };
                // once for each family
                if !members.iter().any(is_there) {
                    members.push(Member { state, port });
                }
            }
        }
    }
    if unready > 0 {
        notes.push(format!("{unready} endpoints of Service {key} are not ready, and get no connections"));
    }
    if members.is_empty() {
        bail!(
            "nobody answers for Service {key}: {}",
            if unready > 0 {
                "its endpoints are not ready"
            } else {
                "no pods that its selector means, no endpoints"
            }
        );
    }
    Ok((members, notes))
}

/// The ports that are meant: all, or that of a number or a name.
fn meant<'s>(service: &'s Service, port: Option<&str>) -> Result<Vec<&'s ServicePort>> {
    let Some(text) = port else { return Ok(service.ports.iter().collect()) };
    let (wanted, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, Some(protocol.to_ascii_uppercase().parse::<Protocol>()?)),
        None => (text, None),
    };
    let is_it = |p: &&ServicePort| {
        let named = p.name == wanted && !wanted.is_empty();
        (named || wanted.parse() == Ok(p.port)) && protocol.is_none_or(|protocol| protocol == p.protocol)
    };
    let ports: Vec<&ServicePort> = service.ports.iter().filter(is_it).collect();
    // 53 of TCP and of UDP: TCP, as everywhere
    let tcp = ports.iter().position(|p| p.protocol == Protocol::Tcp);
    match (ports.len(), tcp) {
        (0, _) => {
            let known = service.ports.iter().map(|p| {
                let name = if p.name.is_empty() { String::new() } else { format!(" ({})", p.name) };
                format!("{}/{}{name}", p.port, p.protocol)
            });
            let known: Vec<String> = known.collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            bail!("Service {} has no port {text}; its ports: {known}", service.key)
        }
        (_, Some(at)) if protocol.is_none() => Ok(vec![ports[at]]),
        _ => Ok(ports),
    }
}

/// The pods that the selector means, where nobody has written down who answers.
fn selected<'a>(
    cluster: &'a Cluster,
    service: &Service,
    port: &ServicePort,
    members: &mut Vec<Member<'a>>,
    notes: &mut Vec<String>,
) {
    if service.selector.is_empty() {
        return;
    }
    let is_it = |state: &&PodState| {
        let labels = &state.pod.labels;
        state.pod.key.namespace == service.key.namespace
            && state.out.is_none()
            && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    for state in cluster.pods.values().filter(is_it) {
        let numbers: Vec<u16> = match &port.target {
            TargetPort::Number(number) => vec![*number],
            TargetPort::Name(name) => {
                let named = |p: &&NamedPort| p.name == *name && p.protocol == port.protocol;
                state.pod.ports.iter().filter(named).map(|p| p.port).take(1).collect()
            }
        };
        if let ([], TargetPort::Name(name)) = (&numbers[..], &port.target) {
            notes.push(format!(
                "left out: {} has no port named {name}, which Service {} targets",
                state.pod.key, service.key
            ));
        }
        let ports = numbers.into_iter().map(|number| Some(Port { number, protocol: port.protocol }));
        members.extend(ports.map(|port| Member { state: Cow::Borrowed(state), port }));
    }
}
