//! What follows from which links and routes.

use super::super::event::TABLE_LOCAL;
use super::super::{Link, LinkEvent, LinkTable, Outcome, Route, RouteKind};
use super::{added, ip, link, own, prefix, route, shared, table_of, via};

/// A node's own network and default route.
fn node() -> LinkTable {
    table_of([link(2, "eth0", "")], [route("10.240.0.0/16", &[2]), via("0.0.0.0/0", 2), via("::/0", 2)])
}

#[test]
fn host_route_to_a_veth_is_the_pods_own() {
    let mut table = node();
    table.apply(LinkEvent::Link(link(5, "azv1", "veth")));
    // Before its route: what the node's network says. A remote pod stays like this.
    assert_eq!(table.attachment(ip("10.240.3.4")), shared("eth0"));
    assert_eq!(table.attachment(ip("fd00::4")), None);
    table.apply(added(route("10.240.3.4/32", &[5])));
    table.apply(added(route("fd00::4/128", &[5])));
    assert_eq!(table.attachment(ip("10.240.3.4")), own("azv1"));
    assert_eq!(table.attachment(ip("fd00::4")), own("azv1"));
    assert_eq!(table.attachment(ip("10.240.3.5")), shared("eth0"));
}

#[test]
fn a_gateway_means_another_node() {
    let table = table_of(
        [link(2, "eth0", ""), link(3, "flannel.1", "vxlan")],
        [via("10.1.2.0/24", 2), via("10.1.3.7/32", 3), via("0.0.0.0/0", 2)],
    );
    for address in ["10.1.2.9", "10.1.3.7", "192.0.2.1"] {
        assert_eq!(table.attachment(ip(address)), None, "{address}");
    }
}

#[test]
fn a_bridge_is_shared_whatever_the_prefix() {
    let table = table_of(
        [link(7, "cni0", "bridge")],
        [route("10.1.1.0/24", &[7]), route("10.1.1.9/32", &[7]), route("fd01::/64", &[7])],
    );
    for address in ["10.1.1.8", "10.1.1.9", "fd01::9"] {
        assert_eq!(table.attachment(ip(address)), shared("cni0"), "{address}");
    }
}

#[test]
fn a_port_shows_its_masters_name() {
    let mut port = link(8, "veth8", "veth");
    port.master = Some(7);
    let table = table_of([link(7, "cni0", "bridge"), port], [route("10.1.1.9/32", &[8])]);
    assert_eq!(table.attachment(ip("10.1.1.9")), shared("cni0"));
}

#[test]
fn parents_and_children_of_stacked_links_are_shared() {
    let mut child = link(9, "mac0", "macvlan");
    child.below = Some(2);
    let routes = [route("10.1.1.8/32", &[2]), route("10.1.1.9/32", &[9])];
    let mut table = table_of([link(2, "eth0", ""), child], routes);
    assert_eq!(table.attachment(ip("10.1.1.8")), shared("eth0"));
    assert_eq!(table.attachment(ip("10.1.1.9")), shared("mac0"));
    table.apply(LinkEvent::LinkGone { index: 9 });
    assert_eq!(table.attachment(ip("10.1.1.8")), own("eth0"));
    assert_eq!(table.attachment(ip("10.1.1.9")), None);
}

/// With a guard and a dispatch by interface, `eth0` as some pod's own would take the node off the net.
#[test]
fn an_interface_with_a_network_behind_it_is_nobodys_own() {
    let host = route("10.9.9.9/32", &[2]);
    for (wide, expected) in [
        (route("10.240.0.0/16", &[2]), shared("eth0")),
        (via("0.0.0.0/0", 2), shared("eth0")),
        (route("fd00::/64", &[2]), shared("eth0")),
        // A network behind a pod that is a router.
        (via("10.50.0.0/16", 2), own("eth0")),
        (route("10.9.9.10/32", &[2]), own("eth0")),
    ] {
        let mut table = table_of([link(2, "eth0", "")], [host.clone(), wide.clone()]);
        assert_eq!(table.attachment(ip("10.9.9.9")), expected, "{wide:?}");
        table.apply(LinkEvent::RouteGone(wide));
        assert_eq!(table.attachment(ip("10.9.9.9")), own("eth0"));
    }
}

#[test]
fn two_pods_behind_one_interface_share_it() {
    let table = table_of(
        [link(5, "veth5", "veth"), link(6, "veth6", "veth")],
        [
            route("10.1.1.5/32", &[5]),
            route("fd01::5/128", &[5]),
            route("10.1.1.6/32", &[6]),
            route("10.1.1.7/32", &[6]),
        ],
    );
    let (five, six, seven) =
        ([ip("10.1.1.5"), ip("fd01::5")], [ip("10.1.1.6")], [ip("10.1.1.7"), ip("10.7.7.7")]);
    let answers = table.attachments([("a", &five[..]), ("b", &six[..]), ("c", &seven[..])]);
    assert_eq!(
        answers,
        [
            ("a", vec![(five[0], own("veth5")), (five[1], own("veth5"))]),
            ("b", vec![(six[0], shared("veth6"))]),
            ("c", vec![(seven[0], shared("veth6")), (seven[1], None)]),
        ]
    );
    // Alone, it is b's own.
    assert_eq!(table.attachments([("b", &six[..])]), [("b", vec![(six[0], own("veth6"))])]);
}

#[test]
fn routes_that_lead_nowhere_hide_shorter_ones() {
    let mut blackhole = route("10.1.1.0/26", &[]);
    blackhole.kind = RouteKind::Blocked;
    let table = table_of(
        [link(2, "eth0", ""), link(5, "cali5", "veth")],
        [route("10.1.0.0/16", &[2]), blackhole, route("10.1.1.5/32", &[5])],
    );
    assert_eq!(table.attachment(ip("10.1.1.5")), own("cali5"));
    assert_eq!(table.attachment(ip("10.1.1.6")), None);
    assert_eq!(table.attachment(ip("10.1.1.70")), shared("eth0"));
}

#[test]
fn the_nodes_own_addresses_are_no_pods() {
    let mut table = node();
    let mut local = route("10.240.0.4/32", &[2]);
    (local.kind, local.table) = (RouteKind::Local, TABLE_LOCAL);
    table.apply(added(local));
    assert_eq!(table.attachment(ip("10.240.0.4")), None);
}

#[test]
fn main_comes_first_then_the_smallest_metric() {
    let links = [link(5, "veth5", "veth"), link(6, "veth6", "veth"), link(7, "veth7", "veth")];
    let in_table = |link, table, metric| Route { table, metric, ..route("10.1.1.5/32", &[link]) };
    let mut table = table_of(links, [in_table(5, 100, 0)]);
    assert_eq!(table.attachment(ip("10.1.1.5")), own("veth5"));
    table.apply(added(in_table(6, 254, 20)));
    assert_eq!(table.attachment(ip("10.1.1.5")), own("veth6"));
    table.apply(added(in_table(7, 254, 10)));
    assert_eq!(table.attachment(ip("10.1.1.5")), own("veth7"));
    table.apply(LinkEvent::RouteGone(in_table(7, 254, 10)));
    assert_eq!(table.attachment(ip("10.1.1.5")), own("veth6"));
}

#[test]
fn several_ways_to_one_address_are_shared() {
    let links = [link(5, "veth5", "veth"), link(6, "veth6", "veth")];
    let table = table_of(links.clone(), [route("10.1.1.5/32", &[6, 5])]);
    assert_eq!(table.attachment(ip("10.1.1.5")), shared("veth5"));
    let table = table_of(links, [route("10.1.1.5/32", &[6]), route("10.1.1.5/32", &[5])]);
    assert_eq!(table.attachment(ip("10.1.1.5")), shared("veth5"));
}

#[test]
fn routes_go_with_their_link_and_do_not_come_back_with_it() {
    let pod = ip("10.1.1.5");
    let mut veth = link(5, "veth5", "veth");
    let mut table = table_of([veth.clone()], [route("10.1.1.5/32", &[5])]);
    veth.up = false;
    assert_eq!(table.apply(LinkEvent::Link(veth.clone())), Outcome::Changed);
    assert_eq!(table.attachment(pod), None);
    veth.up = true;
    assert_eq!(table.apply(LinkEvent::Link(veth.clone())), Outcome::Changed);
    assert_eq!(table.attachment(pod), None);
    table.apply(added(route("10.1.1.5/32", &[5])));
    assert_eq!(table.attachment(pod), own("veth5"));
    // Gone, and back under the same name with another index.
    table.apply(LinkEvent::LinkGone { index: 5 });
    assert_eq!(table, LinkTable::new());
    veth.index = 9;
    table.apply(LinkEvent::Link(veth));
    assert_eq!(table.attachment(pod), None);
    table.apply(added(route("10.1.1.5/32", &[9])));
    assert_eq!(table.attachment(pod), own("veth5"));
}

#[test]
fn a_route_may_be_known_before_its_link() {
    let mut table = table_of([], [route("10.1.1.5/32", &[5])]);
    assert_eq!(table.attachment(ip("10.1.1.5")), None);
    table.apply(LinkEvent::Link(link(5, "tmp", "veth")));
    assert_eq!(table.attachment(ip("10.1.1.5")), own("tmp"));
    assert_eq!(table.apply(LinkEvent::Link(link(5, "eth7", "veth"))), Outcome::Changed);
    assert_eq!(table.attachment(ip("10.1.1.5")), own("eth7"));
    assert_eq!(table.apply(LinkEvent::Link(link(5, "eth7", "veth"))), Outcome::Same);
}

#[test]
fn a_replaced_route_is_gone() {
    let mut table = table_of([link(5, "a", "veth"), link(6, "b", "veth")], [route("10.1.1.5/32", &[5])]);
    let replace = LinkEvent::Route { route: route("10.1.1.5/32", &[6]), replace: true };
    assert_eq!(table.apply(replace.clone()), Outcome::Changed);
    assert_eq!(table.attachment(ip("10.1.1.5")), own("b"));
    assert_eq!(table.apply(replace), Outcome::Same);
    assert_eq!(table, table_of([link(5, "a", "veth"), link(6, "b", "veth")], [route("10.1.1.5/32", &[6])]));
}

#[test]
fn what_events_do_not_tell_asks_for_a_dump() {
    let links = [link(5, "a", "veth"), link(6, "b", "veth")];
    let pod = |hops: &[u32]| route("10.1.1.5/32", hops);

    // Which of the two was replaced?
    let mut table = table_of(links.clone(), [pod(&[5]), pod(&[6])]);
    let replace = LinkEvent::Route { route: pod(&[5, 6]), replace: true };
    assert_eq!(table.apply(replace), Outcome::Stale);
    // One hop of a multipath route went, or it grew.
    let mut table = table_of(links.clone(), [pod(&[5, 6])]);
    assert_eq!(table.apply(LinkEvent::RouteGone(pod(&[5]))), Outcome::Stale);
    let mut table = table_of(links.clone(), [pod(&[5])]);
    assert_eq!(table.apply(added(pod(&[5, 6]))), Outcome::Stale);
    // What is left of a multipath route whose link went down?
    let mut table = table_of(links.clone(), [pod(&[5, 6])]);
    assert_eq!(table.apply(LinkEvent::LinkGone { index: 5 }), Outcome::Stale);

    // An address: the last of a link that is up, or the source of a route elsewhere.
    let address = "10.0.0.1".parse().unwrap();
    let mut table = table_of(links.clone(), []);
    assert_eq!(table.apply(LinkEvent::AddressGone { index: 5, address }), Outcome::Stale);
    assert_eq!(table.apply(LinkEvent::AddressGone { index: 9, address }), Outcome::Same);
    table.apply(added(Route { source: Some(ip("10.0.0.1")), ..pod(&[6]) }));
    assert_eq!(table.apply(LinkEvent::AddressGone { index: 9, address }), Outcome::Stale);
}

#[test]
fn prefixes_cut_off_host_bits() {
    assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
    assert_eq!(prefix("10.1.2.3/0").address(), ip("0.0.0.0"));
    assert_eq!(prefix("fd00::1/0").address(), ip("::"));
    assert_eq!(prefix("fd00::1/64").address(), ip("fd00::"));
    assert!(prefix("10.1.2.3/32").is_host() && !prefix("fd00::/32").is_host() && prefix("::1/128").is_host());
    assert_ne!(prefix("0.0.0.0/0"), prefix("::/0"));
}

/// 250 pods on a node with 5,000 routes.
#[test]
fn other_routes_do_not_matter() {
    let mut table = node();
    for n in 0..4750_u32 {
        table.apply(added(via(&format!("172.{}.{}.0/24", 16 + n / 256, n % 256), 2)));
    }
    let addresses: Vec<_> = (0..250).map(|n| [ip(&format!("10.1.1.{n}"))]).collect();
    for (n, index) in (0..250).zip(100..) {
        table.apply(LinkEvent::Link(link(index, &format!("veth{n}"), "veth")));
        table.apply(added(route(&format!("10.1.1.{n}/32"), &[index])));
    }
    let answers = table.attachments(addresses.iter().enumerate().map(|(pod, a)| (pod, &a[..])));
    assert!(answers.iter().all(|(n, a)| a[0].1 == own(&format!("veth{n}"))));
}

/// U11: what may be closed while no pod is known to be behind it.
#[test]
fn an_interface_looks_like_a_pods_if_nothing_else_can_be_there() {
    let elsewhere = |index, name, kind| Link { elsewhere: true, ..link(index, name, kind) };
    let links = [
        elsewhere(1, "pod", "veth"),
        elsewhere(2, "unrouted", "veth"),
        elsewhere(3, "uplink", "veth"),
        elsewhere(4, "network", "veth"),
        link(5, "here", "veth"),
        link(6, "tun0", "tun"),
        Link { master: Some(8), ..elsewhere(7, "port", "veth") },
        link(8, "cni0", "bridge"),
        elsewhere(9, "pod6", "netkit"),
        Link { up: false, ..elsewhere(10, "down", "veth") },
    ];
    let routes = [
        route("10.0.0.1/32", &[1]),
        route("10.0.0.3/32", &[3]),
        via("10.1.0.0/32", 3),
        route("10.0.0.4/32", &[4]),
        route("10.4.0.0/24", &[4]),
        route("10.0.0.5/32", &[5]),
        route("10.0.0.6/32", &[6]),
        route("10.0.0.7/32", &[7]),
        route("fd00::9/128", &[9]),
        route("fd00::10/128", &[10]),
    ];
    let table = table_of(links, routes);
    assert_eq!(table.pod_like(), ["pod", "pod6"].map(str::to_owned).into());
    let ports = table.bridge_ports("cni0").expect("a bridge");
    assert_eq!(ports.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["port"]);
    assert_eq!(table.bridge_ports("pod"), None);
}
