//! What can be done in a sandbox.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use init_protocol::{
    ArchiveLimits, Done, Exec, Exit, Failure, Health, LABEL_BYTES_MAX, Message, Open, Pack, Unpack,
};
use thiserror::Error;
use tokio::io::AsyncRead;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, oneshot};

use crate::channel::{ByteReader, ByteWriter, ConnectionStream};
use crate::connection::{Conclusion, Shared, TellError};
use crate::{HOME, SandboxId};

/// How long init may take for an answer that costs it nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long ending all processes may take.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// A sandbox whose init is connected. Clones are the same sandbox.
///
/// When the last clone is dropped the connection ends, and with it all processes in the sandbox; init then waits for
/// somebody to take the sandbox back, and ends when nobody does.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

struct Inner {
    id: SandboxId,
    shared: Arc<Shared>,
    connections: AsyncMutex<mpsc::Receiver<ConnectionStream>>,
    label: Mutex<Option<String>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.inner.id)
            .field("is_gone", &self.is_gone())
            .finish_non_exhaustive()
    }
}

/// Why something could not be done in a sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Its connection is broken or ended.
    #[error("the sandbox is gone")]
    Gone,
    /// Init could not do it.
    #[error("in the sandbox: {0}")]
    Failed(Failure),
    /// No answer in time.
    #[error("the sandbox does not answer")]
    Silent,
    /// What was asked is too long, or too much at once.
    #[error("the sandbox cannot be asked: {0}")]
    TooMuch(String),
    /// What was to be sent in could not be read.
    #[error("cannot read what is to be unpacked")]
    Source(#[source] std::io::Error),
}

impl From<TellError> for SandboxError {
    fn from(error: TellError) -> Self {
        match error {
            TellError::Gone => Self::Gone,
            TellError::TooManyChannels | TellError::Protocol(_) => Self::TooMuch(error.to_string()),
        }
    }
}

/// A process to start.
#[derive(Clone)]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is looked for in `PATH`.
    pub command: Vec<String>,
    /// Environment on top of what the sandbox was made with; secrets belong here.
    pub environment: Vec<(String, String)>,
    /// Its directory.
    pub directory: String,
}

impl ExecRequest {
    /// A command in the home directory.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            directory: HOME.to_owned(),
        }
    }
}

impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest")
            .field("program", &self.command.first())
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// Its standard input.
    pub stdin: ByteWriter,
    /// Its standard output.
    pub stdout: ByteReader,
    /// Its standard error. One that is never read stops the process after a window; drop it if nobody wants it.
    pub stderr: ByteReader,
    /// Its end.
    pub waiter: ProcessWaiter,
}

/// Signals a process and waits for its end. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct ProcessWaiter {
    hold: Hold,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
}

impl ProcessWaiter {
    /// Sends a signal, by number, to the process and its group. One that has ended gets none.
    ///
    /// # Errors
    /// [`SandboxError::Gone`].
    pub fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        Ok(self
            .hold
            .shared
            .tell_channel(self.hold.channel, Message::Signal(signal))?)
    }

    /// Waits for its end; its output may still follow. Cancel-safe, and may be asked again.
    ///
    /// # Errors
    /// [`SandboxError::Gone`].
    pub async fn wait(&mut self) -> Result<Exit, SandboxError> {
        if let Some(exit) = self.ended {
            return Ok(exit);
        }
        let exit = (&mut self.exit).await.map_err(|_| SandboxError::Gone)?;
        self.ended = Some(exit);
        Ok(exit)
    }
}

/// Tells of changes in a directory. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    hold: Hold,
    changed: Arc<Notify>,
}

impl Watch {
    /// Waits for the next change; many quick ones are one. None when the sandbox is gone. Cancel-safe.
    pub async fn changed(&self) -> Option<()> {
        tokio::select! {
            biased;
            () = self.changed.notified() => Some(()),
            () = self.hold.shared.closed() => None,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.hold.shared.tell_channel(self.hold.channel, Message::Close);
    }
}

/// One end of a channel that is no stream.
#[derive(Debug)]
struct Hold {
    shared: Arc<Shared>,
    channel: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.drop_handle(self.channel);
    }
}

impl Sandbox {
    pub(crate) fn new(
        id: SandboxId,
        shared: Arc<Shared>,
        connections: mpsc::Receiver<ConnectionStream>,
        label: Option<String>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                id,
                shared,
                connections: AsyncMutex::new(connections),
                label: Mutex::new(label),
            }),
        }
    }

    /// Its name.
    pub fn id(&self) -> &SandboxId {
        &self.inner.id
    }

    /// Whom it belongs to, in the words of whoever called [`Self::set_label`] last, also before a restart of the node.
    pub fn label(&self) -> Option<String> {
        self.label_lock().clone()
    }

    /// Says whom it belongs to. Init keeps it as long as it lives.
    ///
    /// # Errors
    /// [`SandboxError::Gone`], or a label that is too long.
    pub fn set_label(&self, label: &str) -> Result<(), SandboxError> {
        if label.len() > LABEL_BYTES_MAX {
            return Err(SandboxError::TooMuch(format!(
                "a label of more than {LABEL_BYTES_MAX} bytes"
            )));
        }
        self.inner.shared.tell(Message::SetLabel(label.to_owned()))?;
        *self.label_lock() = Some(label.to_owned());
        Ok(())
    }

    fn label_lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.inner.label.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process in a group of its own.
    ///
    /// # Errors
    /// [`SandboxError`]; [`SandboxError::Failed`] says why there is no process.
    pub async fn exec(&self, request: ExecRequest) -> Result<Process, SandboxError> {
        let (sender, exit) = oneshot::channel();
        let shared = &self.inner.shared;
        let message = |_, stderr_channel| {
            Open::Exec(Exec {
                command: request.command,
                environment: request.environment,
                directory: request.directory,
                stderr_channel,
            })
        };
        let opening = shared.open(3, Conclusion::Exit(sender), message, true)?;
        let process = Process {
            stdin: self.writer(opening.id),
            stdout: self.reader(opening.id),
            stderr: self.reader(opening.second),
            waiter: ProcessWaiter {
                hold: self.hold(opening.id),
                exit,
                ended: None,
            },
        };
        answered(opening.opened).await?;
        Ok(process)
    }

    /// Unpacks a tar archive into a directory, which is made if it is missing. What is there is written over; files
    /// become readable for the sandbox's user only.
    ///
    /// # Errors
    /// [`SandboxError`]. What was unpacked before stays.
    pub async fn unpack(
        &self,
        path: &str,
        limits: ArchiveLimits,
        archive: impl AsyncRead + Unpin,
    ) -> Result<Done, SandboxError> {
        let path = path.to_owned();
        let any_links = false;
        self.unpack_as(
            Unpack {
                path,
                limits,
                any_links,
            },
            archive,
        )
        .await
    }

    /// Unpacks a whole tree, in which links may lead anywhere in the sandbox.
    ///
    /// # Errors
    /// As for [`Self::unpack`].
    pub async fn unpack_tree(
        &self,
        path: &str,
        limits: ArchiveLimits,
        archive: impl AsyncRead + Unpin,
    ) -> Result<Done, SandboxError> {
        let path = path.to_owned();
        let any_links = true;
        self.unpack_as(
            Unpack {
                path,
                limits,
                any_links,
            },
            archive,
        )
        .await
    }

    async fn unpack_as(
        &self,
        request: Unpack,
        mut archive: impl AsyncRead + Unpin,
    ) -> Result<Done, SandboxError> {
        let (sender, done) = oneshot::channel();
        let message = |_, _| Open::Unpack(request);
        let opening = self
            .inner
            .shared
            .open(2, Conclusion::Done(sender), message, false)?;
        let _hold = self.hold(opening.id);
        let mut writer = self.writer(opening.id);
        answered(opening.opened).await?;
        match tokio::io::copy(&mut archive, &mut writer).await {
            Ok(_) => drop(writer),
            // Init has seen enough, or is gone; it says why.
            Err(error) if is_ours(&error) => drop(writer),
            Err(error) => return Err(SandboxError::Source(error)),
        }
        done.await
            .map_err(|_| SandboxError::Gone)?
            .map_err(SandboxError::Failed)
    }

    /// Packs a directory into a tar archive, without what is named in `exclude` (paths below it). Reading ends with an
    /// error when the archive is not whole.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn pack(
        &self,
        path: &str,
        limits: ArchiveLimits,
        exclude: &[&str],
    ) -> Result<ByteReader, SandboxError> {
        self.pack_some(path, limits, exclude, &[], false).await
    }

    /// Packs a whole tree, with links that lead anywhere.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn pack_tree(&self, path: &str, limits: ArchiveLimits) -> Result<ByteReader, SandboxError> {
        self.pack_some(path, limits, &[], &[], true).await
    }

    /// Packs of a directory what is named in `only` (paths below it) and nothing else.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn pack_only(
        &self,
        path: &str,
        limits: ArchiveLimits,
        only: &[&str],
    ) -> Result<ByteReader, SandboxError> {
        self.pack_some(path, limits, &[], only, false).await
    }

    async fn pack_some(
        &self,
        path: &str,
        limits: ArchiveLimits,
        exclude: &[&str],
        only: &[&str],
        any_links: bool,
    ) -> Result<ByteReader, SandboxError> {
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        // The stream's own end tells how it went.
        let (sender, _) = oneshot::channel();
        let message = |_, _| {
            Open::Pack(Pack {
                path: path.to_owned(),
                limits,
                exclude: owned(exclude),
                only: owned(only),
                any_links,
            })
        };
        let opening = self
            .inner
            .shared
            .open(1, Conclusion::Done(sender), message, false)?;
        let reader = self.reader(opening.id);
        answered(opening.opened).await?;
        Ok(reader)
    }

    /// Watches a directory and what is below it; it is made if it is missing.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn watch(&self, path: &str) -> Result<Watch, SandboxError> {
        let changed = Arc::new(Notify::new());
        let conclusion = Conclusion::Changed(Arc::clone(&changed));
        let path = path.to_owned();
        let opening = self
            .inner
            .shared
            .open(1, conclusion, |_, _| Open::Watch { path }, false)?;
        let watch = Watch {
            hold: self.hold(opening.id),
            changed,
        };
        answered(opening.opened).await?;
        Ok(watch)
    }

    /// Asks init how the sandbox is.
    ///
    /// # Errors
    /// [`SandboxError::Gone`], or [`SandboxError::Silent`] after 10 s.
    pub async fn health(&self) -> Result<Health, SandboxError> {
        within(ANSWER_TIMEOUT, self.inner.shared.ping()?).await
    }

    /// The next connection that a program in the sandbox opens to the proxy. None when the sandbox is gone. One caller
    /// at a time gets them.
    pub async fn next_connection(&self) -> Option<ConnectionStream> {
        self.inner.connections.lock().await.recv().await
    }

    /// Ends all processes in the sandbox but init, and waits until they are gone.
    ///
    /// # Errors
    /// [`SandboxError::Gone`], or [`SandboxError::Silent`] after 15 s.
    pub async fn kill_all(&self) -> Result<(), SandboxError> {
        within(END_TIMEOUT, self.inner.shared.kill_all()?).await
    }

    /// Ends all processes and init, and waits until the connection is gone. The driver still has to destroy what is
    /// left of the sandbox.
    ///
    /// # Errors
    /// [`SandboxError::Silent`] after 15 s. One that is gone already is no error.
    pub async fn end(&self) -> Result<(), SandboxError> {
        match self.inner.shared.tell(Message::End) {
            Ok(()) => tokio::time::timeout(END_TIMEOUT, self.gone())
                .await
                .map_err(|_| SandboxError::Silent),
            Err(_) => Ok(()),
        }
    }

    /// Waits until the connection is gone.
    pub async fn gone(&self) {
        self.inner.shared.closed().await;
    }

    /// Whether the connection is gone.
    pub fn is_gone(&self) -> bool {
        self.inner.shared.is_closed()
    }

    fn writer(&self, channel: u32) -> ByteWriter {
        ByteWriter {
            shared: Arc::clone(&self.inner.shared),
            channel,
        }
    }

    fn reader(&self, channel: u32) -> ByteReader {
        ByteReader {
            shared: Arc::clone(&self.inner.shared),
            channel,
        }
    }

    fn hold(&self, channel: u32) -> Hold {
        Hold {
            shared: Arc::clone(&self.inner.shared),
            channel,
        }
    }
}

async fn answered(opened: oneshot::Receiver<Result<(), Failure>>) -> Result<(), SandboxError> {
    within(ANSWER_TIMEOUT, opened)
        .await?
        .map_err(SandboxError::Failed)
}

async fn within<T>(timeout: Duration, answer: oneshot::Receiver<T>) -> Result<T, SandboxError> {
    tokio::time::timeout(timeout, answer)
        .await
        .map_err(|_| SandboxError::Silent)?
        .map_err(|_| SandboxError::Gone)
}

/// Whether writing has failed, and not reading: a writer's end has these kinds.
fn is_ours(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
    )
}
