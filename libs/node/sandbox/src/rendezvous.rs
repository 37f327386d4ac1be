//! Where the inits of sandboxes connect.
//!
//! Each sandbox on this machine has a door of its own: a directory with one socket, which the driver makes appear in the
//! sandbox. So a sandbox can only knock at its own door, and cannot keep others out of theirs. Remote ones share a TLS
//! port.
//!
//! ```text
//! expect(id) ──▶ door open ──Hello{token}──▶ Welcome{return key} ──▶ Expected::arrived
//!                   │  ▲
//!                   │  └──Hello{return key} (this node, or a restarted one that has opened the doors again)──▶ Returned
//!                   └──forget(id)──▶ door gone
//! ```
//!
//! The token is good once. The return key is derived from the sandbox's name with a key that stays in this directory,
//! so nothing has to be written down for each sandbox.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs, io};

use hmac::{Hmac, KeyInit as _, Mac as _};
use init_protocol::{
    CONNECTIONS_MAX, Decoder, Failure, FailureCode, Frame, Hello, Message, NO_CHANNEL, Proof, VERSION,
    Welcome, common_version, encode,
};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::connection::{self, Shared};
use crate::driver::{Connect, Door};
use crate::{SOCKET_NAME, Sandbox, SandboxId};

/// How long an init may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How many may be saying so at once, at one door and at the TLS port.
const HELLOS_MAX_DOOR: usize = 4;
const HELLOS_MAX_TLS: usize = 64;

/// How many sandboxes that have come back may wait to be taken.
const RETURNED_MAX: usize = 4096;

/// After how long without a word a TCP connection counts as gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The longest path that a Unix socket can have.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why nobody can be met here.
#[derive(Debug, Error)]
pub enum RendezvousError {
    /// The system refused something.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sandbox is expected already.
    #[error("the sandbox {0} is already expected")]
    Taken(SandboxId),
    /// No init came in time.
    #[error("the sandbox {0} has not connected in time")]
    TooLate(SandboxId),
    /// [`Rendezvous::listen_tls`] was not called.
    #[error("this node does not listen for remote sandboxes")]
    NoTls,
}

/// Where inits connect. Clones are the same place; it closes when the last is dropped.
#[derive(Clone)]
pub struct Rendezvous {
    inner: Arc<Inner>,
}

/// Sandboxes that came back by themselves: they were claimed by a node that is gone, or lost their connection.
#[derive(Debug)]
pub struct Returned {
    receiver: mpsc::Receiver<Sandbox>,
}

impl Returned {
    /// The next one; its label says whom it belongs to. None when the rendezvous is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Sandbox> {
        self.receiver.recv().await
    }
}

/// The remote sandboxes' door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsDoor {
    /// Host and port that sandboxes can reach.
    pub address: String,
    /// The name in the certificate.
    pub server_name: String,
    /// The CA that it comes from, in PEM form.
    pub ca_pem: String,
}

struct Inner {
    doors: PathBuf,
    key: [u8; 32],
    returned: mpsc::Sender<Sandbox>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    expected: HashMap<SandboxId, Waiting>,
    listeners: HashMap<SandboxId, AbortHandle>,
    tls: Option<(TlsDoor, AbortHandle)>,
}

struct Waiting {
    token: String,
    arrived: oneshot::Sender<Sandbox>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.listeners.values().for_each(AbortHandle::abort);
        if let Some((_, listener)) = &state.tls {
            listener.abort();
        }
    }
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendezvous")
            .field("doors", &self.inner.doors)
            .finish_non_exhaustive()
    }
}

/// A sandbox that may connect.
pub struct Expected {
    id: SandboxId,
    connect: Connect,
    arrived: oneshot::Receiver<Sandbox>,
    rendezvous: Rendezvous,
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected")
            .field("id", &self.id)
            .field("connect", &self.connect)
            .finish_non_exhaustive()
    }
}

impl Expected {
    /// What the driver is to tell the sandbox.
    pub fn connect(&self) -> Connect {
        self.connect.clone()
    }

    /// Waits until its init has connected.
    ///
    /// # Errors
    /// [`RendezvousError::TooLate`]; the token is then worth nothing any more.
    pub async fn arrived(mut self, timeout: Duration) -> Result<Sandbox, RendezvousError> {
        let arrived = tokio::time::timeout(timeout, &mut self.arrived).await;
        match arrived {
            Ok(Ok(sandbox)) => Ok(sandbox),
            Ok(Err(_)) | Err(_) => Err(RendezvousError::TooLate(self.id.clone())),
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        // Only if it has not come: a token is removed by its use.
        self.rendezvous.inner.lock().expected.remove(&self.id);
    }
}

impl Rendezvous {
    /// Opens the rendezvous in `directory`, which is made if it is missing, and all doors that are there already. Needs
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`RendezvousError::Io`].
    pub fn open(directory: &Path) -> Result<(Self, Returned), RendezvousError> {
        let doors = directory.join("doors");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&doors)
            .map_err(io_error("make", &doors))?;
        let key_path = directory.join("return.key");
        let key = key(&key_path).map_err(io_error("read or make", &key_path))?;
        let (returned, receiver) = mpsc::channel(RETURNED_MAX);
        let rendezvous = Self {
            inner: Arc::new(Inner {
                doors: doors.clone(),
                key,
                returned,
                state: Mutex::default(),
            }),
        };
        for entry in fs::read_dir(&doors).map_err(io_error("read", &doors))?.flatten() {
            if let Some(Ok(id)) = entry.file_name().to_str().map(str::parse::<SandboxId>) {
                rendezvous.open_door(&id)?;
            }
        }
        Ok((rendezvous, Returned { receiver }))
    }

    /// Lets remote sandboxes in at `listener`, which is reached as `door` says. Calling it again closes the one before.
    pub fn listen_tls(&self, listener: TcpListener, config: Arc<rustls::ServerConfig>, door: TlsDoor) {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let inner = Arc::downgrade(&self.inner);
        let task = tokio::spawn(async move {
            let slots = Arc::new(Semaphore::new(HELLOS_MAX_TLS));
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return;
                };
                let Ok((socket, _)) = listener.accept().await else {
                    // Out of open files, or the like; others need time to give some back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (inner, acceptor) = (inner.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    let greeting = async {
                        let _ = socket.set_nodelay(true);
                        let socket = acceptor.accept(socket).await.ok()?;
                        let inner = inner.upgrade()?;
                        meet(&inner, socket, None, Some(SILENCE_MAX)).await
                    };
                    let _ = tokio::time::timeout(HELLO_TIMEOUT, greeting).await;
                });
            }
        });
        if let Some((_, before)) = self.inner.lock().tls.replace((door, task.abort_handle())) {
            before.abort();
        }
    }

    /// Opens a door for a sandbox on this machine.
    ///
    /// # Errors
    /// [`RendezvousError`].
    pub fn expect(&self, id: &SandboxId) -> Result<Expected, RendezvousError> {
        let expected = self.expect_at(id, Door::Directory(self.inner.doors.join(id.as_str())))?;
        self.open_door(id)?;
        Ok(expected)
    }

    /// Expects a remote sandbox at the TLS port.
    ///
    /// # Errors
    /// [`RendezvousError::NoTls`], [`RendezvousError::Taken`].
    pub fn expect_remote(&self, id: &SandboxId) -> Result<Expected, RendezvousError> {
        let door = self.inner.lock().tls.as_ref().map(|(door, _)| door.clone());
        let door = door.ok_or(RendezvousError::NoTls)?;
        let TlsDoor {
            address,
            server_name,
            ca_pem,
        } = door;
        let door = Door::Tls {
            address,
            server_name,
            ca_pem,
        };
        self.expect_at(id, door)
    }

    fn expect_at(&self, id: &SandboxId, door: Door) -> Result<Expected, RendezvousError> {
        let token = hex(&rand::random::<[u8; 32]>());
        let (sender, arrived) = oneshot::channel();
        let waiting = Waiting {
            token: token.clone(),
            arrived: sender,
        };
        let mut state = self.inner.lock();
        if state.expected.contains_key(id) || state.listeners.contains_key(id) {
            return Err(RendezvousError::Taken(id.clone()));
        }
        state.expected.insert(id.clone(), waiting);
        drop(state);
        Ok(Expected {
            id: id.clone(),
            connect: Connect { token, door },
            arrived,
            rendezvous: self.clone(),
        })
    }

    /// Closes a sandbox's door for good. To be called when the sandbox is destroyed.
    pub fn forget(&self, id: &SandboxId) {
        let mut state = self.inner.lock();
        state.expected.remove(id);
        if let Some(listener) = state.listeners.remove(id) {
            listener.abort();
        }
        drop(state);
        let directory = self.inner.doors.join(id.as_str());
        if let Err(error) = fs::remove_dir_all(&directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(sandbox = %id, %error, "a sandbox's door cannot be removed");
        }
    }

    /// The sandboxes that have a door here.
    pub fn doors(&self) -> Vec<SandboxId> {
        self.inner.lock().listeners.keys().cloned().collect()
    }

    fn open_door(&self, id: &SandboxId) -> Result<(), RendezvousError> {
        let directory = self.inner.doors.join(id.as_str());
        let listener = listen(&directory).map_err(io_error("listen in", &directory))?;
        let inner = Arc::downgrade(&self.inner);
        let door = id.clone();
        let task = tokio::spawn(async move {
            let slots = Arc::new(Semaphore::new(HELLOS_MAX_DOOR));
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                    return;
                };
                let Ok((socket, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (inner, door) = (inner.clone(), door.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Some(inner) = inner.upgrade() {
                        let greeting = meet(&inner, socket, Some(&door), None);
                        let _ = tokio::time::timeout(HELLO_TIMEOUT, greeting).await;
                    }
                });
            }
        });
        self.inner
            .lock()
            .listeners
            .insert(id.clone(), task.abort_handle());
        Ok(())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn return_key(&self, id: &SandboxId) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("a key of any length will do");
        mac.update(id.as_str().as_bytes());
        hex(&mac.finalize().into_bytes())
    }

    /// Who may come in as what.
    fn judge(&self, hello: &Hello, door: Option<&SandboxId>) -> Result<Arrival, Failure> {
        let unknown = |why: &str| Failure::new(FailureCode::Unknown, why);
        let id: SandboxId = hello.sandbox.parse().map_err(|_| unknown("no such sandbox"))?;
        if door.is_some_and(|door| *door != id) {
            return Err(unknown("another sandbox's door"));
        }
        match &hello.proof {
            Proof::Token(token) => {
                let mut state = self.lock();
                let known = state
                    .expected
                    .get(&id)
                    .is_some_and(|waiting| bool::from(waiting.token.as_bytes().ct_eq(token.as_bytes())));
                match known.then(|| state.expected.remove(&id)).flatten() {
                    Some(waiting) => Ok(Arrival::Expected(id, waiting.arrived)),
                    None => Err(unknown("this token is not, or no longer, good")),
                }
            }
            Proof::ReturnKey(key) => {
                if bool::from(self.return_key(&id).as_bytes().ct_eq(key.as_bytes())) {
                    Ok(Arrival::Returned(id))
                } else {
                    Err(unknown("this key is not good"))
                }
            }
        }
    }
}

enum Arrival {
    Expected(SandboxId, oneshot::Sender<Sandbox>),
    Returned(SandboxId),
}

/// Hears who has connected, and lets them in or not.
async fn meet<S>(
    inner: &Inner,
    mut socket: S,
    door: Option<&SandboxId>,
    silence_max: Option<Duration>,
) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut decoder = Decoder::default();
    let frame = connection::read_frame(&mut socket, &mut decoder).await.ok()??;
    let Message::Hello(hello) = frame.message else {
        return None;
    };
    let judged = match common_version(VERSION..=VERSION, hello.version_min..=hello.version_max) {
        None => Err(Failure::new(
            FailureCode::Invalid,
            "no common version of the protocol",
        )),
        Some(version) => inner.judge(&hello, door).map(|arrival| (version, arrival)),
    };
    let (version, arrival) = match judged {
        Ok(judged) => judged,
        Err(failure) => {
            tracing::warn!(sandbox = hello.sandbox.get(..40).unwrap_or(&hello.sandbox), %failure, "an init is refused");
            say(&mut socket, Message::Refuse(failure)).await.ok()?;
            let _ = socket.shutdown().await;
            return None;
        }
    };
    let (Arrival::Expected(id, _) | Arrival::Returned(id)) = &arrival;
    let id = id.clone();
    let welcome = Welcome {
        version,
        return_key: inner.return_key(&id),
        silence_max_ms: silence_max.map_or(0, |silence| u64::try_from(silence.as_millis()).unwrap_or(0)),
    };
    say(&mut socket, Message::Welcome(welcome)).await.ok()?;
    let shared = Shared::new();
    let (connections, receiver) = mpsc::channel(CONNECTIONS_MAX);
    connection::spawn(&shared, socket, decoder, connections, silence_max, id.to_string());
    let sandbox = Sandbox::new(id, shared, receiver, hello.label);
    // A sandbox that nobody takes is dropped here, which ends its connection.
    match arrival {
        Arrival::Expected(_, arrived) => drop(arrived.send(sandbox)),
        Arrival::Returned(_) => drop(inner.returned.try_send(sandbox)),
    }
    Some(())
}

async fn say(socket: &mut (impl AsyncWrite + Unpin), message: Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    let frame = Frame {
        channel: NO_CHANNEL,
        message,
    };
    encode(&frame, &mut bytes).map_err(io::Error::other)?;
    socket.write_all(&bytes).await?;
    socket.flush().await
}

/// A socket that every user of the sandbox may connect to; who reaches the directory is the driver's business.
fn listen(directory: &Path) -> io::Result<UnixListener> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let path = directory.join(SOCKET_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        UnixListener::bind(&path)?
    } else {
        // The kernel knows a shorter name for an open directory.
        let opened = fs::File::open(directory)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&opened);
        UnixListener::bind(format!("/proc/self/fd/{number}/{SOCKET_NAME}"))?
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn key(path: &Path) -> io::Result<[u8; 32]> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(mut file) => {
            let key = rand::random::<[u8; 32]>();
            io::Write::write_all(&mut file, &key)?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::read(path)?.try_into().map_err(|_| {
                io::Error::other("it is not a key of 32 bytes; remove it, and sandboxes of before are lost")
            })
        }
        Err(error) => Err(error),
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RendezvousError {
    let path = path.to_owned();
    move |source| RendezvousError::Io { what, path, source }
}
