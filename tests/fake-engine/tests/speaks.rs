//! The stand-in keeps what it says: tests of tests' own ground.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up its ground has failed"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fake_engine::{Behaviour, FakeEngine, Settings, Stats};

fn start(behaviour: &str, slots: u32) -> FakeEngine {
    let behaviour = behaviour.parse::<Behaviour>().unwrap();
    FakeEngine::start(Settings {
        slots,
        behaviour,
        ..Settings::default()
    })
    .unwrap()
}

fn send(engine: &FakeEngine, prompt: &str, stream: bool) -> TcpStream {
    let mut connection = TcpStream::connect(engine.address()).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"stream":{stream}}}"#);
    write!(
        connection,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    connection
}

fn ask(engine: &FakeEngine, prompt: &str, stream: bool) -> String {
    let mut answer = Vec::new();
    send(engine, prompt, stream).read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits for what must come soon.
fn wait_for(engine: &FakeEngine, what: &str, holds: impl Fn(Stats) -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds(engine.stats()) {
        assert!(Instant::now() < until, "{what}: {:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_answer_at_once_and_one_in_pieces() {
    let engine = start("", 4);
    let whole = ask(&engine, "hello", false);
    assert!(
        whole.contains(r#""finish_reason":"stop""#) && whole.contains(r#""usage":"#),
        "{whole}"
    );
    let (_, body) = whole.split_once("\r\n\r\n").unwrap();
    assert!((500..700).contains(&body.len()), "{} bytes", body.len());
    let stream = ask(&engine, "chunks=3", true);
    assert_eq!(stream.matches(r#""content":"w"#).count(), 3, "{stream}");
    assert!(stream.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{stream}");
    wait_for(&engine, "two are complete", |stats| {
        stats.completed == 2 && stats.active == 0
    });
}

#[test]
fn failures_come_as_asked_for() {
    fn check(engine: &FakeEngine, prompt: &str, stream: bool, expect: &[&str], unwanted: &str) {
        let answer = ask(engine, prompt, stream);
        for text in expect {
            assert!(answer.contains(text), "{prompt}: no {text:?} in {answer:?}");
        }
        assert!(!answer.contains(unwanted), "{prompt}: {unwanted:?} in {answer:?}");
    }
    let engine = start("", 4);
    check(&engine, "fail=error", false, &["HTTP/1.1 500 "], "w0");
    check(
        &engine,
        "fail=loading",
        true,
        &["HTTP/1.1 503 ", "Loading model"],
        "w0",
    );
    check(&engine, "fail=garbage", false, &["not HTTP"], "HTTP/1.1");
    check(
        &engine,
        "fail=garbage_body",
        false,
        &["HTTP/1.1 200 ", "<html>"],
        "w0",
    );
    check(
        &engine,
        "chunks=9 after=2 fail=die",
        true,
        &["w1 ", "HTTP/1.1 200 "],
        "w2 ",
    );
    check(&engine, "chunks=9 after=2 fail=cut", true, &["w2"], "[DONE]");
    check(
        &engine,
        "chunks=9 after=2 fail=no_done",
        true,
        &["w1 ", "\r\n0\r\n\r\n"],
        "[DONE]",
    );
    check(&engine, "fail=cut", false, &["HTTP/1.1 200 "], "usage");
    wait_for(&engine, "all have failed", |stats| {
        stats.failed == 8 && stats.active == 0
    });
}

#[test]
fn a_client_that_leaves_is_noticed_at_once() {
    let engine = start("chunks=1000 interval_ms=1000", 4);
    for stream in [true, false] {
        let before = engine.stats().cancelled;
        let connection = send(&engine, "", stream);
        wait_for(&engine, "it has begun", |stats| stats.active == 1);
        drop(connection);
        let left = Instant::now();
        wait_for(&engine, "it was noticed", |stats| {
            stats.cancelled == before + 1 && stats.active == 0
        });
        // Long before the next chunk would have been written.
        assert!(
            left.elapsed() < Duration::from_millis(500),
            "{:?}",
            left.elapsed()
        );
    }
}

#[test]
fn slots_bound_what_runs() {
    let engine = start("chunks=1000 interval_ms=1000", 1);
    let first = send(&engine, "", true);
    wait_for(&engine, "the first streams", |stats| stats.chunks == 1);
    let second = send(&engine, "", true);
    wait_for(&engine, "the second waits", |stats| stats.active == 2);
    assert_eq!(engine.stats().chunks, 1);
    drop(first);
    wait_for(&engine, "the second streams", |stats| {
        stats.chunks == 2 && stats.cancelled == 1
    });
    drop(second);
    wait_for(&engine, "nobody is left", |stats| stats.active == 0);
}

#[test]
fn killing_it_ends_connections_and_frees_the_port() {
    let engine = start("chunks=1000 interval_ms=1000", 4);
    let address = engine.address();
    let mut connection = send(&engine, "", true);
    wait_for(&engine, "it streams", |stats| stats.chunks == 1);
    engine.kill();
    let mut rest = Vec::new();
    // An end or a reset, but no wait.
    let _ = connection.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    let settings = Settings {
        port: address.port(),
        ..Settings::default()
    };
    assert_eq!(FakeEngine::start(settings).unwrap().address(), address);
}
