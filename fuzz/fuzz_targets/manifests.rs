//! Any text as a file of manifests: read, compiled, asked. What of it can be read must not depend on
//! whether it comes in one batch or object by object.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weir_compiler::object::{Event, Protocol};
use weir_compiler::ports::L4;
use weir_compiler::slice::Direction;
use weir_compiler::{Compiler, Scope};

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("weir-fuzz-{}.yaml", std::process::id())));

fuzz_target!(|text: &[u8]| {
    std::fs::write(&*FILE, text).expect("a file for the manifests");
    let loaded = weir_source::manifests::read(&[FILE.clone()]);
    for problem in &loaded.problems {
        let _ = problem.to_string();
    }
    let mut at_once = Compiler::new(Scope::AllNodes);
    at_once.apply(loaded.events.iter().cloned());
    let mut one_by_one = Compiler::new(Scope::AllNodes);
    for event in &loaded.events {
        one_by_one.apply([event.clone()]);
    }
    for event in &loaded.events {
        let Event::Pod(pod) = event else { continue };
        let Some(node) = &pod.node else { continue };
        let slice = at_once.slice(node);
        assert_eq!(slice, one_by_one.slice(node));
        for peer in pod.ips.iter().copied().chain(["192.0.2.1".parse().expect("an address")]) {
            for direction in Direction::BOTH {
                let _ = slice.verdict(&pod.key, direction, peer, L4::Port(Protocol::Tcp, 80));
            }
        }
    }
});
