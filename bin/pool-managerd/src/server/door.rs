//! `ANY /v2/engines/{pool}/{replica}/...`: the door for control planes on other machines.

use bytes::Bytes;
use daemon::telemetry::{trace_context, tracing_enabled};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use pool_registry_types::{CONTROL_PLANE_HEADER, ControlPlaneId, NODE_REFUSAL_HEADER, PoolId, ReplicaId};
use task_api::{CORRELATION_HEADER, ErrorCode};
use tracing::{Instrument, Span};

use super::Rooms;
use super::answer::{ServerBody, error};
use crate::door::{DoorError, chain};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers that are about one connection and not about what it carries (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Who holds a slot for a caller that does not name itself.
const UNNAMED_HOLDER: &str = "unnamed";

/// Where a request goes.
pub(super) struct Destination {
    pool: PoolId,
    replica: ReplicaId,
    uri: Uri,
}

impl Destination {
    /// Reads `{pool}/{replica}/path`. None: it is no destination.
    pub(super) fn parse(rest: &str, query: Option<&str>) -> Option<Self> {
        let (pool, rest) = rest.split_once('/')?;
        let (replica, _) = rest.split_once('/')?;
        // From the slash after the replica on, as it came: an escaped path stays escaped.
        let path = &rest[replica.len()..];
        let uri = match query {
            Some(query) => format!("{path}?{query}").parse(),
            None => path.parse(),
        };
        Some(Self {
            pool: pool.parse().ok()?,
            replica: replica.parse().ok()?,
            uri: uri.ok()?,
        })
    }
}

/// Passes a request to its engine and the answer back.
pub(super) async fn pass(
    rooms: &Rooms,
    to: Option<Destination>,
    request: Request<Incoming>,
) -> Response<ServerBody> {
    let Some(to) = to else {
        return error(
            ErrorCode::NotFound,
            "the path must be /v2/engines/{pool}/{replica}/...",
        );
    };
    let (mut head, body) = request.into_parts();
    let limited = Limited::new(body, rooms.body_max_bytes).collect();
    let body: Bytes = match tokio::time::timeout(rooms.body_timeout, limited).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(failed)) if failed.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {} bytes", rooms.body_max_bytes);
            return error(ErrorCode::RequestTooLarge, message);
        }
        Ok(Err(_)) => return error(ErrorCode::InvalidParams, "the body broke off"),
        Err(_) => return error(ErrorCode::InvalidParams, "the body did not arrive in time"),
    };
    let holder = holder(&head.headers);
    head.uri = to.uri.clone();
    head.version = http::Version::HTTP_11;
    strip(&mut head.headers);
    for name in [HOST, EXPECT, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    head.headers.remove(CONTROL_PLANE_HEADER);
    head.extensions.clear();
    let span = span(&mut head.headers, &to);
    let correlation_id = head.headers.get(CORRELATION_HEADER).cloned();
    let call = rooms
        .control
        .door()
        .call(&to.pool, &to.replica, &holder, Request::from_parts(head, body));
    match call.instrument(span.clone()).await {
        Ok(response) => {
            let mut response = response.map(|body| ServerBody::Engine(body, span));
            strip(response.headers_mut());
            strip_cross_origin(response.headers_mut());
            // Only the node itself may say that it refused.
            response.headers_mut().remove(NODE_REFUSAL_HEADER);
            response.extensions_mut().clear();
            response
        }
        Err(refusal) => {
            if matches!(refusal, DoorError::Connect(_) | DoorError::Engine(_)) {
                let correlation_id = correlation_id
                    .as_ref()
                    .and_then(|id| id.to_str().ok())
                    .unwrap_or_default();
                tracing::warn!(
                    pool_id = %to.pool, replica_id = %to.replica, correlation_id,
                    error = chain(&refusal), "an engine gave no answer"
                );
            }
            refused(&refusal)
        }
    }
}

/// The engine's part of the caller's trace. Nothing is recorded, and what came passes through, unless spans are sent.
fn span(headers: &mut HeaderMap, to: &Destination) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    let correlation_id = headers
        .get(CORRELATION_HEADER)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    let span = tracing::info_span!("engine", pool_id = %to.pool, replica_id = %to.replica, correlation_id);
    trace_context::set_parent(&span, headers);
    trace_context::inject(&span, headers);
    span
}

fn refused(refusal: &DoorError) -> Response<ServerBody> {
    let code = refusal.as_error_code();
    let mut response = error(code, chain(refusal));
    response
        .headers_mut()
        .insert(NODE_REFUSAL_HEADER, HeaderValue::from_static(code.as_str()));
    response
}

pub(super) fn holder(headers: &HeaderMap) -> ControlPlaneId {
    let named = headers
        .get(CONTROL_PLANE_HEADER)
        .and_then(|value| value.to_str().ok());
    let named = named.and_then(|name| ControlPlaneId::new(name).ok());
    named.unwrap_or_else(|| ControlPlaneId::new(UNNAMED_HOLDER).expect("it is an identifier"))
}

/// Takes out what is about the connection, also what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Takes out what an engine says about pages of other origins. It speaks of its own address on loopback, which no
/// browser can reach; who may use this door is not the engine's to say, and its `*` would let any page read answers.
fn strip_cross_origin(headers: &mut HeaderMap) {
    let said: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("access-control-"))
        .cloned()
        .collect();
    for name in said {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_strictly() {
        let check = |rest: &str, query, expect: Option<(&str, &str, &str)>| {
            let to = Destination::parse(rest, query);
            let seen = to.map(|to| (to.pool.to_string(), to.replica.to_string(), to.uri.to_string()));
            let expect =
                expect.map(|(pool, replica, uri)| (pool.to_owned(), replica.to_owned(), uri.to_owned()));
            assert_eq!(seen, expect, "{rest}");
        };
        check(
            "p/r0/v1/chat/completions",
            None,
            Some(("p", "r0", "/v1/chat/completions")),
        );
        check(
            "p/r0/slots",
            Some("a=1&b=%20"),
            Some(("p", "r0", "/slots?a=1&b=%20")),
        );
        check("p/r0/", None, Some(("p", "r0", "/")));
        check("p/r0/a%2Fb//c", None, Some(("p", "r0", "/a%2Fb//c")));
        check("p/r0", None, None);
        check("p//v1", None, None);
        check("", None, None);
        check("p%20/r/x", None, None);
    }

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("traceparent", "00-1"),
            ("content-type", "application/json"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "traceparent"]);
    }

    #[test]
    fn an_engine_opens_nothing_to_pages_of_others() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-own"),
            ("content-type", "text/event-stream"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_cross_origin(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["content-type"]);
    }
}
