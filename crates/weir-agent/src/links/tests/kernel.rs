//! Against the kernel, each test in a network namespace of its own with no way out.

use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::super::{Attachment, LinkTable, Watcher};
use super::{ip, own, shared};

/// Longer than any change may take, shorter than the resync that would hide a lost event.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the test in a thread that has left for a new network namespace, which ends with it.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Lines of `ip -batch`, run in this thread's namespace.
fn setup(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch failed on:\n{lines}");
}

/// Waits for changes until this address is attached like that.
async fn until(watcher: &mut Watcher, address: &str, expected: Option<Attachment>) {
    let address: IpAddr = ip(address);
    let deadline = Instant::now() + PATIENCE;
    while watcher.table().attachment(address) != expected {
        match timeout_at(deadline, watcher.changed()).await {
            Ok(changed) => changed.unwrap(),
            Err(_) => panic!("{address}: {:?} instead of {expected:?}", watcher.table().attachment(address)),
        }
    }
}

/// Takes in what has happened, then compares with what a second look at the kernel finds.
async fn agrees_with_a_new_dump(watcher: &mut Watcher) {
    while let Ok(changed) = timeout(Duration::from_millis(100), watcher.changed()).await {
        changed.unwrap();
    }
    assert_eq!(watcher.table(), Watcher::new().await.unwrap().table());
}

/// As the CNI plugin ptp does it: host ends with the gateway's address, host routes of scope host.
const PTP: &str = "link add vethp type veth peer name p
    addr add 10.1.1.1/32 dev vethp
    addr add fd01::1/128 dev vethp nodad
    link set vethp up
    route add 10.1.1.5/32 dev vethp scope host
    route add fd01::5/128 dev vethp
";

#[test]
#[ignore = "needs root"]
fn routes_of_ptp_azure_and_bridges_are_found() {
    in_namespace(async || {
        // Before the watcher, so that the dump has them.
        setup(PTP);
        let mut watcher = Watcher::new().await.unwrap();
        assert_eq!(watcher.table().attachment(ip("10.1.1.5")), own("vethp"));
        assert_eq!(watcher.table().attachment(ip("fd01::5")), own("vethp"));
        assert_eq!(watcher.table().attachment(ip("10.1.1.1")), None, "the node's own");
        assert_eq!(watcher.table().attachment(ip("10.1.1.6")), None);

        // While it runs: azure-vnet transparent, and a second ptp pod with the same gateway.
        setup(
            "link add azv1 type veth peer name a
             link set azv1 up
             route add 10.240.0.9 dev azv1
             link add vethq type veth peer name q
             addr add 10.1.1.1/32 dev vethq
             addr add fd01::1/128 dev vethq nodad
             link set vethq up
             route add 10.1.1.6/32 dev vethq scope host
             route add fd01::6/128 dev vethq",
        );
        until(&mut watcher, "10.240.0.9", own("azv1")).await;
        until(&mut watcher, "10.1.1.6", own("vethq")).await;
        until(&mut watcher, "fd01::6", own("vethq")).await;
        until(&mut watcher, "fd01::5", own("vethp")).await;

        // A bridge, a port of it, and a port that leaves it (announced as RTM_DELLINK of AF_BRIDGE).
        setup(
            "link add cni0 type bridge
             addr add 10.2.0.1/24 dev cni0
             addr add fd02::1/64 dev cni0 nodad
             link set cni0 up
             link add port type veth peer name b
             link set port up
             link set port master cni0",
        );
        until(&mut watcher, "10.2.0.7", shared("cni0")).await;
        until(&mut watcher, "fd02::7", shared("cni0")).await;
        assert_eq!(watcher.table().attachment(ip("10.2.0.1")), None, "the node's own");
        setup("route add 10.3.0.1 dev port");
        until(&mut watcher, "10.3.0.1", shared("cni0")).await;
        setup("link set port nomaster");
        until(&mut watcher, "10.3.0.1", own("port")).await;
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_comes_again_under_the_same_name_is_found_again() {
    in_namespace(async || {
        let mut watcher = Watcher::new().await.unwrap();
        for _ in 0..20 {
            setup(PTP);
            until(&mut watcher, "10.1.1.5", own("vethp")).await;
            until(&mut watcher, "fd01::5", own("vethp")).await;
            setup("link del vethp");
            until(&mut watcher, "10.1.1.5", None).await;
            until(&mut watcher, "fd01::5", None).await;
            // The old one not yet seen to go.
            setup(PTP);
            setup("link del vethp");
            setup(PTP);
            until(&mut watcher, "10.1.1.5", own("vethp")).await;
            setup("link del vethp");
            until(&mut watcher, "10.1.1.5", None).await;
        }
        assert_eq!(watcher.dumps(), 1, "no event was lost and none was unclear");
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn routes_end_with_the_link_and_names_follow() {
    in_namespace(async || {
        setup(PTP);
        let mut watcher = Watcher::new().await.unwrap();
        // The kernel announces no end of the IPv4 route.
        setup("link set vethp down");
        until(&mut watcher, "10.1.1.5", None).await;
        until(&mut watcher, "fd01::5", None).await;
        setup("link set vethp up");
        // It was of scope host, so it is still there; that is not announced either.
        until(&mut watcher, "10.1.1.5", own("vethp")).await;
        agrees_with_a_new_dump(&mut watcher).await;
        assert_eq!(watcher.table().attachment(ip("fd01::5")), None, "nobody made the route again");
        // Of scope link, as most CNIs have it, it ends.
        setup("route del 10.1.1.5/32 dev vethp\nroute add 10.1.1.5/32 dev vethp");
        setup("link set vethp down\nlink set vethp up");
        agrees_with_a_new_dump(&mut watcher).await;
        assert_eq!(watcher.table().attachment(ip("10.1.1.5")), None, "nobody made the route again");
        setup("route add 10.1.1.5 dev vethp");
        until(&mut watcher, "10.1.1.5", own("vethp")).await;
        setup(
            "link set vethp down\nlink set vethp name other\nlink set other up\nroute add 10.1.1.5 dev other",
        );
        until(&mut watcher, "10.1.1.5", own("other")).await;
        // To another interface in one step; the old route's end is not announced either.
        setup("link add azv1 type veth peer name a\nlink set azv1 up\nroute replace 10.1.1.5 dev azv1");
        until(&mut watcher, "10.1.1.5", own("azv1")).await;
        assert_eq!(watcher.dumps(), 1, "all of this follows from the events");
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn routes_that_go_with_an_address_are_missed() {
    in_namespace(async || {
        setup(
            "link add azv1 type veth peer name a
             link add azv2 type veth peer name b
             addr add 10.0.0.1/32 dev azv1
             addr add 10.0.0.2/32 dev azv1
             addr add 10.0.0.9/32 dev azv2
             link set azv1 up
             link set azv2 up
             route add 10.1.1.5 dev azv2 src 10.0.0.1
             route add 10.1.1.6 dev azv2",
        );
        let mut watcher = Watcher::new().await.unwrap();
        assert_eq!(watcher.table().attachment(ip("10.1.1.5")), own("azv2"));
        setup("addr del 10.0.0.1/32 dev azv1");
        until(&mut watcher, "10.1.1.5", None).await;
        assert_eq!(watcher.table().attachment(ip("10.1.1.6")), own("azv2"));
        // The last address takes all IPv4 routes with it.
        setup("addr del 10.0.0.9/32 dev azv2");
        until(&mut watcher, "10.1.1.6", None).await;
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn ten_pods_at_once_are_all_found() {
    in_namespace(async || {
        let mut watcher = Watcher::new().await.unwrap();
        let mut lines = String::new();
        for n in 0..10 {
            lines += &format!(
                "link add azv{n} type veth peer name a{n}\nlink set azv{n} up\n\
                 route add 10.1.1.{n} dev azv{n}\nroute add fd01::{n} dev azv{n}\n"
            );
        }
        setup(&lines);
        for n in 0..10 {
            until(&mut watcher, &format!("10.1.1.{n}"), own(&format!("azv{n}"))).await;
            until(&mut watcher, &format!("fd01::{n}"), own(&format!("azv{n}"))).await;
        }
        assert_eq!(watcher.dumps(), 1);
        setup(&(0..10).map(|n| format!("link del azv{n}\n")).collect::<String>());
        for n in 0..10 {
            until(&mut watcher, &format!("10.1.1.{n}"), None).await;
        }
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn lost_events_are_made_good_by_a_dump() {
    in_namespace(async || {
        let mut watcher = Watcher::with_receive_buffer(4096).await.unwrap();
        let mut lines = String::from("link add azv1 type veth peer name a\nlink set azv1 up\n");
        for n in 0..2000 {
            lines += &format!("route add 10.1.{}.{} dev azv1\n", n / 250, n % 250);
        }
        // Nobody reads meanwhile: far more than the buffer holds.
        setup(&lines);
        until(&mut watcher, "10.1.7.249", own("azv1")).await;
        assert!(watcher.dumps() > 1, "nothing was lost, so this test shows nothing");
        agrees_with_a_new_dump(&mut watcher).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_churn_of_links_and_routes_ends_in_the_kernels_state() {
    in_namespace(async || {
        let mut watcher = Watcher::new().await.unwrap();
        let churn = std::thread::spawn(|| {
            for round in 0..30_u32 {
                let mut lines = String::new();
                for n in 0..8 {
                    let to = (n + round) % 8;
                    lines += &format!("link add azv{n} type veth peer name a{n}\nlink set azv{n} up\n");
                    lines +=
                        &format!("route replace 10.1.1.{to} dev azv{n}\nroute append 10.1.2.1 dev azv{n}\n");
                    lines += &format!("route add fd01::{to} dev azv{n}\nlink set azv{n} down\n");
                    lines += &format!("link set azv{n} up\nroute replace 10.1.1.{to} dev azv{n}\n");
                }
                lines += "route add 10.1.3.1 nexthop dev azv1 nexthop dev azv2\n";
                lines += "route add fd02::/64 nexthop via fd01::1 dev azv0 onlink nexthop via fd01::2 dev azv1 onlink\n";
                lines += "route del fd02::/64 via fd01::1 dev azv0\n";
                if round < 29 {
                    lines += &(0..8).map(|n| format!("link del azv{n}\n")).collect::<String>();
                }
                setup(&lines);
            }
        });
        while !churn.is_finished() {
            if let Ok(changed) = timeout(Duration::from_millis(5), watcher.changed()).await {
                changed.unwrap();
            }
        }
        churn.join().unwrap();
        agrees_with_a_new_dump(&mut watcher).await;
        assert_ne!(watcher.table(), &LinkTable::new());
    });
}
