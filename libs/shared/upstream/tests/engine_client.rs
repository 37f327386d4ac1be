//! An engine client against a server that counts its connections.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use upstream::{ConnectOptions, EngineClient, SendError};

async fn counting_server() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(
                TokioIo::new(stream),
                service_fn(|request: Request<hyper::body::Incoming>| async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                }),
            ));
        }
    });
    (url, connections)
}

fn client(url: &str) -> EngineClient {
    EngineClient::new(url.parse().unwrap(), ConnectOptions::default())
}

fn post(text: &'static str) -> Request<Bytes> {
    Request::post("/echo")
        .body(Bytes::from_static(text.as_bytes()))
        .unwrap()
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let (url, connections) = counting_server().await;
    let client = client(&url);
    for round in 0..20 {
        let response = client.send(&post("hello")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(client.idle_count(), 1, "round {round}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0_u8; 1024];
        let _request = stream.read(&mut buffer).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await
            .unwrap();
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer))
            .await
            .expect("a close")
            .unwrap()
    });
    let mut body = client.send(&post("x")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    drop(body);
    assert_eq!(server.await.unwrap(), 0, "end of file");
    assert_eq!(client.idle_count(), 0);
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0_u8; 1024];
            let _request = stream.read(&mut buffer).await.unwrap();
            // Keep-alive is promised and then broken.
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
        }
    });
    for _ in 0..5 {
        let response = client.send(&post("x")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
}

#[tokio::test]
async fn failures_tell_how_far_the_request_came() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let refused = client(&url).send(&post("x")).await.err().unwrap();
    assert!(
        matches!(refused, SendError::Connect { .. }) && refused.not_processed(),
        "{refused:?}"
    );

    for (answer, garbage) in [
        (&b""[..], false),
        (b"HTTP/1.1 20", false),
        (b"\x16\x03\x01 hello\r\n\r\n", true),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(&format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0_u8; 1024];
            let _request = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        let error = client.send(&post("x")).await.err().unwrap();
        assert_eq!(
            matches!(error, SendError::Garbage { .. }),
            garbage,
            "{answer:?}: {error:?}"
        );
        assert!(!error.not_processed(), "{answer:?}: {error:?}");
    }
}
