//! Workspaces in one sandbox: opened for a run, cloned there, taken back.

use std::time::{Duration, Instant};

use pool_registry_types::{AgentEvent, AgentRun, RunWorkspace};
use sandbox::{ArchiveLimits, ExecRequest, Process, Sandbox, SandboxError, WORKSPACE};
use task_api::ErrorCode;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use workspaces::{Record, Store, StoreError, changes};

use super::{Use, Workspaces, code_of};
use crate::agents::cli::{KillOnDrop, unix_ms};
use crate::agents::label::Label;
use crate::agents::live::{Live, Owned, with_way_out};
use crate::door::chain;

/// Workspaces that stand in one sandbox at once, when no run uses them.
const OPEN_MAX: usize = 4;
/// How long unpacking, or packing, may take.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a clone may take.
const CLONE_TIMEOUT: Duration = Duration::from_secs(300);
const NO_ENTRANCE: &str = "all entrances of the sandbox's way out are taken";
/// What is kept of what git says, in bytes.
const SAID_BYTES_MAX: usize = 4096;

/// Why a run has no workspace.
#[derive(Debug, thiserror::Error)]
pub(in crate::agents) enum WorkspaceTrouble {
    #[error("{0}; upload the directory again")]
    Unknown(StoreError),
    #[error("another agent's task works in this workspace now; wait for its end")]
    InUse,
    #[error("{}", chain(.0))]
    Store(#[from] StoreError),
    #[error("the workspace cannot be put into the sandbox: {0}")]
    Sandbox(#[from] SandboxError),
    #[error("the workspace was not packed or unpacked in time")]
    Late,
    #[error("git is not installed on the node, in /usr/bin: {0}")]
    NoGit(SandboxError),
    #[error("the sandbox has no room for the workspace: {0}")]
    Stuck(String),
    #[error("the repository cannot be cloned: {0}")]
    Clone(String),
    #[error("the clone was not done after {} s", CLONE_TIMEOUT.as_secs())]
    CloneLate,
    #[error("nobody waits for the clone any more")]
    Left,
}

impl WorkspaceTrouble {
    /// By which clients know it.
    pub(in crate::agents) fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown(_) => ErrorCode::NotFound,
            Self::InUse => ErrorCode::Conflict,
            Self::Store(error) => code_of(error),
            Self::Sandbox(SandboxError::Gone) => ErrorCode::WorkerReset,
            Self::Sandbox(_) | Self::Late | Self::NoGit(_) | Self::Stuck(_) => ErrorCode::Internal,
            Self::Clone(_) => ErrorCode::InvalidParams,
            Self::CloneLate => ErrorCode::DecodeTimeout,
            Self::Left => ErrorCode::Cancelled,
        }
    }
}

/// The workspaces that stand in one sandbox.
#[derive(Default)]
pub(in crate::agents) struct OpenWorkspaces(Mutex<Vec<Open>>);

struct Open {
    id: String,
    /// Which version of it stands there, and perhaps what a run has made of that.
    version: u64,
    used: Instant,
}

/// A workspace that a run works in.
pub(in crate::agents) struct Opened {
    pub(in crate::agents) id: String,
    owner: String,
    workspaces: Workspaces,
    _use: Use,
}

impl Opened {
    /// Its directory.
    pub(in crate::agents) fn directory(&self) -> String {
        directory(&self.id)
    }

    /// Puts what stands in the sandbox into the store, and says what has changed.
    pub(in crate::agents) async fn take_back(&self, live: &Live) -> AgentEvent {
        let (changed, problem) = match self.try_take_back(live).await {
            Ok(changed) => (changed, None),
            Err(trouble) => {
                tracing::warn!(workspace = self.id, error = %trouble, "a workspace was not taken back");
                let why = format!("what the task has changed is not kept: {trouble}");
                (0, Some(why))
            }
        };
        AgentEvent::Workspace {
            id: self.id.clone(),
            changed,
            problem,
        }
    }

    async fn try_take_back(&self, live: &Live) -> Result<u64, WorkspaceTrouble> {
        let Some(owned) = live.owned() else { return Ok(0) };
        let mut open = owned.workspaces.0.lock().await;
        let record = put(&self.workspaces, &live.sandbox, &self.owner, &self.id, None).await?;
        if let Some(known) = open.iter_mut().find(|known| known.id == self.id) {
            known.version = record.version;
            known.used = Instant::now();
        }
        // Another run may still work in it, and then it stays in the label.
        let label = in_use(&open, &self.workspaces, Some(&self.id));
        set_label(&live.sandbox, label)?;
        drop(open);
        let (owner, id) = (self.owner.clone(), self.id.clone());
        let count = self.workspaces.blocking(move |store| {
            let (base, now) = store.archives(&owner, &id)?;
            let count = changes(&base, &now).map(|found| found.len() as u64);
            count.map_err(|source| StoreError::Io {
                path: id.into(),
                source,
            })
        });
        Ok(count.await?)
    }
}

impl OpenWorkspaces {
    /// Opens what the run asks for, or what its session has worked in. None: neither is there.
    ///
    /// `left` ends when nobody waits for the run any more.
    pub(in crate::agents) async fn open(
        live: &Live,
        owned: &Owned,
        asked: &AgentRun,
        left: impl Future<Output = ()>,
    ) -> Result<Option<Opened>, WorkspaceTrouble> {
        let workspaces = &live.node.workspaces;
        let record = match &asked.workspace {
            Some(RunWorkspace::Kept { id }) => {
                let found = find(workspaces, asked, id, Store::get).await?;
                Some(found.ok_or(WorkspaceTrouble::Unknown(StoreError::Unknown))?)
            }
            Some(RunWorkspace::Cloned { url, reference }) => {
                return clone(live, owned, asked, (url, reference.as_deref()), left)
                    .await
                    .map(Some);
            }
            None => match &asked.session_id {
                Some(session) => find(workspaces, asked, session, Store::of_session).await?,
                None => None,
            },
        };
        let Some(record) = record else { return Ok(None) };
        let used = workspaces
            .take(&record.id, live.number)
            .ok_or(WorkspaceTrouble::InUse)?;
        let record = note_use(workspaces, record, asked).await?;
        let mut open = owned.workspaces.0.lock().await;
        make_room(&mut open, live, owned, &record.id).await;
        let stands = open.iter_mut().find(|known| known.id == record.id);
        match stands {
            Some(known) if known.version == record.version => known.used = Instant::now(),
            _ => {
                close(&mut open, live, owned, &record.id).await?;
                unpack(live, &record).await?;
                open.push(Open::of(&record));
            }
        }
        set_label(&live.sandbox, in_use(&open, workspaces, None))?;
        Ok(Some(Opened {
            id: record.id,
            owner: asked.owner.clone(),
            workspaces: workspaces.clone(),
            _use: used,
        }))
    }
}

impl Open {
    fn of(record: &Record) -> Self {
        Self {
            id: record.id.clone(),
            version: record.version,
            used: Instant::now(),
        }
    }
}

type Found = Result<Option<Record>, StoreError>;

async fn find(
    workspaces: &Workspaces,
    asked: &AgentRun,
    name: &str,
    find: fn(&Store, &str, &str, u64) -> Found,
) -> Found {
    let (owner, name) = (asked.owner.clone(), name.to_owned());
    workspaces
        .blocking(move |store| find(store, &owner, &name, unix_ms()))
        .await
}

async fn note_use(
    workspaces: &Workspaces,
    record: Record,
    asked: &AgentRun,
) -> Result<Record, WorkspaceTrouble> {
    let (task, session) = (asked.task_id.clone(), asked.session_id.clone());
    let noted =
        workspaces.blocking(move |store| store.note_use(&record, &task, session.as_deref(), unix_ms()));
    Ok(noted.await?)
}

fn directory(id: &str) -> String {
    format!("{WORKSPACE}/{id}")
}

fn limits(workspaces: &Workspaces) -> ArchiveLimits {
    let limits = workspaces.inner.store.limits();
    ArchiveLimits {
        bytes_max: limits.bytes_max,
        entries_max: limits.entries_max,
    }
}

async fn in_time<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, WorkspaceTrouble>
where
    WorkspaceTrouble: From<E>,
{
    let done = tokio::time::timeout(ARCHIVE_TIMEOUT, work).await;
    Ok(done.map_err(|_| WorkspaceTrouble::Late)??)
}

async fn unpack(live: &Live, record: &Record) -> Result<(), WorkspaceTrouble> {
    let workspaces = &live.node.workspaces;
    let newest = {
        let record = record.clone();
        workspaces.blocking(move |store| store.newest(&record)).await?
    };
    let archive = tokio::fs::File::from_std(newest);
    let directory = directory(&record.id);
    let unpacking = live.sandbox.unpack_tree(&directory, limits(workspaces), archive);
    in_time(unpacking).await.map(drop)
}

/// Puts what stands in the sandbox into the store.
async fn put(
    workspaces: &Workspaces,
    sandbox: &Sandbox,
    owner: &str,
    id: &str,
    expected: Option<u64>,
) -> Result<Record, WorkspaceTrouble> {
    in_time(async {
        let reader = sandbox.pack_tree(&directory(id), limits(workspaces)).await?;
        let draft = workspaces.draft_of(owner, reader).await?;
        let (owner, id) = (owner.to_owned(), id.to_owned());
        let put = workspaces.blocking(move |store| store.put(&owner, &id, &draft, expected, unix_ms()));
        Ok::<_, WorkspaceTrouble>(put.await?)
    })
    .await
}

/// Takes those out of the sandbox that are no more, and the ones that were not used for the longest time.
async fn make_room(open: &mut Vec<Open>, live: &Live, owned: &Owned, wanted: &str) {
    let workspaces = &live.node.workspaces;
    let mut idle: Vec<(Instant, String)> = open
        .iter()
        .filter(|known| known.id != wanted && !workspaces.is_busy(&known.id))
        .map(|known| (known.used, known.id.clone()))
        .collect();
    idle.sort();
    let surplus = (open.len() + 1).saturating_sub(OPEN_MAX);
    for (at, (_, id)) in idle.into_iter().enumerate() {
        let known = {
            let (owner, id) = (owned.owner().to_owned(), id.clone());
            workspaces
                .blocking(move |store| store.get(&owner, &id, unix_ms()))
                .await
        };
        if at < surplus || matches!(known, Ok(None)) {
            tidy(open, live, owned, &id).await;
        }
    }
}

/// Takes one out of the sandbox, if that can be done: what is left goes with the sandbox.
async fn tidy(open: &mut Vec<Open>, live: &Live, owned: &Owned, id: &str) {
    if let Err(error) = close(open, live, owned, id).await {
        tracing::warn!(workspace = id, error = %error, "a workspace cannot be taken out of a sandbox");
    }
}

/// Takes one out of the sandbox, with what runs in it.
async fn close(open: &mut Vec<Open>, live: &Live, owned: &Owned, id: &str) -> Result<(), WorkspaceTrouble> {
    let directory = directory(id);
    owned.end_idle_in(&live.pool, &directory).await;
    open.retain(|known| known.id != id);
    let removed = run(&live.sandbox, &["rm", "-rf", "--", &directory], 0).await?;
    removed.map_err(WorkspaceTrouble::Stuck)
}

/// Those that a run uses, with the versions that they had: what a node that comes back may take from the sandbox.
fn in_use(open: &[Open], workspaces: &Workspaces, but: Option<&str>) -> Vec<(String, u64)> {
    let busy = workspaces.busy();
    let is_used = |known: &&Open| {
        let own = usize::from(but == Some(&*known.id));
        busy.get(&known.id).is_some_and(|entry| entry.runs > own)
    };
    let used = open.iter().filter(is_used);
    used.map(|known| (known.id.clone(), known.version)).collect()
}

fn set_label(sandbox: &Sandbox, workspaces: Vec<(String, u64)>) -> Result<(), SandboxError> {
    let Some(label) = sandbox.label().and_then(|label| Label::parse(&label)) else {
        return Ok(());
    };
    let label = Label { workspaces, ..label };
    sandbox.set_label(&label.text())
}

/// Takes back what runs worked in when their node went away. What cannot be taken is as it was before them.
pub(in crate::agents) async fn salvage(workspaces: &Workspaces, sandbox: &Sandbox, label: &Label) {
    let Some(owner) = &label.owner else { return };
    for (id, version) in &label.workspaces {
        match put(workspaces, sandbox, owner, id, Some(*version)).await {
            Ok(_) => tracing::info!(
                workspace = id,
                "took a workspace back from a sandbox that outlived its node"
            ),
            Err(error) => {
                tracing::warn!(workspace = id, error = %error, "a workspace was not taken back from a sandbox that outlived its node");
            }
        }
    }
}

/// Clones a repository in the owner's sandbox. Its host may be reached by the clone alone, and until this ends.
async fn clone(
    live: &Live,
    owned: &Owned,
    asked: &AgentRun,
    (url, reference): (&str, Option<&str>),
    left: impl Future<Output = ()>,
) -> Result<Opened, WorkspaceTrouble> {
    let workspaces = &live.node.workspaces;
    let id = workspaces::new_id();
    let used = workspaces.take(&id, live.number).ok_or(WorkspaceTrouble::InUse)?;
    make_room(&mut *owned.workspaces.0.lock().await, live, owned, &id).await;
    let directory = directory(&id);
    let entrance = owned
        .egress
        .entrance()
        .ok_or(WorkspaceTrouble::Stuck(NO_ENTRANCE.to_owned()))?;
    let mut denied = owned.denied();
    let cloning = async {
        allow_host(&entrance, url)?;
        let mut command = vec!["git", "clone", "--quiet", "--depth", "1"];
        if let Some(reference) = reference {
            command.extend(["--branch", reference]);
        }
        command.extend(["--", url, &directory]);
        match run(&live.sandbox, &command, entrance.entrance()).await {
            Err(error @ SandboxError::Failed(_)) => Err(WorkspaceTrouble::NoGit(error)),
            ran => ran?.map_err(WorkspaceTrouble::Clone),
        }
    };
    let cloned = tokio::select! {
        cloned = tokio::time::timeout(CLONE_TIMEOUT, cloning) => cloned.unwrap_or(Err(WorkspaceTrouble::CloneLate)),
        () = left => Err(WorkspaceTrouble::Left),
    };
    let made = match cloned {
        Ok(()) => keep_clone(live, asked, &id, url).await,
        Err(WorkspaceTrouble::Clone(mut said)) => {
            while let Ok(attempt) = denied.try_recv() {
                if attempt.entrance == entrance.entrance() {
                    let (host, port, why) = (attempt.host, attempt.port, attempt.reason);
                    said.push_str(&format!("; {host}:{port} was not reached: {why}"));
                }
            }
            Err(WorkspaceTrouble::Clone(said))
        }
        Err(trouble) => Err(trouble),
    };
    drop(entrance);
    let record = match made {
        Ok(record) => record,
        Err(trouble) => {
            tidy(&mut *owned.workspaces.0.lock().await, live, owned, &id).await;
            return Err(trouble);
        }
    };
    let mut open = owned.workspaces.0.lock().await;
    open.push(Open::of(&record));
    set_label(&live.sandbox, in_use(&open, workspaces, None))?;
    Ok(Opened {
        id,
        owner: asked.owner.clone(),
        workspaces: workspaces.clone(),
        _use: used,
    })
}

async fn keep_clone(live: &Live, asked: &AgentRun, id: &str, url: &str) -> Result<Record, WorkspaceTrouble> {
    let workspaces = &live.node.workspaces;
    let draft = in_time(async {
        let reader = live.sandbox.pack_tree(&directory(id), limits(workspaces)).await?;
        Ok::<_, WorkspaceTrouble>(workspaces.draft_of(&asked.owner, reader).await?)
    })
    .await?;
    let (this, owner) = (workspaces.clone(), asked.owner.clone());
    let (id, url) = (id.to_owned(), url.to_owned());
    let created = workspaces.blocking(move |store| {
        store.create(&owner, &id, &draft, Some(url), unix_ms(), |id| this.is_busy(id))
    });
    note_use(workspaces, created.await?, asked).await
}

/// A name may be reached while the clone goes on. An address only if it is the open internet's, or the pool's settings
/// name it: nobody gets at this machine or its network by calling it a repository.
fn allow_host(entrance: &egress::EntranceMeter, url: &str) -> Result<(), WorkspaceTrouble> {
    let wrong = |why: &str| WorkspaceTrouble::Clone(format!("{url:?} {why}"));
    let uri: http::Uri = url.parse().map_err(|_| wrong("is no address of a repository"))?;
    let port = match uri.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => return Err(wrong("does not begin with https:// or http://")),
    };
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?.as_str();
    if authority.contains('@') {
        return Err(wrong(
            "holds a login, which would be seen by others; upload the directory instead",
        ));
    }
    let target = egress::Target::parse(authority, Some(port)).map_err(|_| wrong("names no host"))?;
    if let egress::Host::Address(address) = &target.host
        && !egress::is_public(*address)
    {
        return Ok(());
    }
    let allowed = entrance.allow(&target.to_string());
    allowed.map_err(|_| wrong("names no host"))
}

/// Runs a command of the sandbox's own system to its end. When it fails, what it has said last.
async fn run(sandbox: &Sandbox, command: &[&str], entrance: u16) -> Result<Result<(), String>, SandboxError> {
    let mut request = ExecRequest::new(command.iter().copied());
    WORKSPACE.clone_into(&mut request.directory);
    // Nothing of the owner's own settings, and nobody to ask.
    for (name, value) in [
        ("PATH", "/usr/bin:/bin"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_ALLOW_PROTOCOL", "http:https"),
    ] {
        request.environment.push((name.to_owned(), value.to_owned()));
    }
    let Process {
        stdin,
        stdout,
        mut stderr,
        waiter,
    } = sandbox.exec(with_way_out(request, entrance)).await?;
    drop((stdin, stdout));
    let mut process = KillOnDrop(waiter);
    let mut said = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stderr.read(&mut piece).await;
        match read {
            Ok(count) if count > 0 => said.extend_from_slice(&piece[..count]),
            _ => break,
        }
        // What it says last is why it ends.
        said.drain(..said.len().saturating_sub(SAID_BYTES_MAX));
    }
    let exit = process.0.wait().await?;
    if exit.code == Some(0) {
        return Ok(Ok(()));
    }
    let said = String::from_utf8_lossy(&said);
    Ok(Err(said.trim().replace('\n', "; ")))
}
