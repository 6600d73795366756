//! Which pods and port a question means.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use weir_compiler::object::{ObjectKey, Protocol};

use crate::cluster::{Cluster, PodState};

/// A destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl FromStr for Port {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Port> {
        let (port, protocol) = port_and_protocol(text)?;
        let number = port.parse().ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| anyhow!("port {port:?} is not a number from 1 to 65535"))?;
        Ok(Port { number, protocol: protocol.unwrap_or(Protocol::Tcp) })
    }
}

fn port_and_protocol(text: &str) -> Result<(&str, Option<Protocol>)> {
    match text.split_once('/') {
        None => Ok((text, None)),
        Some((port, protocol)) => Ok((port, Some(protocol.to_ascii_uppercase().parse()?))),
    }
}

/// `NS/NAME[:PORT[/PROTOCOL]]`, taken apart: a pod has no colon in its name. An address may have: it is in
/// brackets then, or it is all there is.
pub(crate) fn split(text: &str) -> (&str, Option<&str>) {
    if address(text).is_some() {
        return (text, None);
    }
    if let Some((name, port)) = text.rsplit_once("]:") {
        return (&text[..=name.len()], Some(port));
    }
    text.split_once(':').map_or((text, None), |(pod, port)| (pod, Some(port)))
}

/// The address that is meant, in brackets or not, if it is one.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    inner.parse().ok()
}

/// The port that is meant: a number, or a name of one of the pod's ports.
pub(crate) fn port(text: &str, of: &PodState) -> Result<Port> {
    let (port, protocol) = port_and_protocol(text)?;
    if port.is_empty() {
        bail!("there is no port after the colon of {}:", of.name());
    }
    if port.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse();
    }
    let fits = |p: &Protocol| protocol.is_none_or(|wanted| wanted == *p);
    let named: Vec<_> = of.pod.ports.iter().filter(|p| p.name == port && fits(&p.protocol)).collect();
    match named[..] {
        [one] => Ok(Port { number: one.port, protocol: one.protocol }),
        [] => {
            let known: Vec<String> =
                of.pod.ports.iter().map(|p| format!("{} ({}/{})", p.name, p.port, p.protocol)).collect();
            let known = if known.is_empty() { "none has a name".to_owned() } else { known.join(", ") };
            bail!("{} has no port named {port:?}; its ports: {known}", of.name())
        }
        _ => bail!("{} has several ports named {port:?}: say which by its number", of.name()),
    }
}

/// The pod that is meant by `NS/NAME`, or by `NAME` in `namespace`.
pub(crate) fn pod<'a>(cluster: &'a Cluster, text: &str, namespace: &str) -> Result<&'a PodState> {
    let key = match text.split('/').collect::<Vec<_>>()[..] {
        [name] if !name.is_empty() => ObjectKey::new(namespace, name),
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => ObjectKey::new(namespace, name),
        _ => bail!("{text:?} is no pod: write NAMESPACE/NAME, or NAME and -n NAMESPACE"),
    };
    let Some(state) = cluster.pods.get(&key) else {
        let near = near(cluster, &key);
        let hint = if near.is_empty() {
            let total = cluster.pods.len();
            format!("none of the {total} pods there is named like it")
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        bail!("no pod {key} in the manifests; {hint}");
    };
    match &state.out {
        Some(why) => bail!("no answer for pod {key}: {why}"),
        None => Ok(state),
    }
}

/// Pods that may be meant instead, at most three.
fn near(cluster: &Cluster, key: &ObjectKey) -> Vec<String> {
    let wanted = key.to_string();
    let allowed = (wanted.chars().count() / 3).max(2);
    let distance = |k: &ObjectKey| {
        if k.name == key.name {
            return Some(0); // in another namespace
        }
        if k.namespace == key.namespace && k.name.starts_with(&key.name) {
            return Some(1); // a workload's name
        }
        Some(strsim::osa_distance(&k.to_string(), &wanted)).filter(|d| *d <= allowed)
    };
    let mut found: Vec<_> = cluster.pods.keys().filter_map(|k| Some((distance(k)?, k))).collect();
    found.sort();
    if found.first().is_some_and(|(distance, _)| *distance <= 1) {
        found.retain(|(distance, _)| *distance <= 1);
    }
    found.truncate(3);
    found.into_iter().map(|(_, k)| k.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_any_case_and_default_to_tcp() {
        let port = |text: &str| text.parse::<Port>().map(|p| p.to_string()).map_err(|e| e.to_string());
        assert_eq!(port("80"), Ok("80/TCP".into()));
        assert_eq!(port("53/udp"), Ok("53/UDP".into()));
        for wrong in ["0", "65536", "http", "80/ICMP", "80/", "-1", ""] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_question_is_taken_apart_at_its_colon() {
        assert_eq!(split("shop/db:5432/TCP"), ("shop/db", Some("5432/TCP")));
        assert_eq!(split("db"), ("db", None));
        assert_eq!(split("10.0.0.1:53/UDP"), ("10.0.0.1", Some("53/UDP")));
        assert_eq!(split("[fd00::1]:53/UDP"), ("[fd00::1]", Some("53/UDP")));
        assert_eq!(split("fd00::1"), ("fd00::1", None));
        assert_eq!(address("[fd00::1]"), address("fd00::1"));
        assert_eq!(address("10.0.0.1"), "10.0.0.1".parse().ok());
        assert_eq!(address("db"), None);
    }
}
