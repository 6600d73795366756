//! Where controllers are.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A host and its port: `10.96.0.20:9443`, `[fd00::20]:9443`, `controller.example:9443`. A port is always
/// there, so that of `fd00::20:9443` it is what follows the last colon: of a Service, `$(HOST):$(PORT)` gives that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// It is no address of a controller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT, such as 10.96.0.20:9443, [fd00::20]:9443 or controller.example:9443")]
pub struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let (host, port) = text.rsplit_once(':').ok_or(NotAnAddress)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0).ok_or(NotAnAddress)?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Host::Ip(inner.parse::<Ipv6Addr>().map_err(|_| NotAnAddress)?.into())
        } else if let Ok(address) = host.parse() {
            Host::Ip(address)
        } else if is_name(host) {
            Host::Name(host.to_owned())
        } else {
            return Err(NotAnAddress);
        };
        Ok(Address { host, port })
    }
}

fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Address {
    /// The addresses of a name; without a question to anybody where the host is an address.
    ///
    /// # Errors
    /// The name cannot be looked up.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::Ip(address) => Ok(vec![SocketAddr::new(*address, self.port)]),
            Host::Name(name) => Ok(tokio::net::lookup_host((name.as_str(), self.port)).await?.collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_ports() {
        for (text, shown) in [
            ("10.96.0.20:9443", "10.96.0.20:9443"),
            ("[fd00::20]:9443", "[fd00::20]:9443"),
            ("fd00::20:9443", "[fd00::20]:9443"),
            ("1:2:3:4:5:6:7:8:9443", "[1:2:3:4:5:6:7:8]:9443"),
            ("fd00:::443", "[fd00::]:443"),
            ("weir-controller.weir-system.svc:9443", "weir-controller.weir-system.svc:9443"),
            ("localhost.:1", "localhost.:1"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        let none =
            ["", ":", "10.0.0.1", ":9443", "a:", "a:0", "a:65536", "a:+1", "fd00::g:1", "[10.0.0.1]:1"];
        for text in none.into_iter().chain(["a b:1", "https://a:1", "a..b:1", "[fd00::1:9443", "fd00::1"]) {
            let parsed = text.parse::<Address>();
            // an address whose last group is read as the port: nobody can tell
            let last_group = text == "fd00::1";
            assert!(parsed.is_err() || last_group, "{text}: {parsed:?}");
        }
    }
}
