//! Workspaces of a node's owners: taken in, used by runs, looked at, removed.
//!
//! ```text
//! upload ─▶ store ──▶ opened in the owner's sandbox ──run──▶ taken back ──▶ store ──▶ files, diff, archive
//! clone in the sandbox ─▶ store ──▶ (open already)                            └── not used for long: removed
//! ```
//!
//! Invariants: what a run has changed is in the store before the run's last event; one sandbox at a time has a
//! workspace in use; nobody gets one that is somebody else's.

mod opened;

use std::collections::HashMap;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use pool_registry_types::{ChangedFile, FileChange, WorkspaceChanges, WorkspaceMade, WorkspaceView};
use task_api::ErrorCode;
use tokio::sync::{Semaphore, mpsc};
use warm_pool::SandboxId;
use workspaces::{ArchiveError, Draft, Kind, Store, StoreError, StoreSettings, changes, export, write_patch};

pub(super) use opened::{OpenWorkspaces, Opened, WorkspaceTrouble, salvage};

use super::cli::unix_ms;
use crate::door::{DoorError, chain};

/// Uploads, and looks, at once.
const UPLOADS_MAX: usize = 4;
const LOOKS_MAX: usize = 2;
/// An upload of which nothing comes for so long has broken off.
const UPLOAD_SILENCE: Duration = Duration::from_secs(30);
/// What of an upload that was refused is still read, so that its sender hears why.
const REFUSED_BYTES_MAX: u64 = 1 << 30;
/// How often expired workspaces are looked for, at least.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(30);
const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(200);
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 64 * 1024;

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workspaces {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    directory: PathBuf,
    busy: Mutex<HashMap<String, Busy>>,
    uploads: Semaphore,
    looks: Semaphore,
}

struct Busy {
    sandbox: SandboxId,
    runs: usize,
}

/// That a sandbox uses a workspace. Dropped, it does no more.
pub(super) struct Use {
    workspaces: Workspaces,
    id: String,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut busy = self.workspaces.busy();
        if let Some(entry) = busy.get_mut(&self.id) {
            entry.runs -= 1;
            if entry.runs == 0 {
                busy.remove(&self.id);
            }
        }
    }
}

/// What was asked for of a workspace.
pub struct WorkspaceContent {
    /// How many bytes it has.
    pub len: u64,
    /// How it is written.
    pub content_type: &'static str,
    file: tokio::fs::File,
}

impl WorkspaceContent {
    /// Its bytes. An error means that it is not whole.
    pub fn into_pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures_util::stream::try_unfold(self.file, |mut file| async move {
            use tokio::io::AsyncReadExt as _;
            let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
            let count = file.read_buf(&mut piece).await?;
            Ok((count > 0).then(|| (piece.freeze(), file)))
        })
    }
}

impl Workspaces {
    pub(super) fn open(settings: StoreSettings) -> Result<Self, StoreError> {
        let directory = settings.directory.clone();
        Ok(Self {
            inner: Arc::new(Inner {
                store: Store::open(settings)?,
                directory,
                busy: Mutex::default(),
                uploads: Semaphore::new(UPLOADS_MAX),
                looks: Semaphore::new(LOOKS_MAX),
            }),
        })
    }

    /// Removes what has expired, for as long as it is polled.
    pub(super) async fn keep_swept(self) {
        let interval = (self.inner.store.idle_max() / 4).clamp(SWEEP_INTERVAL_MIN, SWEEP_INTERVAL_MAX);
        loop {
            let this = self.clone();
            let swept = self
                .blocking(move |store| store.sweep(unix_ms(), |id| this.is_busy(id)))
                .await;
            if let Err(error) = swept {
                tracing::error!(
                    error = daemon::exit::chain(&error),
                    "workspaces that have expired cannot be removed; tried again"
                );
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// Takes a directory in, as a tar archive.
    pub(super) async fn upload(
        &self,
        owner: &str,
        mut pieces: impl Stream<Item = Result<Bytes, String>> + Send + Unpin,
    ) -> Result<WorkspaceMade, DoorError> {
        let Ok(_place) = self.inner.uploads.try_acquire() else {
            return Err(DoorError::Agent {
                code: ErrorCode::ReplicaExhausted,
                message: "the node takes in as many workspaces as it can; try again soon".to_owned(),
                retry_after_ms: Some(1000),
            });
        };
        let (sender, input) = Input::channel();
        let (this, owner) = (self.clone(), owner.to_owned());
        let making = tokio::task::spawn_blocking(move || {
            let store = &this.inner.store;
            let draft = store.draft(&owner, input)?;
            let id = workspaces::new_id();
            store.create(&owner, &id, &draft, None, unix_ms(), |id| this.is_busy(id))?;
            Ok::<_, StoreError>(WorkspaceMade {
                workspace_id: id,
                files: draft.archive().files(),
                bytes: draft.archive().bytes(),
                idle_max_ms: u64::try_from(store.idle_max().as_millis()).unwrap_or(u64::MAX),
            })
        });
        let mut passed = 0;
        while passed < REFUSED_BYTES_MAX {
            let next = tokio::time::timeout(UPLOAD_SILENCE, pieces.next()).await;
            let piece = match next {
                Ok(None) => break,
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(why))) => {
                    let _ = sender.send(Err(io::Error::other(why))).await;
                    break;
                }
                Err(_) => {
                    let _ = sender.send(Err(io::ErrorKind::TimedOut.into())).await;
                    break;
                }
            };
            passed += piece.len() as u64;
            // One that was refused is read to its end all the same.
            let _ = sender.send(Ok(piece)).await;
        }
        drop(sender);
        match making.await {
            Ok(made) => made.map_err(|error| refused(&error)),
            Err(_) => Err(failed("the node ends".to_owned())),
        }
    }

    /// Removes the owner's workspace, unless a run uses it.
    pub(super) async fn remove(&self, owner: &str, id: &str) -> Result<(), DoorError> {
        if self.is_busy(id) {
            return Err(conflict(
                "a task works in this workspace; cancel it, or wait for its end",
            ));
        }
        let (owner, id) = (owner.to_owned(), id.to_owned());
        match self.blocking(move |store| store.remove(&owner, &id)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(&StoreError::Unknown)),
            Err(error) => Err(refused(&error)),
        }
    }

    /// What a task has made of its workspace.
    pub(super) async fn look(
        &self,
        owner: &str,
        task: &str,
        view: WorkspaceView,
    ) -> Result<WorkspaceContent, DoorError> {
        let looking = self.inner.looks.acquire().await;
        let _place = looking.expect("nobody closes it");
        let (owner, task) = (owner.to_owned(), task.to_owned());
        let directory = self.inner.directory.clone();
        let written = self
            .blocking(move |store| {
                let file = written_view(store, &directory, &owner, &task, view)?;
                let file = file.ok_or(StoreError::Unknown)?;
                let len = file.metadata().map(|status| status.len());
                let path = directory;
                Ok((file, len.map_err(|source| StoreError::Io { path, source })?))
            })
            .await;
        let (file, len) = written.map_err(|error| refused(&error))?;
        Ok(WorkspaceContent {
            len,
            content_type: view.content_type(),
            file: tokio::fs::File::from_std(file),
        })
    }

    /// Says that a sandbox uses a workspace. None: another one does.
    fn take(&self, id: &str, sandbox: SandboxId) -> Option<Use> {
        let mut busy = self.busy();
        let entry = busy.entry(id.to_owned()).or_insert(Busy { sandbox, runs: 0 });
        if entry.sandbox != sandbox {
            return None;
        }
        entry.runs += 1;
        Some(Use {
            workspaces: self.clone(),
            id: id.to_owned(),
        })
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<String, Busy>> {
        self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self, id: &str) -> bool {
        self.busy().contains_key(id)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner.store)).await;
        done.unwrap_or_else(|error| {
            Err(StoreError::Io {
                path: self.inner.directory.clone(),
                source: io::Error::other(error),
            })
        })
    }

    /// Reads an archive that comes out of a sandbox.
    async fn draft_of(
        &self,
        owner: &str,
        mut reader: impl tokio::io::AsyncRead + Unpin,
    ) -> Result<Draft, StoreError> {
        use tokio::io::AsyncReadExt as _;
        let (sender, input) = Input::channel();
        let owner = owner.to_owned();
        let drafting = self.blocking(move |store| store.draft(&owner, input));
        let feeding = async move {
            loop {
                let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
                let read = reader.read_buf(&mut piece).await;
                let is_over = !matches!(read, Ok(count) if count > 0);
                let next = match read {
                    Ok(0) => break,
                    Ok(_) => Ok(piece.freeze()),
                    Err(error) => Err(error),
                };
                if sender.send(next).await.is_err() || is_over {
                    break;
                }
            }
        };
        tokio::join!(drafting, feeding).0
    }
}

/// What a task of this machine's own owner has made of its workspace, for who is on the machine and may read its files.
/// None: there is no such workspace, or not any more. Blocks.
///
/// # Errors
/// The workspaces cannot be read.
pub fn local_workspace(
    settings: StoreSettings,
    owner: &str,
    task: &str,
    view: WorkspaceView,
) -> Result<Option<std::fs::File>, StoreError> {
    let directory = settings.directory.clone();
    if !directory.is_dir() {
        return Ok(None);
    }
    written_view(&Store::open(settings)?, &directory, owner, task, view)
}

fn written_view(
    store: &Store,
    directory: &Path,
    owner: &str,
    task: &str,
    view: WorkspaceView,
) -> Result<Option<std::fs::File>, StoreError> {
    let Some(record) = store.of_task(owner, task, unix_ms())? else {
        return Ok(None);
    };
    let (base, now) = store.archives(owner, &record.id)?;
    let io = |source| StoreError::Io {
        path: directory.to_owned(),
        source,
    };
    let file = tempfile::tempfile_in(directory).map_err(io)?;
    write_view(&record.id, &base, &now, view, &file).map_err(io)?;
    Ok(Some(file))
}

fn write_view(
    id: &str,
    base: &workspaces::Archive,
    now: &workspaces::Archive,
    view: WorkspaceView,
    file: &std::fs::File,
) -> io::Result<()> {
    let mut out = io::BufWriter::new(file);
    match view {
        WorkspaceView::Archive => export(now, &mut out)?,
        WorkspaceView::Diff => write_patch(base, now, &changes(base, now)?, &mut out)?,
        WorkspaceView::Files => {
            let files = changes(base, now)?.iter().map(changed_file).collect();
            let workspace_id = id.to_owned();
            serde_json::to_writer(&mut out, &WorkspaceChanges { workspace_id, files })?;
        }
    }
    out.flush()?;
    drop(out);
    let mut file = file;
    file.seek(SeekFrom::Start(0)).map(drop)
}

fn changed_file(change: &workspaces::Change<'_>) -> ChangedFile {
    ChangedFile {
        path: String::from_utf8_lossy(change.path).into_owned(),
        change: match change.kind() {
            Kind::Added => FileChange::Added,
            Kind::Modified => FileChange::Modified,
            Kind::Deleted => FileChange::Deleted,
        },
        bytes: change.bytes(),
    }
}

fn code_of(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::Unknown => ErrorCode::NotFound,
        StoreError::Changed => ErrorCode::Conflict,
        StoreError::Archive(ArchiveError::TooLarge(_)) => ErrorCode::RequestTooLarge,
        StoreError::Archive(ArchiveError::Entry { .. } | ArchiveError::Broken(_)) => ErrorCode::InvalidParams,
        StoreError::Archive(ArchiveError::Write(_)) | StoreError::Io { .. } => ErrorCode::Internal,
    }
}

fn refused(error: &StoreError) -> DoorError {
    let code = code_of(error);
    if code == ErrorCode::Internal {
        tracing::error!(error = daemon::exit::chain(error), "a workspace cannot be kept");
    }
    DoorError::Agent {
        code,
        message: chain(error),
        retry_after_ms: None,
    }
}

fn failed(message: String) -> DoorError {
    DoorError::Agent {
        code: ErrorCode::Internal,
        message,
        retry_after_ms: None,
    }
}

fn conflict(message: &str) -> DoorError {
    DoorError::Agent {
        code: ErrorCode::Conflict,
        message: message.to_owned(),
        retry_after_ms: None,
    }
}

/// What comes in pieces, for who reads it where blocking is allowed.
struct Input {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Input {
    fn channel() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let piece = Bytes::new();
        (sender, Self { pieces, piece })
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
