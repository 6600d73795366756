//! What tests against the kernel share.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

use nix::sched::{CloneFlags, unshare};
use weir_dataplane::{Attachment, Attachments, Planner};

/// Runs in a network namespace of its own, which goes with the thread.
pub fn in_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root, and the right to make network namespaces");
        test()
    };
    std::thread::spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Where pods are: some on a bridge, some behind an interface of their own, some nowhere, as `seed` says.
pub fn attachments(planner: &Planner, seed: u64) -> Attachments {
    let mut all = Attachments::new();
    for (i, (key, pod)) in planner.slice().pods.iter().enumerate() {
        for address in &pod.addresses {
            match seed >> (i % 60) & 3 {
                0 => continue,
                1 => all.insert(*address, Attachment::Shared("cni0".into())),
                _ => all.insert(*address, Attachment::Own(format!("veth-{}-{}", key.namespace, key.name))),
            };
        }
    }
    all
}
