//! Accepting, and what becomes of one request.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::answer::{self, Piece};
use crate::{Seen, Shared, Step};

/// The longest request body.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: those that end give some back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it the kernel holds small pieces back; a socket that refuses it is only slower.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, &shared).await) }
            });
            // A cut stream ends as an error here, which is what it is for.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let header = |name: &str| {
        let value = head.headers.get(name)?.to_str().ok()?;
        Some(value.strip_prefix("Bearer ").unwrap_or(value).to_owned())
    };
    let key = header("authorization")
        .or_else(|| header("x-api-key"))
        .or_else(|| header("x-goog-api-key"));
    if head.method != Method::POST {
        return if path.ends_with("/models") {
            whole(
                StatusCode::OK,
                &json!({"object": "list", "data": [], "models": []}),
            )
        } else {
            whole(StatusCode::OK, &json!({}))
        };
    }
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return whole(
            StatusCode::PAYLOAD_TOO_LARGE,
            &json!({"error": {"message": "too large"}}),
        );
    };
    let bytes = body.to_bytes();
    if path == "/fake/script" {
        return match serde_json::from_slice::<Vec<Step>>(&bytes) {
            Ok(steps) => {
                shared.set(steps);
                whole(StatusCode::OK, &json!({}))
            }
            Err(error) => whole(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        };
    }
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if path.ends_with("/count_tokens") {
        return whole(StatusCode::OK, &json!({"input_tokens": 10}));
    }
    if path.ends_with(":countTokens") {
        return whole(StatusCode::OK, &json!({"totalTokens": 10}));
    }
    let Some(seen) = Seen::read(&path, &query, key, value) else {
        return whole(
            StatusCode::NOT_FOUND,
            &json!({"error": {"message": "no such endpoint"}}),
        );
    };
    model_answer(seen, shared)
}

fn model_answer(seen: Seen, shared: &Shared) -> Response<Body> {
    let asked = seen.clone();
    let (step, number) = shared.next(seen);
    if let Step::Status {
        status,
        retry_after_s,
    } = step
    {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = whole(status, &answer::error(asked.dialect, status));
        if let Some(seconds) = retry_after_s {
            response
                .headers_mut()
                .insert(http::header::RETRY_AFTER, seconds.into());
        }
        return response;
    }
    if !asked.stream {
        return whole(StatusCode::OK, &answer::whole(&asked, &step, number));
    }
    let pieces = answer::stream(&asked, &step, number);
    Response::builder()
        .header("content-type", "text/event-stream")
        .header("cache-control", "no-cache")
        .body(BodyExt::boxed_unsync(StreamBody::new(frames(pieces))))
        .expect("constant headers are right")
}

/// The pieces as body frames. A cut is an error, upon which hyper ends the connection in the middle of the body.
fn frames(pieces: Vec<Piece>) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    stream::unfold(pieces.into_iter(), |mut pieces| async move {
        loop {
            let item = match pieces.next()? {
                Piece::Bytes(text) => Ok(Frame::data(Bytes::from(text))),
                Piece::Wait(time) => {
                    tokio::time::sleep(time).await;
                    continue;
                }
                Piece::Cut => {
                    // What was said before must be on the wire first, or the client sees no stream at all.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(io::ErrorKind::ConnectionReset.into())
                }
                Piece::Hang => std::future::pending().await,
            };
            return Some((item, pieces));
        }
    })
}

fn whole(status: StatusCode, body: &Value) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(
            Full::new(Bytes::from(body.to_string()))
                .map_err(|never| match never {})
                .boxed_unsync(),
        )
        .expect("constant headers are right")
}
