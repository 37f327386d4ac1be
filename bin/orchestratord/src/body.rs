//! What the control plane sends to clients.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use adapter_host::GeminiStream;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::relay::Relay;

/// A body of any room. Errors are told inside the body, or end it; there is no other way in HTTP.
pub(crate) enum PlaneBody {
    /// All there is.
    Full(Full<Bytes>),
    /// An engine's stream on its way through.
    Relay(Box<Relay>),
    /// One that is told in another dialect.
    Translated(Box<Translated>),
    /// A page of one of the other rooms.
    Page(axum::body::Body),
}

impl PlaneBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Full::new(bytes.into()))
    }
}

/// A stream on its way from one dialect to another.
pub(crate) struct Translated {
    from: PlaneBody,
    words: GeminiStream,
}

impl Translated {
    pub(crate) fn new(from: PlaneBody, words: GeminiStream) -> Self {
        Self { from, words }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        loop {
            let frame = match std::task::ready!(Pin::new(&mut self.from).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            let Ok(chunk) = frame.into_data() else { continue };
            let told = self.words.feed(&chunk);
            if !told.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(told))));
            }
        }
    }
}

/// A body that cannot go on. The connection is closed without the body's end, which is what the client has to see.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off")]
pub(crate) struct CutOff;

impl From<Infallible> for CutOff {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Body for PlaneBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.get_mut() {
            Self::Full(full) => Pin::new(full)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Relay(relay) => relay
                .poll_chunk(cx)
                .map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Translated(translated) => translated.poll_chunk(cx),
            Self::Page(page) => Pin::new(page)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|_| CutOff))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(full) => full.is_end_stream(),
            Self::Relay(relay) => relay.is_over(),
            Self::Translated(translated) => translated.from.is_end_stream(),
            Self::Page(page) => page.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(full) => full.size_hint(),
            Self::Relay(_) | Self::Translated(_) => SizeHint::default(),
            Self::Page(page) => page.size_hint(),
        }
    }
}
