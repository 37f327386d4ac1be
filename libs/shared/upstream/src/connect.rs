//! Opening a connection: name, TCP, and TLS where the origin asks for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Origin, SendError};

/// Bounds and keys of a connection.
#[derive(Clone)]
pub struct ConnectOptions {
    /// How long name look-up, TCP and TLS may take together.
    pub connect_timeout: Duration,
    /// How many idle connections one worker thread keeps.
    pub idle_max_per_worker: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// After how long an HTTP/2 connection is given up whose other end says nothing, not even to a ping.
    pub silence_timeout: Duration,
    /// What an `https` origin is checked against. Without it an `https` origin is refused.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            idle_max_per_worker: 1024,
            idle_timeout: Duration::from_secs(50),
            silence_timeout: Duration::from_secs(3),
            tls: None,
        }
    }
}

/// A connection, with TLS or without.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the event loop has seen nothing come since all was read. Asks the kernel nothing.
    pub(crate) fn is_quiet(&self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx).is_pending(),
            Self::Tls(tls) => tls.get_ref().0.poll_read_ready(cx).is_pending(),
        }
    }
}

pub(crate) async fn connect(origin: &Origin, options: &ConnectOptions) -> Result<Stream, SendError> {
    let to = || origin.authority().to_owned();
    match tokio::time::timeout(options.connect_timeout, open(origin, options)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(SendError::Connect { to: to(), source }),
        Err(_) => Err(SendError::ConnectTimeout {
            to: to(),
            after: options.connect_timeout,
        }),
    }
}

async fn open(origin: &Origin, options: &ConnectOptions) -> io::Result<Stream> {
    let tcp = TcpStream::connect((&*origin.host, origin.port)).await?;
    tcp.set_nodelay(true)?;
    if !origin.tls {
        return Ok(Stream::Plain(tcp));
    }
    let config = options
        .tls
        .clone()
        .ok_or_else(|| io::Error::other("no TLS settings for an https address"))?;
    let name = ServerName::try_from(origin.host.to_string()).map_err(io::Error::other)?;
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(Stream::Tls(Box::new(tls)))
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }
}
