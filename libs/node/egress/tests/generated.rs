//! Generated requests: whatever is sent to the proxy, only what is allowed is looked up, and nothing is dialled that
//! was not.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress::{Egress, EgressPolicy, Host, Limits, Resolve, Resolving, Shared, Target};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Knows no name, and remembers which were asked for.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<String>>);

impl Resolve for Recorder {
    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        self.0.lock().unwrap().push(name.to_owned());
        Box::pin(async { Err(io::Error::other("nobody is known")) })
    }
}

fn piece() -> impl Strategy<Value = String> {
    let fixed = [
        "CONNECT ",
        "GET ",
        "POST ",
        "OPTIONS ",
        "http://",
        "https://",
        "//",
        "/",
        "*",
        "api.test",
        "x.api.test",
        "evil.test",
        "api.test.evil.test",
        "api.test@evil.test",
        "127.0.0.1",
        "[::1]",
        "0x7f.1",
        "2130706433",
        "API.TEST.",
        ":443",
        ":80",
        ":0",
        ":",
        "@",
        "#",
        "?",
        "%2f",
        "\\",
        " ",
        "\t",
        "\0",
        " HTTP/1.1",
        " HTTP/1.0",
        " HTTP/2.0",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: ",
        "Content-Length: 5",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Connection: close",
        "Connection: host",
        "0\r\n\r\n",
        "5\r\nhello\r\n",
    ];
    prop_oneof![
        12 => proptest::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

/// A request that begins like one, so that most get somewhere.
fn request() -> impl Strategy<Value = String> {
    let begin = proptest::sample::select(vec!["", "CONNECT ", "GET http://", "POST http://", "GET /"]);
    let end = proptest::sample::select(vec![
        "",
        " HTTP/1.1\r\nHost: api.test\r\n\r\n",
        " HTTP/1.1\r\n\r\n",
    ]);
    (begin, proptest::collection::vec(piece(), 0..12), end)
        .prop_map(|(begin, pieces, end)| format!("{begin}{}{end}", pieces.concat()))
}

async fn asked_for(requests: &[String]) -> Vec<String> {
    let recorder = Arc::<Recorder>::default();
    let limits = Limits {
        head_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let resolver = Arc::clone(&recorder) as Arc<dyn Resolve>;
    let shared = Arc::new(Shared {
        resolver,
        upstreams: None,
        limits,
    });
    let policy = EgressPolicy::new().allow("api.test:*").unwrap();
    let egress = Egress::new(shared, policy, "ann", |_| {});
    let (mut inside, outside) = tokio::io::duplex(4096);
    let served = tokio::spawn(async move { egress.serve(outside, 0).await });
    for request in requests {
        if inside.write_all(request.as_bytes()).await.is_err() {
            break;
        }
    }
    let _ = inside.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), inside.read_to_end(&mut answer)).await;
    let _ = read.expect("every connection ends");
    let _ = served.await.unwrap();
    let asked = recorder.0.lock().unwrap();
    asked.clone()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_allowed_names_are_looked_up(requests in proptest::collection::vec(request(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        for name in runtime.block_on(asked_for(&requests)) {
            prop_assert_eq!(name, "api.test");
        }
    }

    #[test]
    fn a_target_is_what_it_shows(text in "\\PC{0,40}|[a-zA-Z0-9.:\\[\\]_-]{0,40}") {
        if let Ok(target) = Target::parse(&text, None) {
            let shown = target.to_string();
            prop_assert_eq!(Target::parse(&shown, None), Ok(target.clone()));
            prop_assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()));
            if let Host::Name(name) = &target.host {
                prop_assert!(text.to_ascii_lowercase().contains(&**name));
                prop_assert!(!name.contains(['/', '@', ':', '%', '\\']));
            }
        }
    }
}

/// Otherwise the first property would hold for a proxy that refuses everything.
#[tokio::test]
async fn what_is_allowed_is_looked_up() {
    let requests = ["CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()];
    assert_eq!(asked_for(&requests).await, ["api.test"]);
}
