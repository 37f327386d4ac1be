//! One HTTP/1.1 connection to an engine, close to the socket.
//!
//! A request goes out in one write. What comes in is read through a buffer on the stack and kept in pieces of exactly
//! its size, so a connection on which nothing comes holds no buffer at all: ten thousand waiting streams are the case
//! that this is made for.
//!
//! Follows RFC 9112. Interim answers (1xx) are skipped, trailers are dropped, and anything that could be read in two
//! ways (two lengths, a length beside chunks) is refused.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use crate::connect::Stream;
use crate::framing::{Framing, Piece};

/// The longest head of an answer.
const HEAD_LEN_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
/// How much is read at once.
const READ_LEN_MAX: usize = 16 * 1024;
/// A body up to this length goes out together with its head.
const BODY_LEN_JOINED_MAX: usize = 64 * 1024;

/// Why an exchange came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The connection ended or broke. `received`: after a part of the answer.
    #[error("the connection broke")]
    Broken {
        received: bool,
        #[source]
        source: io::Error,
    },
    /// What came is no HTTP.
    #[error("not HTTP: {0}")]
    Garbage(&'static str),
}

/// The connection.
pub(crate) struct Wire {
    stream: Stream,
}

/// The head of an answer, and what came with it.
pub(crate) struct Head {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// The connection may be used again after the body.
    pub(crate) keep: bool,
    /// The beginning of the body.
    pub(crate) first: Piece,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// Whether nothing has come on an idle connection. What has come can only be its end.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            if self.stream.is_quiet(cx) {
                return Poll::Ready(true);
            }
            let mut space = [MaybeUninit::uninit(); 1];
            Poll::Ready(
                Pin::new(&mut self.stream)
                    .poll_read(cx, &mut ReadBuf::uninit(&mut space))
                    .is_pending(),
            )
        })
        .await
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn exchange(
        &mut self,
        request: &Request<Bytes>,
        host: &HeaderValue,
    ) -> Result<Head, WireError> {
        let sent = self.send(request, host).await;
        match self.read_head(request.method()).await {
            // An engine may answer before it has read everything; then its answer counts, and nothing after it.
            Ok(head) => Ok(Head {
                keep: head.keep && sent.is_ok(),
                ..head
            }),
            Err(error) => match (sent, error) {
                (Err(source), WireError::Broken { received: false, .. }) => Err(WireError::Broken {
                    received: false,
                    source,
                }),
                (_, error) => Err(error),
            },
        }
    }

    async fn send(&mut self, request: &Request<Bytes>, host: &HeaderValue) -> io::Result<()> {
        let body = request.body();
        let joined = body.len() <= BODY_LEN_JOINED_MAX;
        let mut out = Vec::with_capacity(1024 + if joined { body.len() } else { 0 });
        write_head(&mut out, request, host);
        if joined {
            out.extend_from_slice(body);
        }
        after_the_ready().await;
        self.stream.write_all(&out).await?;
        if !joined {
            self.stream.write_all(body).await?;
        }
        // TLS holds back what it was given until it is told.
        self.stream.flush().await
    }

    async fn read_head(&mut self, method: &Method) -> Result<Head, WireError> {
        // Holds something only of a head that did not come in one read.
        let mut begun: Vec<u8> = Vec::new();
        loop {
            let received = !begun.is_empty();
            let look = |cx: &mut Context<'_>| {
                self.poll_read(cx, |read| {
                    if read.is_empty() {
                        return Err(WireError::Broken {
                            received,
                            source: io::ErrorKind::UnexpectedEof.into(),
                        });
                    }
                    if received {
                        begun.extend_from_slice(read);
                        return final_head(&begun, method);
                    }
                    let head = final_head(read, method)?;
                    if head.is_none() {
                        begun.extend_from_slice(read);
                    }
                    Ok(head)
                })
            };
            match std::future::poll_fn(look).await {
                Ok(Ok(Some(head))) => return Ok(head),
                Ok(Ok(None)) if begun.len() > HEAD_LEN_MAX => {
                    return Err(WireError::Garbage("the head does not end"));
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(source) => return Err(WireError::Broken { received, source }),
            }
        }
    }

    /// Shows `look` what comes next; nothing at the end of the connection.
    pub(crate) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        let mut space = [const { MaybeUninit::uninit() }; READ_LEN_MAX];
        let mut buffer = ReadBuf::uninit(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(look(buffer.filled()))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Lets everything go first that can go on at once. What a busy thread sends, it then sends in one go: the other side is
/// woken once and not for each message, which is worth a tenth of the thread's time.
async fn after_the_ready() {
    let mut has_waited = false;
    std::future::poll_fn(|cx| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn write_head(out: &mut Vec<u8>, request: &Request<Bytes>, host: &HeaderValue) {
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let headers = request.headers();
    // Among few, a look at each costs less than hashing the name.
    let says = |name: HeaderName| headers.keys().any(|said| *said == name);
    if !says(HOST) {
        write_header(out, b"host", host.as_bytes());
    }
    // What every request to an engine says, unless it says otherwise itself.
    if !says(ACCEPT_ENCODING) {
        out.extend_from_slice(b"accept-encoding: identity\r\n");
    }
    if !request.body().is_empty() && !says(CONTENT_TYPE) {
        out.extend_from_slice(b"content-type: application/json\r\n");
    }
    for (name, value) in headers {
        // The framing is ours.
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING && name != CONNECTION {
            write_header(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if !request.body().is_empty() || matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        write_header(
            out,
            b"content-length",
            decimal(request.body().len(), &mut [0; 20]),
        );
    }
    out.extend_from_slice(b"\r\n");
}

fn write_header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The digits of a number, without the machinery of `format!`.
fn decimal(mut number: usize, space: &mut [u8; 20]) -> &[u8] {
    let mut at = space.len();
    loop {
        at -= 1;
        space[at] = b'0' + u8::try_from(number % 10).expect("a remainder of ten is one digit");
        number /= 10;
        if number == 0 {
            return &space[at..];
        }
    }
}

/// The head of the answer, behind the interim ones. None: there is more to come.
fn final_head(mut bytes: &[u8], method: &Method) -> Result<Option<Head>, WireError> {
    while !bytes.is_empty() {
        let Some((mut head, length)) = parse_head(bytes, method)? else {
            break;
        };
        bytes = &bytes[length..];
        if !head.response.status().is_informational() {
            head.first = Piece::of(&mut head.framing, bytes);
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// The head at the beginning of `bytes`, and how long it is. None: there is more to come.
fn parse_head(bytes: &[u8], method: &Method) -> Result<Option<(Head, usize)>, WireError> {
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut space) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(WireError::Garbage("the head cannot be read")),
    };
    let code = parsed.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| WireError::Garbage("the status makes no sense"))?;
    let is_old = parsed.version == Some(0);
    let framing = framing(status, method, parsed.headers)?;
    let asks = |word: &str| all(parsed.headers, CONNECTION).any(|value| has_word(value, word));
    let keep = framing != Framing::UntilClose && !asks("close") && (!is_old || asks("keep-alive"));
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if is_old {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    *response.headers_mut() = kept(parsed.headers)?;
    Ok(Some((
        Head {
            response,
            framing,
            keep,
            first: Piece::of(&mut Framing::Length(0), &[]),
        },
        length,
    )))
}

/// How long the body is (RFC 9112, section 6.3).
fn framing(
    status: StatusCode,
    method: &Method,
    headers: &[httparse::Header<'_>],
) -> Result<Framing, WireError> {
    let none = status.is_informational() || matches!(status.as_u16(), 204 | 304) || method == Method::HEAD;
    if none {
        return Ok(Framing::Length(0));
    }
    let mut lengths = all(headers, CONTENT_LENGTH);
    let mut codings = all(headers, TRANSFER_ENCODING);
    if let Some(coding) = codings.next() {
        if !coding.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(WireError::Garbage("a transfer coding that was not asked for"));
        }
        if lengths.next().is_some() {
            return Err(WireError::Garbage("a length beside chunks"));
        }
        return Ok(Framing::chunked());
    }
    let Some(first) = lengths.next() else {
        return Ok(Framing::UntilClose);
    };
    if lengths.any(|other| other != first) {
        return Err(WireError::Garbage("two lengths"));
    }
    let digits = std::str::from_utf8(first)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse::<u64>().ok());
    length
        .map(Framing::Length)
        .ok_or(WireError::Garbage("a length that is no number"))
}

/// The values of one header.
fn all<'h>(headers: &'h [httparse::Header<'_>], name: HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name.as_str()))
        .map(|header| header.value)
}

/// What of an engine's head goes on to whoever asked. Everything else (its server, its date, whom its browser pages may
/// be read by) is between the engine and us.
fn kept(headers: &[httparse::Header<'_>]) -> Result<HeaderMap, WireError> {
    let mut kept = HeaderMap::new();
    for name in [CONTENT_TYPE, RETRY_AFTER] {
        if let Some(value) = all(headers, name.clone()).next() {
            let value = match value {
                // The two that nearly every answer has cost no copy.
                b"application/json" => const { HeaderValue::from_static("application/json") },
                b"text/event-stream" => const { HeaderValue::from_static("text/event-stream") },
                other => HeaderValue::from_bytes(other)
                    .map_err(|_| WireError::Garbage("a header makes no sense"))?,
            };
            kept.insert(name, value);
        }
    }
    Ok(kept)
}

fn has_word(value: &[u8], word: &str) -> bool {
    let mut words = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    words.any(|found| found.eq_ignore_ascii_case(word.as_bytes()))
}
