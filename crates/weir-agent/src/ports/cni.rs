//! What the CNI plugins have told the container runtime about pods' interfaces, which it keeps in files
//! (libcni's cache). No pod can write there, so it goes before what pods' interfaces have; but not every
//! runtime and plugin leaves it, and an agent in a container sees it only if the folder is mounted.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

/// One attachment of a pod to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The names of the interfaces on the node: the pod's other end, and what belongs to it.
    pub interfaces: Vec<String>,
    /// The MAC address of the pod's interface.
    pub mac: Option<[u8; 6]>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Cached {
    result: Answer,
}

/// A plugin's result, of version 0.3.0 or newer: older ones do not name interfaces.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

/// All that is in a folder; nothing if it is not there.
pub fn read(folder: &Path) -> Vec<Told> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let text = std::fs::read_to_string(file.path()).ok()?;
            let told = parse(&text);
            if told.is_none() {
                tracing::debug!(file = %file.path().display(), "not a result of a CNI plugin that names interfaces");
            }
            told
        })
        .collect()
}

fn parse(text: &str) -> Option<Told> {
    let Answer { interfaces, ips } = serde_json::from_str::<Cached>(text).ok()?.result;
    let in_pod = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| interfaces.get(index));
        interface.is_some_and(|interface| !interface.sandbox.is_empty())
    };
    let of_pod = ips.iter().find(in_pod).and_then(|ip| interfaces.get(ip.interface?));
    let address = |ip: &Ip| ip.address.split('/').next()?.parse().ok();
    let on_node = interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    Some(Told {
        mac: of_pod.and_then(|interface| mac(&interface.mac)),
        addresses: ips.iter().filter(in_pod).filter_map(address).collect(),
        interfaces: on_node.map(|interface| interface.name.clone()).collect(),
    })
    .filter(|told| !told.addresses.is_empty() && !told.interfaces.is_empty())
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libcni writes it for the plugin bridge.
    const BRIDGE: &str = r#"{"kind": "cniCacheV1", "containerId": "c0ffee", "config": "e30=", "ifName": "eth0",
        "networkName": "pods", "cniArgs": [["K8S_POD_NAMESPACE", "a"], ["K8S_POD_NAME", "p"]],
        "result": {"cniVersion": "1.0.0", "dns": {}, "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth12ab34cd", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/var/run/netns/cni-1"}],
        "ips": [{"interface": 2, "address": "10.0.0.5/24", "gateway": "10.0.0.1"},
        {"interface": 2, "address": "fd00::5/64"}], "routes": [{"dst": "0.0.0.0/0"}]}}"#;

    #[test]
    fn a_result_names_the_pods_addresses_and_the_nodes_interfaces() {
        let told = parse(BRIDGE).unwrap();
        assert_eq!(told.interfaces, ["cni0", "veth12ab34cd"]);
        assert_eq!(told.mac, Some([2, 0, 0, 0, 0, 3]));
        assert_eq!(told.addresses, ["10.0.0.5", "fd00::5"].map(|a| a.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn what_does_not_say_where_is_nothing() {
        for text in ["", "{}", r#"{"result": {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}}}"#] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&BRIDGE.replace("\"interface\": 2", "\"interface\": 7")), None);
    }

    #[test]
    fn a_folder_is_read_as_far_as_it_is_there() {
        let folder = std::env::temp_dir().join(format!("weir-cni-{}", std::process::id()));
        assert_eq!(read(&folder), []);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("pods-c0ffee-eth0"), BRIDGE).unwrap();
        std::fs::write(folder.join("other"), "{").unwrap();
        assert_eq!(read(&folder), [parse(BRIDGE).unwrap()]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
