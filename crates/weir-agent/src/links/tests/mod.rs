//! The table by itself, against a model of the kernel, and against the kernel.

mod kernel;
mod model;
mod table;

use std::net::IpAddr;

use super::event::TABLE_MAIN;
use super::{Attachment, Hop, Link, LinkEvent, LinkTable, Prefix, Route, RouteKind};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').expect("address/length");
    Prefix::new(ip(address), length.parse().expect("a length"))
}

fn link(index: u32, name: &str, kind: &str) -> Link {
    let kind = (!kind.is_empty()).then(|| kind.to_owned());
    Link {
        index,
        name: name.to_owned(),
        kind,
        up: true,
        loopback: false,
        master: None,
        below: None,
        elsewhere: false,
    }
}

/// A unicast route of table main, straight to these links.
fn route(to: &str, links: &[u32]) -> Route {
    let prefix = prefix(to);
    Route {
        prefix,
        table: TABLE_MAIN,
        metric: 0,
        kind: RouteKind::Unicast,
        hops: links.iter().map(|&link| Hop { link, gateway: false }).collect(),
        ends_silently: !prefix.is_v6(),
        source: None,
    }
}

fn via(to: &str, link: u32) -> Route {
    Route { hops: vec![Hop { link, gateway: true }], ..route(to, &[]) }
}

fn added(route: Route) -> LinkEvent {
    LinkEvent::Route { route, replace: false }
}

fn own(name: &str) -> Option<Attachment> {
    Some(Attachment::Own(name.to_owned()))
}

fn shared(name: &str) -> Option<Attachment> {
    Some(Attachment::Shared(name.to_owned()))
}

fn table_of(links: impl IntoIterator<Item = Link>, routes: impl IntoIterator<Item = Route>) -> LinkTable {
    let mut table = LinkTable::new();
    for link in links {
        table.apply(LinkEvent::Link(link));
    }
    for route in routes {
        table.apply(added(route));
    }
    table
}
