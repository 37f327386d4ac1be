//! A control plane that breaks off: what the command line makes of it. The server here is scripted, because a real one
//! breaks off only when it is killed at the right moment.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

/// Answers one connection after the other, each with the next text, and closes it. Gives the requests' heads back.
fn serve(answers: Vec<String>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = thread::spawn(move || {
        answers
            .iter()
            .map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let head = read_request(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                head
            })
            .collect()
    });
    (address, served)
}

fn read_request(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |text| text.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).unwrap();
    head
}

fn stream(events: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}")
}

fn remuda(address: &str, arguments: &[&str]) -> Output {
    let command = &mut Command::new(env!("CARGO_BIN_EXE_remuda"));
    command
        .args(arguments)
        .args(["--url", address])
        .env_clear()
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn an_answer_that_breaks_off_is_an_error() {
    let (address, served) = serve(vec![stream(
        "data: {\"choices\":[{\"delta\":{\"content\":\"20\"}}]}\n\n",
    )]);
    let output = remuda(&address, &["run", "--model", "m", "3*67"]);
    assert_eq!(text(&output.stdout).trim_end(), "20", "what came is shown");
    assert!(
        text(&output.stderr).contains("error: the answer broke off before its end"),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(1));
    served.join().unwrap();
}

#[test]
fn an_error_in_the_stream_is_told() {
    let (address, served) = serve(vec![stream(
        "data: {\"error\":{\"message\":\"the engine died\",\"code\":\"WORKER_RESET\"}}\n\n",
    )]);
    let output = remuda(&address, &["run", "--model", "m", "3*67"]);
    assert!(
        text(&output.stderr).contains("error: the engine died (WORKER_RESET)"),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(1));
    served.join().unwrap();
}

#[test]
fn events_are_taken_up_again_after_the_last_one_that_came() {
    let end = r#"{"tokens_in":1,"tokens_out":2,"queue_ms":0,"first_token_ms":1,"decode_ms":1}"#;
    let (address, served) = serve(vec![
        stream("event: token\nid: 1\ndata: {\"t\":\"20\",\"i\":0}\n\n"),
        stream(&format!(
            "event: token\nid: 2\ndata: {{\"t\":\"1\",\"i\":1}}\n\nevent: end\nid: 3\ndata: {end}\n\n"
        )),
    ]);
    let output = remuda(&address, &["tasks", "events", "t1"]);
    assert_eq!(text(&output.stdout), "201\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let heads = served.join().unwrap();
    assert!(!heads[0].contains("last-event-id"));
    assert!(heads[1].contains("last-event-id: 1\r\n"), "{heads:?}");
}

#[test]
fn a_key_is_shown_to_the_control_plane_and_never_to_the_reader() {
    let body = r#"{"code":"UNAUTHENTICATED","message":"this key is not known","retriable":false}"#;
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let (address, served) = serve(vec![answer]);
    let output = remuda(&address, &["nodes", "--api-key", "rmd_very_secret"]);
    assert_eq!(output.status.code(), Some(77));
    assert!(!text(&output.stderr).contains("very_secret"), "{output:?}");
    assert!(served.join().unwrap()[0].contains("authorization: bearer rmd_very_secret"));
}
