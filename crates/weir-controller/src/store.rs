//! Where the authorities are kept: a Secret that controllers share, and a ConfigMap that agents mount.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tonic::async_trait;

use crate::authority::{Authorities, Error, Store};

/// In the Secret.
const AUTHORITY: &str = "authority.json";
/// In the ConfigMap.
const CA: &str = "ca.crt";

/// In a cluster.
pub struct Cluster {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    secret: String,
    config_map: String,
}

impl Cluster {
    /// In this namespace, under these names.
    pub fn new(client: Client, namespace: &str, secret: String, config_map: String) -> Self {
        let secrets = Api::namespaced(client.clone(), namespace);
        Cluster { secrets, config_maps: Api::namespaced(client, namespace), secret, config_map }
    }

    async fn create(&self, data: BTreeMap<String, ByteString>) -> Result<(), kube::Error> {
        let name = Some(self.secret.clone());
        let metadata = ObjectMeta { name, labels: Some(labels()), ..ObjectMeta::default() };
        let secret = Secret { metadata, data: Some(data), ..Secret::default() };
        self.secrets.create(&PostParams::default(), &secret).await.map(drop)
    }

    /// Leaves what others keep in the Secret, unless it is another version by now.
    async fn put(&self, data: BTreeMap<String, ByteString>, version: &str) -> Result<(), kube::Error> {
        let patch = serde_json::json!({ "metadata": { "resourceVersion": version }, "data": data });
        self.secrets.patch(&self.secret, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    fn failed(&self, doing: &str, error: &kube::Error) -> Error {
        Error::Store(format!("cannot {doing}: {error}"))
    }
}

/// The server says that somebody else was first.
fn lost(error: &kube::Error) -> bool {
    // it was there when it was read
    conflict(error) || matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[async_trait]
impl Store for Cluster {
    async fn read(&self) -> Result<Option<(Authorities, String)>, Error> {
        let name = &self.secret;
        let found = self.secrets.get_opt(name).await;
        let Some(secret) = found.map_err(|error| self.failed(&format!("read Secret {name}"), &error))? else {
            return Ok(None);
        };
        let version = secret.metadata.resource_version.unwrap_or_default();
        // as it is installed
        let Some(stored) = secret.data.unwrap_or_default().remove(AUTHORITY) else { return Ok(None) };
        let authorities = serde_json::from_slice(&stored.0).map_err(|error| {
            let what = format!("Secret {name}: {AUTHORITY} is not what a controller wrote ({error})");
            Error::Stored(format!("{what}: delete the Secret, and controllers make a new authority"))
        })?;
        Ok(Some((authorities, version)))
    }

    async fn write(&self, authorities: &Authorities, version: Option<&str>) -> Result<bool, Error> {
        let json = serde_json::to_vec(authorities).map_err(|error| Error::Stored(error.to_string()))?;
        let data = BTreeMap::from([(AUTHORITY.to_owned(), ByteString(json))]);
        let name = &self.secret;
        let done = match version {
            Some(version) => self.put(data, version).await,
            None => match self.create(data.clone()).await {
                // it is installed empty, to be removed with the rest
                Err(error) if conflict(&error) => match self.secrets.get_opt(name).await {
                    Ok(Some(there))
                        if !there.data.as_ref().is_some_and(|data| data.contains_key(AUTHORITY)) =>
                    {
                        self.put(data, &there.metadata.resource_version.unwrap_or_default()).await
                    }
                    Ok(_) => return Ok(false),
                    Err(error) => Err(error),
                },
                done => done,
            },
        };
        match done {
            Ok(()) => Ok(true),
            Err(error) if lost(&error) => Ok(false),
            Err(error) => Err(self.failed(&format!("write Secret {name}"), &error)),
        }
    }

    async fn publish(&self, bundle: &str) -> Result<(), Error> {
        let name = &self.config_map;
        for _ in 0..10 {
            let found = self.config_maps.get_opt(name).await;
            let found = found.map_err(|error| self.failed(&format!("read ConfigMap {name}"), &error))?;
            let is_there = found.is_some();
            let mut map = found.unwrap_or_default();
            let data = map.data.get_or_insert_default();
            if data.get(CA).is_some_and(|there| there == bundle) {
                return Ok(());
            }
            data.insert(CA.to_owned(), bundle.to_owned());
            map.metadata.name = Some(name.clone());
            map.metadata.labels.get_or_insert_default().extend(labels());
            let done = if is_there {
                self.config_maps.replace(name, &PostParams::default(), &map).await
            } else {
                self.config_maps.create(&PostParams::default(), &map).await
            };
            match done {
                Ok(_) => return Ok(()),
                Err(error) if lost(&error) => {}
                Err(error) => return Err(self.failed(&format!("write ConfigMap {name}"), &error)),
            }
        }
        Err(Error::Store(format!("others keep changing ConfigMap {name}")))
    }
}

fn labels() -> BTreeMap<String, String> {
    let pairs = [("app.kubernetes.io/name", "weir"), ("app.kubernetes.io/component", "controller")];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}
