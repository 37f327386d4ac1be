//! Workspaces: uploaded, removed, and what a task has made of its own. Everybody reaches their own, admins included.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures_util::TryStreamExt as _;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use pool_registry_types::{WorkspaceChanges, WorkspaceMade, WorkspaceView};
use serde::Deserialize;
use task_api::{ApiError, ErrorCode, TaskId, WorkspaceId};

use super::answer::{Asked, Id, Page, json};
use crate::agents::home::{Homes, of_node};
use crate::agents::link::AgentLink;
use crate::agents::workspaces;
use crate::plane::SharedPlane;

/// For which agent a directory is uploaded.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// The agent that is to work in it, such as `claude`: the workspace lies where the caller's login for it does.
    agent: String,
}

/// Uploads a directory for an agent to work in: a tar archive
///
/// Files, directories and links, with paths that stay inside. What was not used for some time is removed.
#[utoipa::path(post, path = "/v2/workspaces", tag = "workspaces", params(UploadQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 201, body = WorkspaceMade), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 429, body = task_api::ErrorBody),
              (status = 500, body = task_api::ErrorBody),
              (status = 502, body = task_api::ErrorBody), (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn upload(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Asked(query): Asked<UploadQuery>,
    body: Body,
) -> Page {
    let identity = plane.access.user(&headers)?;
    super::tasks::refuse_while_stopping(&plane)?;
    let home = Homes::of(&plane).find(&query.agent, &identity.owner).await?;
    let link = AgentLink::to(&plane, &home.info).map_err(of_node)?;
    let pieces = Box::pin(body.into_data_stream().map_err(Into::into));
    let made = link
        .upload_workspace(&identity.owner, pieces)
        .await
        .map_err(of_node)?;
    let Some(workspace_id) = workspaces::named(&made.workspace_id, &home.info.node_id) else {
        let message = format!(
            "the name of node {} is too long for workspaces",
            home.info.node_id
        );
        return Err(ApiError::new(ErrorCode::Internal, message).into());
    };
    let made = WorkspaceMade {
        workspace_id: workspace_id.to_string(),
        ..made
    };
    Ok(json(StatusCode::CREATED, &made))
}

/// Removes a workspace
#[utoipa::path(delete, path = "/v2/workspaces/{id}", tag = "workspaces", params(("id" = WorkspaceId, Path)),
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody),
              (status = 409, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn remove(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(id): Id<WorkspaceId>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    let (id, node) = workspaces::parts(&id)?;
    let info = workspaces::on_node(&plane, &node, None)?;
    let link = AgentLink::to(&plane, &info).map_err(of_node)?;
    link.remove_workspace(&identity.owner, &id)
        .await
        .map_err(of_node)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Lists the files that have changed in a task's workspace since it was made
#[utoipa::path(get, path = "/v2/tasks/{id}/files", tag = "workspaces", params(("id" = TaskId, Path)),
    responses((status = 200, body = WorkspaceChanges), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn files(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<TaskId>) -> Page {
    look(&plane, &headers, &id, WorkspaceView::Files).await
}

/// Gives what has changed in a task's workspace since it was made, as a patch for `git apply`
#[utoipa::path(get, path = "/v2/tasks/{id}/diff", tag = "workspaces", params(("id" = TaskId, Path)),
    responses((status = 200, content_type = "text/x-diff", body = String), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn diff(State(plane): State<SharedPlane>, headers: HeaderMap, Id(id): Id<TaskId>) -> Page {
    look(&plane, &headers, &id, WorkspaceView::Diff).await
}

/// Gives everything in a task's workspace but `.git`, as a tar archive
#[utoipa::path(get, path = "/v2/tasks/{id}/archive", tag = "workspaces", params(("id" = TaskId, Path)),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>),
              (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn archive(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Id(id): Id<TaskId>,
) -> Page {
    look(&plane, &headers, &id, WorkspaceView::Archive).await
}

async fn look(plane: &SharedPlane, headers: &HeaderMap, id: &TaskId, view: WorkspaceView) -> Page {
    let identity = plane.access.user(headers)?;
    let task = super::tasks::own_task(plane, &identity, id).await?;
    let none = |why: &str| ApiError::new(ErrorCode::NotFound, format!("task {id} {why}"));
    let place = task
        .placements
        .last()
        .filter(|_| task.agent.is_some())
        .ok_or_else(|| none("has no workspace: it is no agent's, or was placed nowhere yet"))?;
    let info = workspaces::on_node(plane, &place.node_id, Some(&place.pool_id))?;
    let link = AgentLink::to(plane, &info).map_err(of_node)?;
    let content = link.task_workspace(&identity.owner, id, view).await;
    let content = content.map_err(of_node).map_err(|error| match error.code {
        ErrorCode::NotFound => none("has no workspace, or none any more: those that are not used expire"),
        _ => error,
    })?;
    let mut response: Response = Body::from_stream(content.pieces).into_response();
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, http::HeaderValue::from_static(view.content_type()));
    head.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    if let Some(len) = content.len {
        head.insert(CONTENT_LENGTH, len.into());
    }
    Ok(response)
}
