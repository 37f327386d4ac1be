//! Answers and their bodies.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use serde::Serialize;
use task_api::{ApiError, ErrorCode};
use tracing::Span;

use crate::door::{DoorBody, chain};

/// What the server sends: its own words, or an engine's as they come.
pub(crate) enum ServerBody {
    /// The node's own.
    Own(Full<Bytes>),
    /// An engine's, and the span that ends with it.
    Engine(DoorBody, Span),
    /// An agent's events.
    Lines(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// A file of the node's own.
    Pieces(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
}

impl Body for ServerBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Engine(body, span) => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Err(error))) = &polled {
                    tracing::warn!(parent: &*span, error = chain(error), "an engine broke off its answer");
                }
                polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Lines(lines) => lines
                .as_mut()
                .poll_next(cx)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
            Self::Pieces(pieces) => pieces
                .as_mut()
                .poll_next(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Engine(body, _) => body.is_end_stream(),
            Self::Lines(_) | Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Engine(body, _) => body.size_hint(),
            Self::Lines(_) | Self::Pieces(_) => SizeHint::default(),
        }
    }
}

pub(super) fn text(content_type: &'static str, text: impl Into<Bytes>) -> Response<ServerBody> {
    let mut response = Response::new(ServerBody::Own(Full::new(text.into())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn json(status: u16, value: &impl Serialize) -> Response<ServerBody> {
    let bytes = serde_json::to_vec(value).expect("answers are made of texts, numbers and lists");
    let mut response = text("application/json", bytes);
    *response.status_mut() = StatusCode::from_u16(status).expect("the status is one of ours");
    response
}

pub(super) fn empty(status: StatusCode) -> Response<ServerBody> {
    let mut response = Response::new(ServerBody::Own(Full::default()));
    *response.status_mut() = status;
    response
}

pub(super) fn error(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Response<ServerBody> {
    json(code.http_status(), &ApiError::new(code, message).body(None))
}

/// What a HEAD gets: all but the body, whose length is told (RFC 9110, 9.3.2). Over HTTP/2 the server would send it.
pub(super) fn without_body(response: Response<ServerBody>) -> Response<ServerBody> {
    if let Some(len) = response.body().size_hint().exact() {
        let (mut head, _) = response.into_parts();
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
        return Response::from_parts(head, ServerBody::Own(Full::default()));
    }
    response
}

/// The path is known, and the method means nothing there; `allow` names those that do (RFC 9110, 15.5.6).
pub(super) fn wrong_method(allow: &'static str) -> Response<ServerBody> {
    let message = format!("the method means nothing here; there is {allow}");
    let mut response = error(ErrorCode::InvalidParams, message);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    response
}
