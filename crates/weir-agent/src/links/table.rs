//! Links and routes as they are now, and what follows from them for an address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::attachment::Attachment;
use super::event::{Hop, Link, LinkEvent, Prefix, Route, RouteKind, TABLE_LOCAL, TABLE_MAIN};

/// Kinds of links that have one thing at their other end. Of any other kind, known or not, nothing is
/// assumed: its addresses count as shared, which is never wrong.
const POINT_TO_POINT: [&str; 3] = ["veth", "netkit", "tun"];

/// What an event did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing that any answer depends on.
    Same,
    /// Answers may be others now.
    Changed,
    /// The kernel did more than it said, or the events do not tell what: build a new table from a
    /// dump. Until then the answers may be wrong for some addresses.
    Stale,
}

/// An address and how it is attached; `None`: not on this node, or not yet.
pub type AddressAttachment = (IpAddr, Option<Attachment>);

/// The links and routes of this node. Feed it with [`apply`](LinkTable::apply), in the kernel's order;
/// ask it with [`attachments`](LinkTable::attachments).
///
/// Events that are older than the dump from which the table was filled do no harm as long as all of
/// them follow: the last event about a link or a route agrees with the dump. The one thing that the
/// kernel does silently on purpose is to drop IPv4 routes of a link that goes down or away; this table
/// drops them whenever a link is announced as down, and when it comes up: every route that it will have
/// is then still to be announced, but for those that do not [end silently](Route::ends_silently).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkTable {
    ports: HashMap<u32, Port>,
    v4: Family,
    v6: Family,
}

/// Prefix length -> network -> routes. A lookup costs one hash per length in use, and nodes use few.
type Family = BTreeMap<u8, HashMap<Prefix, Vec<Route>>>;

/// What is known of one interface index. Routes may know it before its link is announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Port {
    link: Option<Link>,
    /// Links that are stacked on this one.
    above: BTreeSet<u32>,
    /// Destinations of the routes that lead here.
    prefixes: BTreeSet<Prefix>,
    /// How many of those routes lead to a network or to everywhere: no pod is there alone.
    wide: usize,
}

impl Port {
    fn is_empty(&self) -> bool {
        self.link.is_none() && self.above.is_empty() && self.prefixes.is_empty()
    }

    fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.up)
    }

    fn is_exclusive(&self) -> bool {
        self.wide == 0
            && self.above.is_empty()
            && self.link.as_ref().is_some_and(|link| {
                let point_to_point = link.kind.as_deref().is_none_or(|kind| POINT_TO_POINT.contains(&kind));
                point_to_point && link.master.is_none() && link.below.is_none()
            })
    }
}

impl LinkTable {
    /// An empty table.
    pub fn new() -> Self {
        LinkTable::default()
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: LinkEvent) -> Outcome {
        match event {
            LinkEvent::Link(link) => self.set_link(link),
            LinkEvent::LinkGone { index } => self.remove_link(index),
            LinkEvent::Route { route, replace } => self.add_route(route, replace),
            LinkEvent::RouteGone(route) => self.remove_route(&route),
            LinkEvent::AddressGone { index, address } => {
                // On a link that is down or gone there is nothing left to drop, which is the case
                // whenever a pod's interface is removed: no new dump for that.
                let up = self.ports.get(&index).is_some_and(Port::is_up);
                let source = Some(IpAddr::V4(address));
                let is_source =
                    self.v4.values().flat_map(HashMap::values).flatten().any(|r| r.source == source);
                if up || is_source { Outcome::Stale } else { Outcome::Same }
            }
        }
    }

    /// Whether there is an interface of this name.
    pub fn has_link(&self, name: &str) -> bool {
        self.ports.values().any(|port| port.link.as_ref().is_some_and(|link| link.name == name))
    }

    /// How this address is attached, judged by the routes alone: that its interface may belong to
    /// two pods of which neither is known here is for [`attachments`](LinkTable::attachments) to see.
    /// `None`: not on this node, or not yet.
    pub fn attachment(&self, address: IpAddr) -> Option<Attachment> {
        let family = if address.is_ipv6() { &self.v6 } else { &self.v4 };
        let routes = family.iter().rev().find_map(|(&length, networks)| {
            let routes = self.best(networks.get(&Prefix::new(address, length))?);
            (!routes.is_empty()).then_some(routes)
        })?;
        let prefix = routes[0].prefix;
        // Everything is behind a default route; it does not say where a pod is.
        if prefix.length() == 0 {
            return None;
        }

        let unicast = || routes.iter().filter(|route| route.kind == RouteKind::Unicast);
        let mut hops: Vec<Hop> = unicast().flat_map(|route| &route.hops).copied().collect();
        hops.sort();
        hops.dedup();
        let port = hops
            .iter()
            .filter(|hop| !hop.gateway)
            .find_map(|hop| self.ports.get(&hop.link).filter(|port| port.is_up()))?;
        let link = port.link.as_ref()?;
        if link.loopback {
            return None;
        }
        let unambiguous = hops.len() == 1 && unicast().count() == routes.len();
        if prefix.is_host() && unambiguous && port.is_exclusive() {
            return Some(Attachment::Own(link.name.clone()));
        }
        // Packets from a port of a bridge or of a VRF show the master's name.
        let master = link.master.and_then(|index| self.ports.get(&index)?.link.as_ref());
        Some(Attachment::Shared(master.unwrap_or(link).name.clone()))
    }

    /// Whether the address is one of the node's own.
    pub fn is_local(&self, address: IpAddr) -> bool {
        let family = if address.is_ipv6() { &self.v6 } else { &self.v4 };
        let local = |route: &Route| route.table == TABLE_LOCAL && route.kind == RouteKind::Local;
        family.iter().any(|(&length, networks)| {
            networks.get(&Prefix::new(address, length)).is_some_and(|routes| routes.iter().any(local))
        })
    }

    /// How the addresses of all these pods are attached, in the given order. An interface with
    /// addresses of two pods behind it is nobody's own.
    pub fn attachments<'a, K>(
        &self,
        pods: impl IntoIterator<Item = (K, &'a [IpAddr])>,
    ) -> Vec<(K, Vec<AddressAttachment>)> {
        let mut answers: Vec<(K, Vec<AddressAttachment>)> = pods
            .into_iter()
            .map(|(pod, addresses)| (pod, addresses.iter().map(|&a| (a, self.attachment(a))).collect()))
            .collect();

        let mut owners: HashMap<String, usize> = HashMap::new();
        let mut disputed: BTreeSet<String> = BTreeSet::new();
        for (pod, (_, addresses)) in answers.iter().enumerate() {
            for (_, attachment) in addresses {
                if let Some(Attachment::Own(name)) = attachment
                    && *owners.entry(name.clone()).or_insert(pod) != pod
                {
                    disputed.insert(name.clone());
                }
            }
        }
        if !disputed.is_empty() {
            for attachment in answers.iter_mut().flat_map(|(_, addresses)| addresses).map(|(_, a)| a) {
                if let Some(Attachment::Own(name)) = attachment
                    && disputed.contains(name)
                {
                    *attachment = Some(Attachment::Shared(std::mem::take(name)));
                }
            }
        }
        answers
    }

    /// The names of interfaces that look like pods' own: a veth or netkit whose other end is in another
    /// network namespace, to which nothing leads but routes to single addresses, and none to others behind
    /// them: that would be a node in a namespace, with its way to other nodes.
    pub fn pod_like(&self) -> BTreeSet<String> {
        let ports = self.ports.iter().filter(|(_, port)| port.is_up() && port.is_exclusive());
        let is_led_to = |index: u32, port: &Port| {
            let routes = port.prefixes.iter().flat_map(|prefix| self.routes(*prefix));
            let unicast = routes.filter(|route| route.kind == RouteKind::Unicast);
            let mut hops = unicast.flat_map(|route| &route.hops).filter(|hop| hop.link == index).peekable();
            hops.peek().is_some() && hops.all(|hop| !hop.gateway)
        };
        ports
            .filter(|(index, port)| is_led_to(**index, port))
            .filter_map(|(_, port)| port.link.as_ref().filter(|link| link.is_pod_like()))
            .map(|link| link.name.clone())
            .collect()
    }

    /// The ports of a bridge; `None`: there is no bridge of this name.
    pub fn bridge_ports(&self, bridge: &str) -> Option<Vec<&Link>> {
        let links = || self.ports.values().filter_map(|port| port.link.as_ref());
        let is_it = |link: &&Link| link.name == bridge && link.kind.as_deref() == Some("bridge");
        let index = links().find(is_it)?.index;
        Some(links().filter(|link| link.master == Some(index)).collect())
    }

    /// The routes of one destination that the kernel would use: those of the first table, and there
    /// of the smallest metric. More than one if they differ in nothing but the way; which of them is
    /// first the events do not say.
    fn best<'a>(&self, routes: &'a [Route]) -> Vec<&'a Route> {
        let rank = |route: &Route| match route.table {
            TABLE_LOCAL => (0, 0, route.metric),
            TABLE_MAIN => (1, 0, route.metric),
            other => (2, other, route.metric),
        };
        let usable = |route: &&Route| {
            route.kind != RouteKind::Unicast
                || route.hops.iter().any(|hop| self.ports.get(&hop.link).is_some_and(Port::is_up))
        };
        let Some(best) = routes.iter().filter(usable).map(rank).min() else { return Vec::new() };
        routes.iter().filter(usable).filter(|route| rank(route) == best).collect()
    }

    fn set_link(&mut self, link: Link) -> Outcome {
        let index = link.index;
        let old = self.ports.get(&index).and_then(|port| port.link.clone());
        // A table from a dump may know already that it is down, and have been told since of a route
        // that is older than that.
        let mut outcome = Outcome::Same;
        if old.as_ref().is_some_and(|old| !link.up || !old.up) {
            outcome = self.drop_routes(index, false);
        }
        if old.as_ref() == Some(&link) {
            return outcome;
        }
        outcome = outcome.max(Outcome::Changed);
        if let Some(below) = old.and_then(|old| old.below) {
            self.unstack(index, below);
        }
        if let Some(below) = link.below {
            self.ports.entry(below).or_default().above.insert(index);
        }
        self.ports.entry(index).or_default().link = Some(link);
        outcome
    }

    fn remove_link(&mut self, index: u32) -> Outcome {
        let outcome = self.drop_routes(index, true);
        let Some(old) = self.ports.get_mut(&index).and_then(|port| port.link.take()) else { return outcome };
        if let Some(below) = old.below {
            self.unstack(index, below);
        }
        self.tidy(index);
        outcome.max(Outcome::Changed)
    }

    fn unstack(&mut self, index: u32, below: u32) {
        if let Some(port) = self.ports.get_mut(&below) {
            port.above.remove(&index);
            self.tidy(below);
        }
    }

    /// Drops the routes that lead to this link: all of them, or those that end
    /// silently when it goes down. What the kernel leaves of a route that has other hops
    /// as well depends on why; a dump will tell.
    fn drop_routes(&mut self, index: u32, all: bool) -> Outcome {
        let Some(port) = self.ports.get(&index) else { return Outcome::Same };
        let prefixes: Vec<Prefix> = port.prefixes.iter().copied().collect();
        let mut outcome = Outcome::Same;
        for prefix in prefixes {
            let gone: Vec<Route> = self
                .routes(prefix)
                .iter()
                .filter(|route| all || route.ends_silently)
                .filter(|route| route.hops.iter().any(|hop| hop.link == index))
                .cloned()
                .collect();
            for route in gone {
                self.take_route(&route);
                outcome = outcome.max(if route.hops.len() > 1 { Outcome::Stale } else { Outcome::Changed });
            }
        }
        outcome
    }

    fn add_route(&mut self, route: Route, replace: bool) -> Outcome {
        let in_place: Vec<Route> =
            self.routes(route.prefix).iter().filter(|other| other.same_place(&route)).cloned().collect();
        if in_place.contains(&route) && (!replace || in_place.len() == 1) {
            return Outcome::Same;
        }
        // IPv6 announces what a multipath route has grown to, and not what it was before.
        let multipath = route.hops.len() > 1 || in_place.iter().any(|other| other.hops.len() > 1);
        let unclear = if replace { in_place.len() > 1 } else { multipath && !in_place.is_empty() };
        if replace {
            for other in &in_place {
                self.take_route(other);
            }
        }
        self.put_route(route);
        if unclear { Outcome::Stale } else { Outcome::Changed }
    }

    fn remove_route(&mut self, route: &Route) -> Outcome {
        if self.take_route(route) {
            return Outcome::Changed;
        }
        // Of a multipath route one hop may have gone, or this is older than the dump.
        if self.routes(route.prefix).iter().any(|other| other.same_place(route)) {
            Outcome::Stale
        } else {
            Outcome::Same
        }
    }

    fn routes(&self, prefix: Prefix) -> &[Route] {
        let family = if prefix.is_v6() { &self.v6 } else { &self.v4 };
        family.get(&prefix.length()).and_then(|networks| networks.get(&prefix)).map_or(&[], Vec::as_slice)
    }

    fn family_mut(&mut self, prefix: Prefix) -> &mut Family {
        if prefix.is_v6() { &mut self.v6 } else { &mut self.v4 }
    }

    fn put_route(&mut self, route: Route) {
        let prefix = route.prefix;
        for hop in unique_links(&route) {
            let port = self.ports.entry(hop).or_default();
            port.prefixes.insert(prefix);
            port.wide += usize::from(is_wide(&route, hop));
        }
        let routes = self.family_mut(prefix).entry(prefix.length()).or_default().entry(prefix).or_default();
        // Sorted, so that two tables with the same routes are equal.
        let place = routes.partition_point(|other| *other < route);
        routes.insert(place, route);
    }

    fn take_route(&mut self, route: &Route) -> bool {
        let prefix = route.prefix;
        let family = self.family_mut(prefix);
        let Some(networks) = family.get_mut(&prefix.length()) else { return false };
        let Some(routes) = networks.get_mut(&prefix) else { return false };
        let Ok(place) = routes.binary_search(route) else { return false };
        routes.remove(place);
        let still_led_to: BTreeSet<u32> = routes.iter().flat_map(|r| &r.hops).map(|hop| hop.link).collect();
        if routes.is_empty() {
            networks.remove(&prefix);
            if networks.is_empty() {
                family.remove(&prefix.length());
            }
        }
        for hop in unique_links(route) {
            let Some(port) = self.ports.get_mut(&hop) else { continue };
            port.wide -= usize::from(is_wide(route, hop));
            if !still_led_to.contains(&hop) {
                port.prefixes.remove(&prefix);
            }
            self.tidy(hop);
        }
        true
    }

    fn tidy(&mut self, index: u32) {
        if self.ports.get(&index).is_some_and(Port::is_empty) {
            self.ports.remove(&index);
        }
    }
}

fn unique_links(route: &Route) -> BTreeSet<u32> {
    route.hops.iter().map(|hop| hop.link).collect()
}

/// Whether this route says that there is a network behind the link, or the rest of the world. A
/// network behind a gateway does not: the gateway can be a pod.
fn is_wide(route: &Route, link: u32) -> bool {
    route.kind == RouteKind::Unicast
        && !route.prefix.is_host()
        && route.hops.iter().any(|hop| hop.link == link && (!hop.gateway || route.prefix.length() == 0))
}
