//! The pages about pools, and what can be done to them.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use pool_registry_types::{CallbackRegistration, PoolId, PoolStatus, RegisterRequest};
use serde::Deserialize;
use task_api::ErrorCode;

use super::Rooms;
use super::answer::{ServerBody, empty, error, json};
use super::read::{Bounds, read};
use crate::agents::ReloadError;
use crate::callbacks::CallbackError;
use crate::door::chain;
use crate::node::CommandError;
use crate::reconcile::DRAIN_DEFAULT;

/// These requests are a line.
const LINE: Bounds = Bounds {
    bytes_max: 64 * 1024,
    timeout: Duration::from_secs(10),
};
/// Nobody waits longer for a drain.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainRequest {
    deadline_ms: Option<u64>,
}

/// The whole node, in the shape of a registration, so that one that polls reads the same as one that is told.
pub(super) fn list(rooms: &Rooms) -> Response<ServerBody> {
    let (sequence, report) = rooms.reporter.next();
    let node = RegisterRequest {
        node_id: rooms.identity.node_id.clone(),
        machine_id: rooms.identity.machine_id.clone(),
        address: rooms.identity.address.clone(),
        pools: report.pools,
        draining: report.draining,
        capabilities: report.capabilities,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: rooms.reporter.incarnation().to_owned(),
        sequence,
    };
    json(200, &node)
}

pub(super) fn show(rooms: &Rooms, id: &str) -> Response<ServerBody> {
    match id
        .parse()
        .ok()
        .and_then(|id: PoolId| rooms.control.door().pool(&id))
    {
        Some(pool) => json(200, &pool),
        None => unknown(id),
    }
}

pub(super) fn status(rooms: &Rooms, id: &str) -> Response<ServerBody> {
    match id
        .parse()
        .ok()
        .and_then(|id: PoolId| rooms.control.door().pool(&id))
    {
        Some(pool) => json(
            200,
            &PoolStatus {
                live: true,
                ready: pool.ready,
                slots_free: pool.slots_free,
                slots_total: pool.slots_total,
                vram_free_bytes: pool.vram_free_bytes,
                last_error: pool.last_error,
            },
        ),
        None => unknown(id),
    }
}

pub(super) async fn drain(rooms: &Rooms, id: &str, request: Request<Incoming>) -> Response<ServerBody> {
    let Ok(pool) = id.parse() else { return unknown(id) };
    let asked: DrainRequest = match read(request, LINE, true).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let deadline = asked
        .deadline_ms
        .map_or(DRAIN_DEFAULT, Duration::from_millis)
        .min(DRAIN_MAX);
    accepted(rooms.control.drain(&pool, deadline).await)
}

pub(super) async fn undrain(rooms: &Rooms, id: &str) -> Response<ServerBody> {
    let Ok(pool) = id.parse() else { return unknown(id) };
    accepted(rooms.control.undrain(&pool).await)
}

pub(super) async fn reload(rooms: &Rooms, id: &str) -> Response<ServerBody> {
    let Ok(pool) = id.parse() else { return unknown(id) };
    accepted(rooms.control.reload(&pool).await)
}

pub(super) async fn register_callback(rooms: &Rooms, request: Request<Incoming>) -> Response<ServerBody> {
    let asked: CallbackRegistration = match read(request, LINE, false).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match rooms.callbacks.register(&asked.url) {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(wrong @ CallbackError::Url(_)) => error(ErrorCode::InvalidParams, wrong.to_string()),
        Err(wrong @ CallbackError::Full) => error(ErrorCode::Conflict, wrong.to_string()),
    }
}

fn accepted(result: Result<(), CommandError>) -> Response<ServerBody> {
    match result {
        Ok(()) => json(202, &serde_json::json!({"accepted": true})),
        Err(wrong @ CommandError::UnknownPool(_)) => error(ErrorCode::NotFound, wrong.to_string()),
        Err(wrong @ CommandError::Reload(ReloadError::Problem(_))) => {
            error(ErrorCode::InvalidParams, chain(&wrong))
        }
        Err(wrong @ (CommandError::Ending | CommandError::Reload(ReloadError::Ending))) => {
            error(ErrorCode::PoolUnavailable, wrong.to_string())
        }
    }
}

fn unknown(id: &str) -> Response<ServerBody> {
    let shown: String = id.chars().take(128).collect();
    error(ErrorCode::NotFound, format!("this node has no pool {shown:?}"))
}
