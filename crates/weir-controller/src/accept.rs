//! Connections: TLS, and bounds on those that have not shown yet who they are.
//!
//! A connection that has no accepted token after ten seconds is closed. If there are too many of them, altogether
//! or from one address, the oldest goes: an agent needs some milliseconds, an idler stays.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use weir_proto::LONGEST_FROM_AGENT;
use weir_proto::pb::slices_server::SlicesServer;

use crate::metrics::Metrics;
use crate::serve::Server;

/// Until then a connection has shown who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many strangers at once, and so many from one address.
const STRANGERS: usize = 2048;
const STRANGERS_FROM_ONE: usize = 64;
/// An agent that has gone without a word is noticed after this time and a half.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// What may be under way to one agent that does not read, in bytes.
const SEND_BUFFER: usize = 64 << 10;

/// A connection; the service finds it among a request's extensions.
#[derive(Debug)]
pub struct Connection {
    from: IpAddr,
    known: AtomicBool,
    closed: AtomicBool,
    reader: AtomicWaker,
}

impl Connection {
    /// It has shown who it is.
    pub fn is_known(&self) {
        self.known.store(true, Ordering::Release);
    }

    fn is_stranger(&self) -> bool {
        !self.known.load(Ordering::Acquire) && !self.closed.load(Ordering::Acquire)
    }

    /// Ends it.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.reader.wake();
    }
}

/// Accepts until the process ends. What is wrong with one connection concerns no other.
pub async fn accept(listener: TcpListener, tls: TlsAcceptor, server: Server) {
    let strangers = Arc::new(Strangers::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // out of descriptors, most likely: those that are here go on
                tracing::warn!("cannot accept connections: {error}; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let connection = strangers.add(from, &server.metrics);
        let (tls, server) = (tls.clone(), server.clone());
        tokio::spawn(async move {
            if let Err(error) = hold(stream, tls, server, connection.clone()).await {
                tracing::debug!(%from, %error, "a connection ends");
            }
            connection.close();
        });
    }
}

async fn hold(
    stream: TcpStream,
    tls: TlsAcceptor,
    server: Server,
    connection: Arc<Connection>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let metrics = server.metrics.clone();
    let watch = (connection.clone(), metrics.clone());
    let deadline = tokio::spawn(async move {
        tokio::time::sleep(PATIENCE).await;
        let (connection, metrics) = watch;
        if connection.is_stranger() {
            connection.close();
            metrics.refused("nothing_said");
        }
    });
    let _deadline = AbortOnDrop(deadline);
    stream.set_nodelay(true)?;
    let stream = Guarded { stream, connection: connection.clone() };
    let stream = tls.accept(stream).await.inspect_err(|_| {
        // what we have closed ourselves is counted already
        if connection.is_stranger() {
            metrics.refused("no_tls");
        }
    })?;
    let service = SlicesServer::new(server).max_decoding_message_size(LONGEST_FROM_AGENT);
    let service = WithConnection { service, connection };
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE / 2)
        .max_concurrent_streams(4)
        .max_header_list_size(16 << 10)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await?;
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Puts the connection among the request's extensions.
#[derive(Clone)]
struct WithConnection<S> {
    service: S,
    connection: Arc<Connection>,
}

impl<S, B> tower_service::Service<hyper::Request<B>> for WithConnection<S>
where
    S: tower_service::Service<hyper::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: hyper::Request<B>) -> S::Future {
        request.extensions_mut().insert(self.connection.clone());
        self.service.call(request)
    }
}

/// Connections that have not shown yet who they are, oldest first.
#[derive(Debug, Default)]
struct Strangers(Mutex<VecDeque<Arc<Connection>>>);

impl Strangers {
    fn add(&self, from: SocketAddr, metrics: &Metrics) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            from: from.ip().to_canonical(),
            known: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.is_stranger());
        let same = all.iter().filter(|other| other.from == connection.from).count();
        let oldest = if same >= STRANGERS_FROM_ONE {
            all.iter().position(|other| other.from == connection.from)
        } else {
            (all.len() >= STRANGERS).then_some(0)
        };
        if let Some(oldest) = oldest.and_then(|at| all.remove(at)) {
            oldest.close();
            metrics.refused("too_many");
        }
        all.push_back(connection.clone());
        connection
    }
}

/// A stream that ends when its connection is closed.
struct Guarded {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.reader.register(context.waker());
        if self.connection.closed.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
