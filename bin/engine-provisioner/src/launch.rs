//! An engine kept by a process of its own: how the node daemon does it. The engine outlives a restart of the daemon.
//!
//! Each `engine-provisioner` holds the lock file of its replica for as long as it lives, with a note that names it. So
//! who keeps what is known after any restart, without a process list and without trusting files that the dead left.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pool_registry_types::{PoolId, ReplicaId};
use process::{Identity, Lifetime, LockFile, Output, Request};
use serde::{Deserialize, Serialize};

use crate::settings::{Settings, state_dir};
use crate::spec::EngineSpec;
use crate::status::EngineStatus;

/// The largest spec or state file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// From this size on a provisioner's own log is emptied when it starts.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// How provisioners are started.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The `engine-provisioner` program.
    pub program: PathBuf,
    /// The settings that it gets.
    pub settings: Settings,
    /// The lock file that the node daemon holds while it lives.
    pub daemon_lock: PathBuf,
    /// How long after the last holder of that lock the engine ends by itself.
    pub daemon_gone_after: Duration,
}

/// Why a provisioner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its spec could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its process could not be started.
    #[error(transparent)]
    Spawn(#[from] process::SpawnError),
}

/// A provisioner that lives and keeps an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keeper {
    /// The pool of its engine.
    pub pool_id: PoolId,
    /// Its engine.
    pub replica_id: ReplicaId,
    /// The spec that it keeps the engine by.
    pub spec_hash: String,
    /// The provisioner's process.
    pub identity: Identity,
}

impl Launcher {
    /// Starts a provisioner for `spec` and returns at once; its state is to be seen by [`status`].
    ///
    /// When one keeps this replica already, the new one ends by itself and changes nothing; to change a replica's spec,
    /// [`Keeper::stop`] its keeper first.
    pub fn launch(&self, spec: &EngineSpec) -> Result<Identity, LaunchError> {
        let files = Files::of(&self.settings.handoff_dir, &spec.pool_id, &spec.replica_id);
        let json = serde_json::to_vec_pretty(spec).expect("a spec is made of texts and numbers");
        write_whole(&files.spec, &json).map_err(|source| LaunchError::Write {
            path: files.spec.clone(),
            source,
        })?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--spec").arg(&files.spec);
        command.arg("--daemon-lock").arg(&self.daemon_lock);
        command
            .arg("--daemon-gone-after-ms")
            .arg(self.daemon_gone_after.as_millis().to_string());
        self.settings.pass_on(&mut command);
        let output = Output::File {
            path: files.log,
            bytes_max: LOG_BYTES_MAX,
        };
        let request = Request {
            command,
            lifetime: Lifetime::Detached,
            output,
        };
        let child = process::spawn(request, |_| ())?;
        Ok(child.identity().clone())
    }
}

impl Keeper {
    /// Whether it still lives.
    pub fn is_alive(&self) -> bool {
        self.identity.is_alive()
    }

    /// Asks it to end its engine and itself, and kills it once `grace` is over; the engine dies with it. Answers
    /// whether it is gone. Blocks the thread.
    pub fn stop(&self, grace: Duration) -> io::Result<bool> {
        process::terminate(&self.identity, grace)
    }
}

/// The provisioner that keeps this replica now. None: nobody does.
pub fn keeper(handoff_dir: &Path, pool_id: &PoolId, replica_id: &ReplicaId) -> io::Result<Option<Keeper>> {
    keeper_of_lock(&Files::of(handoff_dir, pool_id, replica_id).lock)
}

/// Every provisioner that lives and keeps an engine of this handoff directory.
pub fn keepers(handoff_dir: &Path) -> io::Result<Vec<Keeper>> {
    let entries = match std::fs::read_dir(state_dir(handoff_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut keepers = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            keepers.extend(keeper_of_lock(&path)?);
        }
    }
    Ok(keepers)
}

/// What the last keeper of this replica said last. It may have died since: see [`keeper`].
pub fn status(handoff_dir: &Path, pool_id: &PoolId, replica_id: &ReplicaId) -> Option<EngineStatus> {
    let files = Files::of(handoff_dir, pool_id, replica_id);
    serde_json::from_slice(&read_bounded(&files.status).ok()?).ok()
}

fn keeper_of_lock(path: &Path) -> io::Result<Option<Keeper>> {
    if !process::is_held(path)? {
        return Ok(None);
    }
    // Whoever has just taken the lock has not written its note yet; then the note names a dead one, or nobody.
    let keeper: Option<Keeper> = serde_json::from_str(&LockFile::note(path)?).ok();
    Ok(keeper.filter(Keeper::is_alive))
}

/// The files of one replica in the state directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) spec: PathBuf,
    pub(crate) status: PathBuf,
    pub(crate) lock: PathBuf,
    /// The provisioner's own log.
    pub(crate) log: PathBuf,
    /// The engine's log.
    pub(crate) engine_log: PathBuf,
}

impl Files {
    pub(crate) fn of(handoff_dir: &Path, pool_id: &PoolId, replica_id: &ReplicaId) -> Self {
        let file =
            |extension: &str| state_dir(handoff_dir).join(format!("{pool_id}_{replica_id}.{extension}"));
        Self {
            spec: file("spec.json"),
            status: file("status.json"),
            lock: file("lock"),
            log: file("log"),
            engine_log: file("engine.log"),
        }
    }
}

/// Writes a file so that a reader sees all of it or nothing.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        .tempfile_in(directory)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Reads a small file, and refuses one that is not.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}
