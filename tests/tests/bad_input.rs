//! Bad input at every door: a clear error with a code, or a closed connection. Never a 500, never a panic, and whoever
//! comes next is served.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fake_engine::{FakeEngine, Settings};
use remuda_tests::{ControlPlane, Node, Program, System};
use serde_json::Value;

const AUTHORIZATION: &str = "authorization: Bearer a-token-for-tests\r\n";

/// How long an answer, or the connection's end, may take. Bounds under test are far below it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Doors of the control plane that read a body, and whether they take members that they do not know.
const DOORS: [(&str, bool); 10] = [
    ("/v1/chat/completions", true),
    ("/v1/completions", true),
    ("/v1/embeddings", true),
    ("/v1/responses", true),
    ("/v1/messages", true),
    ("/v2/tasks", false),
    ("/v2/nodes/register", true),
    ("/v2/nodes/nobody/heartbeat", true),
    ("/v2/nodes/callback", true),
    ("/v2/pools/fakes/drain", false),
];

/// Bodies that mean nothing anywhere.
fn bad_bodies() -> Vec<Vec<u8>> {
    let deep = 100_000;
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(deep), close.repeat(deep));
    vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"{\"model\": \"fake\", \"messages\": [{\"role\": \"us".to_vec(),
        b"null".to_vec(),
        b"7".to_vec(),
        b"\"text\"".to_vec(),
        b"{} {}".to_vec(),
        b"{\"model\": 7, \"workload\": 7, \"node_id\": 7, \"deadline_ms\": \"x\", \"pools\": 7}".to_vec(),
        b"{\"model\": \"\xff\xfe\", \"node_id\": \"\xff\", \"\xff\": 1}".to_vec(),
        b"\x00\x01\x02\x03".to_vec(),
        "[".repeat(deep).into_bytes(),
        nested("[", "]").into_bytes(),
        format!("{{\"model\": \"fake\", \"messages\": {}", "[".repeat(deep)).into_bytes(),
        format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep)).into_bytes(),
    ]
}

/// What is no HTTP, or HTTP that one cannot trust, as a whole connection.
fn bad_heads(path: &str) -> Vec<Vec<u8>> {
    let post = |headers: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}{headers}\r\n{body}").into_bytes()
    };
    let many: String = (0..10_000).map(|i| format!("x-{i}: {i}\r\n")).collect();
    let long = "x".repeat(1024 * 1024);
    vec![
        b"GARBAGE\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        [vec![0; 256], b"\r\n\r\n".to_vec()].concat(),
        b"GET\r\n\r\n".to_vec(),
        format!("POST {path} HTTP/9.9\r\nhost: x\r\n\r\n").into_bytes(),
        post("content-length: abc\r\n", "{}"),
        post("content-length: -1\r\n", "{}"),
        post("content-length: 99999999999999999999999999\r\n", "{}"),
        post("content-length: 2\r\ncontent-length: 3\r\n", "{}}"),
        post("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        post(
            "transfer-encoding: chunked\r\n",
            "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        ),
        post("transfer-encoding: gzip\r\n", "{}"),
        post("no colon here\r\n", ""),
        post("space before : colon\r\n", ""),
        post("x-nul: a\0b\r\n", ""),
        post(&many, ""),
        post(&format!("x-long: {long}\r\n"), ""),
        format!("POST /{long} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}\r\n").into_bytes(),
    ]
}

/// What came back: statuses of all answers and everything that was read. Fails when the other side stays silent.
struct Answered {
    text: String,
    after: Duration,
}

impl Answered {
    fn statuses(&self) -> Vec<u16> {
        let lines = self.text.split("HTTP/1.1 ").skip(1);
        lines.filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
    }

    /// No answer at all, or answers that say that it was the client.
    fn is_no_fault_of_ours(&self, what: &str) {
        for status in self.statuses() {
            let fine = status < 500 || status == 501 || status == 505;
            assert!(fine, "{what}: {}", self.text);
        }
    }

    /// A refusal with a code, in `/v2`'s shape or a dialect's.
    fn is_refused(&self, what: &str) {
        let statuses = self.statuses();
        let [status] = statuses[..] else {
            panic!("{what}: not one answer but {statuses:?}: {}", self.text)
        };
        assert!((400..500).contains(&status), "{what}: {}", self.text);
        let (_, body) = self.text.split_once("\r\n\r\n").unwrap();
        let body: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{what}: {error}: {body}"));
        let code = [&body["code"], &body["error"]["code"], &body["error"]["type"]];
        assert!(code.iter().any(|code| code.is_string()), "{what}: {body}");
    }
}

/// Sends `bytes` on a connection of their own, then `drip` byte for byte, and reads until the connection ends.
fn talk(url: &str, bytes: &[u8], drip: Option<u8>) -> Answered {
    let started = Instant::now();
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut far = stream.try_clone().unwrap();
    let bytes = bytes.to_vec();
    // Beside the reading: who is refused early may still have much to say. It fails when the other side has closed.
    let sender = std::thread::spawn(move || far.write_all(&bytes));
    let (mut read, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => read.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let text = String::from_utf8_lossy(&read);
                assert!(
                    started.elapsed() < PATIENCE,
                    "neither answered nor closed: {text}"
                );
                if let Some(byte) = drip
                    && stream.write_all(&[byte]).is_err()
                {
                    break;
                }
            }
            // Closed while it still had something to read.
            Err(_) => break,
        }
    }
    drop(stream);
    let _ = sender.join();
    Answered {
        text: String::from_utf8_lossy(&read).into_owned(),
        after: started.elapsed(),
    }
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn pool(engine: &FakeEngine) -> String {
    format!(
        "[[pools]]\nid = \"fakes\"\nengine = \"openai\"\nurl = {:?}\nslots = 4\n",
        engine.url()
    )
}

async fn home(system: &System, engine: &FakeEngine) -> ControlPlane {
    let bounds = [
        ("ORCHD_HEAD_TIMEOUT_MS", "1000"),
        ("ORCHD_BODY_TIMEOUT_MS", "1000"),
    ];
    let plane = system.home(&pool(engine), &bounds);
    plane.wait_for_replicas("fakes", 1).await;
    plane
}

/// Whoever comes next is served, and nothing is held.
async fn serves(plane: &mut ControlPlane) {
    let body = serde_json::json!({"model": "fake", "messages": [{"role": "user", "content": "hello"}]});
    let response = plane.post("/v1/chat/completions", &body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    plane.wait_for_free_slots("fakes").await;
    did_not_fail(&mut plane.program);
}

fn did_not_fail(program: &mut Program) {
    assert!(program.is_running());
    let log = program.output();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("\"level\":\"ERROR\""), "{log}");
}

#[tokio::test]
async fn a_body_that_means_nothing_is_refused_with_a_code() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let mut plane = home(&system, &engine).await;
    for (path, _) in DOORS {
        for body in bad_bodies() {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            talk(&plane.url, &post(path, &body), None).is_refused(&format!("{path} {shown}"));
        }
    }
    for (path, _) in DOORS.iter().filter(|(_, takes_unknown)| !takes_unknown) {
        let body = b"{\"workload\": \"chat\", \"model\": \"fake\", \"prompt\": \"x\", \"nonsense\": 1}";
        let answered = talk(&plane.url, &post(path, body), None);
        answered.is_refused(path);
        assert!(answered.text.contains("unknown field"), "{}", answered.text);
    }
    serves(&mut plane).await;
}

#[tokio::test]
async fn a_path_that_leads_nowhere_is_refused_with_a_code() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let mut plane = home(&system, &engine).await;
    for path in [
        "/v1/models/%ff%fe",
        "/v1/models/nobody",
        "/v1/nonsense",
        "/v2/tasks/%00",
        "/v2/tasks/%ff",
        "/v2/tasks/x%2f..%2fy",
        "/v2/tasks?limit=abc",
        "/v2/tasks?limit=-1",
        "/v2/tasks?state=nonsense",
        "/v2/tasks?cursor=%ff",
        "/v2/tasks?nonsense=1",
        "/v2/pools/..%2f..%2fetc",
        "/v2/nodes/%20",
        "/../../etc/passwd",
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\n\r\n");
        talk(&plane.url, head.as_bytes(), None).is_refused(path);
    }
    for (method, path) in [
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v2/tasks"),
        ("PATCH", "/v2/pools/x"),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\n\r\n");
        let answered = talk(&plane.url, head.as_bytes(), None);
        answered.is_refused(path);
        assert_eq!(answered.statuses(), [405], "{method} {path}");
        assert!(answered.text.contains("\r\nallow: "), "{}", answered.text);
    }
    serves(&mut plane).await;
}

#[tokio::test]
async fn what_is_no_http_is_refused_or_closed() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let mut plane = home(&system, &engine).await;
    for path in ["/v1/chat/completions", "/v2/tasks"] {
        for head in bad_heads(path) {
            let shown = String::from_utf8_lossy(&head[..head.len().min(120)]).into_owned();
            talk(&plane.url, &head, None).is_no_fault_of_ours(&shown);
        }
        // Two ideas of where the body ends: what follows the first of them must never be taken for a request.
        let smuggled = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGARBAGE\r\n\r\n"
        );
        talk(&plane.url, smuggled.as_bytes(), None).is_no_fault_of_ours("two lengths");
        let pipelined = [
            &b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            &b"\x00garbage\r\n\r\n"[..],
        ]
        .concat();
        let answered = talk(&plane.url, &pipelined, None);
        assert_eq!(answered.statuses().first(), Some(&200), "{}", answered.text);
        answered.is_no_fault_of_ours("garbage after a request");
    }
    serves(&mut plane).await;
}

#[tokio::test]
async fn what_is_too_long_is_refused_or_closed() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let mut plane = home(&system, &engine).await;
    let text = "x".repeat(64 * 1024 * 1024);
    let body = format!("{{\"model\": \"fake\", \"workload\": \"chat\", \"prompt\": \"{text}\"}}");
    for path in [
        "/v1/chat/completions",
        "/v1/messages",
        "/v2/tasks",
        "/v2/nodes/register",
    ] {
        let answered = talk(&plane.url, &post(path, body.as_bytes()), None);
        answered.is_no_fault_of_ours(path);
        assert!(!answered.statuses().contains(&200), "{path}: {}", answered.text);
        let chunked = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        let answered = talk(&plane.url, chunked.as_bytes(), None);
        answered.is_no_fault_of_ours(path);
        assert!(!answered.statuses().contains(&200), "{path}: {}", answered.text);
    }
    serves(&mut plane).await;
}

#[tokio::test]
async fn who_sends_too_slowly_is_not_waited_for() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let mut plane = home(&system, &engine).await;
    for path in ["/v1/chat/completions", "/v2/tasks"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}x-slow: ");
        let body = format!("{}content-length: 5000\r\n\r\n{{", head.replace("x-slow: ", ""));
        for beginning in [head, body] {
            let answered = talk(&plane.url, beginning.as_bytes(), Some(b'x'));
            answered.is_no_fault_of_ours(path);
            assert!(
                answered.after < Duration::from_secs(15),
                "{path}: {:?}",
                answered.after
            );
        }
    }
    serves(&mut plane).await;
}

async fn with_node(system: &System, engine: &FakeEngine) -> (ControlPlane, Node) {
    let plane = system.control_plane(&[]);
    let node = system.node("node-a", &plane, &pool(engine), &[]);
    plane.wait_for_replicas("fakes", 1).await;
    (plane, node)
}

#[tokio::test]
async fn a_node_bears_all_of_it_too() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let (mut plane, mut node) = with_node(&system, &engine).await;
    for path in ["/v2/pools/fakes/drain", "/v2/callbacks/register"] {
        for body in bad_bodies().into_iter().filter(|body| !body.is_empty()) {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            talk(&node.url, &post(path, &body), None).is_refused(&format!("{path} {shown}"));
        }
    }
    for path in [
        "/v2/engines/fakes",
        "/v2/engines/%ff/%ff/x",
        "/v2/pools/%00",
        "/nonsense",
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\n\r\n");
        talk(&node.url, head.as_bytes(), None).is_no_fault_of_ours(path);
    }
    // Ordinary between the two: the control plane places again.
    let path = "/v2/engines/fakes/nobody/v1/models";
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\n\r\n");
    let answered = talk(&node.url, head.as_bytes(), None);
    assert_eq!(answered.statuses(), [503], "{}", answered.text);
    assert!(answered.text.contains("POOL_UNAVAILABLE"), "{}", answered.text);
    let mut heads = bad_heads("/v2/engines/fakes/r0/v1/chat/completions");
    heads.push([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff; 4096]].concat());
    heads.push(b"PRI * HTTP/2.0\r\n\r\n".to_vec());
    for head in heads {
        let shown = String::from_utf8_lossy(&head[..head.len().min(120)]).into_owned();
        talk(&node.url, &head, None).is_no_fault_of_ours(&shown);
    }
    serves(&mut plane).await;
    did_not_fail(&mut node.program);
}

#[tokio::test]
async fn the_node_of_the_same_process_comes_back_when_it_is_deregistered() {
    let (system, engine) = (System::new(), FakeEngine::start(Settings::default()).unwrap());
    let environment = [("ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", "200")];
    let mut plane = system.home(&pool(&engine), &environment);
    plane.wait_for_replicas("fakes", 1).await;
    let nodes = plane.json("/v2/nodes").await;
    assert_eq!(nodes[0]["address"], "this process");
    let path = format!("/v2/nodes/{}", nodes[0]["node_id"].as_str().unwrap());
    let head = format!("DELETE {path} HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}connection: close\r\n\r\n");
    assert_eq!(talk(&plane.url, head.as_bytes(), None).statuses(), [204]);
    plane.wait_for_replicas("fakes", 1).await;
    serves(&mut plane).await;
}
