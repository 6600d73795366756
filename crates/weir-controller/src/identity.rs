//! Who an agent is: the node that its service account token is bound to, as the API server says.
//!
//! A token counts if it is meant for us (audience), belongs to the agents' service account, and is bound to a pod:
//! whoever may create tokens of that account without a pod could have one that names any node.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::async_trait;

use crate::serve::Call;

const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// So many reviews at once.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than any token: 8 KiB.
const LONGEST_TOKEN: usize = 8 << 10;

/// Why an agent is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No token at all.
    #[error(
        "no token: send the service account token for audience {} as `authorization: Bearer`",
        weir_proto::AUDIENCE
    )]
    NoToken,
    /// The API server does not accept the token.
    #[error("the token is not valid: {0}")]
    NotValid(String),
    /// The token is somebody else's.
    #[error("the token is not that of an agent: {0}")]
    NotAnAgent(String),
    /// It cannot be found out.
    #[error("the token cannot be checked now: {0}")]
    NotNow(String),
}

impl Refused {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Refused::NoToken => "no_token",
            Refused::NotValid(_) => "invalid_token",
            Refused::NotAnAgent(_) => "not_an_agent",
            Refused::NotNow(_) => "unchecked",
        }
    }
}

/// Tells the node of an agent.
#[async_trait]
pub trait Identify: Send + Sync {
    /// From a token.
    async fn node(&self, token: &str) -> Result<String, Refused>;
}

/// Asks the API server.
pub struct Review {
    client: Client,
    /// As in `system:serviceaccount:NAMESPACE:NAME`.
    user: String,
    audience: String,
    calls: mpsc::Sender<Call>,
    at_once: Semaphore,
}

impl Review {
    /// Agents have this service account, and tokens for this audience.
    pub fn new(
        client: Client,
        namespace: &str,
        service_account: &str,
        audience: String,
        calls: mpsc::Sender<Call>,
    ) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{service_account}");
        Review { client, user, audience, calls, at_once: Semaphore::new(AT_ONCE) }
    }
}

#[async_trait]
impl Identify for Review {
    async fn node(&self, token: &str) -> Result<String, Refused> {
        if token.len() > LONGEST_TOKEN {
            return Err(Refused::NotValid(format!("it is longer than {LONGEST_TOKEN} bytes")));
        }
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let asked = async {
            let _turn = self.at_once.acquire().await;
            Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await
        };
        let answer = match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Refused::NotNow(format!("TokenReview: {error}"))),
            Err(_) => return Err(Refused::NotNow("TokenReview takes too long".to_owned())),
        };
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why = status.error.filter(|error| !error.is_empty());
            return Err(Refused::NotValid(
                why.unwrap_or_else(|| "the API server does not say why".to_owned()),
            ));
        }
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Err(Refused::NotValid(format!("it is not for audience {}", self.audience)));
        }
        match agent(&self.user, status.user.unwrap_or_default())? {
            Agent { node: Some(node), .. } => Ok(node),
            Agent { pod, node: None } => {
                let (reply, node) = oneshot::channel();
                let asked = self.calls.send(Call::NodeOf(pod, reply)).await;
                let node = match asked {
                    Ok(()) => node.await.ok().flatten(),
                    Err(_) => None,
                };
                // its pod may be newer than what we have heard of
                node.ok_or_else(|| Refused::NotNow("its pod is not known yet".to_owned()))
            }
        }
    }
}

#[derive(Debug, PartialEq)]
struct Agent {
    pod: String,
    node: Option<String>,
}

/// Reads what the API server says of a token's user.
fn agent(user: &str, info: UserInfo) -> Result<Agent, Refused> {
    let name = info.username.unwrap_or_default();
    if name != user {
        return Err(Refused::NotAnAgent(format!("it belongs to {name}, and not to {user}")));
    }
    let mut extra = info.extra.unwrap_or_default();
    let mut one = |key: &str| match extra.remove(key).unwrap_or_default().as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    match one(POD_UID) {
        Some(pod) => Ok(Agent { pod, node: one(NODE_NAME) }),
        None => Err(Refused::NotAnAgent("it is bound to no pod".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "system:serviceaccount:weir-system:weir-agent";

    fn info(user: &str, extra: &[(&str, &[&str])]) -> UserInfo {
        let extra = extra.iter().map(|(k, v)| ((*k).to_owned(), v.iter().map(|v| (*v).to_owned()).collect()));
        UserInfo { username: Some(user.to_owned()), extra: Some(extra.collect()), ..UserInfo::default() }
    }

    #[test]
    fn a_token_counts_if_it_is_an_agents_and_bound_to_a_pod() {
        let both = info(USER, &[(POD_UID, &["u"]), (NODE_NAME, &["n1"])]);
        assert_eq!(agent(USER, both), Ok(Agent { pod: "u".into(), node: Some("n1".into()) }));
        let older = info(USER, &[(POD_UID, &["u"])]);
        assert_eq!(agent(USER, older), Ok(Agent { pod: "u".into(), node: None }));
        for wrong in [
            info("system:serviceaccount:weir-system:other", &[(POD_UID, &["u"]), (NODE_NAME, &["n1"])]),
            info("system:serviceaccount:weir-systemx:weir-agent", &[(POD_UID, &["u"]), (NODE_NAME, &["n1"])]),
            info(USER, &[(NODE_NAME, &["n1"])]),
            info(USER, &[(POD_UID, &["u", "v"]), (NODE_NAME, &["n1"])]),
            info(USER, &[(POD_UID, &[""]), (NODE_NAME, &["n1"])]),
            UserInfo::default(),
        ] {
            assert!(matches!(agent(USER, wrong.clone()), Err(Refused::NotAnAgent(_))), "{wrong:?}");
        }
    }
}
