//! Registration against a fake control plane on loopback. It is a fake because the real one would drag the whole
//! workspace in; black-box tests run the two against each other.

#![expect(clippy::unwrap_used, reason = "a broken assumption fails the test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use node_registration::{NodeReport, Options, Registration, Reporter, Standing};
use pool_registry_types::{HeartbeatRequest, RegisterRequest};

/// Answers every request with one status, and remembers what came.
struct FakeControlPlane {
    address: String,
    status: Arc<AtomicU16>,
    pace_ms: Arc<AtomicU64>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Clone, Debug)]
struct Seen {
    line: String,
    token: Option<String>,
    body: String,
}

impl FakeControlPlane {
    fn on(listener: TcpListener) -> Self {
        let address = format!("http://{}", listener.local_addr().unwrap());
        let status = Arc::new(AtomicU16::new(200));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let pace_ms = Arc::new(AtomicU64::new(200));
        let (answer, pace, record) = (status.clone(), pace_ms.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, pace, record) = (answer.clone(), pace.clone(), record.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &answer, &pace, &record));
            }
        });
        Self {
            address,
            status,
            pace_ms,
            seen,
        }
    }

    fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn count(&self, part: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.line.contains(part))
            .count()
    }

    fn last(&self, part: &str) -> Option<Seen> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .rev()
            .find(|seen| seen.line.contains(part))
            .cloned()
    }
}

fn serve(mut stream: TcpStream, status: &AtomicU16, pace_ms: &AtomicU64, record: &Mutex<Vec<Seen>>) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            }
        };
        let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
        let header = |name: &str| {
            let line = head
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
        while buffer.len() < head_end + length {
            let mut chunk = [0; 4096];
            let n = stream.read(&mut chunk).unwrap();
            buffer.extend_from_slice(&chunk[..n]);
        }
        let body = String::from_utf8(buffer[head_end..head_end + length].to_vec()).unwrap();
        buffer.drain(..head_end + length);
        let line = head.lines().next().unwrap().to_owned();
        record.lock().unwrap().push(Seen {
            line,
            token: header("authorization"),
            body,
        });
        let status = status.load(Ordering::SeqCst);
        let accepted = format!(r#"{{"next_heartbeat_ms":{}}}"#, pace_ms.load(Ordering::SeqCst));
        let text = if status == 200 {
            accepted.as_str()
        } else {
            r#"{"code":"NOT_FOUND"}"#
        };
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn options(control_planes: Vec<String>) -> Options {
    // A second installation, by another test of this process, is refused and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Options {
        control_planes,
        node_id: "node-1".parse().unwrap(),
        machine_id: "machine-1".parse().unwrap(),
        address: "http://127.0.0.1:9200".to_owned(),
        version: "0".to_owned(),
        heartbeat_interval: Duration::from_secs(10),
        api_token: Some("s3cret".to_owned()),
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
    }
}

fn reporter() -> Reporter {
    Reporter::new("first", Arc::new(NodeReport::default))
}

async fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !good() {
        assert!(Instant::now() < deadline, "not seen in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn registers_beats_and_deregisters() {
    let plane = FakeControlPlane::start();
    let registration = Registration::start(&options(vec![plane.address.clone()]), &reporter());
    until("three heartbeats at the server's pace", || {
        plane.count("/v2/nodes/node-1/heartbeat") >= 3
    })
    .await;
    assert_eq!(plane.count("/v2/nodes/register"), 1);
    assert_eq!(
        registration.standings(),
        [(plane.address.clone(), Standing::Registered)]
    );
    registration.stop().await;
    assert_eq!(plane.count("DELETE /v2/nodes/node-1 "), 1);

    let registered = plane.last("register").unwrap();
    assert_eq!(registered.token.as_deref(), Some("Bearer s3cret"));
    let body: RegisterRequest = serde_json::from_str(&registered.body).unwrap();
    assert_eq!(
        (body.node_id.as_str(), body.sequence, body.incarnation.as_str()),
        ("node-1", 1, "first")
    );
    let body: HeartbeatRequest = serde_json::from_str(&plane.last("heartbeat").unwrap().body).unwrap();
    assert!(body.sequence >= 4 && body.time_ms > 0 && body.capabilities.is_none());
}

#[tokio::test]
async fn a_change_is_reported_without_waiting_for_the_turn() {
    let plane = FakeControlPlane::start();
    plane.pace_ms.store(60_000, Ordering::SeqCst);
    let registration = Registration::start(&options(vec![plane.address.clone()]), &reporter());
    until("registered", || plane.count("register") == 1).await;
    let before = plane.count("heartbeat");
    for _ in 0..1000 {
        registration.changed();
    }
    until("a heartbeat", || plane.count("heartbeat") > before).await;
    assert!(
        plane.count("heartbeat") <= before + 2,
        "a thousand changes are no thousand heartbeats"
    );
    registration.stop().await;
}

#[tokio::test]
async fn a_control_plane_that_is_not_up_yet_or_forgets_is_registered_with_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let up = FakeControlPlane::start();
    let urls = vec![format!("http://{address}"), up.address.clone()];
    let registration = Registration::start(&options(urls), &reporter());
    until("the one that is up", || up.count("register") == 1).await;
    until(
        "the other is seen to be down",
        || matches!(&registration.standings()[0].1, Standing::Trying(why) if why.contains("refused")),
    )
    .await;
    let late = FakeControlPlane::on(TcpListener::bind(address).unwrap());
    until("the late one", || late.count("register") == 1).await;

    up.answer(404);
    until("registers again", || up.count("register") >= 2).await;
    up.answer(200);
    let beats = up.count("heartbeat");
    until("goes on", || up.count("heartbeat") > beats + 1).await;
    registration.stop().await;
}

#[tokio::test]
async fn a_refusal_is_told_and_not_repeated_in_a_storm() {
    let plane = FakeControlPlane::start();
    plane.answer(401);
    let registration = Registration::start(&options(vec![plane.address.clone()]), &reporter());
    until("the refusal", || {
        matches!(&registration.standings()[0].1, Standing::Refused(why) if why.contains("LLORCH_API_TOKEN"))
    })
    .await;
    registration.changed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(plane.count("register"), 1);
    registration.stop().await;
    assert_eq!(plane.count("DELETE"), 0, "it was never let in");
}
