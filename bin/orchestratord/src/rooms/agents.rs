//! Agents, and the logins of those who use them: passed through to the node that keeps an owner's login.
//!
//! Everybody reaches their own login and no other one, admins included. No answer holds a login.

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use pool_registry_types::{AgentLogin, LoginEvent, LoginFailure, LoginInput, LoginKind, LoginStatus, PoolId};
use serde::{Deserialize, Serialize};
use task_api::{ApiError, ErrorCode};

use super::answer::{Correlation, Json, Page, json};
use crate::agents::home::Homes;
use crate::agents::link::{AgentLink, Refused, Told};
use crate::agents::logins::OpenLogin;
use crate::plane::SharedPlane;

/// The longest thing that a person enters.
const INPUT_LEN_MAX: usize = 16 * 1024;

/// The agents there are.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct AgentList {
    /// By name.
    agents: Vec<AgentView>,
}

/// One agent.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct AgentView {
    /// Its name.
    agent: String,
    /// The version of its CLI.
    version: String,
    /// Whether a pool of it takes tasks.
    ready: bool,
    /// Its pools.
    pools: Vec<PoolId>,
}

/// Lists the agents that nodes have pools for
#[utoipa::path(get, path = "/v2/agents", tag = "agents", responses((status = 200, body = AgentList)))]
pub(crate) async fn list(State(plane): State<SharedPlane>, headers: HeaderMap) -> Page {
    plane.access.user(&headers)?;
    let mut agents: Vec<AgentView> = Vec::new();
    for replica in crate::agents::home::replicas(&plane, None) {
        let info = &replica.info;
        let at = match agents.iter().position(|known| known.agent == info.engine) {
            Some(at) => at,
            None => {
                agents.push(AgentView {
                    agent: info.engine.clone(),
                    version: info.engine_version.clone(),
                    ready: false,
                    pools: Vec::new(),
                });
                agents.len() - 1
            }
        };
        let view = &mut agents[at];
        view.ready |= crate::agents::home::is_ready(&replica);
        if !view.pools.contains(&info.pool_id) {
            view.pools.push(info.pool_id.clone());
        }
    }
    agents.sort_by(|a, b| a.agent.cmp(&b.agent));
    Ok(json(StatusCode::OK, &AgentList { agents }))
}

/// How to log in.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoginRequest {
    /// In which way. The agent's usual one without it.
    #[serde(default)]
    kind: Option<LoginKind>,
}

/// What a person enters in a login.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputRequest {
    /// Which login: what its first event said.
    #[schema(min_length = 1, max_length = 64)]
    login_id: String,
    /// The code or the key.
    #[schema(min_length = 1, max_length = 16384)]
    text: String,
}

/// Logs the caller in at an agent: its own dialogue, as events
///
/// The first event is `login` with the login's id. Closing the stream ends the login.
#[utoipa::path(post, path = "/v2/agents/{agent}/login", tag = "agents", request_body = LoginRequest,
    params(("agent" = String, Path, description = "such as claude")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 400, body = task_api::ErrorBody),
              (status = 404, body = task_api::ErrorBody), (status = 409, body = task_api::ErrorBody),
              (status = 429, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn log_in(
    State(plane): State<SharedPlane>,
    Extension(correlation): Extension<Correlation>,
    headers: HeaderMap,
    Path(agent): Path<String>,
    Json(request): Json<LoginRequest>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    super::tasks::refuse_while_stopping(&plane)?;
    let home = Homes::of(&plane).find(&agent, &identity.owner).await?;
    let open = plane.logins.open(&identity.owner, &agent, &home)?;
    let login = AgentLogin {
        login_id: open.id().to_owned(),
        owner: identity.owner.to_string(),
        kind: request.kind,
    };
    let link = AgentLink::to(&plane, &home.info).map_err(of_node)?;
    let told = link.log_in(login).await.map_err(of_node)?;
    tracing::info!(%agent, correlation_id = correlation.as_str(), "a login has begun");
    Ok(events(open, told))
}

/// Enters what a login asks for
#[utoipa::path(post, path = "/v2/agents/{agent}/login/input", tag = "agents", request_body = InputRequest,
    params(("agent" = String, Path, description = "such as claude")),
    responses((status = 204), (status = 400, body = task_api::ErrorBody), (status = 404, body = task_api::ErrorBody),
              (status = 409, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn enter(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Path(agent): Path<String>,
    Json(request): Json<InputRequest>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    if !(1..=INPUT_LEN_MAX).contains(&request.text.len()) {
        let message = format!("text must have 1 to {INPUT_LEN_MAX} bytes");
        return Err(ApiError::new(ErrorCode::InvalidParams, message)
            .with_param("text")
            .into());
    }
    let Some(info) = plane.logins.find(&request.login_id, &identity.owner, &agent) else {
        return Err(ApiError::new(ErrorCode::NotFound, "there is no such login")
            .with_param("login_id")
            .into());
    };
    let input = LoginInput {
        owner: identity.owner.to_string(),
        text: request.text,
    };
    let link = AgentLink::to(&plane, &info).map_err(of_node)?;
    link.enter(&request.login_id, input).await.map_err(of_node)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Tells whether the caller is logged in at an agent
#[utoipa::path(get, path = "/v2/agents/{agent}/login", tag = "agents",
    params(("agent" = String, Path, description = "such as claude")),
    responses((status = 200, body = LoginStatus), (status = 404, body = task_api::ErrorBody),
              (status = 429, body = task_api::ErrorBody), (status = 502, body = task_api::ErrorBody),
              (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn status(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Path(agent): Path<String>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    let home = Homes::of(&plane).find(&agent, &identity.owner).await?;
    let status = match home.status {
        Some(status) => status,
        None => {
            let link = AgentLink::to(&plane, &home.info).map_err(of_node)?;
            link.status(&identity.owner).await.map_err(of_node)?
        }
    };
    Ok(json(StatusCode::OK, &status))
}

/// Removes the caller's login at an agent
#[utoipa::path(delete, path = "/v2/agents/{agent}/login", tag = "agents",
    params(("agent" = String, Path, description = "such as claude")),
    responses((status = 204), (status = 404, body = task_api::ErrorBody), (status = 409, body = task_api::ErrorBody),
              (status = 502, body = task_api::ErrorBody), (status = 503, body = task_api::ErrorBody)))]
pub(crate) async fn remove(
    State(plane): State<SharedPlane>,
    headers: HeaderMap,
    Path(agent): Path<String>,
) -> Page {
    let identity = plane.access.user(&headers)?;
    // Wherever it may be: a login that is to go must not stay somewhere.
    for replica in crate::agents::home::known(&plane, &agent)? {
        let link = AgentLink::to(&plane, &replica.info).map_err(of_node)?;
        link.remove(&identity.owner).await.map_err(of_node)?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn of_node(refused: Refused) -> ApiError {
    crate::agents::home::of_node(refused)
}

/// A login's events as a stream.
fn events(open: OpenLogin, told: Told<LoginEvent>) -> Response {
    let first = event("login", &serde_json::json!({"login_id": open.id()}));
    let rest = futures_util::stream::unfold(Some((open, told)), |state| async move {
        let (open, mut told) = state?;
        let next = told.next().await.unwrap_or(Err("the login broke off".to_owned()));
        let next = next.unwrap_or_else(|why| {
            tracing::warn!(%why, "a login broke off");
            LoginEvent::Ended {
                failure: Some(LoginFailure {
                    code: ErrorCode::WorkerReset.as_str().to_owned(),
                    message: "the node went away in the middle of the login; begin again".to_owned(),
                }),
            }
        });
        let is_last = matches!(next, LoginEvent::Ended { .. });
        let mut value = serde_json::to_value(&next).expect("our own types can be written as JSON");
        let name = value
            .as_object_mut()
            .and_then(|event| event.remove("type"))
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default();
        Some((event(&name, &value), (!is_last).then_some((open, told))))
    });
    let all = futures_util::StreamExt::chain(futures_util::stream::iter([first]), rest);
    let all = futures_util::StreamExt::map(all, Ok::<Bytes, std::convert::Infallible>);
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(all)).into_response()
}

fn event(name: &str, data: &serde_json::Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}
