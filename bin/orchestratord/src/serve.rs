//! Worker threads and connections.
//!
//! Each worker is a thread with a single-threaded runtime, a listener of its own on the shared port, and its own pooled
//! connections to engines: a request stays on one thread from its first byte to its last.

pub(crate) mod lane;
mod rewound;

use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use daemon::listen::{accept_loop, bound_silence};
use daemon::shutdown::{Kind, Shutdown};
use daemon::tls::Watched;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::plane::SharedPlane;
use crate::rooms;
use rewound::Rewound;

/// How long the handshake of TLS may take.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is buffered of one connection.
const CONNECTION_BUFFER_LEN_MAX: usize = 64 * 1024;

/// How long a connection may wait for its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long, and how much, a client may go on sending what nobody reads any more.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const LINGER_LEN_MAX: u64 = 128 * 1024 * 1024;

/// Longer bodies are read by the general server.
const LANE_BODY_LEN_MAX: u64 = 1024 * 1024;

/// The client showed a certificate of our authority.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certified;

/// What every connection needs.
pub(crate) struct Front {
    pub(crate) plane: SharedPlane,
    pub(crate) router: Router,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) tls: Option<Arc<Watched<rustls::ServerConfig>>>,
}

/// Starts a worker. It ends when `done` says that everything has ended.
pub(crate) fn start_worker(
    front: Arc<Front>,
    listener: TcpListener,
    index: usize,
    done: CancellationToken,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            upstream::set_worker_index(index + 1);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    return front
                        .plane
                        .shutdown
                        .fail(format!("a worker cannot start: {error}"));
                }
            };
            runtime.block_on(async {
                let shutdown = front.plane.shutdown.clone();
                let accepted =
                    accept_loop(listener, front.room.clone(), &shutdown, |stream, peer, permit| {
                        // In a box: whatever wraps it on its way would else hold room for it once more.
                        let connection = Box::pin(connection(front.clone(), stream, peer, permit));
                        shutdown.spawn("connection", Kind::Work, connection);
                    });
                if let Err(error) = accepted.await {
                    shutdown.fail(format!("a worker cannot accept connections: {error}"));
                }
                done.cancelled().await;
            });
        })
}

async fn connection(front: Arc<Front>, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
    // Fails only when the connection has ended already; reading from it will say so.
    let _ = bound_silence(&stream, front.plane.settings.client_silence_ms);
    match &front.tls {
        None => http(front.clone(), stream, false).await,
        Some(tls) => {
            let sides = daemon::tls::Sides {
                us: "control plane",
                them: "client",
            };
            match daemon::tls::accept_tcp(tls.current(), stream, sides, TLS_HANDSHAKE_TIMEOUT).await {
                Ok(stream) => {
                    let certified = stream.get_ref().1.peer_certificates().is_some();
                    Box::pin(http(front.clone(), stream, certified)).await;
                }
                Err(error) => {
                    tracing::info!(%peer, why = %daemon::exit::chain(&error), "a TLS handshake failed");
                }
            }
        }
    }
    drop(permit);
}

/// Dialects' requests in the fast lane; from the first other request on the general server.
async fn http<S: AsyncRead + AsyncWrite + Unpin>(front: Arc<Front>, stream: S, certified: bool) {
    let shutdown = front.plane.shutdown.clone();
    let bounds = lane::Bounds {
        body_len_max: usize::try_from(front.plane.settings.body_max_bytes.min(LANE_BODY_LEN_MAX))
            .unwrap_or(0),
        idle: IDLE_TIMEOUT,
        head: front.plane.settings.head_timeout_ms,
        body: front.plane.settings.body_timeout_ms,
    };
    let handle = |asked| rooms::serve_dialect(front.clone(), asked);
    let stream = match lane::run(
        stream,
        bounds,
        rooms::Dialects,
        shutdown.stopped_in_task(),
        handle,
    )
    .await
    {
        lane::Left::Closed => return,
        lane::Left::HandOver(stream, read) => Rewound::new(stream, read),
    };
    // In a box: most connections never need the room.
    Box::pin(general(front, stream, certified)).await;
}

/// All of HTTP/1.1.
async fn general<S: AsyncRead + AsyncWrite + Unpin>(front: Arc<Front>, stream: S, certified: bool) {
    let shutdown = front.plane.shutdown.clone();
    let head_timeout = front.plane.settings.head_timeout_ms;
    let service = service_fn(move |mut request: Request<Incoming>| {
        if certified {
            request.extensions_mut().insert(Certified);
        }
        Box::pin(rooms::serve(front.clone(), request))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(CONNECTION_BUFFER_LEN_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let stopped = tokio::select! {
        biased;
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
        () = shutdown.stopped() => None,
    };
    log_end(match stopped {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    });
    close(connection.into_parts().io.into_inner(), &shutdown).await;
}

/// Closes a connection so that its client can read the last answer. The kernel resets one that is closed with something
/// unread, a body that was refused for its length for example, and with a reset the answer may be gone.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shutdown: &Shutdown) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut left = stream.take(LINGER_LEN_MAX);
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _ = tokio::time::timeout(LINGER_TIMEOUT, tokio::io::copy(&mut left, &mut nowhere)) => {}
        () = shutdown.stopped() => {}
    }
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(error = %daemon::exit::chain(&error), "a client's connection ended");
    }
}
