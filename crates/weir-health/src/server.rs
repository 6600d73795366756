//! A small server of HTTP/1, bounded in all that a client chooses.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::Health;

/// So many connections are open at a time; one more ends the oldest, so that those who hold on to theirs keep
/// nobody out.
pub const CONNECTIONS: usize = 64;
/// A connection is for one request, and does not last longer.
pub const LONGEST: Duration = Duration::from_secs(10);
/// Headers are no longer than this, in bytes.
pub const HEADERS: usize = 8 << 10;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until it is dropped. What fails concerns one connection only.
pub async fn serve(listener: TcpListener, health: Health, registry: Arc<Registry>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // of one connection, or no more files can be opened: wait, and do not spin
                tracing::debug!("cannot accept a connection for metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let task = tokio::spawn(connection(stream, health.clone(), registry.clone()));
        open.push_back(task.abort_handle());
    }
}

/// The same, in a thread of its own: a program whose loop hangs can still be asked. Says where it listens.
///
/// # Errors
/// The address cannot be listened at.
pub fn serve_in_thread(address: SocketAddr, health: Health, registry: Registry) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("health".to_owned()).stack_size(256 << 10).spawn(move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, health, Arc::new(registry)).await,
                Err(error) => tracing::error!("cannot serve metrics at {address}: {error}"),
            }
        });
    })?;
    Ok(address)
}

async fn connection(stream: TcpStream, health: Health, registry: Arc<Registry>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &health, &registry);
        async { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(HEADERS).timer(TokioTimer::new()).header_read_timeout(LONGEST);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!("a request for metrics or health: {error}"),
    }
}

fn answer(method: &Method, path: &str, health: &Health, registry: &Registry) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" => match health.hangs() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(since) => {
                let said = format!("the main loop has not turned for {} s\n", since.as_secs());
                text(StatusCode::SERVICE_UNAVAILABLE, said)
            }
        },
        "/readyz" => match health.reasons() {
            reasons if reasons.is_empty() => {
                let said = ["ok".to_owned()].into_iter().chain(health.notes());
                text(StatusCode::OK, said.collect::<Vec<_>>().join("\n") + "\n")
            }
            reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        "/metrics" => {
            let mut metrics = String::new();
            match encode(&mut metrics, registry) {
                Ok(()) => with_type(StatusCode::OK, metrics, METRICS),
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a metric cannot be written\n".to_owned()),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz or /readyz\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    with_type(status, body, TEXT)
}

fn with_type(status: StatusCode, body: String, what: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(what));
    response
}
