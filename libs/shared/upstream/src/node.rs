//! HTTP/2 to the one door of a node.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use daemon::tls::Sides;
use futures_util::Stream;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::connect::connect;
use crate::shelf::Shelves;
use crate::{ConnectOptions, Origin, SendError};

/// Bytes that one stream, and one connection, may send ahead of its reader: a slow reader slows its own stream only.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Who is who when TLS is refused.
const SIDES: Sides<'static> = Sides {
    us: "control plane",
    them: "node",
};

/// One HTTP/2 connection per worker thread to one node. Cheap to clone.
#[derive(Clone)]
pub struct NodeClient {
    inner: Arc<Inner>,
}

struct Inner {
    origin: Origin,
    options: ConnectOptions,
    open: Shelves<http2::SendRequest<Sent>>,
}

impl NodeClient {
    /// A client for one node. Opens nothing yet.
    pub fn new(origin: Origin, options: ConnectOptions) -> Self {
        let open = Shelves::new(1, options.idle_timeout);
        Self {
            inner: Arc::new(Inner {
                origin,
                options,
                open,
            }),
        }
    }

    /// Where it connects to.
    pub fn origin(&self) -> &Origin {
        &self.inner.origin
    }

    /// Sends a request whose URI is a path and waits for the head of the answer. Dropping the future, or later the
    /// body, resets the stream, which the node takes as a cancel.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<NodeBody>, SendError> {
        self.send_body(request.map(|body| Sent::Whole(Full::new(body))))
            .await
    }

    /// The same with a body that comes in pieces. One that breaks off resets the stream.
    pub async fn send_pieces(&self, request: Request<Pieces>) -> Result<Response<NodeBody>, SendError> {
        self.send_body(request.map(Sent::Pieces)).await
    }

    async fn send_body(&self, request: Request<Sent>) -> Result<Response<NodeBody>, SendError> {
        let mut sender = match self.open_connection() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let authority = self.inner.origin.authority();
        let scheme = if self.inner.origin.tls { "https" } else { "http" };
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = format!("{scheme}://{authority}{path}")
            .parse()
            .expect("an origin and a path make a URI");
        let request = Request::from_parts(head, body);
        match sender.send_request(request).await {
            Ok(response) => Ok(response.map(|incoming| NodeBody { incoming })),
            Err(error) => {
                self.inner.open.clear();
                Err(SendError::from_hyper(authority, error, false))
            }
        }
    }

    /// Forgets the connections, so that the next request opens a new one.
    pub fn close(&self) {
        self.inner.open.clear();
    }

    fn open_connection(&self) -> Option<http2::SendRequest<Sent>> {
        let mut shelf = self.inner.open.mine();
        shelf.retain(|(_, sender)| !sender.is_closed());
        shelf.first().map(|(_, sender)| sender.clone())
    }

    async fn connect(&self) -> Result<http2::SendRequest<Sent>, SendError> {
        let inner = &self.inner;
        let stream = connect(&inner.origin, &inner.options).await?;
        // A connection that was silent for a while is asked for a sign of life, and given up when none comes: a half-open
        // one is found even when nothing is sent. Only one that carries something is asked.
        let silence = inner.options.silence_timeout;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(silence * 2 / 5)
            .keep_alive_timeout(silence * 3 / 5)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SendError::from_hyper(inner.origin.authority(), error, true))?;
        let authority = inner.origin.authority.clone();
        tokio::spawn(async move {
            let Err(error) = driver.await else { return };
            // A node says only after the handshake that it refuses our certificate; the requests just see an end.
            match daemon::tls::explain(&error, SIDES) {
                Some(why) => {
                    tracing::warn!(node_address = %authority, why, "a connection to a node was refused");
                }
                None => tracing::debug!(node_address = %authority, %error, "a connection to a node ended"),
            }
        });
        inner.open.put(sender.clone());
        Ok(sender)
    }
}

/// The pieces of a request's body.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

type BoxError = Box<dyn Error + Send + Sync>;

/// The body of a request.
enum Sent {
    Whole(Full<Bytes>),
    Pieces(Pieces),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Pieces(pieces) => {
                let piece = pieces.as_mut().poll_next(cx);
                piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// The body of a node's answer.
pub struct NodeBody {
    incoming: Incoming,
}

impl Body for NodeBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
