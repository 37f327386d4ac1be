//! `POST /api/execute`: an agent's task in one call.

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::IntoResponse as _;
use futures_util::StreamExt as _;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use store::Role;
use task_api::{ApiError, ErrorBody, ErrorCode, Event, Priority, TaskId, TaskRequest, Usage, Workload};
use tokio_util::sync::DropGuard;

use super::answer::{Correlation, Json, Page, json};
use crate::access::Identity;
use crate::plane::SharedPlane;
use crate::tasks::{Follower, start, stream, too_old};

/// Whose agent is to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Provider {
    /// Codex.
    Openai,
    /// Claude Code.
    Anthropic,
    /// Gemini CLI.
    Google,
}

impl Provider {
    const fn agent(self) -> &'static str {
        match self {
            Self::Openai => "codex",
            Self::Anthropic => "claude",
            Self::Google => "gemini",
        }
    }
}

/// What is to be done.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecuteRequest {
    /// Whose agent.
    provider: Provider,
    /// What it is to do. One of `prompt` and `command` is needed.
    #[serde(default)]
    prompt: Option<String>,
    /// The same by its older name.
    #[serde(default)]
    command: Option<String>,
    /// The model, in the agent's own words.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    model: Option<String>,
    /// On whose login. The caller's own; another's only for admins.
    #[serde(default, rename = "userId")]
    #[schema(min_length = 1, max_length = 128)]
    user_id: Option<String>,
}

/// What has come of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ExecuteAnswer {
    /// The task that it was.
    task_id: TaskId,
    /// Whose agent.
    provider: Provider,
    /// Whether the agent says that it is done.
    success: bool,
    /// Its answer, as far as it came.
    output: String,
    /// What it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
}

/// Has an agent do something, and gives the whole answer, or its events as they come
///
/// Closing the connection cancels the task.
#[utoipa::path(post, path = "/api/execute", tag = "tasks", request_body = ExecuteRequest,
    responses((status = 200, body = ExecuteAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
              (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody),
              (status = 499, body = ErrorBody), (status = 500, body = ErrorBody), (status = 502, body = ErrorBody),
              (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(crate) async fn execute(
    State(plane): State<SharedPlane>,
    Extension(correlation): Extension<Correlation>,
    headers: HeaderMap,
    Json(request): Json<ExecuteRequest>,
) -> Page {
    let identity = on_behalf(plane.access.user(&headers)?, request.user_id.as_deref())?;
    super::tasks::refuse_while_stopping(&plane)?;
    let provider = request.provider;
    let (task, accepted) = start(&plane, &identity, task(request)?, &headers, &correlation).await?;
    let cancel = task.cancel.clone().drop_guard();
    let id = accepted.task_id;
    let follower = Follower::new(task, 0).map_err(|_| too_old(&id, 0))?;
    let wants_stream = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
    if wants_stream {
        let events = stream(follower).map(move |bytes| kept(&cancel, bytes));
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
        return Ok((headers, Body::from_stream(events)).into_response());
    }
    whole(follower, id, provider, &correlation).await
}

/// The stream holds the guard for as long as somebody reads.
fn kept<T>(_cancel: &DropGuard, item: T) -> T {
    item
}

/// Who it is for: the caller, unless an admin speaks for somebody else.
fn on_behalf(caller: Identity, user_id: Option<&str>) -> Result<Identity, ApiError> {
    match user_id {
        None => Ok(caller),
        Some(user) if *user == *caller.owner => Ok(caller),
        Some(_) if caller.role != Role::Admin => Err(ApiError::new(
            ErrorCode::Forbidden,
            "userId must be your own: a login is its owner's and nobody else's",
        )
        .with_param("userId")),
        Some(user) if user.is_empty() || user.len() > 128 => Err(ApiError::new(
            ErrorCode::InvalidParams,
            "userId must have 1 to 128 characters",
        )
        .with_param("userId")),
        Some(user) => Ok(Identity {
            owner: user.into(),
            role: Role::User,
            only_model: None,
        }),
    }
}

fn task(request: ExecuteRequest) -> Result<TaskRequest, ApiError> {
    let prompt = match (request.prompt, request.command) {
        (Some(_), Some(_)) => {
            return Err(ApiError::new(
                ErrorCode::InvalidParams,
                "prompt and command mean the same: give one of them",
            )
            .with_param("command"));
        }
        (prompt, command) => prompt.or(command),
    };
    Ok(TaskRequest {
        task_id: None,
        session_id: None,
        workload: Workload::Agent,
        model: request.model,
        pool: None,
        agent: Some(request.provider.agent().to_owned()),
        prompt,
        messages: None,
        input: None,
        priority: Priority::Interactive,
        max_tokens: None,
        seed: None,
        deadline_ms: None,
        placement: None,
        effort: None,
        workspace: None,
        verbose: None,
    })
}

/// Waits for the end. What the agent has said stands in the answer also when it has failed.
async fn whole(mut follower: Follower, id: TaskId, provider: Provider, correlation: &Correlation) -> Page {
    let mut answer = ExecuteAnswer {
        task_id: id,
        provider,
        success: false,
        output: String::new(),
        usage: None,
        error: None,
    };
    let mut status = StatusCode::OK;
    while let Some(events) = follower.next_events().await {
        for event in events {
            match event {
                Event::Token { t, .. } => answer.output.push_str(&t),
                Event::TextReplaced { t } => answer.output = t,
                Event::End(usage) => {
                    answer.success = true;
                    answer.usage = Some(usage);
                }
                Event::Error {
                    code,
                    message,
                    retry_after_ms,
                    ..
                } => {
                    let error = ApiError {
                        retry_after_ms,
                        ..ApiError::new(code, message)
                    };
                    if answer.output.is_empty() {
                        return Err(error.into());
                    }
                    status =
                        StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    answer.error = Some(error.body(Some(correlation.as_str().to_owned())));
                }
                _ => {}
            }
        }
    }
    // A failure after some output is an error body that also has the output: code and message stand where they always do.
    match answer.error.take() {
        None => Ok(json(status, &answer)),
        Some(error) => {
            let mut body = serde_json::to_value(&answer).expect("our own types can be written as JSON");
            let error = serde_json::to_value(error).expect("our own types can be written as JSON");
            if let (Some(body), serde_json::Value::Object(error)) = (body.as_object_mut(), error) {
                body.extend(error);
            }
            Ok(json(status, &body))
        }
    }
}
