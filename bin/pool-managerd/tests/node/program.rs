//! The `pool-managerd` program: its settings, its server, its end; with fake engines, and with the real one where the
//! demo model and the engine are at hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use pool_registry_types::{Handoff, NODE_REFUSAL_HEADER, PoolReport, PoolStatus, RegisterRequest};
use upstream::{ConnectOptions, NodeBody, NodeClient};

use crate::bench::{LONG, fake};

/// A daemon in a directory of its own. Killed when dropped.
pub(crate) struct Daemon {
    pub(crate) root: tempfile::TempDir,
    pub(crate) child: Child,
    address: String,
    scheme: &'static str,
}

fn program(root: &Path, args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pool-managerd"));
    command.env_clear().current_dir(root).args(args);
    for name in ["PATH", "HOME", "XDG_CACHE_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

impl Daemon {
    pub(crate) fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args, environment)
    }

    pub(crate) fn start_in(root: tempfile::TempDir, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut all = vec![
            "--addr",
            "127.0.0.1:0",
            "--probe-interval-ms",
            "200",
            "--node-id",
            "test-node",
        ];
        all.extend(args);
        let mut command = program(root.path(), &all, environment);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("it ended early: {said:?}"))
                .unwrap();
            let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if value["message"] == "the node is up" {
                break value["address"].as_str().unwrap().to_owned();
            }
            said.push(line);
        };
        // Nobody reads the log any more, but it must not fill its pipe.
        std::thread::spawn(move || for _ in lines.by_ref() {});
        let scheme = if args.contains(&"--tls-cert") {
            "https"
        } else {
            "http"
        };
        Self {
            root,
            child,
            address,
            scheme,
        }
    }

    /// Another one in the same directory, after this one has ended.
    pub(crate) fn again(mut self, args: &[&str]) -> Self {
        let root = std::mem::replace(&mut self.root, tempfile::tempdir().unwrap());
        Self::start_in(root, args, &[])
    }

    pub(crate) fn client(&self) -> NodeClient {
        let origin = format!("{}://{}", self.scheme, self.address).parse().unwrap();
        NodeClient::new(origin, ConnectOptions::default())
    }

    fn announce(&self, pool: &str, url: &str) {
        let text = format!(r#"{{"pool_id":"{pool}","replica_id":"r0","engine":"llamacpp","url":"{url}"}}"#);
        let handoff: Handoff = serde_json::from_str(&text).unwrap();
        handoff_watcher::write(&self.root.path().join(".runtime/engines"), &handoff).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the pool to be as `good` says.
    pub(crate) async fn until(
        &self,
        client: &NodeClient,
        pool: &str,
        token: &str,
        good: impl Fn(&PoolReport) -> bool,
    ) -> PoolReport {
        let deadline = Instant::now() + LONG;
        let mut last = String::new();
        while Instant::now() < deadline {
            let response = send(client, "GET", &format!("/v2/pools/{pool}"), token, "").await;
            let (status, body) = read(response).await;
            if status == 200 {
                let report: PoolReport = serde_json::from_slice(&body).unwrap();
                if good(&report) {
                    return report;
                }
            }
            last = String::from_utf8_lossy(&body).into_owned();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not in {LONG:?}: {last}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn send(
    client: &NodeClient,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> Response<NodeBody> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-remuda-control-plane", "plane-1");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Bytes::from(body.to_owned())).unwrap();
    tokio::time::timeout(LONG, client.send(request))
        .await
        .unwrap()
        .unwrap()
}

pub(crate) async fn read(response: Response<NodeBody>) -> (u16, Bytes) {
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

fn chat(prompt: &str) -> String {
    format!(r#"{{"model":"fake","stream":true,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#)
}

const CHAT: &str = "/v2/engines/pool-0/r0/v1/chat/completions";

#[test]
fn wrong_settings_stop_the_start_with_64_and_say_what_would_be_right() {
    let check = |args: &[&str], file: &str, expect: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        if !file.is_empty() {
            std::fs::write(root.path().join("remuda.toml"), file).unwrap();
        }
        let output = program(root.path(), args, &[]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {text}");
        for part in expect {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    };
    check(
        &["--addr", "0.0.0.0:0"],
        "",
        &["LLORCH_API_TOKEN", "--insecure", "0.0.0.0"],
    );
    check(&["--addr", "here"], "", &["here"]);
    check(&["--cloud-profile"], "", &["ORCHESTRATORD_URL"]);
    check(
        &[],
        "[[pools]]\nid = 'p'\nmodle = 'm'\n",
        &["remuda.toml", "modle"],
    );
    check(
        &[],
        "[[pools]]\nid = 'p'\nmodel = 'm'\nslots = 0\n",
        &["[[pools]] p", "`slots` is 0"],
    );
    check(&[], "[pool-managerd]\nadr = 'x'\n", &["remuda.toml:2", "adr"]);
    check(
        &["--tls-cert", "/nonexistent.pem"],
        "",
        &["POOL_MANAGERD_TLS_KEY"],
    );
    check(
        &["--tls-cert", "/nonexistent.pem", "--tls-key", "/nonexistent.key"],
        "",
        &["/nonexistent.pem"],
    );
}

#[tokio::test]
async fn the_rooms_want_the_token_and_answer_plainly() {
    let daemon = Daemon::start(&[], &[("LLORCH_API_TOKEN", "s3cret")]);
    let engine = fake(4);
    daemon.announce("pool-0", &engine.url());
    let client = daemon.client();
    let (status, body) = read(send(&client, "GET", "/health", "", "").await).await;
    assert_eq!((status, body.starts_with(b"{")), (200, true));
    for path in ["/v2/pools", "/metrics", CHAT] {
        for token in ["", "s3cre", "s3crets"] {
            let response = send(&client, "GET", path, token, "").await;
            assert!(response.headers().get(NODE_REFUSAL_HEADER).is_none());
            let (status, body) = read(response).await;
            assert_eq!(status, 401, "{path}");
            assert!(!String::from_utf8_lossy(&body).contains("s3cret"));
        }
    }
    daemon
        .until(&client, "pool-0", "s3cret", |pool| {
            pool.ready && pool.slots_free == 4
        })
        .await;
    let (_, body) = read(send(&client, "GET", "/v2/pools", "s3cret", "").await).await;
    let listing: RegisterRequest = serde_json::from_slice(&body).unwrap();
    assert_eq!((listing.node_id.as_str(), listing.pools.len()), ("test-node", 1));
    assert!(listing.capabilities.cpu_cores > 0 && listing.sequence > 0 && !listing.incarnation.is_empty());
    let (_, body) = read(send(&client, "GET", "/v2/pools/pool-0/status", "s3cret", "").await).await;
    let status: PoolStatus = serde_json::from_slice(&body).unwrap();
    assert!(status.live && status.ready && status.slots_free == 4 && status.last_error.is_none());
    assert!(String::from_utf8_lossy(&body).contains("\"last_error\":null"));
    let (_, body) = read(send(&client, "GET", "/metrics", "s3cret", "").await).await;
    let text = String::from_utf8_lossy(&body);
    for line in [
        "pool_handoff_files_processed_total",
        "pool_handoff_processing_duration_ms_bucket",
        "pool_slots_total{pool_id=\"pool-0\"} 4",
        "pool_slots_free{pool_id=\"pool-0\"} 4",
        "pool_vram_total_bytes{pool_id=\"pool-0\"}",
        "pool_vram_free_bytes{pool_id=\"pool-0\"}",
        "pool_health_checks_total{pool_id=\"pool-0\",replica_id=\"r0\",outcome=\"well\"}",
        "pool_ready{pool_id=\"pool-0\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let check = async |method: &str, path: &str, body: &str, expect: u16| {
        let (status, text) = read(send(&client, method, path, "s3cret", body).await).await;
        assert_eq!(
            status,
            expect,
            "{method} {path}: {}",
            String::from_utf8_lossy(&text)
        );
        // What an engine answers is its own.
        if status >= 400 && !path.contains("/nothing") {
            let error: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert!(error["code"].is_string() && error["message"].is_string());
        }
    };
    check("GET", "/v2/pools/nope/status", "", 404).await;
    check("GET", "/v2/pools/a%20b", "", 404).await;
    check("GET", "/", "", 404).await;
    check("POST", "/v2/pools/nope/drain", "", 404).await;
    check("POST", "/v2/pools/pool-0/drain", "{\"deadline_ms\":\"x\"}", 400).await;
    check("POST", "/v2/pools/pool-0/drain", &"[".repeat(60_000), 400).await;
    check("POST", "/v2/callbacks/register", "{\"url\":\"ftp://x\"}", 400).await;
    check("POST", "/v2/callbacks/register", "", 400).await;
    check("GET", "/v2/engines/pool-0", "", 404).await;
    check("GET", "/v2/engines/pool-0/r9/x", "", 503).await;
    check("GET", "/v2/engines/pool-0/r0/nothing/here", "", 404).await;
}

#[tokio::test]
async fn the_door_passes_streams_refusals_and_cancels_over_http_2() {
    let daemon = Daemon::start(&["--body-max-bytes", "100000"], &[]);
    let engine = fake(2);
    daemon.announce("pool-0", &engine.url());
    let client = daemon.client();
    daemon.until(&client, "pool-0", "", |pool| pool.ready).await;
    let (status, body) = read(send(&client, "POST", CHAT, "", &chat("chunks=5")).await).await;
    assert!(status == 200 && body.ends_with(b"data: [DONE]\n\n"), "{body:?}");

    let slow = chat("chunks=100000 interval_ms=5");
    let mut one = send(&client, "POST", CHAT, "", &slow).await.into_body();
    let two = send(&client, "POST", CHAT, "", &slow).await.into_body();
    assert!(one.frame().await.is_some());
    let refused = send(&client, "POST", CHAT, "", &slow).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()[NODE_REFUSAL_HEADER], "REPLICA_EXHAUSTED");
    let (_, body) = read(refused).await;
    assert!(String::from_utf8_lossy(&body).contains("\"code\":\"REPLICA_EXHAUSTED\""));
    let report = daemon
        .until(&client, "pool-0", "", |pool| pool.slots_free == 0)
        .await;
    assert_eq!(report.replicas[0].leases["plane-1"], 2);
    let since = Instant::now();
    drop((one, two));
    daemon
        .until(&client, "pool-0", "", |pool| pool.slots_free == 2)
        .await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());

    let huge = "x".repeat(100_001);
    let (status, body) = read(send(&client, "POST", CHAT, "", &huge).await).await;
    assert_eq!(status, 413, "{body:?}");

    let mut broken = send(&client, "POST", CHAT, "", &slow).await.into_body();
    broken.frame().await.unwrap().unwrap();
    engine.kill();
    let ended = tokio::time::timeout(LONG, broken.collect()).await.unwrap();
    assert!(ended.is_err(), "an answer that broke off is no silent end");
    daemon
        .until(&client, "pool-0", "", |pool| {
            !pool.ready && pool.last_error.is_some()
        })
        .await;
    let refused = send(&client, "POST", CHAT, "", &slow).await;
    assert_eq!(refused.headers()[NODE_REFUSAL_HEADER], "POOL_UNREADY");
}

/// Passes bytes on in both directions until it is frozen; then it holds both connections open and passes nothing, as a
/// network does that has gone away.
fn freezing_proxy(to: String) -> (String, Arc<AtomicBool>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let frozen = Arc::new(AtomicBool::new(false));
    let freeze = frozen.clone();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = TcpStream::connect(&to).unwrap();
            let pairs = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
            for (mut from, mut into) in pairs {
                let frozen = freeze.clone();
                std::thread::spawn(move || {
                    let mut chunk = [0; 4096];
                    while let Ok(n @ 1..) = from.read(&mut chunk) {
                        while frozen.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                        if into.write_all(&chunk[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (address, frozen)
}

#[tokio::test]
async fn a_control_plane_behind_a_dead_network_gives_its_slots_back() {
    let daemon = Daemon::start(&[], &[]);
    let engine = fake(1);
    daemon.announce("pool-0", &engine.url());
    let client = daemon.client();
    daemon.until(&client, "pool-0", "", |pool| pool.ready).await;
    let (address, frozen) = freezing_proxy(daemon.address.clone());
    let origin = format!("http://{address}").parse().unwrap();
    let far = NodeClient::new(origin, ConnectOptions::default());
    let mut body = send(&far, "POST", CHAT, "", &chat("chunks=100000 interval_ms=20"))
        .await
        .into_body();
    body.frame().await.unwrap().unwrap();
    daemon
        .until(&client, "pool-0", "", |pool| pool.slots_free == 0)
        .await;
    frozen.store(true, Ordering::Relaxed);
    daemon
        .until(&client, "pool-0", "", |pool| pool.slots_free == 1)
        .await;
    // The far side has found out by itself as well, or does so now.
    assert!(tokio::time::timeout(LONG, body.collect()).await.unwrap().is_err());
}

#[test]
fn http_1_works_and_nonsense_is_answered_or_closed() {
    let daemon = Daemon::start(&[], &[]);
    let say = |text: &[u8]| {
        let mut stream = TcpStream::connect(&daemon.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(say(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
    assert!(say(b"hello\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(say(b"\x16\x03\x01\x00\x05hello").starts_with("HTTP/1.1 400"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    assert!(!say(long.as_bytes()).starts_with("HTTP/1.1 2"));
    assert!(say(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_exits_0() {
    let mut daemon = Daemon::start(&[], &[]);
    let engine = fake(2);
    daemon.announce("pool-0", &engine.url());
    let client = daemon.client();
    daemon.until(&client, "pool-0", "", |pool| pool.ready).await;
    let mut body = send(&client, "POST", CHAT, "", &chat("chunks=100 interval_ms=10"))
        .await
        .into_body();
    body.frame().await.unwrap().unwrap();
    daemon.signal("-TERM");
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "cut short");
    assert_eq!(daemon.ended(), Some(0));

    let mut impatient = Daemon::start(&["--drain-timeout-ms", "200"], &[]);
    impatient.announce("pool-0", &engine.url());
    let client = impatient.client();
    impatient.until(&client, "pool-0", "", |pool| pool.ready).await;
    let mut body = send(&client, "POST", CHAT, "", &chat("chunks=100000 interval_ms=10"))
        .await
        .into_body();
    body.frame().await.unwrap().unwrap();
    impatient.signal("-TERM");
    assert_eq!(
        impatient.ended(),
        Some(130),
        "the deadline passed with a task that ran"
    );
    assert!(body.collect().await.is_err());
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let daemon = Daemon::start(&[], &[]);
    let output = program(daemon.root.path(), &["--addr", "127.0.0.1:0"], &[])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains(&format!("process {}", daemon.child.id())), "{text}");
}

fn certificate(directory: &Path, name: &str, days: u32, from: SystemTime) -> (PathBuf, PathBuf) {
    let request = daemon::certs::Request {
        name: name.to_owned(),
        alt_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        from,
        days,
        force: false,
    };
    let written = daemon::certs::issue(directory, &request).unwrap();
    (written.cert, written.key)
}

#[tokio::test]
async fn with_tls_only_certificates_of_the_ca_get_in() {
    let certs = tempfile::tempdir().unwrap();
    let strange = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let ca = daemon::certs::init(certs.path(), 30, false).unwrap().cert;
    let strange_ca = daemon::certs::init(strange.path(), 30, false).unwrap().cert;
    let (cert, key) = certificate(certs.path(), "test-node", 30, now);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, ca_text) = (text(&cert), text(&key), text(&ca));
    let daemon = Daemon::start(
        &["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca_text],
        &[],
    );
    let connect = |ca: &Path, own: Option<(PathBuf, PathBuf)>| {
        let identity = own.map(|(cert, key)| daemon::tls::Identity { cert, key });
        let config = daemon::tls::client_config(ca, identity.as_ref(), &[b"h2"]).unwrap();
        let port = daemon.address.rsplit_once(':').unwrap().1;
        let origin = format!("https://localhost:{port}").parse().unwrap();
        let options = ConnectOptions {
            tls: Some(Arc::new(config)),
            ..ConnectOptions::default()
        };
        NodeClient::new(origin, options)
    };
    let get = |path: &str| Request::get(path).body(Bytes::new()).unwrap();

    let ours = connect(&ca, Some(certificate(certs.path(), "control-plane", 30, now)));
    assert_eq!(ours.send(get("/v2/pools")).await.unwrap().status(), 200);
    let bare = connect(&ca, None);
    assert_eq!(bare.send(get("/health")).await.unwrap().status(), 200);
    assert_eq!(bare.send(get("/v2/pools")).await.unwrap().status(), 401);
    let strangers = connect(&ca, Some(certificate(strange.path(), "stranger", 30, now)));
    assert!(
        strangers.send(get("/health")).await.is_err(),
        "a certificate of another CA"
    );
    let long_ago = now - Duration::from_secs(20 * 24 * 3600);
    let expired = connect(&ca, Some(certificate(certs.path(), "late", 10, long_ago)));
    assert!(
        expired.send(get("/health")).await.is_err(),
        "an expired certificate"
    );
    let wary = connect(&strange_ca, None);
    assert!(
        wary.send(get("/health")).await.is_err(),
        "the client does not know the node's CA"
    );
}

/// An address that takes callbacks, and the requests that came, as they were.
fn listen_for_callbacks() -> (String, Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    let (sender, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut text = Vec::new();
            let mut chunk = [0; 4096];
            // One request per connection is enough here: the answer closes it.
            while let Ok(n) = stream.read(&mut chunk) {
                text.extend_from_slice(&chunk[..n]);
                if n == 0 || text.ends_with(b"]}}") {
                    break;
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
        }
    });
    (url, told)
}

#[tokio::test]
async fn callbacks_come_at_once_and_the_token_goes_only_where_the_operator_said() {
    let (set, told_set) = listen_for_callbacks();
    let (asked, told_asked) = listen_for_callbacks();
    let environment = [
        ("LLORCH_API_TOKEN", "s3cret"),
        ("POOL_MANAGERD_ORCHESTRATORD_CALLBACK_URL", set.as_str()),
    ];
    let daemon = Daemon::start(&[], &environment);
    let client = daemon.client();
    let body = serde_json::json!({ "url": asked }).to_string();
    for _ in 0..2 {
        let answer = send(&client, "POST", "/v2/callbacks/register", "s3cret", &body).await;
        assert_eq!(read(answer).await.0, 204);
    }
    let engine = fake(1);
    daemon.announce("pool-0", &engine.url());
    for (told, trusted) in [(&told_set, true), (&told_asked, false)] {
        let text = told.recv_timeout(LONG).unwrap();
        assert!(
            text.starts_with("POST /told ") && text.contains("\"event\":\"pool-ready\""),
            "{text}"
        );
        assert!(
            text.contains("\"node_id\":\"test-node\"") && text.contains("\"pool_id\":\"pool-0\""),
            "{text}"
        );
        assert_eq!(text.contains("Bearer s3cret"), trusted, "{text}");
    }
    engine.kill();
    for told in [&told_set, &told_asked] {
        let text = told.recv_timeout(LONG).unwrap();
        assert!(text.contains("\"event\":\"pool-lost\""), "{text}");
    }
}
