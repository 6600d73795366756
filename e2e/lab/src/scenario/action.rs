//! What can happen in a step.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::objects::{Identity, Objects};

/// One thing that happens. Objects are named `pod/NAME`, `pod/NAMESPACE/NAME`, `namespace/NAME` or
/// `policy/NAMESPACE/NAME`; pods alone also `NAME` or `NAMESPACE/NAME`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// Objects come, or are replaced.
    Apply(Vec<Value>),
    /// Objects go.
    Delete(Vec<String>),
    /// Labels of pods or namespaces change; null takes one away.
    Label(BTreeMap<String, BTreeMap<String, Option<String>>>),
    /// Pods reach a phase.
    Phase(BTreeMap<String, String>),
    /// Pods have other addresses.
    Addresses(BTreeMap<String, Vec<IpAddr>>),
    /// Pods' interfaces vanish and return with the same name.
    Replug(Vec<String>),
    /// Pods' links take packets of so many bytes at most.
    Mtu(BTreeMap<String, u16>),
    /// Nodes' agents are killed, and others started.
    Restart(Vec<String>),
}

/// Carries them out, in their order.
pub(super) fn carry_out(lab: &mut Lab, actions: &[Action]) -> Result<()> {
    let mut pending: Option<Objects> = None;
    for action in actions {
        match action {
            Action::Replug(pods) => {
                flush(lab, &mut pending)?;
                pods.iter().try_for_each(|pod| lab.replug(pod))?;
            }
            Action::Mtu(pods) => {
                flush(lab, &mut pending)?;
                pods.iter().try_for_each(|(pod, mtu)| lab.set_mtu(pod, *mtu))?;
            }
            Action::Restart(nodes) => {
                flush(lab, &mut pending)?;
                nodes.iter().try_for_each(|node| lab.restart_agent(node))?;
            }
            change => {
                let objects = pending.get_or_insert_with(|| lab.objects().clone());
                edit(objects, change)?;
            }
        }
    }
    flush(lab, &mut pending)
}

fn flush(lab: &mut Lab, pending: &mut Option<Objects>) -> Result<()> {
    pending.take().map_or(Ok(()), |objects| lab.set(objects))
}

fn edit(objects: &mut Objects, change: &Action) -> Result<()> {
    match change {
        Action::Apply(values) => objects.overlay(Objects::from_values(values.clone())?),
        Action::Delete(names) => {
            for name in names {
                let identity = identity(name)?;
                objects.all.remove(&identity).with_context(|| format!("there is no {name} to delete"))?;
            }
        }
        Action::Label(all) => {
            for (name, labels) in all {
                let object = object(objects, name)?;
                for (key, value) in labels {
                    let place = &mut object["metadata"]["labels"];
                    if place.is_null() {
                        *place = json!({});
                    }
                    let Value::Object(place) = place else { bail!("{name} has labels that are no mapping") };
                    match value {
                        Some(value) => drop(place.insert(key.clone(), value.as_str().into())),
                        None => drop(place.remove(key)),
                    }
                }
            }
        }
        Action::Phase(all) => {
            for (name, phase) in all {
                object(objects, name)?["status"]["phase"] = phase.as_str().into();
            }
        }
        Action::Addresses(all) => {
            for (name, addresses) in all {
                let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
                let status = &mut object(objects, name)?["status"];
                status["podIP"] = ips.first().map_or(Value::Null, |ip| ip["ip"].clone());
                status["podIPs"] = ips.into();
            }
        }
        Action::Replug(_) | Action::Mtu(_) | Action::Restart(_) => {}
    }
    Ok(())
}

fn object<'a>(objects: &'a mut Objects, name: &str) -> Result<&'a mut Value> {
    let identity = identity(name)?;
    objects.all.get_mut(&identity).with_context(|| format!("there is no {name}"))
}

fn identity(name: &str) -> Result<Identity> {
    let words: Vec<&str> = name.split('/').collect();
    let (kind, namespace, name) = match words[..] {
        ["namespace", name] => ("Namespace", "", name),
        ["pod", name] | [name] => ("Pod", "default", name),
        ["policy", name] => ("NetworkPolicy", "default", name),
        ["pod", namespace, name] | [namespace, name] => ("Pod", namespace, name),
        ["policy", namespace, name] => ("NetworkPolicy", namespace, name),
        _ => bail!("{name:?} is not like pod/NAMESPACE/NAME, namespace/NAME or policy/NAMESPACE/NAME"),
    };
    Ok((kind.into(), namespace.into(), name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_and_go() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1"}}});
        let mut objects = Objects::from_values(vec![pod]).unwrap();
        let labels = BTreeMap::from([("x".into(), None), ("y".into(), Some("2".into()))]);
        edit(&mut objects, &Action::Label(BTreeMap::from([("a".into(), labels)]))).unwrap();
        assert_eq!(object(&mut objects, "pod/default/a").unwrap()["metadata"]["labels"], json!({"y": "2"}));
        assert!(edit(&mut objects, &Action::Delete(vec!["b".into()])).is_err());
        edit(&mut objects, &Action::Delete(vec!["pod/a".into()])).unwrap();
        assert!(objects.all.keys().all(|(kind, ..)| kind != "Pod"));
    }
}
