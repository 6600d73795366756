//! The Kubernetes API, as plain JSON: what the suite makes and reads is a handful of kinds.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde_json::Value;

/// How long one request may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How often a request is sent anew that met no answer, or a server that asked to come back.
const TRIES: u32 = 5;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server says no.
    #[error("{method} {path}: {message} ({code})")]
    Refused {
        /// Of the request.
        method: Method,
        /// Of the request.
        path: String,
        /// HTTP's code.
        code: u16,
        /// What the server says.
        message: String,
    },
    /// No answer that could be understood.
    #[error("{method} {path}: {reason}")]
    Failed {
        /// Of the request.
        method: Method,
        /// Of the request.
        path: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// HTTP's code, if the server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            Error::Failed { .. } => None,
        }
    }
}

/// A cluster's API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
}

impl Api {
    /// The server of a kubeconfig's context, or what kubectl would use.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn connect(
        kubeconfig: Option<PathBuf>,
        context: Option<String>,
    ) -> Result<Api, weir_source::cluster::Error> {
        let options = weir_source::cluster::Options { kubeconfig, context };
        Ok(Api { client: weir_source::cluster::connect(options).await? })
    }

    /// The client below, for what is more than a request.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// The server refuses, or does not answer.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.ask(Method::GET, path, None, "application/json").await
    }

    /// The same; `None`: there is no such object.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn find(&self, path: &str) -> Result<Option<Value>, Error> {
        found(self.get(path).await)
    }

    /// Makes an object; `path` is its kind's.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.ask(Method::POST, path, Some(object), "application/json").await
    }

    /// Makes an object, or replaces the one of its name.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn put(&self, path: &str, name: &str, object: &Value) -> Result<Value, Error> {
        match self.create(path, object).await {
            Err(error) if error.code() == Some(409) => {
                self.ask(Method::PUT, &format!("{path}/{name}"), Some(object), "application/json").await
            }
            other => other,
        }
    }

    /// Merges a patch into an object.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.ask(Method::PATCH, path, Some(patch), "application/merge-patch+json").await
    }

    /// Deletes an object, at once if it can be; one that is not there is as good.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        let now = serde_json::json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        found(self.ask(Method::DELETE, path, Some(&now), "application/json").await).map(|_| ())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content: &str,
    ) -> Result<Value, Error> {
        let failed = |reason: String| Error::Failed { method: method.clone(), path: path.to_owned(), reason };
        let body = body.map(|value| value.to_string().into_bytes()).unwrap_or_default();
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            let request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header("content-type", content)
                .header("accept", "application/json")
                .body(body.clone())
                .map_err(|error| failed(error.to_string()))?;
            let error = match tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(kube::Error::Api(status))) => Error::Refused {
                    method: method.clone(),
                    path: path.to_owned(),
                    code: status.code,
                    message: status.message.clone(),
                },
                Ok(Err(error)) => failed(chain(&error)),
                Err(_) => failed(format!("no answer within {} s", ANSWER.as_secs())),
            };
            // a create that was cut off may have been done: 409 then, which callers know
            let again = matches!(error.code(), None | Some(429 | 500 | 503 | 504));
            if !again || attempt == TRIES {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop returns")
    }
}

fn found(result: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Where objects of the kinds that the suite makes are.
pub mod path {
    /// Namespaces.
    pub const NAMESPACES: &str = "/api/v1/namespaces";
    /// Nodes.
    pub const NODES: &str = "/api/v1/nodes";

    /// A namespace.
    pub fn namespace(name: &str) -> String {
        format!("{NAMESPACES}/{name}")
    }
    /// Pods of a namespace.
    pub fn pods(namespace: &str) -> String {
        format!("{NAMESPACES}/{namespace}/pods")
    }
    /// Services of a namespace.
    pub fn services(namespace: &str) -> String {
        format!("{NAMESPACES}/{namespace}/services")
    }
    /// Policies of a namespace.
    pub fn policies(namespace: &str) -> String {
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
    }
}
