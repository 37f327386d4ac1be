//! The ends of a channel, as streams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Shared;

/// What something in a sandbox writes: standard output, standard error, an archive.
///
/// Dropping it tells init that nobody reads any more, as closing a pipe does.
#[derive(Debug)]
pub struct ByteReader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) channel: u32,
}

/// What something in a sandbox reads: standard input, an archive.
///
/// Shutting it down, or dropping it, tells that there is no more, as closing a pipe does.
#[derive(Debug)]
pub struct ByteWriter {
    pub(crate) shared: Arc<Shared>,
    pub(crate) channel: u32,
}

/// A connection that a program in a sandbox has opened to the proxy.
#[derive(Debug)]
pub struct ConnectionStream {
    entrance: u16,
    reader: ByteReader,
    writer: ByteWriter,
}

impl ConnectionStream {
    pub(crate) fn new(shared: Arc<Shared>, channel: u32, entrance: u16) -> Self {
        Self {
            entrance,
            reader: ByteReader {
                shared: Arc::clone(&shared),
                channel,
            },
            writer: ByteWriter { shared, channel },
        }
    }

    /// The entrance of the proxy at which it was opened: see [`crate::entrance_address`].
    pub fn entrance(&self) -> u16 {
        self.entrance
    }
}

impl AsyncRead for ByteReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.poll_read(self.channel, context, buffer)
    }
}

impl Drop for ByteReader {
    fn drop(&mut self) {
        self.shared.drop_reader(self.channel);
    }
}

impl AsyncWrite for ByteWriter {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.poll_write(self.channel, context, bytes)
    }

    /// What was written is on its way without this.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.finish(self.channel);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ByteWriter {
    fn drop(&mut self) {
        self.shared.drop_writer(self.channel);
    }
}

impl AsyncRead for ConnectionStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for ConnectionStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
