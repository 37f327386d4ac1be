//! The way of a run, or of a login, to its node: a function call in the same process, a stream of lines otherwise.

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use http::header::RETRY_AFTER;
use http::{Method, Response};
use http_body_util::{BodyExt as _, Limited};
use pool_managerd::{DoorError, Events};
use pool_registry_types::{
    AGENTS_PREFIX, AgentEvent, AgentLogin, AgentRun, LoginEvent, LoginInput, LoginStatus,
    NODE_REFUSAL_HEADER, PoolId, WorkspaceMade, WorkspaceView,
};
use scheduler::ReplicaInfo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use task_api::{ApiError, ErrorBody, ErrorCode, TaskId};
use upstream::{NodeBody, Pieces, SendError};

use crate::plane::{LinkError, NodeLink, Plane, RemoteNode};

/// The longest line of a node's answer; what it tells is bounded far below.
const LINE_LEN_MAX: usize = 2 * 1024 * 1024;

/// The longest answer of a node that is no stream.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Why a run or a login did not begin.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The node has given the slot to somebody else.
    Slot,
    /// The node cannot be used now; the reason is its own.
    Out(String),
    /// Nothing came back.
    NoAnswer(String),
    /// Another node would say the same.
    Final(ApiError),
}

/// What a node tells while something goes on. Dropping it ends that.
pub(crate) enum Told<T> {
    Local(Events<T>),
    Remote(Lines),
}

/// What a node gives of a workspace.
pub(crate) struct Content {
    /// How many bytes, when that is known.
    pub(crate) len: Option<u64>,
    /// They; an error means that they are not all.
    pub(crate) pieces: Pieces,
}

/// Lines of a node's answer.
pub(crate) struct Lines {
    body: NodeBody,
    read: BytesMut,
}

impl<T: DeserializeOwned> Told<T> {
    /// The next event; None after the last one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<T, String>> {
        match self {
            Self::Local(events) => events.next().await.map(Ok),
            Self::Remote(lines) => match lines.next().await? {
                Ok(line) => Some(
                    serde_json::from_slice(&line).map_err(|error| format!("a line cannot be read: {error}")),
                ),
                Err(why) => Some(Err(why)),
            },
        }
    }
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Bytes, String>> {
        let mut looked_at = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.read[looked_at..]) {
                let line = self.read.split_to(looked_at + end + 1).freeze();
                if line.len() > 1 {
                    return Some(Ok(line));
                }
                looked_at = 0;
                continue;
            }
            looked_at = self.read.len();
            if looked_at > LINE_LEN_MAX {
                return Some(Err(format!("a line has more than {LINE_LEN_MAX} bytes")));
            }
            match self.body.frame().await? {
                Ok(frame) => self
                    .read
                    .extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) => return Some(Err(daemon::exit::chain(&error))),
            }
        }
    }
}

/// The nodes' doors, for agents.
pub(crate) struct AgentLink<'p> {
    plane: &'p Plane,
    link: NodeLink,
    info: &'p ReplicaInfo,
}

impl<'p> AgentLink<'p> {
    pub(crate) fn to(plane: &'p Plane, info: &'p ReplicaInfo) -> Result<Self, Refused> {
        let link = plane.link(info).map_err(|error| of_link(&error))?;
        Ok(Self { plane, link, info })
    }

    /// Begins a run. Dropping the future, or what it gives, cancels.
    pub(crate) async fn run(&self, run: AgentRun) -> Result<Told<AgentEvent>, Refused> {
        let (pool, replica) = (&self.info.pool_id, &self.info.replica_id);
        match &self.link {
            NodeLink::Local(door) => {
                let events = door.run_agent(pool, &self.plane.id, run).await;
                events.map(Told::Local).map_err(|error| of_door(&error))
            }
            NodeLink::Remote(remote) => {
                let path = format!("{AGENTS_PREFIX}/{pool}/{replica}/runs");
                self.stream(remote, &path, &run).await
            }
        }
    }

    /// Begins a login.
    pub(crate) async fn log_in(&self, login: AgentLogin) -> Result<Told<LoginEvent>, Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => {
                let events = door.begin_login(pool, &self.plane.id, login).await;
                events.map(Told::Local).map_err(|error| of_door(&error))
            }
            NodeLink::Remote(remote) => {
                self.stream(remote, &format!("{AGENTS_PREFIX}/{pool}/logins"), &login)
                    .await
            }
        }
    }

    /// Passes on what a person has entered.
    pub(crate) async fn enter(&self, login_id: &str, input: LoginInput) -> Result<(), Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => door
                .login_input(pool, login_id, input)
                .await
                .map_err(|error| of_door(&error)),
            NodeLink::Remote(remote) => {
                let path = format!("{AGENTS_PREFIX}/{pool}/logins/{login_id}/input");
                let body = to_bytes(&input);
                self.ask(remote, Method::POST, &path, body).await.map(drop)
            }
        }
    }

    /// Asks whether an owner is logged in.
    pub(crate) async fn status(&self, owner: &str) -> Result<LoginStatus, Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => {
                let status = door.login_status(pool, &self.plane.id, owner).await;
                status.map_err(|error| of_door(&error))
            }
            NodeLink::Remote(remote) => {
                let path = login_path(pool, owner);
                let body = self.ask(remote, Method::GET, &path, Bytes::new()).await?;
                serde_json::from_slice(&body)
                    .map_err(|error| Refused::Out(format!("the node's answer cannot be read: {error}")))
            }
        }
    }

    /// Removes an owner's login.
    pub(crate) async fn remove(&self, owner: &str) -> Result<(), Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => door
                .remove_login(pool, owner)
                .await
                .map_err(|error| of_door(&error)),
            NodeLink::Remote(remote) => {
                let path = login_path(pool, owner);
                self.ask(remote, Method::DELETE, &path, Bytes::new())
                    .await
                    .map(drop)
            }
        }
    }

    /// Takes a directory in for an owner, as a tar archive in pieces.
    pub(crate) async fn upload_workspace(
        &self,
        owner: &str,
        pieces: Pieces,
    ) -> Result<WorkspaceMade, Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => {
                let pieces = pieces.map_err(|error| daemon::exit::chain(&*error));
                let made = door.upload_workspace(pool, owner, pieces).await;
                made.map_err(|error| of_door(&error))
            }
            NodeLink::Remote(remote) => {
                let path = owned_path(pool, "workspaces", owner);
                let sent = remote.for_agents_in_pieces(&self.plane.id, &path, pieces).await;
                let response = succeeded(sent).await?;
                let body = whole(response).await?;
                serde_json::from_slice(&body)
                    .map_err(|error| Refused::Out(format!("the node's answer cannot be read: {error}")))
            }
        }
    }

    /// Removes an owner's workspace.
    pub(crate) async fn remove_workspace(&self, owner: &str, id: &str) -> Result<(), Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => {
                let removed = door.remove_workspace(pool, owner, id).await;
                removed.map_err(|error| of_door(&error))
            }
            NodeLink::Remote(remote) => {
                let path = owned_path(pool, &format!("workspaces/{id}"), owner);
                let answer = self.ask(remote, Method::DELETE, &path, Bytes::new()).await;
                answer.map(drop)
            }
        }
    }

    /// What an owner's task has made of its workspace.
    pub(crate) async fn task_workspace(
        &self,
        owner: &str,
        task: &TaskId,
        view: WorkspaceView,
    ) -> Result<Content, Refused> {
        let pool = &self.info.pool_id;
        match &self.link {
            NodeLink::Local(door) => {
                let content = door.task_workspace(pool, owner, task.as_str(), view).await;
                let content = content.map_err(|error| of_door(&error))?;
                Ok(Content {
                    len: Some(content.len),
                    pieces: Box::pin(content.into_pieces().map_err(Into::into)),
                })
            }
            NodeLink::Remote(remote) => {
                let path = owned_path(pool, &format!("tasks/{task}/{}", view.as_str()), owner);
                let response = self.send(remote, Method::GET, &path, Bytes::new()).await?;
                let body = response.into_body();
                Ok(Content {
                    len: http_body::Body::size_hint(&body).exact(),
                    pieces: Box::pin(body.into_data_stream().map_err(Into::into)),
                })
            }
        }
    }

    async fn stream<T>(
        &self,
        remote: &RemoteNode,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Told<T>, Refused> {
        let response = self.send(remote, Method::POST, path, to_bytes(body)).await?;
        Ok(Told::Remote(Lines {
            body: response.into_body(),
            read: BytesMut::new(),
        }))
    }

    async fn ask(
        &self,
        remote: &RemoteNode,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, Refused> {
        whole(self.send(remote, method, path, body).await?).await
    }

    async fn send(
        &self,
        remote: &RemoteNode,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<NodeBody>, Refused> {
        succeeded(remote.for_agents(&self.plane.id, method, path, body).await).await
    }
}

async fn succeeded(sent: Result<Response<NodeBody>, SendError>) -> Result<Response<NodeBody>, Refused> {
    let response = sent.map_err(|error| Refused::NoAnswer(daemon::exit::chain(&error)))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(response).await)
}

async fn whole(response: Response<NodeBody>) -> Result<Bytes, Refused> {
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
    let body = body.map_err(|error| Refused::NoAnswer(error.to_string()))?;
    Ok(body.to_bytes())
}

fn login_path(pool: &PoolId, owner: &str) -> String {
    owned_path(pool, "login", owner)
}

/// An owner may be named in any way, so the name is escaped where it stands in a path.
fn owned_path(pool: &PoolId, what: &str, owner: &str) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{AGENTS_PREFIX}/{pool}/{what}?owner=");
    for byte in owner.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                path.push(char::from(byte));
            }
            other => write!(path, "%{other:02X}").expect("a text grows"),
        }
    }
    path
}

fn to_bytes(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("our own types can be written as JSON"))
}

/// Reads why a node has said no.
async fn refusal(response: Response<NodeBody>) -> Refused {
    let status = response.status();
    let named = response.headers().get(NODE_REFUSAL_HEADER).cloned();
    let retry_after_ms = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .map(|seconds| seconds.saturating_mul(1000));
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let told: Option<ErrorBody> = serde_json::from_slice(&body).ok();
    let code = named
        .as_ref()
        .and_then(|value| code(value.to_str().ok()?))
        .or_else(|| told.as_ref().map(|told| told.code));
    let (Some(code), message) = (code, told.as_ref().map(|told| told.message.clone())) else {
        return Refused::Out(format!("the node answered {status}"));
    };
    let retry_after_ms = told.and_then(|told| told.retry_after_ms).or(retry_after_ms);
    of_code(
        code,
        message.unwrap_or_else(|| code.as_str().to_owned()),
        retry_after_ms,
    )
}

/// A code by its name.
pub(crate) fn code(name: &str) -> Option<ErrorCode> {
    ErrorCode::ALL.into_iter().find(|code| code.as_str() == name)
}

fn of_code(code: ErrorCode, message: String, retry_after_ms: Option<u64>) -> Refused {
    match code {
        ErrorCode::ReplicaExhausted => Refused::Slot,
        ErrorCode::WorkerReset => Refused::NoAnswer(message),
        code if code.retriable() && code != ErrorCode::AdmissionReject => Refused::Out(message),
        code => Refused::Final(ApiError {
            retry_after_ms,
            ..ApiError::new(code, message)
        }),
    }
}

fn of_link(error: &LinkError) -> Refused {
    match error {
        LinkError::Refused => Refused::Slot,
        LinkError::ReplicaOut(_) | LinkError::Address(_) => Refused::Out(daemon::exit::chain(error)),
        LinkError::NoAnswer(_) => Refused::NoAnswer(daemon::exit::chain(error)),
    }
}

fn of_door(error: &DoorError) -> Refused {
    let (message, retry_after_ms) = match error {
        DoorError::Agent {
            message,
            retry_after_ms,
            ..
        } => (message.clone(), *retry_after_ms),
        other => (daemon::exit::chain(other), None),
    };
    of_code(error.as_error_code(), message, retry_after_ms)
}
