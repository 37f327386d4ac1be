//! The node over HTTP: the one door, and the pages about its pools.
//!
//! HTTP/1.1 and HTTP/2 on one port, by ALPN with TLS and by the preface without. Everything but `/health` wants the
//! token or, with TLS, a client certificate of the CA, where these are set.

mod agents;
mod answer;
mod connection;
mod door;
mod pools;
mod read;

use std::sync::Arc;
use std::time::Duration;

use daemon::metrics::Metrics;
use daemon::secret::Secret;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use node_registration::Reporter;
use pool_registry_types::{AGENTS_PREFIX, DOOR_PREFIX};
use task_api::ErrorCode;

use crate::callbacks::Callbacks;
use crate::node::NodeControl;
use crate::settings::NodeIdentity;
pub(crate) use answer::ServerBody;
use answer::{error, json, text, wrong_method};
pub(crate) use connection::{Limits, serve};

/// What the rooms need.
pub(crate) struct Rooms {
    /// The node.
    pub(crate) control: NodeControl,
    /// Who it is.
    pub(crate) identity: NodeIdentity,
    /// Its numbered reports.
    pub(crate) reporter: Reporter,
    /// Whom to tell of changes.
    pub(crate) callbacks: Callbacks,
    /// For `/metrics`.
    pub(crate) metrics: Arc<Metrics>,
    /// Who may come in.
    pub(crate) access: Access,
    /// The longest request body.
    pub(crate) body_max_bytes: usize,
    /// How long a request's body may take to arrive.
    pub(crate) body_timeout: Duration,
}

/// Who may come in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// The token, when one is wanted.
    pub(crate) token: Option<Secret>,
    /// Whether a client certificate of the CA opens the door.
    pub(crate) certificates: bool,
}

impl Access {
    /// Whether a request may come in. `certified`: its connection showed a certificate of the CA.
    fn allows(&self, headers: &HeaderMap, certified: bool) -> bool {
        if self.certificates && certified {
            return true;
        }
        match &self.token {
            Some(token) => {
                let shown = headers
                    .get(AUTHORIZATION)
                    .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
                shown.is_some_and(|shown| token.matches(shown))
            }
            None => !self.certificates,
        }
    }
}

impl Rooms {
    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        certified: bool,
    ) -> Response<ServerBody> {
        let is_head = request.method() == Method::HEAD;
        let response = self.room(request, certified).await;
        if is_head {
            answer::without_body(response)
        } else {
            response
        }
    }

    async fn room(self: Arc<Self>, request: Request<Incoming>, certified: bool) -> Response<ServerBody> {
        let uri = request.uri().clone();
        let path = uri.path();
        if path == "/health" {
            return self.health(request.method());
        }
        if !self.access.allows(request.headers(), certified) {
            let message = "this node wants its token (Authorization: Bearer LLORCH_API_TOKEN) or a certificate of its CA";
            return error(ErrorCode::Unauthenticated, message);
        }
        if let Some(rest) = path
            .strip_prefix(DOOR_PREFIX)
            .and_then(|rest| rest.strip_prefix('/'))
        {
            let to = door::Destination::parse(rest, uri.query());
            return door::pass(&self, to, request).await;
        }
        if let Some(rest) = path
            .strip_prefix(AGENTS_PREFIX)
            .and_then(|rest| rest.strip_prefix('/'))
        {
            return agents::answer(&self, rest, request).await;
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let method = asked_as(request.method());
        match (&method, segments.as_slice()) {
            (&Method::GET, ["metrics"]) => text(daemon::metrics::CONTENT_TYPE, self.metrics.text()),
            (_, ["metrics"]) => wrong_method("GET, HEAD"),
            (&Method::GET, ["v2", "pools"]) => pools::list(&self),
            (_, ["v2", "pools"]) => wrong_method("GET, HEAD"),
            (&Method::GET, ["v2", "pools", id]) => pools::show(&self, id),
            (_, ["v2", "pools", _]) => wrong_method("GET, HEAD"),
            (&Method::GET, ["v2", "pools", id, "status"]) => pools::status(&self, id),
            (_, ["v2", "pools", _, "status"]) => wrong_method("GET, HEAD"),
            (&Method::POST, ["v2", "pools", id, "drain"]) => pools::drain(&self, id, request).await,
            (&Method::DELETE, ["v2", "pools", id, "drain"]) => pools::undrain(&self, id).await,
            (_, ["v2", "pools", _, "drain"]) => wrong_method("POST, DELETE"),
            (&Method::POST, ["v2", "pools", id, "reload"]) => pools::reload(&self, id).await,
            (_, ["v2", "pools", _, "reload"]) => wrong_method("POST"),
            (&Method::POST, ["v2", "callbacks", "register"]) => {
                pools::register_callback(&self, request).await
            }
            (_, ["v2", "callbacks", "register"]) => wrong_method("POST"),
            _ => error(
                ErrorCode::NotFound,
                format!("there is nothing at {path} on a node"),
            ),
        }
    }

    fn health(&self, method: &Method) -> Response<ServerBody> {
        if asked_as(method) != Method::GET {
            return wrong_method("GET, HEAD");
        }
        let state = if self.control.is_draining() {
            "draining"
        } else {
            "ok"
        };
        json(
            200,
            &serde_json::json!({
                "status": state,
                "node_id": self.identity.node_id,
                "version": env!("CARGO_PKG_VERSION"),
            }),
        )
    }
}

/// A HEAD asks for what a GET would give, without the body.
fn asked_as(method: &Method) -> Method {
    match method {
        &Method::HEAD => Method::GET,
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_token_or_a_certificate_opens_and_nothing_else() {
        let check = |token: Option<&str>, certificates, shown: Option<&str>, certified, expect| {
            let access = Access {
                token: token.map(Secret::new),
                certificates,
            };
            let mut headers = HeaderMap::new();
            if let Some(shown) = shown {
                headers.insert(AUTHORIZATION, HeaderValue::from_str(shown).unwrap());
            }
            assert_eq!(
                access.allows(&headers, certified),
                expect,
                "{token:?} {certificates} {shown:?} {certified}"
            );
        };
        check(None, false, None, false, true);
        check(Some("t"), false, None, false, false);
        check(Some("t"), false, Some("Bearer t"), false, true);
        check(Some("t"), false, Some("Bearer tt"), false, false);
        check(Some("t"), false, Some("Bearer "), false, false);
        check(Some("t"), false, Some("Basic t"), false, false);
        check(Some("t"), false, None, true, false);
        check(None, true, None, false, false);
        check(None, true, None, true, true);
        check(Some("t"), true, Some("Bearer t"), false, true);
    }
}
