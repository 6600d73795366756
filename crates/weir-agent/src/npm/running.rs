//! Whether Azure NPM still runs on this node: then it would make its chains again, and is to be turned off first.
//!
//! A pod of Weir sees neither NPM's process nor the API. What it does see is the node's network: NPM serves its
//! metrics and debug API on port 10091 of the node in all versions and configurations that are known. Where
//! processes can be seen (on the node itself, or with hostPID), its name counts, too.

use std::fs;
use std::path::Path;

/// NPM's `ListeningPort` unless somebody has configured another one.
const PORT: u16 = 10091;
/// As the kernel has the names of programs.
const PROGRAM: &str = "azure-npm";
/// Of the thread, for tests are in namespaces of their own.
const TCP: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// What says that it runs, in words.
pub fn signs() -> Vec<String> {
    let tables = TCP.iter().filter_map(|file| fs::read_to_string(file).ok());
    let listens = tables.into_iter().any(|table| listens(&table, PORT));
    let port = listens.then(|| format!("something listens at TCP port {PORT} of this node, which is NPM's"));
    let process = process(Path::new("/proc"), PROGRAM).map(|pid| format!("process {pid} is named {PROGRAM}"));
    port.into_iter().chain(process).collect()
}

/// Whether a table of sockets, as /proc has it, has one in the state LISTEN at a port.
fn listens(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().and_then(|local| local.rsplit_once(':'));
        let here = local.is_some_and(|(_, have)| u16::from_str_radix(have, 16) == Ok(port));
        here && words.nth(1) == Some(LISTEN)
    })
}

fn process(proc: &Path, name: &str) -> Option<String> {
    fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().into_string().ok()?;
        pid.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        (fs::read_to_string(entry.path().join("comm")).ok()?.trim_end() == name).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_is_told_from_one_that_is_connected() {
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";
        let listening = "   0: 00000000:276B 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0\n";
        let six =
            "   0: 00000000000000000000000000000000:276B 00000000000000000000000000000000:0000 0A 0:0\n";
        let connected = "   1: 0100007F:276B 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  0\n";
        let other = "   1: 00000000:2711 00000000:276B 0A 00000000:00000000 00:00000000 00000000  0\n";
        assert!(listens(&format!("{heading}{other}{listening}"), PORT));
        assert!(listens(&format!("{heading}{six}"), PORT));
        assert!(!listens(&format!("{heading}{connected}{other}"), PORT));
        assert!(!listens("", PORT));
    }

    #[test]
    fn a_process_is_known_by_its_name() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, name) in [("1", "init"), ("17", "azure-npm"), ("self", "azure-npm")] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("comm"), format!("{name}\n")).unwrap();
        }
        assert_eq!(process(proc.path(), PROGRAM).as_deref(), Some("17"));
        assert_eq!(process(proc.path(), "azure-cns"), None);
    }
}
