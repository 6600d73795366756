//! How a question is taken apart, and which port it means.

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use weir_compiler::cidr::Cidr;
use weir_compiler::object::Protocol;

use crate::cluster::PodState;

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
    // brackets, and an IPv6 CIDR with nothing behind it
    if let Some((name, port)) = text.rsplit_once("]:") {
        return (&text[..=name.len()], Some(port));
    }
    if text.starts_with('[') || Cidr::parse(text).is_some() {
        return (text, None);
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
        assert_eq!(split("fd00::/8"), ("fd00::/8", None));
        assert_eq!(split("[fd00::/8]:53"), ("[fd00::/8]", Some("53")));
        assert_eq!(split("[fd00::/8]"), ("[fd00::/8]", None));
        assert_eq!(split("10.0.0.0/8:53/UDP"), ("10.0.0.0/8", Some("53/UDP")));
        assert_eq!(address("[fd00::1]"), address("fd00::1"));
        assert_eq!(address("10.0.0.1"), "10.0.0.1".parse().ok());
        assert_eq!(address("db"), None);
    }
}
