//! Errors in the shapes that their readers expect: too long a body is 413 everywhere, and `/v2` names the request.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use remuda_tests::System;
use serde_json::{Value, json};

#[tokio::test]
async fn a_body_that_is_too_long_is_413_in_every_shape() {
    let system = System::new();
    let plane = system.control_plane(&[("ORCHD_BODY_MAX_BYTES", "1000")]);
    let long = |bytes: usize| json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x".repeat(bytes)}]});
    let openai = |body: &Value| (body["error"]["type"].clone(), body["error"]["code"].clone());
    for (path, bytes) in [
        ("/v1/chat/completions", 1000),
        ("/v1/responses", 1000),
        ("/v1/messages", 1000),
        ("/v1/messages/count_tokens", 1000),
        ("/v2/tasks", 9 << 20),
    ] {
        let answer = plane.post(path, &long(bytes)).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, 413, "{path}: {body}");
        if path.starts_with("/v2") {
            assert_eq!(body["code"], "REQUEST_TOO_LARGE", "{body}");
        } else if path.contains("messages") {
            assert_eq!(body["error"]["type"], "request_too_large", "{body}");
        } else {
            let expect = ("invalid_request_error".into(), "REQUEST_TOO_LARGE".into());
            assert_eq!(openai(&body), expect, "{path}: {body}");
        }
    }
}

/// The answer comes long before the body's end, and must not be lost by it.
#[test]
fn who_sends_to_the_end_before_reading_is_answered_too() {
    let system = System::new();
    let plane = system.control_plane(&[("ORCHD_BODY_MAX_BYTES", "1000")]);
    let body = vec![b'x'; 32 << 20];
    for path in ["/v1/chat/completions", "/v2/tasks"] {
        let mut stream = TcpStream::connect(plane.url.trim_start_matches("http://")).unwrap();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a-token-for-tests\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
        assert!(answer.contains("REQUEST_TOO_LARGE"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn an_error_of_v2_names_the_request() {
    let system = System::new();
    let plane = system.control_plane(&[]);
    for (path, status) in [
        ("/v2/tasks/nobody", 404),
        ("/v2/nothing", 404),
        ("/v2/tasks?limit=x", 400),
    ] {
        let answer = plane
            .get(path)
            .header("x-correlation-id", "c-17")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.headers()["x-correlation-id"], "c-17");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["correlation_id"], "c-17", "{path}: {body}");
    }
    // A wrong method and a body that cannot be read get a name of the control plane's own.
    for (answer, status) in [
        (plane.post("/v2/pools", &json!({})).send().await.unwrap(), 405),
        (
            plane
                .post("/v2/tasks", &json!({"workload": 1}))
                .send()
                .await
                .unwrap(),
            400,
        ),
    ] {
        assert_eq!(answer.status().as_u16(), status);
        let named = answer.headers()["x-correlation-id"].to_str().unwrap().to_owned();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["correlation_id"], named, "{body}");
    }
}
