//! A connection to a controller that has proved who it is.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// For TCP and TLS together.
const PATIENCE: Duration = Duration::from_secs(10);
/// A controller that is gone without a word is noticed after both of these.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The certificates to trust cannot be read.
    #[error("cannot read the controllers' CA in {path}: {reason}")]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate can have this name.
    #[error("--controller-name {0:?} is no DNS name or address")]
    Name(String),
    /// The versions of TLS that are needed are not there.
    #[error("TLS cannot be used")]
    Tls(#[from] rustls::Error),
    /// TCP or TLS.
    #[error("cannot connect to {address}")]
    Io {
        /// Of the controller.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// HTTP/2.
    #[error("cannot speak to {address}")]
    Http {
        /// Of the controller.
        address: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Connects, and sees that the certificate is for `name` and signed by one in the file `ca`.
///
/// # Errors
/// See the type; another attempt may succeed.
pub async fn connect(address: SocketAddr, name: &str, ca: &Path) -> Result<Channel, ConnectError> {
    let tls = TlsConnector::from(Arc::new(config(ca)?));
    let server = ServerName::try_from(name.to_owned());
    let server = server.map_err(|_: InvalidDnsNameError| ConnectError::Name(name.to_owned()))?;
    let stream = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        tls.connect(server, tcp).await
    };
    let late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()));
    let stream = tokio::time::timeout(PATIENCE, stream).await.unwrap_or_else(|_| Err(late()));
    let stream = stream.map_err(|source| ConnectError::Io { address, source })?;

    let wrong = |source| ConnectError::Http { address, source };
    // TLS is there already, and the name is for the header only
    let host = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(wrong)?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(Once(Some(TokioIo::new(stream)))).await.map_err(wrong)
}

fn config(ca: &Path) -> Result<ClientConfig, ConnectError> {
    let wrong = |reason: String| ConnectError::Ca { path: ca.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Hands over a connection that is open already; for another one, there is another attempt.
struct Once(Option<TokioIo<TlsStream<TcpStream>>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
