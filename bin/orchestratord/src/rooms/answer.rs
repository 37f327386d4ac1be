//! What every page does alike: errors, JSON, correlation ids.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use task_api::{ApiError, CORRELATION_HEADER, ErrorCode};

use crate::body::PlaneBody;
use crate::plane::SharedPlane;

/// The longest body that a page takes. A heartbeat of a node with a thousand replicas has less.
pub(crate) const PAGE_BODY_LEN_MAX: usize = 8 * 1024 * 1024;

/// The longest correlation id that is echoed.
const CORRELATION_LEN_MAX: usize = 128;

/// The correlation header as `http` knows it.
pub(crate) const CORRELATION: HeaderName = HeaderName::from_static(CORRELATION_HEADER);

/// The first value of a header. A request of a dialect has few that we read, and among few a look at each costs less than
/// hashing the name.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut named = headers.iter().filter(|(found, _)| *found == name);
    named.next().map(|(_, value)| value)
}

/// Names one request through logs, events and traces.
#[derive(Clone, Debug)]
pub(crate) struct Correlation(pub(crate) HeaderValue);

impl Correlation {
    /// The client's, when it is a sane one, else a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let given = header(headers, &CORRELATION).filter(|value| {
            let bytes = value.as_bytes();
            (1..=CORRELATION_LEN_MAX).contains(&bytes.len()) && bytes.iter().all(|b| (0x21..0x7f).contains(b))
        });
        Self(given.cloned().unwrap_or_else(|| {
            let mut buffer = uuid::Uuid::encode_buffer();
            let text = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
            HeaderValue::from_str(text).expect("a UUID is a header value")
        }))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// A page, or why there is none.
pub(crate) type Page = Result<Response, Refused>;

/// An error on its way out of a page.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) ApiError);

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(error) = self;
        log(&error);
        let body = error.body(None);
        let mut response = json(
            StatusCode::from_u16(error.code.http_status()).expect("codes have statuses"),
            &body,
        );
        put_error_headers(response.headers_mut(), &error);
        response.extensions_mut().insert(error);
        response
    }
}

/// Puts the request's name into the body of a page that is an error: only who knows the request can.
pub(crate) fn name_error(mut page: Response, correlation: &Correlation) -> Response {
    if let Some(error) = page.extensions_mut().remove::<ApiError>() {
        let body = error.body(Some(correlation.as_str().to_owned()));
        let body = serde_json::to_vec(&body).expect("our own types can be written as JSON");
        page.headers_mut().remove(CONTENT_LENGTH);
        *page.body_mut() = body.into();
    }
    page
}

/// What the operator should know of an error and the client should not.
pub(crate) fn log(error: &ApiError) {
    if error.code == ErrorCode::Internal {
        tracing::error!(%error, internal = error.internal.as_deref(), "a request failed");
    } else if let Some(internal) = &error.internal {
        tracing::info!(%error, internal, "a request was refused");
    } else {
        tracing::debug!(%error, "a request was refused");
    }
}

/// Headers that belong to an error.
pub(crate) fn put_error_headers(headers: &mut HeaderMap, error: &ApiError) {
    if let Some(retry_after_ms) = error.retry_after_ms {
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from(retry_after_ms.div_ceil(1000).max(1)),
        );
    }
    if error.code == ErrorCode::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}

/// A JSON page.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("our own types can be written as JSON");
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// A JSON answer of the dialects' room.
pub(crate) fn json_bytes(status: StatusCode, body: Bytes) -> http::Response<PlaneBody> {
    let mut response = http::Response::new(PlaneBody::full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON body, read strictly: the error names the member at fault.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<SharedPlane> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &SharedPlane) -> Result<Self, Refused> {
        let refused = |message: String| Refused(ApiError::new(ErrorCode::InvalidParams, message));
        let read = tokio::time::timeout(
            state.settings.body_timeout_ms,
            Bytes::from_request(request, state),
        )
        .await;
        let Ok(read) = read else {
            return Err(refused("the body did not come in time".to_owned()));
        };
        let body = read.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("the body has more than {PAGE_BODY_LEN_MAX} bytes");
                Refused(ApiError::new(ErrorCode::RequestTooLarge, message))
            }
            _ => refused(error.body_text()),
        })?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| refused(format!("the body cannot be read: {error}")))
    }
}

/// A part of the path that is an identifier.
pub(crate) struct Id<T>(pub(crate) T);

impl<S: Send + Sync, T: TryFrom<String, Error: std::fmt::Display> + Send> FromRequestParts<S> for Id<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let bad =
            |message: String| Refused(ApiError::new(ErrorCode::InvalidParams, message).with_param("id"));
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| bad(error.body_text()))?;
        T::try_from(text)
            .map(Self)
            .map_err(|error| bad(format!("the id in the path {error}")))
    }
}

/// The query, read strictly.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(error) => Err(Refused(ApiError::new(
                ErrorCode::InvalidParams,
                error.body_text(),
            ))),
        }
    }
}

pub(crate) async fn no_such_page(uri: http::Uri) -> Refused {
    ApiError::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path())).into()
}

pub(crate) async fn no_such_method(method: http::Method, uri: http::Uri) -> Response {
    let error = ApiError::new(
        ErrorCode::InvalidParams,
        format!("{method} means nothing at {}", uri.path()),
    );
    let mut response = Refused::from(error).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
