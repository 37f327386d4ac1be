//! What is written down of each sandbox, so that a restarted node finds it, or what is left of it.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use process::Identity;
use serde::{Deserialize, Serialize};

use crate::SandboxId;

/// One sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    created_unix_ms: u64,
    /// The user that it runs as, when it is not this process's own.
    pub(super) user: Option<u32>,
    pub(super) cgroups: Vec<PathBuf>,
    /// The `bwrap` that waits outside.
    pub(super) outer: Option<Identity>,
    /// The init.
    pub(super) inner: Option<Identity>,
}

impl Record {
    pub(super) fn is_alive(&self) -> bool {
        self.inner.as_ref().is_some_and(Identity::is_alive)
    }

    pub(super) fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.created_unix_ms)
    }
}

#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    users: Range<u32>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashSet<u32>,
    making: HashSet<SandboxId>,
}

impl Records {
    pub(super) fn open(directory: &Path, users: Range<u32>) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let records = Self {
            directory: directory.to_owned(),
            users,
            state: Mutex::default(),
        };
        let known = records
            .all()?
            .into_iter()
            .filter_map(|(_, record)| record.user)
            .collect();
        records.lock().users = known;
        Ok(records)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of its record.
    pub(super) fn path(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// What `bwrap` and init say.
    pub(super) fn log(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{id}.log"))
    }

    /// Writes down that a sandbox is about to be made.
    pub(super) fn reserve(
        &self,
        id: &SandboxId,
        needs_user: bool,
        cgroups: Vec<PathBuf>,
    ) -> io::Result<Record> {
        let mut state = self.lock();
        let user = if needs_user {
            let free = self.users.clone().find(|user| !state.users.contains(user));
            Some(free.ok_or_else(|| io::Error::other("every user for sandboxes is taken"))?)
        } else {
            None
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(0),
            user,
            cgroups,
            outer: None,
            inner: None,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(id))?;
        file.write_all(&serde_json::to_vec(&record).map_err(io::Error::other)?)?;
        state.making.insert(id.clone());
        state.users.extend(user);
        Ok(record)
    }

    /// Writes down that it runs, unless it was ended meanwhile.
    pub(super) fn started(
        &self,
        id: &SandboxId,
        mut record: Record,
        outer: &Identity,
        inner: &Identity,
    ) -> io::Result<()> {
        // Its record is gone or about to be, and its user and its cgroups with it.
        let mut state = self.lock();
        if !state.making.contains(id) {
            return Err(io::Error::other("it was ended before it was there"));
        }
        record.outer = Some(outer.clone());
        record.inner = Some(inner.clone());
        let path = self.path(id);
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(&record).map_err(io::Error::other)?)?;
        fs::rename(&temporary, &path)?;
        state.making.remove(id);
        Ok(())
    }

    /// Says that a sandbox that is being made is not wanted any more.
    pub(super) fn give_up(&self, id: &SandboxId) {
        self.lock().making.remove(id);
    }

    pub(super) fn is_being_made(&self, id: &SandboxId) -> bool {
        self.lock().making.contains(id)
    }

    pub(super) fn read(&self, id: &SandboxId) -> io::Result<Option<Record>> {
        match fs::read(self.path(id)) {
            // One that is half written is of a start that was broken off; its processes have nobody to connect to.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().or_else(|| {
                Some(Record {
                    created_unix_ms: 0,
                    user: None,
                    cgroups: Vec::new(),
                    outer: None,
                    inner: None,
                })
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn all(&self) -> io::Result<Vec<(SandboxId, Record)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<SandboxId>().ok());
            if let Some(id) = id
                && let Some(record) = self.read(&id)?
            {
                all.push((id, record));
            }
        }
        Ok(all)
    }

    pub(super) fn remove(&self, id: &SandboxId) -> io::Result<()> {
        let user = self.read(id)?.and_then(|record| record.user);
        let mut state = self.lock();
        for path in [self.path(id).with_extension("new"), self.log(id), self.path(id)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        state.making.remove(id);
        if let Some(user) = user {
            state.users.remove(&user);
        }
        Ok(())
    }
}
