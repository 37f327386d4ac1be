//! Requests as they come in.

use std::io;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::chunked;

/// The longest request, head and body.
const REQUEST_BYTES_MAX: usize = 72 * 1024 * 1024;
const HEADERS_MAX: usize = 96;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Health,
    Models,
    Props,
    Slots,
    Chat,
    Completions,
    Embeddings,
    /// What tests ask.
    Stats,
    /// What tests set.
    Behaviour,
    Unknown,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) endpoint: Endpoint,
    /// Whether the connection ends after the answer.
    pub(crate) close: bool,
    /// The `x-fake` header.
    pub(crate) words: Option<Vec<u8>>,
    pub(crate) body: Vec<u8>,
}

/// What matters of a body.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Asked {
    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage)
    }
}

/// What has come in on a connection and is not used yet.
#[derive(Debug, Default)]
pub(crate) struct Input {
    buffer: Vec<u8>,
}

/// How a body's end is found.
#[derive(Clone, Copy, Debug)]
enum BodyLength {
    Bytes(usize),
    Chunked,
}

struct Head {
    request: Request,
    length: BodyLength,
    bytes: usize,
    expects_continue: bool,
}

impl Input {
    /// The next request. None: the client has closed the connection between two requests.
    pub(crate) async fn next(&mut self, stream: &mut TcpStream) -> io::Result<Option<Request>> {
        let mut head = loop {
            if let Some(head) = parse_head(&self.buffer)? {
                break head;
            }
            if self.fill(stream).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        };
        self.buffer.drain(..head.bytes);
        if head.expects_continue {
            tokio::io::AsyncWriteExt::write_all(stream, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        head.request.body = match head.length {
            BodyLength::Bytes(length) => self.body(stream, length).await?,
            BodyLength::Chunked => self.chunked_body(stream).await?,
        };
        Ok(Some(head.request))
    }

    /// Returns when the client has gone away. What it sends meanwhile is kept for later.
    pub(crate) async fn client_gone(&mut self, stream: &TcpStream) {
        loop {
            if stream.readable().await.is_err() {
                return;
            }
            match stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return,
                // A client that sends so much ahead of its answer is not watched any further.
                Ok(_) if self.buffer.len() > REQUEST_BYTES_MAX => std::future::pending().await,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    async fn body(&mut self, stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if self.fill(stream).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn chunked_body(&mut self, stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut decoder = chunked::Decoder::default();
        let mut body = Vec::new();
        loop {
            let used = decoder
                .decode(&self.buffer, |bytes| body.extend_from_slice(bytes))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.buffer.drain(..used);
            if decoder.is_done() {
                return Ok(body);
            }
            if body.len() > REQUEST_BYTES_MAX || self.fill(stream).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn fill(&mut self, stream: &mut TcpStream) -> io::Result<usize> {
        if self.buffer.len() > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.buffer.reserve(2048);
        stream.read_buf(&mut self.buffer).await
    }
}

fn parse_head(buffer: &[u8]) -> io::Result<Option<Head>> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let bytes = match parsed.parse(buffer).map_err(invalid)? {
        httparse::Status::Complete(bytes) => bytes,
        httparse::Status::Partial => return Ok(None),
    };
    let mut request = Request {
        endpoint: endpoint(parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default()),
        close: parsed.version == Some(0),
        words: None,
        body: Vec::new(),
    };
    let mut length = BodyLength::Bytes(0);
    let mut expects_continue = false;
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value)
                .ok()
                .and_then(|text| text.trim().parse::<usize>().ok());
            match value {
                Some(value) if value <= REQUEST_BYTES_MAX => length = BodyLength::Bytes(value),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            length = BodyLength::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") {
            request.close |= header.value.eq_ignore_ascii_case(b"close");
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = true;
        } else if header.name.eq_ignore_ascii_case("x-fake") {
            request.words = Some(header.value.to_vec());
        }
    }
    Ok(Some(Head {
        request,
        length,
        bytes,
        expects_continue,
    }))
}

fn endpoint(method: &str, target: &str) -> Endpoint {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match (method, path) {
        ("POST", "/v1/chat/completions") => Endpoint::Chat,
        ("POST", "/v1/completions") => Endpoint::Completions,
        ("POST", "/v1/embeddings") => Endpoint::Embeddings,
        ("GET" | "HEAD", "/health") => Endpoint::Health,
        ("GET", "/v1/models") => Endpoint::Models,
        ("GET", "/props") => Endpoint::Props,
        ("GET", "/slots") => Endpoint::Slots,
        ("GET", "/fake/stats") => Endpoint::Stats,
        ("POST", "/fake/behaviour") => Endpoint::Behaviour,
        _ => Endpoint::Unknown,
    }
}
