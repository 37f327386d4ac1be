//! Spans leave through OTLP: against a small receiver on loopback. In a process of its own, because logging and traces
//! are set up once for a process.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use daemon::telemetry::trace_context::{TRACEPARENT, TRACESTATE, propagate, set_parent};
use daemon::telemetry::{LogFormat, TelemetrySettings, init, tracing_enabled};
use http::{HeaderMap, HeaderValue};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn spans_reach_the_receiver_and_the_trace_holds_together() {
    let (endpoint, bodies) = receiver();
    let settings = TelemetrySettings {
        log: "off".to_owned(),
        log_format: LogFormat::Json,
        otlp_endpoint: Some(endpoint),
    };
    assert!(!tracing_enabled());
    let telemetry = init("orchestratord", &settings).unwrap();
    assert!(tracing_enabled());

    let mut incoming = HeaderMap::new();
    incoming.insert(
        TRACEPARENT,
        HeaderValue::try_from(format!("00-{TRACE}-00f067aa0ba902b7-01")).unwrap(),
    );
    incoming.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
    let mut outgoing = HeaderMap::new();
    {
        let admission = tracing::info_span!("admission", task_id = "task-17");
        set_parent(&admission, &incoming);
        let _entered = admission.enter();
        let dispatch = tracing::info_span!("dispatch");
        propagate(&dispatch, &incoming, &mut outgoing);
        let _below = tracing::debug_span!("too fine to leave").entered();
    }

    let traceparent = outgoing[TRACEPARENT].to_str().unwrap();
    assert!(
        traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"),
        "{traceparent}"
    );
    assert_ne!(
        outgoing[TRACEPARENT], incoming[TRACEPARENT],
        "the engine is called by our span, not by the client"
    );
    assert_eq!(outgoing[TRACESTATE], "vendor=1");

    telemetry.shutdown(Duration::from_secs(5));
    assert!(!tracing_enabled());
    let body = bodies
        .recv_timeout(Duration::from_secs(5))
        .expect("shutting down sends what is left");
    let has = |bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
    let text: [&[u8]; 5] = [
        b"admission",
        b"dispatch",
        b"task-17",
        b"service.name",
        b"orchestratord",
    ];
    for part in text {
        assert!(
            has(part),
            "{} is not in the export",
            String::from_utf8_lossy(part)
        );
    }
    assert!(
        has(&u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes()),
        "the client's trace goes on"
    );
    assert!(!has(b"too fine to leave"));
}

/// Takes OTLP over HTTP and hands out the bodies.
fn receiver() -> (String, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = sync_channel(16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (head, body) = request(&mut stream.unwrap());
            assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
            assert!(
                head.to_ascii_lowercase()
                    .contains("content-type: application/x-protobuf"),
                "{head}"
            );
            if sender.send(body).is_err() {
                return;
            }
        }
    });
    (endpoint, bodies)
}

fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let started = Instant::now();
    loop {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the request does not end"
        );
        let read = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length: usize = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .expect("the exporter says how long the body is");
        if bytes.len() >= end + 4 + length {
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
            return (head, bytes.split_off(end + 4));
        }
    }
}
