//! Questions over forwarded ports.
//!
//! Connections are kept and used again: to open one costs the API server and the kubelet more than the question.
//! A question holds its connection until agnhost answers, which it does after 5 s at the latest where nobody else does.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::Semaphore;
use weir_compiler::object::Protocol;

use super::{Answer, Client, Question, SILENCE, TRANSPORT, dial_name};
use crate::api::chain;

/// Connections that are being opened at one time.
const OPENING: usize = 12;
/// How long opening one may take.
const OPEN: Duration = Duration::from_secs(20);

type Connection = SendRequest<Empty<Bytes>>;

/// Connections by pod.
pub(super) struct Forward {
    client: kube::Client,
    idle: Mutex<HashMap<Client, Vec<Connection>>>,
    opening: Semaphore,
}

impl Forward {
    pub(super) fn new(client: kube::Client) -> Forward {
        Forward { client, idle: Mutex::default(), opening: Semaphore::new(OPENING) }
    }

    pub(super) fn forget(&self, client: &Client) {
        self.idle.lock().expect("not poisoned").remove(client);
    }

    pub(super) async fn ask(&self, question: &Question) -> Answer {
        let path = format!(
            "/dial?host={}&port={}&protocol={}&request={}&tries=1",
            question.address,
            question.port.number,
            dial_name(question.port.protocol),
            question.ask
        );
        let sctp = question.port.protocol == Protocol::Sctp;
        let patience = if sctp { SILENCE } else { SILENCE + TRANSPORT };
        match self.get(&question.client, &path, patience).await {
            // agnhost has no end to an SCTP handshake
            Ok(None) if sctp => Answer::Silence,
            Ok(None) => Answer::Unasked(format!("agnhost did not answer within {} s", patience.as_secs())),
            Ok(Some(body)) => read(&body),
            Err(error) => Answer::Unasked(error),
        }
    }

    /// The body of an answer; `None`: none came in time.
    pub(super) async fn get(
        &self,
        client: &Client,
        path: &str,
        patience: Duration,
    ) -> Result<Option<String>, String> {
        let mut last = String::new();
        // an idle connection may have ended unseen, and so may all of them
        for _ in 0..4 {
            let connection = match self.take(client) {
                Some(connection) => connection,
                None => match self.open(client).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        last = error;
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
            };
            let answer = exchange(connection, client.clone(), path.to_owned());
            match tokio::time::timeout(patience, answer).await {
                Ok(Ok((connection, body))) => {
                    self.give(client, connection);
                    return Ok(Some(body));
                }
                Ok(Err(error)) => last = error,
                Err(_) => return Ok(None),
            }
        }
        Err(last)
    }

    fn take(&self, client: &Client) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("not poisoned");
        let list = idle.get_mut(client)?;
        while let Some(connection) = list.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn give(&self, client: &Client, connection: Connection) {
        if !connection.is_closed() {
            self.idle.lock().expect("not poisoned").entry(client.clone()).or_default().push(connection);
        }
    }

    async fn open(&self, client: &Client) -> Result<Connection, String> {
        let _turn = self.opening.acquire().await.map_err(|e| e.to_string())?;
        let opened = tokio::time::timeout(OPEN, async {
            let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), &client.namespace);
            let mut forwarder = pods.portforward(&client.pod, &[client.port]).await.map_err(|e| chain(&e))?;
            let stream = forwarder.take_stream(client.port).ok_or("the API server forwards nothing")?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| chain(&e))?;
            tokio::spawn(async move {
                // its end is seen by whoever sends the next request
                let _ = connection.await;
                forwarder.abort();
            });
            Ok::<_, String>(sender)
        });
        opened.await.map_err(|_| format!("no port forwarded within {} s", OPEN.as_secs()))?
    }
}

/// One request, and the body that comes back.
async fn exchange(
    mut connection: Connection,
    client: Client,
    path: String,
) -> Result<(Connection, String), String> {
    let request = http::Request::get(path)
        .header("host", format!("localhost:{}", client.port))
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    connection.ready().await.map_err(|e| chain(&e))?;
    let answer = connection.send_request(request).await.map_err(|e| chain(&e))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| chain(&e))?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        Ok((connection, body))
    } else {
        Err(format!("agnhost says {status}: {}", body.trim()))
    }
}

/// What `/dial` says.
fn read(body: &str) -> Answer {
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        return Answer::Unasked(format!("agnhost answers {body:?}"));
    };
    if let Some(said) = value.pointer("/responses/0").and_then(Value::as_str) {
        return Answer::Said(said.trim().to_owned());
    }
    match value.pointer("/errors/0").and_then(Value::as_str) {
        Some(error) if error.contains("refused") => Answer::Refused,
        Some(error) if error.contains("timeout") || error.contains("deadline exceeded") => Answer::Silence,
        Some(error) if error.contains("protocol not supported") => Answer::Unasked(error.to_owned()),
        Some(error) => Answer::Network(error.to_owned()),
        None => Answer::Unasked(format!("agnhost answers {body:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agnhost_says_is_understood() {
        assert_eq!(read(r#"{"responses":["x-a"]}"#), Answer::Said("x-a".into()));
        let refused = r#"{"errors":["Get \"http://10.0.0.1:80/hostname\": dial tcp 10.0.0.1:80: connect: connection refused"]}"#;
        assert_eq!(read(refused), Answer::Refused);
        for silent in [
            r#"{"errors":["Get \"http://10.0.0.1:80/x\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"]}"#,
            r#"{"errors":["reading from udp connection failed. err:'read udp 1->2: i/o timeout'"]}"#,
        ] {
            assert_eq!(read(silent), Answer::Silence, "{silent}");
        }
        assert!(matches!(read(r#"{"errors":["connect: no route to host"]}"#), Answer::Network(_)));
        assert!(matches!(read("<html>"), Answer::Unasked(_)));
        assert!(matches!(read("{}"), Answer::Unasked(_)));
    }
}
