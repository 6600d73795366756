//! Manifests as the lab needs them: whole objects, as written, with nodes and addresses filled in.
//!
//! Objects stay untyped JSON here. What the agents read is therefore what the user wrote, fields that
//! nobody knows included, and the lab's own reading of it is a second opinion beside the compiler's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Kind, namespace (empty for a Namespace) and name.
pub type Identity = (String, String, String);

/// Which address families pods without addresses are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// One address of each.
    Dual,
}

impl FromStr for Family {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "ipv4" => Family::Ipv4,
            "ipv6" => Family::Ipv6,
            "dual" => Family::Dual,
            _ => bail!("family {s:?} is not ipv4, ipv6 or dual"),
        })
    }
}

/// A set of objects, by identity.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// The objects.
    pub all: BTreeMap<Identity, Value>,
    /// Files that could not be read as YAML or JSON: the agents get them as they are.
    pub unreadable: BTreeMap<PathBuf, String>,
}

/// The string at `pointer`, or "".
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The list at `pointer`, or none.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Objects {
    /// Reads files, and the `.yaml`, `.yml` and `.json` files of folders and of the folders below. The second part of the answer is
    /// what to tell the user.
    pub fn read(paths: &[PathBuf]) -> Result<(Objects, Vec<String>)> {
        let mut objects = Objects::default();
        let mut notes = Vec::new();
        for file in files(paths)? {
            let content = std::fs::read_to_string(&file).with_context(|| {
                format!("cannot read {}: name a file or folder that is there", file.display())
            })?;
            match documents(&content) {
                Ok(documents) => documents.into_iter().for_each(|d| objects.insert(d, &file, &mut notes)),
                Err(e) => {
                    let first = e.to_string().lines().next().unwrap_or_default().to_owned();
                    notes.push(format!("{}: {first}", file.display()));
                    objects.unreadable.insert(file, content);
                }
            }
        }
        Ok((objects, notes))
    }

    /// From objects that are in hand; what cannot be used of them is an error.
    pub fn from_values(values: Vec<Value>) -> Result<Objects> {
        let mut objects = Objects::default();
        let mut notes = Vec::new();
        values.into_iter().for_each(|value| objects.insert(value, Path::new("objects"), &mut notes));
        anyhow::ensure!(notes.is_empty(), "{}", notes.join("; "));
        Ok(objects)
    }

    fn insert(&mut self, mut object: Value, file: &Path, notes: &mut Vec<String>) {
        let kind = text(&object, "/kind").to_owned();
        if kind == "List" || kind.ends_with("List") && object.get("items").is_some() {
            let item_kind = kind.trim_end_matches("List").to_owned();
            let api = object.get("apiVersion").cloned();
            for mut item in list(&object, "/items").to_vec() {
                // The items of a typed list (PodList) need not repeat their type.
                if let Some(fields) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
                    fields.entry("kind").or_insert_with(|| item_kind.clone().into());
                    fields.entry("apiVersion").or_insert_with(|| api.clone().unwrap_or(Value::Null));
                }
                self.insert(item, file, notes);
            }
            return;
        }
        let name = text(&object, "/metadata/name").to_owned();
        let namespace = match (kind.as_str(), text(&object, "/metadata/namespace")) {
            ("Namespace", _) => "",
            ("Pod" | "NetworkPolicy", "") => "default",
            ("Pod" | "NetworkPolicy", namespace) => namespace,
            // Services and the like, as a dump of a whole namespace has them.
            _ => return,
        }
        .to_owned();
        if name.is_empty() {
            notes.push(format!("{}: a {kind} without a name, left out", file.display()));
            return;
        }
        if kind != "Namespace" {
            object["metadata"]["namespace"] = namespace.clone().into();
        }
        let identity = (kind, namespace, name);
        // As everywhere in Weir where manifests are read.
        if self.all.contains_key(&identity) {
            let (kind, namespace, name) = identity;
            notes.push(format!(
                "{}: {kind} {namespace}/{name} is there twice, the first counts",
                file.display()
            ));
            return;
        }
        self.all.insert(identity, object);
    }

    /// Those of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.all.iter().filter(move |((k, ..), _)| k == kind).map(|(_, object)| object)
    }

    /// Lays `other` over these.
    pub fn overlay(&mut self, other: Objects) {
        self.all.extend(other.all);
        self.unreadable.extend(other.unreadable);
    }

    /// Takes the objects of `other` out of these.
    pub fn remove(&mut self, other: &Objects) {
        self.all.retain(|identity, _| !other.all.contains_key(identity));
        self.unreadable.retain(|file, _| !other.unreadable.contains_key(file));
    }

    /// Gives each pod a node and addresses, each pod's namespace an object, where there are none.
    pub fn complete(&mut self, family: Option<Family>) {
        let namespaces: BTreeSet<String> =
            self.all.keys().map(|(_, namespace, _)| namespace.clone()).filter(|n| !n.is_empty()).collect();
        for name in namespaces {
            self.all.entry(("Namespace".into(), String::new(), name.clone())).or_insert_with(
                || json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            );
        }

        let mut nodes: BTreeSet<String> = self
            .of_kind("Pod")
            .map(|p| text(p, "/spec/nodeName").to_owned())
            .filter(|n| !n.is_empty())
            .collect();
        for n in 1.. {
            if nodes.len() >= 2 {
                break;
            }
            nodes.insert(format!("node-{n}"));
        }
        let nodes: Vec<String> = nodes.into_iter().collect();

        let mut taken: BTreeSet<IpAddr> = self.of_kind("Pod").flat_map(addresses).collect();
        let family = family.unwrap_or_else(|| {
            match (taken.iter().any(IpAddr::is_ipv4), taken.iter().any(IpAddr::is_ipv6)) {
                (true, true) => Family::Dual,
                (false, true) => Family::Ipv6,
                _ => Family::Ipv4,
            }
        });
        let mut turn = 0;
        for ((kind, ..), pod) in &mut self.all {
            if kind != "Pod" {
                continue;
            }
            if text(pod, "/spec/nodeName").is_empty() {
                object_at(pod, "spec").insert("nodeName".into(), nodes[turn % nodes.len()].clone().into());
                turn += 1;
            }
            let node = nodes.iter().position(|n| n == text(pod, "/spec/nodeName")).unwrap_or(0) + 1;
            // Host-network pods have their node's addresses, whatever is written.
            if !addresses(pod).is_empty() || pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
                continue;
            }
            let mut ips = Vec::new();
            for (wanted, prefix) in [
                (family != Family::Ipv6, format!("10.244.{}.", node % 256)),
                (family != Family::Ipv4, format!("fd00:10:244:{node:x}::")),
            ] {
                // 2 to 254 reads the same in both families' notation as far as it matters here.
                let free = (2..255).filter_map(|x| format!("{prefix}{x}").parse::<IpAddr>().ok());
                if let Some(ip) = free.into_iter().find(|ip| !taken.contains(ip)).filter(|_| wanted) {
                    taken.insert(ip);
                    ips.push(json!({"ip": ip.to_string()}));
                }
            }
            let status = object_at(pod, "status");
            status.insert("podIP".into(), ips.first().map_or(Value::Null, |ip| ip["ip"].clone()));
            status.insert("podIPs".into(), ips.into());
        }
    }

    /// Makes `dir` hold exactly these, one file per object; each file changes at once or not at all.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut wanted: BTreeMap<String, String> = BTreeMap::new();
        for ((kind, namespace, name), object) in &self.all {
            wanted.insert(format!("{kind}.{namespace}.{name}.json"), serde_json::to_string_pretty(object)?);
        }
        for (n, (file, content)) in self.unreadable.iter().enumerate() {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            wanted.insert(format!("unreadable-{n}-{name}"), content.clone());
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let staging = dir.with_extension("new");
        std::fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
        for (name, content) in &wanted {
            let path = dir.join(name);
            if std::fs::read_to_string(&path).is_ok_and(|old| old == *content) {
                continue;
            }
            let new = staging.join(name);
            std::fs::write(&new, content)
                .and_then(|()| std::fs::rename(&new, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if !wanted.contains_key(entry.file_name().to_string_lossy().as_ref()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The addresses of a pod: `status.podIPs`, or `status.podIP` alone (N74).
pub fn addresses(pod: &Value) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> =
        list(pod, "/status/podIPs").iter().filter_map(|ip| text(ip, "/ip").parse().ok()).collect();
    if found.is_empty() {
        found.extend(text(pod, "/status/podIP").parse::<IpAddr>());
    }
    found.dedup();
    found
}

fn object_at<'a>(object: &'a mut Value, key: &str) -> &'a mut serde_json::Map<String, Value> {
    let place = &mut object[key];
    if !place.is_object() {
        *place = json!({});
    }
    match place {
        Value::Object(fields) => fields,
        _ => unreachable!("made an object above"),
    }
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        let mut folders = vec![path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in
                std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
            {
                let entry = entry?;
                let file = entry.path();
                let known = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
                if entry.file_name().to_string_lossy().starts_with('.') {
                    continue;
                } else if entry.file_type()?.is_dir() {
                    folders.push(file);
                } else if known {
                    found.push(file);
                }
            }
        }
        if found.is_empty() {
            bail!("{} has no .yaml, .yml or .json file", path.display());
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

fn documents(content: &str) -> Result<Vec<Value>> {
    // JSON is tried first: it is faster, and large lists stay clear of the YAML reader's limits.
    if let Ok(value) = serde_json::from_str::<Value>(content) {
        return Ok(vec![value]);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 100_000,
            max_nodes: 20_000_000,
            max_events: 50_000_000,
            max_reader_input_bytes: Some(1 << 30),
        },
    };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(content, options)?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Objects {
        let mut objects = Objects::default();
        let mut notes = Vec::new();
        for document in documents(content).unwrap() {
            objects.insert(document, Path::new("test.yaml"), &mut notes);
        }
        assert_eq!(notes, Vec::<String>::new());
        objects
    }

    fn pod<'a>(objects: &'a Objects, name: &str) -> &'a Value {
        &objects.all[&("Pod".into(), "default".into(), name.into())]
    }

    #[test]
    fn pods_without_node_or_address_get_both() {
        let mut objects = read(
            "{kind: Pod, metadata: {name: a}}\n---\n{kind: Pod, metadata: {name: b}}\n---\n\
             {kind: Pod, metadata: {name: c}, status: {podIP: 10.244.1.2}}",
        );
        objects.complete(None);
        assert_eq!(text(pod(&objects, "a"), "/spec/nodeName"), "node-1");
        assert_eq!(text(pod(&objects, "b"), "/spec/nodeName"), "node-2");
        assert_eq!(
            addresses(pod(&objects, "a")),
            ["10.244.1.3".parse::<IpAddr>().unwrap()],
            "10.244.1.2 is taken"
        );
        assert_eq!(addresses(pod(&objects, "b")), ["10.244.2.2".parse::<IpAddr>().unwrap()]);
        assert!(objects.all.contains_key(&("Namespace".into(), String::new(), "default".into())));
    }

    #[test]
    fn the_family_is_the_one_in_use_unless_it_is_given() {
        let manifest = "{kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 'fd00::1'}]}}\n---\n\
                        {kind: Pod, metadata: {name: b}}";
        let mut objects = read(manifest);
        objects.complete(None);
        assert_eq!(addresses(pod(&objects, "b")), ["fd00:10:244:2::2".parse::<IpAddr>().unwrap()]);
        let mut objects = read(manifest);
        objects.complete(Some(Family::Dual));
        assert_eq!(addresses(pod(&objects, "b")).len(), 2);
    }

    #[test]
    fn lists_are_opened_and_their_items_typed() {
        let objects = read("{kind: PodList, apiVersion: v1, items: [{metadata: {name: a}}]}");
        assert_eq!(text(pod(&objects, "a"), "/kind"), "Pod");
    }
}
