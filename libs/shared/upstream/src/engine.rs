//! HTTP/1.1 to one engine.
//!
//! ```text
//! send ──take──▶ idle? ──send──▶ answer's body ──its end──▶ put back
//!         │ none                      └──dropped before──▶ closed
//!         └──connect──▶ new
//! ```

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};

use crate::connect::connect;
use crate::framing::{Framing, Piece};
use crate::shelf::Shelves;
use crate::wire::{Head, Wire, WireError};
use crate::{ConnectOptions, Origin, SendError};

/// Idle connections and the means to open more. Cheap to clone.
#[derive(Clone)]
pub struct EngineClient {
    inner: Arc<Inner>,
}

struct Inner {
    origin: Origin,
    options: ConnectOptions,
    idle: Shelves<Wire>,
}

impl EngineClient {
    /// A client for one origin. Opens nothing yet.
    pub fn new(origin: Origin, options: ConnectOptions) -> Self {
        let idle = Shelves::new(options.idle_max_per_worker, options.idle_timeout);
        Self {
            inner: Arc::new(Inner {
                origin,
                options,
                idle,
            }),
        }
    }

    /// Where it connects to.
    pub fn origin(&self) -> &Origin {
        &self.inner.origin
    }

    /// Sends a request whose URI is a path and waits for the head of the answer.
    ///
    /// A reused connection that turns out to be dead before a byte of an answer came is replaced, once, by a new one:
    /// an HTTP server closes idle connections whenever it likes, and a request that met such a close was not begun.
    /// Cancel safe: dropping the future closes the connection.
    pub async fn send(&self, request: &Request<Bytes>) -> Result<Response<EngineBody>, SendError> {
        let host = &self.inner.origin.host_header;
        if let Some(mut wire) = self.take_live().await {
            // Pinned where it is made, here and below: awaited by value it would be copied into its place.
            let answer = pin!(wire.exchange(request, host)).await;
            match answer {
                Ok(head) => return Ok(self.with_body(head, wire)),
                Err(WireError::Broken { received: false, .. }) => {}
                Err(error) => return Err(SendError::from_wire(self.inner.origin.authority(), error)),
            }
        }
        // In a box: a request that finds a connection, as most do, carries no room for opening one.
        let opened = Box::pin(connect(&self.inner.origin, &self.inner.options)).await?;
        let mut wire = Wire::new(opened);
        let answer = pin!(wire.exchange(request, host)).await;
        match answer {
            Ok(head) => Ok(self.with_body(head, wire)),
            Err(error) => Err(SendError::from_wire(self.inner.origin.authority(), error)),
        }
    }

    /// Drops connections that have been idle for too long. Called from time to time by the owner.
    pub fn reap(&self) {
        self.inner.idle.reap();
    }

    /// Drops every idle connection.
    pub fn close_idle(&self) {
        self.inner.idle.clear();
    }

    /// How many connections are idle.
    pub fn idle_count(&self) -> usize {
        self.inner.idle.len()
    }

    async fn take_live(&self) -> Option<Wire> {
        while let Some(mut wire) = self.inner.idle.take() {
            if wire.is_quiet().await {
                return Some(wire);
            }
        }
        None
    }

    fn with_body(&self, head: Head, wire: Wire) -> Response<EngineBody> {
        let Head {
            response,
            framing,
            keep,
            first,
        } = head;
        let mut body = EngineBody {
            wire: Some(wire),
            framing,
            keep,
            is_broken: false,
            ready: Bytes::new(),
            home: self.inner.clone(),
        };
        body.ready = body.take(first);
        response.map(|()| body)
    }
}

/// The body of an engine's answer. Dropping it before its end closes the connection.
pub struct EngineBody {
    /// None once nothing more is to be read.
    wire: Option<Wire>,
    framing: Framing,
    keep: bool,
    /// The framing behind what was given last makes no sense.
    is_broken: bool,
    /// What came with the head and is not given yet.
    ready: Bytes,
    home: Arc<Inner>,
}

/// The connection broke in the middle of an answer, or the answer's framing did.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct EngineBodyError(#[source] io::Error);

impl EngineBody {
    /// Puts the connection back for the next request, if it is fit for one.
    fn finish(&mut self) {
        if let Some(wire) = self.wire.take()
            && self.keep
        {
            self.home.idle.put(wire);
        }
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, EngineBodyError>>> {
        self.wire = None;
        Poll::Ready(Some(Err(EngineBodyError(error))))
    }

    /// Takes note of what a read has brought.
    fn take(&mut self, piece: Piece) -> Bytes {
        self.is_broken = piece.is_broken;
        self.keep &= !piece.is_followed;
        if self.framing.is_end() && !piece.is_broken {
            self.finish();
        }
        piece.data
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = EngineBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EngineBodyError>>> {
        let this = self.get_mut();
        if !this.ready.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.ready)))));
        }
        loop {
            let Some(wire) = &mut this.wire else {
                return Poll::Ready(None);
            };
            if this.is_broken {
                return this.fail(io::Error::new(io::ErrorKind::InvalidData, "broken chunks"));
            }
            let framing = &mut this.framing;
            let piece = match wire.poll_read(cx, |read| (!read.is_empty()).then(|| Piece::of(framing, read)))
            {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(piece))) => piece,
                Poll::Ready(Ok(None)) if this.framing == Framing::UntilClose => {
                    this.wire = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(None)) => return this.fail(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Err(error)) => return this.fail(error),
            };
            let data = this.take(piece);
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.wire.is_none() && self.ready.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left + self.ready.len() as u64),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}
