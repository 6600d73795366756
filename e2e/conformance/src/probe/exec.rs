//! Questions by `agnhost connect`, executed in the client's pod.

use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use tokio::io::AsyncReadExt;

use super::{Answer, Client, Question, SILENCE, TRANSPORT};
use crate::api::chain;

/// The container that runs it.
const CONTAINER: &str = "one";

pub(super) struct Exec {
    client: kube::Client,
}

impl Exec {
    pub(super) fn new(client: kube::Client) -> Exec {
        Exec { client }
    }

    pub(super) async fn ask(&self, question: &Question) -> Answer {
        let address = std::net::SocketAddr::new(question.address, question.port.number).to_string();
        let command = [
            "/agnhost".to_owned(),
            "connect".to_owned(),
            address,
            format!("--timeout={}ms", SILENCE.as_millis()),
            format!("--protocol={}", question.port.protocol.as_str().to_lowercase()),
        ];
        match tokio::time::timeout(SILENCE + TRANSPORT, self.run(&question.client, &command)).await {
            Err(_) => {
                Answer::Unasked(format!("exec did not end within {} s", (SILENCE + TRANSPORT).as_secs()))
            }
            Ok(Err(error)) => Answer::Unasked(error),
            Ok(Ok((true, _))) => Answer::Connected,
            Ok(Ok((false, said))) => read(&said),
        }
    }

    /// Whether the command ended well, and what it said on stderr.
    async fn run(&self, client: &Client, command: &[String]) -> Result<(bool, String), String> {
        let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), &client.namespace);
        let how = AttachParams::default().stdout(false).stderr(true).container(CONTAINER);
        let mut process = pods.exec(&client.pod, command, &how).await.map_err(|e| chain(&e))?;
        let status = process.take_status();
        let mut said = String::new();
        if let Some(mut stderr) = process.stderr() {
            stderr.read_to_string(&mut said).await.map_err(|e| e.to_string())?;
        }
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        // the connection to the container runtime broke off
        let status = status.ok_or("exec ended without a status")?;
        let good = status.status.is_some_and(|s| s == "Success");
        if !good && !said.contains(char::is_uppercase) {
            return Err(format!("exec failed: {}", status.message.unwrap_or_default()));
        }
        Ok((good, said))
    }
}

/// What `agnhost connect` says on stderr begins with one of its fixed words.
fn read(said: &str) -> Answer {
    let said = said.trim();
    match said.split([':', '\n', ' ']).next().unwrap_or_default() {
        "TIMEOUT" => Answer::Silence,
        "REFUSED" => Answer::Refused,
        "OTHER" => Answer::Network(said.to_owned()),
        _ => Answer::Unasked(said.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agnhost_connect_says_is_understood() {
        assert_eq!(read("TIMEOUT\n"), Answer::Silence);
        assert_eq!(read("TIMEOUT: read udp 1->2: i/o timeout\n"), Answer::Silence);
        assert_eq!(read("REFUSED\n"), Answer::Refused);
        assert!(matches!(read("OTHER: no route to host"), Answer::Network(_)));
        assert!(matches!(read("UNKNOWN: missing port in address"), Answer::Unasked(_)));
    }
}
