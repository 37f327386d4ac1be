//! Tasks: submitting, looking, following, cancelling.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::Deserialize;
use store::{Role, TaskFilter};
use task_api::{ApiError, ErrorCode, TaskAccepted, TaskId, TaskList, TaskRequest, TaskState, TaskView};

use super::answer::{Asked, Correlation, Id, Json, Page, json};
use crate::access::Identity;
use crate::plane::{Plane, SharedPlane};
use crate::recent::Shown;
use crate::tasks::{Follower, LiveTask, start, stream, too_old};

/// Where a reader of events left off.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How many tasks a page of the list has, when nothing else is asked for, and at the most.
const PAGE_LEN: u32 = 50;
const PAGE_LEN_MAX: u32 = 500;

/// Submits a task
#[utoipa::path(post, path = "/v2/tasks", tag = "tasks", request_body = TaskRequest,
    responses((status = 202, body = TaskAccepted), (status = 200, content_type = "text/event-stream", body = String,
               description = "the events themselves, when the request accepts text/event-stream"),
              (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody),
              (status = 409, body = task_api::ErrorBody), (status = 422, body = task_api::ErrorBody),
              (status = 429, body = task_api::ErrorBody), (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn submit(
    State(plane): State<SharedPlane>,
    Extension(correlation): Extension<Correlation>,
    headers: HeaderMap,
    Json(request): Json<TaskRequest>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    refuse_while_stopping(&plane)?;
    let (task, accepted) = start(&plane, &identity, request, &headers, &correlation).await?;
    let wants_stream = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
    if wants_stream {
        return follow(task, 0, &accepted.task_id);
    }
    let mut response = json(StatusCode::ACCEPTED, &accepted);
    if let Ok(location) = accepted.links.this.parse() {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Nothing new is taken while what runs is finished.
pub(crate) fn refuse_while_stopping(plane: &SharedPlane) -> Result<(), ApiError> {
    if !plane.is_stopping() {
        return Ok(());
    }
    let message = "this control plane is shutting down; ask another one";
    Err(ApiError::new(ErrorCode::PoolUnavailable, message)
        .with_retry_after_ms(crate::plane::RETRY_AFTER_DEFAULT_MS))
}

/// What of the list is wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only tasks in this state.
    state: Option<TaskState>,
    /// Only tasks of this session.
    session_id: Option<task_api::SessionId>,
    /// Only this owner's tasks; others' are for admins to see.
    owner: Option<String>,
    /// Where the last page ended.
    #[param(pattern = "^[0-9]{1,18}\\.[A-Za-z0-9._:-]{1,128}$")]
    cursor: Option<String>,
    /// How many, 1 to 500; 50 without it.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// Lists tasks, the newest first
///
/// Requests of `/v1` stand among them, with their `dialect`: those that run, and of those that have ended the last 512
/// of each worker thread. They are kept in memory only.
#[utoipa::path(get, path = "/v2/tasks", tag = "tasks", params(ListQuery),
    responses((status = 200, body = TaskList), (status = 400, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn list(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Asked(query): Asked<ListQuery>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    let limit = query.limit.unwrap_or(PAGE_LEN);
    if !(1..=PAGE_LEN_MAX).contains(&limit) {
        let message = format!("limit must be from 1 to {PAGE_LEN_MAX}");
        return Err(ApiError::new(ErrorCode::InvalidParams, message)
            .with_param("limit")
            .into());
    }
    let filter = TaskFilter {
        owner: if identity.role == Role::Admin {
            query.owner
        } else {
            Some(identity.owner.to_string())
        },
        state: query.state,
        session: query.session_id.map(String::from),
        cursor: query.cursor,
        limit,
    };
    let requests = requests(&plane, &filter);
    let (records, next_cursor) = plane
        .store
        .list_tasks(filter)
        .await
        .map_err(|error| unreadable(&error))?;
    // The store may be a moment behind what is in memory.
    let mut tasks: Vec<Shown> = records
        .into_iter()
        .map(|record| Shown {
            created_ms: record.created_ms,
            view: match plane.tasks.get(&record.view.task_id) {
                Some(live) => live_view(&plane, &live),
                None => record.view,
            },
        })
        .collect();
    tasks.extend(requests);
    Ok(json(
        StatusCode::OK,
        &page(tasks, next_cursor.is_some(), limit as usize),
    ))
}

/// The requests of `/v1` that the filter takes. They have no sessions.
fn requests(plane: &Plane, filter: &TaskFilter) -> Vec<Shown> {
    if filter.session.is_some() {
        return Vec::new();
    }
    let before = filter.cursor.as_deref().and_then(|cursor| cursor.split_once('.'));
    let before = before.and_then(|(ms, id)| Some((ms.parse::<u64>().ok()?, id)));
    let before_ms = before.map_or(u64::MAX, |(ms, _)| ms);
    // One more than a page, so that it shows whether there is a next one.
    let mut requests = plane
        .recent
        .newest(filter.limit as usize + 1, before_ms, |owner, state| {
            filter.owner.as_deref().is_none_or(|wanted| wanted == owner)
                && filter.state.is_none_or(|wanted| wanted == state)
        });
    requests.retain(|shown| before.is_none_or(|before| order(shown) < before));
    requests
}

/// What the list is ordered by, as in the store.
fn order(shown: &Shown) -> (u64, &str) {
    (shown.created_ms, shown.view.task_id.as_str())
}

/// One page of what both lists gave, the newest first. `more`: the store has a next page.
fn page(mut tasks: Vec<Shown>, more: bool, limit: usize) -> TaskList {
    tasks.sort_by(|a, b| order(b).cmp(&order(a)));
    let cut = tasks.len() > limit;
    tasks.truncate(limit);
    let last = tasks.last().filter(|_| cut || more);
    let next_cursor = last.map(|last| format!("{}.{}", last.created_ms, last.view.task_id));
    TaskList {
        tasks: tasks.into_iter().map(|shown| shown.view).collect(),
        next_cursor,
    }
}

/// Shows a task
#[utoipa::path(get, path = "/v2/tasks/{id}", tag = "tasks", params(("id" = TaskId, Path)),
    responses((status = 200, body = TaskView), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn show(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<TaskId>) -> Page {
    let identity = plane.access.user(&headers)?;
    if let Some(live) = plane.tasks.get(&id) {
        check_owner(&identity, &live.owner, &id)?;
        return Ok(json(StatusCode::OK, &live_view(&plane, &live)));
    }
    if let Some(request) = request(&plane, &identity, &id)? {
        return Ok(json(StatusCode::OK, &request));
    }
    Ok(json(StatusCode::OK, &stored(&plane, &identity, &id).await?))
}

/// Streams a task's events, from the beginning or after `Last-Event-ID`
#[utoipa::path(get, path = "/v2/tasks/{id}/events", tag = "tasks",
    params(("id" = TaskId, Path), ("last-event-id" = Option<u64>, Header, description = "where to go on")),
    responses((status = 200, content_type = "text/event-stream", body = String),
              (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 409, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn events(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<TaskId>) -> Page {
    let identity = plane.access.user(&headers)?;
    let after = last_event_id(&headers)?;
    if request(&plane, &identity, &id)?.is_some() {
        let message =
            format!("task {id} is a request of /v1: its events went to its client and are not kept");
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    if let Some(live) = plane.tasks.get(&id) {
        check_owner(&identity, &live.owner, &id)?;
        return follow(live, after, &id);
    }
    let view = stored(&plane, &identity, &id).await?;
    Err(ApiError::new(
        ErrorCode::Conflict,
        format!(
            "task {id} has ended ({:?}) and its events are no longer kept; GET /v2/tasks/{id} tells how",
            view.state
        ),
    )
    .into())
}

/// Ends a task
#[utoipa::path(post, path = "/v2/tasks/{id}/cancel", tag = "tasks", params(("id" = TaskId, Path)),
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn cancel(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<TaskId>) -> Page {
    let identity = plane.access.user(&headers)?;
    match plane.tasks.get(&id) {
        Some(live) => {
            check_owner(&identity, &live.owner, &id)?;
            live.cancel.cancel();
        }
        None if request(&plane, &identity, &id)?.is_some() => plane.recent.cancel(&id),
        // A task that has ended is as cancelled as it can be.
        None => drop(stored(&plane, &identity, &id).await?),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(0);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            ApiError::new(
                ErrorCode::InvalidParams,
                "Last-Event-ID must be the number of an event",
            )
            .with_param(LAST_EVENT_ID.as_str())
        })
}

/// The events as a response.
fn follow(task: Arc<LiveTask>, after: u64, id: &TaskId) -> Page {
    let follower = Follower::new(task, after).map_err(|_| too_old(id, after))?;
    let body = Body::from_stream(stream(follower));
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    let response: Response = (headers, body).into_response();
    Ok(response)
}

fn live_view(plane: &SharedPlane, live: &LiveTask) -> TaskView {
    let (mut view, waits) = {
        let state = live.lock();
        (state.view.clone(), state.waits)
    };
    if let Some(key) = waits.filter(|_| view.state == TaskState::Queued) {
        let entry = plane.guarded.with(|scheduler, _| scheduler.task(key));
        view.position = entry
            .and_then(|entry| entry.waiting)
            .map(|waiting| waiting.position);
    }
    view
}

/// A request of `/v1`.
fn request(plane: &Plane, identity: &Identity, id: &TaskId) -> Result<Option<TaskView>, ApiError> {
    let Some(view) = plane.recent.find(id) else {
        return Ok(None);
    };
    check_owner(identity, &view.owner, id)?;
    Ok(Some(view))
}

async fn stored(plane: &SharedPlane, identity: &Identity, id: &TaskId) -> Result<TaskView, ApiError> {
    let record = plane
        .store
        .task(id.clone())
        .await
        .map_err(|error| unreadable(&error))?;
    let view = record.ok_or_else(|| no_such_task(id))?.view;
    check_owner(identity, &view.owner, id)?;
    Ok(view)
}

/// A task of the caller's own; not even an admin gets at what belongs to others' tasks.
pub(crate) async fn own_task(
    plane: &SharedPlane,
    identity: &Identity,
    id: &TaskId,
) -> Result<TaskView, ApiError> {
    let view = match plane.tasks.get(id) {
        Some(live) => {
            check_owner(identity, &live.owner, id)?;
            live_view(plane, &live)
        }
        None => match request(plane, identity, id)? {
            Some(view) => view,
            None => stored(plane, identity, id).await?,
        },
    };
    if *view.owner != *identity.owner {
        let message = format!("the workspace of task {id} is its owner's alone");
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(view)
}

/// Another owner's task does not exist, as far as one can tell.
fn check_owner(identity: &Identity, owner: &str, id: &TaskId) -> Result<(), ApiError> {
    if identity.role == Role::Admin || *identity.owner == *owner {
        Ok(())
    } else {
        Err(no_such_task(id))
    }
}

fn no_such_task(id: &TaskId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no task {id}"))
}

fn unreadable(error: &store::StoreError) -> ApiError {
    match error {
        store::StoreError::BadCursor => ApiError::new(
            ErrorCode::InvalidParams,
            "cursor is not one that a page of this list gave",
        )
        .with_param("cursor"),
        other => ApiError::new(
            ErrorCode::PoolUnavailable,
            "the store cannot be read now; try again",
        )
        .with_retry_after_ms(crate::plane::RETRY_AFTER_DEFAULT_MS)
        .with_internal(daemon::exit::chain(other)),
    }
}
