//! The certificate that is presented at present: it can be replaced while connections come in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// See the module.
#[derive(Debug)]
pub struct Presented(RwLock<Arc<CertifiedKey>>);

impl Presented {
    /// Presents this certificate, with its key; both PEM.
    ///
    /// # Errors
    /// They are not what they must be.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Arc<Self>> {
        Ok(Arc::new(Presented(RwLock::new(certified(certificate, key)?))))
    }

    /// From now on.
    ///
    /// # Errors
    /// As above; the one before stays then.
    pub fn replace(&self, certificate: &[u8], key: &[u8]) -> Result<()> {
        let new = certified(certificate, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// TLS 1.3, and HTTP/2 only.
    ///
    /// # Errors
    /// The library refuses it.
    pub fn acceptor(self: Arc<Self>) -> Result<TlsAcceptor> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config).into())
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("the certificate is not PEM")?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in it");
    let key = PrivateKeyDer::from_pem_slice(key).context("the key is not PEM")?;
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    Ok(Arc::new(certified.context("certificate and key do not fit together")?))
}

/// A certificate that somebody else mounts, and renews.
#[derive(Debug)]
pub struct Mounted {
    certificate: PathBuf,
    key: PathBuf,
    last: (Vec<u8>, Vec<u8>),
}

impl Mounted {
    /// Reads both files for the first time.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn open(certificate: &Path, key: &Path) -> Result<(Self, Arc<Presented>)> {
        let mut mounted =
            Mounted { certificate: certificate.to_owned(), key: key.to_owned(), last: Default::default() };
        mounted.last = mounted.read()?;
        let presented = Presented::new(&mounted.last.0, &mounted.last.1)
            .with_context(|| format!("{} and {}", certificate.display(), key.display()))?;
        Ok((mounted, presented))
    }

    /// Reads them again, and presents what is new. Whether something was.
    ///
    /// # Errors
    /// They cannot be read or do not fit; the ones before stay.
    pub fn refresh(&mut self, presented: &Presented) -> Result<bool> {
        let now = self.read()?;
        if now == self.last {
            return Ok(false);
        }
        presented.replace(&now.0, &now.1)?;
        self.last = now;
        Ok(true)
    }

    fn read(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let one =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok((one(&self.certificate)?, one(&self.key)?))
    }
}
