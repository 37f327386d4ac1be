//! The control plane's HTTP rooms: the hot one for the dialects, the others behind an ordinary router.

pub(crate) mod agents;
pub(crate) mod answer;
pub(crate) mod dialects;
pub(crate) mod execute;
pub(crate) mod gemini;
pub(crate) mod health;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod pools;
pub(crate) mod tasks;
pub(crate) mod workspaces;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use pool_registry_types::Dialect;
use tower::ServiceExt as _;

use crate::body::PlaneBody;
use crate::plane::SharedPlane;
use crate::serve::Front;
use crate::serve::lane::{Asked, Known, Ordinary};
use answer::{CORRELATION, Correlation};

/// The rooms that are not on the way of a dialect's request.
pub(crate) fn router(plane: SharedPlane) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .route("/v2/tasks", post(tasks::submit).get(tasks::list))
        .route("/v2/tasks/{id}", get(tasks::show))
        .route("/v2/tasks/{id}/events", get(tasks::events))
        .route("/v2/tasks/{id}/cancel", post(tasks::cancel))
        .route("/v2/tasks/{id}/files", get(workspaces::files))
        .route("/v2/tasks/{id}/diff", get(workspaces::diff))
        .route("/v2/tasks/{id}/archive", get(workspaces::archive))
        .route("/v2/workspaces", post(workspaces::upload))
        .route("/v2/workspaces/{id}", delete(workspaces::remove))
        .route("/api/execute", post(execute::execute))
        .route("/v2/agents", get(agents::list))
        .route(
            "/v2/agents/{agent}/login",
            post(agents::log_in).get(agents::status).delete(agents::remove),
        )
        .route("/v2/agents/{agent}/login/input", post(agents::enter))
        .route("/v2/nodes", get(nodes::list))
        .route("/v2/nodes/register", post(nodes::register))
        .route("/v2/nodes/callback", post(nodes::callback))
        .route("/v2/nodes/{id}", get(nodes::show).delete(nodes::deregister))
        .route("/v2/nodes/{id}/heartbeat", post(nodes::heartbeat))
        .route("/v2/nodes/{id}/drain", post(nodes::drain).delete(nodes::undrain))
        .route("/v2/pools", get(pools::list))
        .route("/v2/pools/{id}", get(pools::show))
        .route("/v2/pools/{id}/drain", post(pools::drain).delete(pools::undrain))
        .route("/v2/pools/{id}/reload", post(pools::reload))
        .route("/v2/meta/capabilities", get(health::capabilities))
        .route("/v2/meta/version", get(health::version))
        .route("/openapi.json", get(health::openapi))
        .route("/health", get(health::live))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(answer::no_such_page)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(answer::PAGE_BODY_LEN_MAX))
        .with_state(plane)
}

/// The requests that belong into the dialects' room.
pub(crate) struct Dialects;

impl Ordinary for Dialects {
    type Kind = Dialect;

    fn kind(&self, target: &str) -> Option<Dialect> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        adapter_host::dialect_of_path(path)
    }

    fn headers(&self) -> &Known {
        &dialects::HEADERS
    }
}

/// The requests of the fast lane come through here.
pub(crate) async fn serve_dialect(front: Arc<Front>, asked: Asked<Dialect>) -> Response<PlaneBody> {
    let correlation = Correlation::of(&asked.headers);
    let mut response = dialects::handle_read(&front.plane, asked, &correlation).await;
    response.headers_mut().insert(CORRELATION, correlation.0);
    response
}

/// Every other request comes through here.
pub(crate) async fn serve(
    front: Arc<Front>,
    mut request: Request<Incoming>,
) -> Result<Response<PlaneBody>, Infallible> {
    let correlation = Correlation::of(request.headers());
    let mut response = match adapter_host::dialect_of_path(request.uri().path()) {
        Some(dialect) if request.method() == Method::POST => {
            dialects::handle(&front.plane, dialect, request, &correlation).await
        }
        Some(dialect) => dialects::wrong_method(dialect, &correlation),
        None if gemini::is_path(request.uri().path()) => {
            gemini::handle(&front.plane, request, &correlation).await
        }
        None => {
            request.extensions_mut().insert(correlation.clone());
            let page = front
                .router
                .clone()
                .oneshot(request.map(axum::body::Body::new))
                .await;
            let page = page.unwrap_or_else(|never| match never {});
            answer::name_error(page, &correlation).map(PlaneBody::Page)
        }
    };
    response.headers_mut().insert(CORRELATION, correlation.0);
    Ok(response)
}
