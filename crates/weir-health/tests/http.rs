//! What a client sees, over TCP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_health::{CONNECTIONS, HEADERS, Health, build_info, serve};

struct Server {
    address: std::net::SocketAddr,
    health: Health,
    counter: Counter,
}

async fn server(patience: Duration) -> Server {
    let mut registry = Registry::default();
    let counter = Counter::default();
    registry.register("weir_test_events", "Events", counter.clone());
    build_info(&mut registry, "weir_test", "1.2.3");
    let health = Health::new(patience);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, health.clone(), Arc::new(registry)));
    Server { address, health, counter }
}

impl Server {
    async fn say(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // it may reset a connection of which it did not read all
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.say(format!("GET {path} HTTP/1.1\r\nHost: weir\r\n\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn ready_when_no_reason_is_left() {
    let server = server(Duration::from_secs(60)).await;
    assert_eq!(server.get("/readyz").await, (200, "ok\n".to_owned()));
    server.health.not_ready("slice", "none was received");
    server.health.not_ready("kernel", "it refuses");
    let reasons = "kernel: it refuses\nslice: none was received\n".to_owned();
    assert_eq!(server.get("/readyz").await, (503, reasons));
    server.health.ready("kernel");
    server.health.ready("kernel");
    assert!(!server.health.is_ready());
    server.health.ready("slice");
    assert_eq!(server.get("/readyz").await, (200, "ok\n".to_owned()));
    // of no concern to liveness
    server.health.not_ready("slice", "none was received");
    assert_eq!(server.get("/healthz").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn not_alive_without_beats() {
    let server = server(Duration::ZERO).await;
    let (status, said) = server.get("/healthz").await;
    assert!(status == 503 && said.contains("has not turned"), "{status} {said}");
    let patient = self::server(Duration::from_secs(600)).await;
    patient.health.beat();
    assert_eq!(patient.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn metrics_as_text() {
    let server = server(Duration::from_secs(60)).await;
    server.counter.inner().store(7, Ordering::Relaxed);
    let (status, text) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("\nweir_test_events_total 7\n"), "{text}");
    assert!(text.contains("weir_test_build_info{version=\"1.2.3\"} 1\n"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    let (status, body) = server.get("/metrics?x=1").await;
    assert!(status == 200 && !body.is_empty());
}

#[tokio::test]
async fn what_is_none_of_these_is_refused() {
    let server = server(Duration::from_secs(60)).await;
    assert_eq!(server.get("/").await.0, 404);
    assert_eq!(server.get("/metrics/x").await.0, 404);
    let post = server.say(b"POST /metrics HTTP/1.1\r\nHost: weir\r\nContent-Length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    let head = server.say(b"HEAD /readyz HTTP/1.1\r\nHost: weir\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let noise = server.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
    assert!(noise.is_empty() || noise.starts_with("HTTP/1.1 400 "), "{noise}");
    let mut long = b"GET /readyz HTTP/1.1\r\nHost: weir\r\nX: ".to_vec();
    long.resize(HEADERS + 100, b'x');
    let long = server.say(&long).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    assert_eq!(server.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn those_who_hold_connections_keep_nobody_out() {
    let server = server(Duration::from_secs(60)).await;
    let mut idle = Vec::new();
    for _ in 0..3 * CONNECTIONS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /readyz").await.unwrap();
        idle.push(stream);
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/readyz").await.0, 200);
    // the oldest ones were ended, and no more are open than may be
    let mut ended = 0;
    for stream in &mut idle {
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0; 100])).await;
        ended += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert!(ended >= 2 * CONNECTIONS, "{ended} were ended");
}
