//! What an agent needs of its host and may not change itself: `weir-agent host-setup` does.
//!
//! An agent runs with NET_ADMIN alone, where /proc/sys is read-only. It only sees what is missing, and is not
//! ready then ([`crate::bridge`]). The setup runs once before it, in a container that may write there, and is gone.

use std::io;
use std::path::Path;

/// Where br_netfilter has its sysctls, of the network namespace of whoever reads.
pub const BRIDGE: &str = "/proc/sys/net/bridge";
/// Those that bring packets between ports of one bridge to the rules of IP.
pub const SYSCTLS: [&str; 2] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];

/// A sysctl could not be set.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set net.bridge.{sysctl} to 1: {source}; run this on the host, or in a privileged container with \
     hostNetwork"
)]
pub struct Error {
    /// Its name.
    sysctl: &'static str,
    source: io::Error,
}

/// Switches on what packets between bridged pods need, where it is off. What was done, in words.
///
/// # Errors
/// Something is off and may not be written.
pub fn setup(folder: &Path) -> Result<Vec<String>, Error> {
    if !folder.exists() {
        let hint = "br_netfilter is not loaded: nothing to set; if pods share a bridge, load it on the host (modprobe \
             br_netfilter) and start this again";
        return Ok(vec![hint.to_owned()]);
    }
    SYSCTLS.into_iter().map(|sysctl| set(folder, sysctl).map_err(|source| Error { sysctl, source })).collect()
}

fn set(folder: &Path, sysctl: &'static str) -> io::Result<String> {
    let file = folder.join(sysctl);
    if std::fs::read_to_string(&file)?.trim() != "0" {
        return Ok(format!("net.bridge.{sysctl} is on already"));
    }
    std::fs::write(&file, "1")?;
    Ok(format!("net.bridge.{sysctl} is on now"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn what_is_off_is_switched_on_and_the_rest_left_alone() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            let folder = Path::new(BRIDGE);
            std::fs::write(folder.join(SYSCTLS[0]), "0").unwrap();
            std::fs::write(folder.join(SYSCTLS[1]), "1").unwrap();
            let done = setup(folder).unwrap();
            assert!(done[0].ends_with("is on now") && done[1].ends_with("is on already"), "{done:?}");
            assert!(setup(folder).unwrap().iter().all(|done| done.ends_with("already")));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn without_br_netfilter_it_says_what_to_load() {
        let done = setup(Path::new("/nowhere")).unwrap();
        assert!(done[0].contains("modprobe br_netfilter"), "{done:?}");
    }

    #[test]
    fn what_may_not_be_written_is_named() {
        // a folder without these files: they cannot be read either
        let error = setup(Path::new("/proc")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot set net.bridge.bridge-nf-call-iptables to 1: "),
            "{error}"
        );
    }
}
