//! Traces: spans leave over OTLP, and the engine is called within the client's trace.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fake_engine::{FakeEngine, Settings};
use remuda_tests::{ControlPlane, Deadline, System, eventually};
use rustix::process::Signal;
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Bytes that came in, over all connections.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    all: Arc<Mutex<Vec<u8>>>,
    /// Of requests that were read as such.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Seen {
    fn add(&self, bytes: &[u8]) {
        self.all.lock().unwrap().extend_from_slice(bytes);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.all.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, bytes: &[u8]) -> bool {
        self.all
            .lock()
            .unwrap()
            .windows(bytes.len())
            .any(|window| window == bytes)
    }

    /// The value of a header in the last request that had it.
    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.all.lock().unwrap()).into_owned();
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        lines
            .rfind(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    }
}

/// Stands in front of an engine and writes down what it is asked.
fn in_front_of(engine: &FakeEngine) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), Seen::default());
    let target = engine.url().trim_start_matches("http://").to_owned();
    let all = seen.clone();
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(&target).unwrap());
            let (back, forth) = ((far.try_clone().unwrap(), near.try_clone().unwrap()), (near, far));
            let seen = all.clone();
            thread::spawn(move || pass(forth, |bytes| seen.add(bytes)));
            thread::spawn(move || pass(back, |_| {}));
        }
    });
    (addr, seen)
}

fn pass((mut from, mut to): (TcpStream, TcpStream), saw: impl Fn(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer) {
        saw(&buffer[..read]);
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Whoever is still at the other end learns of the end; it may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// Takes OTLP over HTTP.
pub(crate) fn receiver() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (endpoint, seen) = (
        format!("http://{}", listener.local_addr().unwrap()),
        Seen::default(),
    );
    let all = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, seen) = (stream.unwrap(), all.clone());
            thread::spawn(move || while export(&mut stream, &seen).is_some() {});
        }
    });
    (endpoint, seen)
}

/// Reads one request and answers it; nothing when the connection ends.
fn export(stream: &mut TcpStream, seen: &Seen) -> Option<()> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
        if bytes.len() >= end + 4 + length {
            seen.add(&bytes[end + 4..]);
            seen.bodies.lock().unwrap().push(bytes.split_off(end + 4));
            return stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .ok();
        }
    }
}

async fn ask(plane: &ControlPlane) {
    plane.wait_for_replicas("fakes", 1).await;
    let body = json!({"model": "fake", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let request = plane.post("/v1/chat/completions", &body);
    let request = request
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .header("tracestate", "vendor=1");
    let response = request.timeout(Duration::from_secs(30)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().trim_end().ends_with("[DONE]"));
}

fn pool(engine: SocketAddr) -> String {
    format!("[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = \"http://{engine}\"\nslots = 4\n")
}

#[tokio::test]
async fn without_an_endpoint_the_engine_sees_the_clients_context() {
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let (addr, seen) = in_front_of(&engine);
    let system = System::new();
    let plane = system.home(&pool(addr), &[]);
    ask(&plane).await;
    assert_eq!(
        seen.header("traceparent").unwrap(),
        format!("00-{TRACE}-{CALLER}-01")
    );
    assert_eq!(seen.header("tracestate").unwrap(), "vendor=1");
}

#[tokio::test]
async fn spans_leave_and_the_engine_is_called_by_one_of_them() {
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let (addr, seen) = in_front_of(&engine);
    let (endpoint, spans) = receiver();
    let system = System::new();
    let mut plane = system.home(&pool(addr), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    ask(&plane).await;

    let context = seen.header("traceparent").unwrap();
    assert!(context.starts_with(&format!("00-{TRACE}-")), "{context}");
    assert!(
        !context.contains(CALLER),
        "a span of ours calls the engine: {context}"
    );
    assert_eq!(seen.header("tracestate").unwrap(), "vendor=1");

    plane.program.signal(Signal::TERM);
    assert!(plane.program.wait().success());
    let trace = u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes();
    let names = [
        "request",
        "admission",
        "placement",
        "dispatch",
        "engine",
        "stream",
    ];
    eventually("every span at the receiver", Deadline::default(), || {
        let all = names.iter().all(|name| spans.has(&span_name(name)));
        (all && spans.has(&trace) && spans.has(b"orchestratord")).then_some(())
    });
}

/// A span's name as OTLP writes it: field 5 of `Span`, a string.
fn span_name(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[5 << 3 | 2, length], name.as_bytes()].concat()
}

#[tokio::test]
async fn spans_of_control_plane_and_node_fit_together_and_reach_to_the_engine() {
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let (addr, seen) = in_front_of(&engine);
    let (endpoint, received) = receiver();
    let system = System::new();
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut plane = system.control_plane(&environment);
    let mut node = system.node("node-a", &plane, &pool(addr), &environment);
    ask(&plane).await;
    // The last spans leave before the end.
    for program in [&mut node.program, &mut plane.program] {
        program.signal(Signal::TERM);
        assert!(program.wait().success());
    }

    let bodies = received.bodies.lock().unwrap().clone();
    let spans: Vec<Span> = bodies.iter().flat_map(|body| read_spans(body)).collect();
    let ours: Vec<&Span> = spans.iter().filter(|span| span.trace_id == TRACE).collect();
    let of = |service: &str, name: &str| -> &Span {
        let mut found = ours.iter().filter(|s| s.service == service && s.name == name);
        let span = found
            .next()
            .unwrap_or_else(|| panic!("no {name} of {service}: {ours:#?}"));
        assert!(found.next().is_none(), "two of {name} of {service}: {ours:#?}");
        span
    };
    let request = of("orchestratord", "request");
    assert_eq!(request.parent_id, CALLER, "below the client's own span");
    let dispatch = of("orchestratord", "dispatch");
    let calls = of("orchestratord", "engine");
    let serves = of("pool-managerd", "engine");
    assert_eq!(calls.parent_id, dispatch.span_id);
    assert_eq!(
        serves.parent_id, calls.span_id,
        "the node's span is below the control plane's"
    );
    for name in ["admission", "placement", "dispatch", "stream"] {
        assert_eq!(of("orchestratord", name).parent_id, request.span_id, "{name}");
    }
    // Nobody's parent is missing.
    for span in &ours {
        let known = ours.iter().any(|other| other.span_id == span.parent_id);
        assert!(
            known || span.parent_id == CALLER,
            "{span:?} hangs in the air: {ours:#?}"
        );
    }
    let context = seen.header("traceparent").unwrap();
    assert_eq!(
        context,
        format!("00-{TRACE}-{}-01", serves.span_id),
        "the engine is called by the node's"
    );
    assert_eq!(seen.header("tracestate").unwrap(), "vendor=1");
}

/// What a span says about its place.
#[derive(Debug)]
struct Span {
    service: String,
    name: String,
    trace_id: String,
    span_id: String,
    parent_id: String,
}

/// The spans of an `ExportTraceServiceRequest`: resource spans (1) with resource (1) and scopes (2) with spans (2).
fn read_spans(body: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in fields(body, 1) {
        let resource = fields(of_resource, 1);
        let attributes = resource.iter().flat_map(|resource| fields(resource, 1));
        let service = attributes
            .filter(|attribute| fields(attribute, 1) == [b"service.name"])
            .flat_map(|attribute| fields(attribute, 2))
            .flat_map(|value| fields(value, 1))
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .next()
            .unwrap_or_default();
        for span in fields(of_resource, 2).iter().flat_map(|scope| fields(scope, 2)) {
            let field = |number| fields(span, number).first().copied().unwrap_or_default();
            let hex = |number| field(number).iter().map(|byte| format!("{byte:02x}")).collect();
            spans.push(Span {
                service: service.clone(),
                name: String::from_utf8_lossy(field(5)).into_owned(),
                trace_id: hex(1),
                span_id: hex(2),
                parent_id: hex(4),
            });
        }
    }
    spans
}

/// The fields of a protobuf message that have this number and a length.
fn fields(mut message: &[u8], number: u64) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            5 => 4,
            2 => usize::try_from(varint(&mut message)).unwrap(),
            other => panic!("wire type {other}"),
        };
        let (field, rest) = message.split_at(length);
        if key == number << 3 | 2 {
            found.push(field);
        }
        message = rest;
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = message.split_first().unwrap();
        *message = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}
