//! A connection to a gateway, close to the wire: what the load generator costs is taken from what it measures.
//!
//! One request at a time; the connection stays open between them and is opened anew when the server has closed it.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use fake_engine::chunked;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// More than this much of a head is no head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;

/// Whom to ask, and with which key.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

impl Target {
    /// A whole request.
    pub(crate) fn request(&self, method: &str, path: &str, accept: &str, body: &[u8]) -> Vec<u8> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\naccept: {accept}\r\n\
             user-agent: loadgen\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            self.key,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Bytes(u64),
    Chunked(chunked::Decoder),
    UntilEnd,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: usize,
    status: u16,
    framing: Framing,
    close: bool,
}

/// A connection, open or not yet.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(target: &Target) -> Self {
        Self {
            address: target.address,
            stream: None,
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn connect(&mut self) -> Result<()> {
        let stream = TcpStream::connect(self.address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        self.buffer.clear();
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends `request`, gives each piece of the answer's body to `take` as it comes, and returns the status.
    ///
    /// `take` says whether to read on. When it says no, the connection stays open with the answer unread, and the next
    /// request opens another: that is how a stream is held.
    pub(crate) async fn ask(&mut self, request: &[u8], mut take: impl FnMut(&[u8]) -> bool) -> Result<u16> {
        let was_open = self.stream.is_some();
        match self.send_and_read_head(request).await {
            // A server may close an idle connection at any time; then nothing of the request was answered.
            Err(_) if was_open => {
                self.stream = None;
                self.buffer.clear();
            }
            Err(error) => {
                self.stream = None;
                return Err(error);
            }
            Ok(head) => return self.read_body(head, &mut take).await,
        }
        let head = self
            .send_and_read_head(request)
            .await
            .inspect_err(|_| self.stream = None)?;
        self.read_body(head, &mut take).await
    }

    async fn send_and_read_head(&mut self, request: &[u8]) -> Result<Head> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let stream = self.stream.as_mut().expect("opened above");
        stream.write_all(request).await.context("cannot send")?;
        loop {
            if let Some(head) = parse_head(&self.buffer)? {
                return Ok(head);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                bail!("the head of the answer does not end");
            }
            self.buffer.reserve(4096);
            if stream.read_buf(&mut self.buffer).await.context("cannot read")? == 0 {
                bail!("the connection ended before the answer");
            }
        }
    }

    async fn read_body(&mut self, mut head: Head, take: &mut impl FnMut(&[u8]) -> bool) -> Result<u16> {
        let stream = self.stream.as_mut().context("no connection")?;
        self.buffer.drain(..head.bytes);
        loop {
            let mut wants_more = true;
            let used = match &mut head.framing {
                Framing::Bytes(left) => {
                    let here = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(self.buffer.len());
                    wants_more = take(&self.buffer[..here]);
                    *left -= here as u64;
                    here
                }
                Framing::Chunked(decoder) => {
                    decoder
                        .decode(&self.buffer, |bytes| wants_more &= take(bytes))
                        .inspect_err(|_| {
                            // Nothing after a broken body can be understood.
                            self.buffer.clear();
                        })?
                }
                Framing::UntilEnd => {
                    wants_more = take(&self.buffer);
                    self.buffer.len()
                }
            };
            self.buffer.drain(..used);
            if !wants_more {
                return Ok(head.status);
            }
            let is_done = match &head.framing {
                Framing::Bytes(left) => *left == 0,
                Framing::Chunked(decoder) => decoder.is_done(),
                Framing::UntilEnd => false,
            };
            if is_done {
                if head.close {
                    self.stream = None;
                }
                return Ok(head.status);
            }
            self.buffer.reserve(4096);
            if stream.read_buf(&mut self.buffer).await.context("cannot read")? == 0 {
                self.stream = None;
                if matches!(head.framing, Framing::UntilEnd) {
                    return Ok(head.status);
                }
                bail!("the connection ended within the answer");
            }
        }
    }

    /// Gives the memory of the buffer back; for connections that are held by the thousand.
    pub(crate) fn shrink(&mut self) {
        self.buffer = Vec::new();
    }
}

fn parse_head(buffer: &[u8]) -> Result<Option<Head>> {
    if buffer.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(bytes) = parsed.parse(buffer).context("the answer is not HTTP")? else {
        return Ok(None);
    };
    let status = parsed.code.unwrap_or_default();
    let mut head = Head {
        bytes,
        status,
        framing: Framing::UntilEnd,
        close: parsed.version == Some(0),
    };
    if status == 204 || status == 304 {
        head.framing = Framing::Bytes(0);
    }
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value)?.trim().parse()?;
            head.framing = Framing::Bytes(length);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.framing = Framing::Chunked(chunked::Decoder::default());
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.close |= header.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Some(head))
}
