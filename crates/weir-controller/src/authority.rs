//! The certificate authority that the controllers make for themselves.
//!
//! ```text
//!   Secret: authority.json     current (signs), next (published, signs later), old (published until they end)
//!        │ whoever creates it first wins; all others, and all later ones, use it
//!        ├──> ConfigMap: ca.crt   what agents trust: all of them
//!        └──> each controller's own certificate, signed by `current`, in memory only
//! ```
//!
//! A new authority is published a day before anything is signed by it, so that every agent trusts it by then.
//! [`Authorities`] is pure; the clock and the store are handed in.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tonic::async_trait;

const LIFE: Duration = Duration::days(365);
/// With so much left, the next one is made.
const RENEW: Duration = Duration::days(120);
/// For so long it is published before it signs: agents have read it by then.
const PUBLISHED: Duration = Duration::days(1);
/// Of a controller's own certificate.
const LEAF_LIFE: Duration = Duration::days(7);
/// Clocks that are behind by this much still accept what is new.
const SKEW: Duration = Duration::hours(1);

/// What goes wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificate can be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// What is stored is not ours.
    #[error("{0}")]
    Stored(String),
    /// The store does not answer.
    #[error("{0}")]
    Store(String),
}

/// One authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    name: String,
    /// Seconds since 1970.
    begins: i64,
    ends: i64,
    /// PEM
    certificate: String,
    /// PEM
    key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("name", &self.name)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// All that are in use: what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorities {
    current: Authority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Authority>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    old: Vec<Authority>,
}

/// A certificate with its key, as PEM, and when a new one is needed.
#[derive(Clone)]
pub struct Leaf {
    /// PEM
    pub certificate: String,
    /// PEM
    pub key: String,
    /// When half of its life is over.
    pub renew: OffsetDateTime,
    issuer: String,
}

impl Authority {
    fn new(now: OffsetDateTime) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        // told apart by their keys
        let id: String =
            key.public_key_raw().iter().rev().take(8).map(|byte| format!("{byte:02x}")).collect();
        let name = format!("weir-ca-{id}");
        let (begins, ends) = (now - SKEW, now + LIFE);
        let mut params = params(&name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (begins, ends);
        let certificate = params.self_signed(&key)?.pem();
        let (begins, ends) = (now.unix_timestamp(), ends.unix_timestamp());
        Ok(Authority { name, begins, ends, certificate, key: key.serialize_pem() })
    }

    fn left(&self, now: OffsetDateTime) -> Duration {
        Duration::seconds(self.ends - now.unix_timestamp())
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authorities {
    /// The first ones.
    pub fn new(now: OffsetDateTime) -> Result<Self, Error> {
        Ok(Authorities { current: Authority::new(now)?, next: None, old: Vec::new() })
    }

    /// What they have to become by now; `None`: nothing.
    pub fn due(&self, now: OffsetDateTime) -> Result<Option<Authorities>, Error> {
        let mut all = self.clone();
        all.old.retain(|old| old.left(now).is_positive());
        let since_published = |next: &Authority| Duration::seconds(now.unix_timestamp() - next.begins);
        // what has ended helps nobody: no need to wait then
        let ended = !all.current.left(now).is_positive();
        if let Some(next) = all.next.take_if(|next| ended || since_published(next) >= PUBLISHED) {
            let before = std::mem::replace(&mut all.current, next);
            all.old.extend((!ended).then_some(before));
        }
        if !all.current.left(now).is_positive() {
            all.current = Authority::new(now)?;
        } else if all.next.is_none() && all.current.left(now) < RENEW {
            all.next = Some(Authority::new(now)?);
        }
        Ok((all != *self).then_some(all))
    }

    /// What agents are to trust, as PEM.
    pub fn bundle(&self) -> String {
        let all = [&self.current].into_iter().chain(&self.next).chain(&self.old);
        all.map(|authority| authority.certificate.as_str()).collect()
    }

    /// When the one that signs ends, in seconds since 1970.
    pub fn ends(&self) -> i64 {
        self.current.ends
    }

    /// A certificate for these names.
    pub fn issue(&self, names: &[String], now: OffsetDateTime) -> Result<Leaf, Error> {
        let issuer = Issuer::new(params(&self.current.name), KeyPair::from_pem(&self.current.key)?);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "weir-controller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = now - SKEW;
        params.not_after = (now + LEAF_LIFE).min(now + self.current.left(now));
        let renew = now + (params.not_after - now) / 2;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem(), renew, issuer: self.current.name.clone() })
    }

    /// Whether a certificate is to be replaced.
    pub fn outdated(&self, leaf: &Leaf, now: OffsetDateTime) -> bool {
        leaf.issuer != self.current.name || now >= leaf.renew
    }
}

/// Where authorities are kept.
#[async_trait]
pub trait Store: Send + Sync {
    /// What is stored, and its version.
    async fn read(&self) -> Result<Option<(Authorities, String)>, Error>;
    /// Stores, if the version is still this one (`None`: if there is none). Whether it was.
    async fn write(&self, authorities: &Authorities, version: Option<&str>) -> Result<bool, Error>;
    /// Tells agents what to trust.
    async fn publish(&self, bundle: &str) -> Result<(), Error>;
}

/// Reads what is stored, or is the first to store something; does what is due, and publishes. However many
/// controllers do it at once, all have the same result.
pub async fn agree(store: &dyn Store, now: OffsetDateTime) -> Result<Authorities, Error> {
    // each round that is lost was won by another controller
    for _ in 0..10 {
        let stored = store.read().await?;
        let wanted = match &stored {
            None => Some(Authorities::new(now)?),
            Some((authorities, _)) => authorities.due(now)?,
        };
        let agreed = match (wanted, stored) {
            (Some(wanted), stored) => {
                let version = stored.as_ref().map(|(_, version)| version.as_str());
                if !store.write(&wanted, version).await? {
                    continue;
                }
                wanted
            }
            (None, Some((authorities, _))) => authorities,
            (None, None) => unreachable!("if nothing is stored, something is wanted"),
        };
        store.publish(&agreed.bundle()).await?;
        return Ok(agreed);
    }
    Err(Error::Store("other controllers keep changing the authority; trying again".to_owned()))
}
