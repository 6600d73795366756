//! A node between a client and a server pod, in three network namespaces of their own.
//!
//! ```text
//!   client                        node                          server pod
//!   any of 10.64.0.0/10 ── eth0 ─ client   routes, rules   server ─ eth0  10.1.0.2, listens
//! ```
//!
//! Neighbours are known beforehand, and connections end with a reset, so that none waits for its end.

use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use weir_lab::netns::Netns;

use super::case::{CLIENTS, SERVER, ports};

/// The node's end of the server pod's link.
pub(super) const SERVER_LINK: &str = "server";
/// Nothing here takes that long: it is lost, or it is denied.
pub(super) const LOST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) client: Netns,
    pub(super) node: Netns,
    /// By their ports, in order.
    listeners: Vec<(u16, TcpListener)>,
    _server: Netns,
}

impl Wired {
    pub(super) fn new() -> Result<Wired> {
        let [client, node, server] = [Netns::new()?, Netns::new()?, Netns::new()?];
        for netns in [&client, &node, &server] {
            netns.sysctl(&[
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv6/conf/default/disable_ipv6", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/tcp_no_metrics_save", "1"),
                // bulk rests between rounds, and must not begin anew, nor doubt the link's delay
                ("ipv4/tcp_slow_start_after_idle", "0"),
                ("ipv4/tcp_congestion_control", "reno"),
            ])?;
        }
        node.sysctl(&[("ipv4/ip_forward", "1")])?;
        let (near, far) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let link = |name: &str, to: &Netns| {
            format!(
                "link add {name} address {near} type veth peer name eth0 address {far} netns {}",
                to.path()
            )
        };
        node.ip(&[
            "link set lo up".into(),
            link("client", &client),
            link(SERVER_LINK, &server),
            "link set client up".into(),
            format!("link set {SERVER_LINK} up"),
            format!("neigh add 169.254.1.2 lladdr {far} dev client nud permanent"),
            format!("neigh add {SERVER} lladdr {far} dev {SERVER_LINK} nud permanent"),
            format!("route add {SERVER}/32 dev {SERVER_LINK} scope link"),
            format!("route add {CLIENTS} via 169.254.1.2 dev client onlink"),
        ])?;
        let pod = |more: String| {
            vec![
                "link set lo up".into(),
                "link set eth0 up".into(),
                more,
                format!("neigh add 169.254.1.1 lladdr {near} dev eth0 nud permanent"),
                "route add default via 169.254.1.1 dev eth0 onlink".to_owned(),
            ]
        };
        // all addresses at once are the client's own
        client.ip(&pod(format!("route add local {CLIENTS} dev lo")))?;
        server.ip(&pod(format!("addr add {SERVER}/32 dev eth0")))?;
        let listeners = server.run(|| ports().into_iter().map(|port| Ok((port, listen(port)?))).collect())?;
        Ok(Wired { client, node, listeners, _server: server })
    }

    /// Where connections to a port arrive.
    pub(super) fn listener(&self, port: u16) -> &TcpListener {
        let at = self.listeners.binary_search_by_key(&port, |(port, _)| *port);
        &self.listeners[at.expect("it listens on all ports")].1
    }

    /// Connection tracking forgets what is closed soon; to be called when there are rules.
    pub(super) fn forget_soon(&self) -> Result<()> {
        self.node.sysctl(&[("netfilter/nf_conntrack_tcp_timeout_close", "1")])
    }

    /// Accepts what is left of attempts.
    pub(super) fn drain(&self) -> Result<()> {
        for (_, listener) in &self.listeners {
            listener.set_nonblocking(true)?;
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false)?;
        }
        Ok(())
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(SocketAddrV4::new(SERVER, port)).into())?;
    socket.listen(128).with_context(|| format!("cannot listen on port {port}"))?;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket.into())
}
