//! `/v2/agents/{pool}/...`: runs, logins and workspaces for control planes on other machines.
//!
//! A run's or a login's events are the body, one JSON text a line. A control plane that closes it cancels.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use pool_registry_types::{AgentLogin, AgentRun, LoginInput, NODE_REFUSAL_HEADER, PoolId, WorkspaceView};
use serde::Serialize;
use task_api::ErrorCode;

use super::Rooms;
use super::answer::{ServerBody, empty, error, json, wrong_method};
use super::door::holder;
use super::read::{Bounds, read};
use crate::agents::WorkspaceContent;
use crate::door::{DoorError, agent_replica, chain};

const NDJSON: &str = "application/x-ndjson";
/// Events that are there at once go out as one piece of this size at most, and one event.
const PIECE_BYTES: usize = 32 * 1024;
/// Logins and their input are a line.
const LINE: Bounds = Bounds {
    bytes_max: 64 * 1024,
    timeout: Duration::from_secs(10),
};

/// Answers a request whose path begins with the prefix of agents; `rest` is what follows it.
pub(super) async fn answer(rooms: &Rooms, rest: &str, request: Request<Incoming>) -> Response<ServerBody> {
    let segments: Vec<&str> = rest.split('/').collect();
    let Some(pool) = segments.first().and_then(|pool| pool.parse::<PoolId>().ok()) else {
        return error(ErrorCode::NotFound, "the path must be /v2/agents/{pool}/...");
    };
    let method = request.method().clone();
    match (&method, &segments[1..]) {
        (&Method::POST, [replica, "runs"]) if *replica == agent_replica().as_str() => {
            run(rooms, &pool, request).await
        }
        (&Method::POST, ["logins"]) => begin_login(rooms, &pool, request).await,
        (&Method::POST, ["logins", login, "input"]) => input(rooms, &pool, login, request).await,
        (&Method::GET, ["login"]) => status(rooms, &pool, &request).await,
        (&Method::DELETE, ["login"]) => remove(rooms, &pool, &request).await,
        (&Method::POST, ["workspaces"]) => upload(rooms, &pool, request).await,
        (&Method::DELETE, ["workspaces", id]) => remove_workspace(rooms, &pool, id, &request).await,
        (&Method::GET, ["tasks", task, view]) => look(rooms, &pool, task, view, &request).await,
        (_, [replica, "runs"]) if *replica == agent_replica().as_str() => wrong_method("POST"),
        (_, ["logins"] | ["logins", _, "input"]) => wrong_method("POST"),
        (_, ["login"]) => wrong_method("GET, DELETE"),
        (_, ["workspaces"]) => wrong_method("POST"),
        (_, ["workspaces", _]) => wrong_method("DELETE"),
        (_, ["tasks", _, _]) => wrong_method("GET"),
        _ => error(ErrorCode::NotFound, "there is nothing at this path on a node"),
    }
}

async fn run(rooms: &Rooms, pool: &PoolId, request: Request<Incoming>) -> Response<ServerBody> {
    let holder = holder(request.headers());
    let bounds = Bounds {
        bytes_max: rooms.body_max_bytes,
        timeout: rooms.body_timeout,
    };
    let asked: AgentRun = match read(request, bounds, false).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match rooms.control.door().run_agent(pool, &holder, asked).await {
        Ok(events) => lines(events),
        Err(refusal) => refused(&refusal),
    }
}

async fn begin_login(rooms: &Rooms, pool: &PoolId, request: Request<Incoming>) -> Response<ServerBody> {
    let holder = holder(request.headers());
    let asked: AgentLogin = match read(request, LINE, false).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match rooms.control.door().begin_login(pool, &holder, asked).await {
        Ok(events) => lines(events),
        Err(refusal) => refused(&refusal),
    }
}

async fn input(
    rooms: &Rooms,
    pool: &PoolId,
    login: &str,
    request: Request<Incoming>,
) -> Response<ServerBody> {
    let entered: LoginInput = match read(request, LINE, false).await {
        Ok(entered) => entered,
        Err(refusal) => return *refusal,
    };
    match rooms.control.door().login_input(pool, login, entered).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(refusal) => refused(&refusal),
    }
}

async fn status(rooms: &Rooms, pool: &PoolId, request: &Request<Incoming>) -> Response<ServerBody> {
    let Some(owner) = owner(request) else {
        return no_owner();
    };
    let holder = holder(request.headers());
    match rooms.control.door().login_status(pool, &holder, &owner).await {
        Ok(status) => json(200, &status),
        Err(refusal) => refused(&refusal),
    }
}

async fn remove(rooms: &Rooms, pool: &PoolId, request: &Request<Incoming>) -> Response<ServerBody> {
    let Some(owner) = owner(request) else {
        return no_owner();
    };
    match rooms.control.door().remove_login(pool, &owner).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(refusal) => refused(&refusal),
    }
}

async fn upload(rooms: &Rooms, pool: &PoolId, request: Request<Incoming>) -> Response<ServerBody> {
    let Some(owner) = owner(&request) else {
        return no_owner();
    };
    let pieces = request.into_body().into_data_stream();
    let pieces = pieces.map(|piece| piece.map_err(|error| chain(&error)));
    match rooms.control.door().upload_workspace(pool, &owner, pieces).await {
        Ok(made) => json(201, &made),
        Err(refusal) => refused(&refusal),
    }
}

async fn remove_workspace(
    rooms: &Rooms,
    pool: &PoolId,
    id: &str,
    request: &Request<Incoming>,
) -> Response<ServerBody> {
    let Some(owner) = owner(request) else {
        return no_owner();
    };
    match rooms.control.door().remove_workspace(pool, &owner, id).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(refusal) => refused(&refusal),
    }
}

async fn look(
    rooms: &Rooms,
    pool: &PoolId,
    task: &str,
    view: &str,
    request: &Request<Incoming>,
) -> Response<ServerBody> {
    let Some(owner) = owner(request) else {
        return no_owner();
    };
    let Some(view) = WorkspaceView::ALL
        .into_iter()
        .find(|known| known.as_str() == view)
    else {
        return error(
            ErrorCode::NotFound,
            "of a workspace there are files, diff and archive",
        );
    };
    let content = rooms
        .control
        .door()
        .task_workspace(pool, &owner, task, view)
        .await;
    match content {
        Ok(content) => whole(content),
        Err(refusal) => refused(&refusal),
    }
}

fn whole(content: WorkspaceContent) -> Response<ServerBody> {
    let (len, content_type) = (content.len, content.content_type);
    let mut response = Response::new(ServerBody::Pieces(Box::pin(content.into_pieces())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    response
}

/// The owner that the query names.
fn owner(request: &Request<Incoming>) -> Option<String> {
    let mut pairs = request.uri().query()?.split('&');
    let owner = pairs.find_map(|pair| pair.strip_prefix("owner="))?;
    decoded(owner).filter(|owner| !owner.is_empty())
}

/// A value of a query, as it was before it was escaped.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn no_owner() -> Response<ServerBody> {
    error(
        ErrorCode::InvalidParams,
        "the query must name the owner: ?owner=NAME",
    )
}

/// Events as they come, one JSON text a line.
fn lines<T: Serialize + Send + 'static>(
    events: impl Stream<Item = T> + Send + Unpin + 'static,
) -> Response<ServerBody> {
    // What is ready together goes out together; nothing waits for more.
    let pieces = events.ready_chunks(64).map(|events| {
        let mut piece = Vec::with_capacity(PIECE_BYTES.min(events.len() * 128));
        for event in &events {
            serde_json::to_writer(&mut piece, event).expect("events are made of texts and numbers");
            piece.push(b'\n');
        }
        Bytes::from(piece)
    });
    let mut response = Response::new(ServerBody::Lines(Box::pin(pieces)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

fn refused(refusal: &DoorError) -> Response<ServerBody> {
    let code = refusal.as_error_code();
    let mut response = error(code, chain(refusal));
    let headers = response.headers_mut();
    headers.insert(NODE_REFUSAL_HEADER, HeaderValue::from_static(code.as_str()));
    if let DoorError::Agent {
        retry_after_ms: Some(retry_after_ms),
        ..
    } = refusal
    {
        headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_come_out_of_a_query_as_they_went_in() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(decoded(text).as_deref(), expect, "{text}");
        check("ann", Some("ann"));
        check("ann%40example.com", Some("ann@example.com"));
        check("a+b%2Bc", Some("a b+c"));
        check("%C3%A4", Some("ä"));
        check("%4", None);
        check("%zz", None);
        check("%ff", None);
    }
}
