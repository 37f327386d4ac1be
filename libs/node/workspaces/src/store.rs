//! Where workspaces lie, and until when.
//!
//! ```text
//! DIRECTORY/<digest of the owner>/
//!     .new-<uuid>/0.tar        being made; its maker holds a lock on the directory
//!     .old-<uuid>/             being removed
//!     <id>/record.json         what is known of it, and which version is the newest
//!     <id>/0.tar, <id>/N.tar   the base, and what it has become
//! ```
//!
//! Nothing is kept in memory, so several processes may share a directory, and one that was killed leaves what the next
//! [`Store::sweep`] removes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::archive::{Archive, ArchiveError, Limits, canonical};

const RECORD: &str = "record.json";
const NEW: &str = ".new-";
const OLD: &str = ".old-";
/// Tasks that a record remembers, the latest ones.
const TASKS_MAX: usize = 256;
/// Between making a directory and locking it, its maker may have died: that is known after this time.
const LOCK_TIME_MAX: Duration = Duration::from_secs(10);

/// How workspaces are kept.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Where.
    pub directory: PathBuf,
    /// How much one may hold.
    pub limits: Limits,
    /// How many an owner has at most; the one that was not used for the longest time makes room.
    pub per_owner_max: usize,
    /// How long one is kept that is not used.
    pub idle_max: Duration,
}

/// Why a workspace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none of this name, or not any more.
    #[error("there is no such workspace, or it has expired")]
    Unknown,
    /// Somebody else has written it meanwhile.
    #[error("the workspace has changed meanwhile")]
    Changed,
    /// What is to be kept cannot be.
    #[error("the workspace is not taken: {0}")]
    Archive(#[from] ArchiveError),
    /// The disk.
    #[error("the workspaces at {} cannot be used", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is known of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// The repository that it was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<String>,
    /// When it was last used, Unix time.
    pub used_ms: u64,
    /// The newest version; 0 is the base.
    pub version: u64,
    /// The session that goes on in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The tasks that have worked in it, the latest last.
    #[serde(default)]
    pub tasks: Vec<String>,
}

/// All workspaces of a node.
#[derive(Debug)]
pub struct Store {
    settings: StoreSettings,
    /// One record is read and written at a time.
    turn: Mutex<()>,
}

/// A workspace, or a version of one, that is being made. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    _lock: File,
    archive: Archive,
}

impl Draft {
    /// What is in it.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What is left is removed by a sweep.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    /// Workspaces in the directory, which is made when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(settings: StoreSettings) -> Result<Self, StoreError> {
        make_directory(&settings.directory)?;
        Ok(Self {
            settings,
            turn: Mutex::new(()),
        })
    }

    /// How much one may hold.
    pub fn limits(&self) -> Limits {
        self.settings.limits
    }

    /// How long one is kept that is not used.
    pub fn idle_max(&self) -> Duration {
        self.settings.idle_max
    }

    /// Reads an archive for the owner. Nothing is kept of it until [`Self::create`] or [`Self::put`].
    ///
    /// # Errors
    /// [`StoreError::Archive`] says why it is not taken.
    pub fn draft(&self, owner: &str, input: impl io::Read) -> Result<Draft, StoreError> {
        let path = self
            .owner_directory(owner)
            .join(format!("{NEW}{}", Uuid::now_v7().simple()));
        make_directory(&path)?;
        let lock = File::open(&path).map_err(at(&path))?;
        lock.lock().map_err(at(&path))?;
        let file = new_file(&path.join("0.tar"))?;
        let archive = match canonical(input, file, self.limits()) {
            Ok(archive) => archive,
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                return Err(error.into());
            }
        };
        Ok(Draft {
            path,
            _lock: lock,
            archive,
        })
    }

    /// Makes a workspace of a draft, with a name from [`new_id`]. An owner who has too many loses the one that was not used for the longest time;
    /// `is_busy` says which are in use.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn create(
        &self,
        owner: &str,
        id: &str,
        draft: &Draft,
        cloned_from: Option<String>,
        now_ms: u64,
        is_busy: impl Fn(&str) -> bool,
    ) -> Result<Record, StoreError> {
        let record = Record {
            id: id.to_owned(),
            owner: owner.to_owned(),
            cloned_from,
            used_ms: now_ms,
            version: 0,
            session: None,
            tasks: Vec::new(),
        };
        write_record(&draft.path, &record)?;
        sync(&draft.path)?;
        let place = self.directory(owner, &record.id);
        fs::rename(&draft.path, &place).map_err(at(&place))?;
        let _turn = self.turn();
        let mut others = self.list(owner, now_ms)?;
        others.retain(|other| other.id != record.id && !is_busy(&other.id));
        others.sort_by_key(|other| other.used_ms);
        let surplus = (others.len() + 1).saturating_sub(self.settings.per_owner_max);
        for other in others.iter().take(surplus) {
            self.remove_directory(&self.directory(owner, &other.id))?;
        }
        Ok(record)
    }

    /// The owner's workspace of this name. None: there is none, or it has expired.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn get(&self, owner: &str, id: &str, now_ms: u64) -> Result<Option<Record>, StoreError> {
        if !is_id(id) {
            return Ok(None);
        }
        let record = read_record(&self.directory(owner, id))?;
        Ok(record.filter(|record| record.owner == owner && !self.is_expired(record, now_ms)))
    }

    /// The workspace in which the owner's task has worked.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn of_task(&self, owner: &str, task: &str, now_ms: u64) -> Result<Option<Record>, StoreError> {
        let has_it = |record: &Record| record.tasks.iter().any(|known| known == task);
        Ok(self.list(owner, now_ms)?.into_iter().find(has_it))
    }

    /// The workspace in which the owner's session goes on.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn of_session(&self, owner: &str, session: &str, now_ms: u64) -> Result<Option<Record>, StoreError> {
        let mut all = self.list(owner, now_ms)?;
        all.retain(|record| record.session.as_deref() == Some(session));
        Ok(all.into_iter().max_by_key(|record| record.used_ms))
    }

    /// The owner's workspaces.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn list(&self, owner: &str, now_ms: u64) -> Result<Vec<Record>, StoreError> {
        let mut found = Vec::new();
        for name in names(&self.owner_directory(owner))? {
            found.extend(self.get(owner, &name, now_ms)?);
        }
        Ok(found)
    }

    /// What the workspace began with, and what it is now.
    ///
    /// # Errors
    /// [`StoreError::Unknown`]; [`StoreError::Io`].
    pub fn archives(&self, owner: &str, id: &str) -> Result<(Archive, Archive), StoreError> {
        let directory = self.directory(owner, id);
        let (base, now) = {
            let _turn = self.turn();
            let record = read_record(&directory)?.ok_or(StoreError::Unknown)?;
            let open = |version| {
                let path = archive_path(&directory, version);
                File::open(&path).map_err(at(&path))
            };
            (open(0)?, open(record.version)?)
        };
        let read = |file| Archive::open(file).map_err(at(&directory));
        Ok((read(base)?, read(now)?))
    }

    /// The newest version as a file, to be unpacked.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn newest(&self, record: &Record) -> Result<File, StoreError> {
        let path = archive_path(&self.directory(&record.owner, &record.id), record.version);
        File::open(&path).map_err(at(&path))
    }

    /// Notes that a task uses the workspace now.
    ///
    /// # Errors
    /// [`StoreError::Unknown`]; [`StoreError::Io`].
    pub fn note_use(
        &self,
        record: &Record,
        task: &str,
        session: Option<&str>,
        now_ms: u64,
    ) -> Result<Record, StoreError> {
        let _turn = self.turn();
        let directory = self.directory(&record.owner, &record.id);
        let mut record = read_record(&directory)?.ok_or(StoreError::Unknown)?;
        record.used_ms = now_ms;
        record.tasks.retain(|known| known != task);
        record.tasks.push(task.to_owned());
        let surplus = record.tasks.len().saturating_sub(TASKS_MAX);
        record.tasks.drain(..surplus);
        if let Some(session) = session {
            record.session = Some(session.to_owned());
        }
        write_record(&directory, &record)?;
        Ok(record)
    }

    /// Makes a draft the newest version. With `expected`, only if that is the newest one now.
    ///
    /// # Errors
    /// [`StoreError::Unknown`]; [`StoreError::Changed`]; [`StoreError::Io`].
    pub fn put(
        &self,
        owner: &str,
        id: &str,
        draft: &Draft,
        expected: Option<u64>,
        now_ms: u64,
    ) -> Result<Record, StoreError> {
        sync(&draft.path)?;
        let _turn = self.turn();
        let directory = self.directory(owner, id);
        let mut record = read_record(&directory)?.ok_or(StoreError::Unknown)?;
        if expected.is_some_and(|expected| expected != record.version) {
            return Err(StoreError::Changed);
        }
        let former = record.version;
        record.version += 1;
        record.used_ms = now_ms;
        let place = archive_path(&directory, record.version);
        fs::rename(draft.path.join("0.tar"), &place).map_err(at(&place))?;
        write_record(&directory, &record)?;
        if former > 0 {
            let path = archive_path(&directory, former);
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(record)
    }

    /// Removes the owner's workspace. False: there was none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(&self, owner: &str, id: &str) -> Result<bool, StoreError> {
        let directory = self.directory(owner, id);
        if !is_id(id) || !directory.exists() {
            return Ok(false);
        }
        let _turn = self.turn();
        self.remove_directory(&directory)?;
        Ok(true)
    }

    /// Removes what has expired and is not in use, and what somebody who died has left half done.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sweep(&self, now_ms: u64, is_busy: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        for owner in names(&self.settings.directory)? {
            let owner = self.settings.directory.join(owner);
            for name in names(&owner)? {
                let path = owner.join(&name);
                if name.starts_with(OLD) || name.starts_with(NEW) && is_abandoned(&path) {
                    remove_all(&path)?;
                } else if is_id(&name) {
                    let _turn = self.turn();
                    let record = read_record(&path)?;
                    let is_over = record.is_none_or(|record| self.is_expired(&record, now_ms));
                    if is_over && !is_busy(&name) {
                        self.remove_directory(&path)?;
                    }
                }
            }
            // Fails as long as something is in it.
            let _ = fs::remove_dir(&owner);
        }
        Ok(())
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_expired(&self, record: &Record, now_ms: u64) -> bool {
        let idle_max = u64::try_from(self.settings.idle_max.as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_sub(record.used_ms) >= idle_max
    }

    fn owner_directory(&self, owner: &str) -> PathBuf {
        let digest = digest(&SHA256, owner.as_bytes());
        let name: String = digest.as_ref()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.settings.directory.join(name)
    }

    fn directory(&self, owner: &str, id: &str) -> PathBuf {
        self.owner_directory(owner).join(id)
    }

    /// Nobody sees half of what is being removed.
    fn remove_directory(&self, directory: &Path) -> Result<(), StoreError> {
        let aside = directory.with_file_name(format!("{OLD}{}", Uuid::now_v7().simple()));
        match fs::rename(directory, &aside) {
            Ok(()) => remove_all(&aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at(directory)(error)),
        }
    }
}

/// A name that no workspace has.
pub fn new_id() -> String {
    Uuid::now_v7().simple().to_string()
}

/// Whether a text is the name of a workspace on a node.
pub fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 32 && text.bytes().all(is_digit)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

fn archive_path(directory: &Path, version: u64) -> PathBuf {
    directory.join(format!("{version}.tar"))
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(at(path))
}

fn new_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(at(path))
}

fn remove_all(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// The archive is on disk before anything names it.
fn sync(draft: &Path) -> Result<(), StoreError> {
    let path = draft.join("0.tar");
    let synced = File::open(&path).and_then(|file| file.sync_data());
    synced.map_err(at(&path))
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at(directory))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// None: it is not there, or cannot be understood, which a kill cannot bring about.
fn read_record(directory: &Path) -> Result<Option<Record>, StoreError> {
    let path = directory.join(RECORD);
    match fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

fn write_record(directory: &Path, record: &Record) -> Result<(), StoreError> {
    let path = directory.join(RECORD);
    let written = tempfile::NamedTempFile::new_in(directory).and_then(|mut file| {
        serde_json::to_writer(&mut file, record)?;
        file.as_file().sync_data()?;
        file.persist(&path).map_err(io::Error::from)
    });
    written.map(drop).map_err(at(&path))
}

/// Whether nobody works on a draft any more.
fn is_abandoned(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let made = file.metadata().and_then(|status| status.modified());
    let age = made.map(|made| SystemTime::now().duration_since(made).unwrap_or_default());
    age.is_ok_and(|age| age > LOCK_TIME_MAX) && file.try_lock().is_ok()
}

#[cfg(test)]
mod tests;
