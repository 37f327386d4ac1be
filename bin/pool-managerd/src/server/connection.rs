//! Accepting connections and speaking HTTP on them.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use daemon::shutdown::{Kind, Shutdown};
use daemon::tls::{AcceptError, Sides, Watched};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Rooms;

/// The head of a request, and an idle HTTP/1.1 connection, may take this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Tasks that one control plane may have under way on one connection.
const STREAMS_MAX: u32 = 10_000;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// What one stream holds back for a reader that is slow.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// A silent HTTP/2 connection is asked for a sign of life, so that a half-open one frees its slots.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections that may be open at once.
    pub(crate) connections_max: usize,
    /// How long a connection may take to bring its first request, TLS included.
    pub(crate) first_request: Duration,
}

/// Serves until the shutdown begins; open connections finish what they carry.
pub(crate) async fn serve(
    listener: TcpListener,
    rooms: Arc<Rooms>,
    tls: Option<Arc<Watched<rustls::ServerConfig>>>,
    limits: Limits,
    shutdown: Shutdown,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let spawner = shutdown.clone();
    daemon::listen::accept_loop(listener, room, &shutdown, move |stream, peer, permit| {
        let connection = carry(
            stream,
            peer,
            permit,
            rooms.clone(),
            tls.clone(),
            limits,
            spawner.clone(),
        );
        spawner.spawn("connection", Kind::Work, connection);
    })
    .await
}

async fn carry(
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    rooms: Arc<Rooms>,
    tls: Option<Arc<Watched<rustls::ServerConfig>>>,
    limits: Limits,
    shutdown: Shutdown,
) {
    match tls {
        None => speak(stream, false, rooms, limits, shutdown).await,
        Some(tls) => {
            let sides = Sides {
                us: "node",
                them: "control plane",
            };
            match daemon::tls::accept_tcp(tls.current(), stream, sides, limits.first_request).await {
                Ok(stream) => {
                    let certified = stream
                        .get_ref()
                        .1
                        .peer_certificates()
                        .is_some_and(|chain| !chain.is_empty());
                    speak(stream, certified, rooms, limits, shutdown).await;
                }
                Err(AcceptError::Refused { text }) => {
                    tracing::warn!(%peer, reason = text, "a TLS connection did not come about");
                }
                Err(error) => {
                    let reason = daemon::exit::chain(&error);
                    tracing::debug!(%peer, reason, "a TLS connection did not come about");
                }
            }
        }
    }
    drop(permit);
}

async fn speak<S>(stream: S, certified: bool, rooms: Arc<Rooms>, limits: Limits, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    let service = service_fn(move |request| {
        seen.store(true, Ordering::Relaxed);
        let rooms = rooms.clone();
        async move { Ok::<_, Infallible>(rooms.answer(request, certified).await) }
    });
    let builder = builder();
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let first_request = tokio::time::sleep(limits.first_request);
    let mut first_request = std::pin::pin!(first_request);
    let (mut waiting, mut stopping) = (true, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error = %crate::door::chain(&*error), "a connection ended early");
                }
                return;
            }
            () = &mut first_request, if waiting => {
                waiting = false;
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
            }
            () = shutdown.stopped(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        // A control plane whose clients leave at random resets streams at random; that is no attack.
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .max_local_error_reset_streams(STREAMS_MAX as usize)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}
