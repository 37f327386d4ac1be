//! Listeners, the accept loop, and the rule about addresses that others can reach.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shutdown::Shutdown;

/// Connections that the kernel holds for us; it takes less where `net.core.somaxconn` is smaller.
const BACKLOG: i32 = 4096;
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// Nothing can be accepted at this address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}{}", advice(*.addr, .source))]
pub struct ListenError {
    /// The address.
    pub addr: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Listens, without blocking. With `share_port` several listeners of this process may have the same address
/// (`SO_REUSEPORT`), and the kernel spreads connections over them: one for each worker.
///
/// # Errors
/// [`ListenError`], whose text says what to do when the port is taken.
pub fn listen(addr: SocketAddr, share_port: bool) -> Result<StdListener, ListenError> {
    let socket = bind(addr, share_port)?;
    socket
        .listen(BACKLOG)
        .map_err(|source| ListenError { addr, source })?;
    Ok(socket.into())
}

/// One listener for each of `workers`, all at the same address; port 0 becomes one port for all.
///
/// The kernel would let another process of the same user share the port and quietly take part of the connections, so
/// the first bind is an exclusive one, which fails when anybody has the port.
///
/// # Errors
/// As [`listen`].
pub fn listen_shared(addr: SocketAddr, workers: usize) -> Result<Vec<StdListener>, ListenError> {
    let exclusive = bind(addr, false)?;
    let bound = exclusive
        .local_addr()
        .ok()
        .and_then(|bound| bound.as_socket())
        .unwrap_or(addr);
    drop(exclusive);
    (0..workers.max(1)).map(|_| listen(bound, true)).collect()
}

fn bind(addr: SocketAddr, share_port: bool) -> Result<Socket, ListenError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(share_port)?;
        if addr.is_ipv6() {
            // `[::]` takes IPv4 as well, whatever the system's default is.
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    open().map_err(|source| ListenError { addr, source })
}

/// Accepts until the shutdown begins. At most as many connections as `room` has permits are open at once; more wait in
/// the kernel's queue. Each connection comes with its permit: it holds the room until it is dropped. Running out of
/// file descriptors is waited out.
///
/// # Errors
/// Only when the listener cannot be registered with the runtime.
pub async fn accept_loop(
    listener: StdListener,
    room: Arc<Semaphore>,
    shutdown: &Shutdown,
    mut handle: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut retry = ACCEPT_RETRY_MIN;
    let mut is_full = false;
    loop {
        let permit = match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => {
                is_full = false;
                permit
            }
            Err(_) => {
                if !is_full {
                    tracing::warn!("as many connections are open as may be; more wait until one ends");
                    is_full = true;
                }
                tokio::select! {
                    biased;
                    () = shutdown.stopped() => return Ok(()),
                    permit = Arc::clone(&room).acquire_owned() => permit.expect("nobody closes the semaphore"),
                }
            }
        };
        let accepted = tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                retry = ACCEPT_RETRY_MIN;
                // Fails only when the connection is gone already; reading from it will say so.
                let _ = stream.set_nodelay(true);
                handle(stream, peer, permit);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, retry_ms = millis(retry), "cannot accept connections for now");
                drop(permit);
                tokio::select! {
                    () = shutdown.stopped() => return Ok(()),
                    () = tokio::time::sleep(retry) => {}
                }
                retry = (retry * 2).min(ACCEPT_RETRY_MAX);
            }
        }
    }
}

/// Lets a connection fail whose other end has acknowledged nothing for `silence`, whether there is something to send or
/// not: without it a machine that has vanished keeps its connection for a quarter of an hour, and a silent one for ever.
/// A living end that takes nothing for so long ends as well.
///
/// # Errors
/// When the connection has ended already, or the system knows no such bound.
pub fn bound_silence(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    // An idle connection is asked after half of the time and again after each quarter; whole seconds, at least one.
    let part = |parts: u32| Duration::from_secs((silence / parts).as_secs().max(1));
    let keepalive = TcpKeepalive::new().with_time(part(2)).with_interval(part(4));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(silence))?;
    Ok(())
}

/// An address that others can reach, and nothing that keeps them out.
#[derive(Debug, thiserror::Error)]
#[error(
    "{addr} can be reached from other machines and no authentication is set: set {keys}, or listen on 127.0.0.1, \
     or give --insecure if everybody who reaches this address may use it"
)]
pub struct OpenBindRefused {
    /// The address.
    pub addr: SocketAddr,
    /// The names of the settings that set authentication.
    pub keys: &'static str,
}

/// The rule: nothing listens beyond loopback without authentication, unless somebody says so. `keys` names what sets
/// authentication, for the error: `LLORCH_API_TOKEN or ORCHD_API_KEYS`.
///
/// # Errors
/// [`OpenBindRefused`], exit code 64.
pub fn refuse_open_bind(
    addr: SocketAddr,
    authenticated: bool,
    insecure: bool,
    keys: &'static str,
) -> Result<(), OpenBindRefused> {
    if authenticated || insecure || is_loopback(addr.ip()) {
        Ok(())
    } else {
        Err(OpenBindRefused { addr, keys })
    }
}

/// Whether only this machine can reach the address.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Errors of `accept` that say that this one connection came to nothing; the next may be accepted at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn advice(addr: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": another program has port {port}; `ss -ltnp 'sport = :{port}'` shows which one. End it, or choose another port",
            port = addr.port()
        ),
        io::ErrorKind::AddrNotAvailable => format!(": this machine has no address {}", addr.ip()),
        io::ErrorKind::PermissionDenied => {
            format!(
                ": port {} needs more rights than this user has; choose one above 1023",
                addr.port()
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
