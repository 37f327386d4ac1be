//! Google's generateContent: a request of chat completions in other words, whose answer is put into those words again.

use std::pin::pin;

use adapter_host::{GeminiCall, GeminiStream, chat_request, gemini_answer, gemini_error};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use pool_registry_types::Dialect;
use task_api::{ApiError, ErrorCode};
use tracing::Instrument as _;

use super::answer::{self, Correlation};
use super::dialects;
use crate::access::Identity;
use crate::body::{PlaneBody, Translated};
use crate::plane::SharedPlane;
use crate::spans;

/// Whether a path is of this dialect.
pub(crate) fn is_path(path: &str) -> bool {
    GeminiCall::of(path, None).is_some()
}

/// Answers one request.
pub(crate) async fn handle(
    plane: &SharedPlane,
    request: Request<Incoming>,
    correlation: &Correlation,
) -> Response<PlaneBody> {
    let span = spans::request(request.uri().path(), request.headers(), correlation.as_str());
    let answered = pin!(answer(plane, request, correlation)).instrument(span).await;
    answered.unwrap_or_else(|error| {
        if matches!(error.code.http_status(), 429 | 503 | 422) {
            plane.metrics.rejected(error.code);
        }
        failure(&error, correlation)
    })
}

/// An error in the dialect's own shape.
pub(crate) fn failure(error: &ApiError, correlation: &Correlation) -> Response<PlaneBody> {
    answer::log(error);
    let (status, body) = gemini_error(error, Some(correlation.as_str()));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = answer::json_bytes(status, body);
    answer::put_error_headers(response.headers_mut(), error);
    response
}

async fn answer(
    plane: &SharedPlane,
    request: Request<Incoming>,
    correlation: &Correlation,
) -> Result<Response<PlaneBody>, ApiError> {
    let (head, body) = request.into_parts();
    // Who may not ask need not send a body.
    let identity: Identity = plane.access.asker(&head.headers)?;
    let call = GeminiCall::of(head.uri.path(), head.uri.query())
        .unwrap_or_else(|| Err(ApiError::new(ErrorCode::NotFound, "there is nothing here")))?;
    if head.method != Method::POST {
        return Err(ApiError::new(
            ErrorCode::InvalidParams,
            "only POST means something here",
        ));
    }
    let body = dialects::read_body(plane, body).await?;
    let chat = Bytes::from(chat_request(&call, &body)?);
    drop(body);
    let dialect = Dialect::ChatCompletions;
    let answered = dialects::run(plane, dialect, &identity, &head.headers, chat, correlation).await?;
    let (mut head, body) = answered.into_parts();
    if call.stream {
        let events = HeaderValue::from_static("text/event-stream");
        head.headers.insert(CONTENT_TYPE, events);
        let body = PlaneBody::Translated(Box::new(Translated::new(body, GeminiStream::default())));
        return Ok(Response::from_parts(head, body));
    }
    // It was read to its end before it was given.
    let whole = body.collect().await.map_err(|_| cut_off())?;
    let body = gemini_answer(&whole.to_bytes())?;
    Ok(Response::from_parts(head, PlaneBody::full(body)))
}

fn cut_off() -> ApiError {
    ApiError::new(ErrorCode::WorkerReset, "the engine's answer was cut off")
}
