//! What the node's pages answer to what they are not meant for.

use http::header::ALLOW;

use crate::program::{Daemon, read, send};

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let daemon = Daemon::start(&[], &[("LLORCH_API_TOKEN", "s3cret")]);
    let client = daemon.client();
    let check = async |method: &str, path: &str, token: &str, expect: (u16, Option<&str>)| {
        let response = send(&client, method, path, token, "").await;
        let allow = response
            .headers()
            .get(ALLOW)
            .map(|allow| allow.to_str().unwrap().to_owned());
        let (status, body) = read(response).await;
        assert_eq!((status, allow.as_deref()), expect, "{method} {path}");
        if status == 405 {
            let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(error["code"], "INVALID_PARAMS", "{error}");
        }
    };
    let pages = Some("GET, HEAD");
    check("POST", "/health", "", (405, pages)).await;
    check("HEAD", "/health", "", (200, None)).await;
    for path in ["/metrics", "/v2/pools", "/v2/pools/p", "/v2/pools/p/status"] {
        check("PUT", path, "s3cret", (405, pages)).await;
    }
    check("HEAD", "/v2/pools", "s3cret", (200, None)).await;
    check("GET", "/v2/pools/p/drain", "s3cret", (405, Some("POST, DELETE"))).await;
    check("GET", "/v2/pools/p/reload", "s3cret", (405, Some("POST"))).await;
    check("DELETE", "/v2/callbacks/register", "s3cret", (405, Some("POST"))).await;
    check("PUT", "/v2/nothing", "s3cret", (404, None)).await;
    // Who may not come in learns nothing about what there is.
    check("PUT", "/v2/pools", "", (401, None)).await;
}

#[tokio::test]
async fn a_body_that_is_too_long_is_413() {
    let daemon = Daemon::start(&["--body-max-bytes", "1000"], &[]);
    let client = daemon.client();
    for (path, len) in [
        ("/v2/engines/p/r0/v1/chat/completions", 1001),
        ("/v2/callbacks/register", 64 * 1024 + 1),
    ] {
        let (status, body) = read(send(&client, "POST", path, "", &" ".repeat(len)).await).await;
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (status, &error["code"]),
            (413, &"REQUEST_TOO_LARGE".into()),
            "{path}: {error}"
        );
    }
}
