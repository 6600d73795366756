//! Whatever the kernel does, the events that it sends lead to the table that a dump would give, and
//! the table's answers are those of a plain reading of the final state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::event::{TABLE_LOCAL, TABLE_MAIN};
use super::super::{Attachment, Hop, Link, LinkEvent, LinkTable, Outcome, Prefix, Route, RouteKind};
use super::ip;

/// What an administrator or a CNI does.
#[derive(Debug, Clone)]
enum Act {
    Add { name: u8, kind: &'static str, below: Option<u8> },
    Delete { link: u8 },
    Up { link: u8, up: bool },
    Rename { link: u8, name: u8 },
    Enslave { link: u8, master: Option<u8> },
    Route { route: Wish, replace: bool },
    Unroute { which: u8 },
}

/// A route as asked for, links by position.
#[derive(Debug, Clone)]
struct Wish {
    prefix: Prefix,
    table: u32,
    metric: u32,
    kind: RouteKind,
    links: Vec<(u8, bool)>,
    scope_host: bool,
}

/// The kernel as far as it matters here, with its silence about IPv4 routes.
#[derive(Debug, Clone, Default)]
struct Kernel {
    links: BTreeMap<u32, Link>,
    routes: Vec<Route>,
    next_index: u32,
    events: Vec<LinkEvent>,
}

impl Kernel {
    fn pick(&self, n: u8) -> Option<u32> {
        let count = self.links.len();
        (count > 0).then(|| *self.links.keys().nth(usize::from(n) % count).unwrap())
    }

    fn announce(&mut self, index: u32) {
        self.events.push(LinkEvent::Link(self.links[&index].clone()));
    }

    /// IPv6 says which routes go; IPv4 does not, and is late.
    fn flush(&mut self, index: u32, all: bool) {
        let leads_there = |route: &Route| route.hops.iter().any(|hop| hop.link == index);
        let (gone, stay) = std::mem::take(&mut self.routes)
            .into_iter()
            .partition(|route| leads_there(route) && (all || route.prefix.is_v6() || route.ends_silently));
        self.routes = stay;
        self.events.extend(gone.into_iter().filter(|r| r.prefix.is_v6()).map(LinkEvent::RouteGone));
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Add { name, kind, below } => {
                self.next_index += 1;
                let index = self.next_index;
                let below = below.and_then(|n| self.pick(n)).filter(|_| kind == "macvlan");
                let kind = (!kind.is_empty()).then(|| kind.to_owned());
                let name = format!("if{name}");
                let link = Link {
                    index,
                    name,
                    kind,
                    up: false,
                    loopback: false,
                    master: None,
                    below,
                    elsewhere: false,
                };
                self.links.insert(index, link);
                self.announce(index);
            }
            Act::Delete { link } => {
                let Some(index) = self.pick(link) else { return };
                // What is stacked on it goes with it; ports are let go.
                let above: Vec<u32> =
                    self.links.values().filter(|l| l.below == Some(index)).map(|l| l.index).collect();
                for index in above.into_iter().chain([index]) {
                    if self.links[&index].up {
                        self.set_up(index, false);
                    }
                    let ports: Vec<u32> =
                        self.links.values().filter(|l| l.master == Some(index)).map(|l| l.index).collect();
                    for port in ports {
                        self.links.get_mut(&port).unwrap().master = None;
                        self.announce(port);
                    }
                    // Only what was stacked on a stacked link is left over here.
                    for link in self.links.values_mut().filter(|l| l.below == Some(index)) {
                        link.below = None;
                        self.events.push(LinkEvent::Link(link.clone()));
                    }
                    self.flush(index, true);
                    self.links.remove(&index);
                    self.events.push(LinkEvent::LinkGone { index });
                }
            }
            Act::Up { link, up } => {
                if let Some(index) = self.pick(link)
                    && self.links[&index].up != up
                {
                    self.set_up(index, up);
                }
            }
            Act::Rename { link, name } => {
                let Some(index) = self.pick(link) else { return };
                self.links.get_mut(&index).unwrap().name = format!("if{name}");
                self.announce(index);
            }
            Act::Enslave { link, master } => {
                let Some(index) = self.pick(link) else { return };
                let master = master.and_then(|n| self.pick(n)).filter(|&m| m != index);
                self.links.get_mut(&index).unwrap().master = master;
                self.announce(index);
            }
            Act::Route { route, replace } => self.route(route, replace),
            Act::Unroute { which } => {
                if !self.routes.is_empty() {
                    let gone = self.routes.remove(usize::from(which) % self.routes.len());
                    self.events.push(LinkEvent::RouteGone(gone));
                }
            }
        }
    }

    fn set_up(&mut self, index: u32, up: bool) {
        self.links.get_mut(&index).unwrap().up = up;
        self.announce(index);
        if !up {
            self.flush(index, false);
        }
    }

    fn route(&mut self, wish: Wish, replace: bool) {
        let is_v6 = wish.prefix.is_v6();
        let scope_host = wish.scope_host && !is_v6 && matches!(wish.links[..], [(_, false)]);
        let mut hops = Vec::new();
        for (link, gateway) in wish.links {
            let Some(link) = self.pick(link) else { return };
            if !self.links[&link].up && !scope_host && !is_v6 {
                return;
            }
            hops.push(Hop { link, gateway });
        }
        if wish.kind == RouteKind::Blocked {
            hops.clear();
        }
        let Wish { prefix, table, metric, kind, .. } = wish;
        let route =
            Route { prefix, table, metric, kind, hops, ends_silently: !is_v6 && !scope_host, source: None };
        if self.routes.contains(&route) {
            return;
        }
        match self.routes.iter_mut().find(|other| replace && other.same_place(&route)) {
            Some(old) => {
                *old = route.clone();
                self.events.push(LinkEvent::Route { route, replace: true });
            }
            None => {
                self.routes.push(route.clone());
                self.events.push(LinkEvent::Route { route, replace: false });
            }
        }
    }

    /// A dump, with the routes first: no order may matter.
    fn dump(&self, routes_first: bool) -> LinkTable {
        let mut table = LinkTable::new();
        let links = self.links.values().cloned().map(LinkEvent::Link);
        let routes = self.routes.iter().cloned().map(super::added);
        if routes_first {
            routes.chain(links).for_each(|event| {
                table.apply(event);
            });
        } else {
            links.chain(routes).for_each(|event| {
                table.apply(event);
            });
        }
        table
    }

    /// The attachment of an address, read off the lists without any index.
    fn attachment(&self, address: IpAddr) -> Option<Attachment> {
        let rank = |table| match table {
            TABLE_LOCAL => (0, 0),
            TABLE_MAIN => (1, 0),
            other => (2, other),
        };
        let key = |r: &Route| (std::cmp::Reverse(r.prefix.length()), rank(r.table), r.metric);
        let covering = self.routes.iter().filter(|route| {
            route.prefix.is_v6() == address.is_ipv6()
                && Prefix::new(address, route.prefix.length()) == route.prefix
                && (route.kind != RouteKind::Unicast || route.hops.iter().any(|h| self.links[&h.link].up))
        });
        let best = covering.clone().map(key).min()?;
        let best: Vec<&Route> = covering.filter(|route| key(route) == best).collect();
        if best[0].prefix.length() == 0 {
            return None;
        }
        let unclear = best.iter().any(|route| route.kind != RouteKind::Unicast);
        let mut ways: Vec<Hop> =
            best.iter().filter(|r| r.kind == RouteKind::Unicast).flat_map(|r| r.hops.clone()).collect();
        ways.sort();
        ways.dedup();
        let link = &self.links[&ways.iter().find(|hop| !hop.gateway && self.links[&hop.link].up)?.link];
        let network_behind = self.routes.iter().any(|route| {
            route.kind == RouteKind::Unicast
                && !route.prefix.is_host()
                && route
                    .hops
                    .iter()
                    .any(|hop| hop.link == link.index && (!hop.gateway || route.prefix.length() == 0))
        });
        let own = best[0].prefix.is_host()
            && ways.len() == 1
            && !unclear
            && !network_behind
            && matches!(link.kind.as_deref(), None | Some("veth"))
            && link.master.is_none()
            && link.below.is_none()
            && !self.links.values().any(|other| other.below == Some(link.index));
        Some(if own {
            Attachment::Own(link.name.clone())
        } else {
            Attachment::Shared(link.master.map_or(link, |master| &self.links[&master]).name.clone())
        })
    }
}

const ADDRESSES: [&str; 5] = ["10.1.1.1", "10.1.1.2", "10.1.2.1", "fd01::1", "fd01::2"];

fn act() -> impl Strategy<Value = Act> {
    let wish = (
        (0..ADDRESSES.len(), prop_oneof![4 => Just(128_u8), 1 => Just(24), 1 => Just(16), 1 => Just(0)]),
        any::<bool>(),
        prop_oneof![4 => Just(TABLE_MAIN), 1 => Just(100)],
        prop_oneof![4 => Just(0_u32), 1 => Just(10)],
        prop_oneof![8 => Just(RouteKind::Unicast), 1 => Just(RouteKind::Blocked)],
        prop_oneof![
            8 => any::<u8>().prop_map(|link| vec![(link, false)]),
            2 => any::<u8>().prop_map(|link| vec![(link, true)]),
            1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| vec![(a, false), (b, false)]),
        ],
    )
        .prop_map(|((address, length), scope_host, table, metric, kind, links)| {
            let prefix = Prefix::new(ip(ADDRESSES[address]), length);
            Wish { prefix, table, metric, kind, links, scope_host }
        });
    let kind = prop_oneof![4 => Just("veth"), 1 => Just("bridge"), 1 => Just("macvlan"), 1 => Just("")];
    prop_oneof![
        3 => (0..4_u8, kind, prop::option::of(any::<u8>()))
            .prop_map(|(name, kind, below)| Act::Add { name, kind, below }),
        2 => any::<u8>().prop_map(|link| Act::Delete { link }),
        4 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(link, up)| Act::Up { link, up }),
        1 => (any::<u8>(), 0..4_u8).prop_map(|(link, name)| Act::Rename { link, name }),
        1 => (any::<u8>(), prop::option::of(any::<u8>()))
            .prop_map(|(link, master)| Act::Enslave { link, master }),
        8 => (wish, prop::bool::weighted(0.3)).prop_map(|(route, replace)| Act::Route { route, replace }),
        3 => any::<u8>().prop_map(|which| Act::Unroute { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Events after a dump, with those before it that were still in the queue.
    #[test]
    fn events_lead_where_a_dump_leads(
        acts in prop::collection::vec(act(), 1..40),
        dump_after in 0..40_usize,
        still_queued in 0..30_usize,
        routes_first in any::<bool>(),
    ) {
        let mut kernel = Kernel::default();
        let mut acts = acts.into_iter();
        acts.by_ref().take(dump_after).for_each(|act| kernel.act(act));
        let mut table = kernel.dump(routes_first);
        let from = kernel.events.len().saturating_sub(still_queued);
        acts.for_each(|act| kernel.act(act));

        let mut outcome = Outcome::Same;
        for event in kernel.events[from..].iter().cloned() {
            outcome = outcome.max(table.apply(event));
        }
        if outcome == Outcome::Stale {
            table = kernel.dump(!routes_first);
        }
        prop_assert_eq!(&table, &kernel.dump(false));
        for address in ADDRESSES.map(ip) {
            prop_assert_eq!(table.attachment(address), kernel.attachment(address), "{}", address);
        }
    }

    /// `Same` is only said if nothing is asked differently.
    #[test]
    fn same_means_same(acts in prop::collection::vec(act(), 1..30)) {
        let mut kernel = Kernel::default();
        acts.into_iter().for_each(|act| kernel.act(act));
        let mut table = LinkTable::new();
        for event in kernel.events {
            let before = table.clone();
            if table.apply(event) == Outcome::Same {
                prop_assert_eq!(before, table.clone());
            }
        }
    }
}
