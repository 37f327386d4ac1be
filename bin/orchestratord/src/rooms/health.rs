//! Whether the control plane is well, what it can do, and its metrics.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use pool_registry_types::Dialect;
use serde::Serialize;
use task_api::Workload;

use super::answer::{Page, json};
use crate::plane::SharedPlane;

/// A word about health.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Health {
    /// `ok`, or why not.
    status: &'static str,
}

/// Says that the process runs
#[utoipa::path(get, path = "/health/live", tag = "meta", security(), responses((status = 200, body = Health)))]
pub(crate) async fn live() -> Page {
    Ok(json(StatusCode::OK, &Health { status: "ok" }))
}

/// Says whether tasks are taken
#[utoipa::path(get, path = "/health/ready", tag = "meta", security(),
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(crate) async fn ready(State(plane): State<SharedPlane>) -> Page {
    if plane.is_stopping() {
        return Ok(json(
            StatusCode::SERVICE_UNAVAILABLE,
            &Health {
                status: "shutting down",
            },
        ));
    }
    Ok(json(StatusCode::OK, &Health { status: "ok" }))
}

/// What this control plane can do.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PlaneCapabilities {
    /// The API's version.
    api_version: &'static str,
    /// Where pool reports come from: `home` or `cloud`.
    profile: &'static str,
    /// Kinds of work.
    workloads: [Workload; 5],
    /// Dialects under `/v1`.
    dialects: Vec<Dialect>,
    /// Models that are there now.
    models: Vec<String>,
    /// How many tasks may wait for one pool.
    admission_capacity: usize,
    /// What happens to a task that finds that many waiting: `reject` or `drop-lru`.
    admission_policy: &'static str,
    /// The longest request body, in bytes.
    body_max_bytes: u64,
    /// The longest deadline, in milliseconds.
    deadline_max_ms: u64,
}

/// Tells what this control plane can do
#[utoipa::path(get, path = "/v2/meta/capabilities", tag = "meta", responses((status = 200, body = PlaneCapabilities)))]
pub(crate) async fn capabilities(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.user(&headers)?;
    let models = plane.guarded.with(|scheduler, _| scheduler.models());
    let settings = &plane.settings;
    let capabilities = PlaneCapabilities {
        api_version: "v2",
        profile: if settings.cloud_profile { "cloud" } else { "home" },
        workloads: [
            Workload::Completion,
            Workload::Chat,
            Workload::Embedding,
            Workload::Rerank,
            Workload::Agent,
        ],
        dialects: adapter_host::DIALECTS.to_vec(),
        models: models.into_iter().map(|model| model.id.to_string()).collect(),
        admission_capacity: settings.admission_capacity,
        admission_policy: match settings.admission_policy {
            crate::settings::AdmissionPolicy::Reject => "reject",
            crate::settings::AdmissionPolicy::DropLru => "drop-lru",
        },
        body_max_bytes: settings.body_max_bytes,
        deadline_max_ms: task_api::DEADLINE_MS_MAX,
    };
    Ok(json(StatusCode::OK, &capabilities))
}

/// The program's version.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Version {
    /// The program.
    name: &'static str,
    /// Its version.
    version: &'static str,
}

/// Tells the version
#[utoipa::path(get, path = "/v2/meta/version", tag = "meta", security(), responses((status = 200, body = Version)))]
pub(crate) async fn version() -> Page {
    Ok(json(
        StatusCode::OK,
        &Version {
            name: "orchestratord",
            version: env!("CARGO_PKG_VERSION"),
        },
    ))
}

pub(crate) async fn openapi() -> Page {
    Ok(json(StatusCode::OK, &crate::openapi::document()))
}

/// Gives the metrics to Prometheus
#[utoipa::path(get, path = "/metrics", tag = "meta", responses((status = 200, content_type = "application/openmetrics-text")))]
pub(crate) async fn metrics(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.identify(&headers)?;
    Ok((
        [(CONTENT_TYPE, daemon::metrics::CONTENT_TYPE)],
        plane.metrics.text(&plane),
    )
        .into_response())
}
