//! The fast lane: HTTP/1.1 for requests of the ordinary kind, close to the socket.
//!
//! ```text
//! head ──ordinary──▶ body ──▶ handler ──▶ answer ──▶ next head
//!   └─ anything else ──▶ handed over, with all that was read, to the general server
//! ```
//!
//! Ordinary is a POST to a path that the caller names, HTTP/1.1, with one `Content-Length` of moderate size. All the
//! rest of HTTP is somebody else's: the connection is handed over for good, and nothing of it is lost.
//!
//! Invariants:
//! - Nothing is buffered of a connection on which nothing comes: what is read goes through the stack into pieces of its
//!   own size, what is written is gone when it was written. Ten thousand waiting streams are what this is made for.
//! - The handler, or its answer's body, is dropped in the instant in which the client is seen to have gone.
//! - A slow reader slows its own stream: no more of the body is asked for before what was given is written.
//!
//! Follows RFC 9112. A client that half-closes counts as gone, as with hyper.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How much is read at once.
const READ_LEN_MAX: usize = 16 * 1024;
/// The longest head of the ordinary kind.
const HEAD_LEN_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 100;
/// How much of an answer is gathered before it is written.
const WRITE_LEN_MAX: usize = 32 * 1024;
/// How much a client may send ahead of its answer before it is not listened to any more.
const AHEAD_LEN_MAX: usize = 64 * 1024;

/// What a client may take and send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The longest body of the ordinary kind.
    pub(crate) body_len_max: usize,
    /// From one request to the next.
    pub(crate) idle: Duration,
    /// From the first byte of a request to the last of its head.
    pub(crate) head: Duration,
    /// From there to the last of its body.
    pub(crate) body: Duration,
}

/// What of HTTP belongs into the lane.
pub(crate) trait Ordinary {
    /// What a target is to the handler.
    type Kind;

    /// None: the general server's.
    fn kind(&self, target: &str) -> Option<Self::Kind>;

    /// The headers that the handler reads; it gets no others.
    fn headers(&self) -> &Known;
}

/// The names of headers that are read, by the handler or for the framing, each list by the length of its names: most of
/// what clients send is passed over after one look.
pub(crate) struct Known {
    by_length: Vec<Vec<HeaderName>>,
}

impl Known {
    /// The framing's names, and these.
    pub(crate) fn new(names: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut by_length: Vec<Vec<HeaderName>> = Vec::new();
        for name in FRAMING.iter().cloned().chain(names) {
            let length = name.as_str().len();
            by_length.resize_with(by_length.len().max(length + 1), Vec::new);
            by_length[length].push(name);
        }
        Self { by_length }
    }

    fn find(&self, name: &str) -> Option<&HeaderName> {
        let candidates = self.by_length.get(name.len())?;
        candidates
            .iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(name))
    }
}

/// A request of the ordinary kind.
pub(crate) struct Asked<K> {
    pub(crate) kind: K,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How a connection left the lane.
pub(crate) enum Left<S> {
    /// It is over.
    Closed,
    /// What comes next is not of the ordinary kind. The bytes were read and not used.
    HandOver(S, Bytes),
}

/// Serves requests of the ordinary kind until there comes another, the client goes, or `stopped` says that there shall
/// be no more.
pub(crate) async fn run<S, O, H, F, B>(
    stream: S,
    bounds: Bounds,
    ordinary: O,
    stopped: impl Future<Output = ()>,
    mut handle: H,
) -> Left<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
    O: Ordinary,
    H: FnMut(Asked<O::Kind>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    let mut stopped = pin!(stopped);
    let mut lane = Lane {
        stream,
        rest: Bytes::new(),
        timer: Timer::new(bounds.idle),
    };
    loop {
        let head = match lane.head(bounds, &ordinary, stopped.as_mut()).await {
            Next::Head(head) => head,
            Next::Unusual => return Left::HandOver(lane.stream, lane.rest),
            Next::Over => return Left::Closed,
        };
        let Some(body) = lane.body(head.body_len, bounds.body).await else {
            return Left::Closed;
        };
        let Head {
            kind, headers, close, ..
        } = head;
        // In a box, so that a stream does not keep the room that its beginning needed.
        // The box comes first: the other way round all of that room is copied into it.
        let work = Box::new_uninit();
        let mut work = Box::into_pin(Box::write(work, handle(Asked { kind, headers, body })));
        let response = std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending if lane.poll_gone(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        drop(work);
        let Some(response) = response else {
            return Left::Closed;
        };
        if lane.answer(response, close).await.is_err() || close {
            return Left::Closed;
        }
    }
}

struct Lane<S> {
    stream: S,
    /// What was read and not used.
    rest: Bytes,
    timer: Timer,
}

enum Next<K> {
    Head(Head<K>),
    Unusual,
    Over,
}

struct Head<K> {
    kind: K,
    headers: HeaderMap,
    body_len: usize,
    /// The client wants no further request on this connection.
    close: bool,
}

/// A body that cannot go on, or a client that has gone.
struct Broken;

impl<S: AsyncRead + AsyncWrite + Unpin> Lane<S> {
    async fn head<O: Ordinary>(
        &mut self,
        bounds: Bounds,
        ordinary: &O,
        mut stopped: Pin<&mut impl Future<Output = ()>>,
    ) -> Next<O::Kind> {
        self.timer.set(bounds.idle);
        let mut begun = false;
        loop {
            if !self.rest.is_empty() {
                match parse_head(&self.rest, bounds.body_len_max, ordinary) {
                    Parsed::Ordinary(head, length) => {
                        let _used = self.rest.split_to(length);
                        return Next::Head(head);
                    }
                    Parsed::Partial if self.rest.len() <= HEAD_LEN_MAX => {}
                    Parsed::Partial | Parsed::Unusual => return Next::Unusual,
                }
                if !begun {
                    begun = true;
                    self.timer.set(bounds.head);
                }
            }
            let read = std::future::poll_fn(|cx| {
                if let Poll::Ready(read) = self.poll_read(cx) {
                    return Poll::Ready(read.ok().filter(|more| !more.is_empty()));
                }
                if self.timer.poll(cx).is_ready() || (!begun && stopped.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(None);
                }
                Poll::Pending
            });
            match read.await {
                Some(more) => self.rest = join(&self.rest, more),
                None => return Next::Over,
            }
        }
    }

    /// None: the client has gone, or takes too long.
    async fn body(&mut self, length: usize, patience: Duration) -> Option<Bytes> {
        if self.rest.len() >= length {
            return Some(self.rest.split_to(length));
        }
        self.timer.set(patience);
        let mut whole = Vec::with_capacity(length);
        whole.extend_from_slice(&self.rest);
        self.rest = Bytes::new();
        while whole.len() < length {
            let more = std::future::poll_fn(|cx| {
                if let Poll::Ready(read) = self.poll_read(cx) {
                    return Poll::Ready(read.ok().filter(|more| !more.is_empty()));
                }
                self.timer.poll(cx).map(|()| None)
            });
            let mut more = more.await?;
            let here = more.split_to(more.len().min(length - whole.len()));
            whole.extend_from_slice(&here);
            self.rest = more;
        }
        Some(whole.into())
    }

    async fn answer<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        response: Response<B>,
        close: bool,
    ) -> Result<(), Broken> {
        let (head, mut body) = response.into_parts();
        let length = body.size_hint().exact();
        let mut out = Out {
            bytes: Vec::with_capacity(1024),
            written: 0,
        };
        write_head(&mut out.bytes, &head, length, close);
        let mut is_end = body.is_end_stream();
        if is_end && length.is_none() {
            out.bytes.extend_from_slice(LAST_CHUNK);
        }
        let mut is_broken = false;
        let mut turn = Turn::Free;
        std::future::poll_fn(|cx| {
            loop {
                let mut waits = false;
                while !is_end && !is_broken && out.bytes.len() < WRITE_LEN_MAX {
                    match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            let Ok(data) = frame.into_data() else { continue };
                            out.put(&data, length.is_none());
                            is_end = length.is_some() && body.is_end_stream();
                            if turn == Turn::Behind {
                                turn = Turn::Given;
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                        }
                        Poll::Ready(Some(Err(_))) => is_broken = true,
                        Poll::Ready(None) => {
                            is_end = true;
                            if length.is_none() {
                                out.bytes.extend_from_slice(LAST_CHUNK);
                            }
                        }
                        Poll::Pending => {
                            waits = true;
                            break;
                        }
                    }
                }
                match out.poll_write(&mut self.stream, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken)),
                    Poll::Pending => return Poll::Pending,
                }
                turn = Turn::Behind;
                if is_broken {
                    return Poll::Ready(Err(Broken));
                }
                if is_end {
                    return Poll::Ready(Ok(()));
                }
                if waits {
                    return if self.poll_gone(cx) {
                        Poll::Ready(Err(Broken))
                    } else {
                        Poll::Pending
                    };
                }
            }
        })
        .await
    }

    /// What comes next; nothing at the end of the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut space = [const { MaybeUninit::uninit() }; READ_LEN_MAX];
        let mut buffer = ReadBuf::uninit(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled()))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the client has gone. What it sends ahead is kept.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        while self.rest.len() < AHEAD_LEN_MAX {
            match self.poll_read(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(more)) if !more.is_empty() => self.rest = join(&self.rest, more),
                Poll::Ready(_) => return true,
            }
        }
        false
    }
}

/// When the next piece of a stream is written. The first goes out at once; those that follow let everything else go first
/// that is ready, so that a busy worker reads all that has come and then writes it all: whoever reads several of these
/// streams is woken once and not for each piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// At once.
    Free,
    /// After the others.
    Behind,
    /// The others have been.
    Given,
}

fn join(left: &Bytes, more: Bytes) -> Bytes {
    if left.is_empty() {
        more
    } else {
        [left.as_ref(), &more].concat().into()
    }
}

/// What is to be written.
struct Out {
    bytes: Vec<u8>,
    written: usize,
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl Out {
    /// Room above this is given back when everything is written.
    const KEPT_LEN_MAX: usize = 2048;

    fn put(&mut self, data: &[u8], as_chunk: bool) {
        if data.is_empty() {
            // An empty chunk would end the body.
            return;
        }
        if as_chunk {
            let mut space = [0; 18];
            self.bytes
                .extend_from_slice(chunk_size_line(data.len(), &mut space));
        }
        self.bytes.extend_from_slice(data);
        if as_chunk {
            self.bytes.extend_from_slice(b"\r\n");
        }
    }

    fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => self.written += length,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // TLS holds back what it was given until it is told.
        if let Poll::Ready(Err(error)) = Pin::new(stream).poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        self.written = 0;
        self.bytes.clear();
        self.bytes.shrink_to(Self::KEPT_LEN_MAX);
        Poll::Ready(Ok(()))
    }
}

/// One timer for a whole connection: it is moved only to be earlier, and looks again when it fires.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    due: Instant,
}

impl Timer {
    fn new(bound: Duration) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep(bound)),
            due: Instant::now() + bound,
        }
    }

    fn set(&mut self, bound: Duration) {
        self.due = Instant::now() + bound;
        if self.sleep.deadline() > self.due {
            self.sleep.as_mut().reset(self.due);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            if self.due <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.due);
        }
        Poll::Pending
    }
}

enum Parsed<K> {
    Ordinary(Head<K>, usize),
    Partial,
    Unusual,
}

fn parse_head<O: Ordinary>(bytes: &Bytes, body_len_max: usize, ordinary: &O) -> Parsed<O::Kind> {
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, &mut space) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Unusual,
    };
    if has_bare_line_feed(&bytes[..length]) {
        return Parsed::Unusual;
    }
    if parsed.method != Some("POST") || parsed.version != Some(1) {
        return Parsed::Unusual;
    }
    let Some(kind) = ordinary.kind(parsed.path.unwrap_or_default()) else {
        return Parsed::Unusual;
    };
    let mut framing = Framing::default();
    let mut headers = HeaderMap::new();
    for header in parsed.headers.iter() {
        let Some(name) = ordinary.headers().find(header.name) else {
            continue;
        };
        match framing.read(name, header.value) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(Unusual) => return Parsed::Unusual,
        }
        let Ok(value) = HeaderValue::from_maybe_shared(bytes.slice_ref(header.value)) else {
            return Parsed::Unusual;
        };
        headers.append(name.clone(), value);
    }
    match framing.body_len {
        Some(body_len) if body_len <= body_len_max => {
            let close = framing.close.unwrap_or(false);
            Parsed::Ordinary(
                Head {
                    kind,
                    headers,
                    body_len,
                    close,
                },
                length,
            )
        }
        _ => Parsed::Unusual,
    }
}

/// Lines may end so, but somebody before us may have read it in another way.
fn has_bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// What the headers say of a request's end.
#[derive(Default)]
struct Framing {
    body_len: Option<usize>,
    /// Whether the connection ends after the answer.
    close: Option<bool>,
}

/// The headers that [`Framing::read`] knows.
static FRAMING: [HeaderName; 5] = [CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING, EXPECT, UPGRADE];

/// The headers ask for something that is not ordinary.
struct Unusual;

impl Framing {
    /// Whether the header was one of its own.
    fn read(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, Unusual> {
        if name == CONTENT_LENGTH {
            let is_number = (1..=8).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            if self.body_len.is_some() || !is_number {
                return Err(Unusual);
            }
            let digits = value.iter().map(|digit| usize::from(digit - b'0'));
            self.body_len = Some(digits.fold(0, |sum, digit| sum * 10 + digit));
        } else if name == CONNECTION {
            let close = value.eq_ignore_ascii_case(b"close");
            if self.close.is_some() || !(close || value.eq_ignore_ascii_case(b"keep-alive")) {
                return Err(Unusual);
            }
            self.close = Some(close);
        } else if FRAMING.contains(name) {
            return Err(Unusual);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

fn write_head(out: &mut Vec<u8>, head: &http::response::Parts, length: Option<u64>, close: bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        // The framing is ours.
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING && name != CONNECTION {
            write_header(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match length {
        Some(length) => write_header(out, b"content-length", decimal(length, &mut [0; 20])),
        None => write_header(out, b"transfer-encoding", b"chunked"),
    }
    if close {
        write_header(out, b"connection", b"close");
    }
    if !head.headers.keys().any(|name| *name == DATE) {
        DATE_LINE.with_borrow_mut(|line| out.extend_from_slice(line.now().as_bytes()));
    }
    out.extend_from_slice(b"\r\n");
}

fn write_header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

thread_local! {
    static DATE_LINE: RefCell<DateLine> = const { RefCell::new(DateLine { second: 0, line: String::new() }) };
}

/// The `date` header, made once a second.
struct DateLine {
    second: u64,
    line: String,
}

impl DateLine {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        let second = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if second != self.second || self.line.is_empty() {
            self.second = second;
            self.line = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
        &self.line
    }
}

/// The digits of a number, without the machinery of `format!`.
fn decimal(mut number: u64, space: &mut [u8; 20]) -> &[u8] {
    let mut at = space.len();
    loop {
        at -= 1;
        space[at] = b"0123456789"[(number % 10) as usize];
        number /= 10;
        if number == 0 {
            return &space[at..];
        }
    }
}

/// The line before a chunk.
fn chunk_size_line(mut length: usize, space: &mut [u8; 18]) -> &[u8] {
    let mut at = space.len() - 2;
    space[at..].copy_from_slice(b"\r\n");
    loop {
        at -= 1;
        space[at] = b"0123456789abcdef"[length % 16];
        length /= 16;
        if length == 0 {
            return &space[at..];
        }
    }
}

#[cfg(test)]
mod tests;
