//! HTTP/1.1 to one engine.
//!
//! ```text
//! send ──take──▶ idle? ──send──▶ answer's body ──its end──▶ put back
//!         │ none                      └──dropped before──▶ closed
//!         └──connect──▶ new
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::connect::{Stream, connect};
use crate::shelf::Shelves;
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

/// One connection: the half that takes requests and the half that does the work when polled.
struct Wire {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once the connection has ended. A driver that has ended must be dropped, because it holds the other end of
    /// the channels by which the sender and the body learn of the end.
    driver: Option<Driver>,
}

type Driver = Pin<Box<http1::Connection<TokioIo<Stream>, Full<Bytes>>>>;

/// Does what the connection has to do now.
fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) -> Result<(), hyper::Error> {
    let Some(running) = driver else { return Ok(()) };
    match running.as_mut().poll(cx) {
        Poll::Pending => Ok(()),
        Poll::Ready(result) => {
            *driver = None;
            result
        }
    }
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
    pub async fn send(&self, mut request: Request<Bytes>) -> Result<Response<EngineBody>, SendError> {
        if !request.headers().contains_key(HOST) {
            request
                .headers_mut()
                .insert(HOST, self.inner.origin.host_header.clone());
        }
        if let Some(mut wire) = self.take_live() {
            let again = request.clone();
            match exchange(&mut wire, request).await {
                Ok(response) => return Ok(self.with_body(response, wire)),
                Err(error) if is_stale(&error) => return self.send_fresh(again).await,
                Err(error) => return Err(SendError::from_hyper(self.inner.origin.authority(), error, false)),
            }
        }
        self.send_fresh(request).await
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

    async fn send_fresh(&self, request: Request<Bytes>) -> Result<Response<EngineBody>, SendError> {
        let inner = &self.inner;
        let stream = connect(&inner.origin, &inner.options).await?;
        let (sender, driver) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SendError::from_hyper(inner.origin.authority(), error, true))?;
        let mut wire = Wire {
            sender,
            driver: Some(Box::pin(driver)),
        };
        match exchange(&mut wire, request).await {
            Ok(response) => Ok(self.with_body(response, wire)),
            Err(error) => Err(SendError::from_hyper(inner.origin.authority(), error, false)),
        }
    }

    fn take_live(&self) -> Option<Wire> {
        while let Some(wire) = self.inner.idle.take() {
            if !wire.sender.is_closed() {
                return Some(wire);
            }
        }
        None
    }

    fn with_body(&self, response: Response<Incoming>, wire: Wire) -> Response<EngineBody> {
        let (head, incoming) = response.into_parts();
        let mut body = EngineBody {
            incoming,
            wire: Some(wire),
            home: self.inner.clone(),
        };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        Response::from_parts(head, body)
    }
}

fn is_stale(error: &hyper::Error) -> bool {
    error.is_canceled() || error.is_closed() || error.is_incomplete_message()
}

/// Drives the connection until it takes the request, and on until the head of the answer is there.
async fn exchange(wire: &mut Wire, request: Request<Bytes>) -> Result<Response<Incoming>, hyper::Error> {
    let Wire { sender, driver } = wire;
    std::future::poll_fn(|cx| {
        // The driver first: after an answer it still has to get ready for the next request, and it is what notices that
        // the peer has closed.
        drive(driver, cx)?;
        sender.poll_ready(cx)
    })
    .await?;
    let (head, body) = request.into_parts();
    let mut answer = std::pin::pin!(sender.send_request(Request::from_parts(head, Full::new(body))));
    std::future::poll_fn(|cx| {
        let driven = drive(driver, cx);
        match answer.as_mut().poll(cx) {
            Poll::Pending => driven.map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            answered => answered,
        }
    })
    .await
}

/// The body of an engine's answer. Reading it drives the connection; dropping it before its end closes the connection.
pub struct EngineBody {
    incoming: Incoming,
    wire: Option<Wire>,
    home: Arc<Inner>,
}

impl EngineBody {
    /// Puts the connection back for the next request, if it is fit for one.
    fn finish(&mut self) {
        if let Some(wire) = self.wire.take()
            && wire.driver.is_some()
            && !wire.sender.is_closed()
        {
            self.home.idle.put(wire);
        }
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(wire) = &mut this.wire
        {
            if let Err(error) = drive(&mut wire.driver, cx) {
                this.wire = None;
                return Poll::Ready(Some(Err(error)));
            }
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Ready(None) => this.finish(),
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.finish(),
            Poll::Ready(Some(Err(_))) => this.wire = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
