//! What nodes say about themselves, and what is known of them.

use std::sync::PoisonError;

use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use http::{HeaderMap, StatusCode};
use pool_registry_types::{
    HeartbeatRequest, HeartbeatResponse, NodeId, NodeView, PoolCallback, RegisterRequest, RegisterResponse,
};
use service_registry::{NodeEntry, Refusal};
use task_api::{ApiError, ErrorCode};

use super::answer::{Id, Json, Page, json};
use crate::access::now_ms;
use crate::plane::{Plane, SharedPlane, millis};
use crate::serve::Certified;

/// Registers a node, or takes its newer registration
#[utoipa::path(post, path = "/v2/nodes/register", tag = "nodes", request_body = RegisterRequest,
    responses((status = 200, body = RegisterResponse), (status = 400, body = task_api::ErrorBody),
              (status = 401, body = task_api::ErrorBody), (status = 403, body = task_api::ErrorBody),
              (status = 409, body = task_api::ErrorBody, description = "another node of this name is alive")))]
pub(crate) async fn register(
    State(plane): State<SharedPlane>,
    certified: Option<Extension<Certified>>,
    headers: HeaderMap,
    Json(request): Json<RegisterRequest>,
) -> Page {
    plane.access.node(&headers, certified.is_some())?;
    if let Err(error) = request.address.parse::<upstream::Origin>() {
        return Err(
            ApiError::new(ErrorCode::InvalidParams, format!("address: {error}"))
                .with_param("address")
                .into(),
        );
    }
    let (node_id, address) = (request.node_id.clone(), request.address.clone());
    plane
        .take_report(|registry, now, changes| registry.register(now, request, changes))
        .map_err(|refusal| {
            if matches!(refusal, Refusal::NameTaken { .. }) {
                tracing::warn!(%node_id, address, %refusal, "a node was refused");
            }
            refused(&refusal)
        })?;
    tracing::info!(%node_id, "a node has registered");
    let next_heartbeat_ms = millis(plane.settings.heartbeat_interval_ms);
    Ok(json(StatusCode::OK, &RegisterResponse { next_heartbeat_ms }))
}

/// Takes a node's report
#[utoipa::path(post, path = "/v2/nodes/{id}/heartbeat", tag = "nodes", params(("id" = NodeId, Path)),
    request_body = HeartbeatRequest,
    responses((status = 200, body = HeartbeatResponse), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody, description = "register again")))]
pub(crate) async fn heartbeat(
    State(plane): State<SharedPlane>,
    certified: Option<Extension<Certified>>,
    headers: HeaderMap,
    Id(node_id): Id<NodeId>,
    Json(request): Json<HeartbeatRequest>,
) -> Page {
    plane.access.node(&headers, certified.is_some())?;
    plane
        .take_report(|registry, now, changes| registry.heartbeat(now, now_ms(), &node_id, request, changes))
        .map_err(|refusal| refused(&refusal))?;
    let next_heartbeat_ms = millis(plane.settings.heartbeat_interval_ms);
    Ok(json(StatusCode::OK, &HeartbeatResponse { next_heartbeat_ms }))
}

/// Takes what a node says about one pool between two heartbeats
#[utoipa::path(post, path = "/v2/nodes/callback", tag = "nodes", request_body = PoolCallback,
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn callback(
    State(plane): State<SharedPlane>,
    certified: Option<Extension<Certified>>,
    headers: HeaderMap,
    Json(callback): Json<PoolCallback>,
) -> Page {
    plane.access.node(&headers, certified.is_some())?;
    plane
        .take_report(|registry, now, changes| registry.callback(now, callback, changes))
        .map_err(|refusal| refused(&refusal))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Forgets a node
#[utoipa::path(delete, path = "/v2/nodes/{id}", tag = "nodes", params(("id" = NodeId, Path)),
    responses((status = 204), (status = 400, body = task_api::ErrorBody)))]
pub(crate) async fn deregister(
    State(plane): State<SharedPlane>,
    certified: Option<Extension<Certified>>,
    headers: HeaderMap,
    Id(node_id): Id<NodeId>,
) -> Page {
    plane.access.node(&headers, certified.is_some())?;
    let known = plane.take_report(|registry, _, changes| {
        registry.deregister(&node_id, changes);
        Ok(!changes.is_empty())
    });
    if known.unwrap_or_default() {
        tracing::info!(%node_id, "a node has taken its leave");
    }
    plane.forget_link(&node_id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Lists the nodes
#[utoipa::path(get, path = "/v2/nodes", tag = "nodes", responses((status = 200, body = [NodeView])))]
pub(crate) async fn list(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.user(&headers)?;
    let registry = plane.registry.lock().unwrap_or_else(PoisonError::into_inner);
    let views: Vec<NodeView> = registry.nodes().map(|node| view(&plane, node)).collect();
    drop(registry);
    Ok(json(StatusCode::OK, &views))
}

/// Shows a node
#[utoipa::path(get, path = "/v2/nodes/{id}", tag = "nodes", params(("id" = NodeId, Path)),
    responses((status = 200, body = NodeView), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn show(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(node_id): Id<NodeId>,
) -> Page {
    plane.access.user(&headers)?;
    let registry = plane.registry.lock().unwrap_or_else(PoisonError::into_inner);
    let found = registry
        .nodes()
        .find(|node| node.node_id == node_id)
        .map(|node| view(&plane, node));
    drop(registry);
    Ok(json(
        StatusCode::OK,
        &found.ok_or_else(|| refused(&Refusal::Unknown))?,
    ))
}

/// Gives a node no new tasks
#[utoipa::path(post, path = "/v2/nodes/{id}/drain", tag = "nodes", params(("id" = NodeId, Path)),
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn drain(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(node_id): Id<NodeId>,
) -> Page {
    set_draining(&plane, &headers, &node_id, true)
}

/// Gives a node new tasks again
#[utoipa::path(delete, path = "/v2/nodes/{id}/drain", tag = "nodes", params(("id" = NodeId, Path)),
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn undrain(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(node_id): Id<NodeId>,
) -> Page {
    set_draining(&plane, &headers, &node_id, false)
}

fn set_draining(plane: &Plane, headers: &HeaderMap, node_id: &NodeId, draining: bool) -> Page {
    plane.access.admin(headers)?;
    plane
        .take_report(|registry, _, changes| registry.set_draining(node_id, draining, changes))
        .map_err(|refusal| refused(&refusal))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn view(plane: &Plane, node: &NodeEntry) -> NodeView {
    let last_seen_ms_ago = millis(plane.now().saturating_sub(node.last_seen));
    NodeView {
        node_id: node.node_id.clone(),
        machine_id: node.machine_id.clone(),
        address: node.address.clone(),
        state: node.state(),
        last_seen: crate::plane::rfc3339(now_ms().saturating_sub(last_seen_ms_ago)),
        last_seen_ms_ago,
        version: node.version.clone(),
        capabilities: node.capabilities.clone(),
        pools: node.pools().cloned().collect(),
    }
}

fn refused(refusal: &Refusal) -> ApiError {
    let code = match refusal {
        Refusal::Unknown => ErrorCode::NotFound,
        Refusal::TooManyNodes { .. } | Refusal::ReportsItself | Refusal::NameTaken { .. } => {
            ErrorCode::Conflict
        }
        Refusal::TooLarge => ErrorCode::InvalidParams,
    };
    ApiError::new(code, refusal.to_string())
}
