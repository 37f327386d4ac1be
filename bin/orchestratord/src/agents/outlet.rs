//! Where sandboxes reach models of this control plane, when it is open to everybody on its own machine.
//!
//! A control plane on loopback without keys takes whoever reaches it for its one owner. A sandbox must not be that: for
//! sandboxes there is a port of its own then, which knows tasks' keys and dialects and nothing else. Behind any other
//! address a key is asked for anyway, and sandboxes use the same port as everybody.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use daemon::listen::{accept_loop, bound_silence, listen_shared};
use daemon::shutdown::Shutdown;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use task_api::{ApiError, ErrorCode};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::body::PlaneBody;
use crate::plane::SharedPlane;
use crate::rooms::answer::{CORRELATION, Correlation, json_bytes, put_error_headers};
use crate::rooms::{dialects, gemini};

/// How many connections sandboxes may have open at once.
const CONNECTIONS_MAX: usize = 1024;

/// The address of this control plane as a sandbox on a node reaches it, without a path.
pub(crate) async fn model_address(plane: &SharedPlane) -> Result<String, ApiError> {
    if let Some(address) = &plane.settings.agents_url {
        return Ok(address.trim_end_matches('/').to_owned());
    }
    let bound = plane.settings.addr;
    if bound.ip().is_loopback() {
        let opened = plane.outlet.get_or_try_init(|| open(plane)).await;
        let addr = opened.map_err(|error| {
            ApiError::new(ErrorCode::Internal, "a port for sandboxes cannot be opened")
                .with_internal(daemon::exit::chain(error.as_ref()))
        })?;
        return Ok(format!("http://{addr}"));
    }
    if bound.ip().is_unspecified() {
        return Err(ApiError::new(
            ErrorCode::PoolUnavailable,
            "this control plane does not know by which address nodes reach it; set ORCHD_AGENTS_URL",
        )
        .with_param("model"));
    }
    let scheme = if plane.settings.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    Ok(format!("{scheme}://{bound}"))
}

type OpenError = Box<dyn std::error::Error + Send + Sync>;

async fn open(plane: &SharedPlane) -> Result<SocketAddr, OpenError> {
    let mut listeners = listen_shared(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1)?;
    let listener = listeners.remove(0);
    let addr = listener.local_addr()?;
    let plane = plane.clone();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Stays until the runtime ends, and nothing waits for it: an agent's task that is finished during a shutdown still
    // needs its model, and the task itself is what a shutdown waits for.
    tokio::spawn(async move {
        let never = Shutdown::new();
        let accepted = accept_loop(listener, room, &never, |stream, _, permit| {
            let served = serve(plane.clone(), stream);
            tokio::spawn(async move {
                served.await;
                drop(permit);
            });
        });
        if let Err(error) = accepted.await {
            tracing::error!(%error, "sandboxes cannot reach models of this control plane any more");
        }
    });
    Ok(addr)
}

async fn serve(plane: SharedPlane, stream: TcpStream) {
    // Fails only when the connection has ended already; reading from it will say so.
    let _ = bound_silence(&stream, plane.settings.client_silence_ms);
    let head_timeout: Duration = plane.settings.head_timeout_ms;
    let service = service_fn(move |request| answer(plane.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .serve_connection(TokioIo::new(stream), service);
    // How a sandbox's connection ends concerns nobody.
    let _ = connection.await;
}

async fn answer(plane: SharedPlane, request: Request<Incoming>) -> Result<Response<PlaneBody>, Infallible> {
    let correlation = Correlation::of(request.headers());
    let dialect = adapter_host::dialect_of_path(request.uri().path());
    let is_gemini = gemini::is_path(request.uri().path());
    let has_key = plane.access.task(request.headers()).is_some();
    let mut response = match dialect {
        None if !is_gemini => {
            let message = format!(
                "there is nothing at {}: models here speak the dialects of OpenAI, Anthropic and Google",
                request.uri().path()
            );
            refusal(&ApiError::new(ErrorCode::NotFound, message))
        }
        None if !has_key => gemini::failure(&no_key(), &correlation),
        None => gemini::handle(&plane, request, &correlation).await,
        Some(_) if !has_key => refusal(&no_key()),
        Some(dialect) if request.method() == Method::POST => {
            dialects::handle(&plane, dialect, request, &correlation).await
        }
        Some(dialect) => dialects::wrong_method(dialect, &correlation),
    };
    response.headers_mut().insert(CORRELATION, correlation.0);
    Ok(response)
}

fn no_key() -> ApiError {
    ApiError::new(
        ErrorCode::Unauthenticated,
        "only the key of a running task works here",
    )
}

fn refusal(error: &ApiError) -> Response<PlaneBody> {
    let status = StatusCode::from_u16(error.code.http_status()).expect("codes have statuses");
    let body = serde_json::to_vec(&error.body(None)).expect("our own types can be written as JSON");
    let mut response = json_bytes(status, body.into());
    put_error_headers(response.headers_mut(), error);
    response
}
