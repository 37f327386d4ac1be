//! The pools, over all nodes that have them.

use std::collections::HashMap;
use std::sync::PoisonError;

use axum::extract::State;
use http::{HeaderMap, StatusCode};
use pool_managerd::DRAIN_DEFAULT;
use pool_registry_types::{NodeId, PoolId, ReplicaId};
use scheduler::{PoolEntry, ReplicaEntry};
use serde::{Deserialize, Serialize};
use task_api::{ApiError, ErrorCode, PoolView, ReplicaView};

use super::answer::{Id, Json, Page, json};
use crate::plane::{NodeLink, Plane, SharedPlane, millis};

/// Lists the pools
#[utoipa::path(get, path = "/v2/pools", tag = "pools", responses((status = 200, body = [PoolView])))]
pub(crate) async fn list(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.user(&headers)?;
    Ok(json(StatusCode::OK, &views(&plane, None)))
}

/// Shows a pool
#[utoipa::path(get, path = "/v2/pools/{id}", tag = "pools", params(("id" = PoolId, Path)),
    responses((status = 200, body = PoolView), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn show(State(plane): State<SharedPlane>, headers: HeaderMap, Id(pool): Id<PoolId>) -> Page {
    plane.access.user(&headers)?;
    let view = views(&plane, Some(&pool))
        .pop()
        .ok_or_else(|| no_such_pool(&pool))?;
    Ok(json(StatusCode::OK, &view))
}

/// What a drain may say.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    /// When what still runs is ended, in milliseconds from now; 30 s without it.
    #[schema(maximum = 86_400_000)]
    deadline_ms: Option<u64>,
}

/// What was begun, and where.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct OrderView {
    /// Nodes that have begun.
    nodes: Vec<NodeId>,
    /// Nodes that could not be told, with the reason.
    failed: Vec<FailedNode>,
}

/// A node that could not be told.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct FailedNode {
    /// Which node.
    node_id: NodeId,
    /// Why.
    message: String,
}

/// Lets a pool finish what it has and take nothing new
#[utoipa::path(post, path = "/v2/pools/{id}/drain", tag = "pools", params(("id" = PoolId, Path)),
    request_body = DrainRequest,
    responses((status = 202, body = OrderView), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn drain(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(pool): Id<PoolId>,
    Json(request): Json<DrainRequest>,
) -> Page {
    plane.access.admin(&headers)?;
    let deadline_ms = request.deadline_ms.unwrap_or(millis(DRAIN_DEFAULT));
    if deadline_ms > task_api::DEADLINE_MS_MAX {
        let message = format!("deadline_ms must be at most {}", task_api::DEADLINE_MS_MAX);
        return Err(ApiError::new(ErrorCode::InvalidParams, message)
            .with_param("deadline_ms")
            .into());
    }
    set_draining(&plane, &pool, true)?;
    order(&plane, &pool, Order::Drain { deadline_ms }).await
}

/// Gives a pool new tasks again
#[utoipa::path(delete, path = "/v2/pools/{id}/drain", tag = "pools", params(("id" = PoolId, Path)),
    responses((status = 202, body = OrderView), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn undrain(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(pool): Id<PoolId>,
) -> Page {
    plane.access.admin(&headers)?;
    set_draining(&plane, &pool, false)?;
    order(&plane, &pool, Order::Undrain).await
}

/// Starts a pool's engines or sandboxes anew; the old ones serve until the new ones answer
#[utoipa::path(post, path = "/v2/pools/{id}/reload", tag = "pools", params(("id" = PoolId, Path)),
    responses((status = 202, body = OrderView), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody)))]
pub(crate) async fn reload(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(pool): Id<PoolId>,
) -> Page {
    plane.access.admin(&headers)?;
    // A pool that was drained here is taken up again: that is what a reload is for.
    set_draining(&plane, &pool, false)?;
    order(&plane, &pool, Order::Reload).await
}

fn set_draining(plane: &Plane, pool: &PoolId, draining: bool) -> Result<(), ApiError> {
    let now = plane.now();
    let known = plane
        .guarded
        .with(|scheduler, effects| scheduler.drain_pool(now, pool, draining, effects));
    if known { Ok(()) } else { Err(no_such_pool(pool)) }
}

#[derive(Clone, Copy)]
enum Order {
    Drain { deadline_ms: u64 },
    Undrain,
    Reload,
}

/// Tells every node that has the pool.
async fn order(plane: &SharedPlane, pool: &PoolId, order: Order) -> Page {
    let replicas = plane.guarded.with(|scheduler, _| scheduler.replicas(Some(pool)));
    let mut told = OrderView {
        nodes: Vec::new(),
        failed: Vec::new(),
    };
    for replica in replicas {
        let node_id = replica.info.node_id.clone();
        if told.nodes.contains(&node_id) || told.failed.iter().any(|failed| failed.node_id == node_id) {
            continue;
        }
        match order_one(plane, pool, &replica, order).await {
            Ok(()) => told.nodes.push(node_id),
            Err(message) => told.failed.push(FailedNode { node_id, message }),
        }
    }
    tracing::info!(pool_id = %pool, nodes = told.nodes.len(), failed = told.failed.len(), "a pool was given an order");
    Ok(json(StatusCode::ACCEPTED, &told))
}

async fn order_one(plane: &Plane, pool: &PoolId, replica: &ReplicaEntry, order: Order) -> Result<(), String> {
    let link = plane.link(&replica.info).map_err(|error| error.to_string())?;
    let remote = match link {
        NodeLink::Remote(remote) => remote,
        NodeLink::Local(_) => {
            let node = plane.local_node().ok_or("the node in this process has ended")?;
            let told = match order {
                Order::Drain { deadline_ms } => {
                    node.drain(pool, std::time::Duration::from_millis(deadline_ms))
                        .await
                }
                Order::Undrain => node.undrain(pool).await,
                Order::Reload => node.reload(pool).await,
            };
            return told.map_err(|error| error.to_string());
        }
    };
    let drain = format!("/v2/pools/{pool}/drain");
    let response = match order {
        Order::Drain { deadline_ms } => {
            remote
                .post(&drain, format!("{{\"deadline_ms\":{deadline_ms}}}").into())
                .await
        }
        Order::Undrain => remote.delete(&drain).await,
        Order::Reload => {
            remote
                .post(&format!("/v2/pools/{pool}/reload"), "{}".into())
                .await
        }
    };
    let status = response.map_err(|error| daemon::exit::chain(&error))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("the node answered {status}"))
    }
}

fn no_such_pool(pool: &PoolId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no pool {pool}"))
}

/// What the nodes say went wrong, by pool and by replica.
type Errors = HashMap<(PoolId, Option<(NodeId, ReplicaId)>), String>;

fn views(plane: &Plane, only: Option<&PoolId>) -> Vec<PoolView> {
    let (pools, replicas) = plane
        .guarded
        .with(|scheduler, _| (scheduler.pools(), scheduler.replicas(only)));
    let errors = errors(plane);
    let mut by_pool: HashMap<PoolId, Vec<ReplicaEntry>> = HashMap::new();
    for replica in replicas {
        by_pool
            .entry(replica.info.pool_id.clone())
            .or_default()
            .push(replica);
    }
    pools
        .into_iter()
        .filter(|pool| only.is_none_or(|only| pool.pool_id == *only))
        .map(|pool| {
            let replicas = by_pool.remove(&pool.pool_id).unwrap_or_default();
            view(pool, &replicas, &errors)
        })
        .collect()
}

fn errors(plane: &Plane) -> Errors {
    let mut errors = Errors::new();
    for node in plane
        .registry
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .nodes()
    {
        for pool in node.pools() {
            if let Some(error) = &pool.last_error {
                errors.insert((pool.pool_id.clone(), None), error.clone());
            }
            for replica in &pool.replicas {
                if let Some(error) = &replica.last_error {
                    let key = (node.node_id.clone(), replica.replica_id.clone());
                    errors.insert((pool.pool_id.clone(), Some(key)), error.clone());
                }
            }
        }
    }
    errors
}

fn view(pool: PoolEntry, replicas: &[ReplicaEntry], errors: &Errors) -> PoolView {
    let mut models = Vec::new();
    for model in replicas.iter().flat_map(|replica| &replica.info.models) {
        if !models.contains(model) {
            models.push(model.clone());
        }
    }
    PoolView {
        ready: pool.replicas_ready > 0,
        draining: pool.draining,
        models,
        slots_total: pool.slots_total,
        slots_free: pool.slots_free,
        slots_leased: pool.slots_leased,
        queued: pool.waiting_interactive + pool.waiting_batch,
        queued_batch: pool.waiting_batch,
        slot_hold_ms: pool.slot_hold_ms,
        last_error: errors.get(&(pool.pool_id.clone(), None)).cloned(),
        replicas: replicas
            .iter()
            .map(|replica| replica_view(replica, errors))
            .collect(),
        pool_id: pool.pool_id,
    }
}

fn replica_view(replica: &ReplicaEntry, errors: &Errors) -> ReplicaView {
    let info = &replica.info;
    let key = (info.node_id.clone(), info.replica_id.clone());
    let taken = replica.slots_leased + replica.others_busy;
    ReplicaView {
        replica_id: info.replica_id.clone(),
        node_id: info.node_id.clone(),
        state: replica.state,
        taken_out: replica.taken_out,
        engine: info.engine.clone(),
        engine_version: info.engine_version.clone(),
        slots_total: replica.slots_total,
        slots_free: replica.slots_total.saturating_sub(taken),
        last_error: errors.get(&(info.pool_id.clone(), Some(key))).cloned(),
    }
}
