use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use http::Request;
use http_body::Frame;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;

use super::*;

const BOUNDS: Bounds = Bounds {
    body_len_max: 1000,
    idle: Duration::from_secs(100),
    head: Duration::from_secs(10),
    body: Duration::from_secs(20),
};

/// One target, or any, and no headers.
#[derive(Clone, Copy)]
struct Target(Option<&'static str>);

impl Ordinary for Target {
    type Kind = ();

    fn kind(&self, target: &str) -> Option<()> {
        self.0.is_none_or(|only| only == target).then_some(())
    }

    fn headers(&self) -> &Known {
        static NONE: LazyLock<Known> = LazyLock::new(|| Known::new([]));
        &NONE
    }
}

/// A body of given pieces; `None` is a piece that does not come.
struct Pieces {
    pieces: VecDeque<Option<Result<Bytes, ()>>>,
    asked: Arc<AtomicUsize>,
    _alive: Arc<()>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = ();

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.pieces.pop_front() {
            None => Poll::Ready(None),
            Some(Some(piece)) => Poll::Ready(Some(piece.map(Frame::data))),
            Some(None) => {
                self.pieces.push_front(None);
                Poll::Pending
            }
        }
    }
}

/// Answers with the body of the request, twice.
async fn echo(asked: Asked<()>) -> Response<Full<Bytes>> {
    let body = asked.body;
    Response::new(Full::new([body.as_ref(), &body].concat().into()))
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/x HTTP/1.1\r\nHost: h\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn serve(stream: DuplexStream) -> tokio::task::JoinHandle<Left<DuplexStream>> {
    tokio::spawn(run(
        stream,
        BOUNDS,
        Target(Some("/v1/x")),
        std::future::pending(),
        echo,
    ))
}

/// Reads until `text` has come.
async fn expect(stream: &mut DuplexStream, text: &str) -> String {
    let mut got = Vec::new();
    while !got.windows(text.len()).any(|window| window == text.as_bytes()) {
        assert_ne!(
            stream.read_buf(&mut got).await.unwrap(),
            0,
            "{:?}",
            String::from_utf8_lossy(&got)
        );
    }
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn requests_on_one_connection_however_they_are_cut() {
    let wire = [post("abc"), post(""), post("0123456789")].concat();
    for size in [1, 2, 7, 50, wire.len()] {
        let (mut client, server) = duplex(64 * 1024);
        let served = serve(server);
        for piece in wire.as_bytes().chunks(size) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let answer = expect(&mut client, "01234567890123456789").await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answer}");
        assert!(
            answer.contains("content-length: 6\r\n") && answer.contains("\r\n\r\nabcabc"),
            "{answer}"
        );
        assert!(
            answer.contains("content-length: 0\r\n") && answer.contains("\r\ndate: "),
            "{answer}"
        );
        drop(client);
        assert!(matches!(served.await.unwrap(), Left::Closed));
    }
}

#[tokio::test]
async fn the_handler_gets_the_headers_that_it_reads() {
    struct Reads(Known);

    impl Ordinary for Reads {
        type Kind = usize;

        fn kind(&self, target: &str) -> Option<usize> {
            Some(target.len())
        }

        fn headers(&self) -> &Known {
            &self.0
        }
    }

    let reads = Reads(Known::new([
        http::header::ACCEPT,
        HeaderName::from_static("x-own"),
    ]));
    let (mut client, server) = duplex(64 * 1024);
    let handle = |asked: Asked<usize>| async move {
        let text = format!("{} {:?}", asked.kind, asked.headers);
        Response::new(Full::new(Bytes::from(text)))
    };
    let served =
        tokio::spawn(async move { run(server, BOUNDS, reads, std::future::pending(), handle).await });
    let request = "POST /v1/x HTTP/1.1\r\nX-Own: 1\r\nx-other: 2\r\naccept: a\r\nACCEPT: b\r\ncontent-length: 0\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = expect(&mut client, "}").await;
    assert!(
        answer.ends_with(r#"5 {"x-own": "1", "accept": "a", "accept": "b"}"#),
        "{answer}"
    );
    drop(client);
    assert!(matches!(served.await.unwrap(), Left::Closed));
}

#[tokio::test]
async fn anything_unusual_is_handed_over_whole() {
    async fn check(request: &str) {
        let (mut client, server) = duplex(64 * 1024);
        let served = serve(server);
        client.write_all(post("abc").as_bytes()).await.unwrap();
        expect(&mut client, "abcabc").await;
        client.write_all(request.as_bytes()).await.unwrap();
        match served.await.unwrap() {
            Left::HandOver(_, read) => assert_eq!(read, request.as_bytes()),
            Left::Closed => panic!("{request:?} was not handed over"),
        }
    }
    check("GET /v1/x HTTP/1.1\r\n\r\n").await;
    check("POST /v2/x HTTP/1.1\r\ncontent-length: 1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.0\r\ncontent-length: 1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\n\r\n").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: +1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1001\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    check("POST /v1/x HTTP/1.1\ncontent-length: 1\n\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1\r\nx: a\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1\r\nx: a\r\n b\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length : 1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\nx").await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 0x1\r\n\r\nx").await;
    check("POST http://h/v1/x HTTP/1.1\r\ncontent-length: 1\r\n\r\nx").await;
    check("\x16\x03\x01 no HTTP at all\r\n\r\n").await;
    check(&format!("POST /v1/x HTTP/1.1\r\nx: {}", "x".repeat(40_000))).await;
}

#[tokio::test]
async fn a_client_that_wants_the_connection_closed_gets_it_closed() {
    let (mut client, server) = duplex(64 * 1024);
    let served = serve(server);
    let request = "POST /v1/x HTTP/1.1\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap_or_default();
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("xx"),
        "{answer}"
    );
    assert!(matches!(served.await.unwrap(), Left::Closed));
}

/// A lane whose every answer is `pieces`. Gives how often the body was asked, and what lives as long as it does.
fn serve_pieces(
    stream: DuplexStream,
    pieces: Vec<Option<Result<Bytes, ()>>>,
) -> (
    tokio::task::JoinHandle<Left<DuplexStream>>,
    Arc<AtomicUsize>,
    Arc<()>,
) {
    let (asked, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
    let given = (asked.clone(), alive.clone());
    let handle = move |_| {
        let body = Pieces {
            pieces: pieces.clone().into(),
            asked: given.0.clone(),
            _alive: given.1.clone(),
        };
        async move { Response::new(body) }
    };
    let served = tokio::spawn(run(stream, BOUNDS, Target(None), std::future::pending(), handle));
    (served, asked, alive)
}

#[tokio::test]
async fn a_stream_goes_out_in_chunks_and_its_end_is_the_bodys() {
    let (mut client, server) = duplex(64 * 1024);
    let pieces = [&b"one"[..], b"", b"sixteen bytes ok"].map(|piece| Some(Ok(Bytes::from_static(piece))));
    let (_served, _, _) = serve_pieces(server, pieces.to_vec());
    client.write_all(post("x").as_bytes()).await.unwrap();
    let answer = expect(&mut client, "0\r\n\r\n").await;
    assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\n3\r\none\r\n10\r\nsixteen bytes ok\r\n0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_never_gets_an_end() {
    let (mut client, server) = duplex(64 * 1024);
    let (served, _, _) = serve_pieces(server, vec![Some(Ok(Bytes::from_static(b"one"))), Some(Err(()))]);
    client.write_all(post("x").as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("3\r\none\r\n"), "{answer}");
    assert!(matches!(served.await.unwrap(), Left::Closed));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_with_it() {
    let (mut client, server) = duplex(64 * 1024);
    let (served, _, alive) = serve_pieces(server, vec![Some(Ok(Bytes::from_static(b"one"))), None]);
    client.write_all(post("x").as_bytes()).await.unwrap();
    expect(&mut client, "one\r\n").await;
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(client);
    assert!(matches!(served.await.unwrap(), Left::Closed));
    assert_eq!(Arc::strong_count(&alive), 1, "the body was dropped");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_handler_with_it() {
    let (mut client, server) = duplex(64 * 1024);
    let (begun, alive) = (Arc::new(Notify::new()), Arc::new(()));
    let given = (begun.clone(), alive.clone());
    let handle = move |_: Asked<()>| {
        let (begun, alive) = given.clone();
        async move {
            begun.notify_one();
            std::future::pending::<()>().await;
            drop(alive);
            Response::new(Full::new(Bytes::new()))
        }
    };
    let served = tokio::spawn(run(server, BOUNDS, Target(None), std::future::pending(), handle));
    client.write_all(post("x").as_bytes()).await.unwrap();
    begun.notified().await;
    drop(client);
    assert!(matches!(served.await.unwrap(), Left::Closed));
    assert_eq!(Arc::strong_count(&alive), 1, "the handler was dropped");
}

#[tokio::test]
async fn a_slow_reader_is_not_read_ahead_for() {
    let (mut client, server) = duplex(1024);
    let piece = Bytes::from(vec![b'x'; 8 * 1024]);
    let (_served, asked, _) = serve_pieces(server, vec![Some(Ok(piece)); 1000]);
    client.write_all(post("x").as_bytes()).await.unwrap();
    expect(&mut client, "HTTP/1.1 200").await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let asked_for = asked.load(Ordering::SeqCst);
    assert!(asked_for <= WRITE_LEN_MAX / (8 * 1024) + 1, "{asked_for} pieces");
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    async fn check(sent: &str, expect: Duration) {
        let (mut client, server) = duplex(64 * 1024);
        let start = Instant::now();
        let served = serve(server);
        client.write_all(sent.as_bytes()).await.unwrap();
        assert!(matches!(served.await.unwrap(), Left::Closed));
        let took = start.elapsed();
        assert!(
            took >= expect && took < expect + Duration::from_secs(1),
            "{sent:?}: {took:?}"
        );
    }
    check("", BOUNDS.idle).await;
    check("POST /v1/x HT", BOUNDS.head).await;
    check("POST /v1/x HTTP/1.1\r\ncontent-length: 5\r\n\r\nabc", BOUNDS.body).await;
}

#[tokio::test]
async fn a_shutdown_ends_what_waits_and_not_what_runs() {
    let stop = Arc::new(Notify::new());
    let serve = |stream: DuplexStream| {
        let stop = stop.clone();
        tokio::spawn(async move { run(stream, BOUNDS, Target(None), stop.notified(), echo).await })
    };
    let (mut client, server) = duplex(64 * 1024);
    let served = serve(server);
    client.write_all(post("abc").as_bytes()).await.unwrap();
    expect(&mut client, "abcabc").await;
    // In the middle of a request it still gets its answer.
    client
        .write_all(b"POST /v1/x HTTP/1.1\r\ncontent-length: 3\r\n\r\nd")
        .await
        .unwrap();
    tokio::task::yield_now().await;
    stop.notify_one();
    tokio::task::yield_now().await;
    client.write_all(b"ef").await.unwrap();
    expect(&mut client, "defdef").await;
    assert!(matches!(served.await.unwrap(), Left::Closed));
}

/// What the general server makes of the same bytes: the bodies of the requests that it read.
async fn bodies_of_hyper(wire: Vec<u8>, size: usize) -> Vec<Bytes> {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let given = seen.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let seen = given.clone();
        async move {
            let body = http_body_util::BodyExt::collect(request.into_body())
                .await?
                .to_bytes();
            seen.lock().unwrap().push(body);
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
        }
    });
    let (client, server) = duplex(64 * 1024);
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(hyper_util::rt::TokioIo::new(server), service);
    let served = tokio::spawn(async move {
        // An error is an answer here: what came before it counts.
        let _ = connection.await;
    });
    send_all(client, wire, size).await;
    served.await.unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

/// What the lane makes of them, and whether it handed the rest over.
async fn bodies_of_lane(wire: Vec<u8>, size: usize) -> (Vec<Bytes>, bool) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let given = seen.clone();
    let handle = move |asked: Asked<()>| {
        given.lock().unwrap().push(asked.body);
        async { Response::new(Full::new(Bytes::new())) }
    };
    let (client, server) = duplex(64 * 1024);
    let lane = run(
        server,
        BOUNDS,
        Target(Some("/v1/x")),
        std::future::pending(),
        handle,
    );
    // What is handed over is dropped in there: whoever sends waits for the connection's end.
    let served = tokio::spawn(async { matches!(lane.await, Left::HandOver(..)) });
    send_all(client, wire, size).await;
    let handed_over = served.await.unwrap();
    let bodies = seen.lock().unwrap().clone();
    (bodies, handed_over)
}

/// Sends everything in pieces, takes whatever is answered, and half-closes.
async fn send_all(client: DuplexStream, wire: Vec<u8>, size: usize) {
    let (mut reader, mut writer) = tokio::io::split(client);
    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        let _ = reader.read_to_end(&mut answers).await;
    });
    for piece in wire.chunks(size) {
        if writer.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = writer.shutdown().await;
    drop(writer);
    reading.await.unwrap();
}

mod generated {
    use proptest::prelude::*;

    use super::*;

    /// Lines that have been used to make two servers disagree, and ordinary ones.
    const LINES: [&str; 22] = [
        "Host: h\r\n",
        "Content-Length: 3\r\n",
        "content-length: 0\r\n",
        "content-length: 003\r\n",
        "content-length: +3\r\n",
        "content-length: 3, 3\r\n",
        "content-length:3\r\n",
        "content-length: 3 \r\n",
        "content-length : 3\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "connection: close\r\n",
        "connection: keep-alive\r\n",
        "connection: content-length\r\n",
        "expect: 100-continue\r\n",
        "x: y\n",
        "x: y\r\n folded\r\n",
        "x: \0\r\n",
        "\r\n",
        ": no name\r\n",
    ];
    const FIRST_LINES: [&str; 6] = [
        "POST /v1/x HTTP/1.1\r\n",
        "POST /v1/x HTTP/1.1\n",
        "POST /v1/x HTTP/1.0\r\n",
        "POST  /v1/x HTTP/1.1\r\n",
        "GET /v1/x HTTP/1.1\r\n",
        "\r\nPOST /v1/x HTTP/1.1\r\n",
    ];
    const BODIES: [&str; 4] = ["", "abc", "0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"];

    fn message() -> impl Strategy<Value = String> {
        let first = prop_oneof![4 => Just(FIRST_LINES[0]), 1 => prop::sample::select(&FIRST_LINES[..])];
        let lines = prop::collection::vec(prop::sample::select(&LINES[..]), 0..4);
        (first, lines, prop::sample::select(&BODIES[..]))
            .prop_map(|(first, lines, body)| format!("{first}{}\r\n{body}", lines.concat()))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The lane reads no request otherwise than the general server would have, however the bytes are cut: what
        /// it takes is a beginning of what that one takes, and the rest is handed over or refused.
        #[test]
        fn the_lane_and_the_general_server_agree(messages in prop::collection::vec(message(), 1..4), size in 1_usize..200) {
            let wire = messages.concat().into_bytes();
            let general = block_on(bodies_of_hyper(wire.clone(), size));
            let (lane, handed_over) = block_on(bodies_of_lane(wire, size));
            prop_assert!(general.starts_with(&lane), "general {general:?}, lane {lane:?}");
            prop_assert!(handed_over || lane == general, "general {general:?}, lane {lane:?}");
        }
    }
}
